"""Recordings to .jxc files."""

import functools
import os

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import STREAM, Jobs, UsageError, Within, find_recordings, recording


def add_arguments(parser):
    """Inputs, where they go, and at what rate."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force", "--skip_existing", "--quiet")
    options.add_shared(parser, "--model", **options.BY_RATE)
    options.add_rate(parser)
    options.add_search(parser)
    parser.add_argument("--start", type=options.at_least_zero, metavar="S", help="encode from that second on")
    parser.add_argument("--end", type=options.seconds, metavar="S", help="encode to that second only")
    parser.add_argument("--no_entropy", action="store_true", help="codes at a fixed width")
    parser.add_argument(
        "--fast", action="store_true", help="files that are read and written faster and take more bytes"
    )
    blocks = dict(type=options.seconds, metavar="S", help="of a block: shorter are decoded faster and take more bytes")
    parser.add_argument("--block_seconds", "--block-seconds", **blocks)


def run(arguments):
    """Encodes."""
    from jaxcodec import audio
    from jaxcodec.inference import files

    start, end = arguments.start or 0.0, arguments.end
    if end is not None and end <= start:
        raise UsageError(f"--end {end:g} is not after --start {start:g}.")
    with Jobs(arguments, "encoded", find_recordings, ".jxc", (".jxc",)) as jobs:
        codec = options.load(arguments)
        within = Within()
        length = functools.cache(functools.partial(_length, audio, start, end))

        def progress(job, seconds):
            within(job, job.source, seconds, length(job.source))

        sources = ((job, recording(job.source)) for job in jobs)
        blocks = arguments.block_seconds or files.BLOCK_SECONDS
        layout = files.Layout(not arguments.no_entropy, blocks, arguments.fast)
        settings = dict(kbps=arguments.kbps, layout=layout, span=(start, end), progress=progress)
        for made in files.compress_files(codec, sources, options.rate(arguments, codec), **settings):
            if made.error:
                jobs.fail(made.key, made.error)
                continue

            def write(output, made=made):
                output.write_bytes(made.data)
                return made.num_samples / codec.sample_rate, len(made.data)

            jobs.attempt(made.key, write)
        within.close()
    return int(bool(jobs.failed))


def _length(audio, start, end, source):
    """Seconds to encode, where that is known."""
    whole = None if source == STREAM or not os.path.isfile(source) else audio.duration(source)
    return None if whole is None else min(whole, whole if end is None else end) - start
