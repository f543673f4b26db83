"""A folder of recordings to token files for language models."""

import os

from jaxcodec.cli import arguments as options, jobs
from jaxcodec.cli.jobs import check_output, count, note, tell


def add_arguments(parser):
    """Recordings, where the shards go, and who makes which."""
    options.add_shared(parser, "--quiet")
    options.add_shared(parser, "--model", default="tokens", help=options.MODEL + "tokens")
    parser.add_argument("folder", help="recordings at any depth")
    options.add_output(parser, "folder of the token files")
    parser.add_argument("--codebooks", type=options.positive, metavar="N", help="the first N only")
    options.add_search(parser)
    parser.add_argument("--shard_size", type=options.positive, default=1000, metavar="N", help="recordings a file")
    options.add_shared(parser, "--processes", help="files made at the same time")
    parser.add_argument("--shard_index", type=int, default=0, metavar="I", help="this host, of --num_shards hosts")
    parser.add_argument("--num_shards", type=options.positive, default=1, metavar="N", help="hosts that share the work")


def run(arguments):
    """Writes them, shard by shard."""
    from jaxcodec.inference import tokens

    check_output(os.path.join(arguments.output, tokens.MANIFEST), force=True)
    clips = frames = 0
    failed: dict[str, str] = {}
    names = "shard_size", "processes", "shard_index", "num_shards", "beams", "matmul_precision"
    work = {name: getattr(arguments, name) for name in names}
    for summary in tokens.write_tokens(
        arguments.model,
        arguments.folder,
        arguments.output,
        num_codebooks=arguments.codebooks,
        quiet=jobs.quiet,
        **work,
    ):
        clips, frames = clips + summary.clips, frames + summary.frames
        failed |= summary.failed
        for reason in summary.failed.values():
            tell(reason)
    note(f"{count(clips, 'recording')}, {frames} frames in {arguments.output}, {len(failed)} failed")
    return int(bool(failed))
