"""Recordings to .jxc files."""

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, find_recordings, recording


def add_arguments(parser):
    """Inputs, where they go, and at what rate."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force")
    options.add_shared(parser, "--model", **options.BY_RATE)
    options.add_rate(parser)
    parser.add_argument("--no_entropy", action="store_true", help="codes at a fixed width")


def run(arguments):
    """Encodes."""
    from jaxcodec.inference import files

    with Jobs(arguments, "encoded", find_recordings, ".jxc") as jobs:
        codec = options.load(arguments)
        sources = ((job, recording(job.source)) for job in jobs)
        settings = dict(kbps=arguments.kbps, entropy=not arguments.no_entropy)
        for made in files.compress_files(codec, sources, options.rate(arguments, codec), **settings):
            if made.error:
                jobs.fail(made.key, made.error)
                continue
            with jobs.attempt(made.key) as output:
                output.write_bytes(made.data)
                jobs.count(made.key, made.num_samples / codec.sample_rate, len(made.data))
    return int(bool(jobs.failed))
