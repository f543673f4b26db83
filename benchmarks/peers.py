"""Speech codecs in use, to compare with: Opus old and new, AMR-WB and LC3, through real files and back to 16 kHz.

Every codec runs with its own defaults, apart from what makes a file larger without need: no comments, no padding. Its rate
is the size of its file; `payload_bytes` is what is left without the container: Ogg pages and headers, the byte before every
AMR frame, LC3's header and frame lengths. Opus gets the speech at 16 kHz and is decoded by ffmpeg's own decoder: opusenc
makes 48 kHz of it first and then spends bits above 8 kHz, and opusdec's resampling costs half a decibel of SNR.

What comes back is late by each codec's constant lag: `jaxcodec.evaluation.alignment`.
"""

import ctypes.util
import importlib.util
import io
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcodec import audio
from jaxcodec.evaluation import opus as opus_files

SAMPLE_RATE = 16000
FFMPEG = ("ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin")


class Coded(NamedTuple):
    """What became of a clip."""

    decoded: np.ndarray  # (S',) float, late by the codec's lag
    file_bytes: int
    payload_bytes: int


class Peer(NamedTuple):
    """A codec."""

    title: str  # {} stands for the version
    settings: tuple[float, ...]  # nominal kbit/s
    round_trip: Callable[[np.ndarray, float], Coded]  # clip (S,) at 16 kHz, setting
    version: Callable[[], str | None]  # None: it is not installed
    install: str  # what to install


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that are installed, versions in their titles, and for each of the others what to install."""
    versions = {name: peer.version() for name, peer in PEERS.items()}
    here = {
        name: peer._replace(title=peer.title.format(versions[name])) for name, peer in PEERS.items() if versions[name]
    }
    return here, {name: peer.install for name, peer in PEERS.items() if not versions[name]}


def opus(clip: np.ndarray, kbps: float) -> Coded:
    """Opus by ffmpeg and the libopus of the system: variable rate, frames of 20 ms, highest complexity."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (Path(folder, name) for name in ("in.wav", "coded.opus", "out.wav"))
        audio.save(source, clip, SAMPLE_RATE)
        lean = ["-map_metadata", "-1", "-flags", "+bitexact", "-fflags", "+bitexact", "-metadata:s:a", "encoder="]
        run(*FFMPEG, "-i", source, "-c:a", "libopus", "-b:a", round(1000 * kbps), *lean, coded)
        run(*FFMPEG, "-c:a", "opus", "-i", coded, "-c:a", "pcm_f32le", decoded)
        data = coded.read_bytes()
        return Coded(audio.load(decoded, SAMPLE_RATE), len(data), ogg_payload(data))


def opus_new(clip: np.ndarray, kbps: float) -> Coded:
    """The same by the package av, which brings a libopus and an ffmpeg of its own."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg", options={"fflags": "+bitexact"}) as writer:
        stream = writer.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = round(1000 * kbps)
        frame = av.AudioFrame.from_ndarray(pcm16(clip)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        writer.mux([*stream.encode(frame), *stream.encode(None)])
    data = file.getvalue()
    with av.open(io.BytesIO(data)) as reader:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in reader.decode(audio=0)])
    return Coded(audio.resample(decoded, 48000, SAMPLE_RATE), len(data), ogg_payload(data))


def amr_wb(clip: np.ndarray, kbps: float) -> Coded:
    """AMR-WB (3GPP TS 26.171) by ffmpeg: encoder libvo_amrwbenc, no DTX."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (Path(folder, name) for name in ("in.wav", "coded.amr", "out.wav"))
        audio.save(source, clip, SAMPLE_RATE)
        run(*FFMPEG, "-i", source, "-c:a", "libvo_amrwbenc", "-b:a", round(1000 * kbps), coded)
        run(*FFMPEG, "-i", coded, decoded)
        frames = -(-len(clip) // 320)  # of 20 ms
        return Coded(audio.load(decoded, SAMPLE_RATE), size := coded.stat().st_size, size - len("#!AMR-WB\n") - frames)


def lc3(clip: np.ndarray, kbps: float) -> Coded:
    """LC3 (Bluetooth, 2020) by elc3 and dlc3, frames of 10 ms: its rates begin at 16 kbit/s."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (Path(folder, name) for name in ("in.wav", "coded.lc3", "out.wav"))
        audio.save(source, clip, SAMPLE_RATE)
        run("elc3", "-b", round(1000 * kbps), source, coded)
        run("dlc3", coded, decoded)
        data = coded.read_bytes()
        position, payload = struct.unpack_from("<H", data, 2)[0], 0  # the header says how long it is
        while position < len(data):
            (size,) = struct.unpack_from("<H", data, position)
            position, payload = position + 2 + size, payload + size
        return Coded(audio.load(decoded, SAMPLE_RATE), len(data), payload)


def ogg_payload(data: bytes) -> int:
    """Bytes of the packets of an Ogg Opus file (RFC 7845), its two headers left out."""
    return sum(map(len, opus_files.ogg_pages(data)[2:]))


def pcm16(clip: np.ndarray) -> np.ndarray:
    """Float samples (S,) as int16."""
    return audio.to_int16(clip)


def run(*command) -> str:
    """What a program prints; an error with its last words where it fails."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace")
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {(result.stderr or result.stdout).strip()[-300:]}")
    return result.stdout


def opus_version() -> str | None:
    """Of the system's libopus, where ffmpeg is built with it."""
    path = ctypes.util.find_library("opus")
    if path is None or not ffmpeg_has("libopus"):
        return None
    return libopus_version(path)


def opus_new_version() -> str | None:
    """Of the libopus inside av."""
    spec = importlib.util.find_spec("av")
    libraries = sorted(Path(spec.origin).parents[1].glob("av.libs/libopus-*")) if spec and spec.origin else []
    return libopus_version(str(libraries[0])) if libraries else None


def libopus_version(path: str) -> str:
    """What a libopus says of itself, "1.3.1"."""
    function = ctypes.CDLL(path).opus_get_version_string
    function.restype = ctypes.c_char_p
    return function().decode().removeprefix("libopus ")


def ffmpeg_has(encoder: str) -> bool:
    """Whether ffmpeg is here and was built with an encoder."""
    return bool(shutil.which("ffmpeg")) and f"Encoder {encoder}" in run(*FFMPEG, "-h", f"encoder={encoder}")


def amr_wb_version() -> str | None:
    """Of ffmpeg, where it was built with the encoder."""
    if not ffmpeg_has("libvo_amrwbenc"):
        return None
    return f"libvo_amrwbenc of ffmpeg {run('ffmpeg', '-version').split()[2]}"


def lc3_version() -> str | None:
    """Of the Debian package, as the programs do not tell theirs."""
    if not (shutil.which("elc3") and shutil.which("dlc3")):
        return None
    if not shutil.which("dpkg-query"):
        return "liblc3 of unknown version"
    return f"liblc3 {run('dpkg-query', '-W', '-f', '${Version}', 'liblc3-tools')}"


PEERS = {
    "opus": Peer("Opus {}", (6, 8, 12, 16, 24, 32), opus, opus_version, "ffmpeg (Debian package)"),
    "opus_new": Peer("Opus {}", (6, 8, 12, 16, 24, 32), opus_new, opus_new_version, "av (PyPI package)"),
    "amr_wb": Peer(
        "AMR-WB", (6.6, 8.85, 12.65, 15.85, 23.85), amr_wb, amr_wb_version, "ffmpeg, libavcodec-extra (Debian packages)"
    ),
    "lc3": Peer("LC3", (16, 24, 32), lc3, lc3_version, "liblc3-tools (Debian package)"),
}
