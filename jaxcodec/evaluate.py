"""Decoded speech measured against the recording it comes from: a trained codec at several rates, or any other system.

`evaluate` sends clips through real bytes and back and yields a row, a dict, for every clip and number of codebooks:
`clip`, `codebooks`, `seconds`, `bytes` and what `score` gives. `summarize` averages rows, with intervals.
"""

import collections
import concurrent.futures
import contextlib
import functools
import importlib.util
import logging
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodec import audio, compress, inference, metrics

_WIDEBAND = 16000  # Hz, the rate PESQ-WB, ViSQOL's speech mode and DNSMOS are defined at
_PART_SECONDS = 20  # PESQ is for some 8 to 30 s, and its C code overruns its tables on long recordings
_DELAY_SECONDS = 0.05
_MEL_BANDS = 80
_RESAMPLES = 2000
_SHORTEST_PADDED = 2**14  # samples


class Measure(NamedTuple):
    """A measure of decoded speech."""

    title: str
    function: Callable[..., float | None]  # reference (S,), decoded (S,), sample_rate -> value or None
    package: str | None = None  # what it needs beside the requirements
    unit: str = ""
    needs: tuple[str, ...] = ()  # what the package itself needs and may come without


def evaluate(
    codec: inference.TrainedCodec,
    clips: Iterable[tuple[str, np.ndarray]],
    num_codebooks: Sequence[int],
    processes: int = 1,
    code_counts: np.ndarray | None = None,
) -> Iterator[dict]:
    """Rows for every name and clip (S,) of `clips` and every number of codebooks, in that order.

    `processes` workers share the slow measures. `code_counts` (Q, K), if given, is added how often each centroid was used.
    """
    pending: collections.deque[dict] = collections.deque()

    def pairs():
        for row, clip, decoded in _round_trips(codec, clips, num_codebooks, code_counts):
            pending.append(row)
            yield clip, decoded

    for scores in score_pairs(pairs(), codec.sample_rate, processes):
        yield pending.popleft() | scores


def score(reference, decoded, sample_rate: int, measures: Iterable[str] | None = None) -> dict[str, float | None]:
    """The measures (all of `MEASURES` by default) of one pair of clips (S,), and what pooled SNR is made of.

    A value is None where the measure's package is not installed, and where the clip is too short or too silent to have one.
    `signal_energy` and `error_energy` are sums of squares.

    Raises:
      ValueError: clips of different shapes, samples that are not finite, a measure that does not exist.
    """
    reference, decoded = _check_pair(reference, decoded)
    keys = _check_measures(measures)
    return _energies(reference, decoded) | _values(keys, reference, decoded, sample_rate)


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
    keys = _check_measures(measures)
    if processes == 1:
        for reference, decoded in pairs:
            yield score(reference, decoded, sample_rate, keys)
        return
    slow = [key for key in keys if MEASURES[key].package]
    waiting: collections.deque[tuple[dict, concurrent.futures.Future]] = collections.deque()

    def finish():
        quick, rest = waiting.popleft()
        values = quick | rest.result()
        return {key: values[key] for key in (*_ENERGIES, *keys)}

    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        for reference, decoded in pairs:
            reference, decoded = _check_pair(reference, decoded)
            rest = pool.submit(_values, slow, reference, decoded, sample_rate)
            quick = [key for key in keys if key not in slow]
            waiting.append((score(reference, decoded, sample_rate, quick), rest))
            if len(waiting) > 4 * processes:
                yield finish()
        while waiting:
            yield finish()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError("a process that measured died, for want of memory perhaps: try fewer processes.") from None
    finally:
        pool.shutdown(cancel_futures=True)


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
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def codebook_usage(code_counts: np.ndarray) -> list[dict]:
    """Of counts (Q, K), a row a codebook: the share of its centroids that were used, and their perplexity."""
    perplexity = np.asarray(metrics.perplexity(jnp.asarray(code_counts)))
    return [
        dict(codebook=q + 1, usage=float(np.mean(counts > 0)), perplexity=float(perplexity[q]))
        for q, counts in enumerate(code_counts)
    ]


def format_table(summaries: Sequence[dict], by: Sequence[str] = ("codebooks",)) -> str:
    """Summaries as aligned text, a column each: means and half the width of their intervals, a dash for no value."""
    measures = installed()
    lines = [[name, *(str(row[name]) for row in summaries)] for name in by]
    lines.append(["kbit/s", *(f"{row['kbps']:.2f}" for row in summaries)])
    lines.append(["pooled SNR (dB)", *(_format_mean(row["pooled_snr"], None) for row in summaries)])
    for key, measure in measures.items():
        lines.append([_title(measure), *(_format_mean(row[key], row["intervals"][key]) for row in summaries)])
    return _align(lines)


def format_groups(summaries: Sequence[dict], by: Sequence[str]) -> str:
    """Summaries of many groups as aligned text, a line each, with the measures of `MAIN`."""
    shown = {key: measure for key, measure in installed().items() if key in MAIN}
    lines = [[*by, "clips", "kbit/s", *map(_title, shown.values())]]
    for row in summaries:
        means = [_format_mean(row[key], row["intervals"][key]) for key in shown]
        lines.append([*(str(row[name]) or "-" for name in by), str(row["clips"]), f"{row['kbps']:.2f}", *means])
    return _align(lines)


def format_usage(usage: Sequence[dict]) -> str:
    """What `codebook_usage` gives as aligned text, a column a codebook."""
    lines = [
        ["codebook", *(str(row["codebook"]) for row in usage)],
        ["used (%)", *(f"{100 * row['usage']:.1f}" for row in usage)],
        ["perplexity", *(f"{row['perplexity']:.1f}" for row in usage)],
    ]
    return _align(lines)


def installed() -> dict[str, Measure]:
    """The measures whose packages are here."""
    return {
        key: measure
        for key, measure in MEASURES.items()
        if all(importlib.util.find_spec(name) for name in (measure.package, *measure.needs) if name)
    }


def _round_trips(codec, clips, num_codebooks, code_counts):
    """What is known of each clip at each number of codebooks before it is measured, the clip, and what comes back of it."""
    for name, clip in clips:
        codes = np.asarray(inference.encode(codec, clip))
        if code_counts is not None:
            code_counts += np.stack([np.bincount(row, minlength=codec.codebook_size) for row in codes])
        for count in num_codebooks:
            data = compress.pack(codec, codes[:count], len(clip))
            unpacked = compress.unpack(codec, data)
            decoded = np.asarray(inference.decode(codec, unpacked.codes, unpacked.num_samples)).clip(-1.0, 1.0)
            row = dict(clip=name, codebooks=count, seconds=len(clip) / codec.sample_rate, bytes=len(data))
            yield row, clip, decoded


def _summary(rows, seed):
    seconds = sum(row["seconds"] for row in rows)
    present = {key: [row[key] for row in rows if row.get(key) is not None] for key in MEASURES}
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


def _title(measure):
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


def _align(lines):
    """Lines of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _format_mean(mean, interval):
    if mean is None:
        return "-"
    return f"{mean:.2f}" + ("" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}")


def _check_pair(reference, decoded):
    reference, decoded = (np.asarray(x, np.float32) for x in (reference, decoded))
    if reference.ndim != 1 or reference.shape != decoded.shape:
        raise ValueError(f"reference {reference.shape} and decoded {decoded.shape}: expected two clips (S,) alike.")
    for name, clip in (("reference", reference), ("decoded", decoded)):
        if not np.isfinite(clip).all():
            raise ValueError(f"the {name} clip has samples that are not finite: nothing can be said of it.")
    return reference, decoded


def _check_measures(keys):
    keys = list(MEASURES if keys is None else keys)
    if unknown := [key for key in keys if key not in MEASURES]:
        raise ValueError(f"there is no measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}.")
    return keys


def _energies(reference, decoded):
    signals = reference.astype(float), decoded.astype(float) - reference
    return {key: float(np.sum(signal**2)) for key, signal in zip(_ENERGIES, signals, strict=True)}


def _values(keys, reference, decoded, sample_rate):
    """The measures of one pair; silence that was decoded has a level and an error, but no quality."""
    here = installed()
    heard = [x.any() for x in (reference, decoded)]
    able = {key for key in keys if key in here and (all(heard) or (heard[0] and key in _OF_SILENCE))}
    values = {key: here[key].function(reference, decoded, sample_rate) if key in able else None for key in keys}
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a word
    logging.getLogger("absl").setLevel(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")  # an accelerator belongs to the codec
    os.environ["NUMBA_NUM_THREADS"] = "1"  # of ViSQOL: the other cores have clips of their own


def _in_parts(function):
    """The measure as the mean over equal parts of at most 20 s, of those that have a value."""

    @functools.wraps(function)
    def measure(reference, decoded, sample_rate):
        num_parts = -(-len(reference) // (_PART_SECONDS * sample_rate))
        parts = zip(*(np.array_split(x, num_parts) for x in (reference, decoded)), strict=True)
        values = [function(*part, sample_rate) for part in parts if part[0].any()]
        present = [value for value in values if value is not None]
        return float(np.mean(present)) if present else None

    return measure


@_in_parts
def log_spectral_distance(reference, decoded, sample_rate):
    """`metrics.log_spectral_distance` in dB; of longer clips the mean over equal parts of at most 20 s."""
    return _of_padded(metrics.log_spectral_distance, reference, decoded, sample_rate)


@_in_parts
def mel_distance(reference, decoded, sample_rate):
    """`metrics.mel_distance` over librosa's 80 mel bands; of longer clips the mean over equal parts of at most 20 s."""
    return _of_padded(_mel_distance(sample_rate), reference, decoded, sample_rate)


@_in_parts
def pesq_wb(reference, decoded, sample_rate):
    """PESQ, wide band (ITU-T P.862.2), 1 to 4.64; of longer clips the mean over equal parts of at most 20 s."""
    import pesq

    reference, decoded = (audio.resample(x, sample_rate, _WIDEBAND) for x in (reference, decoded))
    try:
        return float(pesq.pesq(_WIDEBAND, reference, decoded, "wb"))
    except (pesq.PesqError, ValueError):  # no speech, or under a quarter of a second of it
        return None


def estoi(reference, decoded, sample_rate):
    """Extended short-time objective intelligibility (Jensen and Taal 2016), up to 1."""
    import pystoi

    if len(reference) < 0.4 * sample_rate:  # 30 frames, what one value needs
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, decoded, sample_rate, extended=True))
        except RuntimeWarning:  # fewer than that without the pauses
            return None


@_in_parts
def visqol(reference, decoded, sample_rate):
    """ViSQOL v3 in speech mode (Chinen et al. 2020), 1 to 5; of longer clips the mean over equal parts of at most 20 s."""
    reference, decoded = (audio.resample(x, sample_rate, _WIDEBAND).astype(float) for x in (reference, decoded))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(_visqol().measure_from_arrays(reference, decoded, _WIDEBAND).moslqo)
        except (ValueError, IndexError, RuntimeWarning):  # less speech than one patch of 0.4 s, or a silent part
            return None


@_in_parts
def dnsmos(reference, decoded, sample_rate):
    """DNSMOS P.835 (Reddy et al. 2022), the overall score of the decoded clip alone, 1 to 5; none of less than a second.

    The mean over windows of 9.01 s, one a second; a shorter clip is repeated.
    """
    del reference
    if len(decoded) < sample_rate:
        return None
    from speechmos import dnsmos as model

    decoded = audio.resample(decoded, sample_rate, _WIDEBAND).clip(-1.0, 1.0)
    window = int(model.INPUT_LENGTH * _WIDEBAND)
    while len(decoded) < window:
        decoded = np.append(decoded, decoded)
    count = int(len(decoded) // _WIDEBAND - model.INPUT_LENGTH) + 1
    windows = [decoded[None, i * _WIDEBAND :][:, :window].astype(np.float32) for i in range(count)]
    # One at a time: the network's memory grows with every new number of windows, and stays.
    raw = np.concatenate([_dnsmos_session().run(None, {"input_1": one})[0] for one in windows])
    return float(np.mean(model.DNSMOS.get_polyfit_val(None, *raw.T, False)[2]))


def delay(reference, decoded, sample_rate):
    """Lag in samples at which the cross-correlation is greatest, within 50 ms: positive where the decoded clip is late."""
    reach = min(round(_DELAY_SECONDS * sample_rate), len(reference) - 1)
    size = 1 << (len(reference) + reach - 1).bit_length()
    spectra = [np.fft.rfft(x.astype(float), size) for x in (reference, decoded)]
    correlation = np.fft.irfft(spectra[0].conj() * spectra[1], size)
    lags = np.arange(-reach, reach + 1)
    return float(lags[np.argmax(correlation[lags])])


def _of_padded(function, reference, decoded, sample_rate):
    """A measure of `metrics` for one clip, padded to a power of two: few lengths are compiled."""
    del sample_rate
    padding = (0, max(1 << (len(reference) - 1).bit_length(), _SHORTEST_PADDED) - len(reference))
    padded = (jnp.asarray(np.pad(x, padding))[None] for x in (reference, decoded))
    return float(_compiled(function, *padded, jnp.array([len(reference)]))[0])


@functools.partial(jax.jit, static_argnums=0)
def _compiled(function, reference, decoded, lengths):
    return function(reference, decoded, lengths)


@functools.cache
def _mel_distance(sample_rate):
    """`metrics.mel_distance` for a sample rate, one function for each: it is compiled once."""
    import librosa

    filters = librosa.filters.mel(sr=sample_rate, n_fft=metrics.MEL_FFT_LENGTH, n_mels=_MEL_BANDS)
    return functools.partial(metrics.mel_distance, filters=filters.T)


@functools.cache
def _visqol():
    import visqol

    api = visqol.VisqolApi()
    with _native_stderr_closed():  # its runtime says how it starts
        api.create(mode="speech", use_lattice_model=True)  # the other mapping is 1 to 2 points too kind to bad speech
    return api


@contextlib.contextmanager
def _native_stderr_closed():
    """What C++ libraries write to stderr goes nowhere."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@functools.cache
def _dnsmos_session():
    import onnxruntime
    from speechmos import dnsmos as model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the other cores have clips of their own
    path = os.path.join(os.path.dirname(model.__file__), "dnsmos_models", "sig_bak_ovr.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _padded(function):
    return functools.partial(_of_padded, function)


MEASURES = {
    "snr": Measure("SNR", _padded(metrics.snr), unit="dB"),
    "segmental_snr": Measure("segSNR", _padded(metrics.segmental_snr), unit="dB"),
    "si_sdr": Measure("SI-SDR", _padded(metrics.si_sdr), unit="dB"),
    "log_spectral_distance": Measure("LSD", log_spectral_distance, unit="dB"),
    "mel_distance": Measure("mel distance", mel_distance),
    "pesq_wb": Measure("PESQ-WB", pesq_wb, "pesq", "MOS"),
    "estoi": Measure("ESTOI", estoi, "pystoi"),
    "visqol": Measure("ViSQOL", visqol, "visqol", "MOS", ("ai_edge_litert",)),
    "dnsmos": Measure("DNSMOS", dnsmos, "speechmos", "MOS", ("onnxruntime", "requests")),
    "range_ratio": Measure("range ratio", _padded(metrics.range_ratio)),
    "rms_ratio": Measure("RMS ratio", _padded(metrics.rms_ratio)),
    "optimal_gain": Measure("optimal gain", _padded(metrics.optimal_gain)),
    "delay": Measure("delay", delay, unit="samples"),
}
MAIN = ("snr", "segmental_snr", "pesq_wb", "estoi")
_ENERGIES = ("signal_energy", "error_energy")
_OF_SILENCE = ("snr", "segmental_snr", "log_spectral_distance", "mel_distance", "range_ratio", "rms_ratio")
