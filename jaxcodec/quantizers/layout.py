"""What scalar codes say and in which order they are predicted: what training, files and decoders agree on, without JAX.

A frame of F coefficients has F + N + 2 codes: the quality in units of `QUALITY_DB`, the shaping in units of 1 / `SHAPINGS`,
the N levels of the spectral envelope in units of `LEVEL_DB`, and the coefficients in steps. Latents of gain and shape share
its bands.
"""

import functools

import numpy as np

from jaxcodec.quantizers import MAX_QUALITY, MIN_QUALITY, QUALITY_DB as QUALITY_DB

SHAPINGS = 16
MAX_CODE = 2**15 - 1

# The envelope. Edges of the bands as shares of the Nyquist frequency: 200 Hz wide at the bottom, 2.8 kHz at the top of 8.
EDGES = (0, 0.025, 0.05, 0.075, 0.1125, 0.15, 0.2, 0.2625, 0.35, 0.475, 0.65, 1)
NUM_BANDS = len(EDGES) - 1
EXTRA = NUM_BANDS + 2  # codes beyond the coefficients
LEVEL_DB, FLOOR_DB, MAX_LEVEL_DB = 8.0, -96.0, 128.0  # the loudest spectrum there can be has 36 dB
HOLD, HOLDS = 0.75, 2  # levels that a band may be off before it changes, and frames back that this is looked at
TILT, LEVEL = 0.3, 0.6  # shares of the envelope that a step follows: within a frame, and from frame to frame

# The least and the greatest of the codes beyond the coefficients.
HEAD_LIMITS = (
    np.array([MIN_QUALITY / QUALITY_DB, 0, *NUM_BANDS * [FLOOR_DB / LEVEL_DB]]),
    np.array([MAX_QUALITY / QUALITY_DB, SHAPINGS, *NUM_BANDS * [MAX_LEVEL_DB / LEVEL_DB]]),
)

# The prior. It sees the frames before, and what was coded of the same frame: the bands of the envelope in an order of their
# own, then the coefficients in three passes.
START_LEVEL = -6  # of every band before the first frame
MAX_CHANGE = 12  # levels from frame to frame; the ends of the alphabet stand for all beyond
BAND_ORDER = np.array([2, 3, 1, 3, 2, 0, 3, 2, 1, 3, 2])  # a band sees those of a lower number
NEIGHBORS = (), (2, 6), (1, 3)  # distances at which a pass finds what earlier ones coded
KERNEL_SIZE = 5  # frames
EXPANSION = 3  # of the blocks of its trunks
ENVELOPE_DEPTH = 2  # blocks of the trunk of the envelope, which is half as wide
BAND_WIDTH, NEAR_WIDTH = 32, 16  # hidden units of a band, and of what lies beside a coefficient
MAX_STEP_DB = 60  # a larger change of the step is not told


@functools.cache
def bands(num_bins: int) -> np.ndarray:
    """Membership (F, N) of coefficients to bands."""
    index = np.searchsorted(np.round(np.array(EDGES[1:]) * num_bins), np.arange(num_bins), side="right")
    return np.eye(NUM_BANDS, dtype=np.float32)[index]


def check_bands(num_bins: int) -> None:
    """Raises `ValueError` where a band of so many coefficients is empty."""
    if bands(num_bins).sum(axis=0).min() < 1:
        raise ValueError(f"{num_bins} coefficients are too few for {NUM_BANDS} bands.")


@functools.cache
def interpolation(num_bins: int) -> np.ndarray:
    """Weights (N, F) that interpolate between the centers of the bands, constant beyond the first and the last."""
    member = bands(num_bins)
    centers = np.arange(num_bins) @ member / member.sum(0)
    return np.stack([np.interp(np.arange(num_bins), centers, unit) for unit in np.eye(NUM_BANDS)]).astype(np.float32)


@functools.cache
def passes(num_bins: int) -> tuple[np.ndarray, ...]:
    """The coefficients of each pass: every fourth, those half-way between, the odd ones."""
    return np.arange(0, num_bins, 4), np.arange(2, num_bins, 4), np.arange(1, num_bins, 2)


def earlier(order: np.ndarray) -> np.ndarray:
    """Whether a band is seen by another, (N, N)."""
    return order[:, None] < order[None]


@functools.cache
def known(number: int, num_bins: int) -> np.ndarray:
    """Which coefficients (F,) are known before a pass."""
    return np.isin(np.arange(num_bins), np.concatenate([np.zeros(0), *passes(num_bins)[:number]]))


def gain_shape_parts(latents, told_rate: bool):
    """Coefficients, bands in dB (..., N) and rate, (..., 1) or (..., 0), of latents (..., D) of gain and shape."""
    end = latents.shape[-1] - told_rate
    return latents[..., : end - NUM_BANDS], latents[..., end - NUM_BANDS : end], latents[..., end:]


# The prior that predicts many frames at once, `checkerboard.CheckerboardPrior`.
# The envelope of the first frame comes first, then the middles of ever shorter stretches.
MIDDLE_NEIGHBORS = (1, -3, 3)  # of a frame, in half stretches, beside the one before it; those are known
MIDDLE_SLOTS = 8  # halves of 1, 2, 4 ... frames, the last but one and all longer ones alike; the first frame
# Passes over coefficients: even or odd frames, the first coefficient and the distance to the next.
CHECKERS = ((0, 0, 8), (1, 4, 8), (0, 4, 8), (1, 0, 8), (0, 2, 4), (1, 2, 4), (0, 1, 2), (1, 1, 2))
# What a coefficient sees closely: frames before or after, and a distance below and above.
CHECKER_NEIGHBORS = (
    (),
    ((-1, 4), (1, 4)),
    ((0, 4), (-1, 0), (1, 0), (-2, 4), (2, 4)),
    ((0, 4), (-1, 0), (1, 0), (-1, 4), (1, 4)),
    ((0, 2), (0, 6), (-1, 2), (1, 2), (-2, 2), (2, 2)),
    ((0, 2), (0, 6), (-1, 0), (1, 0), (-1, 2), (1, 2)),
    ((0, 1), (0, 3), (-1, 1), (1, 1), (-2, 1), (2, 1)),
    ((0, 1), (0, 3), (-1, 0), (1, 0), (-1, 1), (1, 1)),
)
CHECKER_BAND_ORDER = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
CHECKER_EXPANSION = 2
LEAST_EXPECTED = (
    -0.6
)  # of the envelope beside a step, in units of 20 dB, where it is looked at what lies beside a coefficient


@functools.cache
def checkers() -> tuple[tuple[slice, slice], ...]:
    """The frames and the coefficients of each pass."""
    return tuple((slice(frame, None, 2), slice(first, None, distance)) for frame, first, distance in CHECKERS)


@functools.lru_cache(32)
def known_checkers(number: int, num_frames: int, num_bins: int) -> np.ndarray:
    """Which coefficients (T, F) are known before a pass."""
    known = np.zeros((num_frames, num_bins), bool)
    for frames, bins in checkers()[:number]:
        known[frames, bins] = True
    return known


@functools.lru_cache(32)
def halves(num_frames: int) -> np.ndarray:
    """Half the length (T,) of the stretch that each frame is in the middle of: the greatest power of two in its number."""
    frames = np.arange(num_frames)
    return np.where(frames, frames & -frames, 0)


@functools.lru_cache(32)
def middle_slots(num_frames: int) -> np.ndarray:
    """Which of `MIDDLE_SLOTS` kinds each frame is, (T, MIDDLE_SLOTS), ones and zeros."""
    half = halves(num_frames)
    slots = np.minimum(np.log2(np.maximum(half, 1)).astype(int), MIDDLE_SLOTS - 2)
    return np.eye(MIDDLE_SLOTS)[np.where(half, slots, MIDDLE_SLOTS - 1)]
