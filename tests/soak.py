"""Trains and codes for long, and looks for what grows: memory, open files, threads.

    python tests/soak.py --steps 2000 --calls 10000 --seed 0

A tiny run with a snapshot after every 50 steps, then as many calls of encode, decode, compress and decompress with clips of
changing length, bundled models. After a warm-up of a third nothing may grow: memory by 5 %, files and threads not at all.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio

ROOT = pathlib.Path(__file__).parents[1]
MAX_GROWTH = 1.05


class Held(NamedTuple):
    """What a process holds."""

    megabytes: float  # of resident memory
    files: int
    threads: int


def held(process: int | str = "self") -> Held:
    """What a process holds now."""
    folder = pathlib.Path("/proc", str(process))
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Held(int(fields["VmRSS"].split()[0]) / 1024, len(os.listdir(folder / "fd")), int(fields["Threads"]))


def growth(samples: list[Held]) -> list[str]:
    """What is held more at the end of a run than after its first third, in words."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[-third:]
    found = []
    for name, allowed in zip(Held._fields, (MAX_GROWTH, 1, 1), strict=True):
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (middle, last))
        print(f"  {name:10s} {before:8.1f} {after:8.1f}")
        if after > allowed * before:
            found.append(f"{name} grew from {before:g} to {after:g}")
    return found


def train(steps: int, folder: pathlib.Path) -> list[Held]:
    """What a run of the tiny recipe holds whenever a snapshot has come."""
    values = {"steps_per_epoch": 500, "num_examples": 0, "snapshots.every_steps": 50}
    command = [sys.executable, "train.py", "--config=configs/tiny.py", f"--checkpoint_dir={folder}"]
    command += [f"--num_epochs={steps // 500}", *(f"--config.{name}={value}" for name, value in values.items())]
    with open(folder / "output.txt", "wb") as output:
        run = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    samples, seen = [], set()
    while run.poll() is None:
        found = {path.name for path in folder.glob("*/checkpoints/*") if path.name.isdigit()}
        if found - seen:
            samples.append(held(run.pid))
        seen |= found
        time.sleep(0.02)
    assert run.returncode == 0, (folder / "output.txt").read_text()
    return samples


def call(calls: int, seed: int) -> list[Held]:
    """What this process holds thirty times in the course of round trips through tokens and files."""
    rng, samples = np.random.default_rng(seed), []
    tokens, files = jaxcodec.load("tokens"), jaxcodec.load("files")
    recording = np.concatenate(
        [audio.load(path, 16000) for path in sorted((ROOT / "jaxcodec/datasets/sample").rglob("*.flac"))[:8]]
    )
    for number in range(calls):
        start, length = rng.integers(len(recording) - 8000), rng.integers(1, 8000)
        clip = recording[start : start + length]
        if number % 2:
            decoded = jaxcodec.decompress(files, jaxcodec.compress(files, clip))
        else:
            decoded = jaxcodec.decode(tokens, jaxcodec.encode(tokens, clip), length)
        assert len(decoded) == length
        if (number + 1) % (calls // 30) == 0:
            samples.append(held())
    return samples


def main():
    """Says what was held, and ends with 1 if it grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of training, a multiple of 500; 0: none")
    parser.add_argument("--calls", type=int, default=10000, help="of round trips, 30 or more; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = []
    if arguments.steps:
        with tempfile.TemporaryDirectory() as folder:
            samples = train(arguments.steps, pathlib.Path(folder))
        print(f"{arguments.steps} steps, {len(samples)} snapshots: in the second third, in the last")
        found += growth(samples)
    if arguments.calls:
        samples = call(arguments.calls, arguments.seed)
        print(f"{arguments.calls} round trips: in the second third, in the last")
        found += growth(samples)
    sys.exit("; ".join(found) or None)


if __name__ == "__main__":
    main()
