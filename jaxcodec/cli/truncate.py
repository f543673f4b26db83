""".jxc files to smaller ones of fewer codebooks."""

from jaxcodec import quantizers
from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, find_bitstreams, read_bytes


def add_arguments(parser):
    """Inputs, where they go, and how much is kept."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force", "--skip_existing", "--quiet")
    options.add_shared(parser, "--model", **options.BY_FILE)
    parser.add_argument("--codebooks", type=options.positive, required=True, metavar="N", help="how many to keep")


def run(arguments):
    """Cuts codes without encoding again."""
    from jaxcodec import bitstream

    codec_of = None
    with Jobs(arguments, "truncated", find_bitstreams, ".jxc", (".jxc",)) as jobs:

        def truncate(job, output):
            nonlocal codec_of
            data = read_bytes(job.source)
            header = bitstream.read_header(data)
            kind = quantizers.KINDS.get(header.kind)
            if kind is None or not kind.knob.nested:
                raise ValueError(
                    f"its codes (of the kind {header.kind}) hold no lower rate: encode the recording again"
                )
            model = None
            if header.entropy_digest is not None:
                codec_of = codec_of or options.loader(arguments)
                model = codec_of(data).entropy
            smaller = bitstream.truncate(data, arguments.codebooks, model)
            output.write_bytes(smaller)
            return header.seconds, len(smaller)

        for job in jobs:
            jobs.attempt(job, lambda output, job=job: truncate(job, output))
    return int(bool(jobs.failed))
