"""A codec and files: recordings to the content of .jxc files and back, in bounded memory.

data = jaxcodec.pack(codec, jaxcodec.encode(codec, audio), len(audio))
codes, num_samples, _ = jaxcodec.unpack(codec, data)
audio = jaxcodec.decode(codec, codes, num_samples)
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcodec import audio, bitstream
from jaxcodec.inference import functions
from jaxcodec.inference.trained import TrainedCodec

_BLOCK_SECONDS = 10
_BATCH_BLOCKS = 6  # of short recordings are encoded at once; a longer recording is never held whole
_WHOLE_SECONDS = 20  # decoded at once, in a window of its size; longer files in blocks


class WrongModel(bitstream.BitstreamError):
    """The file was made with another model: its codes mean nothing to this one."""


class Unpacked(NamedTuple):
    """What a file holds for its codec."""

    codes: np.ndarray  # (Q', T) int32
    num_samples: int
    damaged: list[tuple[int, int]]  # ranges of frames, first and one past the last, whose codes are lost and zero


def pack(codec: TrainedCodec, codes, num_samples: int, *, entropy: bool = True) -> bytes:
    """The content of a .jxc file (docs/format.md) for one clip.

    Args:
      codec: the codec that made the codes.
      codes: (Q', T), the first Q' <= Q codebooks of a clip.
      num_samples: its exact length; T must be codec.num_frames(num_samples).
      entropy: whether the codec's tables are used, where it has some and they make the file smaller.

    Raises:
      ValueError: codes of another shape, or that cannot be.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != codec.num_frames(num_samples):
        raise ValueError(
            f"codes have shape {codes.shape}, a clip of {num_samples} samples has (Q, {codec.num_frames(num_samples)})."
        )
    return bitstream.pack(
        codes,
        kind=codec.config.model.quantizer,
        least_code=codec.module.quantizer.code_range[0],
        codebook_size=codec.codebook_size,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        num_samples=num_samples,
        fingerprint=codec.fingerprint,
        entropy_model=codec.entropy if entropy else None,
    )


def unpack(codec: TrainedCodec, data: bytes, *, errors: Literal["raise", "report"] = "raise") -> Unpacked:
    """The codes in the content of a .jxc file.

    With errors="report" a damaged block costs its own frames only, which are zero and listed in `damaged`.

    Raises:
      WrongModel: the file was made with another model.
      bitstream.BitstreamError: it is no such file, or damaged; the subclass says how.
    """
    header = bitstream.read_header(data)
    if header.fingerprint != codec.fingerprint:
        raise WrongModel(
            f"the file was made with the model {header.fingerprint.hex()}, this one is "
            f"{codec.fingerprint.hex()}: load the model it was made with."
        )
    unpacked = bitstream.unpack(data, codec.entropy, errors=errors)
    if unpacked.codes.shape[1] != codec.num_frames(header.num_samples):
        raise bitstream.DamagedHeader(
            f"the file has {unpacked.codes.shape[1]} frames, {header.num_samples} samples of this model have "
            f"{codec.num_frames(header.num_samples)}."
        )
    return Unpacked(unpacked.codes.astype(np.int32), header.num_samples, unpacked.damaged)


def round_trip(codec: TrainedCodec, codes, num_samples: int) -> tuple[np.ndarray, int]:
    """What comes out of a file of codes (Q', T), audio (num_samples,) as a file would hold it, and bytes of the file."""
    data = pack(codec, codes, num_samples)
    unpacked = unpack(codec, data)
    decoded = functions.decode(codec, unpacked.codes, unpacked.num_samples)
    return np.asarray(decoded).clip(-1.0, 1.0), len(data)


class Encoded(NamedTuple):
    """The codes of one file, or the error of one that cannot be read."""

    key: Any
    codes: np.ndarray  # (Q, T), uint16 where no code is negative
    num_samples: int
    error: ValueError | None = None


def encode_files(codec: TrainedCodec, files: Iterable[tuple[Any, Any]], rate=None) -> Iterator[Encoded]:
    """The codes of each of `files`, pairs of a key and what `audio.read_blocks` reads.

    Short clips are encoded together and long recordings in bounded memory; both have the codes they have alone. Codes
    come in order, the error of an unreadable file as soon as it is known.
    """
    clips: list[tuple[Any, np.ndarray]] = []

    def encode_clips():
        codes = functions.encode(codec, [clip for _, clip in clips], rate) if clips else []
        for (key, clip), code in zip(clips, codes, strict=True):
            yield Encoded(key, np.asarray(code, _dtype(codec)), len(clip))
        clips.clear()

    for key, source in files:
        blocks = audio.read_blocks(source, codec.sample_rate, _BLOCK_SECONDS)
        try:
            head = list(itertools.islice(blocks, _BATCH_BLOCKS + 1))
            if len(head) > _BATCH_BLOCKS:
                yield from encode_clips()
                yield _encode_long(codec, key, itertools.chain(head, blocks), rate)
                continue
        except ValueError as error:
            yield Encoded(key, np.zeros((0, 0), _dtype(codec)), 0, error)
            continue
        clips.append((key, np.concatenate(head)))
        if sum(len(clip) for _, clip in clips) > _BATCH_BLOCKS * _BLOCK_SECONDS * codec.sample_rate:
            yield from encode_clips()
    yield from encode_clips()


def _encode_long(codec, key, blocks, rate):
    lengths = []

    def measured():
        for block in blocks:
            lengths.append(len(block))
            yield block

    codes = [piece.astype(_dtype(codec)) for piece in functions.encode_blocks(codec, measured(), rate)]
    return Encoded(key, np.concatenate(codes, axis=1), sum(lengths))


def _dtype(codec):
    return np.uint16 if codec.module.quantizer.code_range[0] >= 0 else np.int32


class Decoded(NamedTuple):
    """The audio of one file."""

    blocks: Iterator[np.ndarray]  # consecutive, (S,)
    num_samples: int
    damaged: list[tuple[float, float]]  # seconds from and to that are lost and silent


def decode_file(codec: TrainedCodec, data: bytes, *, keep_damaged: bool = False) -> Decoded:
    """The audio in the content of a .jxc file; with `keep_damaged` a damaged block is silence.

    Raises:
      ValueError: as `unpack` does; of a damaged block it says where it is.
    """
    try:
        codes, num_samples, damaged = unpack(codec, data, errors="report" if keep_damaged else "raise")
    except bitstream.DamagedBlock as error:
        start, stop = _seconds(codec, error.start_frame, error.stop_frame)
        part = f"{start:.2f} to {stop:.2f} s"
        raise ValueError(f"block {error.block} at {part} is damaged, --keep_damaged decodes the rest") from None
    blocks = _silence(_decode_blocks(codec, codes, num_samples), damaged, codec.hop_length)
    return Decoded(blocks, num_samples, [_seconds(codec, *frames) for frames in damaged])


def _decode_blocks(codec, codes, num_samples):
    """Blocks of audio (S,)."""
    if num_samples <= _WHOLE_SECONDS * codec.sample_rate:
        return [np.asarray(functions.decode(codec, codes, num_samples))]
    step = round(_WHOLE_SECONDS * codec.frame_rate)
    return functions.decode_blocks(codec, (codes[:, i : i + step] for i in range(0, codes.shape[1], step)), num_samples)


def _silence(blocks, ranges, hop_length):
    """Blocks (S,) with zeros in ranges (first frame, frame after the last) of the whole."""
    position = 0
    for block in blocks:
        block = block.copy() if ranges else block
        for frames in ranges:
            start, stop = (max(0, frame * hop_length - position) for frame in frames)
            block[start:stop] = 0
        position += len(block)
        yield block


def _seconds(codec, start_frame, stop_frame):
    return start_frame / codec.frame_rate, stop_frame / codec.frame_rate
