"""Peers: rates from the sizes of files, alignment, containers; where a codec is not installed, its test is skipped."""

import struct

import numpy as np
import pytest

from benchmarks import peers
from jaxcodec import evaluate
from tests import support

HERE, MISSING = peers.available()


def voice(num_samples):
    """A sum of harmonics with a slow envelope, full of what speech codecs like."""
    time = np.arange(num_samples) / 16000
    tone = sum(np.sin(2 * np.pi * 140 * k * time + k * k) / k for k in range(1, 20))
    return (0.1 * tone * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


@pytest.mark.parametrize("lag", [0.0, 37.0, 104.25, -12.5])
def test_a_delayed_clip_is_moved_back_to_a_fraction_of_a_sample(lag):
    clips = [np.pad(x, 400) for x in support.speech_like(2, 6000)]
    late = [np.pad(peers.advance(clip, -lag, len(clip)), (0, 77)) for clip in clips]
    aligned, found = peers.align(clips, late)
    assert found == lag
    for clip, moved in zip(clips, aligned, strict=True):
        assert moved.shape == clip.shape and moved.dtype == np.float32
        assert np.sum((moved - clip) ** 2) < 1e-4 * np.sum(clip**2)
        assert evaluate.delay(clip, moved, 16000) == 0


def test_a_decoded_clip_that_is_too_short_ends_in_zeros():
    clip = np.ones(100, np.float32)
    np.testing.assert_array_equal(peers.advance(clip, 10, 100), np.repeat([1.0, 0.0], [90, 10]))
    assert peers.advance(clip[:5], 0, 5000).shape == (5000,)


def test_one_lag_is_found_for_all_clips_although_one_of_them_is_silent():
    clips = [support.speech_like(1, 4000)[0], np.zeros(4000, np.float32)]
    assert peers.common_lag(clips, [np.roll(clip, 30) for clip in clips]) == 30


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
    (decoded,), lag = peers.align([clip], [high.decoded])
    assert abs(lag) < 120 and evaluate.delay(clip, decoded, 16000) == 0
    assert evaluate.score(clip, decoded, 16000, ["snr"])["snr"] > 4
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
