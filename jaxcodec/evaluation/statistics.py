"""Rows of scores averaged, with intervals."""

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxcodec.evaluation import measures
from jaxcodec.nn import metrics

_RESAMPLES = 2000


def summarize(rows: Iterable[dict], by: Sequence[str] = ("codebooks",), seed: int = 0) -> list[dict]:
    """A row for each combination of values of the keys `by`, in the order they appear.

    Its keys: those of `by`; `clips`, `seconds`, and `kbps` over all of them; every measure's mean over the clips that have
    it; `values`, how many these are; `intervals`, a 95 % percentile bootstrap of that mean over clips (Efron and Tibshirani
    1993, chapter 13), [low, high]; and `pooled_snr`, all signal energy over all error energy in dB. None where there is no
    value, and for the interval of fewer than two.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    return [dict(zip(by, group, strict=True)) | _summary(members, seed) for group, members in groups.items()]


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> list[float] | None:
    """95 % interval of the mean of `values`, from resamples of them; None of fewer than two."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = np.asarray(values)[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def codebook_usage(code_counts: np.ndarray) -> list[dict]:
    """Of counts (Q, K), a row a codebook: the share of its centroids that were used, and their perplexity."""
    perplexity = np.asarray(metrics.perplexity(jnp.asarray(code_counts)))
    return [
        dict(codebook=q + 1, usage=float(np.mean(counts > 0)), perplexity=float(perplexity[q]))
        for q, counts in enumerate(code_counts)
    ]


def _summary(rows, seed):
    seconds = sum(row["seconds"] for row in rows)
    present = {key: [row[key] for row in rows if row.get(key) is not None] for key in measures.MEASURES}
    signal, error = (sum(row[key] for row in rows) for key in ("signal_energy", "error_energy"))
    return dict(
        clips=len(rows),
        seconds=seconds,
        kbps=8e-3 * sum(row["bytes"] for row in rows) / seconds,
        pooled_snr=10 * math.log10(signal / error) if signal and error else None,
        **{key: float(np.mean(values)) if values else None for key, values in present.items()},
        intervals={key: bootstrap_interval(values, seed) for key, values in present.items()},
        values={key: len(values) for key, values in present.items()},
    )
