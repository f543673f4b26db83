"""Trains variants of a recipe for the same wall-clock time and tabulates what each reached on validation speech.

    python benchmarks/compare.py --minutes 6 --variants \
        telugu: \
        tilt-0.4:model.gain_shape.tilt=0.4 \
        mdct@configs/telugu_mdct.py: \
        seanet@configs/telugu_mdct.py:model.architecture=seanet,model.width=32 \
        seed@configs/seed.py:

A variant is NAME[@CONFIG]:KEY=VALUE,KEY=VALUE. Each gets as many steps as its measured speed allows in the time, with
the learning rate schedule ending there. One after the other, so leave the machine alone meanwhile.
"""

import argparse
import ast
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxcodec import codec, data, evaluation
from jaxcodec.training import checkpoint, run as training_run

WARMUP_STEPS, TIMED_STEPS = 3, 10


def main():
    """Measures every variant and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--reports", type=int, default=1, help="Validation reports, evenly spaced over the time.")
    parser.add_argument("--output", type=Path, help="Where to write the rows as JSON.")
    args = parser.parse_args()
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {device}")
    rows = []
    for variant in args.variants:
        for seed in range(args.seeds):
            rows += measure(variant, seed, args)
            if args.output:
                args.output.write_text(json.dumps(rows, indent=1))
    print_table(rows)


def measure(variant, seed, args):
    """Rows of one variant: figures on the validation split at evenly spaced times."""
    name, config = parse_variant(variant)
    config.seed, config.data.data_dir = seed, args.data_dir
    splits = [data.open_split(config.data, split) for split in ("train", "validation")]
    step_seconds = time_steps(make_run(config, splits))
    config.steps_per_epoch = max(1, int(args.minutes * 60 / args.reports / step_seconds))
    config.num_epochs, config.snapshots.every_minutes = args.reports, 0.0
    run = make_run(config, splits)
    state = training_run.replicate(run.start_quantizer(run.init_state()))
    batches, rows, progress = run.train_batches(0), [], checkpoint.Progress()
    for epoch in range(args.reports):
        state, progress = run.train_epoch(state, progress, batches, epoch, None)
        summary, shares = run.evaluate(state)
        row = {
            "variant": name,
            "seed": seed,
            "minutes": progress.seconds / 60,
            "step": (epoch + 1) * config.steps_per_epoch,
        }
        row |= {"ms_per_step": 1000 * step_seconds, "parameters": sum(p.size for p in jax.tree.leaves(state.params))}
        row |= {key: np.asarray(value).tolist() for key, value in summary.items()}
        row |= {f"share_{key}": value for key, value in shares.items()}
        if epoch + 1 == args.reports:
            row |= perceptual_scores(run, state)
        rows.append(row)
        print_table(rows[-1:])
    batches.close()
    return rows


def parse_variant(text):
    """NAME[@CONFIG]:KEY=VALUE,... to the name and its config."""
    head, _, overrides = text.partition(":")
    name, _, path = head.partition("@")
    spec = importlib.util.spec_from_file_location("recipe", path or "configs/telugu.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config().lock()  # a misspelt override is refused
    for override in filter(None, re.split(r",(?=[a-z_.]+=)", overrides)):
        key, _, value = override.partition("=")
        with contextlib.suppress(SyntaxError, ValueError):  # otherwise a plain word
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({key: value})
    return name, config


def make_run(config, splits):
    """A run without snapshots and logs."""
    return training_run.Run(config, codec.from_config(config.model, config.fixes), *splits)


def time_steps(run):
    """Median seconds a training step takes, once compiled."""
    state = training_run.replicate(run.init_state())
    batches, seconds = run.train_batches(0), []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        started = time.monotonic()
        state, logs = run.train_step(state, next(batches), run.rng)
        jax.block_until_ready(logs)
        seconds.append(time.monotonic() - started)
    batches.close()
    return float(np.median(seconds[WARMUP_STEPS:]))


def perceptual_scores(run, state):
    """PESQ-WB and ESTOI, means over the validation clips; nan where their packages are not installed."""
    local = training_run.first_replica(state)
    params = local.params if local.average is None else local.average
    decode = jax.jit(functools.partial(run.model.apply, run.model.collections(params, local.quantizer)))

    def pairs():
        for batch in run.validation_batches():
            for audio, length in zip(batch["audio"][0], batch["length"][0], strict=True):
                if length:
                    yield audio[:length], np.asarray(decode(audio[None], length[None]).audio)[0, :length]

    keys = ("pesq_wb", "estoi")
    scores = list(evaluation.score_pairs(pairs(), run.model.sample_rate, measures=keys))
    return {key: float(np.nanmean(np.array([score[key] for score in scores], float))) for key in keys}


def print_table(rows):
    """Markdown rows: SNR by number of codebooks, then everything else that decides."""
    columns = ("variant", "seed", "min", "steps", "ms/step", "params", "SNR dB by codebooks", "unquantized")
    columns += ("segSNR", "PESQ", "ESTOI", "range", "usage", "dim")
    print("|", " | ".join(columns), "|")
    print("|", "---|" * len(columns), sep="")
    for row in rows:
        counts = sorted(int(key[4:]) for key in row if key.startswith("snr_") and key[4:].isdigit())
        snr = " / ".join(f"{row[f'snr_{n}']:.2f}" for n in counts)
        print(
            f"| {row['variant']} | {row['seed']} | {row['minutes']:.1f} | {row['step']} | {row['ms_per_step']:.0f} "
            f"| {row['parameters'] / 1e6:.1f} M | {snr} | {row['snr_unquantized']:.2f} | {row['segmental_snr']:.2f} "
            f"| {row.get('pesq_wb', float('nan')):.2f} | {row.get('estoi', float('nan')):.3f} | {row['range_ratio']:.2f} "
            f"| {min(row['usage']):.2f} | {row['effective_dimension']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
