"""The section `model` of a recipe, as it is and as versions before 0.2 wrote it: flat, without a name of the quantizer.

Files and snapshots of those versions are read by way of `upgraded`, and fingerprints are those of the flat form for ever: a
codec keeps its name, and its files, when the layout of recipes changes.
"""

import hashlib
import json

import numpy as np

_NESTED = {
    "mdct": ("hop_length", "latent_gain", "encoder_depth", "decoder_depth", "kernel_size", "identity"),
    "seanet": ("strides",),
    "rvq": ("num_codebooks", "codebook_size"),
}


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
