"""Whether blocks are coded by `compiled`, which needs numba, or by numpy. Bytes and codes are the same."""

import functools
from types import ModuleType

from jaxcodec.bitstream import exact

# Frames that numpy codes in a process first: about as long as it takes to import numba and to read what it compiled, and
# as long as it takes to compile where that was not done yet.
FRAMES_BEFORE, FRAMES_BEFORE_COMPILING = 1500, 30_000
_frames = 0


def loops(num_frames: int) -> ModuleType | None:
    """`compiled` where it is worth its start for so many more frames, None where it is not or cannot be used."""
    global _frames
    _frames += num_frames
    module = _compiled() if _frames > FRAMES_BEFORE else None
    if module is None or not (_frames > FRAMES_BEFORE_COMPILING or module.kept()):
        return None
    exact.OPERATIONS.update(module.OPERATIONS)
    return module


@functools.cache
def _compiled():
    try:
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return None
        from jaxcodec.bitstream import compiled
    except (ImportError, RuntimeError):  # numba finds no folder where it may keep what it compiles
        return None
    return compiled
