"""Measures of decoded speech against values worked by hand; padding does not exist."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxcodec.nn import metrics
from tests import support


def pair(num_clips=2, num_samples=1000, noise=0.2):
    reference = support.speech_like(num_clips, num_samples)
    return reference, reference + noise * support.speech_like(num_clips, num_samples, seed=5)


def full(audio):
    return jnp.full(audio.shape[0], audio.shape[1])


def test_snr_is_the_hand_worked_value():
    reference = jnp.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    decoded = jnp.array([[3.0, 4.5], [0.9, 0.0], [-1.0, -1.0]])
    expected = [10 * np.log10(25 / 0.25), 20.0, 10 * np.log10(2 / 8)]
    np.testing.assert_allclose(metrics.snr(reference, decoded, full(reference)), expected, rtol=1e-4)


def test_snr_punishes_gain_and_si_sdr_forgives_it():
    reference, decoded = pair()
    lengths = full(reference)
    once = metrics.si_sdr(reference, decoded, lengths)
    for gain in (0.1, 0.5, -3.0):
        np.testing.assert_allclose(metrics.si_sdr(reference, gain * decoded, lengths), once, rtol=1e-3)
        assert np.all(metrics.snr(reference, gain * decoded, lengths) < metrics.snr(reference, decoded, lengths) - 3)


def test_si_sdr_is_the_hand_worked_value():
    reference, decoded = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.5]])  # target (2, 0), error (0, 0.5)
    np.testing.assert_allclose(metrics.si_sdr(reference, decoded, full(reference)), [10 * np.log10(16)], rtol=1e-5)


def test_perfect_and_silent_outputs_have_finite_scores_in_the_right_order():
    reference, decoded = pair()
    lengths = full(reference)
    for measure in (metrics.snr, metrics.segmental_snr, metrics.si_sdr):
        scores = [measure(reference, x, lengths) for x in (reference, decoded, 0 * reference)]
        assert np.all(np.isfinite(scores))
        assert np.all(scores[0] > scores[1]) and np.all(scores[1] > scores[2])


def test_segmental_snr_is_the_numpy_reference():
    reference, decoded = pair(1, 320 * 6 + 100)
    reference[0, 320:640] = 1e-6  # a pause, left out
    decoded[0, 640:960] = reference[0, 640:960]  # perfect, counted as 35 dB
    decoded[0, 960:1280] = -9 * reference[0, 960:1280]  # hopeless, counted as -10 dB
    values = []
    for start in (0, 640, 960, 1280, 1600):
        x, y = (a[0, start : start + 320].astype(float) for a in (reference, decoded))
        values.append(np.clip(10 * np.log10((np.sum(x**2) + 1e-10) / (np.sum((x - y) ** 2) + 1e-10)), -10, 35))
    assert values[1] == 35 and values[2] == -10
    actual = metrics.segmental_snr(reference, decoded, full(reference))
    np.testing.assert_allclose(actual, [np.mean(values)], rtol=1e-4)


def test_range_and_rms_ratios_are_the_hand_worked_values():
    reference, decoded = jnp.array([[-1.0, 1.0, 0.0, 0.0]]), jnp.array([[-0.5, 0.25, 0.0, 0.5]])
    np.testing.assert_allclose(metrics.range_ratio(reference, decoded, jnp.array([4])), [0.5], rtol=1e-6)
    rms = np.sqrt((0.25 + 0.0625 + 0.25) / 2)
    np.testing.assert_allclose(metrics.rms_ratio(reference, decoded, jnp.array([4])), [rms], rtol=1e-6)


def test_the_optimal_gain_undoes_a_gain_and_minimizes_the_error():
    reference, decoded = jnp.array([[3.0, -1.0, 2.0]]), jnp.array([[1.0, 0.0, 1.0]])  # (3 + 2) / 2
    np.testing.assert_allclose(metrics.optimal_gain(reference, decoded, jnp.array([3])), [2.5], rtol=1e-6)
    np.testing.assert_allclose(metrics.optimal_gain(reference, 0.25 * reference, jnp.array([3])), [4.0], rtol=1e-6)


def test_optimal_gain_is_least_squares_and_undoes_a_gain():
    reference, decoded = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 1.0]])  # (1 + 2) / (1 + 1)
    np.testing.assert_allclose(metrics.optimal_gain(reference, decoded, full(reference)), [1.5], rtol=1e-6)
    reference, decoded = pair()
    once = metrics.optimal_gain(reference, decoded, full(reference))
    for gain in (0.5, 2.0, -3.0):
        actual = metrics.optimal_gain(reference, gain * decoded, full(reference))
        np.testing.assert_allclose(actual, once / gain, rtol=1e-4)
    errors = [np.sum((reference - g * np.asarray(once)[:, None] * decoded) ** 2, axis=1) for g in (0.99, 1.0, 1.01)]
    assert np.all(errors[1] < errors[0]) and np.all(errors[1] < errors[2])


def power_spectra(audio):
    """Hann windows of 512 samples around every 128th, (T, 257) float64."""
    padded = np.pad(audio.astype(float), (256, 512))
    frames = [padded[t * 128 : t * 128 + 512] for t in range(-(-len(audio) // 128) + 1)]
    return np.abs(np.fft.rfft(np.array(frames) * np.hanning(513)[:-1])) ** 2


def test_log_spectral_distance_is_the_numpy_reference():
    reference, decoded = pair(1, 5000)
    reference[0, 2000:3000] *= 1e-4  # a pause, left out
    decoded[0, 3500:4000] = 0.0  # held by the floor
    powers = power_spectra(reference[0]), power_spectra(decoded[0])
    floor = 1e-8 * powers[0].max()
    difference = np.subtract(*(10 * np.log10(np.maximum(power, floor)) for power in powers))
    energies = powers[0].sum(axis=1)
    spoken = energies > 1e-4 * energies.max()
    assert 3 < np.sum(~spoken) < 10
    expected = np.mean(np.sqrt(np.mean(difference**2, axis=1))[spoken])
    actual = metrics.log_spectral_distance(reference, decoded, full(reference))
    np.testing.assert_allclose(actual, [expected], rtol=1e-3)


def test_log_spectral_distance_of_a_gain_is_its_decibels():
    reference, _ = pair(1, 5000)
    lengths = full(reference)
    np.testing.assert_allclose(metrics.log_spectral_distance(reference, 0.5 * reference, lengths), [6.02], atol=0.02)
    np.testing.assert_allclose(metrics.log_spectral_distance(reference, -reference, lengths), [0.0], atol=1e-3)


@pytest.mark.parametrize("sample_rate", [16000, 24000])
def test_mel_distance_is_librosas(sample_rate):
    reference, decoded = pair(1, 9001)
    reference[0, 4000:6000] = decoded[0, 4000:6000] = 0.0  # digital silence, held by the floor
    options = dict(sr=sample_rate, n_fft=1024, hop_length=256, n_mels=80, power=1.0)
    mels = [librosa.feature.melspectrogram(y=x[0], **options) for x in (reference, decoded)]
    levels = [np.log10(np.maximum(mel, 1e-5)) for mel in mels]
    assert levels[0].min() == pytest.approx(-5)
    filters = librosa.filters.mel(sr=sample_rate, n_fft=1024, n_mels=80).T
    actual = metrics.mel_distance(reference, decoded, full(reference), filters)
    np.testing.assert_allclose(actual, [np.mean(np.abs(levels[0] - levels[1]))], rtol=1e-4)


mel_distance = functools.partial(
    metrics.mel_distance, filters=librosa.filters.mel(sr=16000, n_fft=metrics.MEL_FFT_LENGTH, n_mels=80).T
)
MEASURES = [
    metrics.snr,
    metrics.segmental_snr,
    metrics.si_sdr,
    metrics.log_spectral_distance,
    mel_distance,
    metrics.range_ratio,
    metrics.rms_ratio,
    metrics.optimal_gain,
]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_padded_clip_has_the_score_it_has_alone(measure):
    measure = jax.jit(measure)
    reference, decoded = pair(2, 1700)
    reference, decoded = reference + 0.5, decoded + 0.5  # zeros would widen the range
    for num_samples in (2, 319, 1600, 700):
        lengths = jnp.full(2, num_samples)
        alone = measure(reference[:, :num_samples], decoded[:, :num_samples], lengths)
        mask = np.arange(1700) < num_samples
        np.testing.assert_allclose(measure(reference * mask, decoded * mask, lengths), alone, rtol=1e-4)
    assert not np.allclose(measure(reference, decoded, jnp.full(2, 1700)), alone, rtol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_empty_filler_has_a_finite_score(measure):
    assert np.all(np.isfinite(measure(jnp.zeros((1, 400)), jnp.zeros((1, 400)), jnp.array([0]))))


def test_effective_dimension_counts_equal_directions():
    np.testing.assert_allclose(metrics.effective_dimension(jnp.eye(5)), 5.0)
    np.testing.assert_allclose(metrics.effective_dimension(jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0]))), 2.0)
    np.testing.assert_allclose(metrics.effective_dimension(jnp.ones((4, 4))), 1.0)  # a line
    np.testing.assert_allclose(metrics.effective_dimension(jnp.diag(jnp.array([3.0, 1.0]))), 16 / 10)


def test_perplexity_is_the_number_of_codes_in_even_use():
    counts = jnp.array([[5.0, 5.0, 5.0, 5.0], [7.0, 7.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    skewed = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    np.testing.assert_allclose(metrics.perplexity(counts), [4, 2, 1, skewed], rtol=1e-5)
    assert np.isfinite(metrics.perplexity(jnp.zeros(4)))
