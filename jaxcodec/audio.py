"""Audio files to mono float arrays and back.

Samples are float32 in [-1, 1], shape (S,), and keep their recorded level: nothing here normalises. Whatever
cannot be used raises a subclass of `UnreadableAudio` with a one-line message that names the file; `reason` is
a short key to count by. librosa and soundfile are imported on first use, so machines that only read prepared
shards need neither.
"""

import io
import struct
from typing import BinaryIO

import numpy as np
from etils import epath

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
INT16_SCALE = 32768.0
# Writers that stream to a pipe put a placeholder of this size or more into a wav header.
_STREAMED_SIZE = 0x7FFFF000
_BLOCK_FRAMES = 2**20


class UnreadableAudio(ValueError):
    """A file that cannot be used as speech. The message is one line: the file, then what is wrong with it."""

    reason = "unreadable"

    def __init__(self, path: epath.PathLike, problem: str):
        super().__init__(f"{path}: {problem}")


class ZeroBytes(UnreadableAudio):
    """The file has no bytes at all."""

    reason = "zero bytes"


class NotAudio(UnreadableAudio):
    """libsndfile does not recognise the content, or fails while decoding it."""

    reason = "not audio"


class TruncatedAudio(UnreadableAudio):
    """The header promises more samples than the file holds."""

    reason = "truncated"


class NonFiniteAudio(UnreadableAudio):
    """A floating-point file with NaN or infinite samples."""

    reason = "not finite"


class EmptyAudio(UnreadableAudio):
    """A valid file of 0 frames."""

    reason = "empty"


class TooShortAudio(UnreadableAudio):
    """Shorter than the shortest clip asked for."""

    reason = "too short"


class SilentAudio(UnreadableAudio):
    """No sample reaches the stated level."""

    reason = "silent"


def load(path: epath.PathLike, sample_rate: int = 16000) -> np.ndarray:
    """Reads a file of any format that libsndfile knows as mono float32 (S,) at `sample_rate` Hz.

    Channels are averaged; other rates are resampled by librosa's `soxr_hq`, and the overshoot that this can
    add to samples near full scale is clipped to [-1, 1]. `path` may be local or `gs://`. Raises
    `UnreadableAudio`.
    """
    try:
        with _open(path) as file:
            if not file.read(1):
                raise ZeroBytes(path, "zero bytes")
            _check_riff_size(file, path)
            audio, native_rate = _decode(file, path)
    except OSError as error:
        raise UnreadableAudio(path, error.strerror or " ".join(str(error).split())) from None
    if not audio.size:
        raise EmptyAudio(path, "0 frames of audio")
    if not np.isfinite(audio).all():
        raise NonFiniteAudio(path, f"{np.count_nonzero(~np.isfinite(audio))} NaN or infinite samples")
    return resample(audio, native_rate, sample_rate).clip(-1.0, 1.0)


def save(path: epath.PathLike, audio: np.ndarray, sample_rate: int = 16000) -> None:
    """Writes float audio (S,) as 16-bit PCM, in the format that the extension names (opus and mp3 are lossy).

    `path` may be local or `gs://`. Raises `ValueError` for an extension or a sample rate libsndfile cannot
    write.
    """
    import soundfile

    path = epath.Path(path)
    container = {".opus": "OGG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    subtype = {".opus": "OPUS", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}.get(path.suffix.lower(), "PCM_16")
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without extension'}, use one of {EXTENSIONS}")
    buffer = io.BytesIO()
    samples = audio if subtype != "PCM_16" else to_int16(audio)
    try:
        soundfile.write(buffer, samples, sample_rate, format=container, subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot write {sample_rate} Hz audio ({error.error_string})") from None
    path.write_bytes(buffer.getvalue())


def resample(audio: np.ndarray, native_rate: int, sample_rate: int) -> np.ndarray:
    """float32 (S,) at `native_rate` Hz to (ceil(S * sample_rate / native_rate),) at `sample_rate` Hz."""
    if native_rate == sample_rate:
        return audio
    import librosa

    return librosa.resample(audio, orig_sr=native_rate, target_sr=sample_rate, res_type="soxr_hq")


def to_int16(audio: np.ndarray) -> np.ndarray:
    """float in [-1, 1] to int16: round(x * 32768), half to even, then clip to [-32768, 32767].

    The scale is the one `to_float` divides by, so int16 -> float -> int16 is the identity; only +1.0 itself,
    which int16 does not have, clips (to 32767).
    """
    return np.clip(np.rint(np.asarray(audio, np.float32) * INT16_SCALE), -32768, 32767).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 to float32 in [-1, 1): x / 32768, exact."""
    return samples.astype(np.float32) / np.float32(INT16_SCALE)


def check_usable(
    audio: np.ndarray,
    path: epath.PathLike,
    *,
    sample_rate: int = 16000,
    min_seconds: float = 0.02,
    silence_dbfs: float = -70.0,
) -> None:
    """Raises `TooShortAudio` below `min_seconds`, `SilentAudio` if no sample reaches `silence_dbfs`."""
    seconds = len(audio) / sample_rate
    if seconds < min_seconds:
        raise TooShortAudio(path, f"{seconds:.3f} s long, the shortest clip used is {min_seconds} s")
    if np.abs(audio).max() < 10.0 ** (silence_dbfs / 20.0):
        raise SilentAudio(path, f"silent, no sample reaches {silence_dbfs:g} dBFS")


def _open(path: epath.PathLike) -> BinaryIO:
    """The file, seekable; a remote one is read into memory."""
    path = epath.Path(path)
    return io.BytesIO(path.read_bytes()) if "://" in str(path) else open(path, "rb")


def _decode(file: BinaryIO, path: epath.PathLike) -> tuple[np.ndarray, int]:
    """An encoded file to (float32 (S,) mono, native rate in Hz), in blocks, so that stereo is never whole."""
    import soundfile

    file.seek(0)
    blocks = [np.zeros(0, np.float32)]
    try:
        with soundfile.SoundFile(file) as sound:
            promised, native_rate = sound.frames, sound.samplerate
            while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless data needs parameters
        problem = getattr(error, "error_string", str(error)).rstrip(".")
        raise NotAudio(path, f"not audio that can be read ({problem})") from None
    audio = np.concatenate(blocks)
    if len(audio) < promised:
        raise TruncatedAudio(path, f"truncated, {len(audio)} of {promised} frames are there")
    return audio, native_rate


def _check_riff_size(file: BinaryIO, path: epath.PathLike) -> None:
    """Raises `TruncatedAudio` if a wav file's data chunk is cut short, of which libsndfile says nothing."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        present = end - file.tell()
        if name == b"data":
            if present < size < _STREAMED_SIZE:
                raise TruncatedAudio(path, f"truncated, {present} of {size} bytes of samples are there")
            return
        file.seek(size + size % 2, io.SEEK_CUR)
