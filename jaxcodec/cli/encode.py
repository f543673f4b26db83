"""Recordings to .jxc files."""

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, find_recordings, recording


def add_arguments(parser):
    """Inputs, where they go, and at what rate."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force", "--model")
    options.add_rate(parser)
    parser.add_argument("--no_entropy", action="store_true", help="codes at a fixed width")


def run(arguments):
    """Encodes."""
    from jaxcodec.inference import files

    with Jobs(arguments, "encoded", find_recordings, ".jxc") as jobs:
        codec = options.load(arguments)
        sources = ((job, recording(job.source)) for job in jobs)
        for encoded in files.encode_files(codec, sources, options.rate(arguments, codec)):
            if encoded.error:
                jobs.fail(encoded.key, encoded.error)
                continue
            with jobs.attempt(encoded.key) as output:
                data = files.pack(codec, encoded.codes, encoded.num_samples, entropy=not arguments.no_entropy)
                output.write_bytes(data)
                jobs.count(encoded.key, encoded.num_samples / codec.sample_rate, len(data))
    return int(bool(jobs.failed))
