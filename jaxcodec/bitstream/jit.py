"""Whether blocks are coded by `compiled`, which needs numba, or by numpy. Bytes and codes are the same."""

import functools
from types import ModuleType

FRAMES_BEFORE = (
    1500  # that numpy codes in a process: less time than it takes to import numba and to load what it compiled
)
_frames = 0


def loops(num_frames: int) -> ModuleType | None:
    """`compiled` where it is worth its start for so many more frames, None where it is not or cannot be used."""
    global _frames
    _frames += num_frames
    return _compiled() if _frames > FRAMES_BEFORE else None


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
