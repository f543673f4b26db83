"""Trained codecs on disk: the bundled one, orbax snapshots of a run, and single safetensors files.

A safetensors file holds the weights, the codebooks, the tables of the entropy coder and, in its header, the recipe: all
that encoding and decoding need. Tensors are named by their path, "params/encoder/network/input/kernel".
"""

import hashlib
import importlib.resources
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from jaxcodec import atomic
from jaxcodec import codec as codec_module
from jaxcodec.inference import TrainedCodec

FORMAT = "jaxcodec 1"
BUNDLED = "speech_16khz_8kbps.safetensors"


def load(path: epath.PathLike | None = None, *, best: bool = True) -> TrainedCodec:
    """A trained codec.

    Args:
      path: a safetensors file, or the checkpoint directory of a run of train.py; local or `gs://`. None: the bundled one.
      best: of a run, the best snapshot by validation SNR, or else the latest.

    Raises:
      ValueError: there is no codec at `path`, or it cannot be read.
    """
    if path is None:
        return _from_bytes(importlib.resources.files("jaxcodec").joinpath("models", BUNDLED).read_bytes(), BUNDLED)
    location = epath.Path(path).expanduser()
    if location.is_dir():
        from jaxcodec import checkpoint

        runs = location / "checkpoints"  # the directory of the run itself will do
        params, codebooks, config = checkpoint.load_model(str(runs if runs.is_dir() else location), best=best)
        return make(params, codebooks.centroids, config)
    if not location.exists():
        raise ValueError(f"There is no codec at {path}: expected a .safetensors file or the checkpoints of train.py.")
    return _from_bytes(location.read_bytes(), path)


def make(params, centroids, config, entropy=None) -> TrainedCodec:
    """A `TrainedCodec` of params, centroids (Q, K, D) and the sections `model` and `fixes` of a config."""
    sections = {name: config[name].to_dict() for name in ("model", "fixes")}
    # By way of JSON, so that a codec equals itself after a file: a tuple comes back as a list.
    recipe = ml_collections.FrozenConfigDict(json.loads(json.dumps(sections)))
    return TrainedCodec(
        params=flax.traverse_util.unflatten_dict(
            {key: jnp.asarray(value) for key, value in flax.traverse_util.flatten_dict(params).items()}
        ),
        centroids=jnp.asarray(centroids),
        module=codec_module.from_config(recipe.model, recipe.fixes),
        config=recipe,
        entropy=entropy,
    )


def save(codec: TrainedCodec, path: epath.PathLike, dtype: str = "float32") -> TrainedCodec:
    """Writes one safetensors file; weights of `dtype` "float16" take half the space. Returns the codec as written.

    Raises:
      ValueError: a dtype it cannot be stored in, a weight that float16 cannot hold.
    """
    data = to_bytes(codec, dtype)
    with atomic.replacing(epath.Path(path).expanduser()) as part:
        part.write_bytes(data)
    return _from_bytes(data, path)


def to_bytes(codec: TrainedCodec, dtype: str = "float32") -> bytes:
    """The content of the file that `save` writes."""
    import safetensors.numpy

    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype is "{dtype}", expected "float32" or "float16".')
    with np.errstate(over="ignore"):
        tensors = {name: array.astype(dtype) for name, array in _arrays(codec).items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that {dtype} cannot hold: store it as float32.")
    if codec.entropy is not None:
        tensors |= {f"entropy/{name}": array for name, array in codec.entropy.to_arrays().items()}
    # One key: the order of several changes from call to call, and with it the file.
    return safetensors.numpy.save(
        tensors, {"jaxcodec": json.dumps({"format": FORMAT, "config": codec.config.to_dict()})}
    )


def fingerprint(codec: TrainedCodec) -> bytes:
    """8 bytes that name the weights, the codebooks and the recipe: equal for codecs that make the same codes."""
    known, digest = _last_fingerprint
    if codec is not known:
        digest = _fingerprint(codec)
        _last_fingerprint[:] = codec, digest
    return digest


_last_fingerprint: list = [None, b""]  # a corpus is packed file by file, and hashing takes longer than packing


def _fingerprint(codec):
    digest = hashlib.blake2b(json.dumps(codec.config.to_dict(), sort_keys=True).encode(), digest_size=8)
    for name, array in sorted(_arrays(codec).items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.digest()


def _arrays(codec):
    flat = flax.traverse_util.flatten_dict(codec.params, sep="/")
    return {f"params/{name}": np.asarray(array) for name, array in flat.items()} | {
        "codebooks/centroids": np.asarray(codec.centroids)
    }


def _from_bytes(data, path):
    import safetensors.numpy

    from jaxcodec.entropy import EntropyModel

    try:
        tensors = safetensors.numpy.load(data)
        size = int.from_bytes(data[:8], "little")  # safetensors' own reader gives metadata of files only, not of bytes
        header = json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("jaxcodec", "{}"))
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file that can be read ({error}).") from None
    if header.get("format") != FORMAT:
        raise ValueError(
            f'{path} holds no codec of this version: its format is "{header.get("format")}", not "{FORMAT}".'
        )
    params, tables = _section(tensors, "params/"), _section(tensors, "entropy/")
    centroids = tensors.get("codebooks/centroids", np.zeros(0)).astype(np.float32)
    codec = make(
        flax.traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in params.items()}, sep="/"),
        centroids,
        ml_collections.ConfigDict(header["config"]),
        EntropyModel.from_arrays(tables) if tables else None,
    )
    _check_shapes(codec, path)
    return codec


def _section(tensors, prefix):
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _check_shapes(codec, path):
    """Raises `ValueError` where the arrays are not those of the recipe."""
    expected = jax.eval_shape(
        codec.module.init, jax.random.key(0), jnp.zeros((1, 2 * codec.hop_length)), jnp.zeros(1, jnp.int32)
    )
    flat = flax.traverse_util.flatten_dict(expected["params"], sep="/")
    shapes = {f"params/{name}": array.shape for name, array in flat.items()}
    shapes["codebooks/centroids"] = expected["codebooks"]["quantizer"]["averages"].centroids.shape
    actual = {name: array.shape for name, array in _arrays(codec).items()}
    for name in sorted(shapes.keys() | actual.keys()):
        if shapes.get(name) != actual.get(name):
            raise ValueError(f"{path}: {name} has shape {actual.get(name)}, its recipe has {shapes.get(name)}.")
