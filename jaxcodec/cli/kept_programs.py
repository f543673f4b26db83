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
import threading
import zlib
from collections.abc import Callable

from etils import epy

import jaxcodec
from jaxcodec import programs

with epy.lazy_imports():  # --help needs none of them, and JAX reads its settings when it is imported
    import jax
    from jax.experimental import serialize_executable
    from jax.experimental.compilation_cache import compilation_cache

    from jaxcodec import atomic


_MOST = 100  # programs, the longest not used go first: one of encoding or decoding has a megabyte


class KeptPrograms:
    """A runner for `programs.run_by`, with a folder to which nobody else may write: what it finds there is run.

    Of functions of a module and methods of a flax module, whose `repr` says all that its programs depend on; their results
    are one array, or arrays in dicts: what JSON can tell the structure of.
    """

    def __init__(self, folder: os.PathLike):
        self._folder = pathlib.Path(folder)
        self._programs: dict[tuple, Callable] = {}

    def __call__(self, function: Callable, *arguments):
        leaves, structure = jax.tree.flatten((arguments, {}))
        key = function, structure, tuple(map(_kind, leaves))
        if key in self._programs:
            return self._programs[key](*arguments)
        self._programs[key], result = _first(self._folder, arguments, *key)
        return result


def _kind(leaf):
    kind = jax.typeof(leaf)
    return kind.shape, str(kind.dtype), kind.weak_type


def _first(folder, arguments, function, structure, kinds):
    """The program for such arguments, kept, or compiled now and kept from now on, and its result."""
    name = _name(function, structure, kinds)
    path = folder / f"{name}.program"
    if name is None or _is_of_somebody_else(path):
        program = programs.jitted(function)
        return program, program(*arguments)
    try:
        program, result = _run(path.read_bytes(), structure, arguments)
        with contextlib.suppress(OSError):
            os.utime(path)
        return program, result
    except Exception:  # there is none, or none that runs, whatever is wrong: it is made anew
        pass
    with _without_jax_cache():  # of a program that came from there parts are missing in what can be kept of it
        compiled = jax.jit(function).lower(*arguments).compile()
    try:
        packed = _pack(compiled)
        _run(packed, structure, arguments)  # what does not run is not kept
        with atomic.replacing(path) as part:
            part.write_bytes(packed)
        kept = sorted(folder.glob("*.program"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_MOST]:
            file.unlink(missing_ok=True)
    except Exception:  # a full disk, or a backend that cannot tell what it made: the next process compiles too
        pass
    return compiled, compiled(*arguments)


def _is_of_somebody_else(path):
    """Whether it may be anything."""
    return hasattr(os, "getuid") and path.exists() and path.stat().st_uid != os.getuid()


def _pack(compiled):
    program, _, tree = serialize_executable.serialize(compiled)
    head = json.dumps(jax.tree.unflatten(tree, range(tree.num_leaves))).encode()
    return zlib.compress(head + b"\n" + program, 1)


def _run(packed, structure, arguments):
    """The program that was packed, and its result."""
    head, _, program = zlib.decompress(packed).partition(b"\n")
    tree, devices = jax.tree.structure(json.loads(head)), jax.devices()[:1]
    program = serialize_executable.deserialize_and_load(program, structure, tree, execution_devices=devices)
    return program, jax.block_until_ready(program(*arguments))


_compiling = threading.Lock()  # the setting is the process's


@contextlib.contextmanager
def _without_jax_cache():
    with _compiling:
        before = jax.config.values["jax_enable_compilation_cache"]
        try:
            _enable_jax_cache(False)
            yield
        finally:
            _enable_jax_cache(before)


def _enable_jax_cache(enabled):
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX asks only once


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
