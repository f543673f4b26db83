"""The coarse spectral envelope that goes beside scalar codes, and the step of every coefficient that follows from it.

F coefficients a frame lie in N bands. The envelope is the mean power of each band in levels of `LEVEL_DB`, whole numbers.
Between the bands' centers it is interpolated in dB; a step follows it by the share `TILT` within a frame and `LEVEL` from
frame to frame, as far as *shaping* (0 to 1) says: 0 is one step for all, which gives the least squared error, 1 makes the
noise follow the speech.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcodec.nn import layers
from jaxcodec.quantizers import layout


class Levels(nn.Module):
    """The envelope of a spectrum (B, T, F), whole numbers in float32 (B, T, N); the start's where it is not `told` (B, T).

    A band stays where it was as long as it is off by `HOLD` levels at most: the bits of changes that nobody hears. The
    frame before is taken as it would be if that rule had begun `HOLDS` frames ago, so that a frame needs no more than these.
    """

    @nn.compact
    def __call__(self, spectrum, told):
        decibels = layers.padded(self, band_decibels(spectrum), layout.HOLDS, name="decibels")
        told = layers.padded(self, told, layout.HOLDS, name="told")
        exact = jnp.where(told[..., None], decibels / layout.LEVEL_DB, layout.START_LEVEL)
        held = jnp.round(exact)
        for _ in range(layout.HOLDS):
            held, exact = held[:, :-1], exact[:, 1:]
            held = jnp.where(jnp.abs(exact - held) <= layout.HOLD, held, jnp.round(exact))
        return held


def band_decibels(spectrum: jax.Array) -> jax.Array:
    """Mean power of each band in dB, spectrum (B, T, F) to (B, T, N)."""
    member = layout.bands(spectrum.shape[-1])
    power = jnp.matmul(spectrum**2, member / member.sum(0), precision=lax.Precision.HIGHEST)
    return jnp.maximum(10 * jnp.log10(power + 1e-10), layout.FLOOR_DB)


def decibels(envelope: jax.Array, num_bins: int) -> jax.Array:
    """The envelope (B, T, N) at every coefficient, (B, T, F) in dB."""
    return interpolated(envelope * layout.LEVEL_DB, num_bins)


def step_decibels(envelope: jax.Array, quality: jax.Array, shaping: jax.Array, num_bins: int) -> jax.Array:
    """Steps in dB (B, T, F), from the envelope (B, T, N), the step that silence would have in dB and the shaping, (B, T)."""
    fine = decibels(envelope, num_bins)
    level = jnp.mean(fine, axis=-1, keepdims=True)
    return shaping[..., None] * (layout.TILT * (fine - level) + layout.LEVEL * level) + quality[..., None]


def unit_scales(bands: jax.Array, tilt: float, num_bins: int) -> jax.Array:
    """What a spectrum is divided by to be weighted for the ear and free of level: bands (B, T, N) in dB to (B, T, F).

    A scale follows the envelope by the share `tilt` in dB; a spectrum that is as the envelope says has a mean power of one
    a coefficient after it.
    """
    fine = interpolated(bands, num_bins)
    rest = (1 - tilt) * fine
    top = jnp.max(rest, axis=-1, keepdims=True)
    power = top + 10 * jnp.log10(jnp.mean(db_to_power(rest - top), axis=-1, keepdims=True))
    return db_to_amplitude(tilt * fine + power)


def interpolated(bands, num_bins):
    """Bands (B, T, N) in dB at every coefficient, (B, T, F)."""
    return jnp.matmul(bands, layout.interpolation(num_bins), precision=lax.Precision.HIGHEST)


def db_to_amplitude(decibels):
    """10^(dB / 20), by an exponential: on CPU XLA's power takes six times as long."""
    return jnp.exp(decibels * (math.log(10) / 20))


def db_to_power(decibels):
    """10^(dB / 10)."""
    return jnp.exp(decibels * (math.log(10) / 10))
