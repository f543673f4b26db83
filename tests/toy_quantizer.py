"""A second kind of quantizer: every latent on its own, in multiples of a step that the codes begin with."""

import jax.numpy as jnp

from jaxcodec import quantizers
from jaxcodec.quantizers import interface

STEPS = (0.1, 0.01)  # the rates that evaluation looks at
UNIT = 1e-3  # of the step in the first row of codes
KIND = quantizers.Kind(
    __name__, quantizers.Knob(name="step", argument="step", help="of the latents", parse=float, label="step {}")
)


class UniformQuantizer(interface.Quantizer):
    """Codes (B, D + 1, T), signed: the step in units of `UNIT`, then the latents in steps."""

    dim: int

    penalties = ("magnitude",)
    rates = STEPS
    code_range = (-(2**14), 2**14 - 1)

    def __call__(self, latents, rates=None, frame_mask=None):
        rates = jnp.full(latents.shape[:1], STEPS[-1]) if rates is None else rates
        steps = jnp.round(rates / UNIT).astype(jnp.int32)[:, None, None]
        codes = jnp.moveaxis(jnp.round(latents / (steps * UNIT)).astype(jnp.int32), 2, 1)
        codes = jnp.concatenate([jnp.broadcast_to(steps, (*codes.shape[:1], 1, codes.shape[2])), codes], axis=1)
        return interface.Quantized(self.decode(codes), codes, latents)

    def at(self, quantized, rates):
        return self(quantized.trace, rates)

    def decode(self, codes):
        return jnp.moveaxis(codes[:, 1:] * (codes[:, :1] * UNIT), 1, 2)

    def penalize(self, latents, quantized, frame_mask):
        squares = jnp.sum(latents**2, axis=2)
        return {"magnitude": interface.Penalty(squares[None], squares, self.dim)}

    def num_rows(self, rate):
        return self.dim + 1

    def check_rate(self, rate):
        if rate is None:
            return STEPS[-1]
        if not UNIT <= rate <= 1:
            raise ValueError(f"step is {rate}, expected {UNIT} to 1.")
        return rate


def from_config(model, fixes):
    """The quantizer of a config; it has no settings of its own."""
    return UniformQuantizer(model.latent_dim)
