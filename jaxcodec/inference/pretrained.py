"""Trained codecs on disk: the bundled ones, orbax snapshots of a run, and single safetensors files.

A safetensors file holds the weights, the quantizer's constants, the probability model of the entropy coder and, in its
header, the recipe: all that encoding and decoding need. Tensors are named by their path, such as
"params/encoder/network/input/kernel". What a file says is checked before anything is made of it: the recipe against
`recipe.BOUNDS`, the tensors against the recipe, and all of it against the checksum in the header.
"""

import json

import flax.traverse_util
import jax
import ml_collections
import numpy as np
from etils import epath

from jaxcodec import atomic, bundled, codec as codec_module, recipe
from jaxcodec.bitstream import entropy
from jaxcodec.inference.trained import TrainedCodec

FORMAT = "jaxcodec 2"
READABLE = ("jaxcodec 1", FORMAT)  # 1 has a flat recipe


def load(path: epath.PathLike | None = None, *, best: bool = True) -> TrainedCodec:
    """A trained codec.

    Args:
      path: "files", the bundled codec for compression at any rate; "tokens", the bundled one with codebooks, for language
        models and the default; a safetensors file, or the checkpoint directory of a run of train.py, local or `gs://`.
      best: of a run, the best snapshot by validation SNR, or loss where bits are a term of it; or else the latest.

    Raises:
      ValueError: there is no codec at `path`, it cannot be read, or it has weights that are not finite.
    """
    path = "tokens" if path is None else path
    if path in bundled.BUNDLED:
        return _from_bytes(bundled.read(path), path, trusted=True)
    location = epath.Path(path).expanduser()
    if location.is_dir():
        from jaxcodec.training import checkpoint

        runs = location / "checkpoints"  # the directory of the run itself will do
        params, state, config = checkpoint.load_model(str(runs if runs.is_dir() else location), best=best)
        return make(params, state, config)
    if not location.exists():
        raise ValueError(f"There is no codec at {path}: expected a .safetensors file or the checkpoints of train.py.")
    return _from_bytes(location.read_bytes(), path)


def load_for(fingerprint: bytes) -> TrainedCodec:
    """The bundled codec of a fingerprint. Raises `ValueError` where there is none."""
    if (name := bundled.names().get(fingerprint)) is None:
        raise ValueError(f"made with the model {fingerprint.hex()}, which is not bundled: give that model (--model).")
    return load(name)


def make(params, state, config, entropy_model=None) -> TrainedCodec:
    """A `TrainedCodec` of params, the quantizer's state and the sections `model` and `fixes` of a config.

    `entropy_model` is what no weights hold: tables of codebooks, or a prior that predicts many frames at once.

    Raises:
      ValueError: a weight that is NaN or infinite, with the name of its array.
    """
    sections = {name: config[name].to_dict() for name in ("model", "fixes")}
    # By way of JSON, so that a codec equals itself after a file: a tuple comes back as a list.
    config = ml_collections.FrozenConfigDict(json.loads(json.dumps(sections)))
    module = codec_module.from_config(config.model, config.fixes)
    # Plain dicts, whatever they were.
    params = flax.traverse_util.unflatten_dict(flax.traverse_util.flatten_dict(params))
    # Not jnp.asarray, which compiles a program for every shape.
    params, constants = jax.device_put((params, module.quantizer.constants(state)))
    _check_finite({"params": params, module.quantizer.collection: constants})
    models = {"entropy": entropy_model}
    if kind := module.quantizer.prior_kind:  # the coder follows from the weights
        prior = entropy.from_arrays(kind, module.quantizer.prior_arrays(params["quantizer"]))
        models = {"entropy": prior, "fast_entropy": entropy_model}
    return TrainedCodec(params=params, constants=constants, module=module, config=config, **models)


def told_rate(codec: TrainedCodec) -> TrainedCodec:
    """A codec of gain and shape as one whose decoder is told the rate, and makes nothing of it; any other as it is."""
    model = codec.config.model
    if model.architecture != "gain_shape" or model.gain_shape.get("told_rate", False):
        return codec
    config = ml_collections.ConfigDict(codec.config.to_dict())
    config.model.gain_shape.told_rate = True
    config.model.latent_dim += 1
    leaves = flax.traverse_util.flatten_dict(codec.params)
    listening = ("decoder", "network", "input", "kernel")
    leaves[listening] = np.pad(leaves[listening], ((0, 1), (0, 0)))
    params = flax.traverse_util.unflatten_dict(leaves)
    return make(params, codec.module.quantizer.state_of(codec.constants), config, codec.entropy)


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
        tensors = {name: array.astype(dtype) for name, array in codec.arrays.items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that {dtype} cannot hold: store it as float32.")
    header = {"format": FORMAT, "config": codec.config.to_dict()}
    beside = codec.fast_entropy if codec.module.quantizer.prior_kind else codec.entropy  # what no weights hold
    if beside is not None:
        tensors |= {f"entropy/{name}": array for name, array in beside.to_arrays().items()}
        header["entropy"] = beside.kind
    header["checksum"] = _checksum(header, tensors)
    # One key: the order of several changes from call to call, and with it the file.
    return safetensors.numpy.save(tensors, {"jaxcodec": json.dumps(header)})


def _from_bytes(data, path, trusted=False):
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load(data)  # which checks that they lie within the file, apart from each other
        header = bundled.header(data)
        sections = flax.traverse_util.unflatten_dict(tensors, sep="/")
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file that can be read ({one_line(error)}).") from None
    found = header.get("format") if isinstance(header, dict) else None
    if found not in READABLE:
        raise ValueError(f'{path} holds no codec of this version: its format is "{one_line(found)}", not "{FORMAT}".')
    if header.pop("checksum", None) not in (None, _checksum(header, tensors)):  # older files have none
        raise ValueError(f"{path} is damaged: what it holds does not match its checksum.")
    try:
        return _from_sections(header, sections, sum(array.size for array in tensors.values()), trusted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_sections(header, sections, num_weights, trusted):
    """A codec of a file's header and arrays, of which there are so many numbers."""
    config = header.get("config")
    if not isinstance(config, dict) or config.keys() != {"model", "fixes"} or not isinstance(config["model"], dict):
        raise ValueError("the recipe is not one of the sections model and fixes.")
    config = config | {"model": recipe.upgraded(config["model"])}
    recipe.check(**config)
    if (least := recipe.least_weights(config["model"])) > num_weights:
        raise ValueError(f"a codec of its recipe has at least {least} weights, the file has {num_weights}.")
    config = ml_collections.ConfigDict(config)
    module = codec_module.from_config(config.model, config.fixes)
    tables, kind = sections.pop("entropy", {}), header.get("entropy", "tables")
    if not isinstance(tables, dict) or not isinstance(kind, str):
        raise ValueError("its entropy model is none.")
    if not trusted:  # the bundled models' checksum says enough, and tracing the codec takes a second
        _check_shapes(sections, module)
    if tables and kind != (fitted := module.quantizer.fitted_kind):
        raise ValueError(f"its entropy model is of the kind {one_line(kind)}, its quantizer has {fitted}.")
    model = entropy.from_arrays(kind, flax.traverse_util.flatten_dict(tables, sep="/")) if tables else None
    with np.errstate(over="ignore"):
        sections = jax.tree.map(lambda array: array.astype(np.float32), sections)
    state = module.quantizer.state_of(sections.get(module.quantizer.collection, {}))
    return make(sections["params"], state, config, model)


def _check_shapes(sections, module):
    """Raises `ValueError` where the arrays of a file are not those of the recipe."""
    params, state = jax.eval_shape(module.initial, jax.random.key(0))
    trees = {"params": params, module.quantizer.collection: module.quantizer.constants(state)}, sections
    expected, actual = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in trees)
    for name in sorted(expected.keys() | actual.keys()):
        shapes = [arrays[name].shape if name in arrays else None for arrays in (actual, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{one_line(name)} has shape {shapes[0]}, its recipe has {shapes[1]}.")
        if actual[name].dtype.kind != "f":
            raise ValueError(f"{name} holds {actual[name].dtype}, expected floating point.")


def _check_finite(tree):
    """Raises `ValueError` where a number is none: silence would come of it, without a word."""
    for name, array in flax.traverse_util.flatten_dict(tree, sep="/").items():
        if count := np.count_nonzero(~np.isfinite(np.asarray(array))):
            raise ValueError(f"{name} has {count} NaN or infinite values: the model is damaged, or its training was.")


def _checksum(header, tensors):
    """16 hex digits of all that a file holds."""
    return entropy.digest(dict(sorted(tensors.items())), json.dumps(header, sort_keys=True).encode())[:8].hex()


def one_line(text):
    """Anything as one line of at most 200 characters."""
    return " ".join(str(text).split())[:200]
