"""The result tables of README.md and docs/rate_distortion.md are what benchmarks/results.py wrote, and nothing else."""

import copy
import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import rate_distortion, results
from jaxcodec import evaluation

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measured():
    return json.loads((ROOT / "docs/results/results.json").read_text())


def point(system, setting, kbps, snr):
    """What `evaluation.summarize` says of a system at a setting, every measure the same."""
    figures = dict.fromkeys(evaluation.MEASURES, snr) | dict(kbps=kbps, payload_kbps=kbps, lag=0.0)
    return dict(system=system, setting=setting, intervals=dict.fromkeys(figures)) | figures


@pytest.fixture
def invented():
    """Results as the command writes them: 10 dB and 6 dB a doubling, 13 dB of SNR at 8 kbit/s."""
    points = [
        point(system, f"{kbps:g} kbit/s", 0.99 * kbps, 20 - 3 * (shape is None) + 10 * np.log2(0.99 * kbps / 8))
        for system, shape in rate_distortion.SHAPES.items()
        for kbps in rate_distortion.KBPS
    ]
    counts = ("1 codebook", *(f"{n} codebooks" for n in (2, 4, 8, 16)))
    points += [point("jaxcodec tokens", setting, 0.35 * 2**n, 3.0 + 2 * n) for n, setting in enumerate(counts)]
    points += [
        point("MDCT transform coder", f"{kbps:g} kbit/s", kbps, 19 + 10 * np.log2(kbps / 8))
        for kbps in rate_distortion.TRANSFORM_KBPS
    ]
    rates = dict(
        model="aa (files), bb (tokens)",
        versions={"LC3": "liblc3 1"},
        date="2026-01-01",
        hardware="none",
        command="python benchmarks/rate_distortion.py",
        clips=[dict(clip="one", seconds=4.0)],
        points=points,
        against_transform=rate_distortion.against_transform(points),
        bound=[dict(kbps=0.5, snr=-5.0), dict(kbps=8.0, snr=25.0), dict(kbps=32.0, snr=45.0)],
    )
    epochs = {path: dict(curve=[dict(snr=11.0, step=200)]) for path in results.RECIPES}
    epochs["configs/telugu_vbr.py"]["curve"][0] |= dict(snr_8kbps=12.5, kbps_coded=5.01, kbps_entropy=5.0)
    about = dict(date="2026-01-01", command="python benchmarks/results.py", hardware="none", jax="0")
    kept = {"LC3": "2025-12-31", "configs/seed.py": "2025-12-31"}
    return dict(about, kept=kept, first_epoch=epochs, rate_distortion=rates)


@pytest.mark.parametrize("name", results.PAGES)
def test_the_pages_show_the_results_as_they_were_measured(measured, name):
    page = (ROOT / name).read_text()
    assert results.insert(page, results.PAGES[name](measured)) == page


def test_what_is_kept_twice_keeps_the_date_of_its_measurement(invented, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "first_epoch", lambda config: {})
    monkeypatch.setattr(results, "measure_rates", lambda kept, versions: dict(points=sorted(kept)))
    results.measure(tmp_path / "results.json", [invented])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["kept"].pop("configs/seed.py") == "2025-12-31"
    assert written["kept"] == {"configs/telugu.py": "2026-01-01"} | dict.fromkeys(
        ("jaxcodec tokens", "MDCT transform coder"), "2026-01-01"
    )
    invented["kept"]["jaxcodec tokens"] = "2025-12-30"
    results.measure(tmp_path / "results.json", [invented])
    assert json.loads((tmp_path / "results.json").read_text())["kept"]["jaxcodec tokens"] == "2025-12-30"


def test_the_tables_say_what_they_were_measured_with(measured):
    tables = results.render(measured)
    rates = measured["rate_distortion"]
    assert not rates["missing"]
    for fact in (measured["date"], measured["command"], rates["model"], *results.RECIPES, "17"):
        assert fact in tables
    assert measured["first_epoch"]["configs/telugu.py"]["config"]["experiment_name"] == "telugu"
    assert rates["config"]["tokens"]["model"]["rvq"]["num_codebooks"] == 16
    assert rates["config"]["files"]["model"]["quantizer"] == "scalar"


def test_what_was_claimed_stands_beside_what_was_measured(invented):
    tables = results.render(invented)
    for row in (
        "| SNR at 8 kbit/s | 35 to 40 dB | 25.0 dB | files: **19.9 dB** with shape 0, 16.9 dB with the "
        "default, for the ear; tokens, 16 codebooks: 11.0 dB |",
        "| rate for 35 dB | 8 kbit/s, 32x | 16.0 kbit/s, 16.0x | files, shape 0: **22.6 kbit/s, 11.3x** |",
        "12.5 dB at 8 kbit/s, 200 steps; bytes +0.20 % from the entropy |",
        "files: any that is asked for, here 2 to 40 kbit/s; tokens: 8 kbit/s nominal, 32x, **5.6 kbit/s, 46x**, in files |",
    ):
        assert row in tables


def test_an_snr_that_no_rate_reaches_is_said_to_be_above_them_all(invented):
    for each in invented["rate_distortion"]["points"]:
        each["snr"] -= 15
    assert "files, shape 0: **above 40 kbit/s** |" in results.render(invented)


def test_another_figure_gives_another_table(invented):
    for system, setting in (("jaxcodec tokens", "16 codebooks"), ("jaxcodec files, shape 0", "8 kbit/s")):
        changed = copy.deepcopy(invented)
        (found,) = (
            each
            for each in changed["rate_distortion"]["points"]
            if (each["system"], each["setting"]) == (system, setting)
        )
        found["snr"] += 1.0
        for render in results.PAGES.values():
            assert render(changed) != render(invented)


def test_tables_are_put_between_the_marks_whatever_stood_there():
    page = f"before\n{results.BEGIN}\nold\ntext\n{results.END}\nafter\n"
    assert results.insert(page, "new") == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter\n"
    assert results.insert(results.insert(page, "old"), "new") == results.insert(page, "new")


def test_both_pages_are_written_from_what_was_measured_before(invented, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    for name in results.PAGES:
        (tmp_path / name).write_text(f"before\n{results.BEGIN}\n{results.END}\nafter\n")
    (tmp_path / "results.json").write_text(json.dumps(invented))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["results.py", "--render", "--output", str(tmp_path / "results.json")])
    results.main()
    printed = capsys.readouterr().out
    for name, render in results.PAGES.items():
        text = render(json.loads(json.dumps(invented)))
        assert (tmp_path / name).read_text() == f"before\n{results.BEGIN}\n{text}\n{results.END}\nafter\n"
        assert text in printed


def test_ours_are_shown_at_chosen_settings_and_a_peer_nearest_to_8_and_16_kbit_per_second(invented):
    points = [each for each in invented["rate_distortion"]["points"] if each["system"] in results.SHOWN]
    peers = [dict(system="A", setting=str(kbps), kbps=kbps) for kbps in (12.5, 8.5, 6.0, 17.0, 2.0)]
    peers += [dict(system="B", setting=str(kbps), kbps=kbps) for kbps in (17.5, 24.0, 32.0)]
    assert [(row["system"], row["setting"]) for row in results.shown(peers + points)] == [
        *(("jaxcodec files", f"{kbps} kbit/s") for kbps in (5, 8, 12, 24)),
        ("jaxcodec files, shape 0", "8 kbit/s"),
        ("jaxcodec tokens", "1 codebook"),
        *(("jaxcodec tokens", f"{count} codebooks") for count in (2, 4, 8, 16)),
        *(("A", "8.5"), ("A", "17.0"), ("B", "17.5")),
    ]
