"""The codec measured on recordings, or on a prepared split."""

import csv
import datetime
import json

import jaxcodec
from jaxcodec import atomic
from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import UsageError, check_output, count, find_clips, read_clips, tell


def add_arguments(parser):
    """What is measured, at which rates, and where the figures go."""
    options.add_shared(parser, "inputs", "--force", "--quiet")
    options.add_shared(parser, "--model", **options.BY_RATE)
    options.add_rates(parser)
    options.add_search(parser)
    parser.add_argument("--split", metavar="NAME", help="of prepared folders; default: validation")
    parser.add_argument("--group", choices=("speaker",), help="also means by the first folder below IN")
    options.add_shared(parser, "--processes")
    parser.add_argument("--json", metavar="FILE", help="means, intervals and every clip")
    parser.add_argument("--csv", metavar="FILE", help="every clip")


def run(arguments):
    """Measures, prints tables, writes files."""
    import numpy as np

    from jaxcodec import evaluation

    for path in filter(None, (arguments.json, arguments.csv)):
        check_output(path, arguments.force, arguments.inputs)
    codec = options.load(arguments)
    rates = options.rates(arguments, codec)
    if missing := sorted(set(evaluation.MEASURES) - set(evaluation.installed())):
        tell(
            f"not measured, as their packages are not installed: {', '.join(missing)}: pip install 'jaxcodec[metrics]'"
        )
    failures: list[str] = []
    size = codec.module.quantizer.codebook_size
    code_counts = None if size is None else np.zeros((codec.num_codebooks, size), np.int64)
    clips = list(find_clips(arguments.inputs, arguments.split))
    speakers: dict[str, str] = {}
    for clip in clips:
        if clip.name in speakers:
            raise UsageError(f"two recordings are called {clip.name}: give the folder above them, or one at a time.")
        speakers[clip.name] = clip.speaker
    pairs = read_clips([(clip.name, clip.source) for clip in clips], codec.sample_rate, failures)
    unreached: list[str] = []
    measured = evaluation.evaluate(codec, pairs, rates, arguments.processes, code_counts, unreached)
    rows = [dict(clip=row["clip"], speaker=speakers[row["clip"]]) | row for row in measured]
    for problem in unreached:
        tell(problem)
    if not rows:
        raise ValueError("no recording could be measured.")
    measured_clips = len({row["clip"] for row in rows})
    for key in evaluation.installed():
        if without := len({row["clip"] for row in rows if row[key] is None}):
            tell(f"{key} is the mean without {without} of {count(measured_clips, 'clip')}: too short or silent")
    by = tuple(evaluation.columns(codec, rates[0]))
    report = _evaluation(codec, rows, code_counts, arguments.group, by)
    report |= dict(command=arguments.command, failed=failures + unreached)
    print(_format_evaluation(report, by))
    _write_evaluation(report, arguments.json, arguments.csv)
    return int(bool(failures + unreached))


def _evaluation(codec, rows, code_counts, group, by):
    """What `eval` found and what it was found with, so that a number can be traced; `by`: the columns that a rate is."""
    from jaxcodec import evaluation

    clips = {row["clip"]: row["seconds"] for row in rows}
    return dict(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        version=jaxcodec.__version__,
        model=codec.fingerprint.hex(),
        config=codec.config.to_dict(),
        frame_rate=codec.frame_rate,
        clips=[dict(clip=name, seconds=seconds) for name, seconds in clips.items()],
        knob=by[0],
        points=evaluation.summarize(rows, by),
        groups=evaluation.summarize(rows, (group, *by)) if group else [],
        codebooks=[] if code_counts is None else evaluation.codebook_usage(code_counts),
        frames=sum(codec.num_frames(round(seconds * codec.sample_rate)) for seconds in clips.values()),
        rows=rows,
    )


def _format_evaluation(report, by):
    from jaxcodec import evaluation

    model, clips = report["config"]["model"], report["clips"]
    settings = model.get(model["quantizer"], {})
    codes = (
        " x ".join(str(settings[name]) for name in ("num_codebooks", "codebook_size") if name in settings)
        or model["quantizer"]
    )
    text = [
        f"jaxcodec {report['version']}, model {report['model']} ({model['architecture']}, {codes} "
        f"at {report['frame_rate']:g} frames/s), {count(len(clips), 'clip')}, "
        f"{sum(clip['seconds'] for clip in clips):.1f} s, {report['date']}",
        evaluation.format_table(report["points"], by),
    ]
    if report["codebooks"]:
        text.append(f"codes of {report['frames']} frames\n{evaluation.format_usage(report['codebooks'])}")
    if report["groups"]:
        text.append(evaluation.format_groups(report["groups"], list(report["groups"][0])[: 1 + len(by)]))
    return "\n\n".join(text)


def _write_evaluation(report, json_path, csv_path):
    if json_path:
        with atomic.replacing(json_path) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    if csv_path:
        with atomic.replacing(csv_path) as path, open(path, "w", newline="") as file:
            table = csv.DictWriter(file, list(report["rows"][0]))
            table.writeheader()
            table.writerows(report["rows"])
