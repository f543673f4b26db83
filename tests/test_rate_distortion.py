"""The rate-distortion command on two short clips: what it writes, and that nothing is left out silently."""

import json
import sys

import numpy as np
import pytest

from benchmarks import peers, rate_distortion, rate_distortion_plot
from jaxcodec import audio, evaluation
from jaxcodec.evaluation import measures
from jaxcodec.inference import pretrained
from tests import support, test_scalar


@pytest.fixture
def recordings(tmp_path):
    """Two clips of a quarter of a second in folders of their own, and a silent one."""
    for name, clip in zip(("a/one.wav", "b/two.wav"), support.speech_like(2, 4000), strict=True):
        (tmp_path / "clips" / name).parent.mkdir(parents=True)
        audio.save(tmp_path / "clips" / name, clip, 16000)
    audio.save(tmp_path / "clips" / "silent.wav", np.zeros(16000, np.float32), 16000)
    return tmp_path / "clips"


def echo(clip, kbps):
    """A system that is 20 samples late and adds noise, with 100 bytes of file and 90 of payload."""
    noise = 0.01 / kbps * np.random.default_rng(0).standard_normal(len(clip) + 20)
    return peers.Coded(np.pad(clip, (20, 0)) + noise, 100, 90)


def test_the_command_writes_points_rows_and_the_bound_of_the_same_clips(
    codec, recordings, tmp_path, monkeypatch, capsys, tmp_path_factory
):
    pytest.importorskip("matplotlib")
    model = support.save(codec, tmp_path_factory)
    quick = {key: evaluation.MEASURES[key] for key in ("snr", "segmental_snr")}
    for owner in (measures, evaluation):
        monkeypatch.setattr(owner, "MEASURES", quick)
    monkeypatch.setattr(rate_distortion, "SHOWN", tuple(quick))
    monkeypatch.setattr(rate_distortion_plot, "PANELS", rate_distortion_plot.PANELS[:2] * 2)
    peer = peers.Peer("Echo 2", (1, 2), echo, lambda: "2", "")
    monkeypatch.setattr(peers, "available", lambda: ({"opus": peer}, {"lc3": "liblc3-tools (Debian package)"}))
    out = tmp_path / "out"
    command = ["rate_distortion.py", "--clips", str(recordings), "--model", model, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--systems", "jaxcodec", "opus", "lc3", "bound"])
    rate_distortion.main()

    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["lc3 is left out: install liblc3-tools (Debian package)"]
    results = json.loads((out / "rate_distortion.json").read_text())
    assert results["missing"] == {"lc3": "install liblc3-tools (Debian package)"}
    assert results["model"] == f"{codec.fingerprint.hex()} (tokens)" and results["model"] in printed.out
    assert results["config"]["tokens"]["model"]["quantizer"] == "rvq"
    assert results["clips"] == [dict(clip=name, seconds=0.25) for name in ("a/one.wav", "b/two.wav")]
    labels = [(point["system"], point["setting"]) for point in results["points"]]
    ours = ["1 codebook", "2 codebooks", "4 codebooks"]  # of four
    assert labels == [("jaxcodec tokens", name) for name in ours] + [("Echo 2", "1 kbit/s"), ("Echo 2", "2 kbit/s")]
    assert len(results["rows"]) == 2 * len(labels)
    echoes = results["points"][-2:]
    assert [point["kbps"] for point in echoes] == [3.2, 3.2] and echoes[0]["payload_kbps"] == pytest.approx(2.88)
    assert echoes[0]["lag"] == 20 and echoes[1]["snr"] - echoes[0]["snr"] == pytest.approx(6.02, abs=0.1)
    assert len(results["bound"]) == len(rate_distortion.BOUND_KBPS)
    assert np.all(np.diff([row["snr"] for row in results["bound"]]) > 0)
    assert (out / "rate_distortion.png").stat().st_size > 10000


@pytest.fixture(scope="module")
def files_codec():
    """A small codec of scalar codes, not trained; nothing costs it less than some 17 kbit/s."""
    _, state, _ = test_scalar.bench()
    return pretrained.make(state.params, state.quantizer, test_scalar.small_config())


def test_a_model_for_files_has_a_curve_for_each_shape_at_the_rates_that_all_clips_can_have(files_codec, monkeypatch):
    monkeypatch.setattr(rate_distortion, "KBPS", (0.5, 60, 80))
    clips = list(zip(("one", "two"), support.speech_like(2, 8000), strict=True))
    unreached: dict[str, str] = {}
    decoded = list(rate_distortion.ours({"files": files_codec}, clips, unreached))
    curves = ("jaxcodec files", "jaxcodec files, shape 0")
    assert [(d.row["system"], d.row["setting"], d.row["clip"]) for d in decoded] == [
        (system, setting, name)
        for system in curves
        for setting in ("60 kbit/s", "80 kbit/s")
        for name in ("one", "two")
    ]
    for each in decoded:
        kbps, asked = 8e-3 * each.row["bytes"] / each.row["seconds"], float(each.row["setting"].split()[0])
        assert 0.95 * asked < kbps <= asked and each.row["payload_bytes"] == each.row["bytes"] and each.row["lag"] == 0
        assert each.decoded.shape == each.clip.shape
    assert [not np.array_equal(a.decoded, b.decoded) for a, b in zip(decoded[:4], decoded[4:], strict=True)] == [
        True
    ] * 4
    assert list(unreached) == [f"{system} at 0.5 kbit/s" for system in curves]
    assert all(reason.startswith("one: 0.5 kbit/s cannot be reached") for reason in unreached.values())


def test_models_are_told_apart_by_what_they_are_for(codec, files_codec, tmp_path_factory):
    tokens, files = (support.save(each, tmp_path_factory) for each in (codec, files_codec))
    models = rate_distortion.load_models([tokens, files])
    assert {purpose: model.fingerprint for purpose, model in models.items()} == {
        "tokens": codec.fingerprint,
        "files": files_codec.fingerprint,
    }
    assert list(rate_distortion.provenance(models, {})["config"]) == ["tokens", "files"]
    with pytest.raises(ValueError, match="is the second model for files"):
        rate_distortion.load_models([files, files])


def test_the_distance_to_the_transform_coder_is_taken_at_the_rate_of_our_files():
    points = [
        dict(system="MDCT transform coder", setting=str(kbps), kbps=kbps, snr=snr) for kbps, snr in ((2, 5), (8, 25))
    ]
    points += [
        dict(system=system, setting=f"{asked} kbit/s", kbps=kbps, snr=snr)
        for system, asked, kbps, snr in (
            ("jaxcodec files, shape 0", 2, 1.9, 6),  # below all rates of the transform coder
            ("jaxcodec files, shape 0", 3, 4.0, 18),  # half-way in log rate: 15 dB
            ("jaxcodec files", 8, 8.0, 20),
            ("jaxcodec files, shape 0", 40, 7.0, 20),  # is not compared
        )
    ]
    (row,) = rows = rate_distortion.against_transform(points)
    assert row == dict(kbps_asked=3, kbps=4.0, snr=18, transform_snr=pytest.approx(15), gain=pytest.approx(3))
    assert rate_distortion.format_distances(rows).endswith("dB: +3.00 at 3 kbit/s")
    assert rate_distortion.format_distances([]).endswith("not measured")


def test_a_rate_is_found_for_an_snr_where_the_curve_has_it():
    rows = [dict(kbps=1.0, snr=5.0), dict(kbps=4.0, snr=15.0)]
    assert [rate_distortion.kbps_at(rows, snr) for snr in (5, 10, 15)] == pytest.approx([1, 2, 4])
    assert (
        rate_distortion.kbps_at(rows, 16) is rate_distortion.kbps_at(rows, 4) is rate_distortion.kbps_at([], 5) is None
    )


def test_eight_curves_have_eight_looks_and_ours_are_thick():
    systems = [*rate_distortion.SHAPES, "jaxcodec tokens", "Opus 1", "Opus 2", "AMR-WB", "LC3", "MDCT transform coder"]
    looks = rate_distortion_plot.styles(systems)
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 8
    widths = [look["linewidth"] for look in map(looks.get, systems)]
    assert min(widths[:3]) > 2 * max(widths[3:])


def test_the_table_has_the_bound_at_each_rate_and_a_dash_beyond_it():
    rows = [dict(kbps=1.0, snr=5.0), dict(kbps=4.0, snr=15.0)]
    assert [rate_distortion.bound_at(rows, kbps) for kbps in (0.9, 1.0, 2.0, 4.0, 5.0)] == [
        "-",
        "5.0",
        "10.0",
        "15.0",
        "-",
    ]
    assert rate_distortion.bound_at([], 2.0) == "-"


def test_a_folder_without_speech_is_refused_in_one_line(codec, tmp_path, monkeypatch, capsys, tmp_path_factory):
    argv = ["rate_distortion.py", "--clips", str(tmp_path), "--model", support.save(codec, tmp_path_factory)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        rate_distortion.main()
    assert "has no recordings that are not silent" in capsys.readouterr().err.splitlines()[-1]
