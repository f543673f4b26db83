"""Recordings to codes by the folder, and the token files that language models are trained on.

A corpus becomes shards of `shard_size` recordings each, in the order of their names:

    np.load("tokens-00000-of-00012.npz")
        codes        uint16 (Q, T)   the codes of all its recordings, one after the other along the frames
        offsets      int64 (N + 1,)  recording i is codes[:, offsets[i] : offsets[i + 1]]
        num_samples  int64 (N,)      its length at the codec's sample rate
        names        str (N,)        its path below the corpus folder
        failed, reasons              str (M,), the files that could not be read, and why

beside `manifest.json`, which says what they were made with and lists what failed. A shard is there whole or not at all, so
the command that was interrupted, started again, makes only the missing ones.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from jaxcodec import atomic, audio

FORMAT = "jaxcodec tokens 1"
MANIFEST = "manifest.json"
_BLOCK_SECONDS = 10
_BATCH_BLOCKS = 6  # of short recordings are encoded at once; a longer recording is never held whole


class Encoded(NamedTuple):
    """The codes of one file, or the error of one that cannot be read."""

    key: Any
    codes: np.ndarray  # uint16 (Q, T)
    num_samples: int
    error: ValueError | None = None


class Summary(NamedTuple):
    """What is in a token file."""

    clips: int
    frames: int
    samples: int
    failed: dict[str, str]


def encode_files(codec, files: Iterable[tuple[Any, Any]], num_codebooks: int | None = None) -> Iterator[Encoded]:
    """The codes of each of `files`, pairs of a key and what `audio.read_blocks` reads.

    Short clips are encoded together and long recordings in bounded memory; both have the codes they have alone. Codes
    come in order, the error of an unreadable file as soon as it is known.
    """
    from jaxcodec import inference

    clips: list[tuple[Any, np.ndarray]] = []

    def encode_clips():
        codes = inference.encode(codec, [clip for _, clip in clips], num_codebooks) if clips else []
        for (key, clip), code in zip(clips, codes, strict=True):
            yield Encoded(key, np.asarray(code, np.uint16), len(clip))
        clips.clear()

    for key, source in files:
        blocks = audio.read_blocks(source, codec.sample_rate, _BLOCK_SECONDS)
        try:
            head = list(itertools.islice(blocks, _BATCH_BLOCKS + 1))
            if len(head) > _BATCH_BLOCKS:
                yield from encode_clips()
                yield _encode_long(codec, key, itertools.chain(head, blocks), num_codebooks)
                continue
        except ValueError as error:
            yield Encoded(key, np.zeros((0, 0), np.uint16), 0, error)
            continue
        clips.append((key, np.concatenate(head)))
        if sum(len(clip) for _, clip in clips) > _BATCH_BLOCKS * _BLOCK_SECONDS * codec.sample_rate:
            yield from encode_clips()
    yield from encode_clips()


def _encode_long(codec, key, blocks, num_codebooks):
    from jaxcodec import inference

    num_samples = 0

    def count(blocks):
        nonlocal num_samples
        for block in blocks:
            num_samples += len(block)
            yield block

    codes = [piece.astype(np.uint16) for piece in inference.encode_blocks(codec, count(blocks), num_codebooks)]
    return Encoded(key, np.concatenate(codes, axis=1), num_samples)


def write_tokens(
    model: str | None,
    folder: epath.PathLike,
    output: epath.PathLike,
    *,
    num_codebooks: int | None = None,
    shard_size: int = 1000,
    processes: int = 1,
    shard_index: int = 0,
    num_shards: int = 1,
) -> Iterator[Summary]:
    """Writes the shards that are missing, and yields what is in each as soon as it is there.

    Args:
      model: what `jaxcodec.load` takes.
      folder: recordings at any depth, in any format.
      output: folder of the shards and of the manifest.
      num_codebooks: the first so many only, all when None.
      shard_size: recordings in a shard.
      processes: shards made at the same time on this host.
      shard_index: with `num_shards` hosts, each given its own index, every host makes its share.
      num_shards: hosts that share the work, and `output`.

    Raises:
      ValueError: no recordings, settings other than those `output` was begun with, options that cannot be.
    """
    from jaxcodec import inference, pretrained
    from jaxcodec.datasets import recordings

    if min(shard_size, processes, num_shards) < 1 or not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard_size {shard_size}, processes {processes}, shard_index {shard_index} of num_shards {num_shards}: "
            "expected sizes of at least 1 and 0 <= shard_index < num_shards."
        )
    if processes > 1:  # on a GPU they share its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = [name for name, _ in recordings.list_audio(folder)]
    output = epath.Path(output)
    codec = pretrained.load(model)
    num_codebooks = inference.check_num_codebooks(codec, num_codebooks)
    _begin(output, _settings(codec, names, num_codebooks, shard_size))
    shards = [names[i : i + shard_size] for i in range(0, len(names), shard_size)]
    paths = [output / f"tokens-{i:05d}-of-{len(shards):05d}.npz" for i in range(len(shards))]
    mine = range(shard_index, len(shards), num_shards)
    done = [i for i in mine if paths[i].exists()]
    jobs = [(os.fspath(folder), shards[i], os.fspath(paths[i]), num_codebooks) for i in mine if i not in set(done)]
    with tqdm(total=sum(len(shards[i]) for i in mine), unit="file", disable=None, leave=False) as bar:
        for i in done:
            bar.update(len(shards[i]))
            yield summarize(paths[i])
        if processes == 1:
            for job in jobs:
                yield _write_shard(codec, *job, bar.update)
        else:
            yield from _in_processes(model, jobs, processes, bar.update)
    _finish(output, paths)


def load_shard(path: epath.PathLike) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, codes (Q, T), samples) of every recording of one token file."""
    with np.load(path) as shard:
        codes, offsets = shard["codes"], shard["offsets"]
        for i, (name, num_samples) in enumerate(zip(shard["names"], shard["num_samples"], strict=True)):
            yield str(name), codes[:, offsets[i] : offsets[i + 1]], int(num_samples)


def summarize(path: epath.PathLike) -> Summary:
    """What is in one token file, without reading its codes."""
    with epath.Path(path).open("rb") as file, np.load(file) as shard:
        failed = dict(zip(shard["failed"].tolist(), shard["reasons"].tolist(), strict=True))
        return Summary(len(shard["names"]), int(shard["offsets"][-1]), int(shard["num_samples"].sum()), failed)


def _settings(codec, names, num_codebooks, shard_size):
    """What shards of one output have in common."""
    from jaxcodec import pretrained

    return dict(
        format=FORMAT,
        model=pretrained.fingerprint(codec).hex(),
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        num_codebooks=num_codebooks,
        codebook_size=codec.codebook_size,
        shard_size=shard_size,
        recordings=len(names),
        names=hashlib.blake2b("\n".join(names).encode(errors="surrogateescape"), digest_size=8).hexdigest(),
    )


def _begin(output, settings):
    """Writes the manifest, or checks that the one that is there says the same."""
    path = output / MANIFEST
    if not path.exists():
        _write_manifest(path, settings | dict(complete=False, shards={}, failed={}))
        return
    try:
        begun = json.loads(path.read_text())
        changed = [name for name in settings if begun.get(name) != settings[name]]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not a manifest of tokens: give another output folder.") from None
    if changed:
        name = changed[0]
        raise ValueError(
            f"{output} was begun with {name} = {begun.get(name)}, this command has {settings[name]}: "
            "give another output folder, or remove this one."
        )


def _finish(output, paths):
    """Adds to the manifest what all shards that are there by now hold."""
    path = output / MANIFEST
    manifest = json.loads(path.read_text())
    summaries = {shard.name: summarize(shard) for shard in paths if shard.exists()}
    shards = {name: dict(zip(Summary._fields[:3], summary, strict=False)) for name, summary in summaries.items()}
    failed = dict(itertools.chain.from_iterable(summary.failed.items() for summary in summaries.values()))
    _write_manifest(path, manifest | dict(complete=len(shards) == len(paths), shards=shards, failed=failed))


def _write_manifest(path, manifest):
    with atomic.replacing(path) as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")


def _write_shard(codec, folder, names, path, num_codebooks, progress=lambda num_files: None):
    """Encodes one shard's recordings and writes them."""
    path, clips, failed = epath.Path(path), [], {}
    for leftover in path.parent.glob(f".{path.stem}.*"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    for encoded in encode_files(codec, ((name, epath.Path(folder) / name) for name in names), num_codebooks):
        if encoded.error:
            failed[encoded.key] = str(encoded.error)
        else:
            clips.append(encoded)
        progress(1)
    with atomic.replacing(path) as part, part.open("wb") as file:
        np.savez(
            file,
            codes=np.concatenate([np.zeros((num_codebooks, 0), np.uint16), *(clip.codes for clip in clips)], axis=1),
            offsets=np.cumsum([0] + [clip.codes.shape[1] for clip in clips], dtype=np.int64),
            num_samples=np.array([clip.num_samples for clip in clips], np.int64),
            names=np.array([clip.key for clip in clips], np.str_),
            failed=np.array(list(failed), np.str_),
            reasons=np.array(list(failed.values()), np.str_),
        )
    return summarize(path)


def _in_processes(model, jobs, processes, progress):
    """Summaries of the shards of `jobs`, each made by one of `processes` fresh Pythons with a JAX of its own."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, (threads,)
    )
    try:
        files = {pool.submit(_load_and_write_shard, model, *job): len(job[1]) for job in jobs}
        for future in concurrent.futures.as_completed(files):
            summary = future.result()
            progress(files[future])
            yield summary
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError("a process died, for want of memory perhaps: try fewer processes.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a word
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ["NPROC"] = str(threads)  # what XLA takes for the number of cores


@functools.cache
def _load(model):
    from jaxcodec import pretrained

    return pretrained.load(model)


def _load_and_write_shard(model, *job):
    return _write_shard(_load(model), *job)
