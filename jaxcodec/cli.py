"""The command line: recordings to .jxc files and back, and what is done with a trained codec around that.

    jaxcodec encode speech.wav -o speech.jxc
    jaxcodec decode speech.jxc -o decoded.wav

Exit codes: 0 done; 1 an input failed, each named in one line on stderr; 2 a command that makes no sense; 130 interrupted.
"""

import argparse
import contextlib
import csv
import json
import logging
import os
import shlex
import sys

from jaxcodec.jobs import (
    STREAM,
    Jobs,
    UsageError,
    about,
    expand,
    explain,
    find_bitstreams,
    find_clips,
    find_recordings,
    progress_bar,
    read_clips,
    refuse_existing,
    tell,
)

DESCRIPTION = "A neural speech codec: 16 kHz speech to 8 kbit/s and back."
_WHOLE_SECONDS = 20  # decoded at once, in a window of its size; longer files in blocks


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
        return _stop(explain(error), 1)
    except KeyboardInterrupt:
        return _stop("interrupted", 130)


def encode(arguments):
    """Recordings to .jxc files."""
    from jaxcodec import compress, tokens

    with Jobs(arguments, "encoded", find_recordings, ".jxc") as jobs:
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
    with Jobs(arguments, "decoded", find_bitstreams, suffix, audio.EXTENSIONS) as jobs:
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
    with Jobs(arguments, "truncated", find_bitstreams, ".jxc") as jobs:
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
            tell(about(name, error))
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
        refuse_existing(path, arguments.force)
    codec = _load(arguments)
    codebooks = [_check_codebooks(codec, count) for count in arguments.codebooks or _doublings(codec.num_codebooks)]
    for key in sorted(set(evaluate.MEASURES) - set(evaluate.installed())):
        tell(f"{key} is not measured, its package is not installed: pip install 'jaxcodec[metrics]'")
    failures: list[str] = []
    code_counts = np.zeros((codec.num_codebooks, codec.codebook_size), np.int64)
    clips = list(find_clips(arguments.inputs, arguments.split))
    speakers: dict[str, str] = {}
    for clip in clips:
        if clip.name in speakers:
            raise UsageError(f"two recordings are called {clip.name}: give the folder above them, or one at a time.")
        speakers[clip.name] = clip.speaker
    with progress_bar(len(clips)) as bar:
        pairs = read_clips([(clip.name, clip.source) for clip in clips], codec.sample_rate, failures, bar)
        rows = list(evaluate.evaluate(codec, pairs, codebooks, arguments.processes, code_counts))
    if not rows:
        raise ValueError("no recording could be read.")
    rows = [dict(clip=row["clip"], speaker=speakers[row["clip"]]) | row for row in rows]
    for key in evaluate.installed():
        if without := len({row["clip"] for row in rows if row[key] is None}):
            tell(f"{key} is the mean without {without} of {len(clips) - len(failures)} clips: too short or silent")
    report = _evaluation(codec, rows, code_counts, arguments.group) | dict(command=arguments.command, failed=failures)
    print(_format_evaluation(report))
    _write_evaluation(report, arguments.json, arguments.csv)
    return int(bool(failures))


def report(arguments):
    """A page to listen on: clips through the codec and through Opus, in step and blind, with figures and curves."""
    from etils import epath

    from jaxcodec import atomic, report, webpage

    target = os.path.join(arguments.output, "index.html")
    refuse_existing(target, arguments.force)
    codec, failures = _load(arguments), []
    codebooks = [_check_codebooks(codec, count) for count in arguments.codebooks or _doublings(codec.num_codebooks)]
    results = arguments.results and report.read_results(arguments.results)
    run = arguments.run_folder or (arguments.model if os.path.isdir(f"{arguments.model}/tensorboard") else None)
    scalars = run and report.read_run(run)
    if arguments.clips:
        files = dict(expand(arguments.clips, find_recordings))
        chosen = report.spread(list(files))
        if len(chosen) < len(files):
            tell(f"{len(chosen)} of {len(files)} clips are taken, spread over their folders")
        with progress_bar(len(chosen)) as bar:
            pairs = read_clips([(name, files[name]) for name in chosen], codec.sample_rate, failures, bar)
            clips, notice = [report.Clip(name, clip) for name, clip in pairs], ""
        if not clips:
            raise ValueError("no recording could be read.")
    else:
        clips, notice = report.bundled_clips(codec.sample_rate)
    clips = report.cut(clips, codec.sample_rate)
    rendered = report.render(codec, clips, codebooks, arguments.processes)
    for problem in rendered.missing:
        tell(f"not on the page: {problem}")
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
    tell(f"{target}: {len(clips)} clips in {len(rendered.versions)} versions, {len(text.encode()) / 1e6:.1f} MB")
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
            tell(reason)
    tell(f"{clips} recordings, {frames} frames in {arguments.output}, {len(failed)} recordings failed")
    return int(bool(failed))


def export(arguments):
    """The model for other programs."""
    from jaxcodec import entropy, export, pretrained, tokens

    if arguments.format != "safetensors" and (arguments.dtype != "float32" or arguments.entropy_data):
        raise UsageError(f"--dtype and --entropy_data are for safetensors files, not for {arguments.format}.")
    refuse_existing(arguments.output, arguments.force)
    codec, failed = _load(arguments), False
    if arguments.entropy_data:
        clips, files = [], find_recordings(arguments.entropy_data)
        with progress_bar(len(files)) as bar:
            for encoded in tokens.encode_files(codec, files):
                if encoded.error:
                    failed = True
                    tell(explain(encoded.error))
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


def _stop(message, code):
    tell(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
