"""A codec and files: recordings to the content of .jxc files and back, in bounded memory.

data = jaxcodec.compress(codec, audio, kbps=8)      # or quality=-14, shape=0.75
audio = jaxcodec.decompress(codec, data)

data = jaxcodec.pack(codec, jaxcodec.encode(codec, audio), len(audio))      # the same from codes
codes, num_samples, _ = jaxcodec.unpack(codec, data)
"""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcodec import audio as audio_files, bitstream
from jaxcodec.inference import clips, functions
from jaxcodec.inference.trained import TrainedCodec, method

_READ_SECONDS = 10
_BATCH_BLOCKS = 6  # of short recordings are encoded at once; a longer recording is never held whole
_WHOLE_SECONDS = 20  # decoded at once, in a window of its size; longer files in blocks
BLOCK_SECONDS = 5.0  # of a .jxc file: what a damaged byte costs
_CLOSE = 0.01  # below the limit, where a search for a rate ends
_PIECE_BLOCKS = 48  # of a .jxc file are unpacked at once: side by side each takes less time
# A file of some 60 kB can hold this: what is decoded unasked is a working day and not more than 1.4 GB of wav.
MAX_SECONDS = 12 * 3600


class WrongModel(bitstream.BitstreamError):
    """The file was made with another model: its codes mean nothing to this one."""


class TooLong(bitstream.BitstreamError):
    """The file holds more audio than was allowed."""


class Layout(NamedTuple):
    """How codes are written."""

    entropy: bool = True  # coded, where that makes the file smaller
    block_seconds: float = BLOCK_SECONDS  # of a block, which is coded without the others
    fast: bool = False  # by the codec's prior that predicts many frames at once


_USUAL = Layout()


class Unpacked(NamedTuple):
    """What a file holds for its codec."""

    codes: np.ndarray  # (Q', T) int32
    num_samples: int
    damaged: list[tuple[int, int]]  # ranges of frames, first and one past the last, whose codes are lost and zero


@method
def compress(
    codec: TrainedCodec,
    audio,
    rate=None,
    *,
    kbps: float | None = None,
    entropy: bool = True,
    block_seconds: float = BLOCK_SECONDS,
    fast: bool = False,
    lengths=None,
    **named,
):
    """The content of a .jxc file for one clip, or a list of them for several.

    Args:
      codec: a codec.
      audio: (S,) at codec.sample_rate, float or int16; or a padded batch (B, S) or a list of (S,).
      rate: of the codec, or by name, as for `encode`: quality and shape, or num_codebooks.
      kbps: in place of a quality, what the whole file may have: the finest quality that does not exceed it.
      entropy: whether codes are entropy coded where that makes the file smaller.
      block_seconds: of a block, which is coded without the others: shorter ones are decoded faster, lose less where a byte
        is damaged, and take more bytes.
      fast: whether codes are predicted many frames at once: files are read and written faster, and take more bytes. Only
        for a codec that can, such as the bundled one for files.
      lengths: (B,) samples of each clip of a padded batch.

    Raises:
      ValueError: a rate or a clip that cannot be, kbps that cannot be reached.
    """
    if kbps is not None and codec.knob.argument in named:
        raise ValueError(f"kbps and {codec.knob.argument} both set the rate: give one of them.")
    rate = codec.check_rate(rate, named)
    given = clips.audio_clips(codec, audio, lengths, None)
    if given.traced:
        raise ValueError("compress makes bytes, which no jit, vmap or grad can: give it arrays.")
    layout = Layout(entropy, block_seconds, fast)
    if kbps is not None:
        made = [search(codec, clip, kbps, rate, **layout._asdict())[1] for clip in given.values]
    else:
        codes = functions.encode(codec, given.values, rate)
        made = [_pack(codec, np.asarray(c), len(x), layout) for c, x in zip(codes, given.values, strict=True)]
    return made[0] if given.kind == "clip" else made


def search(codec: TrainedCodec, audio, kbps: float, rate=None, **layout) -> tuple[Any, bytes]:
    """The rate that `compress` finds for `kbps`, and what it gives; `layout` as there."""

    def attempt(rate):
        return compress(codec, audio, rate, **layout)

    return at_kbps(codec, attempt, kbps, len(audio) / codec.sample_rate, rate)


@method
def decompress(codec: TrainedCodec, data, *, max_seconds: float = MAX_SECONDS):
    """The audio (S,) float32 of a .jxc file's content, or a list for a list. Raises `ValueError` as `unpack` does."""
    given = data if isinstance(data, list | tuple) else [data]
    together = read_together(((None, codec, one) for one in given), max_seconds)
    clips = [
        np.concatenate(
            [np.zeros(0, np.float32), *decode_file(codec, one, max_seconds=max_seconds, content=content).blocks]
        )
        for _, _, one, content in together
    ]
    return clips if isinstance(data, list | tuple) else clips[0]


def at_kbps(codec: TrainedCodec, attempt: Callable, kbps: float, seconds: float, rate=None) -> tuple[Any, bytes]:
    """The finest rate whose file has at most `kbps`, and that file; `attempt` makes a file at a rate.

    A search on the codec's first knob from `rate` on, with the second as it is there. Speech that needs less at the finest
    quality gets that, and no speech at all gets `rate`.

    Raises:
      ValueError: a codec whose rate has a few values only, kbps that the coarsest quality exceeds.
    """
    if (search := codec.knob.search) is None:
        raise ValueError(f"kbps cannot be chosen freely, the rate of this codec is set by {codec.knob.argument}.")
    if not 0 < kbps < math.inf:
        raise ValueError(f"kbps is {kbps}, expected a number above 0.")
    rate = codec.check_rate(rate)
    if not seconds:
        return rate, attempt(rate)
    coarsest, finest, step = search
    first, *others = rate if isinstance(rate, tuple) else (rate,)
    limit = int(125 * kbps * seconds)
    fits, exceeds = -1, round((finest - coarsest) / step) + 1  # the last known to fit and the first known not to
    index, sizes, best = round((first - coarsest) / step), {}, None
    while exceeds - fits > 1:
        index = min(max(index, fits + 1), exceeds - 1)
        value = coarsest + index * step
        tried = (value, *others) if others else value
        data = attempt(tried)
        sizes[index] = len(data)
        if len(data) > limit:
            exceeds = index
        else:
            fits, best = index, (tried, data)
            if len(data) > (1 - _CLOSE) * limit:
                break
        index = _next_index(sizes, index, limit)
    if best is None:
        least = min(sizes.values()) / 125 / seconds
        raise ValueError(f"{kbps:g} kbit/s cannot be reached, this recording needs {least:.2f} at least.")
    return best


def _next_index(sizes, index, limit):
    """Where the logarithm of the size, a straight line through the two nearest that are known, meets the limit."""
    near = sorted(sorted(sizes, key=lambda i: abs(i - index))[:2])
    slope = 0.013 if len(near) < 2 else math.log(sizes[near[1]] / sizes[near[0]]) / (near[1] - near[0])
    return index + math.floor(math.log(max(limit, 1) / sizes[index]) / min(max(slope, 0.003), 0.05))


@method
def pack(
    codec: TrainedCodec,
    codes,
    num_samples,
    *,
    entropy: bool = True,
    block_seconds: float = BLOCK_SECONDS,
    fast: bool = False,
):
    """The content of a .jxc file (docs/format.md) for one clip, or a list of them for several.

    Args:
      codec: the codec that made the codes.
      codes: (Q', T), the first Q' <= Q codebooks of a clip; or a padded batch (B, Q', T) or a list of (Q', T).
      num_samples: its exact length, or that of each; T must be codec.num_frames(num_samples), of a padded batch at least.
      entropy: whether the codec's probability model is used, where it has one and it makes the file smaller.
      block_seconds: of a block, as for `compress`.
      fast: as for `compress`.

    Raises:
      ValueError: codes of another shape, or that cannot be.
    """
    if not isinstance(codes, list | tuple) and np.ndim(codes) != 3:
        return _pack(codec, clips.to_numpy(codes), num_samples, Layout(entropy, block_seconds, fast))
    given = [clips.to_numpy(clip) for clip in codes]
    lengths = [int(length) for length in np.atleast_1d(num_samples)]
    if len(lengths) != len(given):
        raise ValueError(f"num_samples must be {len(given)} integers, one a clip, got {len(lengths)}.")
    if not isinstance(codes, list | tuple):
        given = [clip[:, : codec.num_frames(length)] for clip, length in zip(given, lengths, strict=True)]
    layout = Layout(entropy, block_seconds, fast)
    return [_pack(codec, clip, length, layout) for clip, length in zip(given, lengths, strict=True)]


def _pack(codec, codes, num_samples, layout):
    """The content of a file for one clip."""
    if codes.ndim != 2 or codes.shape[1] != codec.num_frames(num_samples):
        raise ValueError(
            f"codes have shape {codes.shape}, a clip of {num_samples} samples has (Q, {codec.num_frames(num_samples)})."
        )
    packer = _packer(codec, len(codes), layout)
    packer.add(codes, last=True)
    return packer.finish(num_samples)


def _packer(codec, num_rows, layout):
    model = _entropy_model(codec, layout)
    most = (model.max_block_frames if model else bitstream.MAX_BLOCK_FRAMES) / codec.frame_rate
    if not 0 < layout.block_seconds <= most:
        raise ValueError(f"block_seconds is {layout.block_seconds}, expected a number above 0, at most {most:g}.")
    return bitstream.Packer(
        **_fields(codec),
        num_codebooks=num_rows,
        fingerprint=codec.fingerprint,
        entropy_model=model,
        block_frames=max(1, round(layout.block_seconds * codec.frame_rate)),
    )


def _entropy_model(codec, layout):
    """What the codes of a file are predicted with."""
    if not (layout.entropy and layout.fast):
        return codec.entropy if layout.entropy else None
    if codec.fast_entropy is None:
        raise ValueError("this codec has no prior that predicts many frames at once: leave fast files to one that has.")
    return codec.fast_entropy


def _fields(codec):
    """What the headers of all files of a codec say."""
    return dict(
        kind=codec.config.model.quantizer,
        least_code=codec.module.quantizer.code_range[0],
        codebook_size=codec.codebook_size,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
    )


@method
def unpack(
    codec: TrainedCodec, data, *, errors: Literal["raise", "report"] = "raise", max_seconds: float = MAX_SECONDS
):
    """The codes in the content of a .jxc file, `Unpacked`, or a list for a list.

    With errors="report" a damaged block costs its own frames only, which are zero and listed in `damaged`.

    Raises:
      WrongModel: the file was made with another model.
      TooLong: it holds more than `max_seconds` of audio.
      bitstream.BitstreamError: it is no such file, or damaged; the subclass says how.
    """
    if not isinstance(data, list | tuple):
        return _unpack(codec, data, errors, max_seconds)
    together = read_together(((None, codec, one) for one in data), max_seconds)
    return [_unpack(codec, one, errors, max_seconds, content) for _, _, one, content in together]


def _unpack(codec, data, errors, max_seconds, content=None):
    header = _header(codec, data, max_seconds)
    if content is None or errors not in ("raise", "report") or (errors == "raise" and content.damaged):
        content = bitstream.unpack(data, codec.entropies, errors=errors)
    impossible = _clear_impossible(codec, content, 0)
    if impossible and errors == "raise":
        raise impossible[0]
    damaged = sorted(content.damaged + [(error.start_frame, error.stop_frame) for error in impossible])
    return Unpacked(content.codes.astype(np.int32), header.num_samples, damaged)


class Read(NamedTuple):
    """A file, the codec it is for, and what it holds where that has been read."""

    key: Any
    codec: TrainedCodec | None
    data: bytes
    content: bitstream.Content | None


def read_together(
    files: Iterable[tuple[Any, TrainedCodec | None, bytes]], max_seconds: float = MAX_SECONDS
) -> Iterator[Read]:
    """Files (key, codec, data), in order, with the contents of the short ones: those of a codec are read side by side.

    A prior decodes the next frame of many files in little more time than that of one. None are read of a file that is
    long, which `decode_file` reads in pieces, that has no codec, or that cannot be read, of which it says why.
    """
    group: list[Read] = []
    blocks: list[int] = []  # of each, as far as they are read at once
    for key, codec, data in files:
        group.append(Read(key, codec, data, None))
        blocks.append(_num_blocks(codec, data, max_seconds))
        if not blocks[-1] or sum(blocks) >= _PIECE_BLOCKS:
            yield from _read(group, blocks)
            group, blocks = [], []
    yield from _read(group, blocks)


def _read(group, blocks):
    """A group of files with the contents of those that have blocks to be read at once."""
    found: dict[int, bitstream.Content | None] = {}
    for codec in {id(one.codec): one.codec for one in group if one.codec}.values():
        places = [place for place, one in enumerate(group) if one.codec is codec and blocks[place]]
        contents = bitstream.unpack_together([group[place].data for place in places], codec.entropies)
        found |= zip(places, contents, strict=True)
    return [one._replace(content=found.get(place)) for place, one in enumerate(group)]


def _num_blocks(codec, data, max_seconds):
    """Blocks of a file that can be read at once, 0 of another."""
    try:
        header = _header(codec, data, max_seconds) if codec else None
    except ValueError:  # which who wants it is told when its turn comes
        return 0
    short = header and header.seconds <= _PIECE_BLOCKS * BLOCK_SECONDS
    return header.num_blocks if short and header.num_blocks <= _PIECE_BLOCKS else 0


def _header(codec, data, max_seconds):
    """The header of a file that this codec made."""
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        raise ValueError(f"{data} is a path, expected the bytes of a file: pathlib.Path({str(data)!r}).read_bytes().")
    header = bitstream.read_header(data)
    if header.fingerprint != codec.fingerprint:
        raise WrongModel(
            f"the file was made with the model {header.fingerprint.hex()}, this one is "
            f"{codec.fingerprint.hex()}: load the model it was made with."
        )
    expected = _fields(codec) | {"num_frames": codec.num_frames(header.num_samples)}
    if not codec.knob.nested:
        expected["num_codebooks"] = codec.num_codebooks
    for name, value in expected.items():
        if getattr(header, name) != value:
            raise bitstream.DamagedHeader(f"the header says {name} = {getattr(header, name)}, its model has {value}")
    if header.num_codebooks > codec.num_codebooks:
        raise bitstream.DamagedHeader(f"{header.num_codebooks} codebooks, its model has {codec.num_codebooks}")
    if header.seconds > max_seconds:
        raise TooLong(f"{header.seconds:.1f} s of audio, max_seconds = {max_seconds:g} allows less: give more")
    return header


def _clear_impossible(codec, content, start_frame):
    """The blocks of a content, from `start_frame` on, whose codes no encoder writes; their codes become zero."""
    size, found = content.header.block_frames, []
    wrong = np.flatnonzero(~codec.module.quantizer.possible(content.codes)) + start_frame
    for block in np.unique(wrong // size).tolist():
        first, last = content.header.block_range(block)
        content.codes[:, first - start_frame : last - start_frame] = 0
        found.append(bitstream.DamagedBlock(block, first, last, "its codes are none that an encoder writes"))
    return found


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

    def encode_long(blocks):
        lengths: list[int] = []
        pieces = functions.encode_blocks(codec, _measured(blocks, lengths), rate)
        return np.concatenate([piece.astype(_dtype(codec)) for piece in pieces], axis=1), sum(lengths)

    files = ((key, _Source(key, source, (0.0, None), lambda key, seconds: None)) for key, source in files)
    for key, codes, num_samples, error in _each(codec, files, rate, lambda codes, _: codes, encode_long):
        codes = np.zeros((0, 0), _dtype(codec)) if error else np.asarray(codes, _dtype(codec))
        yield Encoded(key, codes, num_samples, error)


class Compressed(NamedTuple):
    """The content of one .jxc file, or the error of a recording that cannot be read."""

    key: Any
    data: bytes
    num_samples: int
    error: ValueError | None = None


def compress_files(
    codec: TrainedCodec,
    files: Iterable[tuple[Any, Any]],
    rate=None,
    *,
    kbps: float | None = None,
    layout: Layout = _USUAL,
    span: tuple[float, float | None] = (0.0, None),
    progress: Callable[[Any, float], None] = lambda key, seconds: None,
) -> Iterator[Compressed]:
    """What `compress` makes of each of `files`, pairs of a key and what `audio.read_blocks` reads, in bounded memory.

    For kbps a recording is read several times. Of each only the seconds of `span`, from and to, are taken. `progress` is
    told of the keys of long recordings how many seconds are read so far.
    """
    rate = codec.check_rate(rate)
    _entropy_model(codec, layout)  # which may say that there is none, before anything is read
    files = ((key, _Source(key, source, span, progress)) for key, source in files)

    def compress_long(blocks, rate=rate):
        packer = _packer(codec, codec.module.quantizer.num_rows(rate), layout)
        lengths: list[int] = []
        for piece in functions.encode_blocks(codec, _measured(blocks, lengths), rate):
            packer.add(piece)
        return packer.finish(sum(lengths)), sum(lengths)

    def compress_short(codes, num_samples):
        return pack(codec, codes, num_samples, **layout._asdict())

    if kbps is None:
        for key, data, num_samples, error in _each(codec, files, rate, compress_short, compress_long):
            yield Compressed(key, b"" if error else data, num_samples, error)
        return
    for key, source in files:
        try:
            data, num_samples = _compress_to(codec, source, rate, kbps, layout, compress_long)
        except ValueError as error:
            yield Compressed(key, b"", 0, error)
        else:
            yield Compressed(key, data, num_samples)


class _Source(NamedTuple):
    """A recording of which a part is read, under somebody's eyes."""

    key: Any
    source: Any
    span: tuple[float, float | None]
    progress: Callable[[Any, float], None]

    def blocks(self, sample_rate) -> Iterator[np.ndarray]:
        """Its blocks (S,)."""
        blocks = audio_files.read_blocks(self.source, sample_rate, _READ_SECONDS)
        if self.span != (0.0, None):
            name = str(getattr(self.source, "name", self.source)).strip("<>")
            blocks = audio_files.cut(blocks, name, sample_rate, *self.span)
        position = 0
        for block in blocks:
            yield block
            position += len(block)
            self.progress(self.key, position / sample_rate)


def _compress_to(codec, source, rate, kbps, layout, compress_long):
    """The content of a .jxc file of at most `kbps` for a recording, and its number of samples."""
    with _repeatable(source, codec.sample_rate) as blocks:
        head = list(itertools.islice(blocks(), _BATCH_BLOCKS + 1))
        if len(head) <= _BATCH_BLOCKS:
            clip = np.concatenate(head)
            return compress(codec, clip, rate, kbps=kbps, **layout._asdict()), len(clip)
        num_samples = sum(map(len, blocks()))
        seconds = num_samples / codec.sample_rate
        return at_kbps(codec, lambda rate: compress_long(blocks(), rate)[0], kbps, seconds, rate)[1], num_samples


@contextlib.contextmanager
def _repeatable(source, sample_rate):
    """A function that reads a recording from its beginning; what an open file gives is kept in a temporary one."""

    def read():
        return source.blocks(sample_rate)

    if not hasattr(source.source, "read"):
        yield read
        return
    with tempfile.TemporaryFile() as file:
        sizes = [file.write(block.astype(np.float32).tobytes()) for block in read()]

        def replay():
            for start, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
                file.seek(start)
                yield np.frombuffer(file.read(size), np.float32)
                source.progress(source.key, (start + size) / 4 / sample_rate)

        yield replay


def _each(codec, files, rate, of_codes, of_blocks):
    """(key, result, samples, error) of each recording, a `_Source`.

    The result is what `of_codes` makes of the codes and samples of a short one, or `of_blocks`, with the samples, of the
    blocks of a long one.
    """
    short: list[tuple[Any, np.ndarray]] = []

    def encode_clips():
        codes = functions.encode(codec, [clip for _, clip in short], rate) if short else []
        for (key, clip), code in zip(short, codes, strict=True):
            yield key, of_codes(np.asarray(code), len(clip)), len(clip), None
        short.clear()

    for key, source in files:
        blocks = source.blocks(codec.sample_rate)
        try:
            head = list(itertools.islice(blocks, _BATCH_BLOCKS + 1))
            if len(head) > _BATCH_BLOCKS:
                yield from encode_clips()
                yield key, *of_blocks(itertools.chain(head, blocks)), None
                continue
        except ValueError as error:
            yield key, None, 0, error
            continue
        short.append((key, np.concatenate(head)))
        if sum(len(clip) for _, clip in short) > _BATCH_BLOCKS * _READ_SECONDS * codec.sample_rate:
            yield from encode_clips()
    yield from encode_clips()


def _measured(blocks, lengths):
    """The blocks, with their lengths added to a list as they pass."""
    for block in blocks:
        lengths.append(len(block))
        yield block


def _dtype(codec):
    return np.uint16 if codec.module.quantizer.code_range[0] >= 0 else np.int32


class Decoded(NamedTuple):
    """The audio of one file."""

    blocks: Iterator[np.ndarray]  # consecutive, (S,)
    num_samples: int
    damaged: list[tuple[float, float]]  # seconds from and to that are lost and silent; grows as blocks are taken


def decode_file(
    codec: TrainedCodec,
    data: bytes,
    *,
    keep_damaged: bool = False,
    max_seconds: float = MAX_SECONDS,
    content: bitstream.Content | None = None,
) -> Decoded:
    """The audio in the content of a .jxc file; with `keep_damaged` a damaged block is silence.

    What `read_together` has read is not read again.

    Raises:
      ValueError: as `unpack` does; of a damaged block it says where it is. One that only decoding finds is told when the
        blocks before it have been taken.
    """
    header = _header(codec, data, max_seconds)
    ranges: list[tuple[int, int]] = []
    seconds: list[tuple[float, float]] = []

    def note(error):
        start, stop = _seconds(codec, error.start_frame, error.stop_frame)
        if not keep_damaged:
            part = f"{start:.2f} to {stop:.2f} s"
            raise ValueError(f"block {error.block} at {part} is damaged, --keep_damaged decodes the rest") from None
        ranges.append((error.start_frame, error.stop_frame))
        seconds.append((start, stop))

    pieces = _unpack_pieces(codec, header, data, "report" if keep_damaged else "raise", note, content)
    if header.num_samples <= _WHOLE_SECONDS * codec.sample_rate:
        codes = np.concatenate(list(pieces), axis=1)
        blocks = iter([np.asarray(functions.decode(codec, codes, header.num_samples))])
    else:
        blocks = functions.decode_blocks(codec, pieces, header.num_samples)
    return Decoded(_silence(blocks, ranges, codec.hop_length), header.num_samples, seconds)


def verify(
    codec: TrainedCodec,
    data: bytes,
    max_seconds: float = MAX_SECONDS,
    content: bitstream.Content | None = None,
) -> tuple[float, list[tuple[float, float]]]:
    """The seconds of audio in the content of a .jxc file, and from and to which second of them it is damaged.

    Every block is decoded to its codes, and none to sound. Raises `ValueError` as `unpack` does where nothing can be
    decoded: another program's file, another model's, a damaged header, bytes that are missing or too many. What
    `read_together` has read is not read again.
    """
    header, damaged = _header(codec, data, max_seconds), []
    for _ in _unpack_pieces(codec, header, data, "raise", damaged.append, content):
        pass
    return header.seconds, [_seconds(codec, error.start_frame, error.stop_frame) for error in damaged]


def _unpack_pieces(codec, header, data, errors, note, content=None):
    """Codes (Q, n) of consecutive pieces of a file; damage that is known without decoding is noted at once.

    The one piece of a file whose content is known is that.
    """
    known = bitstream.damaged_blocks(data, errors=errors)
    for error in known:
        note(error)
    noted = {error.block for error in known}

    def pieces():
        start_frame = 0
        read = (
            bitstream.unpack_pieces(data, codec.entropies, num_blocks=_PIECE_BLOCKS) if content is None else [content]
        )
        for piece in read:
            for error in _clear_impossible(codec, piece, start_frame):
                note(error)
            start_frame += piece.codes.shape[1]
            for first, last in piece.damaged:
                if (block := first // header.block_frames) not in noted:
                    note(bitstream.DamagedBlock(block, first, last, "it cannot be decoded"))
            yield piece.codes.astype(np.int32)

    return pieces()


def _silence(blocks, ranges, hop_length):
    """Blocks (S,), checked to be finite, with zeros in ranges (first frame, frame after the last) of the whole."""
    position = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise ValueError("decoding gives samples that are no numbers: the weights of the model cannot be right.")
        block = block.copy() if ranges else block
        for frames in ranges:
            start, stop = (max(0, frame * hop_length - position) for frame in frames)
            block[start:stop] = 0
        position += len(block)
        yield block


def _seconds(codec, start_frame, stop_frame):
    return start_frame / codec.frame_rate, stop_frame / codec.frame_rate
