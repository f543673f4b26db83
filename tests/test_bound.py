"""The bound against closed forms, from exact spectra and from samples of the process."""

import numpy as np
import pytest
import scipy.integrate
import scipy.signal

from benchmarks import bound

OMEGA = np.linspace(0, np.pi, 4097)
LONG = 2048  # samples: frames long enough for the bias of estimation to stay below 0.1 dB


def spectrum_of(rho):
    """Power spectrum (1, F) of a first-order autoregression of unit variance."""
    return ((1 - rho**2) / (1 + rho**2 - 2 * rho * np.cos(OMEGA)))[None]


def closed_form(rho, level):
    """Bits and SNR in dB of the same at a water level.

    Below the spectrum's minimum the distortion is the level everywhere. Above it, the spectrum, which falls from 0 to pi for
    rho > 0 (and mirrored has the same bound), meets the level at w0; its integral beyond w0 is an arctangent.
    """
    rho = abs(rho)
    if level <= (1 - rho) / (1 + rho):
        return np.log2((1 - rho**2) / level) / 2, -10 * np.log10(level)
    w0 = np.arccos((1 + rho**2 - (1 - rho**2) / level) / (2 * rho))
    beyond = np.pi - 2 * np.arctan((1 + rho) / (1 - rho) * np.tan(w0 / 2))
    bits, _ = scipy.integrate.quad(
        lambda w: np.log2((1 - rho**2) / (1 + rho**2 - 2 * rho * np.cos(w)) / level) / 2, 0, w0
    )
    return bits / np.pi, -10 * np.log10((level * w0 + beyond) / np.pi)


@pytest.mark.parametrize("bits", [0.05, 0.5, 2.0, 6.0])
def test_white_noise_gains_six_decibels_a_bit(bits):
    flat = np.full((3, 65), 0.2)
    assert bound.snr(flat, bits) == pytest.approx(20 * np.log10(2) * bits, abs=1e-9)


@pytest.mark.parametrize("rho", [0.3, 0.9, -0.9, 0.98])
@pytest.mark.parametrize("level", [1e-4, 0.005, 0.05, 0.6])
def test_an_exact_autoregressive_spectrum_gives_the_closed_form(rho, level):
    bits, snr = closed_form(rho, level)
    assert bound.snr(spectrum_of(rho), bits) == pytest.approx(snr, abs=1e-3)


def test_those_levels_lie_on_both_sides_of_the_least_of_the_spectrum():
    for rho in (0.3, 0.9, 0.98):
        assert 1e-4 < (1 - rho) / (1 + rho) < 0.6


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9, 0.98])
@pytest.mark.parametrize("level", [1e-3, 0.05, 0.5])
def test_samples_of_the_process_give_the_closed_form_within_a_tenth_of_a_decibel(rho, level):
    noise = np.random.default_rng(0).standard_normal(200 * LONG)
    clip = scipy.signal.lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)
    bits, snr = closed_form(rho, level) if rho else (-np.log2(level) / 2, -10 * np.log10(level))
    assert bound.snr(bound.spectrum(clip, LONG), bits) == pytest.approx(snr, abs=0.1)


def test_frames_as_short_as_those_of_speech_overstate_it_by_a_quarter_of_a_decibel():
    noise = np.random.default_rng(0).standard_normal(320000)
    excess = bound.snr(bound.spectrum(noise, 320), 2.0) - 20 * np.log10(2) * 2.0
    assert excess == pytest.approx(0.27, abs=0.03)  # the docstring's figure


def test_two_variances_share_the_bits_as_reverse_water_filling_says():
    spectra = np.repeat([[1.0], [0.01]], 9, axis=1)
    # 0.5 bits a sample on average, all for the louder frame: distortions 2^-2 and 0.01.
    assert bound.snr(spectra, 0.5) == pytest.approx(10 * np.log10(1.01 / (0.25 + 0.01)))
    # 3 bits: one level w for both, log2(1 / w) + log2(0.01 / w) = 12.
    level = np.sqrt(0.01 * 2.0**-12)
    assert bound.water_level(spectra, 3.0) == pytest.approx(level)


def test_each_frame_of_the_spectrum_has_the_energy_of_its_samples():
    clip = np.random.default_rng(0).standard_normal(1000) * np.repeat([1.0, 0.1, 0.0, 3.0], 250)
    spectra = bound.spectrum(clip, 100)
    assert spectra.shape[0] == 10
    np.testing.assert_allclose(bound.mean(spectra), np.mean(clip.reshape(10, 100) ** 2, axis=1), rtol=1e-9)
    np.testing.assert_allclose(np.mean(bound.mean(bound.spectrum(clip[:950], 100))), np.sum(clip[:950] ** 2) / 1000)


def test_the_curve_has_clips_and_all_of_them_together():
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(16000), 0.1 * rng.standard_normal(16000), np.zeros(16000)]
    low, high = bound.curve(clips, 16000, [4.0, 8.0])
    assert low["kbps"] == 4.0 and low["snr"] == pytest.approx(6.02 * 0.25, abs=0.3)
    assert high["snr"] - low["snr"] == pytest.approx(6.02 * 0.25, abs=0.02)
    assert low["pooled_snr"] > low["snr"]  # the bits go to the louder clip
