"""Clips to batches: training crops, padded evaluation batches.

What a batch holds is planned in numpy from (seed, step) alone and then read by one of two backends, tf.data
or a numpy thread pool, which give the same bits; so a run resumes at any step without saved iterator state,
with or without TensorFlow. Shapes: N local devices, B clips a device, S samples; audio is float32 in [-1, 1]
at 16 kHz, padding is exact zeros at the end, and `length` tells where it starts.
"""

import concurrent.futures
import functools
import importlib.util
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from jaxcodec import pcm, workers
from jaxcodec.data import damage

SAMPLE_RATE = 16000
_FULL_SCALE = np.float32(1.0)
_FAILED = np.int32(-1)  # the length that marks a batch that could not be read
_SMALLEST_SAMPLE = np.float32(1.0 / pcm.INT16_SCALE)
Batch = dict[str, np.ndarray]
# A clip that cannot be read is tried this often; the waits between are 0.5, 1, 2 and 4 s, so a disk may be gone for 7.5 s.
READ_TRIES = 5
FIRST_WAIT_SECONDS = 0.5
# Then it is left out. The run ends when more are than this share of the split (1 may, all may not), or than this number.
MAX_FAILED_SHARE = 0.05
MAX_FAILED_CLIPS = 100


class Source(Protocol):
    """Clips by index: {"audio": int16 (S,), "id": str, "speaker": str}; `lengths` has every S."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class PatientReader:
    """Reads clips of a source; one that fails is tried again, then left out, and too many of them end the run."""

    def __init__(self, source: Source, wait: Callable[[float], object] | None = None):
        self._source, self._failed = source, set[int]()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._wait = wait or self._stopped.wait
        self._allowed = min(MAX_FAILED_CLIPS, max(1, int(MAX_FAILED_SHARE * len(source))), len(source) - 1)
        self.stop = self._stopped.set  # ends all waiting: what fails now is raised

    def audio(self, clip: int) -> np.ndarray:
        """int16 (S,); (0,) of a clip that cannot be read. One that has failed before is not waited for."""
        clip = int(clip)
        waits = FIRST_WAIT_SECONDS * 2.0 ** np.arange(0 if clip in self._failed else READ_TRIES - 1)
        for wait in (*waits, None):
            try:
                return self._source[clip]["audio"]
            except Exception as error:
                if self._stopped.is_set():
                    raise
                if wait is None:
                    self._leave_out(clip, error)
                else:
                    self._wait(float(wait))
        return np.zeros(0, np.int16)

    def _leave_out(self, clip, error):
        with self._lock:
            known = clip in self._failed
            self._failed.add(clip)
        failed = f"{len(self._failed)} of {len(self._source)} clips cannot be read"
        problem = f"clip {clip}: {damage.in_one_line(error)}"
        if len(self._failed) > self._allowed:
            raise ValueError(f"{failed}, more than {self._allowed}; the last is {problem}") from error
        if not known:
            logging.warning("%s, left out after %d tries; %s", problem, READ_TRIES, failed)


def crops_per_pass(source: Source, crop_samples: int) -> int:
    """Crops in one pass: max(1, round(length / crop_samples)) of each clip, so that all speech is heard."""
    return int(_crops_of_clips(source.lengths, crop_samples).sum())


def train_batches(
    source: Source,
    *,
    seed: int,
    start_step: int,
    batch_size: int,
    crop_samples: int,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
    backend: str = "auto",
    gain_db: tuple[float, float] = (0.0, 0.0),
    wait: Callable[[float], object] | None = None,
) -> Iterator[Batch]:
    """Endless batches {"audio": float32 (N, B, crop_samples), "length": int32 (N, B)} from `start_step` on.

    `batch_size` counts clips over all processes, `num_devices` is N on this one. The batch of a step is a
    pure function of (seed, step, batch_size), and process p of P gets the p-th part of its rows. A pass takes
    every crop of `crops_per_pass` once, in random order: crop j of k starts at random in the j-th k-th of its
    clip. Each example gets a gain drawn uniformly in dB from `gain_db`, lowered where it would go above full
    scale. `backend` is `tensorflow`, `numpy` or `auto` (TensorFlow where it is installed). Close the iterator
    to stop its threads.

    A clip that cannot be read is tried `READ_TRIES` times, after longer and longer waits (`wait` takes seconds, for a
    clock of your own), then its rows are empty: length 0. Raises `ValueError` if too many clips are.
    """
    rows = _local_rows(batch_size, num_devices, process_index, process_count)
    if not len(source):
        raise ValueError("the training split has no clips")
    backend = resolve_backend(backend)
    order = _TrainOrder(source.lengths, crop_samples, seed, gain_db)
    reader = PatientReader(source, wait)

    def read(step):
        examples = order.take(int(step) * batch_size + np.arange(batch_size)[rows])
        return [_by_device(array, num_devices) for array in _read_crops(reader, examples, crop_samples)]

    logging.info("training batches are read by the %s backend", backend)
    make = _tensorflow_batches if backend == "tensorflow" else _numpy_batches
    return make(read, start_step, prefetch, reader.stop)


def clips_of_batch(source: Source, seed: int, step: int, batch_size: int, crop_samples: int) -> list[str]:
    """The ids of the clips in the batch of a step of `train_batches`."""
    order = _TrainOrder(source.lengths, crop_samples, seed, (0.0, 0.0))
    return [source[clip]["id"] for clip in order.take(step * batch_size + np.arange(batch_size)).clip]


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    num_devices: int = 1,
    max_seconds: float = 20.0,
    multiple: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    wait: Callable[[float], object] | None = None,
) -> Iterator[Batch]:
    """Every clip once and whole: {"audio": float32 (N, B, S), "length": int32 (N, B), "index": int32 (N, B)}.

    Clips are cut at `max_seconds`, and grouped so that S takes few values: 1, 2, 4, ... seconds up to
    `max_seconds`, each rounded up to a `multiple` of samples. Rows that fill up the last batch of a group
    have length 0 and index -1, as have clips that cannot be read (see `train_batches`). All processes yield the same
    number of batches of the same shapes.
    """
    rows = _local_rows(batch_size, num_devices, process_index, process_count)
    lengths = np.minimum(source.lengths, round(max_seconds * SAMPLE_RATE))
    buckets = bucket_lengths(max_seconds, multiple)
    bucket_of_clip = np.searchsorted(buckets, lengths)
    reader = PatientReader(source, wait)
    for bucket, samples in enumerate(buckets):
        members = np.flatnonzero(bucket_of_clip == bucket)
        padded = np.full(-(-len(members) // batch_size) * batch_size, -1, np.int32)
        padded[: len(members)] = members
        for index in padded.reshape(-1, batch_size):
            yield _eval_batch(reader, index[rows], lengths, samples, num_devices)


def bucket_lengths(max_seconds: float, multiple: int) -> list[int]:
    """Padded lengths in samples: 1, 2, 4, ... s below `max_seconds`, then it, rounded up to `multiple`."""
    seconds = [2.0**k for k in range(64) if 2.0**k < max_seconds] + [max_seconds]
    return [-(-round(s * SAMPLE_RATE) // multiple) * multiple for s in seconds]


def resolve_backend(backend: str) -> str:
    """`tensorflow` or `numpy`; `auto` is TensorFlow where it is installed. `ValueError` for anything else."""
    if backend not in ("auto", "tensorflow", "numpy"):
        raise ValueError(f"data backend {backend!r} is unknown, use auto, tensorflow or numpy")
    installed = importlib.util.find_spec("tensorflow") is not None
    if backend == "tensorflow" and not installed:
        raise ValueError("data backend 'tensorflow' needs the package tensorflow, use numpy or auto")
    return ("tensorflow" if installed else "numpy") if backend == "auto" else backend


class _Examples(NamedTuple):
    """What to read for some examples: clip index, first sample, and gain, each (B,)."""

    clip: np.ndarray
    start: np.ndarray
    gain: np.ndarray


class _TrainOrder:
    """The endless sequence of examples, pass after pass: a pure function of the seed."""

    def __init__(self, lengths: np.ndarray, crop_samples: int, seed: int, gain_db: tuple[float, float]):
        self._seed, self._gain_db = seed, gain_db
        crops = _crops_of_clips(lengths, crop_samples)
        self._clip = np.repeat(np.arange(len(crops)), crops)  # one entry a crop from here on
        self._crops = crops[self._clip]
        self._number = np.arange(len(self._clip)) - np.repeat(np.cumsum(crops) - crops, crops)
        self._starts = np.maximum(np.asarray(lengths, np.int64)[self._clip] - crop_samples, 0) + 1
        self._pass = functools.lru_cache(maxsize=2)(self._draw_pass)

    def take(self, numbers: np.ndarray) -> _Examples:
        """The examples at `numbers` (B,) of the sequence."""
        passes, positions = np.divmod(numbers, len(self._clip))
        parts = [[field[positions[passes == p]] for field in self._pass(int(p))] for p in np.unique(passes)]
        return _Examples(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def _draw_pass(self, number: int) -> _Examples:
        """All examples of one pass, in the order they are heard."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, number])))
        order = rng.permutation(len(self._clip))
        position = (self._number + rng.random(len(order))) / self._crops  # in [0, 1): crop j in the j-th part
        start = np.minimum((position * self._starts).astype(np.int64), self._starts - 1)
        gain = (10.0 ** (rng.uniform(*self._gain_db, len(order)) / 20.0)).astype(np.float32)
        return _Examples(self._clip[order], start[order], gain[order])


def _crops_of_clips(lengths: np.ndarray, crop_samples: int) -> np.ndarray:
    return np.maximum(1, np.rint(np.asarray(lengths) / crop_samples)).astype(np.int64)


def _local_rows(batch_size: int, num_devices: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that belong to this process."""
    if batch_size < 1 or batch_size % (num_devices * process_count):
        raise ValueError(
            f"batch_size {batch_size} does not divide by {num_devices} devices x {process_count} processes, "
            f"use a multiple of {num_devices * process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _read_crops(reader: PatientReader, examples: _Examples, crop_samples: int) -> tuple[np.ndarray, ...]:
    """Crops before their gain: int16 (B, crop_samples), lengths int32 (B,), gains float32 (B, 1)."""
    rows = np.zeros((len(examples.clip), crop_samples), np.int16)
    lengths = np.zeros(len(rows), np.int32)
    for number, (clip, start) in enumerate(zip(examples.clip, examples.start, strict=True)):
        crop = reader.audio(clip)[start : start + crop_samples]
        rows[number, : len(crop)] = crop
        lengths[number] = len(crop)
    return rows, lengths, examples.gain[:, None]


def _numpy_batches(read: Callable, start_step: int, prefetch: int, stop: Callable) -> Iterator[Batch]:
    """Batches made by two threads, `prefetch` ahead; `read` gives the crops, lengths and gains of a step."""

    def batch(step):
        samples, lengths, gain = read(step)
        rows = pcm.to_float(samples)
        peak = np.maximum(np.abs(rows).max(axis=2, keepdims=True), _SMALLEST_SAMPLE)
        rows = np.clip(rows * np.minimum(gain, _FULL_SCALE / peak), -_FULL_SCALE, _FULL_SCALE)
        return {"audio": rows, "length": lengths}

    pool = concurrent.futures.ThreadPoolExecutor(2, "batches")
    try:
        yield from workers.map_ahead(pool, batch, itertools.count(start_step), prefetch)
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _tensorflow_batches(read: Callable, start_step: int, prefetch: int, stop: Callable) -> Iterator[Batch]:
    """The same batches through tf.data: step -> random-access read -> float, gain -> prefetch."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX
    tf.config.set_visible_devices([], "TPU")
    failures = []

    def try_to_read(step):
        try:
            return read(step)
        except Exception as error:  # TensorFlow would print its traceback
            failures.append(error)
            return np.zeros((1, 1, 1), np.int16), np.full((1, 1), _FAILED), np.ones((1, 1, 1), np.float32)

    def make(step):
        samples, lengths, gain = tf.numpy_function(try_to_read, [step], (tf.int16, tf.int32, tf.float32))
        rows = tf.cast(samples, tf.float32) / pcm.INT16_SCALE
        peak = tf.maximum(tf.reduce_max(tf.abs(rows), axis=2, keepdims=True), _SMALLEST_SAMPLE)
        rows = tf.clip_by_value(rows * tf.minimum(gain, _FULL_SCALE / peak), -_FULL_SCALE, _FULL_SCALE)
        return {"audio": rows, "length": lengths}

    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    dataset = dataset.map(make, num_parallel_calls=2, deterministic=True).prefetch(prefetch)
    iterator = dataset.as_numpy_iterator()  # which waits for its threads when it is let go: not before `stop`
    try:
        for batch in iterator:
            if batch["length"][0, 0] == _FAILED:
                raise failures[0]
            yield batch
    finally:
        stop()


def _eval_batch(
    reader: PatientReader, index: np.ndarray, lengths: np.ndarray, padded_samples: int, num_devices: int
) -> Batch:
    """The clips `index` (B_process,) padded to `padded_samples`; -1 is a row of zeros."""
    rows, row_lengths = np.zeros((len(index), padded_samples), np.float32), np.zeros(len(index), np.int32)
    for number, clip in enumerate(index):
        if clip >= 0:
            samples = reader.audio(clip)[: lengths[clip]]
            rows[number, : len(samples)], row_lengths[number] = pcm.to_float(samples), len(samples)
    batch = {"audio": rows, "length": row_lengths, "index": np.where(row_lengths > 0, index, -1).astype(np.int32)}
    return {name: _by_device(array, num_devices) for name, array in batch.items()}


def _by_device(rows: np.ndarray, num_devices: int) -> np.ndarray:
    """(N * B, ...) to (N, B, ...)."""
    return rows.reshape(num_devices, -1, *rows.shape[1:])
