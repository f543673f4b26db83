"""Scalar quantization of a spectrum with a dead zone, at steps that follow the spectral envelope, beside a learned prior.

The latents are the F coefficients of an orthonormal transform, with N + 2 zeros behind them. Codes (B, F + N + 2, T) begin
with the *quality* in units of `QUALITY_DB` and the *shaping* in units of 1 / `SHAPINGS`, then come the N levels of the
envelope, then the coefficients in steps. Quantized latents are the coefficients, the envelope, quality in dB and shaping:
all that a decoder may want to know.

The prior predicts each code from the frames before, the envelope, and the coefficients of the frame in three passes: every
fourth, those half-way between, the odd ones. Its cross-entropy is the penalty "rate", in bits a frame.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcodec.nn import envelope, layers
from jaxcodec.quantizers import interface

QUALITY_DB, SHAPINGS = 0.125, 16
ROUNDING = 0.33  # added before the floor: less than a half widens the dead zone
EXTRA = envelope.NUM_BANDS + 2  # latents and codes beyond the coefficients
MAX_CODE = 2**15 - 1
MAX_CHANGE = 12  # levels of the envelope from frame to frame


class ScalarQuantizer(interface.Quantizer):
    """A dead-zone quantizer and its prior. A rate is (quality, shaping): the step of silence in dB, and 0 to 1."""

    num_bins: int
    width: int = 192
    depth: int = 3

    penalties = ("rate",)
    bypass = False
    code_range = (-MAX_CODE - 1, MAX_CODE)
    rates = tuple((float(quality), 1.0) for quality in (0, -6, -12, -18))

    def setup(self):
        self.prior = Prior(self.width, self.depth)

    def __call__(self, latents, rates=None):
        spectrum = latents[..., : self.num_bins]
        if rates is None:
            rates = tuple(jnp.full(latents.shape[:1], value) for value in self.rates[-1])
        quality, shaping = (jnp.broadcast_to(jnp.asarray(rate)[:, None], latents.shape[:2]) for rate in rates)
        quality, shaping = jnp.round(quality / QUALITY_DB), jnp.round(shaping * SHAPINGS)
        levels = envelope.levels(spectrum)
        scaled = spectrum / self._steps(levels, quality, shaping)
        rounded = jnp.clip(jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + ROUNDING), -MAX_CODE, MAX_CODE)
        codes = jnp.concatenate([quality[..., None], shaping[..., None], levels, rounded], axis=-1)
        codes = jnp.moveaxis(codes.astype(jnp.int32), 2, 1)
        return interface.Quantized(self.decode(codes), codes, latents)

    def at(self, quantized, rates):
        return self(quantized.trace, rates)

    def decode(self, codes):
        quality, shaping, levels, rounded = _parts(codes)
        coefficients = rounded * self._steps(levels, quality, shaping)
        extra = levels, quality[..., None] * QUALITY_DB, shaping[..., None] / SHAPINGS
        return jnp.concatenate([coefficients, *extra], axis=-1)

    def _steps(self, levels, quality, shaping):
        steps = envelope.step_decibels(levels, quality * QUALITY_DB, shaping / SHAPINGS, self.num_bins)
        return 10 ** (steps / 20)

    def penalize(self, latents, quantized, frame_mask):
        quality, shaping, levels, rounded = _parts(quantized.codes)
        steps = envelope.step_decibels(levels, quality * QUALITY_DB, shaping / SHAPINGS, self.num_bins)
        coefficients, changes = self.prior(jnp.abs(rounded), levels, steps, frame_mask[..., None])
        bits = jnp.sum(coefficients, axis=-1) + jnp.sum(changes, axis=-1)
        return {"rate": interface.Penalty(bits[None], frame_mask.astype(jnp.float32))}

    def num_rows(self, rate):
        return self.num_bins + EXTRA

    def check_rate(self, rate):
        if rate is None:
            return self.rates[-1]
        quality, shaping = rate if isinstance(rate, tuple | list) else (rate, 1.0)
        if not (-120 <= quality <= 40 and 0 <= shaping <= 1):
            raise ValueError(f"quality {quality} dB, shaping {shaping}: expected -120 to 40 and 0 to 1.")
        return float(quality), float(shaping)

    def name_of(self, rate):
        quality, shaping = rate
        return f"{quality:g}" if shaping == 1 else f"{quality:g}/{shaping:g}"

    def draw_rates(self, row_keys, batch, config):
        """Qualities uniform over `quality_range` dB around what suits the clip's level; mostly full shaping, else less."""
        draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(row_keys)
        low, high = config.quantizer.quality_range
        power = jnp.sum(batch["audio"] ** 2, axis=1) / jnp.maximum(batch["length"], 1)
        level = 10 * jnp.log10(power + 1e-8)
        shaping = jnp.where(draws[:, 0] < 0.6, 1.0, jnp.where(draws[:, 0] < 0.8, draws[:, 1], 0.0))
        suits = (1 - envelope.LEVEL * shaping) * level - 10 * (1 - shaping)
        return suits + low + (high - low) * draws[:, 2], shaping


class Prior(nn.Module):
    """Code lengths in bits, of coefficients (B, T, F) and of the envelope's levels (B, T, N).

    From magnitudes (B, T, F), envelope (B, T, N), steps in dB (B, T, F) and mask (B, T, 1).
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, magnitudes, levels, steps, mask):
        num_bins = magnitudes.shape[-1]
        shape = levels / 5  # of about one
        past = _before(magnitudes) * 10 ** (jnp.clip(_before(steps) - steps, -60, 60) / 20)  # in steps of the present
        older = _before(_before(magnitudes)) * 10 ** (jnp.clip(_before(_before(steps)) - steps, -60, 60) / 20)
        past, older = jnp.log1p(past), jnp.log1p(older)
        expected = (envelope.decibels(levels, num_bins) - steps) / 20
        trunk = self._trunk(self.width, self.depth, [past, older, expected, shape, _before(shape)], mask)
        bits, logs = [], jnp.log1p(magnitudes)
        groups = np.arange(0, num_bins, 4), np.arange(2, num_bins, 4), np.arange(1, num_bins, 2)
        for number, group in enumerate(groups):
            # A new array for each pass: one that changes would be traced as it is in the end, and show what is coded now.
            known = np.isin(np.arange(num_bins), np.concatenate([np.zeros(0), *groups[:number]]))
            seen = logs * known[None, None].astype(np.float32)
            beside = expected, past, _beside(past, 1), _beside(seen, 1) + _beside(seen, 2)
            near = jnp.stack(beside, axis=-1)[:, :, group]
            informed = trunk + nn.Dense(self.width)(seen) if number else trunk
            bits.append(self._group_bits(informed, near, magnitudes[..., group]))
        order = np.argsort(np.concatenate(groups))
        return jnp.concatenate(bits, axis=-1)[..., order], self._envelope_bits(magnitudes, levels, steps, mask)

    def _trunk(self, width, depth, inputs, mask):
        x = nn.Dense(width)(jnp.concatenate(inputs, axis=-1))
        for _ in range(depth):
            x = layers.ConvNeXtBlock(5, 3, causal=True)(x, mask)
        return nn.LayerNorm()(x)

    def _group_bits(self, h, near, magnitudes):
        """Bits of some coefficients (B, T, G)."""
        size = magnitudes.shape[-1]
        h += nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(h)))
        far = nn.Dense(2 * size, kernel_init=nn.initializers.normal(0.01))(nn.LayerNorm()(h))
        beside = nn.Dense(2)(nn.gelu(nn.Dense(16)(near)))
        present, more = jnp.moveaxis(far.reshape(*far.shape[:-1], size, 2) + beside, -1, 0)
        return coefficient_bits(present, more, magnitudes)

    def _envelope_bits(self, magnitudes, levels, steps, mask):
        """Bits of the change of each level (B, T, N), given the changes of the bands below and the past."""
        num_bands, size = levels.shape[-1], 32
        member = envelope.bands(magnitudes.shape[-1])
        heard = jnp.log1p(_before(magnitudes)) @ (member / member.sum(0))
        trunk = self._trunk(self.width // 2, 2, [_before(levels) / 5, heard, _before(steps)[..., ::32] / 20], mask)
        change = levels - _before(levels)
        below = np.triu(np.ones((num_bands, num_bands), np.float32), 1)[:, :, None]
        mix = self.param("mix", nn.initializers.zeros, (num_bands, num_bands, size)) * below
        h = nn.Dense(num_bands * size)(trunk).reshape(*trunk.shape[:-1], num_bands, size)
        h = nn.gelu(h + jnp.einsum("btc,cnd->btnd", change / 5, mix))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (num_bands, size, 2 * MAX_CHANGE + 1))
        bias = self.param("bias", nn.initializers.zeros, (num_bands, 2 * MAX_CHANGE + 1))
        logits = jnp.einsum("btnd,ndk->btnk", h, kernel) + bias[None, None]
        index = jnp.clip(change + MAX_CHANGE, 0, 2 * MAX_CHANGE).astype(jnp.int32)
        chosen = jnp.take_along_axis(nn.log_softmax(logits), index[..., None], axis=-1)[..., 0]
        return -chosen / np.log(2)


def coefficient_bits(present, more, magnitudes):
    """Code length of a coefficient: whether it is zero, how far beyond one (geometric), and its sign.

    `present` is the logit that it is not zero, `more` the logit that its magnitude ends where it is.
    """
    nonzero = magnitudes > 0
    nats = jnp.where(nonzero, nn.softplus(-present), nn.softplus(present))
    nats += jnp.where(nonzero, nn.softplus(-more) + (magnitudes - 1) * nn.softplus(more), 0.0)
    return nats / np.log(2) + nonzero


def _parts(codes):
    """Codes (B, Q, T) to quality (B, T), shaping (B, T), levels (B, T, N) and coefficients (B, T, F), float32."""
    frames = jnp.moveaxis(codes, 1, 2).astype(jnp.float32)
    return frames[..., 0], frames[..., 1], frames[..., 2:EXTRA], frames[..., EXTRA:]


def _before(x):
    """What the frame before had, zeros at the first."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def _beside(x, distance):
    """The mean of the coefficients `distance` below and above."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (distance, distance)))
    return (padded[..., : -2 * distance] + padded[..., 2 * distance :]) / 2


def from_config(model, fixes) -> ScalarQuantizer:
    """The quantizer of the section `model.scalar`, for the coefficients that `model.latent_dim` leaves room for."""
    if model.latent_dim <= EXTRA:
        raise ValueError(
            f"model.latent_dim is {model.latent_dim}, expected more than {EXTRA} for the scalar quantizer."
        )
    return ScalarQuantizer(model.latent_dim - EXTRA, model.scalar.width, model.scalar.depth)
