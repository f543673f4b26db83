"""Prepared speech: shards that a tfds builder makes once, then random access to their clips."""

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from jaxcodec import atomic
from jaxcodec.data import damage
from jaxcodec.data.batches import SAMPLE_RATE


def prepare(data_config: Any):
    """The tfds builder with the prepared shards of `data_config`; prepares them if they are not there yet.

    A `data_dir` that is itself a prepared directory (it has a `dataset_info.json`) is opened as it is; any
    other `data_dir` is a folder of recordings; without one, `source` is `sample` or `openslr66`. Raises
    `ValueError` with one line for a wrong path, too many unusable files, an unwritable `prepared_dir` or a
    missing package.
    """
    folder = str(data_config.data_dir)
    try:
        if folder and (epath.Path(folder) / "dataset_info.json").exists():
            return _open_prepared(_local_copy(epath.Path(folder), data_config.prepared_dir))
        builder = _make_builder(data_config)
        # tfds prints sizes that it does not know; what happened is in the log.
        with _one_at_a_time(epath.Path(builder.data_dir)), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        return _open_prepared(_local_copy(epath.Path(builder.data_dir), ""))
    except ModuleNotFoundError as error:
        needs = f"needs the package {error.name!r}: pip install 'jaxcodec[train]'"
        if folder and (epath.Path(folder) / "dataset_info.json").exists():
            raise ValueError(f"reading prepared shards {needs}.") from None
        raise ValueError(
            f"preparing recordings {needs}, or set data_dir to a directory that was prepared elsewhere"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot prepare the data: {error}") from None


def open_split(data_config: Any, split: str) -> "PreparedSpeech":
    """The clips of `train`, `validation` or `test`, prepared on first use; errors as in `prepare`."""
    builder = prepare(data_config)
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits) or "none"
        raise ValueError(f"there is no {split} split in {builder.data_dir}, it has: {found}")
    folder, info = epath.Path(builder.data_dir), builder.info.splits[split]
    shards = dict(zip(info.filepaths, info.shard_lengths, strict=True))
    records = _Records(builder.as_data_source(split), shards, folder)
    source = PreparedSpeech(records, folder / f"lengths-{split}.npy")
    minutes = source.lengths.sum() / SAMPLE_RATE / 60
    logging.info("%s: %d clips, %.1f minutes, from %s", split, len(source), minutes, builder.data_dir)
    return source


class PreparedSpeech:
    """The `Source` of one split's records; a split of at most `memory_bytes` stays in memory once read.

    Raises `ValueError` for a clip that does not have the length that `lengths_file` says.
    """

    def __init__(self, records: Sequence[dict], lengths_file: epath.Path, memory_bytes: int = 2**30):
        self.lengths = _cached_lengths(records, lengths_file)
        self._records, self._lengths_file = records, lengths_file
        read = self._read_record
        self._read = functools.cache(read) if 2 * self.lengths.sum() <= memory_bytes else read

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(int(index))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def _read_record(self, index):
        record = self._records[index]
        clip = {"audio": record["audio"], "id": record["id"].decode(), "speaker": record["speaker"].decode()}
        if len(clip["audio"]) != self.lengths[index]:
            raise ValueError(
                f"{clip['id']} has {len(clip['audio'])} samples, {self._lengths_file} says {self.lengths[index]}: "
                "delete that file, it will be made again"
            )
        return clip


class _Records(Sequence[dict]):
    """A split's records; one that cannot be read is named by its shard. `shards` has the records of each file.

    The first and the last record of each shard are read at once: a shard that is cut short or gone has neither.
    """

    def __init__(self, records: Sequence[dict], shards: dict[str, int], folder: epath.Path):
        self._records, self._files, self._folder = records, list(shards), folder
        self._ends = np.cumsum(list(shards.values()))
        for end, size in zip(self._ends, shards.values(), strict=True):
            for index in (end - size, end - 1) if size else ():
                self[int(index)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        file = self._files[np.searchsorted(self._ends, index, side="right")]
        with damage.explained(file, self._folder):
            return self._records[index]


def _make_builder(data_config: Any):
    """The tfds builder that `data_config` asks for."""
    from jaxcodec.data import openslr66, recordings, speech

    names = ("min_clip_seconds", "max_clip_seconds", "max_bad_fraction", "validation_fraction", "test_fraction")
    options = recordings.PrepareOptions(**{name: getattr(data_config, name) for name in names})
    prepared_dir = data_config.prepared_dir or None
    if data_config.data_dir:
        return speech.SpeechFolder(str(data_config.data_dir), options, prepared_dir)
    if data_config.source == "folder":
        raise ValueError("data source 'folder' needs data_dir, the folder with the recordings")
    builders = {"sample": speech.SpeechSample, "openslr66": openslr66.OpenSLR66}
    if data_config.source not in builders:
        raise ValueError(f"data source {data_config.source!r} is unknown, use sample, folder or openslr66")
    return builders[data_config.source](options, prepared_dir)


def _open_prepared(folder: epath.Path):
    """The builder of a prepared directory."""
    import tensorflow_datasets as tfds

    with damage.explained(folder, folder):
        return tfds.builder_from_directory(folder)


@contextlib.contextmanager
def _one_at_a_time(directory: epath.Path) -> Iterator[None]:
    """Waits while another process prepares the same local directory; removes what a killed one left."""
    if _is_remote(directory) or directory.exists():
        yield
        return
    import fcntl

    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in directory.parent.glob("incomplete.*"):
            leftover.rmtree()
        yield


def _local_copy(folder: epath.Path, prepared_dir: str) -> epath.Path:
    """`folder` if local, else a copy below `prepared_dir`, made once: array_record reads local files."""
    if not _is_remote(folder):
        return folder
    info = (folder / "dataset_info.json").read_bytes()
    key = hashlib.sha256(str(folder).encode() + info).hexdigest()[:16]
    copy = epath.Path(prepared_dir or "~/tensorflow_datasets").expanduser() / "local_copies" / key
    if not copy.exists():
        partial = copy.with_name(f"{key}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            logging.info("copying %s to %s", path, copy)
            path.copy(partial / path.name, overwrite=True)
        try:
            partial.rename(copy)
        except OSError:
            if not copy.exists():
                raise
            partial.rmtree()  # another process of this host was first
    return copy


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)


def _cached_lengths(records: Sequence[dict], file: epath.Path) -> np.ndarray:
    """int32 (clips,) from `file`, or from the records once and then kept in `file` if that can be written."""
    if file.exists():
        if (lengths := _load_lengths(records, file)) is not None:
            return lengths
        logging.warning("%s is not the lengths of these %d clips, it is made again", file, len(records))
    lengths = np.array([record["length"] for record in records], np.int32)
    with contextlib.suppress(OSError), atomic.replacing(file) as part:
        np.save(part, lengths)
    return lengths


def _load_lengths(records: Sequence[dict], file: epath.Path) -> np.ndarray | None:
    """What `file` holds, None if that is something else, or lengths of other clips as far as the first and last tell."""
    try:
        with file.open("rb") as opened:
            lengths = np.lib.format.read_array(opened)
    except Exception:  # of many kinds, and it can be made again whatever is wrong
        return None
    if lengths.shape != (len(records),) or lengths.dtype != np.int32:
        return None
    ends = {0, len(records) - 1} if len(records) else set()
    return lengths if all(lengths[i] == records[i]["length"] for i in ends) else None
