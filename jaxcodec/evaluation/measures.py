"""Measures of decoded speech beside the recording it comes from, whatever system it went through.

`score` gives all of them for one pair. Those of packages that are not installed are None.
"""

import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from jaxcodec import audio
from jaxcodec.evaluation import alignment
from jaxcodec.nn import metrics

_WIDEBAND = 16000  # Hz, the rate PESQ-WB, ViSQOL's speech mode and DNSMOS are defined at
_PART_SECONDS = 20  # PESQ is for some 8 to 30 s, and its C code overruns its tables on long recordings
_DELAY_SECONDS = 0.05
_MEL_BANDS = 80
_SHORTEST_PADDED = 2**14  # samples


class Measure(NamedTuple):
    """A measure of decoded speech."""

    title: str
    function: Callable[..., float | None]  # reference (S,), decoded (S,), sample_rate -> value or None
    package: str | None = None  # what it needs beside the requirements
    unit: str = ""
    needs: tuple[str, ...] = ()  # what the package itself needs and may come without, or what a quick measure needs


def score(reference, decoded, sample_rate: int, measures: Iterable[str] | None = None) -> dict[str, float | None]:
    """The measures (all of `MEASURES` by default) of one pair of clips (S,), and what pooled SNR is made of.

    A value is None where the measure's package is not installed, and where the clip is too short or too silent to have one.
    `signal_energy` and `error_energy` are sums of squares.

    Raises:
      ValueError: clips of different shapes, samples that are not finite, a measure that does not exist.
    """
    reference, decoded = check_pair(reference, decoded)
    signals = reference.astype(float), decoded.astype(float) - reference
    energies = {key: float(np.sum(signal**2)) for key, signal in zip(ENERGIES, signals, strict=True)}
    return energies | values_of(check_measures(measures), sample_rate, (reference, decoded))


def installed() -> dict[str, Measure]:
    """The measures whose packages are here."""
    return {
        key: measure
        for key, measure in MEASURES.items()
        if all(importlib.util.find_spec(name) for name in (measure.package, *measure.needs) if name)
    }


def check_pair(reference, decoded):
    """Two clips (S,) as float32; raises what `score` raises."""
    reference, decoded = (np.asarray(x, np.float32) for x in (reference, decoded))
    if reference.ndim != 1 or reference.shape != decoded.shape:
        raise ValueError(f"reference {reference.shape} and decoded {decoded.shape}: expected two clips (S,) alike.")
    for name, clip in (("reference", reference), ("decoded", decoded)):
        if not np.isfinite(clip).all():
            raise ValueError(f"the {name} clip has samples that are not finite: nothing can be said of it.")
    return reference, decoded


def check_measures(keys):
    """A list of measures, all for None; raises what `score` raises."""
    keys = list(MEASURES if keys is None else keys)
    if unknown := [key for key in keys if key not in MEASURES]:
        raise ValueError(f"there is no measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}.")
    return keys


def values_of(keys, sample_rate, pair):
    """The measures of one pair; silence that was decoded has a level and an error, but no quality."""
    here = installed()
    heard = [x.any() for x in pair]
    able = {key for key in keys if key in here and (all(heard) or (heard[0] and key in _OF_SILENCE))}
    values = {key: here[key].function(*pair, sample_rate) if key in able else None for key in keys}
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _padded(function):
    """A function of `metrics` as a measure of one clip, padded to a power of two: few lengths are compiled."""
    compiled = jax.jit(function)

    def measure(reference, decoded, _sample_rate):
        padding = (0, max(1 << (len(reference) - 1).bit_length(), _SHORTEST_PADDED) - len(reference))
        padded = (np.pad(x, padding)[None] for x in (reference, decoded))
        return float(compiled(*padded, np.array([len(reference)]))[0])

    return measure


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


log_spectral_distance = _in_parts(_padded(metrics.log_spectral_distance))


@_in_parts
def mel_distance(reference, decoded, sample_rate):
    """`metrics.mel_distance` over librosa's 80 mel bands; of longer clips the mean over equal parts of at most 20 s."""
    return _mel_distance(sample_rate)(reference, decoded, sample_rate)


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
    try:
        with warnings.catch_warnings(action="error", category=RuntimeWarning):
            return float(pystoi.stoi(reference, decoded, sample_rate, extended=True))
    except RuntimeWarning:  # fewer than that without the pauses
        return None


@_in_parts
def visqol(reference, decoded, sample_rate):
    """ViSQOL v3 in speech mode (Chinen et al. 2020), 1 to 5; of longer clips the mean over equal parts of at most 20 s."""
    reference, decoded = (audio.resample(x, sample_rate, _WIDEBAND).astype(float) for x in (reference, decoded))
    try:
        with warnings.catch_warnings(action="error", category=RuntimeWarning):
            return float(_visqol().measure_from_arrays(reference, decoded, _WIDEBAND).moslqo)
    except (ValueError, IndexError, RuntimeWarning):  # less speech than one patch of 0.4 s, or a silent part
        return None


@_in_parts
def dnsmos(_reference, decoded, sample_rate):
    """DNSMOS P.835 (Reddy et al. 2022), the overall score of the decoded clip alone, 1 to 5; none of less than a second.

    The mean over windows of 9.01 s, one a second; a shorter clip is repeated.
    """
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
    return float(alignment.whole_lag(reference, decoded, reach))


@functools.cache
def _mel_distance(sample_rate):
    """The measure for one sample rate."""
    import librosa

    filters = librosa.filters.mel(sr=sample_rate, n_fft=metrics.MEL_FFT_LENGTH, n_mels=_MEL_BANDS)
    return _padded(functools.partial(metrics.mel_distance, filters=filters.T))


@functools.cache
def _visqol():
    import visqol

    api, stderr = visqol.VisqolApi(), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # its runtime, in C++, says how it starts
    try:
        api.create(mode="speech", use_lattice_model=True)  # the other mapping is 1 to 2 points too kind to bad speech
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    return api


@functools.cache
def _dnsmos_session():
    import onnxruntime
    from speechmos import dnsmos as model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the other cores have clips of their own
    path = os.path.join(os.path.dirname(model.__file__), "dnsmos_models", "sig_bak_ovr.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


MEASURES = {
    "snr": Measure("SNR", _padded(metrics.snr), unit="dB"),
    "segmental_snr": Measure("segSNR", _padded(metrics.segmental_snr), unit="dB"),
    "si_sdr": Measure("SI-SDR", _padded(metrics.si_sdr), unit="dB"),
    "log_spectral_distance": Measure("LSD", log_spectral_distance, unit="dB"),
    "mel_distance": Measure("mel distance", mel_distance, needs=("librosa",)),
    "pesq_wb": Measure("PESQ-WB", pesq_wb, "pesq", "MOS"),
    "estoi": Measure("ESTOI", estoi, "pystoi"),
    "visqol": Measure("ViSQOL", visqol, "visqol", "MOS", ("ai_edge_litert",)),
    "dnsmos": Measure("DNSMOS", dnsmos, "speechmos", "MOS", ("onnxruntime", "requests")),
    "range_ratio": Measure("range ratio", _padded(metrics.range_ratio)),
    "rms_ratio": Measure("RMS ratio", _padded(metrics.rms_ratio)),
    "optimal_gain": Measure("optimal gain", _padded(metrics.optimal_gain)),
    "delay": Measure("delay", delay, unit="samples"),
}
ENERGIES = ("signal_energy", "error_energy")
_OF_SILENCE = ("snr", "segmental_snr", "log_spectral_distance", "mel_distance", "range_ratio", "rms_ratio")
