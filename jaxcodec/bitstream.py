"""The `.jxc` file: codes to bytes and back, with damage confined to blocks of frames.

docs/format.md is the specification, byte by byte. In short: a header of varints, an index with the size of every block,
a CRC over both; then blocks of `block_frames` frames, each with its own CRC and coded without the others, so a range of
frames can be read alone and a damaged block leaves the rest intact. A block is stored at ceil(log2 K) bits a code or,
where that is smaller, entropy coded.

Codes are (Q, T): Q codebooks, T frames, values in [0, K). Nothing here knows what a code sounds like.
"""

import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from jaxcodec import entropy

MAGIC = b"\x89JXC"
VERSION = 1
FIXED_WIDTH, ENTROPY_CODED = 0, 1
DIGEST_BYTES = 4
BLOCK_FRAMES = 500
# An encoder pads a coded block to one byte for this many codes, so no file can ask for more memory than its length earns.
MAX_CODES_PER_BYTE = 64
# Frames beyond ceil(num_samples / hop_length): one for a transform whose first frame is centred on sample 0; a few more
# leave room for architectures with look-ahead.
MAX_EXTRA_FRAMES = 16
_LIMITS = {
    "sample_rate": (1, 2**32 - 1),
    "hop_length": (1, 2**32 - 1),
    "num_samples": (0, 2**48),
    "extra_frames": (0, MAX_EXTRA_FRAMES),
    "num_codebooks": (1, 256),
    "codebook_size": (2, entropy.MAX_CODEBOOK_SIZE),
    "block_frames": (1, 2**16 - 1),
}


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
    num_codebooks: int
    codebook_size: int
    num_frames: int
    block_frames: int  # frames a block, the last one may have fewer

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
    def bits_per_second(self) -> float:
        """Nominal rate, frame_rate * num_codebooks * log2(codebook_size)."""
        return self.sample_rate / self.hop_length * self.num_codebooks * float(np.log2(self.codebook_size))

    def block_range(self, block: int) -> tuple[int, int]:
        """First frame of a block and the frame after its last."""
        return block * self.block_frames, min((block + 1) * self.block_frames, self.num_frames)


class Unpacked(NamedTuple):
    """Codes of the frames asked for, and which of them are zeros because their block is damaged."""

    header: Header
    codes: np.ndarray  # (Q, stop_frame - start_frame) uint16
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


def pack(
    codes: np.ndarray,
    *,
    codebook_size: int,
    sample_rate: int,
    hop_length: int,
    num_samples: int,
    fingerprint: bytes,
    entropy_model: entropy.EntropyModel | None = None,
    block_frames: int = BLOCK_FRAMES,
) -> bytes:
    """Codes (Q, T) of a clip of `num_samples` samples as the bytes of a `.jxc` file.

    With an entropy model each block takes the smaller of both codings, and the file is never larger than without one.
    Raises `ValueError` for codes outside [0, codebook_size), a field outside its range, T not within 16 frames of
    ceil(num_samples / hop_length), or an entropy model for other codebooks.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be integers of shape (Q, T), got {codes.dtype} of shape {codes.shape}.")
    if codes.size and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes must lie in [0, {codebook_size}), got {codes.min()} to {codes.max()}.")
    if len(fingerprint) != 8:
        raise ValueError(f"the fingerprint must have 8 bytes, got {len(fingerprint)}.")
    num_codebooks, num_frames = codes.shape
    header = Header(
        version=VERSION,
        fingerprint=bytes(fingerprint),
        entropy_digest=None if entropy_model is None else entropy_model.digest[:DIGEST_BYTES],
        sample_rate=int(sample_rate),
        hop_length=int(hop_length),
        num_samples=int(num_samples),
        num_codebooks=num_codebooks,
        codebook_size=int(codebook_size),
        num_frames=num_frames,
        block_frames=int(block_frames),
    )
    problem = _problem(_fields(header))
    if problem:
        raise ValueError(f"cannot write {problem}.")
    if entropy_model is not None and not _fits(header, entropy_model):
        raise ValueError(f"the entropy model is for {_kind(entropy_model)}, the codes are {_kind(header)}.")
    ranges = [header.block_range(block) for block in range(header.num_blocks)]
    stored = [(_store(codes[:, start:stop], header.code_bits), False) for start, stop in ranges]
    if entropy_model is not None:
        coded = [(_encode(codes[:, start:stop], entropy_model), True) for start, stop in ranges]
        best = [min(pair, key=lambda payload: len(payload[0])) for pair in zip(stored, coded, strict=True)]
        with_model = _assemble(header, best)
        header = dataclasses.replace(header, entropy_digest=None)
        return min(_assemble(header, stored), with_model, key=len)
    return _assemble(header, stored)


def unpack(
    data: bytes,
    entropy_model: entropy.EntropyModel | None = None,
    *,
    start_frame: int = 0,
    stop_frame: int | None = None,
    errors: str = "raise",
) -> Unpacked:
    """What `pack` wrote: header and codes, of frames [start_frame, stop_frame) only where given.

    Only the blocks that hold those frames are looked at. With `errors="report"` the codes of a damaged or missing block
    are zeros and its frames are listed in `damaged`; the header must be whole in either case.

    Raises:
      BitstreamError: see its subclasses.
      ValueError: frames outside the file, an `errors` that is neither "raise" nor "report".
    """
    if errors not in ("raise", "report"):
        raise ValueError(f'errors is {errors!r}, expected "raise" or "report".')
    header, blocks, header_crc, file_end = _parse(data)
    stop_frame = header.num_frames if stop_frame is None else stop_frame
    if not 0 <= start_frame <= stop_frame <= header.num_frames:
        raise ValueError(f"frames {start_frame} to {stop_frame} of a file with {header.num_frames} frames.")
    if len(data) > file_end:
        raise TrailingData(f"{len(data) - file_end} bytes after the last block, which ends at byte {file_end}")
    num_codes = header.num_codebooks * (stop_frame - start_frame)
    if len(data) < file_end and (errors == "raise" or num_codes > MAX_CODES_PER_BYTE * len(data)):
        raise TruncatedBitstream(f"the header announces {file_end} bytes, there are {len(data)}")
    if header.entropy_digest is not None:
        _check_model(header, entropy_model)

    codes = np.zeros((header.num_codebooks, stop_frame - start_frame), np.uint16)
    damaged = []
    if start_frame < stop_frame:
        for number in range(start_frame // header.block_frames, -(-stop_frame // header.block_frames)):
            first, last = header.block_range(number)
            begin, end = max(first, start_frame), min(last, stop_frame)
            try:
                block = _read_block(data, header, header_crc, number, blocks[number], entropy_model)
            except DamagedBlock:
                if errors == "raise":
                    raise
                damaged.append((begin, end))
            else:
                codes[:, begin - start_frame : end - start_frame] = block[:, begin - first : end - first]
    return Unpacked(header, codes, damaged)


def read_header(data: bytes) -> Header:
    """The header of a `.jxc` file, from its bytes or as many of the first as hold header and index.

    Raises `BitstreamError`.
    """
    return _parse(data).header


def truncate(data: bytes, num_codebooks: int, entropy_model: entropy.EntropyModel | None = None) -> bytes:
    """The file of the first `num_codebooks` codebooks: a lower rate from the same codes, without the codec.

    Raises `BitstreamError`, or `ValueError` for more codebooks than there are.
    """
    header, codes, _ = unpack(data, entropy_model)
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise ValueError(f"cannot keep {num_codebooks} of {header.num_codebooks} codebooks.")
    return pack(
        codes[:num_codebooks],
        codebook_size=header.codebook_size,
        sample_rate=header.sample_rate,
        hop_length=header.hop_length,
        num_samples=header.num_samples,
        fingerprint=header.fingerprint,
        entropy_model=None if header.entropy_digest is None else entropy_model,
        block_frames=header.block_frames,
    )


def _fields(header: Header) -> dict[str, int]:
    """The header's numbers in the order of the file."""
    return {name: getattr(header, name) for name in _LIMITS}


def _problem(fields: dict[str, int]) -> str | None:
    for name, (least, most) in _LIMITS.items():
        if not least <= fields[name] <= most:
            return f"{name} = {fields[name]}, expected {least} to {most}"
    return None


def _assemble(header: Header, payloads: list[tuple[bytes, bool]]) -> bytes:
    head = bytearray(MAGIC)
    head += bytes([VERSION, FIXED_WIDTH if header.entropy_digest is None else ENTROPY_CODED])
    head += header.fingerprint + (header.entropy_digest or b"")
    for value in _fields(header).values():
        head += _varint(value)
    for payload, coded in payloads:
        head += _varint(2 * len(payload) + coded)
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
    version = reader.take(1)[0]
    if version != VERSION:
        raise UnsupportedVersion(f".jxc version {version}, this reader knows version {VERSION}: update jaxcodec")
    coding = reader.take(1)[0]
    if coding not in (FIXED_WIDTH, ENTROPY_CODED):
        raise UnsupportedVersion(f".jxc coding {coding}, this reader knows 0 and 1: update jaxcodec")
    fingerprint = reader.take(8)
    digest = reader.take(DIGEST_BYTES) if coding == ENTROPY_CODED else None
    fields = {name: reader.varint() for name in _LIMITS}
    problem = _problem(fields)
    if problem:
        raise DamagedHeader(f"the header says {problem}")
    num_frames = -(-fields["num_samples"] // fields["hop_length"]) + fields.pop("extra_frames")
    header = Header(version, fingerprint, digest, num_frames=num_frames, **fields)
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


class _Reader:
    """A position in bytes that ends in `TruncatedBitstream`, never in an IndexError."""

    def __init__(self, data: bytes, offset: int):
        self.data, self.offset = data, offset

    def take(self, size: int) -> bytes:
        if self.offset + size > len(self.data):
            raise TruncatedBitstream(f"the data ends within the header, after {len(self.data)} bytes")
        self.offset += size
        return bytes(self.data[self.offset - size : self.offset])

    def varint(self) -> int:
        """LEB128: seven bits a byte, lowest first, the high bit says that more follow. At most nine, no leading zeros."""
        value = 0
        for shift in range(0, 63, 7):
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


def _num_codes(header: Header, number: int) -> int:
    start, stop = header.block_range(number)
    return header.num_codebooks * (stop - start)


def _check_size(header: Header, number: int, block: _Block) -> None:
    """A stored block has exactly one size, a coded one is smaller, and not smaller than its padding."""
    num_codes = _num_codes(header, number)
    stored = -(-num_codes * header.code_bits // 8)
    valid = -(-num_codes // MAX_CODES_PER_BYTE) <= block.size < stored if block.coded else block.size == stored
    if not valid or (block.coded and header.entropy_digest is None):
        coding = "entropy coded" if block.coded else "stored"
        raise DamagedHeader(f"the index gives block {number} {block.size} bytes {coding}, stored it needs {stored}")


def _read_block(data, header, header_crc, number, block, entropy_model) -> np.ndarray:
    """Codes (Q, n) uint16 of one block. Raises `DamagedBlock`."""
    start, stop = header.block_range(number)
    payload = bytes(data[block.offset : block.offset + block.size])
    crc = data[block.offset + block.size : block.offset + block.size + 4]
    if len(crc) < 4:
        raise DamagedBlock(number, start, stop, "the data ends before it does")
    if int.from_bytes(crc, "little") != _block_crc(header_crc, number, payload):
        raise DamagedBlock(number, start, stop, "it does not match its CRC")
    if block.coded:
        try:
            return entropy_model.decode(payload, header.num_codebooks, stop - start)
        except entropy.DamagedCodes as error:
            raise DamagedBlock(number, start, stop, str(error)) from None
    codes = _restore(payload, (header.num_codebooks, stop - start), header.code_bits)
    if codes.size and codes.max() >= header.codebook_size:
        raise DamagedBlock(number, start, stop, f"code {codes.max()} with codebooks of {header.codebook_size}")
    return codes


def _store(codes: np.ndarray, bits: int) -> bytes:
    """Codes (Q, n), codebook after codebook, `bits` each, the highest bit first; the last byte is filled with zeros."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.int64)
    return np.packbits((codes.reshape(-1, 1) >> shifts).astype(np.uint8) & 1).tobytes()


def _restore(payload: bytes, shape: tuple[int, int], bits: int) -> np.ndarray:
    """What `_store` wrote, (Q, n) uint16."""
    digits = np.unpackbits(np.frombuffer(payload, np.uint8), count=shape[0] * shape[1] * bits).reshape(-1, bits)
    codes = np.zeros(len(digits), np.uint16)
    for digit in digits.T:
        codes = codes << np.uint16(1) | digit
    return codes.reshape(shape)


def _encode(codes: np.ndarray, entropy_model: entropy.EntropyModel) -> bytes:
    """Codes (Q, n) entropy coded and padded with zeros to the least size a reader accepts."""
    return entropy_model.encode(codes).ljust(-(-codes.size // MAX_CODES_PER_BYTE), b"\0")


def _fits(header: Header, model: entropy.EntropyModel) -> bool:
    return header.num_codebooks <= model.num_codebooks and header.codebook_size == model.codebook_size


def _kind(owner: Header | entropy.EntropyModel) -> str:
    return f"{owner.num_codebooks} codebooks of {owner.codebook_size}"


def _check_model(header: Header, model: entropy.EntropyModel | None) -> None:
    """Raises unless `model` is the one the file was coded with."""
    assert header.entropy_digest is not None
    if model is None:
        raise MissingEntropyModel(
            f"entropy coded with the tables {header.entropy_digest.hex()}, and none given: load the model file that has them"
        )
    if model.digest[:DIGEST_BYTES] != header.entropy_digest:
        given = model.digest[:DIGEST_BYTES].hex()
        raise WrongEntropyModel(f"entropy coded with model {header.entropy_digest.hex()}, the given one is {given}")
    if not _fits(header, model):
        raise WrongEntropyModel(f"the entropy model is for {_kind(model)}, the file has {_kind(header)}")
