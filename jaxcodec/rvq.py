"""Residual vector quantization with codebooks learned by exponential moving averages.

Pure functions over a `Codebooks` pytree; the flax module that owns one lives in `codec`. Sources: residual vector
quantization as in SoundStream (Zeghidour et al. 2021, algorithm 1); EMA codebooks as in VQ-VAE (van den Oord et al. 2017,
appendix A.1); revival of unused entries as in Jukebox (Dhariwal et al. 2020).
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax


class Codebooks(flax.struct.PyTreeNode):
    """Q codebooks of K centroids and the running averages they are made of."""

    centroids: jax.Array  # (Q, K, D)
    counts: jax.Array  # (Q, K) average number of frames a step assigns to each centroid
    sums: jax.Array  # (Q, K, D) average sum of the residuals assigned


class Statistics(flax.struct.PyTreeNode):
    """What one batch tells the codebooks. `counts` and `sums` add up over devices, `candidates` are merged by priority."""

    counts: jax.Array  # (Q, K)
    sums: jax.Array  # (Q, K, D)
    candidates: jax.Array  # (Q, M, D) residuals of M frames drawn at random: seeds for unused centroids
    priorities: jax.Array  # (M,) the random numbers that drew them, descending; -1 where the batch had too few frames


class Quantized(flax.struct.PyTreeNode):
    """Latents after residual vector quantization."""

    codes: jax.Array  # (B, Q, T) int32
    stages: jax.Array  # (Q, B, T, D) the centroid each codebook chose; their sum is the quantized latent
    residuals: jax.Array  # (Q, B, T, D) what entered each codebook


def init_codebooks(rng, num_codebooks: int, codebook_size: int, dim: int, scale: float = 0.01) -> Codebooks:
    """Centroids as normal noise times `scale`; counts of zero, so that the first update already follows the data."""
    centroids = scale * jax.random.normal(rng, (num_codebooks, codebook_size, dim))
    return Codebooks(centroids, jnp.zeros(centroids.shape[:2]), jnp.zeros_like(centroids))


def nearest(vectors: jax.Array, centroids: jax.Array) -> jax.Array:
    """Index of the closest centroid, vectors (..., D) and centroids (K, D) to (...) int32.

    Float32 at the highest matmul precision: with bfloat16 products about one code in 200 is not the nearest.
    """
    products = jnp.matmul(vectors, centroids.T, precision=lax.Precision.HIGHEST)
    half_norms = 0.5 * jnp.sum(centroids**2, axis=-1).reshape((1,) * (vectors.ndim - 1) + (-1,))
    return jnp.argmax(products - half_norms, axis=-1).astype(jnp.int32)


def quantize(latents: jax.Array, centroids: jax.Array) -> Quantized:
    """Latents (B, T, D) through every codebook of centroids (Q, K, D) in turn, each seeing the residual of the last."""

    def stage(residual, codebook):
        codes = nearest(residual, codebook)
        chosen = codebook[codes]
        return residual - chosen, (codes, chosen, residual)

    _, (codes, stages, residuals) = lax.scan(stage, latents.astype(jnp.float32), centroids)
    return Quantized(jnp.moveaxis(codes, 0, 1), stages, residuals)


def dequantize(codes: jax.Array, centroids: jax.Array) -> jax.Array:
    """Codes (B, Q', T) of the first Q' <= Q codebooks to quantized latents (B, T, D)."""
    num_codebooks = codes.shape[1]
    if num_codebooks > centroids.shape[0]:
        raise ValueError(f"codes hold {num_codebooks} codebooks, the quantizer has {centroids.shape[0]}.")
    chosen = jax.vmap(lambda codebook, code: codebook[code], in_axes=(0, 1))(centroids[:num_codebooks], codes)
    return _sum_stages(chosen)


def keep_codebooks(stages: jax.Array, num_codebooks: jax.Array) -> jax.Array:
    """Quantized latents (B, T, D) from `stages` (Q, B, T, D), clip b using its first num_codebooks[b] codebooks only."""
    used = jnp.arange(stages.shape[0])[:, None] < num_codebooks[None]
    return _sum_stages(stages * used[:, :, None, None])


def _sum_stages(stages):
    """Sum over the leading axis in order, so that decoding codes repeats encoding's additions exactly."""
    return lax.scan(lambda total, stage: (total + stage, None), jnp.zeros_like(stages[0]), stages)[0]


def commitment(latents: jax.Array, quantized: Quantized) -> jax.Array:
    """Squared distance of what entered each codebook to the centroid it chose, (Q, B, T), gradient to the latents only.

    The VQ-VAE commitment term (van den Oord et al. 2017, equation 3) at every stage, before the mean: the earlier stages'
    centroids and the chosen one are constants, so each stage pulls the latents towards its own reconstruction.
    """
    constant = lax.stop_gradient(quantized.residuals - quantized.stages - latents[None])
    return jnp.sum((latents[None] + constant) ** 2, axis=-1)


def statistics(
    quantized: Quantized,
    frame_mask: jax.Array,
    priorities: jax.Array,
    *,
    codebook_size: int,
    num_candidates: int,
    track_output: bool = False,
) -> Statistics:
    """EMA statistics of one batch; frames where frame_mask (B, T) is false do not exist.

    The sums are those of the *residual that entered* each codebook: the average of a codebook's own output can never move
    it (`track_output=True` makes that mistake on purpose, to study it). `priorities` (B, T) are random numbers in [0, 1);
    the frames with the `num_candidates` highest are the candidates, so the draw does not depend on how a batch is spread
    over devices.
    """
    weights = frame_mask.reshape(-1).astype(jnp.float32)
    tracked = quantized.stages if track_output else quantized.residuals
    dim = tracked.shape[-1]

    def stage(carry, inputs):
        codes, vectors = inputs
        counts = jax.ops.segment_sum(weights, codes.reshape(-1), codebook_size)
        sums = jax.ops.segment_sum(vectors.reshape(-1, dim) * weights[:, None], codes.reshape(-1), codebook_size)
        return carry, (counts, sums)

    _, (counts, sums) = lax.scan(stage, None, (jnp.moveaxis(quantized.codes, 1, 0), tracked))
    drawn, frames = lax.top_k(jnp.where(frame_mask, priorities, -1.0).reshape(-1), min(num_candidates, frame_mask.size))
    candidates = quantized.residuals.reshape(-1, frame_mask.size, dim)[:, frames]
    missing = num_candidates - drawn.size
    return Statistics(
        counts,
        sums,
        jnp.pad(candidates, ((0, 0), (0, missing), (0, 0))),
        jnp.pad(drawn, (0, missing), constant_values=-1.0),
    )


def merge_statistics(local: Statistics, axis_name: str | None) -> Statistics:
    """Statistics of the global batch: counts and sums added, candidates re-drawn by priority over all devices."""
    if axis_name is None:
        return local
    candidates = lax.all_gather(local.candidates, axis_name, axis=1, tiled=True)
    priorities, order = lax.top_k(lax.all_gather(local.priorities, axis_name, tiled=True), local.priorities.size)
    return Statistics(
        lax.psum(local.counts, axis_name), lax.psum(local.sums, axis_name), candidates[:, order], priorities
    )


def update_codebooks(
    codebooks: Codebooks, batch: Statistics, *, decay: float, revive_below: float, epsilon: float = 1e-5
) -> Codebooks:
    """One EMA step from the statistics of the global batch.

    centroid = average sum / average count, with Laplace smoothing of the counts. An entry whose count falls below
    `revive_below` times uniform usage is re-seeded with a candidate and given the count and the sum of a centroid in
    average use, or the next update would undo the revival.
    """
    counts = decay * codebooks.counts + (1 - decay) * batch.counts
    sums = decay * codebooks.sums + (1 - decay) * batch.sums
    size = counts.shape[-1]
    total = jnp.sum(counts, axis=-1, keepdims=True)
    smoothed = (counts + epsilon) / (total + size * epsilon) * total
    # An entry that no frame ever chose has no average to follow: its initial centroid stands.
    centroids = jnp.where(counts[..., None] > 0, sums / jnp.maximum(smoothed, epsilon)[..., None], codebooks.centroids)

    dead = counts < revive_below * total / size
    rank = jnp.cumsum(dead, axis=-1) - 1
    revived = dead & (rank < jnp.sum(batch.priorities >= 0))
    seeds = jnp.take_along_axis(batch.candidates, jnp.clip(rank, 0, batch.priorities.size - 1)[..., None], axis=1)
    counts = jnp.where(revived, total / size, counts)
    centroids = jnp.where(revived[..., None], seeds, centroids)
    sums = jnp.where(revived[..., None], seeds * counts[..., None], sums)
    return Codebooks(centroids, counts, sums)


def kmeans_codebooks(
    rng, vectors: jax.Array, num_codebooks: int, codebook_size: int, iterations: int = 10
) -> Codebooks:
    """Codebooks by k-means on the latents `vectors` (N, D), one after the other on the residual; N >= codebook_size."""
    if vectors.shape[0] < codebook_size:
        raise ValueError(
            f"k-means needs at least codebook_size = {codebook_size} frames, got {vectors.shape[0]}: "
            "use a larger batch_size or a smaller codebook_size."
        )
    ones = jnp.ones(vectors.shape[0])

    def lloyd(centroids, residual):
        codes = nearest(residual, centroids)
        counts = jax.ops.segment_sum(ones, codes, codebook_size)
        means = jax.ops.segment_sum(residual, codes, codebook_size) / jnp.maximum(counts, 1)[:, None]
        return jnp.where(counts[:, None] > 0, means, centroids), counts

    def stage(residual, rng):
        first = residual[jax.random.choice(rng, residual.shape[0], (codebook_size,), replace=False)]
        centroids, counts = lax.scan(lambda c, _: lloyd(c, residual), first, length=iterations)
        return residual - centroids[nearest(residual, centroids)], (centroids, counts[-1])

    _, (centroids, counts) = lax.scan(stage, vectors, jax.random.split(rng, num_codebooks))
    counts = jnp.maximum(counts, 1.0)
    return Codebooks(centroids, counts, centroids * counts[..., None])
