"""A trained codec scored at several rates, and pairs of clips scored by several processes."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcodec import inference, quantizers, workers
from jaxcodec.evaluation import measures as measuring
from jaxcodec.inference import files

KBPS = (2.0, 5.0, 8.0, 12.0, 24.0)  # that evaluation looks at where a codec can have any


class AtKbps(NamedTuple):
    """In place of a rate: that of each clip's finest file of at most `kbps`."""

    kbps: float
    rate: Any = None  # of the codec, where the search begins, and of which it keeps all but the first number


def evaluate(
    codec: inference.TrainedCodec,
    clips: Iterable[tuple[str, np.ndarray]],
    rates: Sequence,
    processes: int = 1,
    code_counts: np.ndarray | None = None,
    failures: list[str] | None = None,
) -> Iterator[dict]:
    """Rows for every name and clip (S,) of `clips` and every rate, in that order, through real bytes and back.

    A row has `clip`, the `columns` of the rate, `seconds`, `bytes`, and what `score` gives; the rate may be an `AtKbps`, and
    the row then has those of the rate that was found too. `processes` share the slow measures. `code_counts` (Q, K), if
    given, is added how often each centroid was used at the last rate. A clip that cannot be had at an `AtKbps` has no row
    for it; what is wrong is added to `failures`.

    Raises:
      ValueError: such a clip, where no `failures` are given.
    """
    trips, scored = itertools.tee(_round_trips(codec, clips, rates, code_counts, failures))
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


def columns(codec: inference.TrainedCodec, rate) -> dict:
    """A rate, or an `AtKbps`, as columns of tables: by the names of the knobs, `kbps_asked` in place of the first."""
    if isinstance(rate, AtKbps):
        return {"kbps_asked": rate.kbps} | dict(list(columns(codec, codec.check_rate(rate.rate)).items())[1:])
    knobs = quantizers.kind_of(codec.config.model).knobs
    return {knob.name: value for knob, value in zip(knobs, rate if len(knobs) > 1 else (rate,), strict=True)}


def _round_trips(codec, clips, rates, code_counts, failures):
    """What is known of each clip at each rate before it is measured, the clip, and what comes back of it."""
    for name, clip in clips:
        whole = None  # its codes at the best rate
        for rate in rates:
            row = {"clip": name} | columns(codec, rate)
            if isinstance(rate, AtKbps):
                try:
                    found, decoded, num_bytes = at_kbps(codec, clip, rate)
                except ValueError as error:
                    if failures is None:
                        raise ValueError(f"{name}: {error}") from None
                    failures.append(f"{name}: {error}")
                    continue
                row |= columns(codec, found)
            else:
                codes = np.asarray(inference.encode(codec, clip, rate))
                whole = codes if len(codes) == codec.num_codebooks else whole
                decoded, num_bytes = files.round_trip(codec, codes, len(clip))
            yield row | {"seconds": len(clip) / codec.sample_rate, "bytes": num_bytes}, clip, decoded
        if code_counts is not None:
            whole = np.asarray(inference.encode(codec, clip)) if whole is None else whole
            code_counts += np.stack([np.bincount(row, minlength=codec.codebook_size) for row in whole])


def at_kbps(codec: inference.TrainedCodec, clip: np.ndarray, target: AtKbps) -> tuple[Any, np.ndarray, int]:
    """The rate of a clip's finest file of at most `target.kbps`, what comes out of that file, and its bytes."""
    rate, data = files.search(codec, clip, target.kbps, target.rate)
    return rate, files.decompress(codec, data).clip(-1.0, 1.0), len(data)
