"""The ablation: which variants there are, what their differences mean, and that a run is measured as it went."""

import argparse
import itertools
import json
import pathlib

import numpy as np
import pytest

from benchmarks import ablate
from configs import telugu_mdct
from tests import support

ROOT = pathlib.Path(__file__).resolve().parent.parent


def make_run(variant, seed, snr, stage="flagship", baseline="all on", **fields):
    curve = [{"step": 4, "snr": snr, "range_ratio": 0.9, "usage": [0.5, 0.8]}]
    run = dict(stage=stage, variant=variant, baseline=baseline, seed=seed, curve=curve, steps=4, batch_size=2)
    return run | dict(overrides={}, nonfinite_steps=0, output_scale=[2.5, 2.6]) | fields


def test_each_fix_is_undone_alone_and_every_variant_is_a_recipe_with_a_baseline():
    variants = ablate.variants()
    undone = [[k for k in v.overrides if k.startswith("fixes.")] for v in variants if v.stage == "flagship"]
    assert sorted(keys[0] for keys in undone if len(keys) == 1) == sorted(
        f"fixes.{fix}" for fix in telugu_mdct.get_config().fixes
    )
    assert max(map(len, undone)) == 8
    assert len({(v.stage, v.name) for v in variants}) == len(variants)
    for variant in variants:
        config = telugu_mdct.get_config().lock()
        config.update_from_flattened_dict(variant.overrides)
        assert variant.baseline in [v.name for v in variants if v.stage == variant.stage]


def test_a_difference_is_paired_by_seed_with_students_interval():
    runs = [make_run("all on", seed, snr) for seed, snr in enumerate([10.0, 11.0, 12.0])]
    runs += [make_run("without no_tanh", seed, snr) for seed, snr in ((2, 9.0), (0, 9.0), (1, 9.0))]
    effect = ablate.difference(runs, "flagship", "without no_tanh")
    half = 4.302653 / np.sqrt(3)  # 97.5 % of Student's t with two degrees of freedom, standard deviation 1
    np.testing.assert_allclose(effect, [-2, -2 - half, -2 + half], rtol=1e-5)
    assert effect.verdict == "undecided"
    assert ablate.difference(runs, "flagship", "all on") is None
    assert ablate.difference(runs[:4], "flagship", "without no_tanh") is None  # one pair has no interval


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-1.0, -1.1, -0.9], "worse"),
        ([1.0, 1.1, 0.9], "better"),
        ([0.0, 0.0, 0.0], "no difference"),
        ([-0.02, 0.01, 0.0], "no difference"),
        ([-1.0, 1.0, 0.5], "undecided"),
        ([np.nan, 1.0, 1.0], "not finite"),
    ],
)
def test_a_verdict_needs_the_whole_interval(values, verdict):
    assert ablate.interval(values).verdict == verdict


def test_the_table_shows_every_variant_once(capsys):
    runs = [make_run(name, seed, 10.0 + seed) for name in ("without no_tanh", "all on") for seed in range(3)]
    runs += [make_run("without learnable_scale", s, 9.0, overrides={"fixes.learnable_scale": False}) for s in range(3)]
    ablate.print_tables(runs)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| variant", "| all on", "| without no_tanh", "| without learnable_scale"]
    assert rows[2][1:5] == ["3", "11.00", "+0.00 [+0.00, +0.00]", "no difference"]
    assert rows[2][6] == "2.600" and rows[3][6] == "none"


def test_the_page_of_the_fixes_shows_the_tables_of_the_runs(capsys):
    runs = json.loads((ROOT / "docs/results/ablation.json").read_text())["runs"]
    ablate.print_tables(runs)
    tables = capsys.readouterr().out.strip()
    assert tables in (ROOT / "docs/fixes.md").read_text()
    wanted = {(v.stage, v.name, v.baseline, seed) for v in ablate.variants() for seed in range(3)}
    assert {(run["stage"], run["variant"], run["baseline"], run["seed"]) for run in runs} == wanted
    for run in runs:
        (variant,) = (v for v in ablate.variants() if (v.stage, v.name) == (run["stage"], run["variant"]))
        assert run["overrides"] == variant.overrides and run["steps"] == ablate.STEPS[run["stage"]]


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch):
    trained = []

    def measure(variant, seed, args):
        trained.append((variant.name, seed))
        return make_run(variant.name, seed, 1.0, minutes=0.1)

    monkeypatch.setattr(ablate, "measure", measure)
    args = argparse.Namespace(output=tmp_path / "runs.json", batch_size=2, seeds=2, only="flagship: all on")
    ablate.train_missing({"runs": [make_run("all on", 0, 3.0)]}, args)
    names = ["all on", "all on, bfloat16"]
    assert trained == [(name, seed) for seed in range(2) for name in names][1:]
    assert len(json.loads(args.output.read_text())["runs"]) == 4


def test_a_step_is_broken_if_its_loss_or_its_gradient_is_not_finite():
    logs = {"loss": np.array([1.0, np.nan, 1.0, np.inf]), "grad_norm": np.array([1.0, 1.0, np.inf, -np.inf])}
    assert ablate.count_nonfinite(logs) == 3


def test_a_run_is_measured_as_it_went(monkeypatch):
    config = support.small_config(data__crop_seconds=0.25, model__mdct__hop_length=160).unlock()
    monkeypatch.setattr(ablate.telugu_mdct, "get_config", config.copy_and_resolve_references)
    batches = ablate.training_run.Run.validation_batches
    monkeypatch.setattr(ablate.training_run.Run, "validation_batches", lambda run: itertools.islice(batches(run), 1))
    monkeypatch.setitem(ablate.STEPS, "flagship", 10)
    args = argparse.Namespace(batch_size=8, reports=2)
    run = ablate.measure(ablate.Variant("flagship", "all on", {"loss.mse_weight": 2.0}), 1, args)
    assert [row["step"] for row in run["curve"]] == [5, 10]
    assert run["output_scale"][0] == 2.5 and len(run["output_scale"]) == 3 and run["nonfinite_steps"] == 0
    assert run["output_scale"][1] != 2.5
    assert all(np.isfinite([row["snr"], row["optimal_gain"], row["share_mse"]]).all() for row in run["curve"])
    assert json.loads(json.dumps(run)) == run


def test_a_report_of_a_quantizer_without_codebooks_has_its_rates():
    levels = dict.fromkeys(["segmental_snr", "si_sdr", "range_ratio", "rms_ratio", "optimal_gain"], 1.0)
    summary = levels | {"snr": 9.0, "snr_8kbps": 8.12345, "kbps_coded": 5.01, "kbps_entropy": 5.0}
    run = argparse.Namespace(
        evaluate=lambda state: (summary | {"effective_dimension": 3.0, "loss": 1.0}, {"rate": 0.5})
    )
    report = ablate.report(run, None, 200)
    assert report["step"] == 200 and report["snr_8kbps"] == 8.1235 and report["share_rate"] == 0.5
    assert report["kbps_coded"] / report["kbps_entropy"] == pytest.approx(1.002)
    assert "usage" not in report
