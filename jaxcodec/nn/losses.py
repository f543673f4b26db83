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
LOUDNESS_FFT, LOUDNESS_HOP, LOUDNESS_BANDS = 512, 256, 49
_GRID = np.linspace(1, TOP_HZ, TOP_HZ)
ERROR_WEIGHTINGS = ("plain", "preemphasis", "band", "steps")


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
    steps: jax.Array | None = None,
) -> jax.Array:
    """Squared error of each clip, audio (B, S) and lengths (B,) to (B,); both signals zero beyond the lengths.

    Args:
      relative: divide by the clip's (equally weighted) energy; otherwise the mean squared error per sample.
      weighting: "plain"; "preemphasis", the error through 1 - preemphasis * z^-1; "band", the error in each band and block
        of an MDCT divided by the power of the speech there to the `band_exponent`: 0 is plain, 1 makes noise follow speech;
        "steps", the mean square of the error of each coefficient of an MDCT in `steps` (B, T, F), whatever `relative` says.

    Raises:
      ValueError: unknown weighting.
    """
    error = decoded - reference
    samples = jnp.maximum(lengths, 1)
    if weighting == "steps":
        if steps is None:
            raise ValueError('loss.error_weighting is "steps", but this quantizer has none.')
        error = spectral.mdct(error, steps.shape[-1]) / steps
        num_frames = spectral.num_mdct_frames(lengths, steps.shape[-1])
        mask = layers.length_mask(num_frames, error.shape[1])
        return jnp.sum(mask * jnp.mean(error**2, axis=-1), axis=1) / jnp.maximum(num_frames, 1)
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
    """Mean disturbance of loudness in 49 bands of about half a bark, audio (B, S) to (B,) in the units of PESQ's scale.

    The disturbances of ITU-T P.862 (sections 10.2.5 to 10.2.11), differentiable as in Martin-Donas et al. 2018: loudness
    densities by Zwicker's law, what is masked (a quarter of the fainter) taken off, the root mean square over bands, and
    beside it what was added, weighted by how much it adds. No alignment, no compensation of filters or gain. Each clip is
    heard at 79 dB SPL; the threshold in quiet is that of Terhardt 1979.
    """
    powers = [_bark_power(x) for x in (reference, decoded)]
    mask, count = _loudness_frames(lengths, powers[0].shape[1])
    scale = _listening_level(powers[0], mask, count)
    target_power, actual_power = (scale * x for x in powers)
    disturbance, asymmetric = _disturbances(target_power, actual_power)
    values = (0.1 * disturbance + 0.0309 * asymmetric) / _emphasis(target_power)
    return jnp.sum(mask * values, axis=1) / count


def pesq_loss(reference: jax.Array, decoded: jax.Array, lengths: jax.Array) -> jax.Array:
    """What PESQ takes off its 4.5 points, audio (B, S) to (B,).

    The disturbances of `loudness_loss` with the rest of ITU-T P.862, section 10.2: both clips are heard at 79 dB SPL, what
    is a filter over the whole clip and what is a gain of the moment is compensated in part, and means over time are
    those of 6th powers over 20 frames, then of squares. It forgives a dull sound, as PESQ does: `loudness_loss` does not.
    """
    powers = [_bark_power(x) for x in (reference, decoded)]
    mask, count = _loudness_frames(lengths, powers[0].shape[1])
    target_power, actual_power = (_listening_level(x, mask, count) * x for x in powers)
    target_power *= _filter_between(target_power, actual_power, mask)
    actual_power *= _gain_between(target_power, actual_power)
    width = float(_bark(TOP_HZ)) / LOUDNESS_BANDS  # bark; P.862 adds up disturbances over bark, not over bands
    scales = width * LOUDNESS_BANDS**0.5, width
    found = zip(scales, _disturbances(target_power, actual_power), strict=True)
    emphasis = _emphasis(target_power)
    symmetric, asymmetric = (_mean_over_time(jnp.minimum(scale * x / emphasis, 45), mask) for scale, x in found)
    return 0.1 * symmetric + 0.0309 * asymmetric


def _loudness_frames(lengths, num_frames):
    """Which of the frames exist, (B, T), and how many, (B,), at least one."""
    numbers = spectral.num_mdct_frames(lengths, LOUDNESS_HOP)
    return layers.length_mask(numbers, num_frames), jnp.maximum(numbers, 1)


def _listening_level(power, mask, count):
    """What brings the mean power of a clip to 79 dB SPL, (B, 1, 1)."""
    level = jnp.sum(mask[..., None] * power, axis=(1, 2)) / count
    return (10**7.9 / (level + SILENCE_POWER * LOUDNESS_FFT))[:, None, None]


def _disturbances(target_power, actual_power):
    """Of each frame, powers (B, T, 49) to two of (B, T): the root of the sum of squares, and the sum of what was added."""
    target, actual = _loudness(target_power), _loudness(actual_power)
    masked = jnp.maximum(jnp.abs(actual - target) - jnp.minimum(actual, target) / 4, 0)
    added = ((actual_power + 50) / (target_power + 50)) ** 1.2
    added = jnp.where(added < 3, 0, jnp.minimum(added, 12))
    return jnp.sqrt(jnp.sum(masked**2, axis=-1) + 1e-6), jnp.sum(masked * lax.stop_gradient(added), axis=-1)


def _emphasis(power):
    """What disturbances are divided by, (B, T): those in soft frames weigh more."""
    return (jnp.sum(power, axis=-1) / 1e7 + 1e-2) ** 0.04


def _filter_between(target_power, actual_power, mask):
    """The ratio of mean powers in each band, (B, 1, 49), of what is 20 dB above the threshold in frames of speech."""
    target, actual = (jnp.where(x > 100 * _quiet(), x, 0) for x in (target_power, actual_power))
    speech = mask & (jnp.sum(target, axis=-1) > 1e7)
    count = jnp.maximum(jnp.sum(speech, axis=1), 1)[:, None]
    target, actual = (jnp.sum(speech[..., None] * x, axis=1) / count for x in (target, actual))
    return jnp.clip((actual + 1e3) / (target + 1e3), 0.01, 100)[:, None]


def _gain_between(target_power, actual_power):
    """The ratio of audible powers of each frame, (B, T, 1), a fifth of it that of the frame before."""
    target, actual = (jnp.sum(jnp.where(x > _quiet(), x, 0), axis=-1) for x in (target_power, actual_power))
    ratio = (target + 5e3) / (actual + 5e3)

    def smoothed(before, now):
        now = 0.2 * before + 0.8 * now
        return now, now

    _, gains = lax.scan(smoothed, ratio[:, 0], ratio.T)
    return jnp.clip(gains.T, 3e-4, 5)[..., None]


def _mean_over_time(values, mask):
    """(B, T) to (B,): means of 6th powers over 20 frames, every 10, and the root of the mean of their squares."""
    tail = 10 + -values.shape[1] % 10
    values, exist = (jnp.pad(x, ((0, 0), (0, tail))).reshape(len(x), -1, 10) for x in (mask * values, mask))
    sums, counts = jnp.sum(values**6, axis=-1), jnp.sum(exist, axis=-1)
    sums, counts = (x[:, :-1] + x[:, 1:] for x in (sums, counts))
    means = ((sums + 1e-9) / jnp.maximum(counts, 20)) ** (1 / 6)  # the root of nothing has no gradient
    exist = counts > 0
    return jnp.sqrt(jnp.sum(exist * means**2, axis=1) / jnp.maximum(jnp.sum(exist, axis=1), 1))


def _bark_power(audio):
    """Power in bands of equal width in bark (Zwicker and Terhardt 1980), (B, S) to (B, T, 49)."""
    power = spectral.stft_magnitude(audio, LOUDNESS_FFT, LOUDNESS_HOP) ** 2
    hertz = TOP_HZ * np.linspace(0, 1, power.shape[-1])
    bark = _bark(hertz) / _bark(TOP_HZ) * LOUDNESS_BANDS
    # Half a band wide at least: below 500 Hz a band is narrower than the distance of two frequencies.
    distance = np.abs(bark[:, None] - (np.arange(LOUDNESS_BANDS) + 0.5))
    member = np.maximum(1 - distance, 0)
    member = member / np.maximum(member.sum(1, keepdims=True), 1e-9)
    return jnp.matmul(power, member.astype(np.float32), precision=lax.Precision.HIGHEST)


def _loudness(power):
    """Zwicker's law, with powers relative to 0 dB SPL."""
    quiet = _quiet()
    loudness = 0.187 * (quiet / 0.5) ** 0.23 * ((0.5 + 0.5 * power / quiet) ** 0.23 - 1)
    return jnp.maximum(loudness, 0)  # below the threshold nothing is heard


def _quiet():
    """Power at the threshold in quiet in each band, (1, 1, 49)."""
    centers = np.interp((np.arange(LOUDNESS_BANDS) + 0.5) / LOUDNESS_BANDS, _bark(_GRID) / _bark(TOP_HZ), _GRID) / 1000
    threshold = 3.64 * centers**-0.8 - 6.5 * np.exp(-0.6 * (centers - 3.3) ** 2) + 1e-3 * centers**4
    return (10 ** (threshold / 10)).astype(np.float32)[None, None]


def _bark(hertz):
    return 13 * np.arctan(0.00076 * hertz) + 3.5 * np.arctan((hertz / 7500) ** 2)


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
