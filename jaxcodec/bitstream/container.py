"""The `.jxc` file: codes to bytes and back, with damage confined to blocks of frames.

docs/format.md is the specification, byte by byte. In short: a header of varints, an index with the size of every block,
a CRC over both; then blocks of `block_frames` frames, each with its own CRC and coded without the others, so a range of
frames can be read alone and a damaged block leaves the rest intact. A block is stored at ceil(log2 K) bits a code or,
where that is smaller, entropy coded.

Codes are (Q, T): Q codes a frame, T frames, K values from a least one on. Version 1 is for codebooks, values in [0, K);
version 2 names the kind of quantizer and takes signed codes and sparse ones; version 3 has a number for what most files of
version 2 say alike, which matters where a file has a few hundred bytes. Nothing here knows what a code sounds like.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcodec.bitstream import entropy

MAGIC = b"\x89JXC"
FIXED_WIDTH = 0  # the coding of a file without a probability model; with one it is the number of the model's kind
DIGEST_BYTES = 4
BLOCK_FRAMES, MAX_BLOCK_FRAMES = 500, 2**16 - 1
MAX_LANES = 64  # blocks decoded side by side
MAX_VARINT = 9  # bytes
CODEBOOKS = "rvq"  # the kind that version 1 knows
MAX_KIND_BYTES = 16
# Frames beyond ceil(num_samples / hop_length): one for a transform whose first frame is centered on sample 0; a few more
# leave room for architectures with look-ahead.
MAX_EXTRA_FRAMES = 16
_LIMITS = {
    "sample_rate": (1, 2**32 - 1),
    "hop_length": (1, 2**32 - 1),
    "num_samples": (0, 2**48),
    "extra_frames": (0, MAX_EXTRA_FRAMES),
    "num_codebooks": (1, 256),
    "codebook_size": (2, entropy.MAX_CODEBOOK_SIZE),
    "block_frames": (1, MAX_BLOCK_FRAMES),
}


class _Version(NamedTuple):
    """What one version of the format may say."""

    limits: dict[str, tuple[int, int]]  # the header's numbers in the order of the file
    codings: tuple[int, ...]
    # An encoder pads a coded block to one byte for so many codes: no file can ask for more memory than its length earns.
    max_codes_per_byte: int


_SIGNED = _Version(_LIMITS | {"num_codebooks": (1, 4096), "least_code": (-(2**15), 0)}, tuple(range(256)), 1024)
VERSIONS = {1: _Version(_LIMITS, (FIXED_WIDTH, entropy.EntropyModel.coding), 64), 2: _SIGNED, 3: _SIGNED}
MAX_CODES_PER_BYTE = VERSIONS[1].max_codes_per_byte
# What a file of version 3 says by a number, the place in this list. Never changed, only added to.
_BUNDLED = {
    "kind": "scalar",
    "sample_rate": 16000,
    "hop_length": 320,
    "num_codebooks": 333,
    "codebook_size": 65536,
    "block_frames": 250,
    "least_code": -32768,
}
PRESETS: tuple[dict, ...] = (_BUNDLED, _BUNDLED | {"block_frames": 64})

# What a file may be coded with: it says itself which of several.
Models = entropy.ProbabilityModel | Sequence[entropy.ProbabilityModel] | None


class BitstreamError(ValueError):
    """Bytes that cannot be read as a `.jxc` file. The message is one line."""


class NotABitstream(BitstreamError):
    """The first bytes are not those of a `.jxc` file."""


class UnsupportedVersion(BitstreamError):
    """A version or a coding that this reader does not know."""


class TruncatedBitstream(BitstreamError):
    """The data ends before the header or the blocks it announces do."""


class TrailingData(BitstreamError):
    """Bytes after the last block."""


class DamagedHeader(BitstreamError):
    """The header or the index fails its CRC, or holds a value that cannot be."""


class DamagedBlock(BitstreamError):
    """A block that fails its CRC or cannot be decoded: number `block`, frames `start_frame` to `stop_frame` - 1."""

    def __init__(self, block: int, start_frame: int, stop_frame: int, problem: str):
        super().__init__(
            f"block {block} (frames {start_frame} to {stop_frame - 1}) is damaged: {problem}; "
            'errors="report" reads the other blocks'
        )
        self.block, self.start_frame, self.stop_frame = block, start_frame, stop_frame


class MissingEntropyModel(BitstreamError):
    """The file is entropy coded and no model was given."""


class WrongEntropyModel(BitstreamError):
    """The file was coded with another entropy model than the one given."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    version: int
    fingerprint: bytes  # 8 bytes that identify the model whose codes these are
    entropy_digest: bytes | None  # first 4 bytes of the entropy model's digest; None: fixed width throughout
    sample_rate: int  # Hz
    hop_length: int  # samples a frame
    num_samples: int  # exact length of the clip
    num_codebooks: int  # codes a frame
    codebook_size: int  # values of a code
    num_frames: int
    block_frames: int  # frames a block, the last one may have fewer
    coding: int = FIXED_WIDTH  # or the kind of probability model
    kind: str = CODEBOOKS  # of quantizer
    least_code: int = 0

    @property
    def num_blocks(self) -> int:
        """ceil(num_frames / block_frames)."""
        return -(-self.num_frames // self.block_frames)

    @property
    def extra_frames(self) -> int:
        """Frames beyond ceil(num_samples / hop_length)."""
        return self.num_frames - -(-self.num_samples // max(self.hop_length, 1))

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.num_samples / self.sample_rate

    @property
    def code_bits(self) -> int:
        """Width of a stored code, ceil(log2 codebook_size)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def dtype(self) -> type:
        """Of codes."""
        return np.int32 if self.least_code else np.uint16

    @property
    def bits_per_second(self) -> float | None:
        """Nominal rate, frame_rate * num_codebooks * log2(codebook_size); None where entropy coding alone decides."""
        if self.kind != CODEBOOKS:
            return None
        return self.sample_rate / self.hop_length * self.num_codebooks * float(np.log2(self.codebook_size))

    def block_range(self, block: int) -> tuple[int, int]:
        """First frame of a block and the frame after its last."""
        return block * self.block_frames, min((block + 1) * self.block_frames, self.num_frames)


class Content(NamedTuple):
    """Codes of the frames asked for, and which of them are zeros because their block is damaged."""

    header: Header
    codes: np.ndarray  # (Q, stop_frame - start_frame) of the header's dtype
    damaged: list[tuple[int, int]]  # (first frame, frame after the last), counted from the start of the file


class _Block(NamedTuple):
    offset: int
    size: int
    coded: bool


class _Layout(NamedTuple):
    header: Header
    blocks: list[_Block]
    header_crc: int
    end: int  # bytes of the whole file


def pack(codes: np.ndarray, *, num_samples: int, **fields) -> bytes:
    """Codes (Q, T) of a clip of `num_samples` samples as the bytes of a `.jxc` file; `fields` are those of `Packer`.

    Codes of the kind "rvq" from 0 on make a file of version 1, others one of version 2 or 3.
    With an entropy model each block takes the smaller of both codings, and the file is never larger than without one.
    Raises `ValueError` for codes outside [least_code, least_code + codebook_size), a field outside its range, T not within
    16 frames of ceil(num_samples / hop_length), or an entropy model for other codes.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be integers of shape (Q, T), got {codes.dtype} of shape {codes.shape}.")
    packer = Packer(num_codebooks=codes.shape[0], **fields)
    packer.add(codes, last=True)
    return packer.finish(num_samples)


class Packer:
    """`pack` for the consecutive codes of one clip as they come: what is kept is the file's size, not the codes'.

    Raises:
      ValueError: as `pack` does.
    """

    def __init__(
        self,
        *,
        num_codebooks: int,
        codebook_size: int,
        sample_rate: int,
        hop_length: int,
        fingerprint: bytes,
        kind: str = CODEBOOKS,
        least_code: int = 0,
        entropy_model: entropy.ProbabilityModel | None = None,
        block_frames: int = BLOCK_FRAMES,
    ):
        if not (0 < len(kind) <= MAX_KIND_BYTES and kind.isascii() and kind.isprintable()):
            raise ValueError(f"the kind is {kind!r}, expected 1 to {MAX_KIND_BYTES} printable ASCII characters.")
        if len(fingerprint) != 8:
            raise ValueError(f"the fingerprint must have 8 bytes, got {len(fingerprint)}.")
        header = Header(
            version=2,
            fingerprint=bytes(fingerprint),
            entropy_digest=None,
            sample_rate=int(sample_rate),
            hop_length=int(hop_length),
            num_samples=0,
            num_codebooks=int(num_codebooks),
            codebook_size=int(codebook_size),
            num_frames=0,
            block_frames=int(block_frames),
            kind=kind,
            least_code=int(least_code),
        )
        self._begin(header, entropy_model)

    def _begin(self, header, entropy_model):
        header = dataclasses.replace(header, version=_version(header))
        if problem := _problem(header):
            raise ValueError(f"cannot write {problem}.")
        self._header, self._model = header, entropy_model
        if entropy_model and not entropy_model.fits(header.num_codebooks, header.least_code, header.codebook_size):
            raise ValueError(f"the entropy model is for {entropy_model}, the codes are {_shape(header)}.")
        if entropy_model and header.block_frames > entropy_model.max_block_frames:
            raise ValueError(f"cannot write {_too_long(header, entropy_model)}.")
        self._pending = np.zeros((header.num_codebooks, 0), header.dtype)
        self._best: list[tuple[bytes, bool]] = []  # the smaller of both codings of each block
        # What a file without the model would have, until it is clear that it would be larger.
        self._stored: list[tuple[bytes, bool]] | None = None if entropy_model is None else []
        self._saved, self._num_frames = 0, 0

    @classmethod
    def _like(cls, header, entropy_model):
        """A packer of files with such a header."""
        packer = cls.__new__(cls)
        fresh = dataclasses.replace(header, num_samples=0, num_frames=0, entropy_digest=None, coding=FIXED_WIDTH)
        packer._begin(fresh, entropy_model)
        return packer

    def add(self, codes: np.ndarray, last: bool = False) -> None:
        """The next codes (Q, n). Where they are the last, the block that they end in is coded beside the others."""
        codes, header = np.asarray(codes), self._header
        if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer) or len(codes) != header.num_codebooks:
            expected = f"({header.num_codebooks}, T)"
            raise ValueError(f"codes must be integers of shape {expected}, got {codes.dtype} of shape {codes.shape}.")
        stop = header.least_code + header.codebook_size
        if codes.size and not (codes.min() >= header.least_code and codes.max() < stop):
            raise ValueError(f"codes must lie in [{header.least_code}, {stop}), got {codes.min()} to {codes.max()}.")
        self._num_frames += codes.shape[1]
        size = header.block_frames
        ends = [*range(size - self._pending.shape[1], codes.shape[1] + 1, size)]  # of whole blocks
        if last and codes.shape[1] and ends[-1:] != [codes.shape[1]]:
            ends.append(codes.shape[1])
        if not ends:
            self._pending = np.concatenate([self._pending, codes], axis=1)
            return
        blocks = [np.concatenate([self._pending, codes[:, : ends[0]]], axis=1)]
        self._code(blocks + [codes[:, start:stop] for start, stop in itertools.pairwise(ends)])
        self._pending = codes[:, ends[-1] :].copy()

    def _code(self, blocks):
        """Consecutive blocks of codes (Q, n)."""
        coded = itertools.repeat(None) if self._model is None else _encode(blocks, self._header, self._model)
        for codes, payload in zip(blocks, coded, strict=False):
            size = -(-codes.size * self._header.code_bits // 8)
            smaller = payload if payload is not None and len(payload) < size else None
            best = (_store(codes, self._header), False) if smaller is None else (smaller, True)
            self._best.append(best)
            self._saved += size - len(best[0])
            if self._saved > DIGEST_BYTES + MAX_VARINT * len(self._best):
                self._stored = None
            elif self._stored is not None:
                self._stored.append((_store(codes, self._header), False) if best[1] else best)

    def finish(self, num_samples: int) -> bytes:
        """The file of a clip of `num_samples` samples."""
        header = dataclasses.replace(self._header, num_samples=int(num_samples), num_frames=self._num_frames)
        if problem := _problem(header):
            raise ValueError(f"cannot write {problem}.")
        if self._pending.shape[1]:
            self._code([self._pending])
        if self._model is None:
            return _assemble(header, self._best)
        digest = self._model.digest[:DIGEST_BYTES]
        coded = _assemble(dataclasses.replace(header, entropy_digest=digest, coding=self._model.coding), self._best)
        return coded if self._stored is None else min(_assemble(header, self._stored), coded, key=len)


def unpack(
    data: bytes,
    entropy_model: Models = None,
    *,
    start_frame: int = 0,
    stop_frame: int | None = None,
    errors: str = "raise",
) -> Content:
    """What `pack` wrote: header and codes, of frames [start_frame, stop_frame) only where given.

    Only the blocks that hold those frames are looked at. With `errors="report"` the codes of a damaged or missing block
    are zeros and its frames are listed in `damaged`; the header must be whole in either case.

    Raises:
      BitstreamError: see its subclasses.
      ValueError: frames outside the file, an `errors` that is neither "raise" nor "report".
    """
    layout = _parse(data)
    header = layout.header
    stop_frame = header.num_frames if stop_frame is None else stop_frame
    if not 0 <= start_frame <= stop_frame <= header.num_frames:
        raise ValueError(f"frames {start_frame} to {stop_frame} of a file with {header.num_frames} frames.")
    return _content(data, layout, entropy_model, start_frame, stop_frame, errors)


def unpack_pieces(data: bytes, entropy_model: Models = None, *, num_blocks: int) -> Iterator[Content]:
    """What `unpack` gives with `errors="report"`, in consecutive pieces of `num_blocks` blocks: memory is that of one."""
    layout = _parse(data)
    header = layout.header
    for start in range(0, max(header.num_frames, 1), num_blocks * header.block_frames):
        stop = min(start + num_blocks * header.block_frames, header.num_frames)
        yield _content(data, layout, entropy_model, start, stop, "report")


def unpack_together(files: Sequence[bytes], entropy_model: Models = None) -> list[Content | None]:
    """What `unpack` gives of each of some files with `errors="report"`, None where it raises; all decoded side by side."""
    layouts: list[_Layout | None] = []
    for data in files:
        try:
            layout = _parse(data)
            _check(data, layout, entropy_model, layout.header.num_frames, "report")
            layouts.append(layout)
        except BitstreamError:
            layouts.append(None)
    whole = [(data, layout) for data, layout in zip(files, layouts, strict=True) if layout]
    parts = [(data, layout, number) for data, layout in whole for number in range(len(layout.blocks))]
    blocks = _read_blocks(parts, entropy_model)
    return [layout and _assembled(layout.header, blocks, 0, layout.header.num_frames) for layout in layouts]


def _content(data, layout, entropy_model, start_frame, stop_frame, errors):
    """Frames [start_frame, stop_frame) of a file."""
    _check(data, layout, entropy_model, stop_frame - start_frame, errors)
    numbers = _block_numbers(layout.header, start_frame, stop_frame)
    blocks = _read_blocks([(data, layout, number) for number in numbers], entropy_model)
    return _assembled(layout.header, blocks, start_frame, stop_frame, errors)


def _block_numbers(header, start_frame, stop_frame):
    """The blocks that hold frames [start_frame, stop_frame)."""
    last = -(-stop_frame // header.block_frames) if start_frame < stop_frame else 0
    return range(start_frame // header.block_frames, last)


def _assembled(header, blocks, start_frame, stop_frame, errors="report"):
    """The content of frames [start_frame, stop_frame) from the blocks that hold them, the next of `blocks`."""
    codes = np.zeros((header.num_codebooks, stop_frame - start_frame), header.dtype)
    damaged = []
    for number in _block_numbers(header, start_frame, stop_frame):
        block = next(blocks)
        first, last = header.block_range(number)
        begin, end = max(first, start_frame), min(last, stop_frame)
        if isinstance(block, DamagedBlock):
            if errors == "raise":
                raise block
            damaged.append((begin, end))
        else:
            codes[:, begin - start_frame : end - start_frame] = block[:, begin - first : end - first]
    return Content(header, codes, damaged)


def damaged_blocks(data: bytes, *, errors: str = "report") -> list[DamagedBlock]:
    """The blocks of a file that fail their CRC or are missing, found without decoding any. Raises as `unpack` does."""
    layout = _parse(data)
    _check_whole(data, layout, 0, errors)
    found = (_payload(data, layout, number) for number in range(len(layout.blocks)))
    return [payload for payload in found if isinstance(payload, DamagedBlock)]


def read_header(data: bytes) -> Header:
    """The header of a `.jxc` file, from its bytes or as many of the first as hold header and index.

    Raises `BitstreamError`.
    """
    return _parse(data).header


def truncate(data: bytes, num_codebooks: int, entropy_model: Models = None) -> bytes:
    """The file of the first `num_codebooks` codebooks: a lower rate from the same codes, without the codec.

    Raises `BitstreamError`, or `ValueError` for more codebooks than there are.
    """
    header, codes, _ = unpack(data, entropy_model)
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise ValueError(f"cannot keep {num_codebooks} of {header.num_codebooks} codebooks.")
    kept = dataclasses.replace(header, num_codebooks=num_codebooks)
    packer = Packer._like(kept, None if header.entropy_digest is None else _model(header, entropy_model))
    packer.add(codes[:num_codebooks])
    return packer.finish(header.num_samples)


def _check(data, layout, entropy_model, num_frames, errors):
    """Raises where the content of so many frames cannot be read, whatever its blocks are."""
    _check_whole(data, layout, num_frames, errors)
    if layout.header.entropy_digest is not None:
        _model(layout.header, entropy_model)


def _check_whole(data, layout, num_frames, errors):
    """Raises where the data is not as long as it says; one that is to be reported may be shorter, but not by any factor."""
    if errors not in ("raise", "report"):
        raise ValueError(f'errors is {errors!r}, expected "raise" or "report".')
    header, end = layout.header, layout.end
    if len(data) > end:
        raise TrailingData(f"{len(data) - end} bytes after the last block, which ends at byte {end}")
    num_codes = header.num_codebooks * num_frames
    if len(data) < end and (errors == "raise" or num_codes > VERSIONS[header.version].max_codes_per_byte * len(data)):
        raise TruncatedBitstream(f"the header announces {end} bytes, there are {len(data)}")


def _version(header: Header) -> int:
    """The version whose file of such codes is the shortest."""
    if (header.kind, header.least_code) == (CODEBOOKS, 0):
        return 1
    return 3 if _presets(header) else 2


def _presets(header: Header) -> list[int]:
    """The numbers of presets that are true of a header."""
    fields = dataclasses.asdict(header).items()
    return [number for number, preset in enumerate(PRESETS) if preset.items() <= fields]


def _problem(header: Header) -> str | None:
    for name, (least, most) in VERSIONS[header.version].limits.items():
        if not least <= (value := getattr(header, name)) <= most:
            return f"{name} = {value}, expected {least} to {most}"
    return None


def _numbers(header: Header) -> dict[str, int]:
    """The numbers of a header that no preset says, in the order of the file; least_code, never above 0, without its sign."""
    known = PRESETS[_presets(header)[0]] if header.version == 3 else {}
    return {name: abs(getattr(header, name)) for name in VERSIONS[header.version].limits if name not in known}


def _assemble(header: Header, payloads: list[tuple[bytes, bool]]) -> bytes:
    head = bytearray([*MAGIC, header.version, header.coding])
    if header.version == 2:
        head += _varint(len(header.kind)) + header.kind.encode()
    elif header.version == 3:
        head += _varint(_presets(header)[0])
    head += header.fingerprint + (header.entropy_digest or b"")
    numbers = [*_numbers(header).values(), *(2 * len(payload) + coded for payload, coded in payloads)]
    head += b"".join(map(_varint, numbers))
    header_crc = zlib.crc32(head)
    parts = [bytes(head), header_crc.to_bytes(4, "little")]
    for number, (payload, _) in enumerate(payloads):
        parts += [payload, _block_crc(header_crc, number, payload).to_bytes(4, "little")]
    return b"".join(parts)


def _parse(data: bytes) -> _Layout:
    """Header and index, checked; the blocks themselves may be missing. Allocates in proportion to len(data)."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise NotABitstream("not a .jxc file: the first four bytes are not 89 4a 58 43")
    reader = _Reader(data, len(MAGIC))
    header = _read_fields(reader)
    if header.num_blocks > len(data):
        raise TruncatedBitstream(f"the header announces {header.num_blocks} blocks, there are {len(data)} bytes")
    entries = [reader.varint() for _ in range(header.num_blocks)]
    header_crc = zlib.crc32(data[: reader.offset])
    if int.from_bytes(reader.take(4), "little") != header_crc:
        raise DamagedHeader("header and index do not match their CRC")
    blocks, offset = [], reader.offset
    for number, entry in enumerate(entries):
        block = _Block(offset, entry >> 1, bool(entry & 1))
        _check_size(header, number, block)
        blocks.append(block)
        offset += block.size + 4
    return _Layout(header, blocks, header_crc, offset)


def _read_fields(reader) -> Header:
    version = reader.take(1)[0]
    if version not in VERSIONS:
        raise UnsupportedVersion(f".jxc version {version}, this reader knows versions 1 to 3: update jaxcodec")
    coding = reader.take(1)[0]
    if coding not in VERSIONS[version].codings:
        raise UnsupportedVersion(f".jxc coding {coding}, this version of the format has none such: update jaxcodec")
    known = {"kind": CODEBOOKS}
    if version == 2:
        known = {"kind": reader.text(MAX_KIND_BYTES)}
    elif version == 3:
        if (number := reader.varint()) >= len(PRESETS):
            raise UnsupportedVersion(f".jxc preset {number}, this reader knows {len(PRESETS)}: update jaxcodec")
        known = PRESETS[number]
    fingerprint = reader.take(8)
    digest = None if coding == FIXED_WIDTH else reader.take(DIGEST_BYTES)
    fields = {name: reader.varint() for name in VERSIONS[version].limits if name not in known}
    if "least_code" in fields:
        fields["least_code"] *= -1
    num_frames = -(-fields["num_samples"] // max(1, (known | fields)["hop_length"])) + fields.pop("extra_frames")
    header = Header(version, fingerprint, digest, num_frames=num_frames, coding=coding, **known | fields)
    if problem := _problem(header):
        raise DamagedHeader(f"the header says {problem}")
    return header


class _Reader:
    """A position in bytes that ends in `TruncatedBitstream`, never in an IndexError."""

    def __init__(self, data: bytes, offset: int):
        self.data, self.offset = data, offset

    def take(self, size: int) -> bytes:
        if self.offset + size > len(self.data):
            raise TruncatedBitstream(f"the data ends within the header, after {len(self.data)} bytes")
        self.offset += size
        return bytes(self.data[self.offset - size : self.offset])

    def text(self, most: int) -> str:
        """Printable ASCII behind its length."""
        text = self.take(min(size := self.varint(), most)).decode("latin-1")
        if not (0 < size <= most and text.isascii() and text.isprintable()):
            raise DamagedHeader(f"the name that ends at byte {self.offset} cannot be")
        return text

    def varint(self) -> int:
        """LEB128: seven bits a byte, lowest first, the high bit says that more follow. At most nine, no leading zeros."""
        value = 0
        for shift in range(0, 7 * MAX_VARINT, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    break
                return value
        raise DamagedHeader(f"the number that ends at byte {self.offset} is not in its shortest form")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def _block_crc(header_crc: int, number: int, payload: bytes) -> int:
    """CRC-32 that also covers which file and which place the block belongs to."""
    return zlib.crc32(payload, zlib.crc32(header_crc.to_bytes(4, "little") + number.to_bytes(4, "little")))


def _check_size(header: Header, number: int, block: _Block) -> None:
    """A stored block has exactly one size, a coded one is smaller, and not smaller than its padding."""
    start, stop = header.block_range(number)
    num_codes = header.num_codebooks * (stop - start)
    stored = -(-num_codes * header.code_bits // 8)
    least = -(-num_codes // VERSIONS[header.version].max_codes_per_byte)
    valid = least <= block.size < stored if block.coded else block.size == stored
    if not valid or (block.coded and header.entropy_digest is None):
        coding = "entropy coded" if block.coded else "stored"
        raise DamagedHeader(f"the index gives block {number} {block.size} bytes {coding}, stored it needs {stored}")


def _read_blocks(parts, entropy_model):
    """Codes (Q, n) or `DamagedBlock` of blocks (data, layout, number) of any files, in order; many are decoded at once."""
    for first in range(0, len(parts), MAX_LANES):
        some = parts[first : first + MAX_LANES]
        found = [_payload(*part) for part in some]
        coded: dict[tuple, list[int]] = {}  # by model and number of codebooks, which differ from file to file
        for place, (_, layout, number) in enumerate(some):
            if layout.blocks[number].coded and not isinstance(found[place], DamagedBlock):
                key = _model(layout.header, entropy_model), layout.header.num_codebooks
                coded.setdefault(key, []).append(place)
        for (model, num_codebooks), places in coded.items():
            ranges = [some[place][1].header.block_range(some[place][2]) for place in places]
            sizes = [stop - start for start, stop in ranges]
            results = model.decode_blocks([found[place] for place in places], num_codebooks, sizes)
            for place, result, (start, stop) in zip(places, results, ranges, strict=True):
                _, layout, number = some[place]
                wrong = isinstance(result, entropy.DamagedCodes)
                problem = str(result) if wrong else _out_of_range(result, layout.header)
                found[place] = DamagedBlock(number, start, stop, problem) if problem else result
        for block, (_, layout, number) in zip(found, some, strict=True):
            yield _stored_codes(block, layout.header, number) if isinstance(block, bytes) else block


def _payload(data, layout, number):
    """The bytes of one block, or the `DamagedBlock` that it is."""
    header, block = layout.header, layout.blocks[number]
    start, stop = header.block_range(number)
    payload = bytes(data[block.offset : block.offset + block.size])
    crc = data[block.offset + block.size : block.offset + block.size + 4]
    if len(crc) < 4:
        return DamagedBlock(number, start, stop, "the data ends before it does")
    if int.from_bytes(crc, "little") != _block_crc(layout.header_crc, number, payload):
        return DamagedBlock(number, start, stop, "it does not match its CRC")
    return payload


def _stored_codes(payload, header, number):
    start, stop = header.block_range(number)
    shape = header.num_codebooks, stop - start
    unused = 8 * len(payload) - shape[0] * shape[1] * header.code_bits
    if payload and payload[-1] & ((1 << unused) - 1):
        return DamagedBlock(number, start, stop, "the bits after its last code are not zero")
    codes = _restore(payload, shape, header.code_bits).astype(header.dtype) + header.least_code
    problem = _out_of_range(codes, header)
    return DamagedBlock(number, start, stop, problem) if problem else codes


def _out_of_range(codes, header):
    """What is wrong with codes (Q, n) that cannot be, or None."""
    most = header.least_code + header.codebook_size - 1
    if codes.size and not header.least_code <= codes.min() <= codes.max() <= most:
        return f"codes {codes.min()} to {codes.max()}, expected {header.least_code} to {most}"
    return None


def _store(codes: np.ndarray, header: Header) -> bytes:
    """Codes (Q, n) from the least on, row after row, at a fixed width, the highest bit first; zeros fill the last byte."""
    shifts = np.arange(header.code_bits - 1, -1, -1, dtype=np.int64)
    values = codes.reshape(-1, 1).astype(np.int64) - header.least_code
    return np.packbits((values >> shifts).astype(np.uint8) & 1).tobytes()


def _restore(payload: bytes, shape: tuple[int, int], bits: int) -> np.ndarray:
    """What `_store` wrote, (Q, n) uint16."""
    digits = np.unpackbits(np.frombuffer(payload, np.uint8), count=shape[0] * shape[1] * bits).reshape(-1, bits)
    return (digits @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint16))).reshape(shape)


def _encode(blocks: list[np.ndarray], header: Header, entropy_model: entropy.ProbabilityModel) -> list[bytes]:
    """Blocks of codes (Q, n) entropy coded and padded with zeros to the least size a reader accepts."""
    most, coded = VERSIONS[header.version].max_codes_per_byte, entropy_model.encode_blocks(blocks)
    return [one.ljust(-(-codes.size // most), b"\0") for codes, one in zip(blocks, coded, strict=True)]


def _shape(header: Header) -> str:
    return f"{header.num_codebooks} codebooks of {header.codebook_size}"


def _model(header: Header, models: Models) -> entropy.ProbabilityModel:
    """The one of some models that the file was coded with; raises where there is none."""
    assert header.entropy_digest is not None
    known = models if isinstance(models, Sequence) else [] if models is None else [models]
    if not known:
        raise MissingEntropyModel(
            f"entropy coded with the tables {header.entropy_digest.hex()}, and none given: load the model file that has them"
        )
    model = next((model for model in known if model.digest[:DIGEST_BYTES] == header.entropy_digest), None)
    if model is None:
        digests = " or ".join(model.digest[:DIGEST_BYTES].hex() for model in known)
        raise WrongEntropyModel(f"entropy coded with model {header.entropy_digest.hex()}, the given one is {digests}")
    if model.coding != header.coding or not model.fits(header.num_codebooks, header.least_code, header.codebook_size):
        raise WrongEntropyModel(f"the entropy model is for {model}, the file has {_shape(header)}")
    if header.block_frames > model.max_block_frames:
        raise DamagedHeader(_too_long(header, model))
    return model


def _too_long(header, model):
    return f"block_frames = {header.block_frames}, its entropy coder has at most {model.max_block_frames}"
