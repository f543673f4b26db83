"""A trained codec for programs that do not have this package: StableHLO for JAX, ONNX for everything else.

Both are a directory with an encoder, a decoder and `codec.json`. Weights are inside; batch and time are free.

    encode: audio (B, T' * hop_length) float32 in [-1, 1], lengths (B,) int32 in samples -> codes (B, Q, T) int32
    decode: codes (B, Q, T) int32, lengths (B,) int32 in samples -> audio (B, T' * hop_length) float32

A clip of S samples, padded with anything, lies in T' = ceil(S / hop_length) blocks; `codec.json` says how many frames T that
makes. Files of weights for this package itself are written by `jaxcodec.save`.
"""

import importlib.util
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

from jaxcodec import inference
from jaxcodec.inference import TrainedCodec, windows
from jaxcodec.nn import layers

# What onnxruntime may differ by before an export is refused, relative to the largest value, and the share of codes that must
# be equal: its kernels add up in another order, and a frame near a tie gets another centroid, and then others in the rest.
TOLERANCE, EQUAL_CODES = 1e-4, 0.99


def export_stablehlo(
    codec: TrainedCodec, directory: epath.PathLike, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> list[epath.Path]:
    """Writes encode.stablehlo, decode.stablehlo and codec.json; `jax.export.deserialize(bytes).call` runs them.

    The codes are those of `jaxcodec.encode`, while B * T is at most some 4000: beyond, XLA's CPU backend may break a near
    tie the other way.

    Raises:
      ValueError: a platform that JAX does not know.
    """
    for platform in platforms:
        if platform not in ("cpu", "cuda", "rocm", "tpu"):
            raise ValueError(f'platform is "{platform}", expected "cpu", "cuda", "rocm" or "tpu".')
    directory = _make(directory)
    paths = []
    for name, function, arguments in zip(("encode", "decode"), (_encode, _decode), _arguments(codec), strict=True):
        # A closure, not an argument: the weights become constants.
        exported = export.export(jax.jit(lambda *xs, f=function: f(codec, *xs)), platforms=platforms)(
            *arguments.values()
        )
        paths.append(directory / f"{name}.stablehlo")
        paths[-1].write_bytes(exported.serialize())
    return [*paths, _write_description(codec, directory)]


def export_onnx(codec: TrainedCodec, directory: epath.PathLike) -> list[epath.Path]:
    """Writes encode.onnx, decode.onnx and codec.json, after onnxruntime has agreed with this package on noise.

    The encoder has a second result, the latents (B, T, D). How well it agreed stands in codec.json under "onnxruntime".

    Raises:
      ValueError: onnx or onnxruntime is missing, the codec computes in bfloat16, the results differ.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"ONNX export needs {package}: pip install 'jaxcodec[onnx]'.")
    if "bfloat16" in (codec.config.model.dtype, codec.matmul_precision):
        raise ValueError("ONNX export is for float32 codecs, this one computes in bfloat16.")
    from jaxcodec.export import onnx_graph

    directory = _make(directory)
    audio, codes = _arguments(codec)
    metadata = {name: str(value) for name, value in _description(codec).items()}
    functions = {
        "encode": (lambda *xs: _codes_and_latents(codec, *xs), audio, ("codes", "latents")),
        "decode": (lambda *xs: (_decode(codec, *xs),), codes, ("audio",)),
    }
    models = {name: onnx_graph.convert(*parts, metadata).SerializeToString() for name, parts in functions.items()}
    agreement = _check_onnx(codec, models)
    for name, model in models.items():
        (directory / f"{name}.onnx").write_bytes(model)
    return [*(directory / f"{name}.onnx" for name in models), _write_description(codec, directory, agreement)]


def _latents(codec, audio, lengths):
    return codec.module.apply(codec.variables, audio, layers.length_mask(lengths, audio.shape[1]), method="analyze")


def _synthesize(codec, latents, lengths):
    num_samples = codec.module.num_samples(latents.shape[1])
    return codec.module.apply(codec.variables, latents, lengths, num_samples, method="synthesize_clips")


def _encode(codec, audio, lengths):
    # Silence behind the clips: with fewer frames XLA's CPU backend would break near ties the other way.
    padded = jnp.pad(audio, ((0, 0), (0, windows.MIN_FRAMES * codec.hop_length)))
    codes = codec.module.apply(codec.variables, _latents(codec, padded, lengths), method="encode_latents")
    num_frames = codec.num_frames(audio.shape[1])
    exist = codec.module.frame_mask(lengths, num_frames)
    return codes[:, :, :num_frames] * exist[:, None]


def _decode(codec, codes, lengths):
    return _synthesize(codec, codec.module.apply(codec.variables, codes, method="dequantize"), lengths)


def _codes_and_latents(codec, audio, lengths):
    latents = _latents(codec, audio, lengths)
    return codec.module.apply(codec.variables, latents, method="encode_latents"), latents


def _arguments(codec):
    """Shapes of the encoder's and of the decoder's arguments, by name."""
    batch, blocks = export.symbolic_shape("b, t")
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    audio = jax.ShapeDtypeStruct((batch, codec.hop_length * blocks), jnp.float32)
    codes = jax.ShapeDtypeStruct((batch, codec.num_codebooks, blocks + _overlap(codec)), jnp.int32)
    return {"audio": audio, "lengths": lengths}, {"codes": codes, "lengths": lengths}


def _overlap(codec):
    return codec.module.decoder.network.overlap


def _check_onnx(codec, models):
    """How far onnxruntime is from this package on noise of several lengths, where that is near enough."""
    import onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(models[name]) for name in ("encode", "decode"))
    rng = np.random.default_rng(0)
    latents_error, audio_error, same = [], [], []
    for batch, blocks in ((1, 150), (2, 100)):
        audio = 0.1 * rng.standard_normal((batch, blocks * codec.hop_length), np.float32)
        lengths = np.array([audio.shape[1], 77 * codec.hop_length + 1], np.int32)[:batch]
        codes, latents = encoder.run(None, {"audio": audio, "lengths": lengths})
        (decoded,) = decoder.run(None, {"codes": codes, "lengths": lengths})
        for i, samples in enumerate(lengths):
            clip, frames = audio[i, :samples], codec.num_frames(int(samples))
            latents_error.append(_relative_error(latents[i, :frames], inference.latents(codec, clip)))
            expected = inference.decode(codec, codes[i, :, :frames], int(samples))
            audio_error.append(_relative_error(decoded[i, :samples], expected))
            same.append((codes[i, :, :frames] == inference.encode(codec, clip)).reshape(-1))
    agreement = dict(
        version=onnxruntime.__version__,
        latents_error=max(latents_error),
        audio_error=max(audio_error),
        equal_codes=float(np.concatenate(same).mean()),
    )
    if max(latents_error + audio_error) > TOLERANCE or agreement["equal_codes"] < EQUAL_CODES:
        raise ValueError(f"onnxruntime's results are not those of this package: {agreement}.")
    return agreement


def _relative_error(actual, expected):
    return float(np.abs(actual - np.asarray(expected)).max() / np.abs(expected).max())


def _make(directory):
    directory = epath.Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _description(codec):
    frames = f"ceil(num_samples / {codec.hop_length})"
    return dict(
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        num_frames=f"{frames} + {_overlap(codec)}" if _overlap(codec) else frames,
        fingerprint=codec.fingerprint.hex(),
    )


def _write_description(codec, directory, agreement=None):
    path = directory / "codec.json"
    description = _description(codec) | ({"onnxruntime": agreement} if agreement else {})
    path.write_text(json.dumps(description, indent=2) + "\n")
    return path
