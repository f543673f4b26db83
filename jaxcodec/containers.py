"""Damage that shows in a file's container, without decoding: sizes in wav, aiff and au, pages of Ogg, frames of mp3.

libsndfile returns what it can of such a file and says nothing. Other formats are left to it: FLAC has a checksum in
every frame, which it verifies.
"""

import io
import re
import struct
import zlib
from typing import BinaryIO

# Writers that stream to a pipe put a placeholder of this size or more into a wav header.
_STREAMED_SIZE = 0x7FFFF000
_UNKNOWN_SIZE = 0xFFFFFFFF  # of the samples of an au file, which is allowed
_LAST_PAGE = 4  # the flag of an Ogg page
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MP3_RATES = (44100, 48000, 32000)
_MP3_HALVINGS = {3: 0, 2: 1, 0: 2}  # of the rate, by the two bits of the version: MPEG-1, 2, 2.5
_MP3_KBPS = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_MP3_SAME = 0xFFFE0C00  # bits of a frame header that all frames of a file share: version, layer and rate
_MP3_LOST = 1  # frame that a decoder may leave out, as the first needs bits from before it
_MP3_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")


class Truncated(ValueError):
    """The end is missing. The message says in a few words how that shows."""


class Corrupt(ValueError):
    """Bytes before the end are missing or other than written."""


def check(file: BinaryIO) -> int | None:
    """Raises `Truncated` or `Corrupt`. Of an mp3 that does not tell its length, how many samples it has at least."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(12)
    if start[:4] in (b"RIFF", b"RF64") and start[8:] == b"WAVE":
        _check_wav(file, end)
    elif start[:4] == b"FORM" and start[8:11] == b"AIF":
        _check_aiff(file, end)
    elif start[:4] == b".snd":
        offset, size = struct.unpack(">II", start[4:12])
        _check_present(end - offset, 0 if size == _UNKNOWN_SIZE else size)
    elif start[:4] == b"OggS":
        _check_ogg(file)
    elif start[:3] == b"ID3" or _mp3_frame_bytes(start):
        return _check_mp3(file, end)
    return None


def _check_wav(file, end):
    """The data chunk is as long as it says; the file stands after its first 12 bytes."""
    whole = None  # size of the data chunk where it does not fit into 32 bits
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        present = end - file.tell()
        if name == b"data":
            _check_present(present, size if size < _STREAMED_SIZE else whole or 0)
            return
        if name == b"ds64" and len(sizes := file.read(min(size, 16))) == 16:
            whole = struct.unpack("<QQ", sizes)[1]
            size -= 16
        file.seek(size + size % 2, io.SEEK_CUR)


def _check_aiff(file, end):
    """The same of aiff and aifc, whose numbers have their highest byte first."""
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack(">4sI", chunk)
        if name == b"SSND":
            _check_present(end - file.tell(), size)
            return
        file.seek(size + size % 2, io.SEEK_CUR)


def _check_present(present, promised):
    """Raises `Truncated` where there are fewer bytes of samples than a header says."""
    if present < promised:
        raise Truncated(f"{max(0, present)} of {promised} bytes of samples are there")


def _check_ogg(file):
    """Every page is whole, with its checksum and its number (RFC 3533, section 6).

    The flag of a last page is not asked for: many a sound file of the free desktop has none, and is all there.
    """
    file.seek(0)
    begun = {}  # the number of the next page, by stream, until its last
    while (header := file.read(27))[:4] == b"OggS":
        start = file.tell() - len(header)
        lacing = file.read(header[26]) if len(header) == 27 else b""
        body = file.read(sum(lacing))
        if len(header) < 27 or len(lacing) < header[26] or len(body) < sum(lacing):
            raise Truncated(f"the page at byte {start} is cut short")
        serial, number, checksum = struct.unpack("<III", header[14:26])
        if _ogg_checksum(header[:22] + bytes(4) + header[26:] + lacing + body) != checksum:
            raise Corrupt(f"the page at byte {start} is not as its checksum says")
        if number != begun.get(serial, number):
            raise Corrupt(f"pages are missing before byte {start}")
        begun[serial] = number + 1
        if header[5] & _LAST_PAGE:
            del begun[serial]
    if begun and header and b"OggS".startswith(header):
        raise Truncated("the last page is cut short")
    if begun and header:
        raise Corrupt(f"there is no page at byte {file.tell() - len(header)}")


def _ogg_checksum(page):
    """CRC-32 of the polynomial that zlib has too, but with the highest bit first and nothing inverted."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _check_mp3(file, end):
    """Each frame begins where the one before ends (ISO 11172-3, 2.4.1) and the last one is whole."""
    position = _after_id3(file)
    file.seek(position)
    first = file.read(192)
    shared, frames = first[:4], 0
    while size := _mp3_frame_bytes(_read_at(file, position), shared):
        position += size
        frames += 1
    if position > end:
        raise Truncated(f"the last of {frames} frames is cut short")
    rest = _read_at(file, position, end) if frames else b""
    if not rest.startswith(_MP3_TAGS) and _has_mp3_frames(rest, shared):
        raise Corrupt(f"no frame begins at byte {position}, some do after it")
    if any(name in first for name in (b"Xing", b"Info", b"VBRI")):
        return None  # the first frame counts the others
    return max(0, frames - _MP3_LOST) * (1152 if shared[1] & 8 else 576)


def _after_id3(file):
    """Where the tags at the beginning end."""
    position = 0
    while (header := _read_at(file, position, 10)).startswith(b"ID3") and len(header) == 10:
        size = sum((byte & 127) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if header[5] & 16 else 0)
    return position


def _has_mp3_frames(data, shared):
    """Whether somewhere two frames follow on each other."""
    for found in re.finditer(b"\xff[\xe0-\xff]", data):
        size = _mp3_frame_bytes(data[found.start() : found.start() + 4], shared)
        if size and _mp3_frame_bytes(data[found.start() + size : found.start() + size + 4], shared):
            return True
    return False


def _mp3_frame_bytes(header, shared=None):
    """The size of the layer III frame that begins with these 4 bytes, 0 if none does, or none of the kind of `shared`."""
    word = int.from_bytes(header[:4], "big") if len(header) >= 4 else 0
    version, layer, kbps, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or not 0 < kbps < 15 or rate == 3:
        return 0
    if shared is not None and (word ^ int.from_bytes(shared, "big")) & _MP3_SAME:
        return 0
    hertz = _MP3_RATES[rate] >> _MP3_HALVINGS[version]
    return (144 if version == 3 else 72) * 1000 * _MP3_KBPS[version == 3][kbps - 1] // hertz + (word >> 9 & 1)


def _read_at(file, position, size=4):
    file.seek(position)
    return file.read(size)
