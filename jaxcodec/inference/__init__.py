"""A trained codec at work: in arrays (`functions`, `streaming`, computed in `windows`), in bytes and files, on disk."""

from jaxcodec.inference import files as files  # which has methods of codecs, as functions has
from jaxcodec.inference.functions import (
    decode as decode,
    decode_blocks as decode_blocks,
    dequantize as dequantize,
    encode as encode,
    encode_blocks as encode_blocks,
    latents as latents,
    quantize as quantize,
    reconstruct as reconstruct,
    synthesize as synthesize,
)
from jaxcodec.inference.trained import TrainedCodec as TrainedCodec
