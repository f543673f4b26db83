"""Encoder and decoder networks, two architectures with one interface.

Analysis: audio (B, S) in [-1, 1] and which samples exist (B, S) -> latents (B, T, D) float32, zero where no frame exists.
Synthesis: latents (B, T, D) and which frames exist (B, T) -> audio (B, S). `num_frames` says how many frames a length has,
`context` how many frames before and after a frame can change it: what a stream remembers and windows of long audio overlap.

"mdct" works at frame rate behind an orthonormal MDCT; "seanet" is the field's habit, strided convolutions on samples
(SoundStream, Zeghidour et al. 2021; EnCodec, Defossez et al. 2022), kept for comparison and for the original recipe.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxcodec import layers, spectral


def _output_init(identity):
    """Beside an identity path the network starts near zero: speech is small, and its noise would be louder."""
    return nn.initializers.normal(1e-3) if identity else nn.initializers.lecun_normal()


def _convnext_context(network):
    """Frames (before, after) that reach a frame through `depth` ConvNeXt blocks."""
    before = network.kernel_size - 1 if network.causal else network.kernel_size // 2
    return network.depth * before, network.depth * (network.kernel_size - 1 - before)


def _seanet_context(network, samples):
    """Frames (before, after) for a reach of `samples` to both sides together."""
    frames = -(-samples // math.prod(network.strides))
    return (frames, 0) if network.causal else (frames, frames)


class MDCTAnalysis(nn.Module):
    """MDCT, then a linear map beside ConvNeXt blocks, all at frame rate.

    The linear map starts as the identity from the lowest D coefficients: at step 0 the latents are a low-passed spectrum
    in which distances are waveform errors, and the network learns what to add.
    """

    hop_length: int
    latent_dim: int
    width: int
    depth: int
    kernel_size: int = 7
    causal: bool = False
    identity: bool = True
    latent_gain: float = 1.0
    dtype: jnp.dtype = jnp.float32

    def num_frames(self, num_samples):
        """Frames of a clip, ceil(S / hop_length) + 1 (none for no samples): the MDCT's blocks overlap by half."""
        return spectral.num_mdct_frames(num_samples, self.hop_length)

    @property
    def context(self):
        """(before, after): blocks of hop_length samples that frame t needs besides block t."""
        before, after = _convnext_context(self)
        return before + 1, after

    @nn.compact
    def __call__(self, audio, mask):
        spectrum = spectral.mdct(audio, self.hop_length)
        blocks = jnp.pad(mask[:, :: self.hop_length], ((0, 0), (1, 1)))  # (B, T + 1)
        mask = (blocks[:, :-1] | blocks[:, 1:])[..., None]  # frame t exists where block t - 1 or t does
        x = jnp.arcsinh(100.0 * spectrum).astype(self.dtype)  # speech spans 60 dB: a network wants it compressed
        x = nn.Dense(self.width, dtype=self.dtype, name="input")(x)
        for _ in range(self.depth):
            x = layers.ConvNeXtBlock(self.kernel_size, causal=self.causal, dtype=self.dtype)(x, mask)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        kernel_init = _output_init(self.identity)
        latents = nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=kernel_init, name="output")(x)
        latents = latents.astype(jnp.float32)
        if self.identity:
            latents += self.latent_gain * spectrum[..., : self.latent_dim]
        return latents * mask


class MDCTSynthesis(nn.Module):
    """The mirror image of `MDCTAnalysis`: ConvNeXt blocks beside a linear map, then the inverse MDCT."""

    hop_length: int
    width: int
    depth: int
    kernel_size: int = 7
    causal: bool = False
    identity: bool = True
    latent_gain: float = 1.0
    dtype: jnp.dtype = jnp.float32

    overlap = 1  # block t of hop_length samples is the sum of two halves, from frames t and t + 1

    @property
    def context(self):
        """(before, after): frames that block t of hop_length samples needs besides frame t."""
        before, after = _convnext_context(self)
        return before, after + self.overlap

    @nn.compact
    def __call__(self, latents, mask, num_samples):
        mask = mask[..., None]
        x = nn.Dense(self.width, dtype=self.dtype, name="input")(jnp.arcsinh(latents).astype(self.dtype))
        for _ in range(self.depth):
            x = layers.ConvNeXtBlock(self.kernel_size, causal=self.causal, dtype=self.dtype)(x, mask)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        kernel_init = _output_init(self.identity)
        spectrum = nn.Dense(self.hop_length, dtype=self.dtype, kernel_init=kernel_init, name="output")(x)
        spectrum = spectrum.astype(jnp.float32)
        if self.identity:
            spectrum += jnp.pad(latents / self.latent_gain, ((0, 0), (0, 0), (0, self.hop_length - latents.shape[-1])))
        return spectral.imdct(spectrum * mask, num_samples)


class SEANetAnalysis(nn.Module):
    """Strided convolutions from samples to frames; channels double with every stride."""

    strides: tuple[int, ...]
    latent_dim: int
    width: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

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
        return _seanet_context(self, reach + 2 * rate)

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


class SEANetSynthesis(nn.Module):
    """Sub-pixel convolutions from frames to samples, the strides of the analysis in reverse."""

    strides: tuple[int, ...]
    width: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

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
        return _seanet_context(self, reach + 6)

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
