"""Decoded clips moved to where their originals are, to a fraction of a sample: a constant lag is no distortion."""

from collections.abc import Sequence

import numpy as np

REACH = 1600  # samples; no lag is looked for beyond
FRACTION = 16  # lags are multiples of 1 / FRACTION of a sample


def align(clips: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Decoded clips (S',) moved by their common lag to the lengths of `clips` (S,), and that lag in samples."""
    lag = common_lag(clips, decoded)
    return [advance(y, lag, len(x)) for x, y in zip(clips, decoded, strict=True)], lag


def common_lag(clips: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> float:
    """The lag at which the sum of the pairs' normalized cross-correlations is greatest: positive where decoded is late.

    0 where nothing correlates, in silence.
    """
    cross = _cross_spectrum(clips, decoded, REACH)
    if not cross.any():
        return 0.0
    fine = _nearest(cross, REACH) + np.arange(-FRACTION, FRACTION + 1) / FRACTION
    angles = 2 * np.pi * np.arange(len(cross)) / (2 * len(cross) - 2)
    return float(fine[np.argmax([np.sum((cross * np.exp(1j * angles * lag)).real) for lag in fine])])


def whole_lag(clip: np.ndarray, decoded: np.ndarray, reach: int) -> int:
    """The lag in samples, up to `reach`, at which the cross-correlation of two clips (S,) is greatest."""
    return int(_nearest(_cross_spectrum([clip], [decoded], reach), reach))


def _cross_spectrum(clips, decoded, reach):
    """The spectrum of the sum of the pairs' normalized cross-correlations, long enough for lags up to `reach`."""
    size = 1 << (max(map(len, [*clips, *decoded])) + reach).bit_length()
    cross = np.zeros(size // 2 + 1, complex)
    for x, y in zip(clips, decoded, strict=True):
        energies = np.sum(np.square(x, dtype=float)) * np.sum(np.square(y, dtype=float))
        cross += np.fft.rfft(x, size).conj() * np.fft.rfft(y, size) / max(np.sqrt(energies), 1e-9)
    return cross


def _nearest(cross, reach):
    lags = np.arange(-reach, reach + 1)
    return lags[np.argmax(np.fft.irfft(cross)[lags])]


def advance(decoded: np.ndarray, lag: float, num_samples: int) -> np.ndarray:
    """The clip (num_samples,) float32 that begins `lag` samples into `decoded` (S',), band-limited; zeros where it ends."""
    whole, fraction = divmod(lag, 1.0)
    moved = np.pad(decoded.astype(float), (REACH, REACH + max(0, num_samples - len(decoded))))
    if fraction:
        angles = 2 * np.pi * np.fft.rfftfreq(len(moved))
        moved = np.fft.irfft(np.fft.rfft(moved) * np.exp(1j * angles * fraction), len(moved))
    return moved[REACH + int(whole) :][:num_samples].astype(np.float32)
