"""Loss terms against values worked by hand; padding does not exist, gain does not matter, bounds keep the direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodec.nn import losses, spectral
from tests import support

WEIGHTINGS = [name for name in losses.ERROR_WEIGHTINGS if name != "steps"]


def pair(num_clips=3, num_samples=1000, noise=0.3):
    """A reference and a decoded version of it, (B, S) each."""
    reference = support.speech_like(num_clips, num_samples)
    return reference, (0.9 * reference + noise * support.speech_like(num_clips, num_samples, seed=5))


def full(audio):
    return jnp.full(audio.shape[0], audio.shape[1])


def test_squared_error_is_the_hand_worked_value():
    reference, decoded = jnp.array([[1.0, 0.0, 2.0, 0.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
    lengths = jnp.array([4])
    absolute = losses.waveform_error(reference, decoded, lengths, relative=False)
    np.testing.assert_allclose(absolute, [2 / 4], rtol=1e-6)
    relative = losses.waveform_error(reference, decoded, lengths, relative=True)
    np.testing.assert_allclose(relative, [2 / 5], rtol=1e-6)


def test_silence_has_a_finite_relative_error():
    silence, lengths = jnp.zeros((1, 100)), jnp.array([100])
    np.testing.assert_array_equal(losses.waveform_error(silence, silence, lengths), [0.0])
    hum = losses.waveform_error(silence, silence + 1e-3, lengths)
    np.testing.assert_allclose(hum, [1e-6 / losses.SILENCE_POWER], rtol=1e-5)


def test_preemphasis_is_numpys_filter():
    reference, decoded = pair(2)
    actual = losses.waveform_error(reference, decoded, full(reference), weighting="preemphasis", preemphasis=0.8)
    for clip in range(2):
        error, clean = (np.convolve(x, [1, -0.8])[:1000] for x in (decoded[clip] - reference[clip], reference[clip]))
        np.testing.assert_allclose(actual[clip], np.sum(error**2) / np.sum(clean**2), rtol=1e-4)
    assert not np.allclose(actual, losses.waveform_error(reference, decoded, full(reference)), rtol=1e-2)


def test_band_weighting_with_exponent_zero_is_plain():
    reference, decoded = pair()
    for relative in (True, False):
        plain = losses.waveform_error(reference, decoded, full(reference), relative=relative)
        flat = losses.waveform_error(
            reference, decoded, full(reference), relative=relative, weighting="band", band_exponent=0.0
        )
        np.testing.assert_allclose(flat, plain, rtol=1e-3)


def test_band_weighting_charges_more_for_noise_where_speech_is_weak():
    time = np.arange(6400) / 16000
    low, high = (np.sin(2 * np.pi * f * time, dtype=np.float32)[None] for f in (300, 5000))
    reference = low + 0.03 * high

    @jax.jit
    def error(noise, exponent):
        decoded, lengths = reference + 0.01 * noise, jnp.array([6400])
        return losses.waveform_error(reference, decoded, lengths, weighting="band", band_exponent=exponent)[0]

    ratios = [error(high, exponent) / error(low, exponent) for exponent in (0.0, 0.25, 0.5)]
    np.testing.assert_allclose(ratios[0], 1.0, rtol=1e-2)
    np.testing.assert_allclose(ratios[2], ratios[1] ** 2, rtol=0.1)  # power to the -exponent
    assert ratios[2] > 1 / 0.03  # the power ratio is 0.03^2, over a wider band


def test_an_unknown_weighting_is_refused_by_name():
    with pytest.raises(ValueError, match='"loud", expected one of plain, preemphasis, band, steps'):
        losses.waveform_error(*pair(), jnp.full(3, 1000), weighting="loud")
    with pytest.raises(ValueError, match='is "steps", but this quantizer has none'):
        losses.waveform_error(*pair(), jnp.full(3, 1000), weighting="steps")


def test_an_error_in_steps_is_the_mean_square_of_what_each_coefficient_is_off():
    rng = np.random.default_rng(0)
    steps = np.exp(rng.standard_normal((1, 6, 64)).astype(np.float32))
    off = np.zeros((1, 6, 64), np.float32)
    off[0, 2, 5], off[0, 3, 60] = 3 * steps[0, 2, 5], -2 * steps[0, 3, 60]
    reference = support.speech_like(1, 320)
    decoded = reference + np.asarray(spectral.imdct(off, 320))
    error = losses.waveform_error(reference, decoded, jnp.array([320]), weighting="steps", steps=jnp.asarray(steps))
    np.testing.assert_allclose(error, [(3**2 + 2**2) / (6 * 64)], rtol=1e-2)


def test_loudness_loss_is_nothing_for_the_same_and_charges_more_for_what_was_added():
    reference = support.speech_like(2, 8000)
    lengths = full(reference)
    measure = jax.jit(losses.loudness_loss)
    assert np.all(measure(reference, reference, lengths) < 1e-3)
    np.testing.assert_allclose(  # what the ear is told, not the level that it is told at
        measure(0.1 * reference, 0.12 * reference, lengths), measure(reference, 1.2 * reference, lengths), rtol=1e-3
    )
    noise = support.speech_like(2, 8000, seed=5)
    values = [measure(reference, reference + gain * noise, lengths) for gain in (0.4, 0.7, 1.0)]  # fainter is masked
    assert np.all(np.diff(values, axis=0) > 0)
    time = np.arange(8000) / 16000
    tone = np.sin(2 * np.pi * 500 * time, dtype=np.float32)[None]
    hiss = 0.03 * np.sin(2 * np.pi * 4000 * time, dtype=np.float32)[None]
    added, missing = measure(tone, tone + hiss, lengths[:1]), measure(tone + hiss, tone, lengths[:1])
    assert added[0] > 2 * missing[0] > 0


def test_pesq_loss_forgives_level_and_filter_and_gain_and_hears_what_is_worst(monkeypatch):
    reference = support.speech_like(2, 16000)
    lengths = full(reference)
    assert np.all(losses.pesq_loss(reference, reference, lengths) < 5e-3)
    np.testing.assert_allclose(losses.pesq_loss(0.1 * reference, 0.3 * reference, lengths), 0, atol=5e-3)
    dull = np.stack([np.convolve(x, (0.15, 0.7, 0.15), "same") for x in reference]).astype(np.float32)
    swinging = reference * np.where(np.arange(16000) % 8000 < 4000, 1, 0.3).astype(np.float32)
    for changed, compensation in ((dull, "_filter_between"), (swinging, "_gain_between")):
        forgiven = losses.pesq_loss(reference, changed, lengths)
        with monkeypatch.context() as patch:
            patch.setattr(losses, compensation, lambda *_: 1.0)
            assert np.all(forgiven < 0.7 * losses.pesq_loss(reference, changed, lengths))
    noise = 0.02 * np.random.default_rng(0).standard_normal(reference.shape).astype(np.float32)
    burst = 2 * noise * (np.arange(16000) < 4000)  # the same power
    steady, bursting = (
        losses.pesq_loss(reference, reference + x, lengths) / losses.loudness_loss(reference, reference + x, lengths)
        for x in (noise, burst)
    )
    assert np.all(bursting > 2 * steady)


def pesq_by_the_book(target, actual):
    """ITU-T P.862 on one clip's powers in bark bands, (T, 49) each, frame by frame and band by band."""
    quiet, bands = losses._quiet()[0, 0], range(losses.LOUDNESS_BANDS)
    target, actual = (
        x.astype(float) * 10**7.9 / (x.sum(1).mean() + losses.SILENCE_POWER * 512) for x in (target, actual)
    )
    frames, heard = range(len(target)), [[x[t].copy() for t in range(len(x))] for x in (target, actual)]
    for t in frames:
        for x in heard:
            x[t][x[t] <= 100 * quiet] = 0
    speech = [t for t in frames if heard[0][t].sum() > 1e7]
    for band in bands:
        before, after = (sum(x[t][band] for t in speech) / max(len(speech), 1) for x in heard)
        target[:, band] *= min(max((after + 1e3) / (before + 1e3), 0.01), 100)
    gain = None
    values = [], []
    for t in frames:
        before, after = (sum(x[t][x[t] > quiet]) for x in (target, actual))
        now = (before + 5e3) / (after + 5e3)
        gain = now if gain is None else 0.2 * gain + 0.8 * now
        distorted = actual[t] * min(max(gain, 3e-4), 5)
        loudness = [0.187 * (2 * quiet) ** 0.23 * ((0.5 + 0.5 * x / quiet) ** 0.23 - 1) for x in (target[t], distorted)]
        symmetric, asymmetric = 1e-6, 0.0
        for band in bands:
            wanted, found = (max(x[band], 0) for x in loudness)
            disturbance = max(abs(found - wanted) - min(found, wanted) / 4, 0)
            factor = ((distorted[band] + 50) / (target[t, band] + 50)) ** 1.2
            symmetric += disturbance**2
            asymmetric += disturbance * (0 if factor < 3 else min(factor, 12))
        width, soft = losses._bark(8000) / 49, (target[t].sum() / 1e7 + 0.01) ** 0.04
        values[0].append(min(7 * width * symmetric**0.5 / soft, 45))
        values[1].append(min(width * asymmetric / soft, 45))
    total = 0.0
    for weight, found in zip((0.1, 0.0309), values, strict=True):
        spans = [found[start : start + 20] for start in range(0, len(found), 10)]
        means = [(sum(x**6 for x in span) / 20) ** (1 / 6) for span in spans]
        total += weight * (sum(x**2 for x in means) / len(means)) ** 0.5
    return total


@pytest.mark.parametrize("damage", ["noise", "loud noise", "gap", "faint", "filter"])
def test_pesq_loss_is_by_the_book(damage):
    reference = support.speech_like(2, 9000)
    reference[:, 3000:4000] *= 1e-3  # a pause
    noise = np.random.default_rng(0).standard_normal(reference.shape).astype(np.float32)
    decoded = {
        "noise": lambda: reference + 0.01 * noise,
        "loud noise": lambda: reference + 3 * noise,
        "gap": lambda: reference * (np.arange(9000) // 1500 % 3 > 0),
        "faint": lambda: reference * np.where(np.arange(9000) < 7000, 1, 1e-2) + 1e-3 * noise,
        "filter": lambda: reference - 0.95 * np.roll(reference, 1, axis=1),
    }[damage]().astype(np.float32)
    lengths = np.array([9000, 5300])
    mask = np.arange(9000) < lengths[:, None]
    found = losses.pesq_loss(reference * mask, decoded * mask, lengths)
    for row, length in enumerate(lengths):
        pair = (x[row : row + 1, :length] for x in (reference, decoded))
        np.testing.assert_allclose(
            found[row], pesq_by_the_book(*(np.asarray(losses._bark_power(x))[0] for x in pair)), rtol=2e-3, atol=1e-3
        )


@pytest.mark.parametrize(("measure", "least"), [(losses.loudness_loss, 0.8), (losses.pesq_loss, 0.9)])
def test_losses_of_the_ear_rank_as_pesq_does(measure, least):
    pesq = pytest.importorskip("pesq").pesq
    reference = support.speech_like(1, 48000)
    noise = np.random.default_rng(0).standard_normal((1, 48000)).astype(np.float32)
    smooth = np.convolve(noise[0], np.ones(9) / 3, "same")[None].astype(np.float32)
    damaged = [reference + gain * kind for kind in (noise, smooth) for gain in (0.001, 0.004, 0.016, 0.064)]
    losses_ = [float(measure(reference, x, full(reference))[0]) for x in damaged]
    scores = [pesq(16000, reference[0], x[0], "wb") for x in damaged]
    assert np.corrcoef(np.argsort(np.argsort(losses_)), np.argsort(np.argsort(scores)))[0, 1] < -least


def terms(relative=True):
    """Every loss term as (reference, decoded, lengths) -> (B,)."""
    by_name = {
        name: lambda *x, name=name: losses.waveform_error(*x, relative=relative, weighting=name) for name in WEIGHTINGS
    }
    return by_name | {
        "spectral": lambda *x: losses.spectral_loss(*x, relative=relative),
        "loudness": losses.loudness_loss,
        "pesq": losses.pesq_loss,
    }


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("name", [*WEIGHTINGS, "spectral", "loudness", "pesq"])
def test_a_padded_clip_has_the_loss_it_has_alone(name, relative):
    measure = jax.jit(terms(relative)[name])
    reference, decoded = pair(3, 1700)
    lengths = np.array([1, 700, 1700])
    mask = np.arange(1700) < lengths[:, None]
    padded = measure(reference * mask, decoded * mask, lengths)
    for clip, num_samples in enumerate(lengths[:2]):
        alone = measure(reference[clip, None, :num_samples], decoded[clip, None, :num_samples], lengths[clip, None])
        np.testing.assert_allclose(padded[clip], alone[0], rtol=1e-4)
    forgetful = measure(reference * mask, decoded * mask, jnp.full(3, 1700))
    assert not np.allclose(forgetful[:2], padded[:2], rtol=1e-3) or (relative and name != "spectral")


@pytest.mark.parametrize("name", [*WEIGHTINGS, "spectral"])
def test_relative_losses_do_not_depend_on_the_gain(name):
    reference, decoded = pair()
    relative, absolute = jax.jit(terms()[name]), jax.jit(terms(relative=False)[name])
    lengths = full(reference)
    loud = relative(reference, decoded, lengths)
    np.testing.assert_allclose(relative(0.1 * reference, 0.1 * decoded, lengths), loud, rtol=1e-2)
    assert not np.allclose(
        absolute(0.01 * reference, 0.01 * decoded, lengths), absolute(reference, decoded, lengths), rtol=1e-2
    )


@pytest.mark.parametrize("relative", [True, False])
def test_spectral_loss_is_the_numpy_reference(relative):
    reference, decoded = pair(1, 1000)
    expected = []
    for fft_length in (512, 1024, 2048):
        x, y = (np.asarray(spectral.stft_magnitude(a, fft_length, fft_length // 4))[0] for a in (reference, decoded))
        convergence = np.linalg.norm(y - x) / np.linalg.norm(x)
        floor = 1e-3 * np.sqrt(np.mean(x**2)) if relative else 1e-5
        expected.append(convergence + np.mean(np.abs(np.log(y + floor) - np.log(x + floor))))
    actual = losses.spectral_loss(reference, decoded, jnp.array([1000]), relative=relative)
    np.testing.assert_allclose(actual, [np.mean(expected)], rtol=1e-3)


def test_spectral_loss_of_a_clip_with_itself_is_nothing():
    reference, _ = pair()
    np.testing.assert_allclose(losses.spectral_loss(reference, reference, full(reference)), 0.0, atol=1e-4)
    np.testing.assert_allclose(losses.spectral_loss(reference, -reference, full(reference)), 0.0, atol=1e-4)  # no phase


@pytest.mark.parametrize("name", [*WEIGHTINGS, "spectral", "loudness", "pesq"])
def test_gradients_are_finite_at_silence_and_for_empty_filler(name):
    reference = np.stack([np.zeros(700), np.zeros(700), support.speech_like(1, 700)[0]]).astype(np.float32)
    lengths = jnp.array([0, 700, 700])
    measure = terms()[name]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(measure(reference, x, lengths))))
    assert np.all(np.isfinite(gradient(jnp.zeros((3, 700)))))
    assert np.all(np.isfinite(gradient(jnp.asarray(reference))))
    assert np.any(gradient(0.5 * reference)[2] != 0)


@pytest.mark.parametrize("value", [0.5, 3.0, 4e5])
def test_bounding_limits_the_value_and_keeps_the_gradients_direction(value):
    x = jnp.array([0.6, 0.8]) * jnp.sqrt(value)
    bounded, gradient = jax.value_and_grad(lambda x: losses.bounded(jnp.sum(x**2), 2.0))(x)
    np.testing.assert_allclose(bounded, min(value, 2.0), rtol=1e-5)
    expected = 2 * x if value < 2 else 2.0 * 2 * x / value  # that of bound * log(value)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    hard = jax.grad(lambda x: jnp.minimum(jnp.sum(x**2), 2.0))(x)
    assert np.any(hard != 0) == (value < 2)  # what a clamp would do


def test_shares_of_a_total_are_bounded_together():
    shares, total = jnp.array([3.0, 5.0]), jnp.array(8.0)
    bounded = losses.bounded(shares, 2.0, total)
    np.testing.assert_allclose(jnp.sum(bounded), 2.0, rtol=1e-6)
    np.testing.assert_allclose(bounded[0] / bounded[1], 3 / 5, rtol=1e-6)
    np.testing.assert_array_equal(losses.bounded(shares, jnp.inf, total), shares)
