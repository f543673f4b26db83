"""A trained codec scored at several rates, and pairs of clips scored by several processes."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from jaxcodec import inference, workers
from jaxcodec.evaluation import measures as measuring
from jaxcodec.inference import files


def evaluate(
    codec: inference.TrainedCodec,
    clips: Iterable[tuple[str, np.ndarray]],
    rates: Sequence,
    processes: int = 1,
    code_counts: np.ndarray | None = None,
) -> Iterator[dict]:
    """Rows for every name and clip (S,) of `clips` and every rate, in that order, through real bytes and back.

    A row has `clip`, the rate by the name of the codec's knob, `seconds`, `bytes`, and what `score` gives. `processes` share
    the slow measures. `code_counts` (Q, K), if given, is added how often each centroid was used at the last rate.
    """
    trips, scored = itertools.tee(_round_trips(codec, clips, rates, code_counts))
    scores = score_pairs(((clip, decoded) for _, clip, decoded in scored), codec.sample_rate, processes)
    for values, (row, _, _) in zip(scores, trips, strict=True):
        yield row | values


def score_pairs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    sample_rate: int,
    processes: int = 1,
    measures: Iterable[str] | None = None,
) -> Iterator[dict[str, float | None]]:
    """`score` of every (reference, decoded), in order; with several `processes` they share the slow measures.

    The pairs are taken as they are needed, a few ahead of the scores. A script that asks for processes needs the usual
    `if __name__ == "__main__":` around its work.
    """
    keys = measuring.check_measures(measures)
    if processes == 1:
        for reference, decoded in pairs:
            yield measuring.score(reference, decoded, sample_rate, keys)
        return
    slow = [key for key in keys if measuring.MEASURES[key].package]
    quick = [key for key in keys if key not in slow]
    here, there = itertools.tee(itertools.starmap(measuring.check_pair, pairs))
    measure = functools.partial(measuring.values_of, slow, sample_rate)
    # ViSQOL's threads: the other cores have clips of their own.
    with workers.pool(processes, {"NUMBA_NUM_THREADS": "1"}, _leave_accelerators) as pool:
        slow_values = workers.map_ahead(pool, measure, there, 4 * processes)
        for values, (reference, decoded) in zip(slow_values, here, strict=True):
            values |= measuring.score(reference, decoded, sample_rate, quick)
            yield {key: values[key] for key in (*measuring.ENERGIES, *keys)}


def _leave_accelerators():
    jax.config.update("jax_platforms", "cpu")  # they belong to the codec


def _round_trips(codec, clips, rates, code_counts):
    """What is known of each clip at each rate before it is measured, the clip, and what comes back of it."""
    for name, clip in clips:
        codes = None
        for rate in rates:
            if codes is None or not codec.knob.nested:
                codes = np.asarray(inference.encode(codec, clip, None if codec.knob.nested else rate))
            decoded, num_bytes = files.round_trip(codec, codes[: codec.module.quantizer.num_rows(rate)], len(clip))
            row = {"clip": name, codec.knob.name: rate, "seconds": len(clip) / codec.sample_rate, "bytes": num_bytes}
            yield row, clip, decoded
        if code_counts is not None:
            code_counts += np.stack([np.bincount(row, minlength=codec.codebook_size) for row in codes])
