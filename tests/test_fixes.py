"""One test for each of the eight fixes: it holds with the fix on and does not with the fix undone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodec import codec, training
from jaxcodec.nn import losses
from jaxcodec.quantizers import interface, rvq
from tests import support


def with_fix(name, enabled, **overrides):
    """A small config with one fix on or undone, and its model."""
    config = support.small_config(**{f"fixes.{name}": enabled}, **overrides)
    return config, support.make_model(config)


@functools.cache
def initial_state():
    """A fresh state; only fixes 2 and 7 change what is in it."""
    return support.make_state(support.make_model(support.small_config()))


def decoded(reference, audio, lengths):
    """What the loss sees of a codec that decoded `reference` to `audio`."""
    frames = jnp.zeros((1, len(reference), 2, 8))
    trace = rvq.Trace(jnp.zeros((len(reference), 1, 2), jnp.int32), frames, frames)
    quantized = interface.Quantized(frames[0], trace.codes, trace)
    return codec.CodecOutput(audio, reference, frames[0], quantized, {}, jnp.ones((len(reference), 2), bool))


def loss_and_gradient(config, reference, audio):
    """The training loss of a codec that returned `audio`, and its gradient there."""
    lengths = jnp.full(len(audio), audio.shape[1])

    def loss(audio):
        return training.total_loss(decoded(reference, audio, lengths), lengths, config)[0]

    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(audio))


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_1_the_spectral_loss_is_exact_whatever_the_compute_dtype(enabled):
    config, _ = with_fix("fp32_stft", enabled, model__dtype="bfloat16")
    reference = support.speech_like(2, 1000)
    audio, lengths = reference + 0.03 * support.speech_like(2, 1000, seed=5), jnp.array([1000, 1000])
    terms = jax.jit(lambda x: training.loss_terms(decoded(reference, x, lengths), lengths, config))(audio)
    exact = np.mean(losses.spectral_loss(reference, audio, lengths, dtype=jnp.float32))
    assert np.isclose(terms["perceptual"], exact, rtol=1e-5) == enabled


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_2_codebooks_start_as_normal_noise_times_a_hundredth(enabled):
    _, model = with_fix("small_vq_init", enabled)
    variables = model.quantizer.init(jax.random.key(0), jnp.zeros((1, 2, 8)))
    centroids = variables["codebooks"]["state"].centroids
    np.testing.assert_allclose(np.std(centroids), 0.01 if enabled else 1.0, rtol=0.1)


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_3_the_loss_is_bounded_and_keeps_a_gradient(enabled):
    overrides = dict(loss__mse_bound=10.0, loss__clip_bound=20.0, loss__perceptual_weight=0.0)
    config, _ = with_fix("loss_clamping", enabled, **overrides)
    reference = support.speech_like(2, 400)
    audio = -100 * reference
    value, gradient = loss_and_gradient(config, reference, audio)
    true_error = 101**2
    np.testing.assert_allclose(value, 10.0 if enabled else true_error, rtol=1e-3)
    error = audio - reference
    cosine = np.sum(gradient * error) / np.linalg.norm(gradient) / np.linalg.norm(error)
    np.testing.assert_allclose(cosine, 1.0, atol=0.05)  # the way down is the same


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_4_codebooks_move_towards_the_residual_that_entered_them(enabled):
    config, model = with_fix("ema_residual", enabled, quantizer__revive_below=0.0)
    batch = support.make_batch()
    optimizer, state = optax.sgd(0.0), initial_state()
    step = jax.jit(functools.partial(training.train_step, model=model, optimizer=optimizer, config=config))
    distances = []
    for _ in range(12):
        state, logs = step(state, batch, jax.random.key(0))
        distances.append(float(logs["commitment"]))
    if enabled:
        assert distances[-1] < 0.7 * distances[0]
    else:
        np.testing.assert_allclose(distances, distances[0], rtol=1e-2)


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_5_the_encoder_sees_audio_between_minus_one_and_one(enabled):
    _, model = with_fix("input_clipping", enabled)
    state, audio = initial_state(), 20 * support.speech_like(1, 64)
    apply = jax.jit(functools.partial(model.apply, model.collections(state.params, state.quantizer)))
    lengths = jnp.array([64])
    loud, clipped = apply(audio, lengths), apply(np.clip(audio, -1, 1), lengths)
    assert np.array_equal(loud.latents, clipped.latents) == enabled
    assert (np.abs(loud.clipped).max() <= 1.0) == enabled


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_6_the_output_is_unbounded(enabled):
    _, model = with_fix("no_tanh", enabled)
    state = initial_state()
    latents, lengths = 30 * np.ones((1, 4, 8), np.float32), jnp.array([48])
    variables = model.collections(state.params, state.quantizer)
    decode = jax.jit(functools.partial(model.apply, method=codec.Codec.synthesize_clips), static_argnums=3)
    loudest = np.abs(decode(variables, latents, lengths, 48)).max()
    assert (loudest > 2.5) == enabled  # tanh holds it within the output scale


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_7_the_output_scale_is_a_trained_leaf(enabled):
    _, model = with_fix("learnable_scale", enabled)
    audio, lengths = support.speech_like(2, 64), jnp.array([64, 64])
    shapes = jax.eval_shape(model.init, jax.random.key(0), audio, lengths)
    assert ("output_scale" in shapes["params"]["decoder"]) == enabled
    if not enabled:
        return

    def error(output_scale):
        params = initial_state().params
        params = params | {"decoder": params["decoder"] | {"output_scale": output_scale}}
        output = model.apply(model.collections(params, initial_state().quantizer), audio, lengths).audio
        return jnp.sum((output - audio) ** 2), output

    assert initial_state().params["decoder"]["output_scale"] == 2.5
    gradient_and_output = jax.jit(jax.grad(error, has_aux=True))
    gradient, output = gradient_and_output(2.5)
    assert gradient != 0
    np.testing.assert_allclose(gradient_and_output(5.0)[1], 2 * output, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("enabled", [True, False])
def test_fix_8_the_waveform_error_leads_and_the_spectral_loss_counts_a_hundredth(enabled):
    config, _ = with_fix("pure_mse", enabled)
    reference = support.speech_like(2, 700)
    audio, lengths = 0.8 * reference + 0.05 * support.speech_like(2, 700, seed=5), jnp.array([700, 700])
    terms = jax.jit(lambda x: training.loss_terms(decoded(reference, x, lengths), lengths, config))(audio)
    value, _ = loss_and_gradient(config, reference, audio)
    np.testing.assert_allclose(value, terms["mse"] + (0.01 if enabled else 1.0) * terms["perceptual"], rtol=1e-4)
    assert terms["perceptual"] > terms["mse"] > 0  # so the weight decides which one leads
