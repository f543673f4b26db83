"""Scalar quantization of a spectrum, at steps that follow the spectral envelope, beside a learned prior.

The latents are the F coefficients of an orthonormal transform, with N + 2 zeros behind them. Codes (B, F + N + 2, T) begin
with the *quality* in units of `QUALITY_DB` and the *shaping* in units of 1 / `SHAPINGS`, then come the N levels of the
envelope, then the coefficients in steps. Quantized latents are the coefficients, the envelope, quality in dB and shaping:
all that a decoder may want to know.

The prior predicts each code from the frames before, the envelope, and the coefficients of the frame in three passes: every
fourth, those half-way between, the odd ones. Its cross-entropy is the penalty "rate", in bits a frame.
"""

import math

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec import quantizers
from jaxcodec.nn import envelope, layers
from jaxcodec.quantizers import interface, layout
from jaxcodec.quantizers.layout import EXTRA, MAX_CHANGE, MAX_CODE, QUALITY_DB, SHAPINGS, START_LEVEL

ROUNDING = 0.4  # added before the floor: less than a half widens the dead zone
DEFAULT = (-14.0, 0.75)  # quality and shaping
LAGRANGIAN = 2 * math.log(2) / 12  # squared steps that a bit is worth, where steps are small


class ScalarQuantizer(interface.Quantizer):
    """A dead-zone quantizer and its prior. A rate is (quality, shaping): the step of silence in dB, and 0 to 1."""

    num_bins: int
    width: int = 192
    depth: int = 3

    penalties = ("rate",)
    prior_kind = "prior"
    fitted_kind = "checkerboard"
    bypass = False
    code_range = (-MAX_CODE - 1, MAX_CODE)
    rates = tuple((float(quality), DEFAULT[1]) for quality in (0, -6, -12, -18))

    def setup(self):
        self.levels = envelope.Levels()
        self.prior = Prior(self.width, self.depth)

    def __call__(self, latents, rates=None, frame_mask=None):
        spectrum = latents[..., : self.num_bins]
        if rates is None:
            rates = tuple(jnp.full(latents.shape[:1], value) for value in DEFAULT)
        if frame_mask is None:
            frame_mask = jnp.ones(latents.shape[:2], bool)
        quality, shaping = (jnp.broadcast_to(jnp.asarray(rate)[:, None], latents.shape[:2]) for rate in rates)
        quality, shaping = jnp.round(quality / QUALITY_DB), jnp.round(shaping * SHAPINGS)
        # Without shaping no step depends on the envelope: it is not told. Before the first frame it is as in files.
        levels = self.levels(spectrum, (shaping > 0) & frame_mask)
        decibels = self._decibels(levels, quality, shaping)
        steps = envelope.db_to_amplitude(decibels)
        scaled = spectrum / steps
        magnitudes = self._worth(jnp.abs(scaled), levels, decibels, frame_mask)
        parts = quality[..., None], shaping[..., None], levels, jnp.sign(scaled) * magnitudes
        codes = jnp.moveaxis(jnp.concatenate(parts, axis=-1).astype(jnp.int32), 2, 1)
        trace = latents, frame_mask
        return interface.Quantized(self.decode(codes), codes, trace, steps, shaping[:, 0] / SHAPINGS)

    def _worth(self, scaled, levels, decibels, frame_mask):
        """Magnitudes (B, T, F) for coefficients in steps: one less, or zero, where that saves more bits than it costs error.

        A bit is worth `LAGRANGIAN` squared steps. What a magnitude costs is what the prior says when all are rounded.
        """
        rounded = jnp.clip(jnp.floor(scaled + ROUNDING), 0, MAX_CODE)
        logits, _ = lax.stop_gradient(self.prior(rounded, levels, decibels, frame_mask[..., None], changes=False))
        best, least = rounded, jnp.full_like(rounded, jnp.inf)
        for magnitudes in (rounded, jnp.maximum(rounded - 1, 0), jnp.zeros_like(rounded)):
            cost = (scaled - magnitudes) ** 2 + LAGRANGIAN * coefficient_bits(logits, magnitudes)
            best, least = jnp.where(cost < least, magnitudes, best), jnp.minimum(cost, least)
        return best

    def at(self, quantized, rates):
        return self(quantized.trace[0], rates, quantized.trace[1])

    @property
    def context(self):
        return self.depth * (layout.KERNEL_SIZE - 1) + 2 + layout.HOLDS

    def decode(self, codes):
        quality, shaping, levels, rounded = _parts(codes)
        coefficients = rounded * envelope.db_to_amplitude(self._decibels(levels, quality, shaping))
        extra = levels, quality[..., None] * QUALITY_DB, shaping[..., None] / SHAPINGS
        return jnp.concatenate([coefficients, *extra], axis=-1)

    def _decibels(self, levels, quality, shaping):
        """The steps (B, T, F)."""
        return envelope.step_decibels(levels, quality * QUALITY_DB, shaping / SHAPINGS, self.num_bins)

    def penalize(self, latents, quantized, frame_mask):
        magnitudes, levels, decibels = self.prior_inputs(quantized.codes)
        coefficients, changes = self.prior(magnitudes, levels, decibels, frame_mask[..., None])
        bits = jnp.sum(coefficient_bits(coefficients, magnitudes), axis=-1)
        bits += jnp.sum(envelope_bits(changes, levels), axis=-1)
        return {"rate": interface.Penalty(bits[None], frame_mask.astype(jnp.float32))}

    def prior_inputs(self, codes):
        """What a prior is told of codes (B, Q, T): magnitudes (B, T, F), envelope (B, T, N) and steps in dB (B, T, F)."""
        quality, shaping, levels, rounded = _parts(codes)
        return jnp.abs(rounded), levels, self._decibels(levels, quality, shaping)

    def possible(self, codes):
        heads = codes[:EXTRA]
        least, most = (limit[:, None] for limit in layout.HEAD_LIMITS)
        return ((least <= heads) & (heads <= most)).all(axis=0)

    def prior_arrays(self, params):
        return flax.traverse_util.flatten_dict(params["prior"], sep="/")

    def num_rows(self, rate):
        return self.num_bins + EXTRA

    def check_rate(self, rate):
        quality, shaping = rate if isinstance(rate, tuple | list) else (rate, None)
        quality, shaping = (
            default if value is None else value for value, default in zip((quality, shaping), DEFAULT, strict=True)
        )
        if not (quantizers.MIN_QUALITY <= quality <= quantizers.MAX_QUALITY and 0 <= shaping <= 1):
            limits = f"{quantizers.MIN_QUALITY:g} to {quantizers.MAX_QUALITY:g} and 0 to 1"
            raise ValueError(f"quality {quality:g} dB, shaping {shaping:g}: expected {limits}.")
        return float(quality), float(shaping)

    def name_of(self, rate):
        quality, shaping = rate
        return f"{quality:g}" if shaping == DEFAULT[1] else f"{quality:g}/{shaping:g}"

    def draw_rates(self, row_keys, batch, config):
        """Qualities in `quality_range` dB around what suits a clip's level, mostly in its middle; mostly full shaping."""
        draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(row_keys)
        low, high = config.quantizer.quality_range
        power = jnp.sum(batch["audio"] ** 2, axis=1) / jnp.maximum(batch["length"], 1)
        level = 10 * jnp.log10(power + 1e-8)
        shaping = jnp.where(draws[:, 0] < 0.55, 1.0, jnp.where(draws[:, 0] < 0.72, draws[:, 1], 0.0))
        suits = (1 - layout.LEVEL * shaping) * level - 10 * (1 - shaping)
        return suits + low + (high - low) * jnp.mean(draws[:, 2:], axis=1), shaping


class Prior(nn.Module):
    """Logits of coefficients (B, T, F, 3) and of the envelope's changes (B, T, N, 2 * MAX_CHANGE + 1).

    From magnitudes (B, T, F), envelope (B, T, N), steps in dB (B, T, F) and mask (B, T, 1). `coefficient_bits` and
    `envelope_bits` say what the logits mean. `bitstream.prior` computes the same in numbers that are equal everywhere.
    Without `changes` the second are None.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, magnitudes, levels, steps, mask, changes=True):
        num_bins = magnitudes.shape[-1]
        past, older = self._past(magnitudes, steps)
        expected = (envelope.decibels(levels, num_bins) - steps) / 20
        shape = (levels - START_LEVEL) * (layout.LEVEL_DB / 20)  # of about one
        inputs = [past, older, expected, shape, layers.previous(self, shape, "shape")]
        trunk = self._trunk("trunk", self.width, self.depth, inputs, mask)
        logits, heard = [], compress(magnitudes)
        for number, group in enumerate(layout.passes(num_bins)):
            # A new array for each pass: one that changes would be traced as it is in the end, and show what is coded now.
            seen = heard * layout.known(number, num_bins)[None, None].astype(np.float32)
            around = [beside(seen, distance) for distance in layout.NEIGHBORS[number]]
            near = jnp.stack([expected, past, older, beside(past, 1), *around], axis=-1)[:, :, group]
            logits.append(self._group_logits(number, trunk, seen, near))
        order = np.argsort(np.concatenate(layout.passes(num_bins)))
        coefficients = jnp.concatenate(logits, axis=2)[:, :, order]
        return coefficients, self._envelope_logits(
            layers.previous(self, heard, "heard"), levels, mask
        ) if changes else None

    def _past(self, magnitudes, steps):
        """The two frames before, in steps of the present."""
        before = steps
        for number in range(2):
            magnitudes = layers.previous(self, magnitudes, f"magnitudes_{number}")
            before = layers.previous(self, before, f"steps_{number}")
            yield rescaled(magnitudes, before - steps)

    def _trunk(self, name, width, depth, inputs, mask):
        x = nn.Dense(width, name=f"{name}_input")(jnp.concatenate(inputs, axis=-1))
        for number in range(depth):
            x = layers.ConvNeXtBlock(layout.KERNEL_SIZE, layout.EXPANSION, causal=True, name=f"{name}_block_{number}")(
                x, mask
            )
        return nn.LayerNorm(name=f"{name}_norm")(x)

    def _group_logits(self, number, h, seen, near):
        """Logits (B, T, G, 3) of the coefficients of a pass."""
        if number:
            h += nn.Dense(self.width, name=f"seen_{number}")(seen)
        up = nn.Dense(2 * self.width, name=f"up_{number}")(h)
        h += nn.Dense(self.width, name=f"down_{number}")(nn.gelu(up))
        far, beside = pass_logits(number, h, near)
        return far + beside

    def _envelope_logits(self, heard, levels, mask):
        """From what was heard in the frame before (B, T, F) and levels (B, T, N), of which no band sees itself."""
        member = layout.bands(heard.shape[-1])
        before = layers.previous(self, levels - START_LEVEL, "levels")
        inputs = [before * (layout.LEVEL_DB / 20), heard @ (member / member.sum(0))]
        trunk = self._trunk("envelope", self.width // 2, layout.ENVELOPE_DEPTH, inputs, mask)
        return change_logits(self, trunk, levels - START_LEVEL - before, layout.BAND_ORDER)


def pass_logits(number, h, near):
    """Logits (B, T, G, 3) of a pass, from what is known of frames (B, T, C) and from what lies beside each (B, T, G, n).

    The layers are those of the module that calls it.
    """
    size, small = near.shape[2], nn.initializers.normal(0.01)
    far = nn.Dense(3 * size, kernel_init=small, name=f"far_{number}")(nn.LayerNorm(name=f"norm_{number}")(h))
    hidden = nn.gelu(nn.Dense(layout.NEAR_WIDTH, name=f"near_{number}")(near))
    return far.reshape(*far.shape[:-1], size, 3), nn.Dense(3, name=f"beside_{number}")(hidden)


def change_logits(module, known, change, order):
    """Logits (B, T, N, 2 * MAX_CHANGE + 1) of changes of levels (B, T, N), by what is known of frames (B, T, C).

    A band sees the changes of those before it in an order (N,). The layers are the module's, which calls it.
    """
    num_bands, size = change.shape[-1], layout.BAND_WIDTH
    earlier = layout.earlier(order).astype(np.float32)[:, :, None]
    mix = module.param("mix", nn.initializers.zeros, (num_bands, num_bands, size)) * earlier
    h = nn.Dense(num_bands * size, name="hidden")(known).reshape(*known.shape[:-1], num_bands, size)
    h = nn.gelu(h + jnp.einsum("btc,cnd->btnd", change * (layout.LEVEL_DB / 20), mix))
    kernel = module.param("kernel", nn.initializers.lecun_normal(), (num_bands, size, 2 * MAX_CHANGE + 1))
    bias = module.param("bias", nn.initializers.zeros, (num_bands, 2 * MAX_CHANGE + 1))
    return jnp.einsum("btnd,ndk->btnk", h, kernel) + bias[None, None]


def compress(magnitudes):
    """Magnitudes as the prior sees them: linear below a step, a fourth root above. Square roots are the same everywhere."""
    return 4 * (jnp.sqrt(jnp.sqrt(1 + magnitudes)) - 1)


def rescaled(magnitudes, change):
    """Magnitudes in other steps as the prior sees them; `change` is what theirs are greater by, in dB."""
    limited = jnp.clip(change, -layout.MAX_STEP_DB, layout.MAX_STEP_DB)
    return compress(magnitudes * envelope.db_to_amplitude(limited))


def coefficient_bits(logits, magnitudes):
    """Code length of coefficients (...) with logits (..., 3): that it is not zero, beyond one, and each further step.

    The last is geometric; a sign costs a bit.
    """
    present, two, more = jnp.moveaxis(logits, -1, 0)
    beyond = jnp.where(magnitudes > 1, nn.softplus(more) + (magnitudes - 2) * nn.softplus(-more) + nn.softplus(-two), 0)
    nats = jnp.where(magnitudes == 1, nn.softplus(two), beyond)
    nats += jnp.where(magnitudes > 0, nn.softplus(-present), nn.softplus(present))
    return nats / np.log(2) + (magnitudes > 0)


def envelope_bits(logits, levels):
    """Code length of levels (B, T, N), as changes from the frame before, with logits (B, T, N, 2 * MAX_CHANGE + 1)."""
    return change_bits(logits, jnp.diff(levels, axis=1, prepend=START_LEVEL))


def change_bits(logits, change):
    """The same of changes (B, T, N)."""
    index = jnp.clip(change + MAX_CHANGE, 0, 2 * MAX_CHANGE).astype(jnp.int32)
    return -jnp.take_along_axis(nn.log_softmax(logits), index[..., None], axis=-1)[..., 0] / np.log(2)


def _parts(codes):
    """Codes (B, Q, T) to quality (B, T), shaping (B, T), levels (B, T, N) and coefficients (B, T, F), float32."""
    frames = jnp.moveaxis(codes, 1, 2).astype(jnp.float32)
    return frames[..., 0], frames[..., 1], frames[..., 2:EXTRA], frames[..., EXTRA:]


def beside(x, distance):
    """The mean of the coefficients `distance` below and above."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (distance, distance)))
    return (padded[..., : -2 * distance] + padded[..., 2 * distance :]) / 2


def from_config(model, fixes) -> ScalarQuantizer:
    """The quantizer of the section `model.scalar`, for the coefficients that `model.latent_dim` leaves room for."""
    if model.latent_dim <= EXTRA:
        raise ValueError(
            f"model.latent_dim is {model.latent_dim}, expected more than {EXTRA} for the scalar quantizer."
        )
    layout.check_bands(model.latent_dim - EXTRA)
    return ScalarQuantizer(model.latent_dim - EXTRA, model.scalar.width, model.scalar.depth)
