""".jxc files to recordings of their exact length."""

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, Within, find_bitstreams, open_all

FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "au", "caf", "w64")  # audio.WRITABLE, without loading it


def add_arguments(parser):
    """Inputs, where they go, and as what."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force", "--skip_existing", "--quiet")
    options.add_shared(parser, "--model", **options.BY_FILE)
    parser.add_argument("--format", choices=FORMATS, default="wav", help="of files in a folder and of stdout")
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
    with Jobs(arguments, "decoded", find_bitstreams, suffix, tuple(audio.WRITABLE)) as jobs:
        codec_of, longest = options.loader(arguments), arguments.max_seconds or files.MAX_SECONDS
        within = Within()

        def decode(read, output, damaged):
            job, codec, data = read.key.job, read.codec, read.data
            if codec is None:
                raise read.key.error
            decoded = files.decode_file(
                codec, data, keep_damaged=arguments.keep_damaged, max_seconds=longest, content=read.content
            )
            seconds = decoded.num_samples / codec.sample_rate

            def watched():
                done = 0
                for block in decoded.blocks:
                    yield block
                    done += len(block)
                    within(job, job.source, done / codec.sample_rate, seconds)

            audio.write_blocks(output, watched(), codec.sample_rate, decoded.num_samples)
            damaged += decoded.damaged
            return seconds, len(data)

        opened = open_all(((job, job.source) for job in jobs), codec_of)
        for read in files.read_together(opened, longest):
            job, damaged = read.key.job, []
            jobs.attempt(job, lambda output, read=read, damaged=damaged: decode(read, output, damaged))
            if damaged:
                silence = ", ".join(f"{start:.2f} to {stop:.2f} s" for start, stop in damaged)
                jobs.fail(job, f"damaged, silence at {silence}")
        within.close()
    return int(bool(jobs.failed))
