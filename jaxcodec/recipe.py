"""The sections `model` and `fixes` of a recipe: what they may say, and how versions before 0.2 wrote them.

Those were flat, without a name of the quantizer. Files and snapshots of those versions are read by way of `upgraded`, and
fingerprints are those of the flat form for ever: a codec keeps its name, and its files, when the layout of recipes changes.
"""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class _Bound(NamedTuple):
    """What a field may be, and how that is said."""

    allows: Callable[[Any], bool]
    expected: str


def _whole(least, most):
    return _Bound(lambda x: type(x) is int and least <= x <= most, f"a whole number from {least} to {most}")


def _real(least, most):
    return _Bound(lambda x: type(x) in (int, float) and least <= x <= most, f"a number from {least:g} to {most:g}")


def _are_strides(x):
    whole = isinstance(x, list | tuple) and 1 <= len(x) <= 8 and all(type(n) is int and n >= 1 for n in x)
    return whole and math.prod(x) <= MAX_HOP_LENGTH


MAX_HOP_LENGTH = 2048  # an MDCT is a matrix of twice its square
_FLAG = _Bound(lambda x: type(x) is bool, "true or false")
_NAME = _Bound(lambda x: type(x) is str, "a name")
_GAIN = _real(1e-6, 1e6)
_HOP_LENGTH, _DEPTH, _KERNEL_SIZE, _EXPANSION = _whole(1, MAX_HOP_LENGTH), _whole(0, 16), _whole(1, 64), _whole(1, 16)
# Far beyond what anyone trains, and small enough that a network of them can be thought of without being built.
FIXES = (
    "fp32_stft",
    "small_vq_init",
    "loss_clamping",
    "ema_residual",
    "input_clipping",
    "no_tanh",
    "learnable_scale",
    "pure_mse",
)
BOUNDS: dict[str, dict[str, _Bound]] = {
    "model": {
        "architecture": _NAME,
        "quantizer": _NAME,
        "dtype": _NAME,
        "sample_rate": _whole(1, 10**6),
        "latent_dim": _whole(1, 4096),
        "width": _whole(1, 4096),
        "causal": _FLAG,
        "output_scale": _GAIN,
    },
    "model.mdct": {
        "hop_length": _HOP_LENGTH,
        "latent_gain": _GAIN,
        "encoder_depth": _DEPTH,
        "decoder_depth": _DEPTH,
        "kernel_size": _KERNEL_SIZE,
        "identity": _FLAG,
    },
    "model.transform": {
        "hop_length": _HOP_LENGTH,
        "depth": _DEPTH,
        "kernel_size": _KERNEL_SIZE,
        "expansion": _EXPANSION,
        "lookahead": _whole(0, 63),
    },
    "model.gain_shape": {
        "hop_length": _HOP_LENGTH,
        "tilt": _real(0, 1),
        "told_rate": _FLAG,
        "encoder_depth": _DEPTH,
        "decoder_depth": _DEPTH,
        "kernel_size": _KERNEL_SIZE,
        "expansion": _EXPANSION,
        "lookahead": _whole(0, 63),
    },
    "model.seanet": {
        "strides": _Bound(
            _are_strides, f"one to eight whole numbers of at least 1 whose product is at most {MAX_HOP_LENGTH}"
        )
    },
    "model.rvq": {
        "num_codebooks": _whole(1, 256),
        "codebook_size": _whole(2, 65536),
        "envelope_codebooks": _whole(0, 255),
        "beams": _whole(1, 64),
    },
    "model.scalar": {"width": _whole(2, 4096), "depth": _DEPTH},
    "fixes": dict.fromkeys(FIXES, _FLAG),
}
_LATER = {
    "model.rvq": {"envelope_codebooks", "beams"},
    "model.gain_shape": {"told_rate"},
}  # models of before these fields do not have them

_NESTED = {
    "mdct": ("hop_length", "latent_gain", "encoder_depth", "decoder_depth", "kernel_size", "identity"),
    "seanet": ("strides",),
    "rvq": ("num_codebooks", "codebook_size"),
}


def check(model: Any, fixes: Any) -> None:
    """Raises `ValueError`, one line, where a field of the sections is missing, unknown, or not within `BOUNDS`.

    A section that is named like the architecture or the quantizer and is not in that table is theirs to check.
    """
    _check_section("fixes", fixes)
    plain = (
        {name: value for name, value in model.items() if name in BOUNDS["model"]} if isinstance(model, dict) else model
    )
    _check_section("model", plain)
    used = {model["architecture"], model["quantizer"]}
    for name in sorted(model.keys() - plain.keys() | {name for name in used if f"model.{name}" in BOUNDS}):
        section = f"model.{name}"
        if section in BOUNDS:
            _check_section(section, model.get(name), whole=name in used)
        elif name not in used:
            raise ValueError(f"{_shown(section)} is unknown to this version.")


def _check_section(section, values, whole=True):
    """Checks one section; if it is `whole` nothing may be missing."""
    if not isinstance(values, dict):
        raise ValueError(f"{section} is {_shown(values)}, expected a section of the recipe.")
    bounds = BOUNDS[section]
    if unknown := sorted(values.keys() - bounds.keys()):
        raise ValueError(f"{_shown(f'{section}.{unknown[0]}')} is unknown to this version.")
    if missing := sorted(bounds.keys() - values.keys() - _LATER.get(section, set())) if whole else []:
        raise ValueError(f"{section}.{missing[0]} is missing, expected {bounds[missing[0]].expected}.")
    for name, value in values.items():
        if not bounds[name].allows(value):
            raise ValueError(f"{section}.{name} is {_shown(value)}, expected {bounds[name].expected}.")


def _shown(value):
    """A value as one line of at most 60 characters."""
    text = value if isinstance(value, str) and value.isascii() and value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def least_weights(model: dict) -> int:
    """Weights that a codec of a checked section has at the least: those of its convolutions and of a spectrum at the end."""
    section = model.get(model["architecture"], {})
    depth = sum(value for name, value in section.items() if name.endswith("depth"))
    return model["width"] * (section.get("hop_length", 1) + depth * section.get("kernel_size", 1))


def upgraded(model: dict) -> dict:
    """The section in today's layout, with what an architecture or a quantizer alone needs in a section of its own."""
    if "quantizer" in model:
        return model
    nested = {section: {name: model[name] for name in names if name in model} for section, names in _NESTED.items()}
    shared = {name: value for name, value in model.items() if not any(name in names for names in _NESTED.values())}
    return shared | {"quantizer": "rvq"} | nested


def flat(model: dict) -> dict:
    """The section without nesting, and without what only newer versions know where it says nothing new."""
    values = {name: value for name, value in model.items() if name not in _NESTED}
    for section in _NESTED:
        values |= model.get(section, {})
    if values.get("quantizer") == "rvq":
        del values["quantizer"]
    return values


def fingerprint(config: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """8 bytes that name a codec: sections of its recipe, "model" in any layout, and its weights and constants by path."""
    known = config | {"model": flat(upgraded(config["model"]))}
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.digest()
