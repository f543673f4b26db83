"""What a quantizer owes to the codec around it, to training, to files and to evaluation."""

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Penalty(flax.struct.PyTreeNode):
    """A term of the training loss that the quantizer adds: the mean of `values` over frames that exist."""

    values: jax.Array  # (N, B, T): N values a frame
    energy: jax.Array  # zero where no frame exists; a relative term is over its sum, not over the number of frames
    size: int = flax.struct.field(pytree_node=False, default=1)  # elements that a value is the sum of


class Quantized(flax.struct.PyTreeNode):
    """Latents after quantization."""

    latents: jax.Array  # (B, T, D) at the rates that were asked for
    codes: jax.Array  # (B, Q, T) int32
    trace: Any  # what `at`, `penalize` and `updated` of this kind need of the pass
    # Of kinds whose latents are the coefficients of an MDCT: the step (B, T, F) that each was rounded to, and for each clip
    # how much it is meant to please the ear (B,), 0 to 1.
    steps: jax.Array | None = None
    hearing: jax.Array | None = None


class Quantizer(nn.Module):
    """A kind of quantizer, with what most kinds have in common: no state, no penalties, no codebooks.

    Codes are integers (B, Q, T), Q a frame, and hold everything that `decode` needs: where it must know the rate, they say
    it. A kind that learns without gradients keeps a pytree in the collection that it names, its *state*; training hands that
    to `updated`, and files keep what `constants` says of it.
    """

    collection: ClassVar[str] = "quantizer"  # of the state, in flax, snapshots and files
    penalties: ClassVar[tuple[str, ...]] = ()  # terms of the loss, with loss.NAME_weight and loss.NAME_bound
    prior_kind: ClassVar[str] = ""  # of the probability model that is among its parameters, a key of `entropy.MODELS`
    fitted_kind: ClassVar[str] = "tables"  # of the one that is fitted to its codes later
    rate_is_a_size: ClassVar[bool] = False  # `encode` wants the rate as a number that is known when it is compiled
    bypass: ClassVar[bool] = True  # a decoder can be given the latents themselves, to see what quantization costs

    def __call__(self, latents, rates=None, frame_mask=None) -> Quantized:
        """Latents (B, T, D) and a rate for each clip, (B,) or a tuple of (B,), the best when None, to `Quantized`.

        Frames where frame_mask (B, T) is false do not exist, all exist when None.
        """
        raise NotImplementedError

    def at(self, quantized: Quantized, rates) -> Quantized:
        """The same latents at other rates."""
        raise NotImplementedError

    def encode(self, latents, rates=None, frame_mask=None):
        """Latents (B, T, D) to codes (B, Q, T), for one rate the first `num_rows` of them.

        `rates` are those of `__call__`, or one rate where `rate_is_a_size`. In a stream it is applied to the new frames
        alone: what it hears of those before its layers keep (`nn.layers.padded`).
        """
        return self(latents, rates, frame_mask).codes

    def decode(self, codes):
        """Codes (B, Q', T) to quantized latents (B, T, D)."""
        raise NotImplementedError

    def penalize(self, latents, quantized: Quantized, frame_mask) -> dict[str, Penalty]:
        """The terms that `penalties` names; frames where frame_mask (B, T) is false do not exist.

        A gradient goes to the latents (B, T, D) and to parameters of the quantizer. One called "rate" is bits a frame.
        """
        return {}

    # Its codes.

    @property
    def context(self) -> int:
        """Frames before a frame whose latents its codes depend on too."""
        return 0

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest value of a code."""
        raise NotImplementedError

    @property
    def codebook_size(self) -> int | None:
        """K where every code is one of K entries of a codebook, whose use is then counted."""
        return None

    def num_rows(self, rate) -> int:
        """Codes a frame, Q."""
        raise NotImplementedError

    def possible(self, codes: np.ndarray) -> np.ndarray:
        """Which frames (T,) of codes (Q, T) in their range an encoder can have written, as far as that is known."""
        return np.ones(codes.shape[1], bool)

    def prior_arrays(self, params) -> dict[str, Any]:
        """Of a kind with a `prior_kind`: what that model is made from, by name, out of the quantizer's parameters."""
        raise NotImplementedError

    # Its rate.

    @property
    def rates(self) -> tuple:
        """The rates that evaluation looks at, the best last."""
        raise NotImplementedError

    def check_rate(self, rate):
        """The best rate for None; raises `ValueError` for a rate that cannot be."""
        raise NotImplementedError

    def bits_per_frame(self, rate) -> float | None:
        """Nominal bits, None where entropy coding alone decides."""
        return None

    # Training. `config` is the whole recipe; every function is pure and sees this replica's share of the batch.

    def name_of(self, rate) -> str:
        """What tables call it."""
        return str(rate)

    def draw_rates(self, row_keys, batch, config):
        """A rate for each clip of a training batch, from a key for each (B,)."""
        return jnp.full(row_keys.shape, self.rates[-1])

    def updated(self, state, quantized: Quantized, frame_mask, row_keys, *, config, axis_name=None):
        """The state after a step, the same on every replica."""
        return state

    def frames_to_start(self, config) -> int:
        """Frames of latents that `started` wants, 0 for none."""
        return 0

    def started(self, rng, latents, config):
        """The state that training begins with, from latents (N, D)."""
        raise NotImplementedError

    # Files.

    def constants(self, state) -> dict[str, jax.Array]:
        """The arrays of the state that encoding and decoding need, by name."""
        return {}

    def ready(self, constants: dict[str, Any]) -> dict[str, Any]:
        """Constants with what `encode` makes of them, for who encodes often; `state_of` takes both."""
        return constants

    def state_of(self, constants: dict[str, jax.Array]):
        """The state that a snapshot stored as a dict, or one that encodes and decodes alike, from `constants`."""
        return {}

    def resumed(self, constants: dict[str, jax.Array]):
        """The state that training goes on from with the constants of a trained codec."""
        return self.state_of(constants)


def straight_through(latents, z_q):
    """`z_q`, with a gradient that passes as if it were the latents (Bengio et al. 2013)."""
    return latents + lax.stop_gradient(z_q - latents)
