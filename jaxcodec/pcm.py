"""Samples as 16-bit integers and as floats."""

import numpy as np

INT16_SCALE = 32768.0


def to_int16(audio: np.ndarray) -> np.ndarray:
    """float in [-1, 1] to int16: round(x * 32768), half to even, then clip to [-32768, 32767].

    The scale is the one `to_float` divides by, so int16 -> float -> int16 is the identity; only +1.0 itself,
    which int16 does not have, clips (to 32767).
    """
    return np.clip(np.rint(np.asarray(audio, np.float32) * INT16_SCALE), -32768, 32767).astype(np.int16)


def to_float(audio):
    """int16 to float32 in [-1, 1): x / 32768, exact; floats to float32. Takes tracers too.

    Raises:
      ValueError: another dtype.
    """
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / np.float32(INT16_SCALE)
    if audio.dtype.kind != "f" and audio.dtype.name != "bfloat16":
        raise ValueError(f"audio is {audio.dtype}, expected float in [-1, 1] or int16.")
    return audio.astype(np.float32)
