"""A trained codec measured on recordings: through real bytes and back, at several rates.

One row a clip and number of codebooks, a dict: `clip`, `codebooks`, `seconds`, `bytes`, and every measure of `MEASURES`,
higher is better, None where a clip is too short or too silent to have it.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodec import audio, compress, inference, metrics

_WIDEBAND = 16000  # Hz, the rate PESQ-WB is defined at
_PESQ_SECONDS = 20  # the standard is for some 8 to 30 s, and its C code overruns its tables on long recordings


class Measure(NamedTuple):
    """A measure of decoded speech."""

    title: str
    function: Callable  # reference (S,), decoded (S,), sample_rate -> value or None
    package: str | None = None  # what it needs beside the requirements


def evaluate(
    codec: inference.TrainedCodec, clips: Iterable[tuple[str, np.ndarray]], num_codebooks: Sequence[int]
) -> Iterator[dict]:
    """Rows for every name and clip (S,) of `clips` and every number of codebooks, in that order."""
    measures = installed()
    for name, clip in clips:
        codes = np.asarray(inference.encode(codec, clip))
        for count in num_codebooks:
            data = compress.pack(codec, codes[:count], len(clip))
            unpacked = compress.unpack(codec, data)
            decoded = np.asarray(inference.decode(codec, unpacked.codes, unpacked.num_samples)).clip(-1.0, 1.0)
            row = dict(clip=name, codebooks=count, seconds=len(clip) / codec.sample_rate, bytes=len(data))
            yield row | {
                key: measure.function(clip, decoded, codec.sample_rate) if key in measures and clip.any() else None
                for key, measure in MEASURES.items()
            }


def average(rows: Iterable[dict]) -> list[dict]:
    """A row for each number of codebooks: the rate in kbit/s over all clips, the mean over clips of each measure.

    `values` says how many clips had each measure; a measure that none had is None.
    """
    by_codebooks: dict[int, list[dict]] = {}
    for row in rows:
        by_codebooks.setdefault(row["codebooks"], []).append(row)
    averages = []
    for count, group in by_codebooks.items():
        seconds = sum(row["seconds"] for row in group)
        present = {key: [row[key] for row in group if row[key] is not None] for key in MEASURES}
        averages.append(
            dict(
                codebooks=count,
                clips=len(group),
                seconds=seconds,
                kbps=8e-3 * sum(row["bytes"] for row in group) / seconds,
                **{key: float(np.mean(values)) if values else None for key, values in present.items()},
                values={key: len(values) for key, values in present.items()},
            )
        )
    return averages


def installed() -> dict[str, Measure]:
    """The measures whose packages are here."""
    return {k: m for k, m in MEASURES.items() if m.package is None or importlib.util.find_spec(m.package)}


def format_table(averages: Sequence[dict]) -> str:
    """The averages as aligned text; a dash where there is no value."""
    measures = installed()
    titles = ["codebooks", "kbit/s", *(measure.title for measure in measures.values())]
    lines = [titles]
    for row in averages:
        values = [row["kbps"], *(row[key] for key in measures)]
        lines.append([str(row["codebooks"]), *("-" if value is None else f"{value:.2f}" for value in values)])
    return "\n".join(
        "  ".join(cell.rjust(len(title)) for cell, title in zip(line, titles, strict=True)) for line in lines
    )


def pesq_wb(reference, decoded, sample_rate):
    """PESQ, wide band (ITU-T P.862.2), 1 to 4.64; of longer clips the mean over equal parts of at most 20 s."""
    import pesq

    reference, decoded = (audio.resample(x, sample_rate, _WIDEBAND) for x in (reference, decoded))
    num_parts = -(-len(reference) // (_PESQ_SECONDS * _WIDEBAND))
    values = []
    for x, y in zip(np.array_split(reference, num_parts), np.array_split(decoded, num_parts), strict=True):
        try:
            values.append(float(pesq.pesq(_WIDEBAND, x, y, "wb")))
        except (pesq.PesqError, ValueError):  # no speech, or under a quarter of a second of it
            continue
    return float(np.mean(values)) if values else None


def estoi(reference, decoded, sample_rate):
    """Extended short-time objective intelligibility (Jensen and Taal 2016), up to 1."""
    import pystoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, decoded, sample_rate, extended=True))
        except RuntimeWarning:  # fewer than the 30 frames, 0.4 s of speech, that one value needs
            return None


def _of_padded(function, reference, decoded, sample_rate):
    """A measure of `metrics` for one clip, padded to a power of two: few lengths are compiled."""
    del sample_rate
    padding = (0, (1 << (len(reference) - 1).bit_length()) - len(reference))
    padded = (jnp.asarray(np.pad(x, padding))[None] for x in (reference, decoded))
    return float(_compiled(function, *padded, jnp.array([len(reference)]))[0])


@functools.partial(jax.jit, static_argnums=0)
def _compiled(function, reference, decoded, lengths):
    return function(reference, decoded, lengths)


MEASURES = {
    "snr": Measure("SNR", functools.partial(_of_padded, metrics.snr)),
    "segmental_snr": Measure("segSNR", functools.partial(_of_padded, metrics.segmental_snr)),
    "si_sdr": Measure("SI-SDR", functools.partial(_of_padded, metrics.si_sdr)),
    "pesq_wb": Measure("PESQ-WB", pesq_wb, "pesq"),
    "estoi": Measure("ESTOI", estoi, "pystoi"),
}
