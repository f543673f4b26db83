"""A neural speech codec in JAX: encoder, EMA residual vector quantizer and scaled decoder.

    import jaxcodec

    codec = jaxcodec.load()                          # the bundled model, or load("checkpoints/telugu")
    codes = jaxcodec.encode(codec, audio)            # (S,) at codec.sample_rate -> (Q, T)
    audio = jaxcodec.decode(codec, codes, len(audio))

Shapes are written with one legend: `B` batch, `S` samples, `T` frames, `C` channels, `D` latent width, `Q` codebooks, `K`
codebook size, `F` frequency bins. Audio is (B, S), activations (B, T, C), codes (B, Q, T).
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxcodec.compress import pack, unpack
    from jaxcodec.inference import (
        TrainedCodec,
        decode,
        dequantize,
        encode,
        latents,
        quantize,
        reconstruct,
        synthesize,
    )
    from jaxcodec.pretrained import load, save
    from jaxcodec.streaming import StreamState, decode_step, encode_step, init_stream

# Public names and the modules they live in, imported when first used: `import jaxcodec` itself costs nothing.
_HOMES = {
    "compress": ("pack", "unpack"),
    "inference": (
        "TrainedCodec",
        "decode",
        "dequantize",
        "encode",
        "latents",
        "quantize",
        "reconstruct",
        "synthesize",
    ),
    "pretrained": ("load", "save"),
    "streaming": ("StreamState", "decode_step", "encode_step", "init_stream"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "StreamState",
    "TrainedCodec",
    "decode",
    "decode_step",
    "dequantize",
    "encode",
    "encode_step",
    "init_stream",
    "latents",
    "load",
    "pack",
    "quantize",
    "reconstruct",
    "save",
    "synthesize",
    "unpack",
]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxcodec' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxcodec.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *_MODULE_OF])
