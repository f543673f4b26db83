"""The eight fixes on trial: each undone alone, all undone, two balances of the loss, initial values of the output scale.

    python benchmarks/ablate.py --output docs/results/ablation.json --plots docs/images

Two stages, on the bundled corpus: `configs/telugu_mdct.py`, where each fix is undone, and the original balance
(absolute errors, commitment 0.25, no identity path past the networks), where the output scale has to do what was promised of
it. Every variant of a stage is trained for the same number of steps from the same seeds. Runs that are in the output already
are not repeated: the command can be stopped and started again. Differences are paired by seed: with the same seed two
variants see the same batches and, where their shapes agree, start from the same weights.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import telugu_mdct
from jaxcodec import atomic, codec, data, recipe, training
from jaxcodec.training import run as training_run

ABSOLUTE = {"loss.relative": False, "loss.commitment_weight": 0.25}
NO_IDENTITY = {"model.mdct.identity": False}
BFLOAT16 = {"model.dtype": "bfloat16"}
STEPS = {"flagship": 120, "original balance": 240}  # with nothing to start from the networks need longer
SCALES = (0.5, 1.0, 5.0)  # beside the recipe's 2.5
ALL_ON, ALL_UNDONE = "all on", "all undone"
SCALE_EVERY = 5  # steps between the recorded values of the output scale
INDIFFERENT = 0.1  # dB that nobody hears


class Variant(NamedTuple):
    """What is trained, and what it is compared with."""

    stage: str
    name: str
    overrides: dict
    baseline: str = ALL_ON


def variants():
    """Every variant, in the order of the tables."""
    return [*_on_flagship(), *_on_original_balance()]


def _on_flagship():
    stage = "flagship"
    half = f"{ALL_ON}, bfloat16"
    yield Variant(stage, ALL_ON, {})
    yield Variant(stage, half, BFLOAT16)
    # The precision of the STFT is a question in half precision only.
    yield Variant(stage, "without fp32_stft, bfloat16", BFLOAT16 | undo("fp32_stft"), half)
    for fix in recipe.FIXES[1:]:
        yield Variant(stage, f"without {fix}", undo(fix))
    yield Variant(stage, f"{ALL_UNDONE}, bfloat16", BFLOAT16 | undo(*recipe.FIXES), half)
    yield Variant(stage, "absolute errors, commitment 0.25", ABSOLUTE)


def _on_original_balance():
    stage, base = "original balance", ABSOLUTE | NO_IDENTITY
    yield Variant(stage, ALL_ON, base)
    yield Variant(stage, "without learnable_scale", base | undo("learnable_scale"))
    yield Variant(stage, ALL_UNDONE, base | undo(*recipe.FIXES))
    for scale in SCALES:
        yield Variant(stage, f"output scale from {scale}", base | {"model.output_scale": scale})
    yield Variant(stage, "relative errors, commitment 1", NO_IDENTITY)


def undo(*fixes):
    """The overrides that switch fixes off."""
    return {f"fixes.{fix}": False for fix in fixes}


def main():
    """Trains what is missing, then prints the tables and draws the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON of the runs; what it holds is not repeated.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reports", type=int, default=2, help="Validation passes, evenly spaced over the steps.")
    parser.add_argument("--only", default="", help="Variants whose 'stage: name' contains this.")
    parser.add_argument("--plots", type=Path, help="Folder to draw the plots into.")
    parser.add_argument("--compilation_cache", help="Folder of JAX's compilation cache: seeds share their programs.")
    args = parser.parse_args()
    if args.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", args.compilation_cache)
    results = json.loads(args.output.read_text()) if args.output.exists() else {"runs": []}
    train_missing(results, args)
    runs = [run for run in results["runs"] if run["batch_size"] == args.batch_size]
    print_tables(runs)
    if args.plots:
        from benchmarks import ablation_plots

        results = json.loads((Path(__file__).resolve().parents[1] / "docs/results/results.json").read_text())
        trained = [point for point in results["rate_distortion"]["points"] if point["system"] == "jaxcodec tokens"]
        ablation_plots.draw(runs, trained, args.plots)


def train_missing(results, args):
    """Adds the runs that `results` lacks, seed by seed, and writes them after each."""
    done = {(run["stage"], run["variant"], run["seed"], run["batch_size"]) for run in results["runs"]}
    todo = [
        (variant, seed)
        for seed in range(args.seeds)
        for variant in variants()
        if args.only in f"{variant.stage}: {variant.name}"
        and (variant.stage, variant.name, seed, args.batch_size) not in done
    ]
    for index, (variant, seed) in enumerate(todo):
        run = measure(variant, seed, args)
        results["runs"].append(run)
        results["date"] = datetime.date.today().isoformat()
        results["hardware"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(args.output) as path:
            Path(path).write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n")
        last = run["curve"][-1]
        print(
            f"{index + 1} of {len(todo)}: {variant.stage}: {variant.name}, seed {seed}: {last['snr']:.2f} dB, range "
            f"{last['range_ratio']:.2f}, {run['nonfinite_steps']} non-finite steps, {run['minutes']:.1f} min",
            flush=True,
        )


def measure(variant, seed, args):
    """One run of a variant."""
    config = telugu_mdct.get_config()
    config.update_from_flattened_dict(variant.overrides)
    config.seed, config.batch_size = seed, args.batch_size
    config.num_epochs, config.steps_per_epoch = args.reports, STEPS[variant.stage] // args.reports
    run = dict(
        stage=variant.stage,
        variant=variant.name,
        baseline=variant.baseline,
        overrides=variant.overrides,
        seed=seed,
        steps=STEPS[variant.stage],
        batch_size=args.batch_size,
    )
    return run | train(config, config.num_epochs)


def train(config, epochs):
    """The first epochs of a recipe: a report after each, the output scale as it went, the steps that were not finite."""
    run = training_run.Run(config, codec.from_config(config.model, config.fixes), *_splits(config))
    started = time.monotonic()
    state = training_run.replicate(run.start_quantizer(run.init_state()))
    batches, logs, curve = run.train_batches(0), [], []
    for step in range(epochs * run.steps_per_epoch):
        state, log = run.train_step(state, next(batches), run.rng)
        logs.append(log)
        if (step + 1) % run.steps_per_epoch == 0:
            curve.append(report(run, state, step + 1))
    batches.close()
    logs = {key: np.array([training_run.first_replica(log[key]) for log in logs], float) for key in logs[0]}
    jax.clear_caches()  # every run compiles its own step
    initial_scale = config.model.output_scale if config.fixes.learnable_scale else 1.0
    return dict(
        minutes=round((time.monotonic() - started) / 60, 2),
        curve=curve,
        nonfinite_steps=count_nonfinite(logs),
        output_scale=[initial_scale, *logs["output_scale"][SCALE_EVERY - 1 :: SCALE_EVERY].round(5)],
        final_terms={
            key: float(np.mean(logs[key][-10:]))
            for key in ("loss", *training.term_names(run.model, run.config), "grad_norm")
        },
    )


def count_nonfinite(logs):
    """Steps whose loss or gradient was not finite."""
    return int(np.sum(~(np.isfinite(logs["loss"]) & np.isfinite(logs["grad_norm"]))))


def _splits(config):
    return [data.open_split(config.data, split) for split in ("train", "validation")]


def report(run, state, step):
    """Validation figures after `step` steps, rounded to what means something."""
    summary, shares = run.evaluate(state)
    names = [name for name in summary if name.startswith(("snr", "kbps"))]
    names += ["segmental_snr", "si_sdr", "range_ratio", "rms_ratio", "optimal_gain", "effective_dimension"]
    figures = {name: round(summary[name], 4) for name in names}
    for name, digits in {"usage": 4, "perplexity": 1}.items():
        if name in summary:  # of codebooks
            figures[name] = [round(float(value), digits) for value in summary[name]]
    return {"step": step} | figures | {f"share_{name}": round(share, 5) for name, share in shares.items()}


def print_tables(runs):
    """A table for each stage: means over seeds, and the difference to the baseline with its 95 % interval."""
    for stage in dict.fromkeys(run["stage"] for run in runs):
        print(f"\n### {stage}\n")
        print("| variant | seeds | SNR, dB | difference, dB | verdict | range ratio | scale | lowest usage | NaN |")
        print("|---|---|---|---|---|---|---|---|---|")
        names = [v.name for v in variants() if v.stage == stage]
        for name in sorted({run["variant"] for run in runs if run["stage"] == stage}, key=names.index):
            print(_row(runs, stage, name))


def _row(runs, stage, name):
    group = select(runs, stage, name)
    last = [run["curve"][-1] for run in group]
    mean = {key: np.mean([row[key] for row in last]) for key in ("snr", "range_ratio")}
    effect = difference(runs, stage, name)
    told = f"{effect} | {effect.verdict}" if effect else "|"
    scale = np.mean([run["output_scale"][-1] for run in group])
    scale = f"{scale:.3f}" if group[0]["overrides"].get("fixes.learnable_scale", True) else "none"
    usage = np.mean([min(row["usage"]) for row in last])
    nonfinite = sum(run["nonfinite_steps"] for run in group)
    return (
        f"| {name} | {len(group)} | {mean['snr']:.2f} | {told} | {mean['range_ratio']:.2f} | {scale} | "
        f"{usage:.2f} | {nonfinite} |"
    )


def select(runs, stage, name):
    """The runs of one variant, by seed."""
    return sorted((r for r in runs if (r["stage"], r["variant"]) == (stage, name)), key=lambda run: run["seed"])


class Effect(NamedTuple):
    """SNR of a variant less that of its baseline, in dB: mean and 95 % interval over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def verdict(self) -> str:
        """What undoing did, in a word."""
        if not np.isfinite(self.mean):
            return "not finite"
        if max(abs(self.low), abs(self.high)) <= INDIFFERENT:
            return "no difference"
        if self.high < 0:
            return "worse"
        return "better" if self.low > 0 else "undecided"


def difference(runs, stage, name, measure="snr") -> Effect | None:
    """The effect of a variant with Student's t interval; None for a baseline or fewer than two pairs."""
    return interval(paired(runs, stage, name, measure))


def paired(runs, stage, name, measure="snr") -> list[float]:
    """A variant's measure less its baseline's, for each seed that both have; nothing for a baseline."""
    group = select(runs, stage, name)
    if not group or group[0]["baseline"] == name:
        return []
    baseline = {run["seed"]: run["curve"][-1][measure] for run in select(runs, stage, group[0]["baseline"])}
    return [run["curve"][-1][measure] - baseline[run["seed"]] for run in group if run["seed"] in baseline]


def interval(values) -> Effect | None:
    """Mean of a few values and its 95 % interval by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Effect(float(mean), float(mean - half), float(mean + half))


if __name__ == "__main__":
    main()
