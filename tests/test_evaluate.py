"""Evaluation: rows against the measures worked directly, and the clips that have no value."""

import importlib.util

import numpy as np
import pytest

from jaxcodec import compress, evaluate, inference
from tests import support


@pytest.fixture(scope="module")
def clips():
    """Two clips of odd lengths."""
    return [("a.wav", support.speech_like(1, 9001)[0]), ("b.wav", support.speech_like(1, 7777, seed=1)[0])]


def test_rows_are_what_the_bytes_hold_measured_against_the_clip(codec, clips):
    rows = list(evaluate.evaluate(codec, clips, [1, 4]))
    assert [(row["clip"], row["codebooks"]) for row in rows] == [(n, q) for n, _ in clips for q in (1, 4)]
    for row in rows:
        clip = dict(clips)[row["clip"]]
        codes = inference.encode(codec, clip, row["codebooks"])
        assert row["bytes"] == len(compress.pack(codec, np.asarray(codes), len(clip)))
        assert row["seconds"] == len(clip) / 16000
        decoded = np.clip(inference.decode(codec, codes, len(clip)), -1, 1).astype(float)
        error = np.sum((clip - decoded) ** 2)
        assert row["snr"] == pytest.approx(10 * np.log10(np.sum(clip.astype(float) ** 2) / error), abs=1e-3)
        target = clip * (clip @ decoded) / np.sum(clip.astype(float) ** 2)
        ratio = np.sum(target**2) / np.sum((decoded - target) ** 2)
        assert row["si_sdr"] == pytest.approx(10 * np.log10(ratio), abs=2e-2)
        assert -10 <= row["segmental_snr"] <= 35


def test_summaries_weigh_rates_by_time_and_measures_by_clip():
    measures = dict.fromkeys(evaluate.MEASURES)
    energies = [dict(signal_energy=1.0, error_energy=0.5), dict(signal_energy=9.0, error_energy=0.5)]
    rows = [
        dict(clip="a", codebooks=2, seconds=1.0, bytes=1000) | energies[0] | measures | dict(snr=3.0),
        dict(clip="b", codebooks=2, seconds=3.0, bytes=1000) | energies[1] | measures | dict(snr=6.0, estoi=0.5),
    ]
    (mean,) = evaluate.summarize(rows)
    assert (mean["codebooks"], mean["clips"], mean["kbps"], mean["snr"], mean["estoi"]) == (2, 2, 4.0, 4.5, 0.5)
    assert mean["pooled_snr"] == pytest.approx(10)  # 10 over 1
    assert mean["pesq_wb"] is None
    assert {key: count for key, count in mean["values"].items() if count} == dict(snr=2, estoi=1)
    assert mean["intervals"]["snr"] == [3.0, 6.0] and mean["intervals"]["estoi"] is None
    lines = evaluate.format_table([mean]).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["codebooks", "2"],
        ["kbit/s", "4.00"],
        ["pooled", "SNR", "(dB)", "10.00"],
        ["SNR", "(dB)", "4.50", "±1.50"],
    ]


def test_silence_has_no_value_and_no_value_is_made_up(codec):
    (row,) = evaluate.evaluate(codec, [("silent", np.zeros(8000, np.float32))], [4])
    assert row["bytes"] > 0 and all(row[key] is None for key in evaluate.MEASURES)


def test_a_measure_whose_package_is_missing_is_left_out_of_the_table(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pesq" else find(name))
    assert "pesq_wb" not in evaluate.installed()
    row = dict(codebooks=1, kbps=1.0, pooled_snr=1.0, intervals=dict.fromkeys(evaluate.MEASURES))
    assert "PESQ" not in evaluate.format_table([row | dict.fromkeys(evaluate.MEASURES)])


def speech(seconds):
    """Loud enough, and modulated enough, for the perceptual measures."""
    time = np.arange(round(seconds * 16000)) / 16000
    tone = sum(np.sin(2 * np.pi * f * time) for f in (180, 360, 900, 2500))
    return (0.2 * tone * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


def test_pesq_falls_with_noise_and_a_long_clip_is_the_mean_of_its_parts():
    pytest.importorskip("pesq")
    clip = speech(24)
    noise = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    scores = [evaluate.pesq_wb(clip, clip + level * noise, 16000) for level in (0.0, 0.01, 0.1)]
    assert scores[0] == pytest.approx(4.64, abs=0.01) and scores[0] > scores[1] > scores[2] >= 1
    halves = [slice(0, len(clip) // 2), slice(len(clip) // 2, None)]
    parts = [evaluate.pesq_wb(clip[half], (clip + 0.1 * noise)[half], 16000) for half in halves]
    assert scores[2] == pytest.approx(np.mean(parts))
    assert evaluate.pesq_wb(clip[:1000], clip[:1000], 16000) is None
    assert evaluate.pesq_wb(clip, 0 * clip, 16000) is None


def test_estoi_falls_with_noise_and_needs_enough_speech():
    pytest.importorskip("pystoi")
    clip = speech(3)
    noise = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    scores = [evaluate.estoi(clip, clip + level * noise, 16000) for level in (0.0, 0.1, 1.0)]
    assert scores[0] == pytest.approx(1.0, abs=1e-3) and scores[0] > scores[1] > scores[2]
    assert evaluate.estoi(clip[:3000], clip[:3000], 16000) is None
