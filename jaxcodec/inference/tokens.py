"""Recordings to codes by the folder, and the token files that language models are trained on.

A corpus becomes shards of `shard_size` recordings each, in the order of their names:

    np.load("tokens-00000-of-00012.npz")
        codes        uint16 (Q, T)   the codes of all its recordings, one after the other along the frames
        offsets      int64 (N + 1,)  recording i is codes[:, offsets[i] : offsets[i + 1]]
        num_samples  int64 (N,)      its length at the codec's sample rate
        names        str (N,)        its path below the corpus folder
        failed, reasons              str (M,), the files that could not be read, and why
        settings                     str (), what it was made with, JSON
        digest                       str (), of all other arrays

beside `manifest.json`, which says the same settings once and lists the shards and what failed. A shard is there whole or not
at all and tells by itself whether it is still what was written, and for which folder of tokens. So the command that was
interrupted, started again, makes only what is missing or damaged, whatever became of the manifest.
"""

import concurrent.futures
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from jaxcodec import atomic, workers
from jaxcodec.bitstream import entropy
from jaxcodec.data import recordings
from jaxcodec.inference import files, pretrained, trained

FORMAT = "jaxcodec tokens 2"  # 1 had no settings and no digest in its shards
_SEARCH = "beams", "matmul_precision"  # settings that are there where they were asked for
MANIFEST = "manifest.json"


class DamagedShard(ValueError):
    """A token file that cannot be read, or is not what was written. The message is one line."""


class Summary(NamedTuple):
    """What is in a token file."""

    clips: int
    frames: int
    samples: int
    digest: str
    failed: dict[str, str]


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
    quiet: bool = False,
    beams: int | None = None,
    matmul_precision: str | None = None,
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
      quiet: without a bar, which is on terminals only.
      beams: of the search for codes, the model's own when None.
      matmul_precision: that networks multiply in, see `TrainedCodec.with_matmul_precision`.

    Raises:
      ValueError: no recordings, settings other than those `output` was begun with, options that cannot be.
    """
    if min(shard_size, processes, num_shards) < 1 or not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard_size {shard_size}, processes {processes}, shard_index {shard_index} of num_shards {num_shards}: "
            "expected sizes of at least 1 and 0 <= shard_index < num_shards."
        )
    if processes > 1:  # on a GPU they share its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = [name for name, _ in recordings.list_audio(folder)]
    output = epath.Path(output)
    codec = trained.faster(pretrained.load(model), beams, matmul_precision)
    if codec.module.quantizer.codebook_size is None:
        raise ValueError(
            f"tokens are entries of codebooks, this codec's quantizer ({codec.config.model.quantizer}) has none."
        )
    num_codebooks = codec.check_rate(num_codebooks)
    search = dict(zip(_SEARCH, (beams, matmul_precision), strict=True))
    settings = _settings(codec, names, num_codebooks, shard_size, search)
    shards = [names[i : i + shard_size] for i in range(0, len(names), shard_size)]
    paths = [output / f"tokens-{i:05d}-of-{len(shards):05d}.npz" for i in range(len(shards))]
    _begin(output, settings, paths)
    mine = range(shard_index, len(shards), num_shards)
    done = {i: summary for i in mine if paths[i].exists() and (summary := _whole(paths[i]))}
    jobs = [(os.fspath(folder), shards[i], os.fspath(paths[i]), settings) for i in mine if i not in done]
    with tqdm(total=sum(len(shards[i]) for i in mine), unit="file", disable=quiet or None, leave=False) as bar:
        for i, summary in done.items():
            bar.update(len(shards[i]))
            yield summary
        if processes == 1:
            for job in jobs:
                yield _write_shard(codec, *job, bar.update)
        else:
            yield from _in_processes((model, beams, matmul_precision), jobs, processes, bar.update)
    _finish(output, paths)


def load_shard(path: epath.PathLike) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, codes (Q, T), samples) of every recording of one token file, of whatever version. Raises `DamagedShard`."""
    shard = _read(path, older=True)
    codes, offsets = shard["codes"], shard["offsets"]
    for i, (name, num_samples) in enumerate(zip(shard["names"], shard["num_samples"], strict=True)):
        yield str(name), codes[:, offsets[i] : offsets[i + 1]], int(num_samples)


def read_summary(path: epath.PathLike) -> Summary:
    """What is in one token file, all of which is read and checked. Raises `DamagedShard`."""
    return _summary(_read(path))


def _summary(shard):
    failed = dict(zip(shard["failed"].tolist(), shard["reasons"].tolist(), strict=True))
    samples = int(shard["num_samples"].sum())
    return Summary(len(shard["names"]), int(shard["offsets"][-1]), samples, str(shard["digest"]), failed)


def _whole(path):
    """The summary of a token file, None where it is damaged."""
    try:
        return read_summary(path)
    except DamagedShard as error:
        logging.warning("%s: it is made again.", error)
        return None


_LAYOUT = {  # axes and kind of number
    "codes": (2, "u"),
    "offsets": (1, "i"),
    "num_samples": (1, "i"),
    "names": (1, "U"),
    "failed": (1, "U"),
    "reasons": (1, "U"),
}


def _read(path, names=None, older=False):
    """The arrays of a token file, or some, which are then not checked; one of an `older` version has no digest."""
    with epath.Path(path).open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            told = () if older and "digest.npy" not in archive.namelist() else ("settings", "digest")
            shard = {name: _array(archive, name) for name in names or (*_LAYOUT, *told)}
            if "digest" in told and names is None and _digest(shard) != str(shard["digest"]):
                raise ValueError("it does not match its digest")
            if names is None:
                _check_layout(shard)
        except Exception as error:  # what zipfile and its decompressors raise is no closed list
            raise DamagedShard(f"{path} is damaged ({pretrained.one_line(error)})") from None
    return shard


def _array(archive, name):
    """One array of an archive as `np.savez` writes it, whose header cannot ask for more than is there."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > member.compress_size:
        raise ValueError(f"{member.filename} is compressed")
    file = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{member.filename} is of another version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C").copy()


def _digest(shard):
    """Hex digits of all arrays but the digest."""
    return entropy.digest({name: shard[name] for name in sorted(shard.keys() - {"digest"})})[:8].hex()


def _check_layout(shard):
    """Raises `ValueError` where arrays do not fit together."""
    forms = {name: (shard[name].ndim, shard[name].dtype.kind) for name in _LAYOUT}
    sizes = {name: len(shard[name]) for name in _LAYOUT if shard[name].ndim}
    offsets, count = shard["offsets"], sizes.get("names", 0)
    if (
        forms != _LAYOUT
        or (sizes["offsets"], sizes["num_samples"], sizes["failed"]) != (count + 1, count, sizes["reasons"])
        or (offsets[0], offsets[-1]) != (0, shard["codes"].shape[1])
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError("its arrays do not fit together")


def _settings(codec, names, num_codebooks, shard_size, search):
    """What shards of one output have in common; of the `search` what was asked for."""
    settings = dict(
        format=FORMAT,
        model=codec.fingerprint.hex(),
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        num_codebooks=num_codebooks,
        codebook_size=codec.codebook_size,
        shard_size=shard_size,
        recordings=len(names),
        names=hashlib.blake2b("\n".join(names).encode(errors="surrogateescape"), digest_size=8).hexdigest(),
    )
    return settings | {name: value for name, value in search.items() if value is not None}


def _begin(output, settings, paths):
    """Checks that manifest and shards that are there say the same, and writes the manifest where there is none."""
    path = output / MANIFEST
    if path.exists():
        try:
            begun = json.loads(path.read_text())
            changed = _changed(begun, settings)
        except (ValueError, AttributeError):
            raise ValueError(
                f"{path} is not a manifest of tokens: give another output folder, or remove this file."
            ) from None
        if changed:
            name = changed[0]
            raise ValueError(
                f"{output} was begun with {name} = {begun.get(name)}, this command has {settings.get(name)}: "
                "give another output folder, or remove this one."
            )
    for shard in sorted(output.glob("tokens-*.npz")):  # also where the manifest was lost
        if (problem := _other_settings(shard, settings)) or shard not in paths:
            raise ValueError(
                f"{shard} {problem or 'is none of this command'}: give another output folder, or remove this one."
            )
    if not path.exists():
        _write_manifest(path, settings | dict(complete=False, shards={}, failed={}))


def _other_settings(path, settings):
    """What a shard was made with that is not so now, None where nothing is or it is damaged."""
    try:
        made = json.loads(str(_read(path, ["settings"])["settings"]))
        changed = _changed(made, settings)
    except (ValueError, AttributeError):
        return None
    return f"was made with {changed[0]} = {made.get(changed[0])}, not {settings.get(changed[0])}" if changed else None


def _changed(made, settings):
    """Names of settings that are not what they were; what one side does not say was left to the model."""
    return [name for name in (*settings, *_SEARCH) if made.get(name) != settings.get(name)]


def _finish(output, paths):
    """Adds to the manifest what all shards that are there by now hold, as whoever made or checked them left them."""
    path = output / MANIFEST
    manifest = json.loads(path.read_text())
    some = ["names", "offsets", "num_samples", "digest", "failed", "reasons"]
    summaries = {shard.name: _summary(_read(shard, some)) for shard in paths if shard.exists()}
    shards = {name: dict(zip(Summary._fields[:4], summary, strict=False)) for name, summary in summaries.items()}
    failed = {name: why for summary in summaries.values() for name, why in summary.failed.items()}
    _write_manifest(path, manifest | dict(complete=len(shards) == len(paths), shards=shards, failed=failed))


def _write_manifest(path, manifest):
    with atomic.replacing(path) as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")


def _write_shard(codec, folder, names, path, settings, progress=lambda num_files: None):
    """Encodes one shard's recordings and writes them."""
    path, clips, failed, num_codebooks = epath.Path(path), [], {}, settings["num_codebooks"]
    for encoded in files.encode_files(codec, ((name, epath.Path(folder) / name) for name in names), num_codebooks):
        if encoded.error:
            failed[encoded.key] = str(encoded.error)
        else:
            clips.append(encoded)
        progress(1)
    codes = [np.zeros((num_codebooks, 0), np.uint16), *(clip.codes for clip in clips)]
    shard: dict[str, Any] = dict(
        codes=np.concatenate(codes, axis=1),
        offsets=np.cumsum([one.shape[1] for one in codes], dtype=np.int64),
        num_samples=np.array([clip.num_samples for clip in clips], np.int64),
        names=np.array([clip.key for clip in clips], np.str_),
        failed=np.array(list(failed), np.str_),
        reasons=np.array(list(failed.values()), np.str_),
        settings=np.array(json.dumps(settings)),
    )
    try:
        with atomic.replacing(path) as part, part.open("wb") as file:
            np.savez(file, **shard, digest=np.array(_digest(shard)))
    except FileNotFoundError:
        if not path.exists():
            raise
        # The same command, started twice: the other one was done first, and took ours for what is left of a dead one.
    for leftover in path.parent.glob(f".{path.stem}.*"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    return read_summary(path)


def _in_processes(model, jobs, processes, progress):
    """Summaries of the shards of `jobs`, each made by one of `processes` fresh Pythons with a JAX of its own."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    with workers.pool(processes, {"NPROC": str(threads)}) as pool:  # what XLA takes for the number of cores
        shards = {pool.submit(_load_and_write_shard, model, *job): len(job[1]) for job in jobs}
        for future in concurrent.futures.as_completed(shards):
            summary = future.result()
            progress(shards[future])
            yield summary


@functools.cache
def _load(model, beams, matmul_precision):
    return trained.faster(pretrained.load(model), beams, matmul_precision)


def _load_and_write_shard(model, *job):
    return _write_shard(_load(*model), *job)
