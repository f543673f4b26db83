""".jxc files to recordings of their exact length."""

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, find_bitstreams, read_bytes


def add_arguments(parser):
    """Inputs, where they go, and as what."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force")
    options.add_shared(parser, "--model", **options.BY_FILE)
    formats = ("wav", "flac", "ogg", "opus", "mp3")
    parser.add_argument("--format", choices=formats, default="wav", help="of files in a folder and of stdout")
    parser.add_argument(
        "--max_seconds",
        type=options.seconds,
        metavar="S",
        help="of audio that a file may hold; default: 43200, 12 hours",
    )
    parser.add_argument("--keep_damaged", action="store_true", help="silence for damaged parts instead of no output")


def run(arguments):
    """Decodes."""
    from jaxcodec import audio
    from jaxcodec.inference import files

    suffix = "." + arguments.format
    with Jobs(arguments, "decoded", find_bitstreams, suffix, audio.EXTENSIONS) as jobs:
        codec_of = options.loader(arguments)
        for job in jobs:
            damaged = []
            with jobs.attempt(job) as output:
                data = read_bytes(job.source)
                codec = codec_of(data)
                decoded = files.decode_file(
                    codec,
                    data,
                    keep_damaged=arguments.keep_damaged,
                    max_seconds=arguments.max_seconds or files.MAX_SECONDS,
                )
                damaged = decoded.damaged
                audio.write_blocks(output, decoded.blocks, codec.sample_rate, decoded.num_samples)
                jobs.count(job, decoded.num_samples / codec.sample_rate, len(data))
            if damaged:
                silence = ", ".join(f"{start:.2f} to {stop:.2f} s" for start, stop in damaged)
                jobs.fail(job, f"damaged, silence at {silence}")
    return int(bool(jobs.failed))
