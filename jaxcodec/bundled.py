"""The bundled models as files: their names, what they are, and whose a .jxc file is. Needs no JAX.

A model of one file is read by `inference.pretrained`.
"""

import functools
import importlib.resources
import json

from jaxcodec import recipe

BUNDLED = {"files": "speech_16khz_vbr.safetensors", "tokens": "speech_16khz_8kbps.safetensors"}


def read(name: str) -> bytes:
    """The content of the file of a bundled model."""
    return importlib.resources.files("jaxcodec").joinpath("models", BUNDLED[name]).read_bytes()


def header(data: bytes) -> dict:
    """What the safetensors file of a model says beside its tensors; empty for another program's file."""
    size = int.from_bytes(data[:8], "little")  # safetensors' own reader gives metadata of files only, not of bytes
    return json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("jaxcodec", "{}"))


@functools.cache
def quantizer(name: str) -> str:
    """The kind of quantizer of a bundled model, one of `quantizers.KINDS`."""
    return recipe.upgraded(header(read(name))["config"]["model"])["quantizer"]


@functools.cache
def names() -> dict[bytes, str]:
    """The bundled models by their fingerprints."""
    return {_fingerprint(read(name)): name for name in BUNDLED}


def _fingerprint(data):
    import safetensors.numpy

    arrays = {name: x for name, x in safetensors.numpy.load(data).items() if not name.startswith("entropy/")}
    return recipe.fingerprint(header(data)["config"], arrays)
