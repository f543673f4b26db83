"""How fast: encode, decode, files, streams, train steps and starts of both models, beside peers that take turns with them.

    python benchmarks/speed.py --out docs/results/speed.json        # all, then the table of docs/performance.md
    python benchmarks/speed.py --only encode stream --model tokens --repetitions 9

Every round calls each function once, so that what else the machine does meets all alike: compare within a run. Of the
repetitions the median and the quartiles are kept, of seconds of wall clock and of processor time; the first call compiles.
FLOPs are those that XLA counts, the ceiling is a product of matrices in float32 in the same rounds.
Peers are transformers' architectures with random weights on torch, and opusenc and opusdec, where they are installed:
`pip install -e '.[peers]'`; `--peers_python` names the interpreter of another environment that has them.
"""

import argparse
import functools
import importlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import jaxcodec
from jaxcodec import audio as audio_files, codec as codec_module, training as training_module
from jaxcodec.bitstream import jit
from jaxcodec.inference import functions

ROOT = Path(__file__).parents[1]
SAMPLE = Path(jaxcodec.__file__).parent / "datasets" / "sample"
SHAPES = {"1 x 1 s": (1, 1), "1 x 10 s": (1, 10), "16 x 10 s": (16, 10), "1 x 600 s": (1, 600)}  # clips, seconds
STREAMS = (1, 8, 64)
FEWER_BEAMS = 2  # of a second codec for tokens
CEILING = 1024  # rows and columns of the matrices
PAGE, MARK = ROOT / "docs/performance.md", "<!-- speed: written by benchmarks/speed.py -->\n"


def main():
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tokens", "files"])
    parser.add_argument(
        "--only", nargs="+", default=["encode", "decode", "compress", "decompress", "stream", "train", "start", "peer"]
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--peers_python", default=sys.executable)
    parser.add_argument("--out", help="JSON; with it the table of docs/performance.md is written too")
    args = parser.parse_args()
    jit.FRAMES_BEFORE = jit.FRAMES_BEFORE_COMPILING = -1  # as in a process that has coded for a while
    cases, shapes = {}, [SHAPES[shape] for shape in args.shapes]
    streams = any(title.startswith("stream") for title in args.only)
    for name in args.model:
        cases |= codec_cases(name, jaxcodec.load(name), shapes, streams)
    if "tokens" in args.model:
        tokens = jaxcodec.load("tokens")
        cases |= codec_cases(f"tokens by {FEWER_BEAMS} beams", tokens.with_beams(FEWER_BEAMS), shapes, streams)
        fastest = tokens.with_beams(1).with_matmul_precision("bfloat16")
        cases |= codec_cases("tokens by one beam in bfloat16", fastest, shapes, streams)
    if "files" in args.model:
        cases |= codec_cases("fast files", jaxcodec.load("files"), shapes, False, fast=True)
        cases |= codec_cases("files by blocks of 1.28 s", jaxcodec.load("files"), shapes, False, block_seconds=1.28)
    cases |= {f"train step, {name}": training(name) for name in ("telugu", "telugu_vbr")}
    cases |= start_cases(args.model) | opus_cases()
    if any(title.startswith("peer") for title in args.only):
        cases |= peer_cases(args.peers_python)
    cases = {title: case for title, case in cases.items() if title.startswith(tuple(args.only))}
    result = measure(cases, args.repetitions)
    for row in result["rows"]:
        print(line(row))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
        head, _, rest = PAGE.read_text().partition(MARK)
        PAGE.write_text(head + MARK + table(result) + "<!-- end" + rest.partition("<!-- end")[2])


def codec_cases(name, codec, shapes, streams, **layout):
    """{title: (function, seconds of audio)} of a codec; of files of another layout what differs."""
    cases = {}
    for batch, seconds in shapes:
        clips = list(speech(batch * seconds).reshape(batch, -1))
        codes, shape = jaxcodec.encode(codec, clips), f"{name}, {batch} x {seconds} s"
        lengths = [len(clip) for clip in clips]
        data = jaxcodec.pack(codec, codes, lengths, **layout)
        for title, function in {
            "encode": lambda clips=clips: jaxcodec.encode(codec, clips),
            "decode": lambda codes=codes, lengths=lengths: jaxcodec.decode(codec, codes, lengths),
            "compress": lambda clips=clips: jaxcodec.compress(codec, clips, **layout),
            "decompress": lambda data=data: jaxcodec.decompress(codec, data),
        }.items():
            if "press" in title or not layout:
                cases[f"{title}, {shape}"] = function, batch * seconds
    for listeners in STREAMS if streams else ():
        chunk = speech(60)[: listeners * codec.hop_length].reshape(listeners, -1)
        state = jaxcodec.init_stream(codec, listeners)
        state, codes = jaxcodec.encode_step(codec, state, chunk)
        seconds = listeners * codec.hop_length / codec.sample_rate
        cases[f"stream encode, {name}, {listeners} x 1 frame"] = (
            lambda state=state, chunk=chunk: jaxcodec.encode_step(codec, state, chunk)[1],
            seconds,
        )
        cases[f"stream decode, {name}, {listeners} x 1 frame"] = (
            lambda state=state, codes=codes: jaxcodec.decode_step(codec, state, codes)[1],
            seconds,
        )
    return cases


def speech(seconds):
    """So many seconds of the bundled recordings, over and over."""
    clips = [audio_files.load(path, 16000) for path in sorted(SAMPLE.rglob("*.flac"))]
    return np.resize(np.concatenate(clips), int(seconds * 16000))


def training(name):
    """(function, seconds of audio) of a train step of a recipe on a fixed batch. It is made when it is first called."""
    config = importlib.import_module(f"configs.{name}").get_config()
    samples = round(config.data.crop_seconds * config.model.sample_rate)

    @functools.cache
    def start():
        model = codec_module.from_config(config.model, config.fixes)
        optimizer = training_module.make_optimizer(config.optimizer, 1000)
        update = functools.partial(training_module.train_step, model=model, optimizer=optimizer, config=config)
        batch = {
            "audio": speech(config.batch_size * config.data.crop_seconds).reshape(config.batch_size, -1)[:, :samples]
        }
        batch["length"] = np.full(config.batch_size, samples, np.int32)
        average = config.optimizer.average_decay > 0
        init = functools.partial(training_module.init_state, model, optimizer, average=average)
        state = jax.jit(init)(jax.random.key(0))
        return jax.jit(update), state, batch

    def step():
        update, state, batch = start()
        return update(state, batch, jax.random.key(0))[1]

    return step, config.batch_size * config.data.crop_seconds


def start_cases(models):
    """The command line on a file of 5 s from a new process, with the programs that the first one kept; and JAX alone."""
    folder = Path(tempfile.mkdtemp(prefix="speed_"))
    audio_files.save(folder / "in.wav", speech(5), 16000)
    environment = os.environ | {"JAXCODEC_CACHE": str(folder / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    run = functools.partial(subprocess.run, check=True, cwd=ROOT, env=environment)
    command = [sys.executable, "-m", "jaxcodec"]
    cases = {"start, import jax": (lambda: run([sys.executable, "-c", "import jax"]), 0)}
    for name in models:
        paths = dict(code=folder / f"{name}.jxc", wav=folder / f"{name}.wav")
        to_code = [*command, "encode", folder / "in.wav", "-o", paths["code"], "--model", name, "--force", "--quiet"]
        to_wav = [*command, "decode", paths["code"], "-o", paths["wav"], "--force", "--quiet"]
        cases[f"start, jaxcodec encode, {name}, 1 x 5 s"] = (functools.partial(run, to_code), 5)
        cases[f"start, jaxcodec decode, {name}, 1 x 5 s"] = (functools.partial(run, to_wav), 5)
    return cases


def opus_cases():
    """opusenc and opusdec on a file of 10 s, processes and all."""
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        return {}
    folder = Path(tempfile.mkdtemp(prefix="speed_"))
    audio_files.save(folder / "in.wav", speech(10), 16000)
    encode = ["opusenc", "--quiet", "--bitrate", "8", folder / "in.wav", folder / "coded.opus"]
    decode = ["opusdec", "--quiet", "--force-wav", folder / "coded.opus", folder / "out.wav"]
    return {
        "peer Opus, opusenc and opusdec, 1 x 10 s": (
            lambda: [subprocess.run(x, check=True) for x in (encode, decode)],
            10,
        )
    }


def peer_cases(python):
    """Those of `speed_peers.py`, in a process of their own that works when it is asked to."""
    script = Path(__file__).with_name("speed_peers.py")
    process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(title):
        print(title, file=process.stdin, flush=True)
        return tuple(map(float, process.stdout.readline().split()))

    titles = json.loads(process.stdout.readline())
    return {title: (functools.partial(ask, title), seconds) for title, seconds in titles.items()}


def measure(cases, repetitions):
    """What each case took, the first time and then in rounds: {"machine": ..., "rows": [...]}."""
    matrix = jnp.ones((CEILING, CEILING))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    cases = {"ceiling, float32 product": (lambda: product(matrix), 0), **cases}
    first = {title: timed(function)[0] for title, (function, _) in cases.items()}
    times = {title: [] for title in cases}
    for _ in range(repetitions):
        for title, (function, _) in cases.items():
            times[title].append(timed(function))
    rows = []
    for title, (_, seconds) in cases.items():
        wall, cpu = np.array(times[title]).T
        low, median, high = np.percentile(wall, (25, 50, 75))
        row = dict(title=title, audio_seconds=seconds, first=first[title], median=median, quartiles=[low, high])
        rows.append(row | dict(processor=float(np.median(cpu))))
    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.processor() or platform.machine()}, {cores} cores, {jax.devices()[0].device_kind}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load = os.getloadavg()[0]
    return dict(machine=machine, jax=jax.__version__, load=load, peak_mib=peak, flops=flops(), rows=rows)


def timed(function):
    """Wall and processor seconds of a call; a peer in another process says its own."""
    wall, cpu = time.perf_counter(), processor_seconds()
    result = function()
    if isinstance(result, tuple) and len(result) == 2 and all(isinstance(x, float) for x in result):
        return result
    jax.block_until_ready(result)
    return time.perf_counter() - wall, processor_seconds() - cpu


def processor_seconds():
    """Of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def flops():
    """FLOPs a second of audio that XLA counts, once for each body of a loop: no loop is in these."""
    counted = {"ceiling, float32 product": 2 * CEILING**3}
    for name in ("tokens", "files"):
        codec, frames = jaxcodec.load(name), 64
        spans = jnp.zeros(1, jnp.int32), jnp.full(1, frames)
        z_q = jnp.zeros((1, frames, codec.module.latent_dim))
        audio = jnp.zeros((1, frames * codec.hop_length))
        parts = {
            "encoder": (functions.latents_window, audio, spans[0], spans[1] * codec.hop_length),
            "decoder": (functions.synthesize_window, z_q, *spans),
        }
        for part, (function, *arguments) in parts.items():
            cost = jax.jit(function).lower(codec, *arguments).compile().cost_analysis()
            counted[f"{part}, {name}"] = cost["flops"] / frames * codec.frame_rate
    return counted


def line(row):
    """A row of the table."""
    speed = f"{row['audio_seconds'] / row['median']:.1f}" if row["audio_seconds"] else ""
    cpu = f"{row['audio_seconds'] / row['processor']:.1f}" if row["audio_seconds"] and row["processor"] > 1e-3 else ""
    low, high = row["quartiles"]
    spread = f"{low:.3g} to {high:.3g}"
    return f"| {row['title']} | {row['first']:.2f} | {row['median']:.3g} | {spread} | {speed} | {cpu} |"


def table(result):
    """The table of docs/performance.md."""
    head = f"{result['machine']}, jax {result['jax']}, load {result['load']:.1f}, peak {result['peak_mib']:.0f} MiB."
    counts = ", ".join(f"{name}: {count / 1e6:.0f}" for name, count in result["flops"].items())
    columns = (
        "| | first call, s | median, s | quartiles | x real time | x real time, processor |\n|---|---|---|---|---|---|"
    )
    return "\n".join(
        [
            head,
            f"MFLOP, a second of audio where it is not the ceiling: {counts}.",
            "",
            columns,
            *map(line, result["rows"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
