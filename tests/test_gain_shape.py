"""Gain-shape codes: the envelope first, then a shape that knows no level, found by beam search."""

import functools
import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from configs import telugu
from jaxcodec import codec as codec_module, training
from jaxcodec.nn import envelope, networks, spectral
from jaxcodec.quantizers import gain_shape, layout, rvq
from tests import support

N, F, C = layout.NUM_BANDS, 40, 24  # bands, coefficients of the spectrum, and those coded


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def trained(**overrides):
    """A codec with the marks of training: hop length 40, an envelope codebook and three of the shape, 16 entries each."""
    return support.trained_codec(support.small_config("gain_shape", model__causal=True, **overrides))


def speech(num_samples=2000, seed=0):
    return support.speech_like(1, num_samples, seed)[0]


# The scales.


def test_a_spectrum_as_its_envelope_says_has_unit_power_at_every_tilt():
    bands = 20 * normal(2, 3, N) - 40
    fine = np.asarray(envelope.decibels(bands / layout.LEVEL_DB, F))
    for tilt in (0.0, 0.3, 1.0):
        scaled = 10 ** (fine / 20) / np.asarray(envelope.unit_scales(bands, tilt, F))
        np.testing.assert_allclose(np.mean(scaled**2, axis=-1), 1, rtol=1e-4)
    flat = np.asarray(envelope.unit_scales(bands, 0.0, F))
    np.testing.assert_allclose(flat, flat[..., :1] * np.ones(F), rtol=1e-5)
    np.testing.assert_allclose(envelope.unit_scales(bands, 1.0, F), 10 ** (fine / 20), rtol=1e-4)


def test_scales_follow_the_level_and_stay_finite_at_its_ends():
    bands = 20 * normal(1, 4, N) - 40
    louder = envelope.unit_scales(bands + 20, 0.3, F) / envelope.unit_scales(bands, 0.3, F)
    np.testing.assert_allclose(louder, 10, rtol=1e-4)
    for level in (-200.0, 200.0):
        assert np.isfinite(envelope.unit_scales(np.full((1, 1, N), level, np.float32), 0.3, F)).all()


def test_the_bands_of_noise_are_its_power():
    bands = envelope.band_decibels(0.1 * normal(1, 4000, F))
    np.testing.assert_allclose(np.mean(10 ** (bands / 10), axis=1), 0.01, rtol=0.1)
    np.testing.assert_array_equal(envelope.band_decibels(np.zeros((1, 1, F), np.float32)), layout.FLOOR_DB)


# The search.


def test_one_beam_is_the_nearest_centroid_at_every_codebook():
    latents, centroids = normal(2, 25, 4), normal(3, 8, 4, seed=1)
    np.testing.assert_array_equal(rvq.search(latents, centroids, 1), rvq.quantize(latents, centroids).codes)


def test_as_many_beams_as_centroids_find_the_best_pair():
    latents, centroids = normal(2, 25, 4), normal(2, 6, 4, seed=1)
    pairs = np.array(list(itertools.product(range(6), repeat=2)))
    sums = centroids[np.arange(2), pairs].sum(axis=1)
    best = pairs[np.argmin(((latents[:, :, None] - sums) ** 2).sum(-1), axis=-1)]
    np.testing.assert_array_equal(np.moveaxis(rvq.search(latents, centroids, 6), 1, 2), best)
    assert not np.array_equal(np.moveaxis(rvq.search(latents, centroids, 1), 1, 2), best)


def test_blocks_of_frames_that_do_not_exist_are_left_out_of_the_search():
    latents, centroids = normal(2, 128, 4), normal(4, 6, 4, seed=1)
    mask = np.arange(128) < np.array([[70], [64]])
    codes, expected = (np.asarray(rvq.search(latents, centroids, 5, mask)) for mask in (mask, None))
    for row, count in enumerate(mask.sum(axis=1)):
        np.testing.assert_array_equal(codes[row, :, :count], expected[row, :, :count])
    np.testing.assert_array_equal(codes[0], expected[0])  # of a block with one that exists all are searched
    assert not codes[1, :, 64:].any() and expected[1, :, 64:].any()


@pytest.mark.parametrize(("beams", "size", "block"), [(6, 576, 64), (2, 320, 128), (2, 1024, 256), (1, 1024, 256)])
def test_few_beams_search_larger_blocks_to_the_same_codes(beams, size, block):
    latents, centroids = normal(1, size, 4), normal(4, 6, 4, seed=1)
    search = functools.partial(rvq.search, centroids=centroids, beams=beams, rounded=True)
    codes = np.asarray(search(latents, frame_mask=np.arange(size)[None] < block + 2))  # two blocks
    alone = [search(latents[:, i : i + 64]) for i in range(0, size, 64)]
    np.testing.assert_array_equal(codes[..., : 2 * block], np.concatenate(alone, axis=2)[..., : 2 * block])
    assert not codes[..., 2 * block :].any()


def test_one_beam_by_rounded_products_is_nearly_the_nearest():
    latents, centroids = normal(2, 200, 24), normal(5, 64, 24, seed=1) * 0.7 ** np.arange(5)[:, None, None]
    rounded = np.asarray(rvq.search(latents, centroids, 1, rounded=True))
    exact = np.asarray(rvq.search(latents, centroids, 1))
    errors = [np.mean((latents - np.asarray(rvq.dequantize(codes, centroids))) ** 2) for codes in (rounded, exact)]
    assert errors[0] < 1.005 * errors[1]
    assert np.mean(rounded[:, 0] == exact[:, 0]) > 0.97 and np.any(rounded != exact)


def test_the_greatest_are_those_that_sorting_finds_the_first_of_equal_ones():
    values = np.random.default_rng(0).integers(0, 4, (50, 3, 9)).astype(np.float32)
    for count in (1, 2):
        np.testing.assert_array_equal(rvq.greatest(values, count), jax.lax.top_k(values, count)[1])
    assert rvq.greatest(-np.ones((2, 5)), 1).tolist() == [[0], [0]]


def test_no_codebooks_have_no_codes():
    assert rvq.search(normal(2, 5, 4), normal(0, 6, 4), 3).shape == (2, 0, 5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_few_frames_and_many_have_the_same_codes_whatever_they_are_multiplied_in(dtype, monkeypatch):
    monkeypatch.setattr(rvq, "_product_dtypes", lambda: (dtype, jnp.float32))
    rng = np.random.default_rng(3)
    centroids, frames = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 128, 48), (1, 192, 48)))
    table = rvq.tabulate(jnp.asarray(centroids))
    assert table.entries.dtype == dtype and (table.of_few is None) == (dtype == jnp.float32)
    assert table.factors(64).dtype == jnp.float32 and table.factors(65).dtype == dtype
    many = rvq.search(frames, centroids, 8, table=table)
    for first in (0, 3, 191):
        few = rvq.search(frames[:, first : first + 1], centroids, 8, table=table)
        np.testing.assert_array_equal(few[..., 0], many[..., first])


def test_more_beams_leave_less_error():
    latents, centroids = normal(2, 200, 8), normal(6, 16, 8, seed=1) * 0.8 ** np.arange(6)[:, None, None]
    errors = []
    for beams in (1, 2, 4, 8):
        decoded = rvq.dequantize(rvq.search(latents, jnp.asarray(centroids, jnp.float32), beams), centroids)
        errors.append(np.mean((latents - decoded) ** 2))
    assert errors[0] > 1.05 * errors[1] > 1.05 * errors[2] and errors[2] > errors[3]


# The quantizer.


def apply(codec, method, *args):
    return codec.module.apply(codec.variables, *args, method=method)


def test_codes_decode_to_the_quantized_latents_at_every_number_of_codebooks():
    codec = trained()
    latents = jaxcodec.latents(codec, speech())[None]
    quantized = apply(codec, "quantize", latents)
    codes = apply(codec, "encode_latents", latents)
    np.testing.assert_array_equal(codes, quantized.codes)
    assert codes.shape[1] == 4
    for count in range(1, 5):
        expected = apply(codec, "requantize", quantized, jnp.array([count])).latents
        np.testing.assert_array_equal(apply(codec, "dequantize", codes[:, :count]), expected)
        np.testing.assert_allclose(expected[..., -1], np.log2(count), atol=1e-6)
    np.testing.assert_array_equal(latents[..., -1], 2)  # before quantization as if all were there
    assert not np.any(apply(codec, "dequantize", codes[:, :1])[..., :C])  # an envelope alone has no coefficients


def test_quieter_speech_has_the_same_shape_codes_where_the_envelope_tells_its_level():
    codec = trained(model__gain_shape__encoder_depth=0)
    books = codec.constants["envelope"]["centroids"][0, :8]
    both = jnp.concatenate([books, books - 20])[None]
    constants = codec.constants | {"envelope": {"centroids": both}}
    codec = codec.replace(constants=constants)
    loud, quiet = (np.asarray(jaxcodec.encode(codec, gain * speech())) for gain in (1.0, 0.1))
    told = loud[0] + 8 == quiet[0]  # not where a frame is nearer to the other level's entries, or at the floor
    assert np.mean(told) > 0.7
    np.testing.assert_array_equal(loud[1:, told], quiet[1:, told])
    assert len(np.unique(loud[1:, told])) > 8


@pytest.mark.parametrize("band", [0, N - 1])
def test_an_envelope_is_found_by_every_band(band):
    codec = trained()
    books = np.array(codec.constants["envelope"]["centroids"])
    size = books.shape[1]
    books[:] = -90 + 12 * np.arange(size)[:, None] * (np.arange(N) == band)  # entries that only this band tells apart
    codec = codec.replace(constants=codec.constants | {"envelope": {"centroids": jnp.asarray(books)}}).with_beams(8)
    latents = np.concatenate([np.zeros((size, C)), books[0], np.full((size, 1), 2)], axis=1)
    codes = apply(codec, "encode_latents", jnp.asarray(latents, jnp.float32)[None])
    np.testing.assert_array_equal(codes[0, 0], np.arange(size))


def test_the_encoder_learns_by_the_commitment_to_the_shape_and_the_envelope_does_not_pull():
    codec = trained()
    latents = jaxcodec.latents(codec, speech())[None]
    mask = jnp.ones(latents.shape[:2], bool)

    def commitment(latents):
        quantized = apply(codec, "quantize", jax.lax.stop_gradient(latents))
        return jnp.sum(apply(codec, "penalize", latents, quantized, mask)["commitment"].values)

    gradient = np.asarray(jax.grad(commitment)(latents))
    assert np.abs(gradient[..., :C]).max() > 0
    assert not gradient[..., C:].any()
    quantized = apply(codec, "quantize", latents)
    scales = apply(codec, lambda module, bands: module.quantizer._scales(bands), quantized.latents[..., C : C + N])
    left = (latents - quantized.latents)[..., :C] / scales
    np.testing.assert_allclose(commitment(latents), np.sum(left**2), rtol=1e-4)


def test_products_of_the_search_are_exact_in_whatever_order_they_add_up():
    rng = np.random.default_rng(0)
    vectors, entries = (rng.standard_normal((size, 211)) * rng.uniform(0.1, 9, (size, 1)) for size in (70, 96))
    (whole, units), (table, _) = (rvq._whole(jnp.asarray(x, jnp.float32)) for x in (vectors, entries))
    exact = np.asarray(whole, np.int64) @ np.asarray(table, np.int64).T
    assert np.abs(exact).max() < 2**24
    for rows in (1, 7, 70):
        products = jnp.matmul(whole[:rows], table.T, preferred_element_type=jnp.float32)
        np.testing.assert_array_equal(np.asarray(products, np.int64), exact[:rows])
    np.testing.assert_allclose(np.asarray(whole, np.float32) * np.asarray(units)[:, None], vectors, atol=0.02 * 9 * 4)


def test_rounded_products_cost_next_to_no_error():
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 128, 24))
    centroids = rng.standard_normal((5, 64, 24)) * 0.7 ** np.arange(5)[:, None, None]
    residuals, errors = latents[0][:, None], np.sum(latents[0] ** 2, axis=-1)[:, None]
    for codebook in centroids:  # an M-search with 4 beams, in float64
        candidates = residuals[:, :, None] - codebook
        errors = np.sum(candidates**2, axis=-1).reshape(len(residuals), -1)
        best = np.argsort(errors, axis=1)[:, :4]
        residuals = np.take_along_axis(candidates.reshape(len(residuals), -1, 24), best[..., None], axis=1)
    exact = np.sort(errors, axis=1)[:, 0].mean()
    arrays = (jnp.asarray(x, jnp.float32) for x in (latents, centroids))
    codes = rvq.search(*arrays, 4)
    found = np.sum((latents - np.asarray(rvq.dequantize(codes, jnp.asarray(centroids, jnp.float32)))) ** 2, -1).mean()
    assert found < 1.005 * exact


def test_fewer_codebooks_are_searched_on_their_own():
    codec, clip = trained(model__rvq__beams=3), speech(6400)
    codes, latents = np.asarray(jaxcodec.encode(codec, clip)), np.asarray(jaxcodec.latents(codec, clip))
    nearest = rvq.nearest(latents[:, C : C + N], codec.constants["envelope"]["centroids"][0])
    np.testing.assert_array_equal(jaxcodec.encode(codec, clip, 1)[0], nearest)
    for count in (2, 3):
        fewer = np.asarray(jaxcodec.encode(codec, clip, count))
        bands = np.asarray(jaxcodec.dequantize(codec, fewer[:1]))[:, C : C + N]
        shape = latents[:, :C] / apply(codec, lambda module, bands: module.quantizer._scales(bands), bands)
        expected = rvq.search(shape[None], codec.constants["shape"]["centroids"][: count - 1], 3)
        np.testing.assert_array_equal(fewer[1:], expected[0])
    assert not np.array_equal(fewer, codes[:3])


@pytest.mark.parametrize("count", [2, 4])
def test_of_the_nearest_envelopes_the_one_is_taken_with_which_the_first_shape_is_nearest(count):
    codec, clip = trained(model__rvq__beams=3), speech(6400)
    latents, codes = np.asarray(jaxcodec.latents(codec, clip)), np.asarray(jaxcodec.encode(codec, clip, count))
    coefficients, bands = latents[:, :C], latents[:, C : C + N]
    envelopes, shapes = (np.asarray(codec.constants[name]["centroids"][0]) for name in ("envelope", "shape"))
    scales = functools.partial(apply, codec, lambda module, bands: np.asarray(module.quantizer._scales(bands)))
    of_bands, distances = scales(bands), np.sum((bands[:, None] - envelopes) ** 2, axis=-1)
    errors = np.full(distances.shape, np.inf)
    for code, told in enumerate(np.broadcast_to(envelopes[:, None], (len(envelopes), *bands.shape))):
        shape = coefficients / scales(told)
        chosen = shapes[np.argmin(np.sum((shape[:, None] - shapes) ** 2, axis=-1), axis=1)]
        left = np.sum(((coefficients - chosen * scales(told)) / of_bands) ** 2, axis=-1)
        tried = np.any(np.argsort(distances, axis=1)[:, :3] == code, axis=1)
        own = np.mean((told - bands) ** 2, axis=-1)
        errors[:, code] = np.where(tried, left + gain_shape.envelope_weight(count - 1) * own, np.inf)
    assert np.mean(codes[0] == np.argmin(errors, axis=1)) > 0.98  # but for rounded products
    assert np.mean(codes[0] == np.argmin(distances, axis=1)) < 0.97


def test_the_more_of_the_shape_follows_the_nearer_the_envelope_is():
    codec, clip = trained(model__rvq__beams=3), speech(6400)
    bands = np.asarray(jaxcodec.latents(codec, clip))[:, C : C + N]
    told = [np.asarray(jaxcodec.dequantize(codec, jaxcodec.encode(codec, clip, n)))[:, C : C + N] for n in (1, 4, 2)]
    assert np.all(np.diff([np.mean((x - bands) ** 2) for x in told]) > 0)


def test_a_stream_a_batch_and_a_file_have_the_codes_and_the_sound_of_the_clip():
    codec = trained(model__rvq__beams=3, model__gain_shape__lookahead=1)
    clip = speech(64 * codec.hop_length)
    codes = np.asarray(jaxcodec.encode(codec, clip))
    greedy = trained(model__gain_shape__lookahead=1)
    assert not np.array_equal(codes, jaxcodec.encode(greedy, clip))
    np.testing.assert_array_equal(jaxcodec.encode(codec, [clip, clip[:100]])[0], codes)
    np.testing.assert_array_equal(jaxcodec.encode(greedy, clip, 2), jaxcodec.encode(greedy, clip)[:2])
    state, parts = jaxcodec.init_stream(codec), []
    for start in range(0, len(clip), 4 * codec.hop_length):
        state, part = jaxcodec.encode_step(codec, state, clip[start : start + 4 * codec.hop_length])
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), codes[:, :64])
    file = jaxcodec.unpack(codec, jaxcodec.pack(codec, codes, len(clip)))
    np.testing.assert_array_equal(file.codes, codes)
    assert codec.delay == 2 * codec.hop_length


def test_where_only_the_envelope_is_told_it_is_filled_with_noise_of_its_level():
    codec = support.untrained_codec(architecture="gain_shape", model__causal=True)
    bands = np.full((400, N), -40, np.float32) + 4 * normal(400, N)
    bands[200:, :5] -= 20
    latents = np.concatenate([np.zeros((400, C), np.float32), bands, np.zeros((len(bands), 1), np.float32)], axis=-1)
    decoded = jaxcodec.synthesize(codec, latents)
    spectrum = spectral.mdct(decoded[None], F)
    for half in (slice(5, 195), slice(205, 395)):
        power = np.mean(10 ** (envelope.band_decibels(spectrum[:, half]) / 10), axis=(0, 1))
        told = np.mean(10 ** (bands[half] / 10), axis=0)
        np.testing.assert_allclose(10 * np.log10(power / told), networks.NOISE_DB, atol=4)
    signs = np.sign(spectrum[0, 5:195])
    for one, other in ((signs[1:], signs[:-1]), (signs[:, 1:], signs[:, :-1])):
        assert abs(np.mean(one * other)) < 0.05  # of a frame and the next, of a coefficient and the next
    later = jaxcodec.synthesize(codec, latents[100:])  # what is before a frame does not change its noise
    np.testing.assert_allclose(later[20 * F :], decoded[120 * F :], atol=1e-6)


def test_no_gradient_goes_through_the_noise():
    frames = normal(1, 5, 12)
    weights = normal(1, 5, F, seed=1)
    assert not np.any(jax.grad(lambda x: jnp.sum(weights * networks._noise(x, F)))(frames))


def test_the_decoder_says_how_loud_the_noise_of_a_band_is():
    codec = support.untrained_codec(architecture="gain_shape", model__causal=True)
    bands = np.full((100, N), -40, np.float32) + 4 * normal(100, N)
    latents = np.concatenate([np.zeros((100, C), np.float32), bands, np.zeros((len(bands), 1), np.float32)], axis=-1)
    params = flax.traverse_util.flatten_dict(codec.params)
    bias = "decoder", "network", "output", "bias"
    louder = flax.traverse_util.unflatten_dict(params | {bias: jnp.asarray(params[bias]).at[-1].add(2)})
    before, after = (
        envelope.band_decibels(spectral.mdct(jaxcodec.synthesize(each, latents)[None], F))[0, 5:-5].mean(axis=0)
        for each in (codec, codec.replace(params=louder))
    )
    assert 17 < after[-1] - before[-1] < 20  # 20 dB in the middle of the band, on its way to the next one's at the edge
    np.testing.assert_allclose(after[:4], before[:4], atol=0.5)


def test_the_encoder_turns_a_shape_and_keeps_its_length():
    codec = trained()
    plain = jaxcodec.latents(trained(model__gain_shape__encoder_depth=0), speech())
    latents = jaxcodec.latents(codec, speech())
    np.testing.assert_array_equal(latents[:, C : C + N], plain[:, C : C + N])
    scales = apply(codec, lambda module, bands: module.quantizer._scales(bands), latents[:, C : C + N])
    turned, shape = (np.asarray(x[:, :C] / scales) for x in (latents, plain))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(shape, axis=-1), rtol=1e-3)
    assert np.abs(turned - shape).max() > 0.1


def test_it_learns_as_the_others_do():
    config = support.small_config("gain_shape", optimizer__learning_rate=3e-3, quantizer__decay=0.8)
    model = support.make_model(config)
    optimizer = training.make_optimizer(config.optimizer, 60)
    state, batch = support.make_state(model, optimizer), support.make_batch(num_samples=640, lengths=(640,) * 8)
    step = jax.jit(functools.partial(training.train_step, model=model, optimizer=optimizer, config=config))
    evaluate = jax.jit(functools.partial(training.eval_step, model=model, config=config))
    for _ in range(60):
        state, logs = step(state, batch, jax.random.key(0))
    sums = evaluate(state.params, state.quantizer, batch)
    snr = [float(sums[f"snr_{count}"] / sums["clips"]) for count in (1, 2, 4)]
    assert snr[0] < snr[1] < snr[2] and snr[2] > 3
    assert np.isfinite(logs["loss"]) and "output_scale" in state.params["decoder"]
    assert np.min(np.mean(np.asarray(sums["usage"]) > 0, axis=-1)) > 0.5


def test_a_model_of_fewer_codebooks_starts_from_the_first_ones_of_a_larger():
    codec = trained()
    fewer = support.make_model(support.small_config("gain_shape", model__rvq__num_codebooks=3))
    state = fewer.quantizer.resumed(codec.constants)
    assert {name: part.centroids.shape[0] for name, part in state.items()} == {"envelope": 1, "shape": 2}
    for name, part in state.items():
        expected = codec.constants[name]["centroids"][: len(part.centroids)]
        np.testing.assert_array_equal(part.centroids, expected)
        np.testing.assert_array_equal(part.sums / part.counts[..., None], expected)


@pytest.mark.parametrize("preset", telugu.CODEBOOKS)
def test_a_preset_has_the_rate_of_its_name(preset):
    config = telugu.get_config(preset)
    frames = config.model.sample_rate / config.model.gain_shape.hop_length
    bits = config.model.rvq.num_codebooks * np.log2(config.model.rvq.codebook_size)
    assert f"{frames * bits / 1000:g}kbps" == preset
    assert (config.experiment_name == "telugu") == (config.quantizer.dropout > 0) == (preset == "8kbps")


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match='has the presets 8kbps, 4kbps, 2kbps, not "3kbps"'):
        telugu.get_config("3kbps")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model__rvq__envelope_codebooks=0), 'envelope_codebooks is 0: the architecture "gain_shape" needs'),
        (dict(model__rvq__envelope_codebooks=4), "envelope_codebooks is 4 of 4: none is left"),
        (dict(model__rvq__beams=0), "model.rvq.beams is 0, expected a whole number from 1 to 64"),
        (
            dict(model__latent_dim=N + 1),
            f"latent_dim is {N + 1}, expected 1 to 40 coefficients and {N} bands and the rate",
        ),
        (dict(model__gain_shape__hop_length=16), "16 coefficients are too few for 11 bands"),
        (dict(model__gain_shape__lookahead=3), "lookahead is 3, expected 0 to kernel_size - 1"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    config = support.small_config("gain_shape", **overrides)
    with pytest.raises(ValueError, match=message):
        codec_module.from_config(config.model, config.fixes)


def test_envelope_codebooks_belong_to_one_architecture():
    config = support.small_config("gain_shape", model__architecture="mdct", model__latent_dim=8)
    with pytest.raises(ValueError, match='"mdct" is another that has no envelope'):
        codec_module.from_config(config.model, config.fixes)
