"""Arguments that several commands have, and what they say about the codec."""

import argparse

from jaxcodec import quantizers
from jaxcodec.cli.jobs import UsageError


def _typed(parse):
    """`parse` as the type of an argument: argparse then says what its ValueError says."""

    def typed(text):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


positive = _typed(quantizers.positive)  # a number of at least 1
SHARED = {
    "inputs": dict(nargs="+", metavar="IN", help="files and folders, - for stdin"),
    "--force": dict(action="store_true", help="replace what exists"),
    "--model": dict(metavar="M", help="a .safetensors file or a run of train.py; default: the bundled model"),
    "--processes": dict(type=positive, default=1, metavar="P", help="that share the slow measures"),
}


def add_output(parser, help="file or folder to write, - for stdout"):
    """Where to."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=help)


def add_shared(parser, *names, **changed):
    """Some of `SHARED`, with what is `changed` in them."""
    for name in names:
        parser.add_argument(name, **SHARED[name] | changed)


def add_rate(parser):
    """A flag for the knob of every kind of quantizer."""
    for knob in knobs():
        parser.add_argument(f"--{knob.name}", type=_typed(knob.parse), metavar="N", help=knob.help)


def add_rates(parser):
    """The same, for several rates."""
    for knob in knobs():
        parse = _typed(lambda text, knob=knob: [knob.parse(part) for part in text.split(",")])
        parser.add_argument(f"--{knob.name}", type=parse, metavar="N,N", help="default: 1, 2, 4, ... and all")


def knobs() -> list[quantizers.Knob]:
    """The knobs of all kinds."""
    return list({kind.knob.name: kind.knob for kind in quantizers.KINDS.values()}.values())


def rate(arguments, codec):
    """What the flag of the codec's knob says, checked; by default the highest."""
    return _check(codec, _given(arguments, codec))


def rates(arguments, codec) -> list:
    """The same for several; by default those that evaluation looks at."""
    values = _given(arguments, codec)
    return [_check(codec, value) for value in (codec.module.quantizer.rates if values is None else values)]


def load(arguments):
    """The codec that --model names."""
    from jaxcodec.inference import pretrained

    return pretrained.load(arguments.model)


def _given(arguments, codec):
    for knob in knobs():
        if knob.name != codec.knob.name and getattr(arguments, knob.name) is not None:
            raise UsageError(f"--{knob.name} is for other models, the rate of this one is set by --{codec.knob.name}.")
    return getattr(arguments, codec.knob.name)


def _check(codec, value):
    try:
        return codec.check_rate(value)
    except ValueError as error:
        raise UsageError(f"--{codec.knob.name} {value}: {error}") from None
