"""A neural speech codec in JAX: encoder, EMA residual vector quantizer and scaled decoder.

    import jaxcodec

    codec = jaxcodec.load()                          # the bundled model, or load("checkpoints/telugu")
    codes = jaxcodec.encode(codec, audio)            # (S,) at codec.sample_rate -> (Q, T)
    audio = jaxcodec.decode(codec, codes, len(audio))

Shapes are written with one legend: `B` batch, `S` samples, `T` frames, `C` channels, `D` latent width, `Q` codebooks, `K`
codebook size, `F` frequency bins. Audio is (B, S), activations (B, T, C), codes (B, Q, T).
"""

from etils import epy

__version__ = "0.1.0"

# Public names, imported when first used: `import jaxcodec` itself costs nothing. `as`
# tells type checkers that they are public.
with epy.lazy_api_imports(globals()):
    from jaxcodec import evaluation as evaluate  # noqa: F401, its name in version 0.1
    from jaxcodec.inference.files import (
        compress as compress,
        decompress as decompress,
        pack as pack,
        unpack as unpack,
    )
    from jaxcodec.inference.functions import (
        decode as decode,
        dequantize as dequantize,
        encode as encode,
        latents as latents,
        quantize as quantize,
        reconstruct as reconstruct,
        synthesize as synthesize,
    )
    from jaxcodec.inference.pretrained import load as load, save as save
    from jaxcodec.inference.streaming import (
        StreamState as StreamState,
        decode_end as decode_end,
        decode_step as decode_step,
        encode_step as encode_step,
        init_stream as init_stream,
    )
    from jaxcodec.inference.trained import TrainedCodec as TrainedCodec

    # Modules where version 0.1 had them.
    from jaxcodec.nn import metrics as metrics
    from jaxcodec.training import checkpoint as checkpoint
