"""Discriminators of an adversarial training: what tells decoded speech from recorded, and is left out of shipped codecs.

Complex spectrograms at several resolutions (EnCodec, Defossez et al. 2022, section 3.4) and samples folded by periods
(HiFi-GAN, Kong et al. 2020, section 2.3). Audio is (B, S) at a level of its own: who calls divides both signals by the
level of the recorded one.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxcodec.nn import spectral

SLOPE = 0.2  # of leaky rectifiers


class Judgement(flax.struct.PyTreeNode):
    """What one discriminator says of a batch."""

    logits: jax.Array  # (B, T', F'): above 0 for recorded speech
    features: list[jax.Array]  # of each layer before, (B, T', F', C); T' shrinks with the layers


class SpectrogramDiscriminator(nn.Module):
    """Two-dimensional convolutions over a complex STFT, its real and imaginary parts as channels.

    Each layer sees pairs of frequencies as channels of one, and halves them so: a stride would take twice as long on a
    CPU, whose gradient of a strided convolution is slow.
    """

    fft_length: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, audio) -> Judgement:
        spectrum = spectral.stft(audio, self.fft_length, self.fft_length // 4)
        # Of about one for noise of level one.
        x = jnp.stack([spectrum.real, spectrum.imag], axis=-1) / jnp.sqrt(self.fft_length / 4)
        # Compressed, phase kept: speech falls by 40 dB from the first formant to the last.
        power = jnp.sum(x**2, axis=-1, keepdims=True)
        x = x * (power + 1e-4) ** -0.35
        features = []
        for _ in range(self.depth):
            x = nn.leaky_relu(nn.Conv(self.width, (3, 3))(_paired(x)), SLOPE)
            features.append(x)
        return Judgement(nn.Conv(1, (3, 3))(x)[..., 0], features)


def _paired(x):
    """Frequencies two by two: (B, T, F, C) to (B, T, ceil(F / 2), 2 * C)."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3])


class PeriodDiscriminator(nn.Module):
    """Convolutions over every `period`-th sample, strided in time."""

    period: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, audio) -> Judgement:
        missing = -audio.shape[1] % self.period
        x = jnp.pad(audio, ((0, 0), (0, missing))).reshape(audio.shape[0], -1, self.period, 1)
        features = []
        for level in range(self.depth):
            x = nn.leaky_relu(nn.Conv(self.width * 2**level, (5, 1), (3, 1))(x), SLOPE)
            features.append(x)
        return Judgement(nn.Conv(1, (3, 1))(x)[..., 0], features)


class Discriminators(nn.Module):
    """All of them: audio (B, S) to a `Judgement` of each."""

    fft_lengths: tuple[int, ...]
    periods: tuple[int, ...]
    spectrogram_width: int
    spectrogram_depth: int
    period_width: int
    period_depth: int

    @nn.compact
    def __call__(self, audio) -> list[Judgement]:
        spectrograms = [
            SpectrogramDiscriminator(n, self.spectrogram_width, self.spectrogram_depth, name=f"stft_{n}")
            for n in self.fft_lengths
        ]
        periods = [
            PeriodDiscriminator(n, self.period_width, self.period_depth, name=f"period_{n}") for n in self.periods
        ]
        return [discriminator(audio) for discriminator in (*spectrograms, *periods)]
