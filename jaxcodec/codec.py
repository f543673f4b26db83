"""The codec: encoder, quantizer and scaled decoder, composed.

A model is described by a plain config (section `model` of the files in `configs/`) and made by `from_config`.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxcodec import quantizers, recipe
from jaxcodec.nn import layers, networks
from jaxcodec.quantizers import interface


class CodecOutput(flax.struct.PyTreeNode):
    """One pass through the codec."""

    audio: jax.Array  # (B, S) decoded from the quantized latents, zero beyond each clip
    clipped: jax.Array  # (B, S) the input as the encoder saw it
    latents: jax.Array  # (B, T, D)
    quantized: interface.Quantized
    penalties: dict[str, interface.Penalty]  # of the quantizer, for the training loss
    frame_mask: jax.Array  # (B, T) true where a frame exists


class Encoder(nn.Module):
    """Audio (B, S) and which samples exist (B, S) to latents (B, T, D); samples that do not exist are ignored."""

    network: nn.Module
    clip_input: bool = True

    def __call__(self, audio, mask):
        return self.network(self.prepare(audio, mask), mask)

    def prepare(self, audio, mask):
        """Audio (B, S) as the network sees it: clipped to [-1, 1], zero where no sample exists."""
        audio = jnp.clip(audio, -1.0, 1.0) if self.clip_input else audio
        return audio * mask


class ScaledDecoder(nn.Module):
    """Quantized latents (B, T, D) to audio (B, S): network(z_q) * output_scale, unbounded unless `tanh`."""

    network: nn.Module
    initial_scale: float | None = 2.5
    tanh: bool = False

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        audio = self.network(latents, mask, num_samples)
        if self.tanh:
            audio = jnp.tanh(audio)
        if self.initial_scale is not None:
            audio = audio * self.param("output_scale", nn.initializers.constant(self.initial_scale), ())
        return audio


class Codec(nn.Module):
    """Audio to codes and back. Latents of a clip have `num_frames(S)` frames, one column of codes each."""

    encoder: Encoder
    quantizer: interface.Quantizer
    decoder: ScaledDecoder
    sample_rate: int
    hop_length: int
    latent_dim: int

    def __call__(self, audio, lengths, rates=None) -> CodecOutput:
        """Audio (B, S), lengths (B,) and, per clip, the quantizer's rate (B,) (the best when None)."""
        mask = layers.length_mask(lengths, audio.shape[1])
        latents = self.analyze(audio, mask)
        frame_mask = self.frame_mask(lengths, latents.shape[1])
        quantized = self.quantizer(latents, rates, frame_mask)
        return CodecOutput(
            self.synthesize_clips(interface.straight_through(latents, quantized.latents), lengths, audio.shape[1]),
            self.encoder.prepare(audio, mask),
            latents,
            quantized,
            self.penalize(latents, quantized, frame_mask),
            frame_mask,
        )

    def analyze(self, audio, mask):
        """Audio (B, S) to latents (B, T, D) where only the samples of mask (B, S) exist: a clip, or a window of one."""
        return self.encoder(audio, mask)

    def quantize(self, latents, rates=None, frame_mask=None):
        """Latents (B, T, D) of the frames of a mask (B, T) to `Quantized`."""
        return self.quantizer(latents, rates, frame_mask)

    def penalize(self, latents, quantized, frame_mask):
        """The quantizer's terms of the training loss, by name."""
        return self.quantizer.penalize(latents, quantized, frame_mask)

    def requantize(self, quantized, rates):
        """What `quantize` gave, at other rates."""
        return self.quantizer.at(quantized, rates)

    def encode_latents(self, latents, rates=None, frame_mask=None):
        """Latents (B, T, D) of the frames of a mask (B, T) to codes (B, Q, T)."""
        return self.quantizer.encode(latents, rates, frame_mask)

    def dequantize(self, codes):
        """Codes (B, Q', T) to quantized latents (B, T, D)."""
        return self.quantizer.decode(codes)

    def synthesize(self, latents, mask, num_samples: int):
        """Latents (B, T, D) to audio (B, num_samples) where only the frames of mask (B, T) exist."""
        return self.decoder(latents, mask, num_samples)

    def synthesize_clips(self, latents, lengths, num_samples: int):
        """Latents (B, T, D) to audio (B, num_samples), zero beyond each clip's length (B,)."""
        audio = self.synthesize(latents, self.frame_mask(lengths, latents.shape[1]), num_samples)
        return audio * layers.length_mask(lengths, num_samples)

    def num_frames(self, num_samples):
        """Frames of a clip of `num_samples` samples, an int or an array of ints."""
        return self.encoder.network.num_frames(num_samples)

    def frame_mask(self, lengths, num_frames: int):
        """True where a frame exists: lengths (B,) in samples to (B, num_frames)."""
        return layers.length_mask(self.num_frames(lengths), num_frames)

    def num_samples(self, num_frames):
        """The longest clip that has `num_frames` frames, in samples; an int or an array of ints."""
        return (num_frames - self.decoder.network.overlap) * self.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second, sample_rate / hop_length."""
        return self.sample_rate / self.hop_length

    def bits_per_second(self, rate) -> float | None:
        """Nominal rate, None where entropy coding alone decides."""
        bits = self.quantizer.bits_per_frame(rate)
        return None if bits is None else self.frame_rate * bits

    def with_matmul_precision(self, matmul_precision: str) -> "Codec":
        """The same with another of `layers.MATMUL_PRECISIONS` in all parts that have one."""

        def changed(module):
            has_one = hasattr(module, "matmul_precision")
            return module.clone(matmul_precision=matmul_precision) if has_one else module

        parts = {name: getattr(self, name) for name in ("encoder", "decoder")}
        parts = {name: part.clone(network=changed(part.network)) for name, part in parts.items()}
        return self.clone(**parts, quantizer=changed(self.quantizer))

    def collections(self, params, state) -> dict:
        """The variable collections that the module is applied to: parameters and the quantizer's state."""
        return {"params": params, self.quantizer.collection: {"quantizer": {"state": state}}}

    def initial(self, rng):
        """Fresh parameters and the quantizer's state; shapes do not depend on the clip length they are made with."""
        lengths = jnp.full((1,), 2 * self.hop_length, jnp.int32)
        variables = self.init(rng, jnp.zeros((1, 2 * self.hop_length)), lengths)
        state = variables.get(self.quantizer.collection, {"quantizer": {"state": {}}})
        return variables["params"], state["quantizer"]["state"]


def from_config(model, fixes) -> Codec:
    """A `Codec` from the sections `model` and `fixes` of a config.

    Raises:
      ValueError: a field that is not within `recipe.BOUNDS`, fields that do not fit together.
    """
    recipe.check(model.to_dict(), fixes.to_dict())
    if model.architecture not in networks.ARCHITECTURES:
        known = quantizers.expected(networks.ARCHITECTURES)
        raise ValueError(f'model.architecture is "{model.architecture}", expected {known}.')
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f'model.dtype is "{model.dtype}", expected "float32" or "bfloat16".')
    scale = model.output_scale if fixes.learnable_scale else None
    analysis, synthesis, hop_length = networks.ARCHITECTURES[model.architecture](model, 1.0 if scale is None else scale)
    return Codec(
        encoder=Encoder(analysis, clip_input=fixes.input_clipping),
        quantizer=quantizers.from_config(model, fixes),
        decoder=ScaledDecoder(synthesis, scale, tanh=not fixes.no_tanh),
        sample_rate=model.sample_rate,
        hop_length=hop_length,
        latent_dim=model.latent_dim,
    )
