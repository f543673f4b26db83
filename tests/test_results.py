"""The README's result tables are what benchmarks/results.py wrote, and nothing else."""

import json
import pathlib

import pytest

from benchmarks import rate_distortion, results

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measured():
    return json.loads((ROOT / "docs/results/results.json").read_text())


def test_the_readme_shows_the_results_as_they_were_measured(measured):
    page = (ROOT / "README.md").read_text()
    assert results.insert(page, results.render(measured)) == page


def test_the_tables_say_what_they_were_measured_with(measured):
    tables = results.render(measured)
    rates = measured["rate_distortion"]
    for fact in (measured["date"], measured["command"], rates["model"], "configs/telugu.py", "configs/seed.py", "17"):
        assert fact in tables
    assert measured["first_epoch"]["configs/telugu.py"]["config"]["experiment_name"] == "telugu"
    assert rates["config"]["model"]["num_codebooks"] == 8


def test_another_figure_gives_another_table(measured):
    changed = json.loads(json.dumps(measured))
    point = next(p for p in changed["rate_distortion"]["points"] if p["setting"] == "8 codebooks")
    point["snr"] += 1.0
    assert results.render(changed) != results.render(measured)


def test_tables_are_put_between_the_marks_whatever_stood_there():
    page = f"before\n{results.BEGIN}\nold\ntext\n{results.END}\nafter\n"
    assert results.insert(page, "new") == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter\n"
    assert results.insert(results.insert(page, "old"), "new") == results.insert(page, "new")


def test_a_peer_is_shown_at_the_rate_nearest_to_ours_and_the_next():
    ours = [dict(system="jaxcodec", setting=f"{n} codebooks", kbps=0.7 * n) for n in range(1, 9)]
    peers = [dict(system="A", setting=str(kbps), kbps=kbps) for kbps in (12.0, 8.0, 6.0, 2.0)]
    peers += [dict(system="B", setting=str(kbps), kbps=kbps) for kbps in (16.0, 24.0, 32.0)]
    shown = results.shown(ours + peers)
    assert [(row["system"], row["setting"]) for row in shown] == [
        *(("jaxcodec", f"{n} codebooks") for n in (1, 2, 4, 8)),
        *(("A", "6.0"), ("A", "8.0")),
        *(("B", "16.0"), ("B", "24.0")),
    ]


def test_the_page_on_rates_shows_the_table_of_the_same_run(measured):
    table = rate_distortion.format_table(measured["rate_distortion"]).split("\n\n", 1)[1]
    assert table in (ROOT / "docs/rate_distortion.md").read_text()
    assert not measured["rate_distortion"]["missing"]
