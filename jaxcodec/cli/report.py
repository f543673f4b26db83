"""A page to listen on: clips through the codec and through Opus, in step and blind, with figures."""

import argparse
import os

from jaxcodec import atomic
from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import (
    UsageError,
    check_output,
    count,
    expand,
    find_recordings,
    note,
    progress_bar,
    read_clips,
    tell,
)


def add_arguments(parser):
    """Which clips, which rates, and what is shown beside them."""
    options.add_shared(parser, "--force", "--quiet")
    options.add_shared(parser, "--model", **options.BY_RATE)
    parser.add_argument("output", metavar="OUT", help="folder of the page, index.html")
    parser.add_argument(
        "--clips", nargs="+", metavar="IN", help="files and folders; default: the bundled validation clips"
    )
    options.add_rates(parser)
    parser.add_argument(
        "--results", metavar="FILE", help="what benchmarks/rate_distortion.py wrote, for tables and plots"
    )
    parser.add_argument("--run", dest="run_folder", metavar="RUN", help=argparse.SUPPRESS)  # once, for its curves
    parser.add_argument("--title", default="Listen to jaxcodec")
    options.add_shared(parser, "--processes")


def run(arguments):
    """Renders, measures, composes."""
    from jaxcodec.report import content, webpage

    if arguments.output.endswith((".html", ".htm")) and not os.path.isdir(arguments.output):
        raise UsageError(
            f"{arguments.output} is the name of a file, expected a folder, in which index.html is written."
        )
    target = os.path.join(arguments.output, "index.html")
    check_output(target, arguments.force)
    codec, failures = options.load(arguments), []
    rates = options.rates(arguments, codec)
    results = arguments.results and content.read_results(arguments.results)
    if run := arguments.run_folder:
        tell(f"curves of a run are TensorBoard's: tensorboard --logdir {os.path.join(run, 'tensorboard')}")
    if arguments.clips:
        files = dict(expand(arguments.clips, find_recordings))
        chosen = content.spread(list(files))
        if len(chosen) < len(files):
            tell(f"{len(chosen)} of {len(files)} clips are taken, spread over their folders")
        pairs = read_clips([(name, files[name]) for name in chosen], codec.sample_rate, failures)
        clips, notice = [content.Clip(name, clip) for name, clip in pairs], ""
    else:
        clips, notice = content.bundled_clips(codec.sample_rate)
    clips = content.cut(clips, codec.sample_rate)
    with progress_bar(len(clips), "clip") as bar:
        rendered = content.render(codec, clips, rates, arguments.processes, bar)
    for problem in rendered.missing:
        tell(f"not on the page: {problem}")
    page = webpage.Page(
        title=arguments.title,
        model=content.model_name(options.model(arguments)),
        command=arguments.command,
        sources=" ".join(arguments.clips or ["the bundled validation clips"]),
        notice=notice,
        results=results,
    )
    text = webpage.compose(page, codec, clips, rendered)
    with atomic.replacing(target) as path:
        path.write_text(text)
    note(
        f"{target}: {count(len(clips), 'clip')} in {len(rendered.versions)} versions, {len(text.encode()) / 1e6:.1f} MB"
    )
    return int(bool(failures))
