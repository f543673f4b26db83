"""Encoder and decoder networks, two architectures with one interface.

Analysis: audio (B, S) in [-1, 1] and lengths (B,) in samples -> latents (B, T, D) float32, zero beyond each clip's frames.
Synthesis: latents (B, T, D) and lengths -> audio (B, S). `num_frames` says how many frames a length has.

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

    @nn.compact
    def __call__(self, audio, lengths):
        spectrum = spectral.mdct(audio, self.hop_length)
        mask = layers.length_mask(self.num_frames(lengths), spectrum.shape[1])[..., None]
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

    @nn.compact
    def __call__(self, latents, lengths, num_samples):
        num_frames = spectral.num_mdct_frames(lengths, self.hop_length)
        mask = layers.length_mask(num_frames, latents.shape[1])[..., None]
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

    @nn.compact
    def __call__(self, audio, lengths):
        mask = layers.length_mask(lengths, audio.shape[1])[..., None]
        x = layers.Conv(self.width, 7, causal=self.causal, dtype=self.dtype)(audio[..., None].astype(self.dtype))
        for level, stride in enumerate(self.strides):
            x = layers.ResidualUnit(causal=self.causal, dtype=self.dtype)(x, mask)
            width = self.width * 2 ** (level + 1)
            x = layers.Conv(width, 2 * stride, stride, self.causal, dtype=self.dtype)(nn.elu(x) * mask)
            lengths = -(-lengths // stride)
            mask = layers.length_mask(lengths, x.shape[1])[..., None]
        x = layers.Conv(self.latent_dim, 3, causal=self.causal, dtype=self.dtype)(nn.elu(x) * mask)
        return x.astype(jnp.float32) * mask


class SEANetSynthesis(nn.Module):
    """Sub-pixel convolutions from frames to samples, the strides of the analysis in reverse."""

    strides: tuple[int, ...]
    width: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents, lengths, num_samples):
        width = self.width * 2 ** len(self.strides)
        lengths = -(-lengths // math.prod(self.strides))
        mask = layers.length_mask(lengths, latents.shape[1])[..., None]
        x = layers.Conv(width, 7, causal=self.causal, dtype=self.dtype)((latents * mask).astype(self.dtype))
        for stride in reversed(self.strides):
            width //= 2
            x = layers.UpsamplingConv(width, stride, self.causal, dtype=self.dtype)(nn.elu(x) * mask)
            mask = jnp.repeat(mask, stride, axis=1)
            x = layers.ResidualUnit(causal=self.causal, dtype=self.dtype)(x, mask)
        x = layers.Conv(1, 7, causal=self.causal, dtype=self.dtype)(nn.elu(x) * mask)
        return x[:, :num_samples, 0].astype(jnp.float32)
