"""From recordings on disk to staged clips: find, decode, check, cut, assign to splits."""

import bisect
import collections
import concurrent.futures
import dataclasses
import errno
import functools
import hashlib
import math
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from jaxcodec import audio, workers

SAMPLE_RATE = 16000
SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {name: name for name in SPLITS} | dict.fromkeys(("valid", "dev", "val"), "validation")
_SOUNDS = audio.EXTENSIONS + audio.UNREADABLE
# With fewer speakers than this, whole speakers are too coarse a unit for splits of a few per cent.
MIN_SPEAKERS_TO_SPLIT_BY = 10


class OddName(audio.UnreadableAudio, reason="name not UTF-8"):
    """Shards keep names as UTF-8."""


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is kept and how it is split. A recording with no sample at `silence_dbfs` or above is silent."""

    min_clip_seconds: float = 0.02
    max_clip_seconds: float = 20.0
    max_bad_fraction: float = 0.5
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    silence_dbfs: float = -70.0


@dataclasses.dataclass(frozen=True)
class Recording:
    """A file to read. `split` is None where the hash rule decides, `speaker` is empty where unknown."""

    path: epath.Path
    id: str
    speaker: str = ""
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class StagedClip:
    """A staged piece of a recording, `length` samples at `offset`. Clips of one `group` share their split."""

    id: str
    speaker: str
    group: str
    split: str | None
    offset: int
    length: int


class Staging:
    """Decoded samples in a temporary file without a name: the system frees it however the process ends."""

    def __init__(self, folder: str | None = None):
        self._descriptor, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        weakref.finalize(self, os.close, self._descriptor)
        self._samples = 0

    def add(self, samples: np.ndarray) -> int:
        """Appends int16 (S,), returns its offset in samples."""
        offset = self._samples
        if os.write(self._descriptor, samples.tobytes()) != samples.nbytes:
            raise OSError(errno.ENOSPC, "no space left for decoded audio")
        self._samples += len(samples)
        return offset

    def read(self, clip: StagedClip) -> np.ndarray:
        """The clip's int16 (S,)."""
        return np.frombuffer(os.pread(self._descriptor, 2 * clip.length, 2 * clip.offset), np.int16)


def list_audio(folder: epath.PathLike, *, warn: bool = True) -> list[tuple[str, epath.Path]]:
    """(relative name, path) of every audio file below `folder`, sorted; follows links, omits hidden files.

    Recordings of formats that cannot be read are counted in a warning, but for `warn=False`. Raises `ValueError` if the
    folder does not exist or has no audio file.
    """
    root = epath.Path(folder)
    if not root.is_dir():
        raise ValueError(f"the folder {str(folder)!r} is not a directory")
    found = list(_walk(root))
    names = sorted(name for name in found if name.lower().endswith(audio.EXTENSIONS))
    odd = collections.Counter(os.path.splitext(name.lower())[1] for name in set(found) - set(names))
    told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(odd.items()))
    if not names:
        others = f", only {told}, which cannot be read: convert them first" if odd else ""
        known = "/".join(extension[1:] for extension in audio.EXTENSIONS)
        raise ValueError(f"the folder {str(folder)!r} has no {known} file in it{others}")
    if odd and warn:
        logging.warning("%s: %s left out, their formats cannot be read: convert them first", folder, told)
    return [(name, root / name) for name in names]


def find_recordings(folder: epath.PathLike) -> list[Recording]:
    """The recordings of a folder tree, with speakers and given splits where its layout tells them.

    Splits: if there is a top-level `train/`, then it and `validation/` (`valid`, `dev`, `val`) and `test/`
    are the splits, and files outside of them are left out. Speakers: the first folder below the root, or
    below the split's folder, is the speaker if every file has such a folder and there are at least two
    different ones.
    """
    files = list_audio(folder)
    given = any(name.startswith("train/") for name, _ in files)
    if given:
        used = [file for file in files if _split_folder(file[0])]
        if outside := len(files) - len(used):
            logging.warning("%d files outside of train/, validation/ and test/ are not used", outside)
        files = used
    inner = {name: name.split("/", 1)[1] if given else name for name, _ in files}
    speakers = {name.split("/")[0] if "/" in name else "" for name in inner.values()}
    known = len(speakers) > 1 and "" not in speakers
    return [
        Recording(path, name, inner[name].split("/")[0] if known else "", _split_folder(name) if given else None)
        for name, path in files
    ]


def fingerprint(folder: epath.PathLike, options: PrepareOptions) -> str:
    """16 hex digits that change with any file's relative name, size or time, or with the options."""
    digest = hashlib.sha256(repr(options).encode())
    for name, path in list_audio(folder, warn=False):
        digest.update("\t".join((name, *_size_and_time(path), "\n")).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def stage(recordings: Sequence[Recording], options: PrepareOptions, staging: Staging) -> tuple[list[StagedClip], dict]:
    """Reads all recordings into `staging`; returns (clips, number of files left out by reason).

    Each unusable file is named once in the log. Raises `ValueError` if more than `max_bad_fraction` of the
    files are unusable, or all of them.
    """
    clips, problems = [], []
    for recording, result in tqdm(_decode_all(recordings, options), "Reading speech", len(recordings), unit=" files"):
        if isinstance(result, audio.UnreadableAudio):
            logging.warning("skipped %s", result)
            problems.append(result)
        else:
            clips.extend(_cut(recording, result, options, staging))
    skipped = dict(sorted(collections.Counter(problem.reason for problem in problems).items()))
    if problems:
        logging.warning("%d of %d files skipped: %s", len(problems), len(recordings), describe(skipped))
    if not clips or len(problems) > options.max_bad_fraction * len(recordings):
        raise ValueError(
            f"{len(problems)} of {len(recordings)} files cannot be used ({describe(skipped)}), "
            f"more than max_bad_fraction={options.max_bad_fraction:g}; the first: {problems[0]}"
        )
    return clips, skipped


def assign_splits(clips: Sequence[StagedClip], options: PrepareOptions) -> dict[str, list[StagedClip]]:
    """Clips by split, empty splits left out.

    Clips with a given split keep it. Otherwise, and to take a validation part from a given `train` that comes
    without one, whole groups are assigned by `split_of_groups`: speakers where there are at least 10 of them,
    else recordings.
    """
    splits = {clip.id: clip.split for clip in clips}
    if "validation" not in splits.values():
        given = "train" in splits.values()
        free = [clip for clip in clips if clip.split in (None, "train")]
        by_speaker = len({clip.speaker for clip in free}) >= MIN_SPEAKERS_TO_SPLIT_BY
        groups = {clip.id: clip.speaker if by_speaker else clip.group for clip in free}
        test_fraction = 0.0 if given else options.test_fraction
        chosen = split_of_groups(groups.values(), options.validation_fraction, test_fraction)
        splits |= {clip_id: chosen[group] for clip_id, group in groups.items()}
    return by_split(clips, splits)


def by_split(clips: Sequence[StagedClip], splits: Mapping[str, str | None]) -> dict[str, list[StagedClip]]:
    """Clips by split, empty splits left out, where `splits` has the split of every `StagedClip.id`."""
    members = {split: [clip for clip in clips if splits[clip.id] == split] for split in SPLITS}
    return {split: clips for split, clips in members.items() if clips}


def split_of_groups(groups: Iterable[str], validation_fraction: float, test_fraction: float) -> dict[str, str]:
    """The split of each group, from the group's hash alone, so that new data leaves old data where it is.

    A hash in [0, 1) below `validation_fraction` means validation, in the next `test_fraction` test, else
    train. Of two or more groups the one with the lowest hash is validation in any case (unless the fraction
    is 0), the highest train.
    """
    hashes = {group: int(hashlib.sha256(group.encode()).hexdigest()[:13], 16) / 16**13 for group in set(groups)}
    ordered = sorted(hashes, key=lambda group: (hashes[group], group))
    ends = (validation_fraction, validation_fraction + test_fraction)
    splits = {group: ("validation", "test", "train")[bisect.bisect(ends, value)] for group, value in hashes.items()}
    if len(ordered) > 1 and validation_fraction > 0:
        splits[ordered[0]] = "validation"
    if ordered:
        splits[ordered[-1]] = "train"
    return splits


def describe(skipped: dict[str, int]) -> str:
    """`1 truncated, 2 zero bytes`."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _walk(root: epath.Path) -> Iterator[str]:
    """Relative posix names of all audio files that are not hidden, those that cannot be read among them."""
    remote = "://" in str(root)
    names = (p.relative_to(root).as_posix() for p in _walk_remote(root)) if remote else _walk_local(root)
    audio_names = (name for name in names if name.lower().endswith(_SOUNDS))
    return (name for name in audio_names if not any(part.startswith(".") for part in name.split("/")))


def _walk_local(root: epath.Path) -> Iterator[str]:
    seen = set()
    for directory, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        if os.path.realpath(directory) in seen:  # reached again through a link
            folders.clear()
            continue
        seen.add(os.path.realpath(directory))
        relative = os.path.relpath(directory, root)
        yield from (os.path.normpath(os.path.join(relative, name)).replace(os.sep, "/") for name in files)


def _walk_remote(folder: epath.Path) -> Iterator[epath.Path]:
    """Audio files below a bucket's folder; only other names cost a request each."""
    for path in folder.iterdir():
        if path.name.lower().endswith(_SOUNDS):
            yield path
        elif path.is_dir():
            yield from _walk_remote(path)


def _size_and_time(path: epath.Path) -> tuple[str, str]:
    """Bytes and time of change; local times to the nanosecond, for files written in quick succession.

    Of a link that leads nowhere, why.
    """
    if "://" in str(path):
        stat = path.stat()
        return str(stat.length), str(stat.mtime)
    try:
        stat = os.stat(path)
    except OSError as error:
        return "", str(error.strerror)
    return str(stat.st_size), str(stat.st_mtime_ns)


def _split_folder(name: str) -> str | None:
    return SPLIT_FOLDERS.get(name.split("/")[0]) if "/" in name else None


def _decode_all(recordings: Sequence[Recording], options: PrepareOptions) -> Iterator[tuple]:
    """(recording, int16 (S,) or UnreadableAudio) in order, decoded a few files ahead by threads."""
    threads = min(8, os.cpu_count() or 1)
    decode = functools.partial(_decode, options=options)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield from zip(recordings, workers.map_ahead(pool, decode, recordings, 2 * threads), strict=True)


def _decode(recording: Recording, options: PrepareOptions) -> np.ndarray | audio.UnreadableAudio:
    try:
        recording.id.encode()
        samples = audio.load(recording.path, SAMPLE_RATE)
        limits = dict(min_seconds=options.min_clip_seconds, silence_dbfs=options.silence_dbfs)
        audio.check_usable(samples, recording.path, sample_rate=SAMPLE_RATE, **limits)
    except UnicodeEncodeError:
        return OddName(recording.path, "its name is not UTF-8")
    except audio.UnreadableAudio as problem:
        return problem
    return audio.to_int16(samples)


def _cut(recording: Recording, samples: np.ndarray, options: PrepareOptions, staging: Staging) -> Iterator[StagedClip]:
    """Stages int16 (S,) in equal pieces of at most `max_clip_seconds`, silent pieces left out.

    The group is the hash of the samples: a copy of the recording under another name goes to the same split.
    """
    group = hashlib.sha256(samples.tobytes()).hexdigest()
    pieces = math.ceil(len(samples) / round(options.max_clip_seconds * SAMPLE_RATE))
    for index, piece in enumerate(np.array_split(samples, pieces)):
        if np.abs(audio.to_float(piece)).max() >= 10.0 ** (options.silence_dbfs / 20.0):
            clip_id = recording.id if pieces == 1 else f"{recording.id}#{index}"
            offset = staging.add(piece)
            yield StagedClip(clip_id, recording.speaker, group, recording.split, offset, len(piece))
