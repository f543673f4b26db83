"""The MDCT is orthonormal and exact at every length; STFT magnitudes are those of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodec.nn import spectral
from tests import support

LENGTHS = [(4, n) for n in range(1, 18)] + [(320, n) for n in (1, 2, 319, 320, 321, 640, 1601)]


@functools.partial(jax.jit, static_argnums=1)
def _round_trips(audio, hop_length):
    spectrum = spectral.mdct(audio, hop_length)
    without_first = spectrum.at[:, 0].set(0.0)
    return spectrum, *(spectral.imdct(x, audio.shape[1]) for x in (spectrum, without_first))


@pytest.mark.parametrize(("hop_length", "num_samples"), LENGTHS)
def test_imdct_inverts_mdct_at_every_length(hop_length, num_samples):
    audio = support.speech_like(2, num_samples, seed=num_samples)
    spectrum, restored, incomplete = _round_trips(audio, hop_length)
    assert spectrum.shape == (2, spectral.num_mdct_frames(num_samples, hop_length), hop_length)
    np.testing.assert_allclose(restored, audio, atol=1e-6)
    assert np.abs(incomplete - audio).max() > 1e-4


@pytest.mark.parametrize("hop_length", [1, 4, 320])
def test_mdct_blocks_are_orthonormal_and_neighbors_are_orthogonal(hop_length):
    basis = spectral.mdct_basis(hop_length)
    assert basis.shape == (2 * hop_length, hop_length) and basis.dtype == np.float32
    np.testing.assert_allclose(basis.T @ basis, np.eye(hop_length), atol=1e-5)
    np.testing.assert_allclose(basis[hop_length:].T @ basis[:hop_length], 0.0, atol=1e-5)


def test_energy_and_squared_error_are_the_same_in_both_domains():
    a, b = support.speech_like(2, 333)
    spectra = spectral.mdct(np.stack([a, b]), 16)
    np.testing.assert_allclose(np.sum(spectra[0] ** 2), np.sum(a**2), rtol=1e-5)
    np.testing.assert_allclose(np.sum((spectra[0] - spectra[1]) ** 2), np.sum((a - b) ** 2), rtol=1e-5)
    error = np.random.default_rng(0).standard_normal(spectra[:1].shape).astype(np.float32)
    assert np.sum(spectral.imdct(error, 333) ** 2) < np.sum(error**2)  # a projection: out-of-range blocks are lost


def test_mdct_is_the_formula_of_princen_johnson_and_bradley():
    audio, hop_length = support.speech_like(1, 24), 8
    block = audio[0, 8:24]  # frame 2 sees samples 8 to 23
    expected = [
        sum(
            np.sin(np.pi / 16 * (n + 0.5)) * np.sqrt(2 / 8) * np.cos(np.pi / 8 * (n + 0.5 + 4) * (k + 0.5)) * block[n]
            for n in range(16)
        )
        for k in range(8)
    ]
    np.testing.assert_allclose(spectral.mdct(audio, hop_length)[0, 2], expected, atol=1e-6)


def test_frame_count_is_one_more_than_the_hops_that_cover_a_clip():
    lengths = np.array([0, 1, 319, 320, 321, 640])
    np.testing.assert_array_equal(spectral.num_mdct_frames(lengths, 320), [0, 2, 2, 2, 3, 3])
    np.testing.assert_array_equal(jax.jit(lambda n: spectral.num_mdct_frames(n, 320))(lengths), [0, 2, 2, 2, 3, 3])
    assert [spectral.num_mdct_frames(int(n), 320) for n in lengths] == [0, 2, 2, 2, 3, 3]


@pytest.mark.parametrize(("num_samples", "fft_length", "hop_length"), [(1, 64, 16), (300, 64, 16), (320, 128, 64)])
def test_stft_magnitude_is_that_of_numpy(num_samples, fft_length, hop_length):
    audio = support.speech_like(2, num_samples)
    actual = spectral.stft_magnitude(audio, fft_length, hop_length)
    padded = np.pad(audio, ((0, 0), (fft_length // 2, fft_length + hop_length)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_length) / fft_length)
    starts = range(0, -(-num_samples // hop_length) * hop_length + 1, hop_length)
    expected = np.stack([np.abs(np.fft.rfft(padded[:, s : s + fft_length] * window)) for s in starts], axis=1)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_stft_of_a_sinusoid_peaks_at_its_bin():
    audio = np.sin(2 * np.pi * 8 / 64 * np.arange(640), dtype=np.float32)[None]
    magnitude = spectral.stft_magnitude(audio, 64, 16)[0, 20]
    assert np.argmax(magnitude) == 8
    np.testing.assert_allclose(magnitude[8], 64 / 4, rtol=1e-4)  # amplitude / 2 times the window's sum
    np.testing.assert_allclose(magnitude[12:], 0.0, atol=1e-4)


def test_stft_magnitude_has_a_finite_gradient_at_digital_silence():
    gradient = jax.grad(lambda audio: jnp.sum(spectral.stft_magnitude(audio, 64, 16)))(jnp.zeros((1, 100)))
    assert np.all(np.isfinite(gradient))


def test_stft_in_bfloat16_is_visibly_less_exact():
    audio = support.speech_like(1, 320)
    exact = spectral.stft_magnitude(audio, 64, 16)
    half = spectral.stft_magnitude(audio, 64, 16, jnp.bfloat16)
    assert exact.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    error = np.abs(np.asarray(half, np.float32) - exact).max() / exact.max()
    assert 1e-4 < error < 1e-1


def test_stft_refuses_a_hop_that_does_not_divide_the_window():
    with pytest.raises(ValueError, match="multiple of hop_length 24"):
        spectral.stft_magnitude(jnp.zeros((1, 100)), 64, 24)
