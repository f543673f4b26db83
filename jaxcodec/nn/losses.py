"""Terms of the training loss, one value a clip: lower is better, padding does not exist.

Relative terms are divided by the clip's own energy, so that the balance between them depends neither on the level of the
speech nor on the scale of the latents. The absolute ones are those of the original recipe (`configs/seed.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec.nn import layers, spectral

# Mean power below which a clip counts as digital silence (-80 dBFS): the divisor of a relative error never goes below.
SILENCE_POWER = 1e-8
STFT_LENGTHS = (512, 1024, 2048)
# Of the weighting "band": samples a block of the MDCT. Bands of equal width on the mel or bark scale, Hz at their top.
BAND_HOP, NUM_BANDS, TOP_HZ = 320, 20, 8000
ERROR_WEIGHTINGS = ("plain", "preemphasis", "band")


def bounded(value: jax.Array, bound: float, total: jax.Array | None = None) -> jax.Array:
    """`value` scaled down so that `total` (default `value`) reads at most `bound`, the gradient's direction kept.

    A hard clamp has no gradient above its bound, so a run would freeze exactly where it needs help. Here the scale is a
    constant to the gradient: value <= bound, and its gradient is that of bound * log(value).
    """
    total = lax.stop_gradient(value if total is None else total)
    return value * jnp.minimum(1.0, bound / jnp.maximum(total, 1e-30))


def waveform_error(
    reference: jax.Array,
    decoded: jax.Array,
    lengths: jax.Array,
    *,
    relative: bool = True,
    weighting: str = "plain",
    preemphasis: float = 0.9,
    band_exponent: float = 0.5,
) -> jax.Array:
    """Squared error of each clip, audio (B, S) and lengths (B,) to (B,); both signals zero beyond the lengths.

    Args:
      relative: divide by the clip's (equally weighted) energy; otherwise the mean squared error per sample.
      weighting: "plain"; "preemphasis", the error through 1 - preemphasis * z^-1; "band", the error in each band and block
        of an MDCT divided by the power of the speech there to the `band_exponent`: 0 is plain, 1 makes noise follow speech.

    Raises:
      ValueError: unknown weighting.
    """
    error = decoded - reference
    samples = jnp.maximum(lengths, 1)
    if weighting == "preemphasis":
        mask = layers.length_mask(lengths, error.shape[1])  # the filter rings one sample beyond the clip
        error, reference = (mask * (x - preemphasis * jnp.pad(x[:, :-1], ((0, 0), (1, 0)))) for x in (error, reference))
    if weighting == "band":
        error, reference = spectral.mdct(error, BAND_HOP), spectral.mdct(reference, BAND_HOP)
        num_frames = spectral.num_mdct_frames(lengths, BAND_HOP)
        weights = _band_weights(reference, num_frames, band_exponent)
        squared_error, energy = (jnp.sum(weights * x**2, axis=(1, 2)) for x in (error, reference))
    elif weighting in ERROR_WEIGHTINGS:
        squared_error, energy = (jnp.sum(x**2, axis=1) for x in (error, reference))
    else:
        raise ValueError(f'loss.error_weighting is "{weighting}", expected one of {", ".join(ERROR_WEIGHTINGS)}.')
    if not relative:
        return squared_error / samples
    return squared_error / (energy + SILENCE_POWER * samples)


def _band_weights(spectrum, num_frames, exponent):
    """(B, T, F) to weights of the same shape: band power to the -exponent, scaled to leave the clip's energy as it is."""
    bands = _bands(spectrum.shape[-1])
    power = jnp.matmul(spectrum**2, bands / bands.sum(0), precision=lax.Precision.HIGHEST)
    mean_power = jnp.sum(power, axis=(1, 2)) / (jnp.maximum(num_frames, 1) * bands.shape[1])
    power += 1e-4 * mean_power[:, None, None] + SILENCE_POWER  # noise 40 dB down need not hide
    weights = jnp.matmul(lax.stop_gradient(power**-exponent), bands.T, precision=lax.Precision.HIGHEST)
    energy = jnp.sum(spectrum**2, axis=(1, 2), keepdims=True)
    return weights * energy / (jnp.sum(weights * spectrum**2, axis=(1, 2), keepdims=True) + SILENCE_POWER)


def _bands(num_bins):
    """Membership (F, NUM_BANDS) of bins to bands of equal width on the mel scale (O'Shaughnessy 1987), below `TOP_HZ`."""
    centers = TOP_HZ * (np.arange(num_bins) + 0.5) / num_bins
    share = np.log1p(centers / 700) / np.log1p(TOP_HZ / 700)
    return np.eye(NUM_BANDS, dtype=np.float32)[(share * NUM_BANDS).astype(int)]


def spectral_loss(
    reference: jax.Array, decoded: jax.Array, lengths: jax.Array, *, relative: bool = True, dtype=jnp.float32
) -> jax.Array:
    """Multi-resolution STFT loss of each clip, audio (B, S) and lengths (B,) to (B,).

    Spectral convergence plus the mean distance of log magnitudes (Yamamoto et al. 2020, equations 4 and 5), averaged over
    STFTs of 512, 1024 and 2048 samples with hops of a quarter. The floor below which magnitudes are not compared lies 60
    dB under the clip's own level when `relative`, else at 1e-5.
    """
    resolutions = [_stft_distance(reference, decoded, lengths, n, relative, dtype) for n in STFT_LENGTHS]
    return sum(resolutions) / len(resolutions)


def loudness_loss(reference: jax.Array, decoded: jax.Array, lengths: jax.Array) -> jax.Array:
    """Mean distance of loudness in 20 bark bands, relative to the mean loudness of each clip; audio (B, S) to (B,).

    Power in each band of an STFT of 512 samples to the 0.23 (Zwicker and Fastl 1999, chapter 8), the bark scale of Zwicker
    and Terhardt 1980.
    """
    target, actual = (_loudness(x) for x in (reference, decoded))
    num_frames = spectral.num_mdct_frames(lengths, 128)
    mask = layers.length_mask(num_frames, target.shape[1])[..., None]
    distance, whole = (jnp.sum(mask * x, axis=(1, 2)) for x in (jnp.abs(actual - target), target))
    return distance / (whole + 1e-3 * jnp.maximum(num_frames, 1))


def _loudness(audio):
    power = spectral.stft_magnitude(audio, 512, 128) ** 2
    hertz = TOP_HZ * np.linspace(0, 1, power.shape[-1])
    bark = 13 * np.arctan(0.00076 * hertz) + 3.5 * np.arctan((hertz / 7500) ** 2)
    member = np.eye(NUM_BANDS, dtype=np.float32)[np.minimum(bark / bark[-1] * NUM_BANDS, NUM_BANDS - 1).astype(int)]
    return (jnp.matmul(power, member, precision=lax.Precision.HIGHEST) + 1e-7) ** 0.23


def _stft_distance(reference, decoded, lengths, fft_length, relative, dtype):
    hop_length = fft_length // 4
    target, actual = (spectral.stft_magnitude(x, fft_length, hop_length, dtype) for x in (reference, decoded))
    num_frames = spectral.num_mdct_frames(lengths, hop_length)
    mask = layers.length_mask(num_frames, target.shape[1])[..., None].astype(target.dtype)
    bins = jnp.maximum(num_frames, 1) * target.shape[-1]
    energy = jnp.sum(mask * target**2, axis=(1, 2))
    silence = jnp.asarray(SILENCE_POWER * fft_length, target.dtype)
    error = jnp.sum(mask * (actual - target) ** 2, axis=(1, 2))
    convergence = jnp.sqrt((error + 1e-12) / (energy + silence * bins))
    floor = 1e-3 * jnp.sqrt(energy / bins + silence)[:, None, None] if relative else jnp.asarray(1e-5, target.dtype)
    log_distance = jnp.abs(jnp.log(actual + floor) - jnp.log(target + floor))
    return convergence + jnp.sum(mask * log_distance, axis=(1, 2)) / bins
