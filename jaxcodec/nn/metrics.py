"""Measures of decoded speech, one value a clip: higher is better unless a distance, padding does not exist.

All take reference and decoded audio (B, S) and lengths (B,) in samples, both signals zero beyond the lengths, and return
(B,) float32. A clip of length 0 gives a finite value that means nothing: callers leave such filler out.
"""

import jax.numpy as jnp

from jaxcodec.nn import layers, spectral

EPSILON = 1e-10
MEL_FFT_LENGTH = 1024


def snr(reference, decoded, lengths):
    """Signal-to-noise ratio in dB: 10 log10(sum x^2 / sum (x - y)^2). Punishes gain and delay."""
    del lengths
    return _decibels(jnp.sum(reference**2, axis=1), jnp.sum((decoded - reference) ** 2, axis=1))


def segmental_snr(reference, decoded, lengths, segment_length=320):
    """Mean SNR in dB over segments of `segment_length` samples, each limited to [-10, 35] dB (Hansen and Pellom 1998).

    Segments more than 40 dB below the clip's loudest one are pauses and do not count.
    """
    energies = [_segment_energy(x, segment_length) for x in (reference, decoded - reference)]
    whole = layers.length_mask(lengths // segment_length, energies[0].shape[1])
    spoken = whole & (energies[0] > 1e-4 * jnp.max(energies[0], axis=1, keepdims=True, initial=0.0))
    values = jnp.clip(_decibels(*energies), -10.0, 35.0)
    return jnp.sum(values * spoken, axis=1) / jnp.maximum(jnp.sum(spoken, axis=1), 1)


def si_sdr(reference, decoded, lengths):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, equation 3, no mean removed)."""
    del lengths
    scale = jnp.sum(reference * decoded, axis=1) / (jnp.sum(reference**2, axis=1) + EPSILON)
    target = scale[:, None] * reference
    return _decibels(jnp.sum(target**2, axis=1), jnp.sum((decoded - target) ** 2, axis=1))


def log_spectral_distance(reference, decoded, lengths):
    """Root mean square over frequency of the difference of log power spectra in dB, mean over frames; lower is better.

    (Gray and Markel 1976, the distance d_2 of whole spectra.) Hann windows of 512 samples every 128. Power more than 80 dB
    below the reference's strongest bin counts as that, and frames of the reference more than 40 dB below its loudest one are
    pauses and do not count.
    """
    powers = [spectral.stft_magnitude(x, 512, 128) ** 2 for x in (reference, decoded)]
    floor = jnp.maximum(1e-8 * jnp.max(powers[0], axis=(1, 2), keepdims=True), EPSILON)
    levels = [10 * jnp.log10(jnp.maximum(power, floor)) for power in powers]
    distances = jnp.sqrt(jnp.mean((levels[0] - levels[1]) ** 2, axis=2))
    energies = jnp.sum(powers[0], axis=2)
    inside = layers.length_mask(-(-lengths // 128) + 1, energies.shape[1])
    spoken = inside & (energies > 1e-4 * jnp.max(energies, axis=1, keepdims=True))
    return jnp.sum(distances * spoken, axis=1) / jnp.maximum(jnp.sum(spoken, axis=1), 1)


def mel_distance(reference, decoded, lengths, filters):
    """Mean absolute difference of log10 mel spectra of magnitude; lower is better, 0.1 is 2 dB.

    Hann windows of 1024 samples every 256, `filters` (513, M) on their magnitudes, and a floor of 1e-5, about the noise of
    16-bit audio, under the bands: the mel loss of HiFi-GAN (Kong et al. 2020) and of the codecs after it.
    """
    magnitudes = (spectral.stft_magnitude(x, MEL_FFT_LENGTH, 256) for x in (reference, decoded))
    levels = [jnp.log10(jnp.maximum(magnitude @ filters, 1e-5)) for magnitude in magnitudes]
    distances = jnp.mean(jnp.abs(levels[0] - levels[1]), axis=2)
    inside = layers.length_mask(lengths // 256 + 1, distances.shape[1])
    return jnp.sum(distances * inside, axis=1) / jnp.sum(inside, axis=1)


def extent(audio, lengths):
    """Lowest and highest sample of each clip, audio (B, S) and lengths (B,) to two (B,)."""
    inside = jnp.where(layers.length_mask(lengths, audio.shape[1]), audio, audio[:, :1])  # padding is not its range
    return jnp.min(inside, axis=1), jnp.max(inside, axis=1)


def range_ratio(reference, decoded, lengths):
    """Peak-to-peak range of the decoded audio over that of the reference."""
    ranges = [high - low for low, high in (extent(decoded, lengths), extent(reference, lengths))]
    return ranges[0] / jnp.maximum(ranges[1], EPSILON)


def rms_ratio(reference, decoded, lengths):
    """Root mean square of the decoded audio over that of the reference."""
    del lengths
    return jnp.sqrt(jnp.sum(decoded**2, axis=1) / jnp.maximum(jnp.sum(reference**2, axis=1), EPSILON))


def optimal_gain(reference, decoded, lengths):
    """The gain g that makes g * decoded closest to the reference, sum x y / sum y^2; 1 for a decoder of least squares."""
    del lengths
    return jnp.sum(reference * decoded, axis=1) / jnp.maximum(jnp.sum(decoded**2, axis=1), EPSILON)


def effective_dimension(covariance):
    """Participation ratio of a covariance (D, D): trace(C)^2 / trace(C^2), 1 for a line and D for white latents."""
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), EPSILON**2)


def perplexity(counts):
    """exp(entropy) of how often each code was used, counts (..., K) to (...)."""
    p = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, EPSILON)), 0.0), axis=-1))


def _decibels(signal, noise):
    return 10 * jnp.log10((signal + EPSILON) / (noise + EPSILON))


def _segment_energy(audio, segment_length):
    whole = audio.shape[1] // segment_length
    return jnp.sum(audio[:, : whole * segment_length].reshape(audio.shape[0], whole, segment_length) ** 2, axis=-1)
