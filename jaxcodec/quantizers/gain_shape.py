"""Gain-shape residual vector quantization of a spectrum (Sabin and Gray 1984): tokens that hold what the ear needs.

The first codebooks code the *envelope*: the power of every band in dB, and with it the level. The others code the *shape*:
the coefficients over scales that follow the coded envelope (`nn.envelope.unit_scales`), so that they know no level, and the
error lies where the speech hides it. Latents and quantized latents are the coefficients, then the bands in dB, and at the
end, where the decoder is told the rate, log2 of the number of codebooks.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxcodec.nn import envelope
from jaxcodec.quantizers import interface, layout, rvq

# How many envelopes the search for codes tries.
ENVELOPES = 4


def envelope_weight(num_shape: int) -> float:
    """What a decibel squared of the envelope weighs beside the squared error that the first codebook of the shape leaves.

    The more of them follow, the less of that error stays, while the envelope's does.
    """
    return 2.0 * num_shape**0.6


class GainShapeQuantizer(rvq.ResidualVectorQuantizer):
    """Of Q codebooks the first `num_envelope` code the bands, the rest the coefficients of a spectrum of `num_bins`."""

    num_envelope: int = 1
    num_bins: int = 320
    tilt: float = 0.3
    told_rate: bool = False

    @property
    def _num_shape(self):
        return self.num_codebooks - self.num_envelope

    @property
    def _num_coefficients(self):
        return self.dim - layout.NUM_BANDS - self.told_rate

    def _initial(self):
        def init(rng, num_codebooks, dim):
            return rvq.init_codebooks(rng, num_codebooks, self.size, dim, self.init_scale)

        rngs = jax.random.split(self.make_rng("params"))
        return {
            "envelope": init(rngs[0], self.num_envelope, layout.NUM_BANDS),
            "shape": init(rngs[1], self._num_shape, self._num_coefficients),
        }

    def __call__(self, latents, rates=None, frame_mask=None):
        coefficients, bands, _ = layout.gain_shape_parts(latents, self.told_rate)
        state = self.codebooks.value
        trace = {"envelope": rvq.quantize(lax.stop_gradient(bands), state["envelope"].centroids)}
        shape = coefficients / self._scales(_total(trace["envelope"]))
        trace["shape"] = rvq.quantize(lax.stop_gradient(shape), state["shape"].centroids)
        if rates is None:
            rates = jnp.full(latents.shape[:1], self.num_codebooks)
        codes = jnp.concatenate([part.codes for part in trace.values()], axis=1)
        return self.at(interface.Quantized(latents, codes, trace), rates)

    def at(self, quantized, rates):
        counts = {"envelope": rates, "shape": jnp.maximum(rates - self.num_envelope, 0)}
        kept = {name: rvq.keep_codebooks(quantized.trace[name].stages, counts[name]) for name in counts}
        told = jnp.asarray([math.log2(n) for n in range(1, self.num_codebooks + 1)])[rates - 1]
        return quantized.replace(latents=self._join(told, **kept))

    def encode(self, latents, rates=None, frame_mask=None):
        envelope_codes, shape = self._coded_envelope(latents, rates, frame_mask)
        left = None if rates is None else max(0, rates - self.num_envelope)
        shape_codes = self._search(shape, self.codebooks.value["shape"], left, frame_mask)
        return jnp.concatenate([envelope_codes, shape_codes], axis=1)

    def shape(self, latents, frame_mask=None):
        """Latents (B, T, D) to what the codebooks of the shape code: coefficients over scales, (B, T, D - bands)."""
        return self._coded_envelope(latents, None, frame_mask)[1]

    def _coded_envelope(self, latents, rates, frame_mask):
        """Codes of the envelope, and the shape under it."""
        coefficients, bands, _ = layout.gain_shape_parts(latents, self.told_rate)
        state = self.codebooks.value["envelope"]
        if self.beams > 1 and self.num_envelope == 1 and rates != 1:
            flat = (x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (coefficients, bands))
            weight = envelope_weight(self._num_shape if rates is None else rates - 1)
            choose = functools.partial(self._envelope_with_shape, weight=weight)
            codes = rvq.by_blocks(choose, ENVELOPES, frame_mask, *flat).reshape(latents.shape[0], 1, latents.shape[1])
        else:
            codes = self._search(bands, state, rates, frame_mask)
        return codes, coefficients / self._scales(rvq.dequantize(codes, state.centroids))

    def _envelope_with_shape(self, coefficients, bands, weight):
        """Codes (N,) of the envelope, of coefficients (N, F) and bands (N, n), with which what is decoded is nearest.

        Of the nearest envelopes the one with the least error: what the first codebook of the shape leaves, over the scales
        of the true envelope, and weight times the envelope's own, the mean of the bands' in dB squared.
        """
        envelopes, shapes = (self.codebooks.value[name] for name in ("envelope", "shape"))
        table = getattr(shapes, "table", None)
        table = rvq.tabulate(shapes.centroids[:1]) if table is None else table
        entries = jnp.asarray(envelopes.centroids[0])
        # Band by band: on CPU a sum over the last axis, which is short, takes several times as long.
        distances = sum((bands[:, band, None] - entries[None, :, band]) ** 2 for band in range(bands.shape[-1]))
        candidates = rvq.greatest(-distances, min(ENVELOPES, self.beams))
        told = entries[candidates]  # (N, M, n)
        scales = self._scales(told)
        shape = coefficients[:, None] / scales
        codes = rvq.nearest_tabulated(shape.reshape(-1, shape.shape[-1]), table, 0).reshape(candidates.shape)
        left = (coefficients[:, None] - scales * shapes.centroids[0][codes]) / self._scales(bands)[:, None]
        errors = jnp.sum(left**2, axis=-1) + weight * jnp.mean((told - bands[:, None]) ** 2, axis=-1)
        return rvq.pick(candidates[..., None], rvq.greatest(-errors, 1))[:, 0, 0]

    def decode(self, codes):
        state = self.codebooks.value
        parts = {"envelope": codes[:, : self.num_envelope], "shape": codes[:, self.num_envelope :]}
        told = jnp.full(codes.shape[:1], math.log2(codes.shape[1]))
        return self._join(told, **{name: rvq.dequantize(part, state[name].centroids) for name, part in parts.items()})

    def _scales(self, bands):
        return envelope.unit_scales(bands, self.tilt, self.num_bins)[..., : self._num_coefficients]

    def _join(self, told, envelope, shape):
        parts = [shape * self._scales(envelope), envelope]
        if self.told_rate:
            parts.append(jnp.broadcast_to(told[:, None, None], (*shape.shape[:-1], 1)))
        return jnp.concatenate(parts, axis=-1)

    def penalize(self, latents, quantized, frame_mask):
        """The commitment of the shape as a whole: what all its codebooks leave."""
        coefficients, _, _ = layout.gain_shape_parts(latents, self.told_rate)
        trace = quantized.trace
        shape = coefficients / self._scales(_total(trace["envelope"]))
        error = jnp.sum((shape - _total(trace["shape"])) ** 2, axis=-1)
        energy = lax.stop_gradient(shape) ** 2 * frame_mask[..., None]
        return {"commitment": interface.Penalty(error[None], energy, shape.shape[-1])}

    def updated(self, state, quantized, frame_mask, row_keys, *, config, axis_name=None):
        update = functools.partial(super().updated, config=config, axis_name=axis_name)
        return {
            name: update(state[name], quantized.replace(trace=trace), frame_mask, row_keys)
            for name, trace in quantized.trace.items()
        }

    def started(self, rng, latents, config):
        """Codebooks by k-means."""
        kmeans = jax.jit(rvq.kmeans_codebooks, static_argnums=(2, 3))
        coefficients, bands, _ = layout.gain_shape_parts(latents, self.told_rate)
        rngs = jax.random.split(rng)
        state = {"envelope": kmeans(rngs[0], bands, self.num_envelope, self.size)}
        codes = rvq.quantize(bands[None], state["envelope"].centroids).codes
        told = rvq.dequantize(codes, state["envelope"].centroids)[0]
        shape = coefficients / self._scales(told)
        return state | {"shape": kmeans(rngs[1], shape, self._num_shape, self.size)}

    def constants(self, state):
        return {name: super(GainShapeQuantizer, self).constants(state[name]) for name in state}

    def ready(self, constants):
        return {name: super(GainShapeQuantizer, self).ready(part) for name, part in constants.items()}

    def state_of(self, constants):
        return {name: super(GainShapeQuantizer, self).state_of(part) for name, part in constants.items()}

    def resumed(self, constants):
        counts = {"envelope": self.num_envelope, "shape": self._num_shape}
        return {name: self._averaged(constants[name]["centroids"][: counts[name]]) for name in counts}


def _total(trace):
    """What all codebooks say together, in the order in which decoding adds; constant to the gradient."""
    stages = lax.stop_gradient(trace.stages)
    return rvq.keep_codebooks(stages, jnp.full(stages.shape[1], stages.shape[0]))


def from_config(model, fixes) -> rvq.ResidualVectorQuantizer:
    """The quantizer of the section `model.rvq`: a plain one, or of gain and shape where codebooks are for an envelope."""
    section = model.rvq
    # Models of before these settings do not have them.
    num_envelope, beams = section.get("envelope_codebooks", 0), section.get("beams", 1)
    if not 1 <= beams <= section.codebook_size:
        raise ValueError(f"model.rvq.beams is {beams}, expected 1 to codebook_size.")
    scale = 0.01 if fixes.small_vq_init else 1.0
    settings = dict(
        num_codebooks=section.num_codebooks,
        size=section.codebook_size,
        dim=model.latent_dim,
        init_scale=scale,
        beams=beams,
    )
    if (model.architecture == "gain_shape") != (num_envelope > 0):
        raise ValueError(
            f'model.rvq.envelope_codebooks is {num_envelope}: the architecture "gain_shape" needs at least one, and '
            f'"{model.architecture}" is another that has no envelope.'
        )
    if not num_envelope:
        return rvq.ResidualVectorQuantizer(**settings)
    if num_envelope >= section.num_codebooks:
        raise ValueError(f"model.rvq.envelope_codebooks is {num_envelope} of {section.num_codebooks}: none is left.")
    shape = model.gain_shape
    return GainShapeQuantizer(
        **settings,
        num_envelope=num_envelope,
        num_bins=shape.hop_length,
        tilt=shape.tilt,
        told_rate=shape.get("told_rate", False),
    )
