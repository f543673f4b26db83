"""Encoder and decoder networks: what they owe, and two architectures.

"mdct" works at frame rate behind an orthonormal MDCT; "seanet" is the field's habit, strided convolutions on samples
(SoundStream, Zeghidour et al. 2021; EnCodec, Defossez et al. 2022), kept for comparison and for the original recipe. A new
one is a function from the section `model` of a config to `Networks`, registered by its name with `architecture`; its own
settings are the section `model.NAME`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec.nn import envelope, layers, spectral
from jaxcodec.quantizers import layout

NOISE_DB = -15  # level of filled-in noise against the envelope before anything is learned


class Network(Protocol):
    """What both networks say of themselves. A block is hop_length samples."""

    # No frame sees a later one, but for a look-ahead of the decoder that `context` tells. Such a network also computes
    # streams, see `layers`: of n more blocks or frames n results, as much later as it looks ahead.
    causal: bool

    @property
    def context(self) -> tuple[int, int]:
        """Frames (before, after) that can change a frame: what a stream remembers, and windows of long audio overlap."""


class Analysis(Network, Protocol):
    """The encoder's network."""

    def num_frames(self, num_samples):
        """Frames of a clip, of an int or an array of ints."""

    def __call__(self, audio: jax.Array, mask: jax.Array) -> jax.Array:
        """Audio (B, S) and which samples exist (B, S) to latents (B, T, D) float32, zero where no frame exists."""


class Synthesis(Network, Protocol):
    """The decoder's network."""

    overlap: int  # frames after frame t that block t of samples is made of too

    def __call__(self, latents: jax.Array, mask: jax.Array, num_samples: int) -> jax.Array:
        """Latents (B, T, D) and which frames exist (B, T) to audio (B, num_samples) float32."""


class Networks(NamedTuple):
    """The two networks of an architecture, and samples a frame."""

    analysis: Any  # a module that meets `Analysis`
    synthesis: Any  # and one that meets `Synthesis`
    hop_length: int


ARCHITECTURES: dict[str, Callable[..., Networks]] = {}


def architecture(name: str):
    """Registers a function (section `model` of a config, what the decoder's output is multiplied by) -> `Networks`.

    It raises ValueError for settings that cannot be.
    """

    def register(make):
        ARCHITECTURES[name] = make
        return make

    return register


def _check_lookahead(model, name):
    if not 0 <= model[name].lookahead < model[name].kernel_size:
        raise ValueError(f"model.{name}.lookahead is {model[name].lookahead}, expected 0 to kernel_size - 1.")


def _spectrum(module, audio, mask, hop_length):
    """Spectrum (B, T, F) of audio (B, S), and which frames exist (B, T, 1): t where block t - 1 or t of samples does."""
    exist = mask[:, ::hop_length]
    if not layers.streams(module):
        spectrum, exist = spectral.mdct(audio, hop_length), jnp.pad(exist, ((0, 0), (1, 1)))  # (B, T + 1)
    else:
        blocks = layers.padded(module, audio.reshape(len(audio), -1, hop_length), 1)
        spectrum, exist = spectral.transform(blocks), layers.padded(module, exist, 1, name="exist")
    return spectrum, (exist[:, :-1] | exist[:, 1:])[..., None]


def _samples(module, spectrum, mask, num_samples):
    """Samples (B, num_samples) of a spectrum (B, T, F) of the frames of a mask (B, T, 1).

    In a stream every frame completes the block before it.
    """
    halves = spectral.halves(spectrum * mask)
    if not layers.streams(module):
        return spectral.overlap_add(halves)[:, :num_samples]
    blocks = spectral.overlap_add(layers.padded(module, halves, 1, name="half")).reshape(spectrum.shape)
    exist = layers.padded(module, mask, 1, name="exist")[:, :-1]  # what sounds before the first frame is half of it
    return (blocks * exist).reshape(len(blocks), -1)


class _MDCTNetwork(nn.Module):
    """What both networks of "mdct" share: ConvNeXt blocks at frame rate."""

    hop_length: int
    width: int
    depth: int
    kernel_size: int
    causal: bool
    identity: bool
    latent_gain: float
    dtype: jnp.dtype
    expansion: int  # channels within a block, in widths
    lookahead: int  # frames that the first block of a causal network sees ahead
    matmul_precision: str  # of dense layers, see `layers.dot_general`

    def reach(self):
        """Frames (before, after) that reach a frame through the blocks."""
        before = self.kernel_size - 1 if self.causal else self.kernel_size // 2
        return self.depth * before - self.lag, self.depth * (self.kernel_size - 1 - before) + self.lag

    @property
    def lag(self):
        """Frames by which what comes from the blocks is late in a stream."""
        return self.lookahead if self.depth else 0

    @nn.nowrap
    def blocks(self, x, mask, features):
        """Compressed inputs (B, T, C) with mask (B, T, 1) to (B, T, features) float32, near zero beside an identity path."""
        multiply = layers.dot_general(self.matmul_precision)
        x = nn.Dense(self.width, dtype=self.dtype, dot_general=multiply, name="input")(x.astype(self.dtype))
        settings = self.kernel_size, self.expansion, self.causal, self.dtype
        for number in range(self.depth):
            lookahead = 0 if number else self.lookahead
            x = layers.ConvNeXtBlock(*settings, lookahead, self.matmul_precision)(x, mask)
            (mask,) = layers.delayed(self, lookahead, mask, name="mask")
        x = nn.LayerNorm(dtype=self.dtype)(x)
        # Speech is small: beside the identity path the noise of a usual initialization would be louder.
        kernel_init = nn.initializers.normal(1e-3) if self.identity else nn.initializers.lecun_normal()
        output = nn.Dense(features, dtype=self.dtype, dot_general=multiply, kernel_init=kernel_init, name="output")
        return output(x).astype(jnp.float32)


class MDCTAnalysis(_MDCTNetwork):
    """MDCT, then a linear map beside ConvNeXt blocks, all at frame rate.

    The linear map starts as the identity from the lowest D coefficients: at step 0 the latents are a low-passed spectrum
    in which distances are waveform errors, and the network learns what to add.
    """

    latent_dim: int

    def num_frames(self, num_samples):
        """Frames of a clip, ceil(S / hop_length) + 1 (none for no samples): the MDCT's blocks overlap by half."""
        return spectral.num_mdct_frames(num_samples, self.hop_length)

    @property
    def context(self):
        """(before, after): blocks of hop_length samples that frame t needs besides block t."""
        before, after = self.reach()
        return before + 1, after

    @nn.compact
    def __call__(self, audio, mask):
        spectrum, mask = _spectrum(self, audio, mask, self.hop_length)
        # Speech spans 60 dB: a network wants it compressed.
        latents = self.blocks(jnp.arcsinh(100.0 * spectrum), mask, self.latent_dim)
        if self.identity:
            latents += self.latent_gain * spectrum[..., : self.latent_dim]
        return latents * mask


class _MDCTSynthesisNetwork(_MDCTNetwork):
    """What ends in the inverse MDCT."""

    overlap = 1  # block t of hop_length samples is the sum of two halves, from frames t and t + 1

    @property
    def context(self):
        """(before, after): frames that block t of hop_length samples needs besides frame t."""
        before, after = self.reach()
        return before, after + self.overlap


class MDCTSynthesis(_MDCTSynthesisNetwork):
    """The mirror image of `MDCTAnalysis`: ConvNeXt blocks beside a linear map, then the inverse MDCT."""

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        mask = mask[..., None]
        spectrum = self.blocks(jnp.arcsinh(latents), mask, self.hop_length)
        if self.identity:
            spectrum += jnp.pad(latents / self.latent_gain, ((0, 0), (0, 0), (0, self.hop_length - latents.shape[-1])))
        return _samples(self, spectrum, mask, num_samples)


class TransformAnalysis(nn.Module):
    """An orthonormal MDCT and nothing else: F coefficients, then zeros for what a quantizer has to say beside them."""

    hop_length: int
    latent_dim: int

    causal = True
    context = (1, 0)

    def num_frames(self, num_samples):
        """Frames of a clip, ceil(S / hop_length) + 1 (none for no samples)."""
        return spectral.num_mdct_frames(num_samples, self.hop_length)

    @nn.compact
    def __call__(self, audio, mask):
        spectrum, mask = _spectrum(self, audio, mask, self.hop_length)
        return jnp.pad(spectrum * mask, ((0, 0), (0, 0), (0, self.latent_dim - self.hop_length)))


class TransformSynthesis(_MDCTSynthesisNetwork):
    """What `quantizers.scalar` gives, improved by ConvNeXt blocks that know every step, then the inverse MDCT.

    The blocks see the coefficients in steps, what the envelope expects of them, and the steps; they add to each coefficient
    a part of its step.
    """

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        mask, num_bins = mask[..., None], self.hop_length
        levels = latents[..., num_bins : num_bins + layout.NUM_BANDS]
        quality, shaping = latents[..., -2], latents[..., -1]
        decibels = envelope.step_decibels(levels, quality, shaping, num_bins)
        steps = envelope.db_to_amplitude(decibels)
        coefficients = latents[..., :num_bins]
        expected = (envelope.decibels(levels, num_bins) - decibels) / 20
        inputs = jnp.arcsinh(coefficients / steps), expected, levels * (layout.LEVEL_DB / 20), decibels[..., ::32] / 20
        offsets = self.blocks(jnp.concatenate(inputs, axis=-1), mask, num_bins)
        coefficients, steps, mask = layers.delayed(self, self.lag, coefficients, steps, mask)
        spectrum = (coefficients + offsets * steps) / self.latent_gain
        return _samples(self, spectrum, mask, num_samples)


class GainShapeAnalysis(_MDCTNetwork):
    """The lowest coefficients of an MDCT and the power of its bands in dB, for `quantizers.gain_shape`.

    ConvNeXt blocks that see the spectrum without its level turn the coefficients to what is worth coding.
    """

    latent_dim: int
    tilt: float
    told_rate: bool
    num_codebooks: int

    num_frames = MDCTAnalysis.num_frames
    context = MDCTAnalysis.context

    @nn.compact
    def __call__(self, audio, mask):
        spectrum, mask = _spectrum(self, audio, mask, self.hop_length)
        bands = envelope.band_decibels(spectrum)
        num_coefficients = self.latent_dim - layout.NUM_BANDS - self.told_rate
        coefficients = spectrum[..., :num_coefficients]
        if self.depth:
            scales = envelope.unit_scales(bands, self.tilt, self.hop_length)
            shape = spectrum / scales
            inputs = jnp.arcsinh(shape), bands / 20
            offsets = self.blocks(jnp.concatenate(inputs, axis=-1), mask, num_coefficients)
            coefficients = _turned(shape[..., :num_coefficients], offsets) * scales[..., :num_coefficients]
        parts = [coefficients, bands]
        if self.told_rate:
            parts.append(jnp.full((*bands.shape[:-1], 1), math.log2(self.num_codebooks)))
        return jnp.concatenate(parts, axis=-1) * mask


class GainShapeSynthesis(_MDCTSynthesisNetwork):
    """What `quantizers.gain_shape` gives, improved by ConvNeXt blocks that know the envelope, then the inverse MDCT.

    Beside what they add to the coefficients stands noise, at a level in each band that they say against the envelope: speech
    that no code tells sounds, and is understood, better as noise than as silence (noise filling).
    """

    tilt: float
    told_rate: bool

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        mask = mask[..., None]
        coefficients, bands, told = layout.gain_shape_parts(latents, self.told_rate)
        num_coefficients = coefficients.shape[-1]
        scales = envelope.unit_scales(bands, self.tilt, self.hop_length)
        coefficients = jnp.pad(coefficients, ((0, 0), (0, 0), (0, self.hop_length - num_coefficients)))
        shape = (coefficients / scales)[..., :num_coefficients]
        inputs = jnp.concatenate([jnp.arcsinh(shape), bands / 20], axis=-1)
        outputs = self.blocks(jnp.concatenate([inputs, told], axis=-1), mask, self.hop_length + layout.NUM_BANDS)
        offsets, levels = outputs[..., : self.hop_length], outputs[..., self.hop_length :]
        late = layers.delayed(self, self.lag, coefficients, scales, bands, inputs, mask)
        coefficients, scales, bands, inputs, mask = late
        noise = envelope.db_to_amplitude(envelope.interpolated(bands + NOISE_DB + 10 * levels, self.hop_length))
        noise *= _noise(inputs, self.hop_length)
        spectrum = (coefficients + offsets * scales + noise) / self.latent_gain
        return _samples(self, spectrum, mask, num_samples)


def _turned(vectors, offsets):
    """Vectors (..., C) with offsets added, as long as before: their level is the envelope's to tell, and cannot drift."""
    turned = vectors + offsets
    power, before = (jnp.sum(x**2, axis=-1, keepdims=True) for x in (turned, vectors))
    return turned * jnp.sqrt((before + 1e-8) / (power + 1e-8))


def _noise(frames, num_bins):
    """Noise of unit power, frames (B, T, C) to (B, T, num_bins): sines of many turns, of constant mixtures of a frame.

    It is made of a frame's content alone, so streams and windows of a recording have the same.
    """
    mixtures = 4 * np.random.RandomState(0).standard_normal((frames.shape[-1], num_bins)).astype(np.float32)
    turns = jnp.matmul(lax.stop_gradient(frames), mixtures, precision=lax.Precision.HIGHEST)
    return math.sqrt(2) * jnp.sin(turns)


class _SEANetwork(nn.Module):
    """What both networks of "seanet" share."""

    strides: tuple[int, ...]
    width: int
    causal: bool
    dtype: jnp.dtype

    def frames(self, samples):
        """Frames (before, after) for a reach of `samples` to both sides together."""
        frames = -(-samples // math.prod(self.strides))
        return (frames, 0) if self.causal else (frames, frames)


class SEANetAnalysis(_SEANetwork):
    """Strided convolutions from samples to frames; channels double with every stride."""

    latent_dim: int

    def num_frames(self, num_samples):
        """Frames of a clip, ceil(S / hop_length)."""
        return -(-num_samples // math.prod(self.strides))

    @property
    def context(self):
        """(before, after): blocks of hop_length samples that frame t needs besides block t, at most."""
        rate, reach = 1, 6  # samples a step, samples reached beyond the present one
        for stride in self.strides:
            reach += (2 + stride) * rate  # the residual unit and the strided convolution
            rate *= stride
        return self.frames(reach + 2 * rate)

    @nn.compact
    def __call__(self, audio, mask):
        mask = mask[..., None]
        x = layers.Conv(self.width, 7, causal=self.causal, dtype=self.dtype)(audio[..., None].astype(self.dtype))
        for level, stride in enumerate(self.strides):
            x = layers.ResidualUnit(causal=self.causal, dtype=self.dtype)(x, mask)
            width = self.width * 2 ** (level + 1)
            x = layers.Conv(width, 2 * stride, stride, self.causal, dtype=self.dtype)(nn.elu(x) * mask)
            mask = mask[:, ::stride]  # a step exists where its first sample does
        x = layers.Conv(self.latent_dim, 3, causal=self.causal, dtype=self.dtype)(nn.elu(x) * mask)
        return x.astype(jnp.float32) * mask


class SEANetSynthesis(_SEANetwork):
    """Sub-pixel convolutions from frames to samples, the strides of the analysis in reverse."""

    overlap = 0  # block t of hop_length samples comes from frame t

    @property
    def context(self):
        """(before, after): frames that block t of hop_length samples needs besides frame t, at most."""
        rate = math.prod(self.strides)
        reach = 6 * rate
        for stride in reversed(self.strides):
            reach += 2 * rate  # the sub-pixel convolution
            rate //= stride
            reach += 2 * rate  # the residual unit
        return self.frames(reach + 6)

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        width = self.width * 2 ** len(self.strides)
        mask = mask[..., None]
        x = layers.Conv(width, 7, causal=self.causal, dtype=self.dtype)((latents * mask).astype(self.dtype))
        for stride in reversed(self.strides):
            width //= 2
            x = layers.UpsamplingConv(width, stride, self.causal, dtype=self.dtype)(nn.elu(x) * mask)
            mask = jnp.repeat(mask, stride, axis=1)
            x = layers.ResidualUnit(causal=self.causal, dtype=self.dtype)(x, mask)
        x = layers.Conv(1, 7, causal=self.causal, dtype=self.dtype)(nn.elu(x) * mask)
        return x[:, :num_samples, 0].astype(jnp.float32)


def _usual(model):
    """What all networks at frame rate are given."""
    return dict(width=model.width, dtype=jnp.dtype(model.dtype), matmul_precision="default")


@architecture("mdct")
def _mdct(model, output_scale):
    section = model.mdct
    if section.identity and model.latent_dim > section.hop_length:
        raise ValueError(
            f"model.latent_dim is {model.latent_dim}, but an identity path carries at most hop_length = "
            f"{section.hop_length} coefficients: lower it or set model.mdct.identity to False."
        )
    shared = {name: section[name] for name in ("hop_length", "kernel_size", "identity", "latent_gain")}
    shared |= _usual(model) | dict(causal=model.causal, expansion=4, lookahead=0)
    analysis = MDCTAnalysis(**shared, depth=section.encoder_depth, latent_dim=model.latent_dim)
    # The identity path is the identity at step 0 whatever the decoder's output is multiplied by.
    shared["latent_gain"] *= output_scale
    return Networks(analysis, MDCTSynthesis(**shared, depth=section.decoder_depth), section.hop_length)


@architecture("transform")
def _transform(model, output_scale):
    section = model.transform
    _check_lookahead(model, "transform")
    if model.latent_dim != section.hop_length + layout.EXTRA:
        raise ValueError(f"model.latent_dim is {model.latent_dim}, expected hop_length + {layout.EXTRA}.")
    shared = _usual(model)
    shared |= {name: section[name] for name in ("depth", "kernel_size", "expansion", "lookahead")}
    synthesis = TransformSynthesis(section.hop_length, causal=True, identity=True, latent_gain=output_scale, **shared)
    return Networks(TransformAnalysis(section.hop_length, model.latent_dim), synthesis, section.hop_length)


@architecture("gain_shape")
def _gain_shape(model, output_scale):
    section = model.gain_shape
    _check_lookahead(model, "gain_shape")
    layout.check_bands(section.hop_length)
    told_rate = section.get("told_rate", False)
    beside = layout.NUM_BANDS + told_rate
    if not beside < model.latent_dim <= section.hop_length + beside:
        raise ValueError(
            f"model.latent_dim is {model.latent_dim}, expected 1 to {section.hop_length} coefficients and "
            f"{layout.NUM_BANDS} bands{' and the rate' * told_rate}."
        )
    shared = {name: section[name] for name in ("hop_length", "kernel_size", "expansion", "tilt")}
    shared |= _usual(model) | dict(causal=model.causal, identity=True, told_rate=told_rate)
    analysis = GainShapeAnalysis(
        **shared,
        depth=section.encoder_depth,
        lookahead=0,
        latent_gain=1.0,
        latent_dim=model.latent_dim,
        num_codebooks=model.rvq.num_codebooks if "rvq" in model else 1,
    )
    synthesis = GainShapeSynthesis(
        **shared, depth=section.decoder_depth, lookahead=section.lookahead, latent_gain=output_scale
    )
    return Networks(analysis, synthesis, section.hop_length)


@architecture("seanet")
def _seanet(model, output_scale):
    strides = tuple(model.seanet.strides)
    if model.width < 2:
        raise ValueError(f"model.width is {model.width}, expected at least 2: half of it is within a residual unit.")
    shared = dict(strides=strides, width=model.width, causal=model.causal, dtype=jnp.dtype(model.dtype))
    analysis = SEANetAnalysis(**shared, latent_dim=model.latent_dim)
    return Networks(analysis, SEANetSynthesis(**shared), math.prod(strides))
