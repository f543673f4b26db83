"""Audio files to mono float arrays and back.

Samples are float32 in [-1, 1], shape (S,), and keep their recorded level: nothing here normalizes. Whatever
cannot be used raises a subclass of `UnreadableAudio` with a one-line message that names the file; `reason` is
a short key to count by. soundfile and soxr are imported on first use, so machines that only read prepared
shards need none of them.
"""

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from jaxcodec import containers
from jaxcodec.pcm import to_float as to_float, to_int16 as to_int16

WRITABLE = {  # extensions of files to write, with libsndfile's names of format and samples
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".aif": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
}
EXTENSIONS = (*WRITABLE, ".aifc", ".oga", ".rf64", ".snd", ".sph")  # of recordings in a folder
UNREADABLE = (
    ".aac",
    ".amr",
    ".ape",
    ".m4a",
    ".m4b",
    ".mka",
    ".mp4",
    ".mpc",
    ".webm",
    ".wma",
    ".wv",
)  # libsndfile has none
# What headers claim beyond these is damage: 1 Hz would turn a small file into days of audio.
SAMPLE_RATES = (4000, 768000)
MAX_CHANNELS = 64
_WAV_BYTES = 2**32 - 2**12  # more samples than this, less room for chunks, need RF64's 64-bit sizes


class UnreadableAudio(ValueError):
    """A file that cannot be used as speech. The message is one line: the file, then what is wrong with it."""

    reason = "unreadable"

    def __init_subclass__(cls, reason: str):
        cls.reason = reason

    def __init__(self, path: epath.PathLike, problem: str):
        name = os.fsencode(path).decode(errors="backslashreplace")  # as no name of a file may end a run by being odd
        super().__init__(f"{name}: {problem}")


class NotAFile(UnreadableAudio, reason="not a file"):
    """A pipe, a socket or a device: opening it could wait for ever."""


class ZeroBytes(UnreadableAudio, reason="zero bytes"):
    """The file has no bytes at all."""


class NotAudio(UnreadableAudio, reason="not audio"):
    """libsndfile does not recognize the content, or fails while decoding it."""


class TruncatedAudio(UnreadableAudio, reason="truncated"):
    """The header promises more than the file holds."""


class CorruptAudio(UnreadableAudio, reason="corrupt"):
    """Bytes are missing in the middle, or other than written."""


class ImplausibleAudio(UnreadableAudio, reason="implausible"):
    """The header claims a sample rate outside `SAMPLE_RATES`, or more than `MAX_CHANNELS`."""


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
            promised = _check_container(file, name)
            yield from _decode(file, name, sample_rate, block_seconds, promised)
    except OSError as error:
        raise UnreadableAudio(name, error.strerror or " ".join(str(error).split())) from None


def duration(path: epath.PathLike) -> float | None:
    """Seconds of a local file by its header, None where that cannot be read: to show, not to count on."""
    import soundfile

    try:
        return soundfile.info(os.fspath(path)).duration
    except (OSError, RuntimeError, TypeError):
        return None


def cut(blocks: Iterable[np.ndarray], path: epath.PathLike, sample_rate: int, start: float, end: float | None):
    """The samples from second `start` to second `end` (None: the last) of consecutive blocks (S,); what follows is not read.

    Raises `EmptyAudio` where there are none.
    """
    first, stop = round(start * sample_rate), None if end is None else round(end * sample_rate)
    position = found = 0
    for block in blocks:
        part = block[max(0, first - position) : None if stop is None else max(0, stop - position)]
        position += len(block)
        if len(part):
            found += len(part)
            yield part
        if stop is not None and position >= stop:
            break
    if not found:
        raise EmptyAudio(path, f"nothing from {start:g} s on, it has {position / sample_rate:.1f} s")


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
        remote = "://" in str(path)
        if not remote and not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            raise NotAFile(path, "not a regular file")
        with io.BytesIO(path.read_bytes()) if remote else open(path, "rb") as file:
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


def _check_container(file: BinaryIO, path: epath.PathLike) -> int | None:
    """Raises `UnreadableAudio` for damage that shows without decoding; the length where libsndfile only guesses it."""
    try:
        return containers.check(file)
    except containers.Truncated as problem:
        raise TruncatedAudio(path, f"truncated, {problem}") from None
    except containers.Corrupt as problem:
        raise CorruptAudio(path, f"corrupt, {problem}") from None


def _decode(
    file: BinaryIO, path: epath.PathLike, sample_rate: int, block_seconds: float, promised: int | None
) -> Iterator[np.ndarray]:
    """An encoded file as mono blocks (S,) at `sample_rate`, checked."""
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_header(sound, path)
            blocks = _read_mono(sound, path, max(1, round(block_seconds * sound.samplerate)), promised)
            yield from (block.clip(-1.0, 1.0) for block in _resample_blocks(blocks, sound.samplerate, sample_rate))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless data needs parameters
        problem = getattr(error, "error_string", str(error)).rstrip(".")
        raise NotAudio(path, f"not audio that can be read ({problem})") from None


def _check_header(sound, path: epath.PathLike) -> None:
    """Refuses what would take memory out of all proportion to the file."""
    low, high = SAMPLE_RATES
    if not low <= sound.samplerate <= high:
        raise ImplausibleAudio(path, f"claims {sound.samplerate} Hz, expected {low} to {high}")
    if sound.channels > MAX_CHANNELS:
        raise ImplausibleAudio(path, f"claims {sound.channels} channels, expected at most {MAX_CHANNELS}")


def _read_mono(sound, path: epath.PathLike, block_frames: int, promised: int | None) -> Iterator[np.ndarray]:
    """Blocks (S,) at the file's own rate, checked."""
    present = 0
    while len(block := sound.read(block_frames, dtype="float32", always_2d=True)):
        mono = block.mean(axis=1)
        if not np.isfinite(mono).all():
            first = (present + np.argmin(np.isfinite(mono))) / sound.samplerate
            raise NonFiniteAudio(path, f"NaN or infinite samples, the first at {first:.3f} s")
        present += len(mono)
        yield mono
    if present < (promised := sound.frames if promised is None else promised):
        raise TruncatedAudio(path, f"truncated, {present} of {promised} frames are read")
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
    if suffix not in WRITABLE:
        known = ", ".join(WRITABLE)
        raise ValueError(f"{path}: cannot write {suffix or 'a file without extension'}, use one of {known}")
    container, subtype = WRITABLE[suffix]
    if container == "WAV" and 2 * (num_samples or 0) > _WAV_BYTES:
        container = "RF64"
    written, device = 0, _Device(file)
    try:
        with soundfile.SoundFile(device, "w", sample_rate, 1, subtype, format=container) as sound:
            for block in blocks:
                written += len(block)
                if container in ("WAV", "AIFF", "AU") and 2 * written > _WAV_BYTES:
                    raise ValueError(f"{path}: a {suffix[1:]} file holds at most 4 GiB, write flac instead")
                sound.write(to_int16(block) if subtype == "PCM_16" else block)
                device.check()
    except soundfile.LibsndfileError as error:
        device.check()
        raise ValueError(f"{path}: cannot write {sample_rate} Hz audio ({error.error_string})") from None
    except AssertionError:  # soundfile's, where not all could be written
        device.check()
        raise OSError(errno.EIO, "not all of the audio could be written") from None
    device.check()  # what closing wrote


class _Device:
    """A file that libsndfile writes through callbacks, in which nothing may be raised: `check` raises it after them."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._error: OSError | None = None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = self._error or error
            return 0

    def check(self) -> None:
        """Raises the first `OSError` of writing."""
        if self._error is not None:
            raise self._error
