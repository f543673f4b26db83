""".jxc files read to their last block: which are whole, and where the others are damaged."""

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import about, expand, find_bitstreams, note, open_all, progress_bar, tell


def add_arguments(parser):
    """What to read."""
    options.add_shared(parser, "inputs", "--quiet")
    options.add_shared(parser, "--model", **options.BY_FILE)
    parser.add_argument("--max_seconds", type=options.seconds, metavar="S", help="of audio that a file may hold; 43200")


def run(arguments):
    """Decodes every block of codes, to no sound: checksums, then what only decoding shows."""
    from jaxcodec.inference import files

    sources = [path for _, path in expand(arguments.inputs, find_bitstreams)]
    codec_of, whole, seconds = options.loader(arguments), 0, 0.0
    longest = arguments.max_seconds or files.MAX_SECONDS
    with progress_bar(len(sources)) as bar:
        opened = open_all(((source, source) for source in sources), codec_of)
        for read in files.read_together(opened, longest):
            source = read.key.job
            try:
                if read.codec is None:
                    raise read.key.error
                length, damaged = files.verify(read.codec, read.data, longest, read.content)
            except (ValueError, OSError) as error:
                tell(about("stdin" if source == "-" else source, error))
            else:
                if damaged:
                    places = ", ".join(f"{start:.2f} to {stop:.2f} s" for start, stop in damaged)
                    tell(f"{source}: damaged at {places}")
                else:
                    whole, seconds = whole + 1, seconds + length
            bar.update()
    note(f"{whole} of {len(sources)} files whole, {seconds:.1f} s of audio")
    return int(whole < len(sources))
