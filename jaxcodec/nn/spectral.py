"""Fixed transforms between samples and spectra: the MDCT in front of the codec and the STFT of the spectral loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def mdct_basis(hop_length: int) -> np.ndarray:
    """Orthonormal MDCT with a sine window, (2 * hop_length, hop_length) float32.

    Column k is w[n] * sqrt(2 / N) * cos(pi / N * (n + 1/2 + N/2) * (k + 1/2)) with N = hop_length
    (Princen, Johnson and Bradley 1987, time-domain aliasing cancellation). Neighboring blocks are orthogonal, so energy
    and squared error are the same in both domains.
    """
    n = np.arange(2 * hop_length)[:, None] + 0.5
    k = np.arange(hop_length)[None, :] + 0.5
    window = np.sin(np.pi / (2 * hop_length) * n)
    basis = window * np.sqrt(2 / hop_length) * np.cos(np.pi / hop_length * (n + hop_length / 2) * k)
    return basis.astype(np.float32)


def num_mdct_frames(num_samples, hop_length: int):
    """Frames that cover `num_samples` samples; a clip of no samples has no frames. Works on ints and arrays alike."""
    return -(-num_samples // hop_length) + (num_samples > 0)


def mdct(audio: jax.Array, hop_length: int) -> jax.Array:
    """Audio (B, S) to MDCT coefficients (B, T, hop_length), T = ceil(S / hop_length) + 1.

    Frame t sees samples [(t - 1) * hop_length, (t + 1) * hop_length): half of the first and of the last frame is zeros.
    """
    num_samples = audio.shape[-1]
    num_blocks = -(-num_samples // hop_length)
    blocks = jnp.pad(audio, ((0, 0), (hop_length, (num_blocks + 1) * hop_length - num_samples)))
    blocks = blocks.reshape(audio.shape[0], num_blocks + 2, hop_length)
    return transform(blocks)


def transform(blocks: jax.Array) -> jax.Array:
    """Blocks of samples (B, T + 1, hop_length) to MDCT coefficients (B, T, hop_length), a frame of each two neighbors."""
    frames = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)
    return jnp.matmul(frames, mdct_basis(blocks.shape[-1]), precision=lax.Precision.HIGHEST)


def imdct(coefficients: jax.Array, num_samples: int) -> jax.Array:
    """Inverse of `mdct`: coefficients (B, T, hop_length) to audio (B, num_samples)."""
    return overlap_add(halves(coefficients))[:, :num_samples]


def halves(coefficients: jax.Array) -> jax.Array:
    """What each frame (B, T, hop_length) of an MDCT adds to two blocks of samples, (B, T, 2 * hop_length)."""
    return jnp.matmul(coefficients, mdct_basis(coefficients.shape[-1]).T, precision=lax.Precision.HIGHEST)


def overlap_add(halves: jax.Array) -> jax.Array:
    """Both halves of T frames (B, T, 2 * hop_length) to the T - 1 blocks between them, audio (B, (T - 1) * hop_length)."""
    hop_length = halves.shape[-1] // 2
    blocks = halves[:, :-1, hop_length:] + halves[:, 1:, :hop_length]
    return blocks.reshape(blocks.shape[0], -1)


def stft_magnitude(audio: jax.Array, fft_length: int, hop_length: int, dtype=jnp.float32) -> jax.Array:
    """Magnitudes of the Hann-windowed STFT, audio (B, S) to (B, T, fft_length // 2 + 1), T = ceil(S / hop_length) + 1.

    Frame t is centered on sample t * hop_length; what lies outside the clip is zero. Frames, window product and magnitudes
    are held in `dtype`; anything but float32 is there to study what half precision does to a spectral loss (XLA has no FFT
    below float32, so only the transform itself stays in float32).
    """
    spectrum = stft(audio, fft_length, hop_length, dtype)
    power = (spectrum.real**2 + spectrum.imag**2).astype(dtype)
    # The floor keeps the gradient of the square root finite at digital silence.
    return jnp.sqrt(jnp.maximum(power, jnp.asarray(1e-12, dtype)))


def stft(audio: jax.Array, fft_length: int, hop_length: int, dtype=jnp.float32) -> jax.Array:
    """The Hann-windowed STFT that `stft_magnitude` takes magnitudes of, (B, S) to complex (B, T, fft_length // 2 + 1)."""
    frames = _centered_frames(audio.astype(dtype), fft_length, hop_length)
    window = jnp.asarray(np.hanning(fft_length + 1)[:-1], dtype)
    return jnp.fft.rfft((frames * window[None, None]).astype(jnp.float32))


def _centered_frames(audio, fft_length, hop_length):
    """(B, S) to (B, T, fft_length); built from whole hops, so that it is a concatenation and no gather."""
    num_samples = audio.shape[-1]
    num_frames = -(-num_samples // hop_length) + 1
    parts = fft_length // hop_length
    if parts * hop_length != fft_length:
        raise ValueError(f"fft_length {fft_length} must be a multiple of hop_length {hop_length}.")
    padded = (num_frames + parts - 1) * hop_length
    left = fft_length // 2
    blocks = jnp.pad(audio, ((0, 0), (left, padded - left - num_samples)))
    blocks = blocks.reshape(audio.shape[0], num_frames + parts - 1, hop_length)
    return jnp.concatenate([blocks[:, i : i + num_frames] for i in range(parts)], axis=-1)
