"""A prior of scalar codes that predicts many frames at once: the checkerboard of He et al. 2021 in time and frequency.

`scalar.Prior` goes from frame to frame, and a decoder with it. Here a block is coded in few passes whatever its length.
First the envelope: the first frame, then the one in the middle, then those in the middle of what is left, each between two
that are known. Then the coefficients in the passes of `layout.CHECKERS`: some of every second frame, some of the frames
between them, and so on until all are known. What is coded later has neighbors on both sides.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec.nn import envelope, layers
from jaxcodec.quantizers import layout, scalar


class CheckerboardPrior(nn.Module):
    """Logits of the coefficients of each pass, (B, T', G, 3), and of the envelope's changes (B, T, N, 2 * MAX_CHANGE + 1).

    From magnitudes (B, T, F), envelope (B, T, N), steps in dB (B, T, F) and mask (B, T, 1). `bits` says what they mean.
    `bitstream.checkerboard` computes the same in numbers that are equal everywhere.
    """

    width: int = 128
    depth: int = 2

    @nn.compact
    def __call__(self, magnitudes, levels, steps, mask):
        magnitudes = magnitudes * mask
        num_bins = magnitudes.shape[-1]
        member = layout.bands(num_bins)
        expected = (envelope.decibels(levels, num_bins) - steps) / 20
        shape = (levels - layout.START_LEVEL) * (layout.LEVEL_DB / 20)
        h = nn.Dense(self.width, name="input")(jnp.concatenate([expected @ (member / member.sum(0)), shape], axis=-1))
        for number in range(self.depth):
            h = _Block(slice(None), name=f"block_{number}")(h, mask)
        heard = scalar.compress(magnitudes)
        beside = {0: heard} | {distance: _rescaled(magnitudes, steps, distance) for distance in (-2, -1, 1, 2)}
        logits = []
        for number, (frames, bins) in enumerate(layout.checkers()):
            if number:
                frames_before, bins_before = layout.checkers()[number - 1]
                seen = nn.Dense(self.width, name=f"seen_{number}")(heard[:, frames_before, bins_before])
                h = _Block(frames, name=f"seen_block_{number}")(h + _spread(seen, frames_before, h.shape[1]), mask)
            known = layout.known_checkers(number, heard.shape[1], num_bins).astype(np.float32)
            near = [
                _mean(beside[time] * _later(known, time)[None], distance)[:, frames, bins]
                for time, distance in layout.CHECKER_NEIGHBORS[number]
            ]
            logits.append(
                self._pass_logits(number, h[:, frames], jnp.stack([expected[:, frames, bins], *near], axis=-1))
            )
        return logits, self._envelope_logits(levels, mask)

    def bits(self, magnitudes, levels, steps, mask):
        """Code lengths over all frames that exist, (1 + P,): of the envelope and of the coefficients of each pass."""
        logits, changes = self(magnitudes, levels, steps, mask)
        bits = [jnp.sum(envelope_bits(changes, levels, mask) * mask)]
        for (frames, bins), x in zip(layout.checkers(), logits, strict=True):
            bits.append(jnp.sum(scalar.coefficient_bits(x, magnitudes[:, frames, bins]) * mask[:, frames]))
        return jnp.stack(bits)

    def _pass_logits(self, number, h, near):
        far, beside = scalar.pass_logits(number, h, near)
        worth = near[..., :1] >= layout.LEAST_EXPECTED  # below it nearly all are zero, and most are below it
        return far + worth * beside

    def _envelope_logits(self, levels, mask):
        before, others = _middles(levels, mask)
        slots = layout.middle_slots(levels.shape[1])[None].repeat(len(levels), axis=0)
        x = jnp.concatenate([(before - layout.START_LEVEL) * (layout.LEVEL_DB / 20), *others, slots], axis=-1)
        for number in range(2):
            x = nn.gelu(nn.Dense(self.width, name=f"envelope_{number}")(x))
        return scalar.change_logits(self, x, levels - before, layout.CHECKER_BAND_ORDER)


class _Block(nn.Module):
    """A `layers.ConvNeXtBlock` that changes some frames only, and sees all."""

    frames: slice

    @nn.compact
    def __call__(self, x, mask):
        y = layers.DepthwiseConv(layout.KERNEL_SIZE)(x * mask)[:, self.frames]
        y = nn.gelu(nn.Dense(layout.CHECKER_EXPANSION * x.shape[-1])(nn.LayerNorm()(y)))
        y = nn.Dense(x.shape[-1])(y)
        scale = self.param("layer_scale", nn.initializers.constant(0.1), x.shape[-1:])
        return x + _spread(y * scale[None, None], self.frames, x.shape[1])


def _spread(x, frames, num_frames):
    """What some frames have, x (B, T', C), among all, (B, T, C), zeros between: a scatter takes longer."""
    first, distance = frames.start or 0, frames.step or 1
    rest = num_frames - first - distance * (x.shape[1] - 1) - 1
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (first, rest, distance - 1), (0, 0, 0)))


def envelope_bits(logits, levels, mask):
    """Code length of levels (B, T, N), as changes from what lies before each, with logits (B, T, N, 2 * MAX_CHANGE + 1)."""
    return scalar.change_bits(logits, levels - _middles(levels, mask)[0])


def _middles(levels, mask):
    """Levels (B, T, N) at the beginning of the stretch each frame is in the middle of, and what is known beside it."""
    num_frames = levels.shape[1]
    half, frames = layout.halves(num_frames), np.arange(num_frames)
    before = jnp.where(half[None, :, None] > 0, levels[:, frames - half], layout.START_LEVEL)
    others = []
    for distance in layout.MIDDLE_NEIGHBORS:
        places = frames + distance * half
        inside = (half > 0) & (places >= 0) & (places < num_frames)
        places = np.where(inside, places, 0)
        known = mask[:, places] * inside[None, :, None]
        others += [known * (levels[:, places] - before) * (layout.LEVEL_DB / 20), known]
    return before, others


def _rescaled(magnitudes, steps, distance):
    """Magnitudes (B, T, F) so many frames later, in steps of the present, as the prior sees them."""
    return scalar.rescaled(_later(magnitudes, distance), _later(steps, distance) - steps)


def _later(x, distance):
    """What x (B, T, C), or (T, C), has so many frames later, zeros beyond its ends."""
    before, after = max(0, -distance), max(0, distance)
    longer = jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((before, after), (0, 0)))
    return longer[..., after : after + x.shape[-2], :]


def _mean(x, distance):
    """The mean of the coefficients `distance` below and above."""
    return scalar.beside(x, distance) if distance else x
