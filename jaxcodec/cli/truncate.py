""".jxc files to smaller ones of fewer codebooks."""

from jaxcodec import quantizers
from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import Jobs, find_bitstreams, read_bytes


def add_arguments(parser):
    """Inputs, where they go, and how much is kept."""
    options.add_output(parser)
    options.add_shared(parser, "inputs", "--force", "--model")
    parser.add_argument("--codebooks", type=options.positive, required=True, metavar="N", help="how many to keep")


def run(arguments):
    """Cuts codes without encoding again."""
    from jaxcodec import bitstream

    codec = None
    with Jobs(arguments, "truncated", find_bitstreams, ".jxc") as jobs:
        for job in jobs:
            with jobs.attempt(job) as output:
                data = read_bytes(job.source)
                header = bitstream.read_header(data)
                kind = quantizers.KINDS.get(header.kind)
                if kind is None or not kind.knob.nested:
                    raise ValueError(
                        f"its codes (of the kind {header.kind}) hold no lower rate: encode the recording again"
                    )
                if header.entropy_digest is not None:
                    codec = codec or options.load(arguments)
                smaller = bitstream.truncate(data, arguments.codebooks, codec and codec.entropy)
                output.write_bytes(smaller)
                jobs.count(job, header.seconds, len(smaller))
    return int(bool(jobs.failed))
