"""How late a stream can be: steps of one frame on one core while another program keeps the others busy.

    python benchmarks/latency.py --frames 1000

Each codec encodes and decodes frame after frame; they take turns, fifty frames at a time. Among them is plain arithmetic
of about as long: what its slowest calls take beyond its median is the machine's doing, no codec's.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec

TURN, WARM = 50, 20  # frames of a codec before the next one's; frames at first that do not count
PERCENTILES = 50, 95, 99
BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--idle", action="store_true", help="no other program")
    args = parser.parse_args()
    own, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [own])  # before JAX starts its threads
    busy = [] if args.idle else [subprocess.Popen([sys.executable, "-c", BUSY, str(core)]) for core in others]
    try:
        for name, times in measure(args.frames).items():
            print(f"{name}, ms a frame: " + "; ".join(line(part, values) for part, values in times.items()), flush=True)
    finally:
        for process in busy:
            process.kill()


def measure(frames):
    """{codec: {part: seconds of each frame (N,)}}."""
    tokens = jaxcodec.load("tokens")
    codecs = {"files": jaxcodec.load("files"), "tokens": tokens}
    codecs |= {f"tokens by {beams} beam{'s' * (beams > 1)}": tokens.with_beams(beams) for beams in (2, 1)}
    steps = {name: stepper(codec) for name, codec in codecs.items()} | {"arithmetic": arithmetic()}
    for step in steps.values():
        for _ in range(WARM):
            step()
    taken = {name: [] for name in steps}
    for _ in range(-(-frames // TURN)):
        for name, step in steps.items():
            taken[name] += [step() for _ in range(TURN)]
    return {name: parts(np.array(times).T) for name, times in taken.items()}


def stepper(codec):
    """A function that encodes and decodes the next frame of a stream and says how long each took."""
    state, rng = jaxcodec.init_stream(codec), np.random.default_rng(0)

    def step():
        nonlocal state
        chunk = 0.05 * rng.standard_normal(codec.hop_length).astype(np.float32)
        times = [time.perf_counter()]
        state, codes = jax.block_until_ready(jaxcodec.encode_step(codec, state, chunk))
        times.append(time.perf_counter())
        state, _ = jax.block_until_ready(jaxcodec.decode_step(codec, state, codes))
        times.append(time.perf_counter())
        return np.diff(times)

    return step


def arithmetic():
    """A function that multiplies numbers in a loop and says how long that took: some milliseconds."""

    def step():
        start, x = time.perf_counter(), 1.0
        for _ in range(60_000):
            x *= 1.0000001
        return [time.perf_counter() - start]

    return step


def parts(times):
    """Encode, decode and both of times (2, N), or the whole of (1, N)."""
    return {"": times[0]} if len(times) == 1 else dict(encode=times[0], decode=times[1], both=times.sum(0))


def line(part, values):
    """Its percentiles in ms."""
    shown = ", ".join(f"{value:.1f}" for value in np.percentile(1e3 * values, PERCENTILES))
    return f"{part} {shown}".strip()


if __name__ == "__main__":
    main()
