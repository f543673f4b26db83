"""The codec: encoder, residual vector quantizer and scaled decoder, composed.

A model is described by a plain config (section `model` of the files in `configs/`) and made by `from_config`.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxcodec import layers, networks, rvq


class CodecOutput(flax.struct.PyTreeNode):
    """One pass through the codec."""

    audio: jax.Array  # (B, S) decoded from the quantized latents, zero beyond each clip
    clipped: jax.Array  # (B, S) the input as the encoder saw it
    latents: jax.Array  # (B, T, D)
    quantized: rvq.Quantized
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


class ResidualVectorQuantizer(nn.Module):
    """Q codebooks of K centroids in the collection "codebooks"; no parameter is trained by gradient."""

    num_codebooks: int
    codebook_size: int
    dim: int
    init_scale: float = 0.01

    def setup(self):
        self.codebooks = self.variable("codebooks", "averages", self._initial)

    def _initial(self):
        rng = self.make_rng("params")
        return rvq.init_codebooks(rng, self.num_codebooks, self.codebook_size, self.dim, self.init_scale)

    def __call__(self, latents):
        return rvq.quantize(jax.lax.stop_gradient(latents), self.codebooks.value.centroids)

    def decode(self, codes):
        """Codes (B, Q', T), Q' <= Q, to quantized latents (B, T, D)."""
        return rvq.dequantize(codes, self.codebooks.value.centroids)


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
    quantizer: ResidualVectorQuantizer
    decoder: ScaledDecoder
    sample_rate: int
    hop_length: int

    def __call__(self, audio, lengths, num_codebooks=None) -> CodecOutput:
        """Audio (B, S), lengths (B,) and, per clip, how many codebooks to decode from (B,) (all when None).

        The gradient passes the quantizer as if it were the identity (straight-through, Bengio et al. 2013).
        """
        latents = self.encode(audio, lengths)
        quantized = self.quantizer(latents)
        if num_codebooks is None:
            num_codebooks = jnp.full(lengths.shape, self.quantizer.num_codebooks)
        z_q = rvq.keep_codebooks(quantized.stages, num_codebooks)
        z_q = latents + jax.lax.stop_gradient(z_q - latents)
        return CodecOutput(
            self.decode(z_q, lengths, audio.shape[1]),
            self.encoder.prepare(audio, layers.length_mask(lengths, audio.shape[1])),
            latents,
            quantized,
            self.frame_mask(lengths, latents.shape[1]),
        )

    def encode(self, audio, lengths):
        """Audio (B, S) to latents (B, T, D), zero beyond each clip's frames."""
        return self.analyse(audio, layers.length_mask(lengths, audio.shape[1]))

    def analyse(self, audio, mask):
        """Audio (B, S) to latents (B, T, D) where only the samples of mask (B, S) exist: a clip, or a window of one."""
        return self.encoder(audio, mask)

    def quantize(self, latents):
        """Latents (B, T, D) to `Quantized`."""
        return self.quantizer(latents)

    def dequantize(self, codes):
        """Codes (B, Q', T) to quantized latents (B, T, D)."""
        return self.quantizer.decode(codes)

    def decode(self, latents, lengths, num_samples: int):
        """Latents (B, T, D) to audio (B, num_samples), zero beyond each clip's length."""
        audio = self.synthesise(latents, self.frame_mask(lengths, latents.shape[1]), num_samples)
        return audio * layers.length_mask(lengths, num_samples)

    def synthesise(self, latents, mask, num_samples: int):
        """Latents (B, T, D) to audio (B, num_samples) where only the frames of mask (B, T) exist."""
        return self.decoder(latents, mask, num_samples)

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

    @property
    def bits_per_second(self) -> float:
        """Nominal rate, frame_rate * num_codebooks * log2(codebook_size)."""
        return self.frame_rate * self.quantizer.num_codebooks * math.log2(self.quantizer.codebook_size)


def variables(params, codebooks: rvq.Codebooks) -> dict:
    """The variable collections that `Codec` is applied to."""
    return {"params": params, "codebooks": {"quantizer": {"averages": codebooks}}}


def from_config(model, fixes) -> Codec:
    """A `Codec` from the sections `model` and `fixes` of a config.

    Raises:
      ValueError: unknown architecture or dtype, a width that cannot hold the latents, a codebook_size below 2.
    """
    _check(model)
    dtype = jnp.dtype(model.dtype)
    gain = model.latent_gain
    analysis: nn.Module
    synthesis: nn.Module
    if model.architecture == "mdct":
        shared = dict(
            hop_length=model.hop_length,
            width=model.width,
            kernel_size=model.kernel_size,
            causal=model.causal,
            identity=model.identity,
            dtype=dtype,
        )
        analysis = networks.MDCTAnalysis(
            **shared, latent_dim=model.latent_dim, depth=model.encoder_depth, latent_gain=gain
        )
        # The identity path is the identity at step 0 whatever the decoder's output is multiplied by.
        scale = model.output_scale if fixes.learnable_scale else 1.0
        synthesis = networks.MDCTSynthesis(**shared, depth=model.decoder_depth, latent_gain=gain * scale)
        hop_length = model.hop_length
    else:
        shared = dict(strides=tuple(model.strides), width=model.width, causal=model.causal, dtype=dtype)
        analysis = networks.SEANetAnalysis(**shared, latent_dim=model.latent_dim)
        synthesis = networks.SEANetSynthesis(**shared)
        hop_length = math.prod(model.strides)
    return Codec(
        encoder=Encoder(analysis, clip_input=fixes.input_clipping),
        quantizer=ResidualVectorQuantizer(
            model.num_codebooks, model.codebook_size, model.latent_dim, 0.01 if fixes.small_vq_init else 1.0
        ),
        decoder=ScaledDecoder(synthesis, model.output_scale if fixes.learnable_scale else None, tanh=not fixes.no_tanh),
        sample_rate=model.sample_rate,
        hop_length=hop_length,
    )


def _check(model):
    if model.architecture not in ("mdct", "seanet"):
        raise ValueError(f'model.architecture is "{model.architecture}", expected "mdct" or "seanet".')
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f'model.dtype is "{model.dtype}", expected "float32" or "bfloat16".')
    smallest = dict(sample_rate=1, num_codebooks=1, codebook_size=2, latent_dim=1)
    if model.architecture == "mdct":
        smallest |= dict(hop_length=1, width=1, kernel_size=1, encoder_depth=0, decoder_depth=0)
    else:
        smallest |= dict(width=2)
        if not model.strides or min(model.strides) < 1:
            raise ValueError(f"model.strides is {tuple(model.strides)}, expected one or more numbers of at least 1.")
    for name, least in smallest.items():
        if model[name] < least:
            raise ValueError(f"model.{name} is {model[name]}, expected at least {least}.")
    if model.architecture == "mdct" and model.identity and model.latent_dim > model.hop_length:
        raise ValueError(
            f"model.latent_dim is {model.latent_dim}, but an identity path carries at most hop_length = "
            f"{model.hop_length} coefficients: lower it or set model.identity to False."
        )
