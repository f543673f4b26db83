"""Codebooks of a residual quantizer fitted together: each to what all others leave, not to what entered it.

In training a codebook is the mean of the residuals that reach it (`rvq`), whatever follows. What is decoded is the sum of
all, and to find the sum with the least squared error for given codes is a linear problem (direct sum codebooks, Barnes and
Frost 1993).
Codes by a search of several beams gain the most: they choose sums, not nearest entries.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax


def refit(
    centroids: jax.Array,
    vectors: jax.Array,
    weights: jax.Array,
    codes: Mapping[int, jax.Array],
    memory: jax.Array | float = 0.0,
    sweeps: int = 2,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Codebooks nearer to vectors for their codes, and the mean squared errors before.

    Codebook after codebook becomes the weighted mean of what the others leave of the vectors (Gauss-Seidel). Numbers of
    codebooks count by the reciprocal of their error, so that a per cent less is worth the same of each.

    Args:
      centroids: (Q, K, D).
      vectors: (N, D), what the codebooks add up to.
      weights: (N,) of the vectors, 0 for those that do not exist.
      codes: for each number of codebooks n that the result is to be good for, (n, N) in the first n.
      memory: how many batches like this one the present centroids stand for; in a mean over batches t + some at batch t.
        With 0 an entry that no vector chose stays where it was.
      sweeps: how often all codebooks are gone through.

    Returns:
      The centroids (Q, K, D), and for each n the mean over vectors of the squared error that the centroids given leave.
    """
    size, count = centroids.shape[1], jnp.maximum(jnp.sum(weights), 1e-30)
    books = list(jnp.asarray(centroids))
    left = {n: vectors - sum(books[j][rows[j]] for j in range(n)) for n, rows in codes.items()}
    errors = {n: jnp.sum(weights[:, None] * rest**2) / count for n, rest in left.items()}
    shares = {n: weights / jnp.maximum(error, 1e-30) for n, error in errors.items()}

    def sweep(_, carry):
        books, left = list(carry[0]), dict(carry[1])
        for number, old in enumerate(books):
            chosen = {n: rows[number] for n, rows in codes.items() if number < n}
            # Over as many vectors an entry as there are: the present one counts as `memory` batches of average use.
            kept = memory * sum((jnp.sum(shares[n]) for n in chosen), start=jnp.zeros(())) / size
            total, mass = kept * old, jnp.full(size, kept)
            for n, rows in chosen.items():
                left[n] += old[rows]
                total += jax.ops.segment_sum(shares[n][:, None] * left[n], rows, size)
                mass += jax.ops.segment_sum(shares[n], rows, size)
            books[number] = jnp.where(mass[:, None] > 0, total / jnp.maximum(mass, 1e-30)[:, None], old)
            for n, rows in chosen.items():
                left[n] -= books[number][rows]
        return books, left

    books, _ = lax.fori_loop(0, sweeps, sweep, (books, left))
    return jnp.stack(books), errors
