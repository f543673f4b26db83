"""Peers: rates from the sizes of files, containers; where a codec is not installed, its test is skipped."""

import struct

import numpy as np
import pytest

from benchmarks import peers
from jaxcodec import evaluation
from jaxcodec.evaluation import alignment, measures

HERE, MISSING = peers.available()


def voice(num_samples):
    """A sum of harmonics with a slow envelope, full of what speech codecs like."""
    time = np.arange(num_samples) / 16000
    tone = sum(np.sin(2 * np.pi * 140 * k * time + k * k) / k for k in range(1, 20))
    return (0.1 * tone * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


@pytest.mark.parametrize("name", peers.PEERS)
def test_the_rate_is_that_of_the_file_and_the_clip_comes_back(name):
    if name in MISSING:
        pytest.skip(f"{name} is not here: install {MISSING[name]}")
    peer, clip = HERE[name], voice(32000)
    low, high = (peer.round_trip(clip, kbps) for kbps in (peer.settings[0], peer.settings[-1]))
    for coded, kbps in ((low, peer.settings[0]), (high, peer.settings[-1])):
        assert 0.6 * kbps < 8e-3 * coded.payload_bytes / 2 < 1.5 * kbps
        assert 0 < coded.file_bytes - coded.payload_bytes < 900  # of container for 2 s
    assert high.file_bytes > low.file_bytes
    (decoded,), lag = alignment.align([clip], [high.decoded])
    assert abs(lag) < 120 and measures.delay(clip, decoded, 16000) == 0
    assert evaluation.score(clip, decoded, 16000, ["snr"])["snr"] > 4
    assert np.sum(clip * decoded) / np.sum(decoded**2) == pytest.approx(1.0, abs=0.1)


def test_bytes_are_counted_in_the_file_that_the_program_wrote(monkeypatch):
    """A program that writes LC3 files of two frames, 40 and 41 bytes, behind a header of 18."""

    def run(program, *arguments):
        if program == "elc3":
            frames = [struct.pack("<H", size) + bytes(size) for size in (40, 41)]
            arguments[-1].write_bytes(struct.pack("<HH", 0xCC1C, 18) + bytes(14) + b"".join(frames))
        else:
            peers.audio.save(arguments[-1], np.full(320, 0.5), 16000)

    monkeypatch.setattr(peers, "run", run)
    coded = peers.lc3(np.zeros(320, np.float32), 16)
    assert (coded.file_bytes, coded.payload_bytes, len(coded.decoded)) == (18 + 42 + 43, 81, 320)


def ogg_page(body, segments):
    return b"OggS" + bytes(22) + bytes([len(segments), *segments]) + body


def test_the_payload_of_opus_is_what_its_pages_hold_after_two_headers():
    pages = [ogg_page(b"OpusHead", [8]), ogg_page(b"OpusTags" + bytes(260), [255, 13]), ogg_page(b"x" * 260, [255, 5])]
    assert peers.ogg_payload(b"".join([*pages, ogg_page(b"yy", [1, 1])])) == 262
    with pytest.raises(ValueError, match="byte 0"):
        peers.ogg_payload(b"RIFF")


def test_a_program_that_fails_is_named_with_its_last_words():
    with pytest.raises(RuntimeError, match=r"^ls failed: .*no_such_file"):
        peers.run("ls", "/no_such_file")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(peers.shutil, "which", lambda program: None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda package: None)
    here, missing = peers.available()
    assert not here and list(missing) == list(peers.PEERS)
    assert "liblc3-tools" in missing["lc3"]
