"""Scalar codes of a spectrum: envelope, steps, dead zone, and a prior whose probabilities add up."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcodec
from configs import telugu_vbr
from jaxcodec import codec, training
from jaxcodec.inference import pretrained
from jaxcodec.nn import envelope
from jaxcodec.quantizers import layout, scalar
from tests import support

F, EXTRA = 64, scalar.EXTRA


def small_config():
    """The recipe for files with everything made small."""
    config = telugu_vbr.get_config()
    config.update_from_flattened_dict(
        {
            "model.latent_dim": F + EXTRA,
            "model.width": 16,
            "model.transform.hop_length": F,
            "model.transform.depth": 1,
            "model.transform.kernel_size": 3,
            "model.transform.expansion": 2,
            "model.scalar.width": 16,
            "model.scalar.depth": 1,
        }
    )
    return config.lock()


@functools.cache
def bench():
    """Model, state and a batch of four clips."""
    model = support.make_model(small_config())
    return model, support.make_state(model), support.make_batch((1024, 700, 0, 64), 1024)


@pytest.fixture(scope="module")
def trained():
    """A codec with weights that are not small."""
    _, state, _ = bench()
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(0).standard_normal(x.shape, np.float32), state.params
    )
    return pretrained.make(params, state.quantizer, small_config())


def quantize(latents, quality=-20.0, shaping=1.0):
    """By a prior that knows nothing: a zero costs a bit, one costs three, and each step more one."""
    rates = tuple(jnp.full(len(latents), value) for value in (quality, shaping))
    quantizer = scalar.ScalarQuantizer(F, 8, 1)
    shapes = jax.eval_shape(quantizer.init, jax.random.key(0), latents, rates)
    return quantizer.apply(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), latents, rates)


def spectrum(level=0.1, frames=9, seed=0):
    noise = np.random.default_rng(seed).standard_normal((2, frames, F)).astype(np.float32)
    return np.pad(level * noise * 0.95 ** np.arange(F), ((0, 0), (0, 0), (0, EXTRA)))


@pytest.mark.parametrize("num_bins", [64, 320, 400])
def test_bands_part_the_coefficients_and_interpolation_keeps_a_constant(num_bins):
    bands = layout.bands(num_bins)
    assert bands.shape == (num_bins, layout.NUM_BANDS) and np.all(bands.sum(1) == 1) and bands.sum(0).min() >= 1
    assert np.all(np.diff(bands.argmax(1)) >= 0)
    np.testing.assert_allclose(layout.interpolation(num_bins).sum(0), 1, rtol=1e-6)


def told(latents):
    return np.ones(latents.shape[:2], bool)


def levels_of(frames, told):
    return envelope.Levels().apply({}, frames, told)


def test_the_envelope_is_the_power_of_each_band_in_levels_of_8_db():
    flat = np.full((1, 1, 320), 10**-0.8, np.float32)  # -16 dB
    np.testing.assert_array_equal(levels_of(flat, told(flat))[0, 0], -2)
    np.testing.assert_array_equal(levels_of(0 * flat, told(flat))[0, 0], -12)
    np.testing.assert_array_equal(levels_of(flat, ~told(flat))[0, 0], layout.START_LEVEL)
    louder = flat * np.where(np.arange(320) < 8, 10**0.8, 1)
    np.testing.assert_array_equal(levels_of(louder, told(louder))[0, 0], [0, *[-2] * 10])


def test_a_band_stays_where_it_was_while_it_is_off_by_three_quarters_of_a_level():
    exact = np.array([-2, -2.7, -2.8, -2.3, -2.2, -9, -8.3])
    frames = np.broadcast_to(10 ** (exact * layout.LEVEL_DB / 20), (1, F, 7)).swapaxes(1, 2).astype(np.float32)
    levels = levels_of(frames, told(frames))
    np.testing.assert_array_equal(levels[0, :, 4], [-2, -2, -3, -3, -2, -9, -9])
    np.testing.assert_array_equal(levels, np.broadcast_to(levels[..., :1], levels.shape))


def test_a_level_follows_from_its_frame_and_two_before():
    frames = 10 ** np.random.default_rng(0).uniform(-2, -1, (1, 200, F)).cumsum(1).clip(-3, 0).astype(np.float32)
    frames *= 10 ** (0.4 * np.random.default_rng(1).standard_normal((1, 200, 1)).astype(np.float32))
    whole = np.asarray(levels_of(frames, told(frames)))
    for count in (1, layout.HOLDS):
        parts = np.stack([frames[0, t - count : t + 1] for t in range(3, 200)])
        last = levels_of(parts, told(parts))[:, -1]
        assert np.array_equal(last, whole[0, 3:]) == (count == layout.HOLDS)


def test_without_shaping_all_steps_are_one_and_with_it_they_follow_the_speech():
    levels = levels_of(spectrum()[..., :F], told(spectrum()))
    quality = np.full((2, 9), -20.0)
    np.testing.assert_array_equal(envelope.step_decibels(levels, quality, 0 * quality, F), -20)
    shaped = envelope.step_decibels(levels, quality, np.ones((2, 9)), F)
    assert np.mean(shaped[..., 0] - shaped[..., -1]) > 3


@pytest.mark.parametrize("shaping", [0.0, 0.5, 1.0])
def test_codes_are_the_cheapest_of_those_near_and_what_comes_back_is_codes_times_steps(shaping):
    latents = spectrum()
    quantized = quantize(latents, -30.0, shaping)
    assert quantized.codes.shape == (2, F + EXTRA, 9)
    np.testing.assert_array_equal(quantized.codes[:, 0], -30 / scalar.QUALITY_DB)
    np.testing.assert_array_equal(quantized.codes[:, 1], shaping * scalar.SHAPINGS)
    levels = np.moveaxis(quantized.codes[:, 2:EXTRA], 1, 2).astype(np.float32)
    expected = levels_of(latents[..., :F], told(latents) & (shaping > 0))
    np.testing.assert_array_equal(levels, expected)
    steps = np.asarray(10 ** (envelope.step_decibels(levels, np.full((2, 9), -30.0), np.full((2, 9), shaping), F) / 20))
    scaled = np.abs(latents[..., :F]) / steps
    rounded = np.floor(scaled + scalar.ROUNDING)
    candidates = np.stack([rounded, np.maximum(rounded - 1, 0), 0 * rounded])
    bits = np.where(candidates > 0, np.maximum(candidates, 2) + 1, 1)
    costs = (scaled - candidates) ** 2 + scalar.LAGRANGIAN * bits
    cheapest = np.take_along_axis(candidates, costs.argmin(0)[None], 0)[0]
    codes = np.moveaxis(quantized.codes[:, EXTRA:], 1, 2)
    np.testing.assert_array_equal(np.abs(codes), cheapest)
    assert np.any(cheapest < rounded) and np.any(cheapest == rounded) and np.all(codes * latents[..., :F] >= 0)
    np.testing.assert_allclose(quantized.latents[..., :F], codes * steps, rtol=1e-4)
    np.testing.assert_allclose(quantized.steps, steps, rtol=1e-4)
    np.testing.assert_array_equal(quantized.latents[..., F:-2], levels)


def test_speech_40_db_quieter_has_the_same_codes_at_a_quality_16_db_lower():
    loud, quiet = quantize(spectrum(0.2), -16.0), quantize(spectrum(0.002), -32.0)
    np.testing.assert_array_equal(loud.codes[:, EXTRA:], quiet.codes[:, EXTRA:])
    np.testing.assert_array_equal(loud.codes[:, 2:EXTRA], quiet.codes[:, 2:EXTRA] + 5)


@pytest.mark.parametrize(("present", "two", "more"), [(0.0, 0.0, 0.0), (-3.0, 1.0, -2.0), (4.0, -2.0, 1.5)])
def test_the_priors_probabilities_of_a_coefficient_add_up_to_one(present, two, more):
    magnitudes = jnp.arange(400.0)
    signs = np.where(magnitudes > 0, 2, 1)
    logits = jnp.broadcast_to(jnp.array([present, two, more]), (400, 3))
    probabilities = signs * 2.0 ** -scalar.coefficient_bits(logits, magnitudes)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities[0], 1 / (1 + np.exp(present)), rtol=1e-5)
    np.testing.assert_allclose(probabilities[2:].sum() / probabilities[1:].sum(), 1 / (1 + np.exp(-two)), rtol=1e-4)
    np.testing.assert_allclose(probabilities[4] / probabilities[3], 1 / (1 + np.exp(-more)), rtol=1e-4)


def passes(index):
    """The pass in which a coefficient is coded."""
    return np.select([index % 4 == 0, index % 4 == 2], [0, 1], 2)


@pytest.mark.parametrize("jitted", [True, False])
def test_the_prior_never_sees_what_is_not_decoded_yet(jitted):
    prior, rng, frames = scalar.Prior(8, 1), np.random.default_rng(0), 6
    magnitudes = rng.integers(0, 4, (1, frames, F)).astype(np.float32)
    levels = rng.integers(-9, 3, (1, frames, 11)).astype(np.float32)
    steps, mask = np.zeros((1, frames, F), np.float32), np.ones((1, frames, 1), bool)
    params = prior.init(jax.random.key(0), magnitudes, levels, steps, mask)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), params)
    apply = jax.jit(prior.apply) if jitted else prior.apply

    def bits(magnitudes, levels):
        coefficients, changes = apply(params, magnitudes, levels, steps, mask)
        coefficients = scalar.coefficient_bits(coefficients, magnitudes)
        return [np.asarray(x[0]) for x in (coefficients, scalar.envelope_bits(changes, levels))]

    plain, at, index = bits(magnitudes, levels), 3, np.arange(F)
    for edited in (0, 2, 5, 32, 62, 63):
        other = magnitudes.copy()
        other[0, at, edited] += 1
        coefficients, changes = bits(other, levels)
        same = np.isclose(coefficients, plain[0], rtol=1e-4, atol=1e-4)
        assert same[:at].all() and not same[at, edited]
        early = (passes(index) <= passes(edited)) & (index != edited)
        assert same[at, early].all()
        assert not same[at, passes(index) > passes(edited)].all() or passes(edited) == 2
        assert not same[at + 1].all()
        np.testing.assert_allclose(changes[: at + 1], plain[1][: at + 1], rtol=1e-4)  # the envelope goes before
    for edited in (0, 4, 10):
        other = levels.copy()
        other[0, at, edited] += 1
        coefficients, changes = bits(magnitudes, other)
        same = np.isclose(changes, plain[1], rtol=1e-4, atol=1e-4)
        rank = layout.BAND_ORDER
        unseeing = (rank <= rank[edited]) & (np.arange(len(rank)) != edited)
        assert same[:at].all() and same[at, unseeing].all() and not same[at, edited]
        np.testing.assert_allclose(coefficients[:at], plain[0][:at], rtol=1e-4)


def test_rate_and_distance_fall_in_training_and_no_parameter_is_dead():
    config = small_config()
    model, _, batch = bench()
    optimizer = optax.adam(1e-3)
    state = support.make_state(model, optimizer)
    step = jax.jit(functools.partial(training.train_step, model=model, optimizer=optimizer, config=config))
    evaluate = jax.jit(functools.partial(training.eval_step, model=model, config=config))
    first, sums = state.params, [evaluate(state.params, state.quantizer, batch)]
    for _ in range(40):
        state, _ = step(state, batch, jax.random.key(0))
    sums.append(evaluate(state.params, state.quantizer, batch))
    assert sums[1]["bits_0"] < 0.85 * sums[0]["bits_0"]
    assert sums[1]["perceptual"] < sums[0]["perceptual"]
    for (path, old), new in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(state.params), strict=True):
        assert np.any(old != new), jax.tree_util.keystr(path)


def test_perceptual_terms_weigh_as_much_as_each_clips_shaping_says():
    model, state, batch = bench()
    shaping = jnp.array([0.0, 0.5, 0.0, 1.0])
    rates = jnp.full(4, -20.0), shaping
    output = model.apply(model.collections(state.params, state.quantizer), batch["audio"], batch["length"], rates)
    np.testing.assert_array_equal(output.quantized.hearing, shaping)

    def terms(hearing):
        heard = output.replace(quantized=output.quantized.replace(hearing=jnp.asarray(hearing)))
        return training.loss_terms(heard, batch["length"], small_config())

    deaf, half, whole = (terms(np.full(4, share, np.float32)) for share in (0, 0.5, 1))
    for name in ("perceptual", "loudness"):
        assert whole[name] > 0 == deaf[name]
        np.testing.assert_allclose(half[name], whole[name] / 2, rtol=1e-6)
    assert deaf["mse"] == whole["mse"] > 0


def test_evaluation_says_bits_at_every_rate_and_a_finer_step_costs_more():
    model, state, batch = bench()
    sums = jax.jit(functools.partial(training.eval_step, model=model, config=small_config()))(
        state.params, state.quantizer, batch
    )
    bits, snrs = ([float(sums[f"{what}_{name}"]) for name in ("0", "-6", "-12", "-18")] for what in ("bits", "snr"))
    assert bits == sorted(bits) and snrs == sorted(snrs) and bits[0] > 0
    assert "snr_unquantized" not in sums and "usage" not in sums
    np.testing.assert_allclose(sums["seconds"], np.sum(model.num_frames(batch["length"])) * F / 16000, rtol=1e-6)


def test_a_list_pieces_a_stream_and_a_file_have_the_codes_of_the_clip(trained):
    clip, hop = support.speech_like(1, 60 * F)[0], F
    codes = np.asarray(jaxcodec.encode(trained, clip, -20.0))
    decoded = np.asarray(jaxcodec.decode(trained, codes, len(clip)))
    assert codes.shape == (F + EXTRA, 61) and np.abs(codes[EXTRA:]).max() > 2
    np.testing.assert_array_equal(jaxcodec.encode(trained, [clip[:100], clip], quality=-20.0)[1], codes)
    np.testing.assert_array_equal(jaxcodec.unpack(trained, jaxcodec.pack(trained, codes, len(clip))).codes, codes)
    state, heard = jaxcodec.init_stream(trained), []
    for start in range(0, 60 * hop, 4 * hop):
        state, part = jaxcodec.encode_step(trained, state, clip[start : start + 4 * hop], -20.0)
        np.testing.assert_array_equal(part, codes[:, start // hop : start // hop + 4])
        state, audio = jaxcodec.decode_step(trained, state, part)
        heard.append(audio)
    state, part = jaxcodec.encode_step(trained, state, np.zeros(hop, np.float32), -20.0)
    np.testing.assert_array_equal(part, codes[:, 60:])
    state, audio = jaxcodec.decode_step(trained, state, part)
    heard += [audio, jaxcodec.decode_end(trained, state)]
    np.testing.assert_allclose(np.concatenate(heard)[trained.delay :][: len(clip)], decoded, atol=1e-5)


def test_codes_are_the_same_without_jit_in_a_batch_and_on_one_thread(trained, tmp_path):
    clips = [support.speech_like(1, size * F, seed=size)[0] for size in (20, 33)]
    alone = [np.asarray(jaxcodec.encode(trained, clip, -20.0)) for clip in clips]
    with jax.disable_jit():
        eager = [np.asarray(jaxcodec.encode(trained, clip, -20.0)) for clip in clips]
    jaxcodec.save(trained, tmp_path / "codec.safetensors")
    np.savez(tmp_path / "clips.npz", *clips)
    script = """
import sys, jaxcodec, numpy as np
codec, clips = jaxcodec.load(sys.argv[1] + "/codec.safetensors"), np.load(sys.argv[1] + "/clips.npz")
np.savez(sys.argv[1] + "/codes.npz", *[jaxcodec.encode(codec, clips[name], -20.0) for name in clips.files])
"""
    environment = os.environ | {"NPROC": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, timeout=300)
    threaded = np.load(tmp_path / "codes.npz")
    for index, clip in enumerate(jaxcodec.encode(trained, clips, -20.0)):
        for codes in (clip, eager[index], threaded[threaded.files[index]]):
            np.testing.assert_array_equal(codes, alone[index])
        data = jaxcodec.pack(trained, alone[index], len(clips[index]))
        np.testing.assert_array_equal(jaxcodec.unpack(trained, data).codes, alone[index])
    assert np.abs(alone[0][EXTRA:]).max() > 2


def test_frames_that_do_not_exist_reach_no_code():
    quantizer, rng, latents = scalar.ScalarQuantizer(F, 16, 2), np.random.default_rng(0), spectrum()
    rates = jnp.full(2, -24.0), jnp.ones(2)
    params = quantizer.init(jax.random.key(0), latents, rates)
    params = jax.tree.map(lambda x: x + 0.4 * rng.standard_normal(x.shape).astype(np.float32), params)
    padded = np.pad(latents, ((0, 0), (5, 0), (0, 0)))
    mask = np.broadcast_to(np.arange(padded.shape[1]) >= 5, padded.shape[:2])
    alone = quantizer.apply(params, latents, rates).codes
    np.testing.assert_array_equal(quantizer.apply(params, padded, rates, mask).codes[:, :, 5:], alone)
    assert np.any(quantizer.apply(params, padded, rates).codes[:, :, 5:] != alone)


def test_codes_follow_from_their_frame_and_the_context_before_it():
    quantizer, rng = scalar.ScalarQuantizer(F, 8, 1), np.random.default_rng(0)
    latents = (spectrum(frames=600)[:1] * 10 ** rng.normal(0, 0.4, (1, 600, 1))).astype(np.float32)
    params = quantizer.init(jax.random.key(0), latents, (jnp.full(1, -24.0), jnp.ones(1)))
    params = jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype(np.float32), params)

    def codes(latents):
        return quantizer.apply(params, latents, (jnp.full(len(latents), -24.0), jnp.ones(len(latents)))).codes

    whole = np.moveaxis(codes(latents)[0], 1, 0)
    for count in (quantizer.context, quantizer.context - 1):
        windows = np.stack([latents[0, t - count : t + 1] for t in range(count, 600)])
        differ = np.any(codes(windows)[..., -1] != whole[count:], axis=1)
        assert np.any(differ) == (count < quantizer.context)


def test_windows_of_a_long_clip_see_as_far_back_as_its_codes_do(trained):
    clip = support.speech_like(1, 1500 * F)[0]
    mask = np.ones((1, len(clip)), bool)
    latents = trained.module.apply(trained.variables, clip[None], mask, method="analyze")
    rates = tuple(jnp.full(1, value) for value in (-20.0, 0.75))
    whole = trained.module.apply(trained.variables, latents, rates, method="encode_latents")[0]
    np.testing.assert_array_equal(jaxcodec.encode(trained, clip, -20.0), whole)
    np.testing.assert_array_equal(jaxcodec.quantize(trained, latents[0], -20.0), whole)
    pieces = jaxcodec.inference.functions.encode_blocks(trained, np.split(clip, 30), -20.0)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), whole)


def test_what_cannot_be_is_refused_in_one_line(trained):
    with pytest.raises(ValueError, match=r"quality 99 dB, shaping 0.75: expected -66 to 40 and 0 to 1"):
        jaxcodec.encode(trained, np.zeros(100, np.float32), 99)
    config = small_config().copy_and_resolve_references().unlock()
    config.model.latent_dim = 20 + EXTRA
    with pytest.raises(ValueError, match="20 coefficients are too few for 11 bands"):
        scalar.from_config(config.model, config.fixes)
    config.model.latent_dim = F
    with pytest.raises(ValueError, match=rf"model.latent_dim is {F}, expected hop_length \+ {EXTRA}"):
        codec.from_config(config.model, config.fixes)
