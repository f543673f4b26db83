"""Opus to compare with, as libsndfile writes it: Ogg files in memory, their rates, their version of libopus."""

import io
from typing import NamedTuple

import numpy as np

LOWEST_KBPS = 6  # libsndfile's range for one channel; its `compression_level` is linear in the bit rate between the two
_HIGHEST_KBPS = 256
_SAMPLE_RATES = (8000, 12000, 16000, 24000, 48000)


class Opus(NamedTuple):
    """A clip that went through Opus."""

    decoded: np.ndarray  # float32 (S,)
    num_bytes: int  # of the file
    payload_bytes: int  # of its Opus packets alone, without the Ogg container and its headers
    version: str  # "libopus 1.4"


def unavailable(sample_rate: int) -> str | None:
    """Why Opus cannot be had here at `sample_rate` Hz, or None."""
    import soundfile

    if "OPUS" not in soundfile.available_subtypes("OGG"):
        return f"Opus: this libsndfile, {soundfile.__libsndfile_version__}, cannot write it"
    if sample_rate not in _SAMPLE_RATES:
        return f"Opus: it has no sample rate of {sample_rate} Hz"
    return None


def round_trip(clip: np.ndarray, sample_rate: int, kbps: float) -> Opus:
    """`clip`, float (S,), encoded at a nominal `kbps` (variable rate, `LOWEST_KBPS` to 256) and decoded to its length.

    Raises:
      ValueError: a rate out of range.
    """
    import soundfile

    if not LOWEST_KBPS <= kbps <= _HIGHEST_KBPS:
        raise ValueError(f"Opus at {kbps} kbit/s: expected {LOWEST_KBPS} to {_HIGHEST_KBPS}.")
    level = (_HIGHEST_KBPS - kbps) / (_HIGHEST_KBPS - LOWEST_KBPS)
    file = io.BytesIO()
    soundfile.write(file, clip, sample_rate, format="OGG", subtype="OPUS", compression_level=level)
    data = file.getvalue()
    decoded, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    decoded = np.pad(decoded, (0, max(0, len(clip) - len(decoded))))[: len(clip)]
    pages = ogg_pages(data)
    return Opus(decoded, len(data), sum(map(len, pages[2:])), _vendor(pages[1]))


def ogg_pages(data: bytes) -> list[bytes]:
    """The content of each page of an Ogg file (RFC 3533, section 6): behind 27 bytes and the sizes of its segments.

    Raises:
      ValueError: bytes that are no Ogg file.
    """
    pages, start = [], 0
    while start < len(data):
        if data[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}.")
        sizes = data[start + 27 : start + 27 + data[start + 26]]
        content = start + 27 + len(sizes)
        start = content + sum(sizes)
        pages.append(data[content:start])
    return pages


def _vendor(tags):
    """The library's name in an OpusTags packet (RFC 7845, section 5.2)."""
    size = int.from_bytes(tags[8:12], "little")
    return tags[12 : 12 + size].decode("utf-8", "replace")
