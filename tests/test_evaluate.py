"""Evaluation: rows against the measures worked directly, and the clips that have no value."""

import functools
import importlib.util
import os
import pathlib

import numpy as np
import pytest

from jaxcodec import audio, evaluation, inference
from jaxcodec.evaluation import measures, scoring
from jaxcodec.inference import files, pretrained
from tests import support, test_scalar

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clips():
    """Two clips of odd lengths."""
    return [("a.wav", support.speech_like(1, 9001)[0]), ("b.wav", support.speech_like(1, 7777, seed=1)[0])]


def test_rows_are_what_the_bytes_hold_measured_against_the_clip(codec, clips):
    rows = list(evaluation.evaluate(codec, clips, [1, 4]))
    assert [(row["clip"], row["codebooks"]) for row in rows] == [(n, q) for n, _ in clips for q in (1, 4)]
    for row in rows:
        clip = dict(clips)[row["clip"]]
        codes = inference.encode(codec, clip, row["codebooks"])
        assert row["bytes"] == len(files.pack(codec, np.asarray(codes), len(clip)))
        assert row["seconds"] == len(clip) / 16000
        decoded = np.clip(inference.decode(codec, codes, len(clip)), -1, 1).astype(float)
        error = np.sum((clip - decoded) ** 2)
        assert row["snr"] == pytest.approx(10 * np.log10(np.sum(clip.astype(float) ** 2) / error), abs=1e-3)
        target = clip * (clip @ decoded) / np.sum(clip.astype(float) ** 2)
        ratio = np.sum(target**2) / np.sum((decoded - target) ** 2)
        assert row["si_sdr"] == pytest.approx(10 * np.log10(ratio), abs=2e-2)
        assert -10 <= row["segmental_snr"] <= 35


@pytest.mark.parametrize("at_kbps", [False, True])
def test_what_is_measured_is_what_the_file_holds(codec, clips, monkeypatch, at_kbps):
    (_, clip), pack = clips[0], files._pack
    monkeypatch.setattr(
        files, "_pack", lambda codec, codes, *rest, **more: pack(codec, 0 * np.asarray(codes), *rest, **more)
    )
    if at_kbps:
        codec, rate = scalar_codec(), evaluation.AtKbps(1000.0)
    else:
        rate = 4
    (row,) = evaluation.evaluate(codec, [("a.wav", clip)], [rate])
    zeros = np.zeros((codec.num_codebooks, codec.num_frames(len(clip))), np.int32)
    assert row["bytes"] == len(files.pack(codec, zeros, len(clip)))
    decoded = np.clip(inference.decode(codec, zeros, len(clip)), -1, 1).astype(float)
    assert row["error_energy"] == pytest.approx(np.sum((clip - decoded) ** 2), rel=1e-4)


def scalar_codec():
    """A codec whose rate is searched for, not trained."""
    config = test_scalar.small_config()
    state = support.make_state(support.make_model(config))
    return pretrained.make(state.params, state.quantizer, config)


def test_summaries_weigh_rates_by_time_and_measures_by_clip():
    measures = dict.fromkeys(evaluation.MEASURES)
    energies = [dict(signal_energy=1.0, error_energy=0.5), dict(signal_energy=9.0, error_energy=0.5)]
    rows = [
        dict(clip="a", codebooks=2, seconds=1.0, bytes=1000) | energies[0] | measures | dict(snr=3.0),
        dict(clip="b", codebooks=2, seconds=3.0, bytes=1000) | energies[1] | measures | dict(snr=6.0, estoi=0.5),
    ]
    (mean,) = evaluation.summarize(rows)
    assert (mean["codebooks"], mean["clips"], mean["kbps"], mean["snr"], mean["estoi"]) == (2, 2, 4.0, 4.5, 0.5)
    assert mean["pooled_snr"] == pytest.approx(10)  # 10 over 1
    assert mean["pesq_wb"] is None
    assert {key: count for key, count in mean["values"].items() if count} == dict(snr=2, estoi=1)
    assert mean["intervals"]["snr"] == [3.0, 6.0] and mean["intervals"]["estoi"] is None
    lines = evaluation.format_table([mean]).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["codebooks", "2"],
        ["kbit/s", "4.00"],
        ["pooled", "SNR", "(dB)", "10.00"],
        ["SNR", "(dB)", "4.50", "±1.50"],
    ]


def test_silence_has_no_value_and_no_value_is_made_up(codec):
    (row,) = evaluation.evaluate(codec, [("silent", np.zeros(8000, np.float32))], [4])
    assert row["bytes"] > 0 and all(row[key] is None for key in evaluation.MEASURES)


@pytest.mark.parametrize(
    ("package", "measure"),
    [("pesq", "pesq_wb"), ("visqol", "visqol"), ("ai_edge_litert", "visqol"), ("onnxruntime", "dnsmos")],
)
def test_a_measure_whose_package_is_missing_is_left_out_of_the_table(monkeypatch, package, measure):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert measure not in evaluation.installed()
    assert evaluation.score(*np.ones((2, 100)), 16000, [measure])[measure] is None
    row = dict(codebooks=1, kbps=1.0, pooled_snr=1.0, intervals=dict.fromkeys(evaluation.MEASURES))
    assert evaluation.MEASURES[measure].title not in evaluation.format_table([row | dict.fromkeys(evaluation.MEASURES)])


def speech(seconds):
    """Loud enough, and modulated enough, for the perceptual measures."""
    time = np.arange(round(seconds * 16000)) / 16000
    tone = sum(np.sin(2 * np.pi * f * time) for f in (180, 360, 900, 2500))
    return (0.2 * tone * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


def noisy(clip, level=0.01):
    """The clip and white noise of that standard deviation."""
    return clip + level * np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)


@pytest.fixture(scope="module")
def sentence():
    """A bundled sentence of 3.1 s."""
    return audio.load(ROOT / "jaxcodec/datasets/sample/validation/piper-joe/te_064.flac")


def spy(monkeypatch, module, name):
    """The calls of a function that is still called."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(
        module, name, lambda *args, **options: calls.append((args, options)) or function(*args, **options)
    )
    return calls


def test_pesq_has_the_reference_first_and_16_khz(monkeypatch, sentence):
    pesq = pytest.importorskip("pesq")
    decoded = noisy(sentence)
    calls = spy(monkeypatch, pesq, "pesq")
    value = measures.pesq_wb(sentence, decoded, 16000)
    ((rate, first, second, mode), _) = calls[0]
    assert (rate, mode) == (16000, "wb")
    np.testing.assert_array_equal(first, sentence)
    np.testing.assert_array_equal(second, decoded)
    assert abs(value - measures.pesq_wb(decoded, sentence, 16000)) > 0.05  # so it matters
    faster = [audio.resample(x, 16000, 24000) for x in (sentence, decoded)]
    assert measures.pesq_wb(*faster, 24000) == pytest.approx(value, abs=0.05)
    assert calls[-1][0][0] == 16000 and abs(len(calls[-1][0][1]) - len(sentence)) <= 1


def test_estoi_has_the_reference_first_and_the_clips_rate(monkeypatch, sentence):
    pystoi = pytest.importorskip("pystoi")
    decoded = noisy(sentence, 0.1)
    calls = spy(monkeypatch, pystoi, "stoi")
    value = measures.estoi(sentence, decoded, 16000)
    ((first, second, rate), options) = calls[0]
    assert rate == 16000 and options == dict(extended=True)
    np.testing.assert_array_equal(first, sentence)
    np.testing.assert_array_equal(second, decoded)
    assert abs(value - measures.estoi(decoded, sentence, 16000)) > 0.01


def test_visqol_is_the_lattice_of_speech_mode_with_the_reference_first(sentence):
    visqol = pytest.importorskip("visqol")
    pytest.importorskip("ai_edge_litert")
    api, decoded = visqol.VisqolApi(), noisy(sentence, 0.002)
    scores = []
    for lattice in (True, False):
        api.create(mode="speech", use_lattice_model=lattice)
        pairs = (sentence, sentence), (sentence, decoded)
        scores.append([api.measure_from_arrays(*(x.astype(float) for x in xs), 16000).moslqo for xs in pairs])
    assert scores[1][0] == pytest.approx(5.0, abs=0.01)  # the other mapping is scaled so that identity has 5
    assert scores[1][1] - scores[0][1] > 1  # and is that much kinder
    assert measures.visqol(sentence, sentence, 16000) == pytest.approx(scores[0][0]) == pytest.approx(4.7, abs=0.1)
    assert measures.visqol(sentence, decoded, 16000) == pytest.approx(scores[0][1])
    assert abs(measures.visqol(decoded, sentence, 16000) - scores[0][1]) > 0.05
    assert measures.visqol(sentence[8000:12000], sentence[8000:12000], 16000) is None
    assert measures.visqol(sentence, 0 * sentence, 16000) is None


@pytest.mark.parametrize("seconds", [4.6, 10.5, 11.0])
def test_dnsmos_is_its_packages_overall_score(sentence, seconds):
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    clip = np.tile(noisy(sentence), 4)[: round(seconds * 16000)].clip(-1, 1)
    assert measures.dnsmos(clip * 0, clip, 16000) is None  # as every measure of a silent reference
    expected = dnsmos.run(clip, 16000)["ovrl_mos"]
    assert measures.dnsmos(clip, clip, 16000) == pytest.approx(expected, abs=1e-4)
    assert measures.dnsmos(clip[:15999], clip[:15999], 16000) is None


def test_delay_has_its_sign_and_finds_only_what_is_within_50_ms():
    clip = support.speech_like(1, 9000)[0]
    for shift in (0, 1, 104, 800, -1, -95, -800):
        moved = np.pad(clip, 1000)[1000 - shift :][: len(clip)]
        assert measures.delay(clip, moved, 16000) == shift
        assert measures.delay(clip, -0.1 * clip + moved, 16000) == shift or shift == 0
    assert abs(measures.delay(clip, np.roll(clip, 900), 16000)) <= 800
    assert measures.delay(clip, np.roll(clip, 900), 24000) == 900
    assert measures.delay(clip[:1], clip[:1], 16000) == 0


def test_bootstrap_interval_is_the_analytic_one_of_a_normal_sample():
    sample = np.random.default_rng(1).normal(3.0, 2.0, 400)
    half = 1.96 * sample.std() / np.sqrt(len(sample))
    low, high = evaluation.bootstrap_interval(sample, seed=0)
    np.testing.assert_allclose([low, high], [sample.mean() - half, sample.mean() + half], atol=0.1 * half)
    assert evaluation.bootstrap_interval(sample, seed=0) == [low, high]
    assert evaluation.bootstrap_interval(sample, seed=1) != [low, high]
    assert evaluation.bootstrap_interval([1.0]) is None and evaluation.bootstrap_interval([]) is None


def test_worker_processes_give_the_scores_of_one_in_order(sentence):
    pytest.importorskip("pystoi")
    pairs = [(sentence, noisy(sentence, level)) for level in np.linspace(0.01, 0.3, 10)]
    keys = ["estoi", "snr"]
    alone = [evaluation.score(*pair, 16000, keys) for pair in pairs]
    assert alone == sorted(alone, key=lambda scores: -scores["snr"])
    shared = list(evaluation.score_pairs(iter(pairs), 16000, processes=2, measures=keys))
    assert shared == [pytest.approx(scores, rel=1e-9) for scores in alone]
    assert list(shared[0]) == ["signal_energy", "error_energy", "estoi", "snr"]


def test_a_process_that_dies_is_named_in_one_line(monkeypatch, sentence):
    monkeypatch.setattr(scoring, "_leave_accelerators", functools.partial(os._exit, 3))
    with pytest.raises(ValueError, match="a process died, for want of memory perhaps: try fewer processes"):
        list(evaluation.score_pairs([(sentence, sentence)] * 3, 16000, processes=2, measures=["snr", "estoi"]))


def test_what_cannot_be_scored_is_refused(sentence):
    with pytest.raises(ValueError, match=r"reference \(49920,\) and decoded \(49919,\): expected two clips"):
        evaluation.score(sentence, sentence[1:], 16000)
    with pytest.raises(ValueError, match="the decoded clip has samples that are not finite"):
        evaluation.score(sentence, sentence / np.float32(np.nan), 16000)
    with pytest.raises(ValueError, match="there is no measure 'snrr': expected some of snr, "):
        evaluation.score(sentence, sentence, 16000, ["snrr"])


def test_silence_that_was_decoded_has_an_error_and_a_level_but_no_quality(sentence):
    values = evaluation.score(sentence, 0 * sentence, 16000)
    assert {key for key in evaluation.MEASURES if values[key] is not None} == {
        "snr",
        "segmental_snr",
        "log_spectral_distance",
        "mel_distance",
        "range_ratio",
        "rms_ratio",
    }
    assert values["snr"] == pytest.approx(0, abs=1e-5) and values["rms_ratio"] == values["range_ratio"] == 0


@pytest.mark.parametrize("num_samples", [0, 1, 100, 3000])
def test_a_clip_too_short_for_a_measure_has_none_and_says_nothing(num_samples):
    clip = support.speech_like(1, num_samples, seed=3)[0]
    values = evaluation.score(clip, noisy(clip), 16000)
    assert all(values[key] is None for key in ("pesq_wb", "estoi", "visqol", "dnsmos"))
    assert (values["snr"] is None) == (num_samples == 0)


def test_the_spectral_measures_of_a_long_clip_are_means_over_its_parts(sentence):
    clip = np.tile(sentence, 8)
    decoded = noisy(clip)
    for measure in (measures.log_spectral_distance, measures.mel_distance):
        halves = [measure(*(np.array_split(x, 2)[i] for x in (clip, decoded)), 16000) for i in (0, 1)]
        assert measure(clip, decoded, 16000) == pytest.approx(np.mean(halves)) and halves[0] != halves[1]


def test_codebook_usage_is_counted_over_all_clips(codec, clips):
    counts = np.zeros((codec.num_codebooks, codec.codebook_size), np.int64)
    list(evaluation.evaluate(codec, clips, [1, 4], code_counts=counts))
    codes = np.concatenate([np.asarray(inference.encode(codec, clip)) for _, clip in clips], axis=1)
    np.testing.assert_array_equal(counts, [[np.sum(row == k) for k in range(codec.codebook_size)] for row in codes])
    usage = evaluation.codebook_usage(np.array([[3, 3, 0, 0], [1, 1, 1, 1]]))
    assert [(row["codebook"], row["usage"]) for row in usage] == [(1, 0.5), (2, 1.0)]
    assert [row["perplexity"] for row in usage] == pytest.approx([2, 4])
    assert [line.split()[-2:] for line in evaluation.format_usage(usage).splitlines()] == [
        ["1", "2"],
        ["50.0", "100.0"],
        ["2.0", "4.0"],
    ]


def test_groups_are_summarized_in_the_order_they_appear():
    blank = dict.fromkeys(evaluation.MEASURES) | dict(seconds=1.0, bytes=125, signal_energy=1.0, error_energy=0.0)
    rows = [
        blank | dict(speaker=speaker, codebooks=count, snr=float(snr))
        for speaker, count, snr in (("b", 1, 2), ("a", 1, 4), ("b", 1, 6), ("b", 2, 8))
    ]
    groups = evaluation.summarize(rows, ("speaker", "codebooks"))
    assert [(g["speaker"], g["codebooks"], g["clips"], g["snr"]) for g in groups] == [
        ("b", 1, 2, 4.0),
        ("a", 1, 1, 4.0),
        ("b", 2, 1, 8.0),
    ]
    assert groups[0]["pooled_snr"] is None  # without an error it has no value
    title, *lines = evaluation.format_groups(groups, ("speaker", "codebooks")).splitlines()
    assert title.split()[:6] == ["speaker", "codebooks", "clips", "kbit/s", "SNR", "(dB)"]
    assert lines[0].split()[:6] == ["b", "1", "2", "1.00", "4.00", "±2.00"]


def test_pesq_falls_with_noise_and_a_long_clip_is_the_mean_of_its_parts():
    pytest.importorskip("pesq")
    clip = speech(24)
    noise = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    scores = [measures.pesq_wb(clip, clip + level * noise, 16000) for level in (0.0, 0.01, 0.1)]
    assert scores[0] == pytest.approx(4.64, abs=0.01) and scores[0] > scores[1] > scores[2] >= 1
    halves = [slice(0, len(clip) // 2), slice(len(clip) // 2, None)]
    parts = [measures.pesq_wb(clip[half], (clip + 0.1 * noise)[half], 16000) for half in halves]
    assert scores[2] == pytest.approx(np.mean(parts))
    assert measures.pesq_wb(clip[:1000], clip[:1000], 16000) is None
    assert measures.pesq_wb(clip, 0 * clip, 16000) is None


def test_estoi_falls_with_noise_and_needs_enough_speech():
    pytest.importorskip("pystoi")
    clip = speech(3)
    noise = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    scores = [measures.estoi(clip, clip + level * noise, 16000) for level in (0.0, 0.1, 1.0)]
    assert scores[0] == pytest.approx(1.0, abs=1e-3) and scores[0] > scores[1] > scores[2]
    assert measures.estoi(clip[:3000], clip[:3000], 16000) is None
