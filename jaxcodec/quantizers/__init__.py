"""Quantizers: latents to integer codes and back, a file for each kind.

`interface.Quantizer` says what a kind owes. Codec, training, inference, files, evaluation and commands ask that interface
and the kind's `Knob`; none of them asks which kind it is. A new one is a module with a `from_config(model, fixes)`, and an
entry of `KINDS`. Nothing here imports JAX: the command line reads the knobs before it knows whether it needs any.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

# Of scalar codes, dB: at the finest the loudest coefficient there can be is a code still.
MIN_QUALITY, MAX_QUALITY, QUALITY_DB = -66.0, 40.0, 0.125


class Knob(NamedTuple):
    """What a kind's rate is set with. A *rate* is a value of it, and None is the codec's best."""

    name: str  # a column of tables, a flag of commands
    argument: str  # of functions, where the rate is given by name
    help: str
    parse: Callable[[str], Any]  # of the flag's text; raises ValueError
    label: str  # of a rate on the page to listen on
    nested: bool = False  # the first rows of a clip's codes are codes of it at a lower rate: files can be cut to them
    # The coarsest value, the finest and their distance, where any number of bits a second can be had by a search.
    search: tuple[float, float, float] | None = None


class Kind(NamedTuple):
    """Where a kind of quantizer is found, and its knob.

    With a second knob a rate is a pair, either of which may be None: what the quantizer takes by default.
    """

    module: str  # that has `from_config(model, fixes) -> Quantizer`
    knob: Knob
    second: Knob | None = None

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """One or two."""
        return (self.knob,) if self.second is None else (self.knob, self.second)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.strip().removeprefix("-").isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    if (value := int(text)) < 1:
        raise ValueError(f"{value} is less than 1")
    return value


def kilobits(text: str) -> float:
    """Kilobits a second."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(f"{text} is not a rate, expected a number above 0")
    return value


# Of kinds whose first knob has a search, in its place.
KBPS = Knob(
    name="kbps",
    argument="kbps",
    help="of the whole file at most: the finest quality for that",
    parse=kilobits,
    label="at {:g} kbit/s",
)
KINDS = {
    "rvq": Kind(
        "jaxcodec.quantizers.gain_shape",  # which has the plain one too
        Knob(
            name="codebooks",
            argument="num_codebooks",
            help="the first N only: a lower rate",
            parse=positive,
            label="\N{MULTIPLICATION SIGN} {}",
            nested=True,
        ),
    ),
    "scalar": Kind(
        "jaxcodec.quantizers.scalar",
        Knob(
            name="quality",
            argument="quality",
            help="step of silence in dB: 6 less, a bit more",
            parse=float,
            label="at {0[0]:g} dB",
            search=(MAX_QUALITY, MIN_QUALITY, -QUALITY_DB),
        ),
        Knob(
            name="shape",
            argument="shape",
            help="0: least squared error, 1: noise that follows the speech, best to the ear; default 0.75",
            parse=float,
            label="shape {:g}",
        ),
    ),
}


def from_config(model, fixes):
    """The quantizer that the sections `model` and `fixes` of a config describe.

    Raises:
      ValueError: an unknown kind, settings that it cannot have.
    """
    return importlib.import_module(kind_of(model).module).from_config(model, fixes)


def kind_of(model) -> Kind:
    """The `Kind` that the section `model` of a config names."""
    if model.quantizer not in KINDS:
        raise ValueError(f'model.quantizer is "{model.quantizer}", expected {expected(KINDS)}.')
    return KINDS[model.quantizer]


def expected(names) -> str:
    """`"a" or "b"`, to say what would have been right."""
    return " or ".join(f'"{name}"' for name in names)
