"""Compiled programs that are kept whole for the next process, which then neither traces nor lowers nor compiles them.

JAX's own cache is asked for what XLA made of a program once it is traced and lowered, which takes a command longer than
all the rest of it. Here a program is known by what it is made from: the function, the shapes and static values of its
arguments, this package's source, JAX, its settings and the device.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import re
import zlib
from collections.abc import Callable

from etils import epy

from jaxcodec import atomic

with epy.lazy_imports():  # JAX reads its settings when it is imported, which may be later
    import jax
    from jax.experimental import serialize_executable

_folder: pathlib.Path | None = None
_loaded: dict = {}


def keep(folder: os.PathLike | None) -> None:
    """From now on `call` keeps programs in that folder, to which nobody else may write: what it finds there is run."""
    global _folder
    _folder = None if folder is None else pathlib.Path(folder)
    _loaded.clear()


def call(function: Callable, *arguments):
    """`jax.jit(function)(*arguments)`, by a kept program where programs are kept.

    Of a function of a module or a method of a flax module, whose `repr` says all that its programs depend on. The result
    is one array or a dict of some.
    """
    if _folder is None:
        return jitted(function)(*arguments)
    leaves, structure = jax.tree.flatten((arguments, {}))
    key = function, structure, tuple(map(_kind, leaves))
    if key not in _loaded:
        _loaded[key] = _load(_folder, function, arguments, key)
    return _loaded[key](*arguments)


@functools.cache
def jitted(function):
    """`jax.jit(function)`, the same for the same function."""
    return jax.jit(function)


def _kind(leaf):
    kind = jax.typeof(leaf)
    return kind.shape, str(kind.dtype), kind.weak_type


def _load(folder, function, arguments, key):
    """The program of arguments: kept, or compiled now and kept from now on."""
    name = _name(*key)
    if name is None:
        return jitted(function)
    path, device = folder / f"{name}.program", jax.devices()[0]
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():  # somebody else's, which may be anything
            return jitted(function)
        program, out_tree = pickle.loads(zlib.decompress(path.read_bytes()))
        return serialize_executable.deserialize_and_load(program, key[1], out_tree, execution_devices=[device])
    except Exception:  # there is none, or none that can be loaded, whatever is wrong: it is made anew
        pass
    compiled = jax.jit(function).lower(*arguments).compile()
    try:
        program, _, out_tree = serialize_executable.serialize(compiled)
        with atomic.replacing(path) as part:
            part.write_bytes(zlib.compress(pickle.dumps((program, out_tree)), 1))
    except Exception:  # a full disk, or a backend that cannot tell what it made: the next process compiles too
        pass
    return compiled


def _name(function, structure, kinds):
    """32 hex digits of all that a program depends on, None where that cannot be told."""
    made_from = function.__module__, function.__qualname__, repr(getattr(function, "__self__", None)), str(structure)
    if re.search(r" at 0x|<locals>|<lambda>", "".join(made_from)):
        return None
    return hashlib.sha256(repr((made_from, kinds, _surroundings())).encode()).hexdigest()[:32]


@functools.cache
def _surroundings():
    """What programs depend on beside themselves: this package's source, JAX, settings, the device and the processor."""
    files = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")]
    settings = sorted(jax.config.values.items()), os.environ.get("XLA_FLAGS")
    device = jax.devices()[0]
    processor = ""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:  # programs use what it can
        processor = next(line for line in file if line.startswith(("flags", "Features")))
    return source, versions, settings, device.device_kind, device.client.platform_version, len(jax.devices()), processor
