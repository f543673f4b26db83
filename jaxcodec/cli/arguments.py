"""Arguments that several commands have, and what they say about the codec."""

import argparse
import functools

from jaxcodec import quantizers
from jaxcodec.cli.jobs import UsageError
from jaxcodec.quantizers import KBPS


def _typed(parse):
    """`parse` as the type of an argument: argparse then says what its ValueError says."""

    def typed(text):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _above_zero(text):
    if not (value := float(text)) > 0:
        raise ValueError(f"{text} is not above 0")
    return value


def _from_zero(text):
    if not (value := float(text)) >= 0:
        raise ValueError(f"{text} is less than 0")
    return value


positive = _typed(quantizers.positive)  # a number of at least 1
seconds = _typed(_above_zero)
at_least_zero = _typed(_from_zero)
MODEL = "files or tokens, the bundled models, a .safetensors file or a run of train.py; default: "
SHARED = {
    "inputs": dict(nargs="+", metavar="IN", help="files and folders, - for stdin"),
    "--force": dict(action="store_true", help="replace what exists"),
    "--skip_existing": dict(action="store_true", help="leave out what exists: an interrupted folder goes on"),
    "--quiet": dict(action="store_true", help="no bars and no summary, problems only"),
    "--model": dict(metavar="M", help=MODEL + "files"),
    "--processes": dict(type=positive, default=1, metavar="P", help="that share the slow measures"),
}
BY_RATE = dict(help=MODEL + "files, tokens with --codebooks")
BY_FILE = dict(help=MODEL + "the bundled one that made the file")


def add_output(parser, help="file or folder to write, - for stdout"):
    """Where to."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=help)


def add_shared(parser, *names, **changed):
    """Some of `SHARED`, with what is `changed` in them."""
    for name in names:
        dashed = {"--" + name[2:].replace("_", "-")} - {name} if name.startswith("--") else ()
        parser.add_argument(name, *dashed, **SHARED[name] | changed)


def add_rate(parser):
    """A flag for every knob of every kind of quantizer, and one for the kinds that have a search."""
    for knob in (*_flags(), KBPS):
        parser.add_argument(f"--{knob.name}", type=_typed(knob.parse), metavar="N", help=knob.help)


def add_rates(parser):
    """The same, for several rates: of all but second knobs."""
    seconds = [kind.second for kind in quantizers.KINDS.values()]
    for knob in (*_flags(), KBPS):
        several = dict(type=_typed(functools.partial(_parse_several, knob.parse)), metavar="N,N")
        one = dict(type=_typed(knob.parse), metavar="N")
        parser.add_argument(f"--{knob.name}", help=knob.help, **one if knob in seconds else several)


def add_search(parser):
    """How much is given up for speed."""
    parser.add_argument("--beams", type=positive, metavar="N", help="of the search for tokens: fewer are faster")
    precisions = dict(choices=("default", "bfloat16"), metavar="P", help="of networks: default or bfloat16")
    parser.add_argument("--matmul_precision", "--matmul-precision", **precisions)


def _parse_several(parse, text):
    return [parse(part) for part in text.split(",")]


def _flags() -> list[quantizers.Knob]:
    """The knobs of all kinds."""
    return list({knob.name: knob for kind in quantizers.KINDS.values() for knob in kind.knobs}.values())


def rate(arguments, codec):
    """What the flags of the codec's knobs say, checked; what they do not say is the codec's own choice."""
    return _check(codec, _given(arguments, codec))


def rates(arguments, codec) -> list:
    """The same for several, or several targets; by default those that evaluation looks at."""
    from jaxcodec import evaluation

    named = _given(arguments, codec)
    if arguments.kbps is None and codec.knob.argument in named:
        return [_check(codec, named | {codec.knob.argument: value}) for value in named[codec.knob.argument]]
    if codec.knob.search is None:
        return [_check(codec, {codec.knob.argument: value} | named) for value in codec.module.quantizer.rates]
    return [evaluation.AtKbps(kbps, _check(codec, named)) for kbps in arguments.kbps or evaluation.KBPS]


def load(arguments):
    """The codec that --model names, or the bundled one whose rate is set by the flags that are given."""
    from jaxcodec.inference import pretrained, trained

    _refuse_two_rates(arguments)
    search = {name: getattr(arguments, name) for name in ("beams", "matmul_precision") if hasattr(arguments, name)}
    return trained.faster(pretrained.load(model(arguments)), **search)


def model(arguments) -> str:
    """What --model says, or the name of the bundled model."""
    from jaxcodec import bundled

    if arguments.model is not None:
        return arguments.model
    given = {knob.name for knob in (*_flags(), KBPS) if getattr(arguments, knob.name) is not None}
    if not given:
        return next(iter(bundled.BUNDLED))
    fitting = (name for name in bundled.BUNDLED if given <= _names(quantizers.KINDS[bundled.quantizer(name)]))
    return next(fitting, next(iter(bundled.BUNDLED)))


def loader(arguments):
    """From the content of a .jxc file to the codec for it: that of --model, or the bundled one that made the file."""
    from jaxcodec import bitstream
    from jaxcodec.inference import pretrained

    if arguments.model is not None:
        codec = pretrained.load(arguments.model)
        return lambda data: codec
    load = functools.cache(pretrained.load_for)
    return lambda data: load(bitstream.read_header(data).fingerprint)


def _kind(codec):
    return quantizers.kind_of(codec.config.model)


def _names(kind):
    """The flags that set the rate of a kind."""
    return {knob.name for knob in kind.knobs} | ({KBPS.name} if kind.knob.search else set())


def _refuse_two_rates(arguments):
    for kind in quantizers.KINDS.values():
        if kind.knob.search and None not in (arguments.kbps, getattr(arguments, kind.knob.name)):
            raise UsageError(f"--kbps and --{kind.knob.name} both set the rate: give one of them.")


def _given(arguments, codec):
    """What is said of the codec's knobs, by their arguments; raises `UsageError` for a flag of others."""
    names = _names(_kind(codec))
    for knob in (*_flags(), KBPS):
        if knob.name not in names and getattr(arguments, knob.name) is not None:
            flags = " and ".join(f"--{knob.name}" for knob in (*_kind(codec).knobs, KBPS) if knob.name in names)
            raise UsageError(f"--{knob.name} is for other models, the rate of this one is set by {flags}.")
    values = {knob.argument: getattr(arguments, knob.name) for knob in _kind(codec).knobs}
    return {argument: value for argument, value in values.items() if value is not None}


def _check(codec, named):
    try:
        return codec.check_rate(None, named)
    except ValueError as error:
        said = " ".join(
            f"--{knob.name} {named[knob.argument]}" for knob in _kind(codec).knobs if knob.argument in named
        )
        raise UsageError(f"{said}: {error}") from None
