"""The coarse spectral envelope that goes beside scalar codes, and the step of every coefficient that follows from it.

F coefficients a frame lie in N bands. The envelope is the mean power of each band in levels of `LEVEL_DB`, whole numbers.
Between the bands' centers it is interpolated in dB; a step follows it by the share `TILT` within a frame and `LEVEL` from
frame to frame, as far as *shaping* (0 to 1) says: 0 is one step for all, which gives the least squared error, 1 makes the
noise follow the speech.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LEVEL_DB, FLOOR_DB = 4.0, -92.0
TILT, LEVEL = 0.3, 0.6
# Edges of the bands as shares of the Nyquist frequency: 200 Hz wide at the bottom, 2.8 kHz at the top of 8 kHz.
EDGES = (0, 0.025, 0.05, 0.075, 0.1125, 0.15, 0.2, 0.2625, 0.35, 0.475, 0.65, 1)
NUM_BANDS = len(EDGES) - 1


@functools.cache
def bands(num_bins: int) -> np.ndarray:
    """Membership (F, N) of coefficients to bands."""
    index = np.searchsorted(np.round(np.array(EDGES[1:]) * num_bins), np.arange(num_bins), side="right")
    return np.eye(NUM_BANDS, dtype=np.float32)[index]


@functools.cache
def interpolation(num_bins: int) -> np.ndarray:
    """Weights (N, F) that interpolate between the centers of the bands, constant beyond the first and the last."""
    member = bands(num_bins)
    centers = np.arange(num_bins) @ member / member.sum(0)
    return np.stack([np.interp(np.arange(num_bins), centers, unit) for unit in np.eye(NUM_BANDS)]).astype(np.float32)


def levels(spectrum: jax.Array) -> jax.Array:
    """The envelope of a spectrum (B, T, F), whole numbers in float32 (B, T, N)."""
    member = bands(spectrum.shape[-1])
    power = jnp.matmul(spectrum**2, member / member.sum(0), precision=lax.Precision.HIGHEST)
    return jnp.round(jnp.maximum(10 * jnp.log10(power + 1e-10), FLOOR_DB) / LEVEL_DB)


def decibels(envelope: jax.Array, num_bins: int) -> jax.Array:
    """The envelope (B, T, N) at every coefficient, (B, T, F) in dB."""
    return jnp.matmul(envelope * LEVEL_DB, interpolation(num_bins), precision=lax.Precision.HIGHEST)


def step_decibels(envelope: jax.Array, quality: jax.Array, shaping: jax.Array, num_bins: int) -> jax.Array:
    """Steps in dB (B, T, F), from the envelope (B, T, N), the step that silence would have in dB and the shaping, (B, T)."""
    fine = decibels(envelope, num_bins)
    level = jnp.mean(fine, axis=-1, keepdims=True)
    return shaping[..., None] * (TILT * (fine - level) + LEVEL * level) + quality[..., None]
