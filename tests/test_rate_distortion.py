"""The rate-distortion command on two short clips: what it writes, and that nothing is left out silently."""

import json
import sys

import numpy as np
import pytest

from benchmarks import peers, rate_distortion, rate_distortion_plot
from jaxcodec import audio, evaluation
from jaxcodec.evaluation import measures
from tests import support


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
    assert results["model"] == codec.fingerprint.hex() and results["model"] in printed.out
    assert results["clips"] == [dict(clip=name, seconds=0.25) for name in ("a/one.wav", "b/two.wav")]
    labels = [(point["system"], point["setting"]) for point in results["points"]]
    ours = ["1 codebook", "2 codebooks", "3 codebooks", "4 codebooks"]
    assert labels == [("jaxcodec", name) for name in ours] + [("Echo 2", "1 kbit/s"), ("Echo 2", "2 kbit/s")]
    assert len(results["rows"]) == 2 * len(labels)
    echoes = results["points"][-2:]
    assert [point["kbps"] for point in echoes] == [3.2, 3.2] and echoes[0]["payload_kbps"] == pytest.approx(2.88)
    assert echoes[0]["lag"] == 20 and echoes[1]["snr"] - echoes[0]["snr"] == pytest.approx(6.02, abs=0.1)
    assert len(results["bound"]) == len(rate_distortion.BOUND_KBPS)
    assert np.all(np.diff([row["snr"] for row in results["bound"]]) > 0)
    assert (out / "rate_distortion.png").stat().st_size > 10000


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
