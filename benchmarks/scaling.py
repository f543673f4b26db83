"""How time grows: train steps over 1 to 8 devices, encoding and decoding over lengths and numbers of codebooks.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only devices --recipe telugu_vbr

Devices are parts of this machine's processor (`--xla_force_host_platform_device_count`): they have no more of it together
than one has alone, so what more of them lose is what sharing costs, and what they would gain elsewhere is not seen.
Every round calls each case once; medians of wall-clock time.
"""

import argparse
import functools
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DEVICES = (1, 2, 4, 8)
SECONDS = (1, 4, 16, 64, 256)
CODEBOOKS = (1, 2, 4, 8, 16)


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["devices", "lengths", "codebooks"])
    parser.add_argument("--recipe", default="telugu", help="of the train step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.recipe)
        return
    tables = {"devices": devices, "lengths": lengths, "codebooks": codebooks}
    for name in args.only:
        print("\n".join(tables[name](args)), end="\n\n", flush=True)


def devices(args):
    """Train steps on the same clips, each number of devices in a process of its own."""
    batch_size = importlib.import_module(f"configs.{args.recipe}").get_config().batch_size
    workers = {number: worker(number, args.recipe) for number in DEVICES if batch_size % number == 0}
    seconds = medians({number: functools.partial(ask, process) for number, process in workers.items()}, args.rounds)
    for process in workers.values():
        process.stdin.close()
        process.wait()
    yield f"| devices | s a step of {args.recipe} | throughput, of one device's |"
    yield "|---|---|---|"
    for number, median in seconds.items():
        yield f"| {number} | {median:.2f} | {seconds[1] / median:.2f} |"


def worker(number, recipe):
    """A process that has so many devices and makes a step for each line."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
    # Every device blocks threads of one pool while it waits for the others: too few of them, and XLA stands still.
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    command = [sys.executable, __file__, "--worker", "--recipe", recipe]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", f"the worker with {number} devices has ended"
    return process


def ask(process):
    """Has a worker make a step."""
    print(file=process.stdin, flush=True)
    return float(process.stdout.readline())


def work(recipe):
    """Makes a step of a recipe on a fixed batch for each line of stdin, and says the seconds."""
    import jax

    from benchmarks import speed
    from jaxcodec import codec, training
    from jaxcodec.training import run

    config = importlib.import_module(f"configs.{recipe}").get_config()
    model = codec.from_config(config.model, config.fixes)
    optimizer = training.make_optimizer(config.optimizer, 1000)
    settings = dict(model=model, optimizer=optimizer, config=config, axis_name=run.AXIS)
    update = jax.pmap(
        functools.partial(training.train_step, **settings), run.AXIS, in_axes=(0, 0, None), donate_argnums=0
    )
    average = config.optimizer.average_decay > 0
    state = run.replicate(training.init_state(model, optimizer, jax.random.key(0), average=average))
    number, samples = jax.local_device_count(), round(config.data.crop_seconds * config.model.sample_rate)
    audio = speed.speech(config.batch_size * config.data.crop_seconds)[: config.batch_size * samples]
    batch = {
        "audio": audio.reshape(number, config.batch_size // number, samples),
        "length": np.full((number, config.batch_size // number), samples, np.int32),
    }
    for step in range(10**9):
        start = time.perf_counter()
        state, metrics = update(state, batch, jax.random.key(step))
        jax.block_until_ready((state, metrics))
        if not step:
            print("ready", flush=True)
        else:
            print(time.perf_counter() - start, flush=True)
        if not sys.stdin.readline():
            return


def lengths(args):
    """Both codecs on one clip of each length."""
    return codec_table(args, "seconds", [(name, seconds, {}) for name in ("tokens", "files") for seconds in SECONDS])


def codebooks(args):
    """The tokens at each rate, 16 s."""
    return codec_table(args, "codebooks", [("tokens", 16, {"num_codebooks": number}) for number in CODEBOOKS])


def codec_table(args, title, settings):
    """Times real time of each function of a codec, for each (name, seconds, rate)."""
    import jax

    import jaxcodec
    from benchmarks import speed

    functions, cases = ("encode", "decode", "compress", "decompress"), {}
    for name, seconds, rate in settings:
        codec, clip = jaxcodec.load(name), speed.speech(seconds)
        codes, data = jaxcodec.encode(codec, clip, **rate), jaxcodec.compress(codec, clip, **rate)
        row = name, rate.get("num_codebooks", seconds), seconds
        calls = (
            functools.partial(jaxcodec.encode, codec, clip, **rate),
            functools.partial(jaxcodec.decode, codec, codes, len(clip)),
            functools.partial(jaxcodec.compress, codec, clip, **rate),
            functools.partial(jaxcodec.decompress, codec, data),
        )
        cases |= {(row, function): call for function, call in zip(functions, calls, strict=True)}
    for call in cases.values():
        jax.block_until_ready(call())  # which compiles
    found = medians({case: functools.partial(seconds_of, call) for case, call in cases.items()}, args.rounds)
    yield f"| codec | {title} | {', x real time | '.join(functions)}, x real time |"
    yield "|---|---|" + "---|" * len(functions)
    for row in dict.fromkeys(row for row, _ in found):
        name, number, seconds = row
        pace = (f"{seconds / found[row, function]:.3g}" for function in functions)
        yield f"| {name} | {number} | {' | '.join(pace)} |"


def seconds_of(call):
    """Wall-clock seconds of a call."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def medians(cases, rounds):
    """Median seconds of each case, {case: function that returns them}, called in turn."""
    times = {case: [] for case in cases}
    for _ in range(rounds):
        for case, call in cases.items():
            times[case].append(call())
    return {case: float(np.median(seconds)) for case, seconds in times.items()}


if __name__ == "__main__":
    main()
