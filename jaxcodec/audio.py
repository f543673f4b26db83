"""Audio files to mono float arrays and back.

Samples are float32 in [-1, 1], shape (S,), and keep their recorded level: nothing here normalizes. Whatever
cannot be used raises a subclass of `UnreadableAudio` with a one-line message that names the file; `reason` is
a short key to count by. soundfile and soxr are imported on first use, so machines that only read prepared
shards need none of them.
"""

import contextlib
import io
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from jaxcodec.pcm import to_float as to_float, to_int16 as to_int16

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# Writers that stream to a pipe put a placeholder of this size or more into a wav header.
_STREAMED_SIZE = 0x7FFFF000
_WAV_BYTES = 2**32 - 2**12  # more samples than this, less room for chunks, need RF64's 64-bit sizes


class UnreadableAudio(ValueError):
    """A file that cannot be used as speech. The message is one line: the file, then what is wrong with it."""

    reason = "unreadable"

    def __init_subclass__(cls, reason: str):
        cls.reason = reason

    def __init__(self, path: epath.PathLike, problem: str):
        super().__init__(f"{path}: {problem}")


class ZeroBytes(UnreadableAudio, reason="zero bytes"):
    """The file has no bytes at all."""


class NotAudio(UnreadableAudio, reason="not audio"):
    """libsndfile does not recognize the content, or fails while decoding it."""


class TruncatedAudio(UnreadableAudio, reason="truncated"):
    """The header promises more samples than the file holds."""


class NonFiniteAudio(UnreadableAudio, reason="not finite"):
    """A floating-point file with NaN or infinite samples."""


class EmptyAudio(UnreadableAudio, reason="empty"):
    """A valid file of 0 frames."""


class TooShortAudio(UnreadableAudio, reason="too short"):
    """Shorter than the shortest clip asked for."""


class SilentAudio(UnreadableAudio, reason="silent"):
    """No sample reaches the stated level."""


def load(source: epath.PathLike | BinaryIO, sample_rate: int = 16000) -> np.ndarray:
    """Reads a file of any format that libsndfile knows as mono float32 (S,) at `sample_rate` Hz.

    Channels are averaged; other rates are resampled by soxr's HQ, and the overshoot that this can add to samples near
    full scale is clipped to [-1, 1]. `source` may be local, `gs://`, or an open binary file. Raises `UnreadableAudio`.
    """
    return np.concatenate(list(read_blocks(source, sample_rate)))


def read_blocks(
    source: epath.PathLike | BinaryIO, sample_rate: int = 16000, block_seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """What `load` reads, bit for bit, as consecutive blocks (S,) of about `block_seconds`: memory stays bounded.

    `source` may be an open binary file too; one that cannot seek, such as a pipe, is first copied to a temporary file.
    Raises `UnreadableAudio`, for a file that turns out to be damaged only after the blocks before the damage.
    """
    name = source if _is_path(source) else str(getattr(source, "name", "audio")).strip("<>")
    try:
        with _open(source) as file:
            if not file.read(1):
                raise ZeroBytes(name, "zero bytes")
            _check_riff_size(file, name)
            yield from _decode(file, name, sample_rate, block_seconds)
    except OSError as error:
        raise UnreadableAudio(name, error.strerror or " ".join(str(error).split())) from None


def save(path: epath.PathLike, audio: np.ndarray, sample_rate: int = 16000) -> None:
    """Writes float audio (S,) as 16-bit PCM, in the format that the extension names (opus and mp3 are lossy).

    `path` may be local or `gs://`. Raises `ValueError` for an extension or a sample rate libsndfile cannot
    write.
    """
    buffer = io.BytesIO()
    _write(buffer, path, [audio], sample_rate, len(audio))
    epath.Path(path).write_bytes(buffer.getvalue())


def write_blocks(
    path: epath.PathLike, blocks: Iterable[np.ndarray], sample_rate: int = 16000, num_samples: int | None = None
) -> None:
    """Writes consecutive blocks (S,) as `save` writes the whole, one by one, to a local `path`.

    `num_samples` is how many will come, where that is known: a wav file of more than 4 GiB is then written as RF64.
    Raises `ValueError` as `save` does, and for a wav file that grows beyond 4 GiB unannounced.
    """
    with open(path, "w+b") as file:
        _write(file, path, blocks, sample_rate, num_samples)


def resample(audio: np.ndarray, native_rate: int, sample_rate: int) -> np.ndarray:
    """float32 (S,) at `native_rate` Hz to (ceil(S * sample_rate / native_rate),) at `sample_rate` Hz."""
    if native_rate == sample_rate:
        return audio
    import soxr

    resampled = soxr.resample(audio, native_rate, sample_rate, "soxr_hq")
    missing = -(-len(audio) * sample_rate // native_rate) - len(resampled)
    return np.pad(resampled, (0, max(0, missing)))[: len(resampled) + missing].astype(audio.dtype)


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


@contextlib.contextmanager
def _open(source: epath.PathLike | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a seekable file; a remote one is read into memory."""
    if _is_path(source):
        path = epath.Path(source)
        with io.BytesIO(path.read_bytes()) if "://" in str(path) else open(path, "rb") as file:
            yield file
    elif source.seekable():
        yield source
    else:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(source, file)
            file.seek(0)
            yield file


def _is_path(source) -> bool:
    return isinstance(source, str) or hasattr(source, "__fspath__")


def _decode(file: BinaryIO, path: epath.PathLike, sample_rate: int, block_seconds: float) -> Iterator[np.ndarray]:
    """An encoded file as mono blocks (S,) at `sample_rate`, checked."""
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            blocks = _read_mono(sound, path, max(1, round(block_seconds * sound.samplerate)))
            yield from (block.clip(-1.0, 1.0) for block in _resample_blocks(blocks, sound.samplerate, sample_rate))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless data needs parameters
        problem = getattr(error, "error_string", str(error)).rstrip(".")
        raise NotAudio(path, f"not audio that can be read ({problem})") from None


def _read_mono(sound, path: epath.PathLike, block_frames: int) -> Iterator[np.ndarray]:
    """Blocks (S,) at the file's own rate, checked."""
    present = 0
    while len(block := sound.read(block_frames, dtype="float32", always_2d=True)):
        mono = block.mean(axis=1)
        if not np.isfinite(mono).all():
            first = (present + np.argmin(np.isfinite(mono))) / sound.samplerate
            raise NonFiniteAudio(path, f"NaN or infinite samples, the first at {first:.3f} s")
        present += len(mono)
        yield mono
    if present < sound.frames:
        raise TruncatedAudio(path, f"truncated, {present} of {sound.frames} frames are there")
    if not present:
        raise EmptyAudio(path, "0 frames of audio")


def _resample_blocks(blocks: Iterable[np.ndarray], native_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Consecutive blocks (S,) as `resample` makes of the whole; none is empty."""
    if native_rate == sample_rate:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(native_rate, sample_rate, 1, dtype="float32", quality="soxr_hq")
    given = made = 0
    for block in blocks:
        given += len(block)
        resampled = stream.resample_chunk(block)
        made += len(resampled)
        if len(resampled):
            yield resampled
    missing = -(-given * sample_rate // native_rate) - made
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[:missing]
    if missing:
        yield np.pad(rest, (0, missing - len(rest)))


def _write(file: BinaryIO, path: epath.PathLike, blocks: Iterable[np.ndarray], sample_rate: int, num_samples) -> None:
    """Blocks to an open file in the format that the extension of `path` names."""
    import soundfile

    suffix = epath.Path(path).suffix.lower()
    if suffix not in EXTENSIONS:
        raise ValueError(f"{path}: cannot write {suffix or 'a file without extension'}, use one of {EXTENSIONS}")
    container = {".opus": "OGG"}.get(suffix, suffix[1:].upper())
    subtype = {".opus": "OPUS", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_16")
    if container == "WAV" and 2 * (num_samples or 0) > _WAV_BYTES:
        container = "RF64"
    written = 0
    try:
        with soundfile.SoundFile(file, "w", sample_rate, 1, subtype, format=container) as sound:
            for block in blocks:
                written += len(block)
                if container == "WAV" and 2 * written > _WAV_BYTES:
                    raise ValueError(f"{path}: a wav file holds at most 4 GiB, write flac instead")
                sound.write(to_int16(block) if subtype == "PCM_16" else block)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot write {sample_rate} Hz audio ({error.error_string})") from None


def _check_riff_size(file: BinaryIO, path: epath.PathLike) -> None:
    """Raises `TruncatedAudio` if a wav file's data chunk is cut short, of which libsndfile says nothing."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = file.read(12)
    if header[:4] not in (b"RIFF", b"RF64") or header[8:] != b"WAVE":
        return
    whole = None  # size of the data chunk where it does not fit into 32 bits
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        present = end - file.tell()
        if name == b"data":
            promised = size if size < _STREAMED_SIZE else whole or 0
            if present < promised:
                raise TruncatedAudio(path, f"truncated, {present} of {promised} bytes of samples are there")
            return
        if name == b"ds64" and len(sizes := file.read(min(size, 16))) == 16:
            whole = struct.unpack("<QQ", sizes)[1]
            size -= 16
        file.seek(size + size % 2, io.SEEK_CUR)
