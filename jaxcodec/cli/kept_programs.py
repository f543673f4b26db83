"""Compiled programs that are kept whole for the next process, which then neither traces nor lowers nor compiles them.

JAX's own cache is asked for what XLA made of a program once it is traced and lowered, which takes a command longer than
all the rest of it. Here a program is known by what it is made from: the function, the shapes and static values of its
arguments, this package's source, JAX, its settings and the device.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable

from etils import epy

import jaxcodec
from jaxcodec import programs

with epy.lazy_imports():  # --help needs none of them, and JAX reads its settings when it is imported
    import jax
    from jax.experimental import serialize_executable

    from jaxcodec import atomic


class KeptPrograms:
    """A runner for `programs.run_by`, with a folder to which nobody else may write: what it finds there is run.

    Of functions of a module and methods of a flax module, whose `repr` says all that its programs depend on; their results
    are one array, or arrays in dicts: what JSON can tell the structure of.
    """

    def __init__(self, folder: os.PathLike):
        self._folder = pathlib.Path(folder)
        self._loaded: dict[tuple, Callable] = {}

    def __call__(self, function: Callable, *arguments):
        leaves, structure = jax.tree.flatten((arguments, {}))
        key = function, structure, tuple(map(_kind, leaves))
        if key not in self._loaded:
            self._loaded[key] = _load(self._folder, arguments, *key)
        return self._loaded[key](*arguments)


def _kind(leaf):
    kind = jax.typeof(leaf)
    return kind.shape, str(kind.dtype), kind.weak_type


def _load(folder, arguments, function, structure, kinds):
    """The program of arguments: kept, or compiled now and kept from now on."""
    name = _name(function, structure, kinds)
    if name is None:
        return programs.jitted(function)
    path, device = folder / f"{name}.program", jax.devices()[0]
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():  # somebody else's, which may be anything
            return programs.jitted(function)
        head, _, program = zlib.decompress(path.read_bytes()).partition(b"\n")
        tree = jax.tree.structure(json.loads(head))
        return serialize_executable.deserialize_and_load(program, structure, tree, execution_devices=[device])
    except Exception:  # there is none, or none that can be loaded, whatever is wrong: it is made anew
        pass
    compiled = jax.jit(function).lower(*arguments).compile()
    try:
        program, _, tree = serialize_executable.serialize(compiled)
        head = json.dumps(jax.tree.unflatten(tree, range(tree.num_leaves))).encode()
        with atomic.replacing(path) as part:
            part.write_bytes(zlib.compress(head + b"\n" + program, 1))
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
    files = sorted(pathlib.Path(jaxcodec.__file__).parent.rglob("*.py"))
    source = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")]
    settings = sorted(jax.config.values.items()), os.environ.get("XLA_FLAGS")
    device = jax.devices()[0]
    processor = ""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:  # programs use what it can
        processor = next(line for line in file if line.startswith(("flags", "Features")))
    return source, versions, settings, device.device_kind, device.client.platform_version, len(jax.devices()), processor
