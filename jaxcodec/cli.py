"""The command line: recordings to .jxc files and back, and what is done with a trained codec around that.

    jaxcodec encode speech.wav -o speech.jxc
    jaxcodec decode speech.jxc -o decoded.wav

Exit codes: 0 done; 1 an input failed, each named in one line on stderr; 2 a command that makes no sense; 130 interrupted.
"""

import argparse
import contextlib
import csv
import functools
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from typing import Any, NamedTuple

DESCRIPTION = "A neural speech codec: 16 kHz speech to 8 kbit/s and back."
STREAM = "-"  # stdin or stdout
_WHOLE_SECONDS = 20  # decoded at once, in a window of its size; longer files in blocks


class UsageError(Exception):
    """A command that makes no sense."""


def main(argv=None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _make_parser().parse_args(argv)
    arguments.command = shlex.join(["jaxcodec", *(sys.argv[1:] if argv is None else argv)])
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells at length how it reads
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _stop(error, 2)
    except BrokenPipeError:
        # What is still buffered would fail again when Python flushes it at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _stop("the reader of the output has gone", 1)
    except (ValueError, OSError, ImportError) as error:
        return _stop(_explain(error), 1)
    except KeyboardInterrupt:
        return _stop("interrupted", 130)


def encode(arguments):
    """Recordings to .jxc files."""
    from jaxcodec import compress, tokens

    with Jobs(arguments, "encoded", _find_recordings, ".jxc") as jobs:
        codec = _load(arguments)
        files = ((job, sys.stdin.buffer if job.source == STREAM else job.source) for job in jobs)
        for encoded in tokens.encode_files(codec, files, _check_codebooks(codec, arguments.codebooks)):
            if encoded.error:
                jobs.fail(encoded.key, encoded.error)
                continue
            with jobs.attempt(encoded.key) as output:
                data = compress.pack(codec, encoded.codes, encoded.num_samples, entropy=not arguments.no_entropy)
                output.write_bytes(data)
                jobs.count(encoded.key, encoded.num_samples / codec.sample_rate, len(data))
    return jobs.exit_code


def decode(arguments):
    """.jxc files to recordings of their exact length."""
    from jaxcodec import audio

    suffix = "." + arguments.format
    with Jobs(arguments, "decoded", _find_bitstreams, suffix, audio.EXTENSIONS) as jobs:
        codec = _load(arguments)
        for job in jobs:
            damaged = []
            with jobs.attempt(job) as output:
                data = job.read()
                codes, num_samples, damaged = _unpack(codec, data, arguments.keep_damaged)
                blocks = _silence(_decode_blocks(codec, codes, num_samples), damaged, codec.hop_length)
                audio.write_blocks(output, blocks, codec.sample_rate, num_samples)
                jobs.count(job, num_samples / codec.sample_rate, len(data))
            if damaged:
                jobs.fail(job, f"damaged, silence at {', '.join(_seconds(codec, *frames) for frames in damaged)}")
    return jobs.exit_code


def truncate(arguments):
    """.jxc files to smaller ones of fewer codebooks."""
    from jaxcodec import bitstream

    codec = None
    with Jobs(arguments, "truncated", _find_bitstreams, ".jxc") as jobs:
        for job in jobs:
            with jobs.attempt(job) as output:
                data = job.read()
                header = bitstream.read_header(data)
                if header.entropy_digest is not None:
                    codec = codec or _load(arguments)
                smaller = bitstream.truncate(data, arguments.codebooks, codec and codec.entropy)
                output.write_bytes(smaller)
                jobs.count(job, header.seconds, len(smaller))
    return jobs.exit_code


def info(arguments):
    """What .jxc files and models say about themselves."""
    described, failed = [], False
    for name in arguments.inputs or [None]:
        try:
            described.append(_describe(name))
        except (ValueError, OSError) as error:
            failed = True
            _tell(_about(name, error))
    if arguments.json:
        print(json.dumps(described, indent=2))
    elif described:
        print("\n\n".join(_format_description(description) for description in described))
    return int(failed)


def evaluate(arguments):
    """The codec measured on recordings, or on a prepared split."""
    import numpy as np

    from jaxcodec import evaluate

    for path in filter(None, (arguments.json, arguments.csv)):
        _refuse_existing(path, arguments.force)
    codec = _load(arguments)
    codebooks = [_check_codebooks(codec, count) for count in arguments.codebooks or _doublings(codec.num_codebooks)]
    for key in sorted(set(evaluate.MEASURES) - set(evaluate.installed())):
        _tell(f"{key} is not measured, its package is not installed: pip install 'jaxcodec[metrics]'")
    failures: list[str] = []
    code_counts = np.zeros((codec.num_codebooks, codec.codebook_size), np.int64)
    clips = list(_find_clips(arguments.inputs, arguments.split))
    speakers: dict[str, str] = {}
    for clip in clips:
        if clip.name in speakers:
            raise UsageError(f"two recordings are called {clip.name}: give the folder above them, or one at a time.")
        speakers[clip.name] = clip.speaker
    with _bar(len(clips)) as bar:
        pairs = _read_clips([(clip.name, clip.source) for clip in clips], codec.sample_rate, failures, bar)
        rows = list(evaluate.evaluate(codec, pairs, codebooks, arguments.processes, code_counts))
    if not rows:
        raise ValueError("no recording could be read.")
    rows = [dict(clip=row["clip"], speaker=speakers[row["clip"]]) | row for row in rows]
    for key in evaluate.installed():
        if without := len({row["clip"] for row in rows if row[key] is None}):
            _tell(f"{key} is the mean without {without} of {len(clips) - len(failures)} clips: too short or silent")
    report = _evaluation(codec, rows, code_counts, arguments.group) | dict(command=arguments.command, failed=failures)
    print(_format_evaluation(report))
    _write_evaluation(report, arguments.json, arguments.csv)
    return int(bool(failures))


def report(arguments):
    """A page to listen on: clips through the codec and through Opus, in step and blind, with figures and curves."""
    from etils import epath

    from jaxcodec import atomic, report, webpage

    target = os.path.join(arguments.output, "index.html")
    _refuse_existing(target, arguments.force)
    codec, failures = _load(arguments), []
    codebooks = [_check_codebooks(codec, count) for count in arguments.codebooks or _doublings(codec.num_codebooks)]
    results = arguments.results and report.read_results(arguments.results)
    run = arguments.run_folder or (arguments.model if os.path.isdir(f"{arguments.model}/tensorboard") else None)
    scalars = run and report.read_run(run)
    if arguments.clips:
        files = dict(_expand(arguments.clips, _find_recordings))
        chosen = report.spread(list(files))
        if len(chosen) < len(files):
            _tell(f"{len(chosen)} of {len(files)} clips are taken, spread over their folders")
        with _bar(len(chosen)) as bar:
            pairs = _read_clips([(name, files[name]) for name in chosen], codec.sample_rate, failures, bar)
            clips, notice = [report.Clip(name, clip) for name, clip in pairs], ""
        if not clips:
            raise ValueError("no recording could be read.")
    else:
        clips, notice = report.bundled_clips(codec.sample_rate)
    clips = report.cut(clips, codec.sample_rate)
    rendered = report.render(codec, clips, codebooks, arguments.processes)
    for problem in rendered.missing:
        _tell(f"not on the page: {problem}")
    page = webpage.Page(
        title=arguments.title,
        model=report.model_name(arguments.model),
        command=arguments.command,
        sources=" ".join(arguments.clips or ["the bundled validation clips"]),
        notice=notice,
        results=results,
        scalars=scalars,
        run=epath.Path(run).name if run else "",
    )
    text = webpage.compose(page, codec, clips, rendered)
    with atomic.replacing(target) as path:
        path.write_text(text)
    _tell(f"{target}: {len(clips)} clips in {len(rendered.versions)} versions, {len(text.encode()) / 1e6:.1f} MB")
    return int(bool(failures))


def tokens(arguments):
    """A folder of recordings to token files for language models."""
    from jaxcodec import tokens

    clips = frames = 0
    failed: dict[str, str] = {}
    for summary in tokens.write_tokens(
        arguments.model,
        arguments.folder,
        arguments.output,
        num_codebooks=arguments.codebooks,
        shard_size=arguments.shard_size,
        processes=arguments.processes,
        shard_index=arguments.shard_index,
        num_shards=arguments.num_shards,
    ):
        clips, frames = clips + summary.clips, frames + summary.frames
        failed |= summary.failed
        for reason in summary.failed.values():
            _tell(reason)
    _tell(f"{clips} recordings, {frames} frames in {arguments.output}, {len(failed)} recordings failed")
    return int(bool(failed))


def export(arguments):
    """The model for other programs."""
    from jaxcodec import entropy, export, pretrained, tokens

    if arguments.format != "safetensors" and (arguments.dtype != "float32" or arguments.entropy_data):
        raise UsageError(f"--dtype and --entropy_data are for safetensors files, not for {arguments.format}.")
    _refuse_existing(arguments.output, arguments.force)
    codec, failed = _load(arguments), False
    if arguments.entropy_data:
        clips, files = [], _find_recordings(arguments.entropy_data)
        with _bar(len(files)) as bar:
            for encoded in tokens.encode_files(codec, files):
                if encoded.error:
                    failed = True
                    _tell(_explain(encoded.error))
                else:
                    clips.append(encoded.codes)
                bar.update()
        codec = codec.replace(entropy=entropy.fit(clips, codec.codebook_size))
    if arguments.format == "safetensors":
        pretrained.save(codec, arguments.output, arguments.dtype)
    elif arguments.format == "stablehlo":
        export.export_stablehlo(codec, arguments.output)
    else:
        export.export_onnx(codec, arguments.output)
    return int(failed)


class Job(NamedTuple):
    """An input and where its output goes."""

    source: str
    target: str

    def read(self) -> bytes:
        """The bytes of the source."""
        from etils import epath

        return sys.stdin.buffer.read() if self.source == STREAM else epath.Path(self.source).read_bytes()


class Jobs:
    """The inputs of a command one by one: names what fails, counts the rest, shows a bar on a terminal."""

    def __init__(self, arguments, verb, find, suffix, suffixes=None):
        self.force, self.verb = arguments.force, verb
        self.planned = _plan(arguments.inputs, arguments.output, find, suffix, suffixes)
        self.suffix = suffix
        self.done: set[Job] = set()
        self.failed: set[Job] = set()
        self.seconds, self.num_bytes = 0.0, 0

    def __enter__(self):
        self.bar = _bar(len(self.planned))
        return self

    def __exit__(self, kind, *_):
        self.bar.close()
        if kind is None and self.done:
            elapsed = time.monotonic() - self.started
            rate = f", {8e-3 * self.num_bytes / self.seconds:.3g} kbit/s" if self.seconds else ""
            _tell(
                f"{self.verb} {len(self.done)} of {len(self.planned)}, {self.seconds:.1f} s of audio in {elapsed:.1f} s "
                f"({self.seconds / elapsed:.3g} x real time){rate}"
            )

    def __iter__(self):
        """The jobs that may be done."""
        self.started = time.monotonic()
        targets: set[str] = set()
        for job in self.planned:
            if job.target in targets:
                self.fail(job, f"another input is written to {job.target}")
            elif job.target != STREAM and not self.force and os.path.lexists(job.target):
                self.fail(job, f"{job.target} exists, --force replaces it")
            else:
                targets.add(job.target)
                yield job

    @contextlib.contextmanager
    def attempt(self, job):
        """A file to write for `job`, put in its place if nothing is raised; what is raised is named in one line."""
        try:
            with _output(job.target, self.suffix) as path:
                yield path
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            self.fail(job, error)

    def count(self, job, seconds, num_bytes):
        """Adds one finished file to the summary."""
        self.done.add(job)
        self.seconds, self.num_bytes = self.seconds + seconds, self.num_bytes + num_bytes
        self._advance()

    def fail(self, job, problem):
        """Names what is wrong with one input."""
        self.failed.add(job)
        self._advance()
        _tell(_about("stdin" if job.source == STREAM else job.source, problem))

    def _advance(self):
        self.bar.update(len(self.done | self.failed) - self.bar.n)

    @property
    def exit_code(self):
        """1 if anything failed."""
        return int(bool(self.failed))


def _make_parser():
    parser = argparse.ArgumentParser("jaxcodec", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", metavar="M", help="a .safetensors file or a run of train.py; default: the bundled model"
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", required=True, metavar="OUT", help="file or folder to write, - for stdout")
    force = argparse.ArgumentParser(add_help=False)
    force.add_argument("--force", action="store_true", help="replace what exists")
    inputs = argparse.ArgumentParser(add_help=False)
    inputs.add_argument("inputs", nargs="+", metavar="IN", help="files and folders, - for stdin")

    def add(name, run, *parents):
        command = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, parents=parents, allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    command = add("encode", encode, inputs, output, force, model)
    command.add_argument("--codebooks", type=_positive, metavar="N", help="the first N only: a lower rate")
    command.add_argument("--no_entropy", action="store_true", help="codes at a fixed width")

    command = add("decode", decode, inputs, output, force, model)
    formats = ("wav", "flac", "ogg", "opus", "mp3")
    command.add_argument("--format", choices=formats, default="wav", help="of files in a folder and of stdout")
    command.add_argument("--keep_damaged", action="store_true", help="silence for damaged parts instead of no output")

    command = add("info", info)
    command.add_argument("inputs", nargs="*", metavar="FILE", help=".jxc files or models; default: the bundled model")
    command.add_argument("--json", action="store_true", help="for programs: a list of objects")

    command = add("truncate", truncate, inputs, output, force, model)
    command.add_argument("--codebooks", type=_positive, required=True, metavar="N", help="how many to keep")

    command = add("eval", evaluate, inputs, force, model)
    command.add_argument("--codebooks", type=_positives, metavar="N,N", help="default: 1, 2, 4, ... and all")
    command.add_argument("--split", metavar="NAME", help="of prepared folders; default: validation")
    command.add_argument("--group", choices=("speaker",), help="also means by the first folder below IN")
    command.add_argument("--processes", type=_positive, default=1, metavar="P", help="that share the slow measures")
    command.add_argument("--json", metavar="FILE", help="means, intervals and every clip")
    command.add_argument("--csv", metavar="FILE", help="every clip")

    command = add("report", report, force, model)
    command.add_argument("output", metavar="OUT", help="folder of the page, index.html")
    command.add_argument(
        "--clips", nargs="+", metavar="IN", help="files and folders; default: the bundled validation clips"
    )
    command.add_argument("--codebooks", type=_positives, metavar="N,N", help="default: 1, 2, 4, ... and all")
    command.add_argument(
        "--results", metavar="FILE", help="what benchmarks/rate_distortion.py wrote, for tables and plots"
    )
    command.add_argument(
        "--run", dest="run_folder", metavar="RUN", help="of train.py, for its curves; default: --model's"
    )
    command.add_argument("--title", default="Listen to jaxcodec")
    command.add_argument("--processes", type=_positive, default=1, metavar="P", help="that share the slow measures")

    command = add("tokens", tokens, model)
    command.add_argument("folder", help="recordings at any depth")
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="folder of the token files")
    command.add_argument("--codebooks", type=_positive, metavar="N", help="the first N only")
    command.add_argument("--shard_size", type=_positive, default=1000, metavar="N", help="recordings a file")
    command.add_argument("--processes", type=_positive, default=1, metavar="P", help="files made at the same time")
    command.add_argument("--shard_index", type=int, default=0, metavar="I", help="this host, of --num_shards hosts")
    command.add_argument("--num_shards", type=_positive, default=1, metavar="N", help="hosts that share the work")

    command = add("export", export, force)
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="as for --model elsewhere; default: the bundled model"
    )
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="a file, or a folder for other formats")
    command.add_argument("--format", choices=("safetensors", "stablehlo", "onnx"), default="safetensors")
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of safetensors' weights")
    command.add_argument("--entropy_data", metavar="FOLDER", help="recordings to fit the entropy coder's tables to")
    return parser


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _positives(text):
    return [_positive(part) for part in text.split(",")]


def _load(arguments):
    from jaxcodec import pretrained

    return pretrained.load(arguments.model)


def _check_codebooks(codec, count):
    if count is not None and count > codec.num_codebooks:
        raise UsageError(f"--codebooks {count}, this model has {codec.num_codebooks}.")
    return count


def _doublings(highest):
    """1, 2, 4, ... and `highest`."""
    return [2**k for k in range(highest.bit_length()) if 2**k < highest] + [highest]


def _plan(inputs, output, find, suffix, suffixes):
    """The jobs of a command: where the output of each input file goes."""
    files = list(_expand(inputs, find))
    single = len(inputs) == 1 and not os.path.isdir(inputs[0])
    if inputs.count(STREAM) > 1:
        raise UsageError("stdin can be given once.")
    if output == STREAM:
        if not single:
            raise UsageError("-o - is for one input, several need a folder.")
        return [Job(inputs[0], STREAM)]
    if single and not (output.endswith(os.sep) or os.path.isdir(output)):
        if suffixes and os.path.splitext(output)[1].lower() not in suffixes:
            raise UsageError(f"-o {output}: expected a folder or a name that ends in {', '.join(suffixes)}.")
        return [Job(inputs[0], output)]
    if os.path.isfile(output):
        raise UsageError(f"-o {output} is a file, several inputs need a folder.")
    return [Job(path, os.path.join(output, os.path.splitext(name)[0] + suffix)) for name, path in files]


def _expand(inputs, find):
    """(name below the output folder, path) of every file, those of folders included."""
    for path in inputs:
        if path == STREAM:
            yield "stdin", path
        elif os.path.isdir(path):
            yield from find(path)
        else:
            yield os.path.basename(path), path


def _find_recordings(folder):
    from jaxcodec.datasets import recordings

    return [(name, os.fspath(path)) for name, path in recordings.list_audio(folder)]


def _find_bitstreams(folder):
    found = [
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
        if name.endswith(".jxc") and not name.startswith(".")
    ]
    if not found:
        raise ValueError(f"{folder} has no .jxc file in it.")
    return [(name, os.path.join(folder, name)) for name in sorted(found)]


@contextlib.contextmanager
def _output(target, suffix):
    """A file to write, which becomes `target` or goes to stdout."""
    from etils import epath

    from jaxcodec import atomic

    if target != STREAM:
        with atomic.replacing(target) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield (path := epath.Path(folder) / f"stdout{suffix}")
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _unpack(codec, data, keep_damaged):
    """Codes, samples and the damaged ranges of frames of a .jxc file."""
    from jaxcodec import bitstream, compress

    try:
        unpacked = compress.unpack(codec, data, errors="report" if keep_damaged else "raise")
    except bitstream.DamagedBlock as error:
        part = _seconds(codec, error.start_frame, error.stop_frame)
        raise ValueError(f"block {error.block} at {part} is damaged, --keep_damaged decodes the rest") from None
    return unpacked.codes, unpacked.num_samples, unpacked.damaged


def _seconds(codec, start_frame, stop_frame):
    return f"{start_frame / codec.frame_rate:.2f} to {stop_frame / codec.frame_rate:.2f} s"


def _decode_blocks(codec, codes, num_samples):
    """Blocks of audio (S,)."""
    import numpy as np

    from jaxcodec import inference

    if num_samples <= _WHOLE_SECONDS * codec.sample_rate:
        return [np.asarray(inference.decode(codec, codes, num_samples))]
    step = round(_WHOLE_SECONDS * codec.frame_rate)
    return inference.decode_blocks(codec, (codes[:, i : i + step] for i in range(0, codes.shape[1], step)), num_samples)


def _silence(blocks, ranges, hop_length):
    """Blocks (S,) with zeros in ranges (first frame, frame after the last) of the whole."""
    position = 0
    for block in blocks:
        block = block.copy() if ranges else block
        for frames in ranges:
            start, stop = (max(0, frame * hop_length - position) for frame in frames)
            block[start:stop] = 0
        position += len(block)
        yield block


def _describe(name):
    """Of a .jxc file or a model, as a dict."""
    from etils import epath

    from jaxcodec import bitstream

    path = None if name is None else epath.Path(name)
    if path is None or path.is_dir() or path.suffix == ".safetensors":
        return _describe_model(name)
    data = sys.stdin.buffer.read() if name == STREAM else path.read_bytes()
    header = bitstream.read_header(data)
    return dict(
        file=name,
        seconds=header.seconds,
        bytes=len(data),
        kbps=8e-3 * len(data) / header.seconds if header.seconds else None,
        nominal_kbps=header.bits_per_second / 1000,
        sample_rate=header.sample_rate,
        num_samples=header.num_samples,
        frame_rate=header.sample_rate / header.hop_length,
        num_frames=header.num_frames,
        num_codebooks=header.num_codebooks,
        codebook_size=header.codebook_size,
        entropy_coded=header.entropy_digest is not None,
        version=header.version,
        model=header.fingerprint.hex(),
    )


def _describe_model(name):
    import jax

    from jaxcodec import pretrained

    codec = pretrained.load(name)
    return dict(
        file=name or pretrained.BUNDLED,
        model=pretrained.fingerprint(codec).hex(),
        nominal_kbps=codec.bits_per_second / 1000,
        sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        causal=codec.causal,
        latency_seconds=codec.latency,
        entropy_coder=codec.entropy is not None,
        parameters=sum(array.size for array in jax.tree.leaves(codec.params)),
    )


def _format_description(description):
    def text(value):
        if value is None or isinstance(value, bool):
            return {None: "none", True: "yes", False: "no"}[value]
        return f"{value:g}" if isinstance(value, float) else str(value)

    width = max(map(len, description))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {text(value)}" for name, value in description.items())


class Clip(NamedTuple):
    """A recording to measure: what it is called, whose it is, and what `_read_clips` reads."""

    name: str
    speaker: str
    source: Any


def _find_clips(inputs, split):
    """The clips of files, of folders, and of one split of prepared folders."""
    from etils import epath

    prepared = [path for path in inputs if (epath.Path(path) / "dataset_info.json").exists()]
    if split and not prepared:
        raise UsageError("--split is for prepared folders, those with a dataset_info.json.")
    for path in inputs:
        if path in prepared:
            yield from _find_prepared(path, split or "validation")
        else:
            for name, file in _expand([path], _find_recordings):
                yield Clip(name, name.split("/")[0] if "/" in name else "", file)


def _find_prepared(folder, split):
    from types import SimpleNamespace

    from jaxcodec import audio, data

    source = data.open_split(SimpleNamespace(data_dir=folder, prepared_dir=""), split)

    def read(index, sample_rate):
        return audio.resample(audio.to_float(source[index]["audio"]), data.SAMPLE_RATE, sample_rate)

    for i in range(len(source)):
        yield Clip(source[i]["id"], source[i]["speaker"], functools.partial(read, i))


def _read_clips(files, sample_rate, failures, bar):
    """(name, audio (S,)) of every recording; those that cannot be read are named and listed in `failures`.

    Of (name, source) in `files`, where a source is a path, `-`, or a function of the sample rate.
    """
    for name, source in files:
        try:
            yield name, source(sample_rate) if callable(source) else _read_recording(source, sample_rate)
        except ValueError as error:
            failures.append(_explain(error))
            _tell(failures[-1])
        bar.update()


def _read_recording(path, sample_rate):
    import numpy as np

    from jaxcodec import audio

    return np.concatenate(list(audio.read_blocks(sys.stdin.buffer if path == STREAM else path, sample_rate)))


def _evaluation(codec, rows, code_counts, group):
    """What `eval` found and what it was found with, so that a number can be traced."""
    import datetime

    import jaxcodec
    from jaxcodec import evaluate, pretrained

    clips = {row["clip"]: row["seconds"] for row in rows}
    return dict(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        version=jaxcodec.__version__,
        model=pretrained.fingerprint(codec).hex(),
        config=codec.config.to_dict(),
        frame_rate=codec.frame_rate,
        clips=[dict(clip=name, seconds=seconds) for name, seconds in clips.items()],
        points=evaluate.summarize(rows),
        groups=evaluate.summarize(rows, (group, "codebooks")) if group else [],
        codebooks=evaluate.codebook_usage(code_counts),
        frames=int(code_counts[0].sum()),
        rows=rows,
    )


def _format_evaluation(report):
    from jaxcodec import evaluate

    model, clips = report["config"]["model"], report["clips"]
    text = [
        f"jaxcodec {report['version']}, model {report['model']} ({model['architecture']}, {model['num_codebooks']} x "
        f"{model['codebook_size']} at {report['frame_rate']:g} frames/s), {len(clips)} clips, "
        f"{sum(clip['seconds'] for clip in clips):.1f} s, {report['date']}",
        evaluate.format_table(report["points"]),
        f"codes of {report['frames']} frames\n{evaluate.format_usage(report['codebooks'])}",
    ]
    if report["groups"]:
        text.append(evaluate.format_groups(report["groups"], list(report["groups"][0])[:2]))
    return "\n\n".join(text)


def _write_evaluation(report, json_path, csv_path):
    from jaxcodec import atomic

    if json_path:
        with atomic.replacing(json_path) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    if csv_path:
        with atomic.replacing(csv_path) as path, open(path, "w", newline="") as file:
            table = csv.DictWriter(file, list(report["rows"][0]))
            table.writeheader()
            table.writerows(report["rows"])


def _refuse_existing(path, force):
    if os.path.lexists(path) and not force:
        raise ValueError(f"{path} exists, --force replaces it")


def _about(name, problem):
    """One line that begins with the name of the input."""
    text = _explain(problem)
    return text if name is None or text.startswith(name) else f"{name}: {text}"


def _explain(problem):
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    return " ".join(str(problem).split())


def _tell(message):
    from tqdm import tqdm

    tqdm.write(f"jaxcodec: {message}", file=sys.stderr)


def _stop(message, code):
    _tell(message)
    return code


def _bar(total):
    from tqdm import tqdm

    return tqdm(total=total, unit="file", file=sys.stderr, disable=None, leave=False)


if __name__ == "__main__":
    sys.exit(main())
