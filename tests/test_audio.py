import contextlib
import errno
import io
import os
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from jaxcodec import audio, containers
from jaxcodec.data import recordings


def sine(seconds=0.5, sample_rate=16000, level=0.3, frequency=440.0):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sample_rate)) / sample_rate)).astype(
        np.float32
    )


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "sine.wav"
    soundfile.write(path, sine(), 16000)
    return path


def test_int16_to_float_and_back_is_the_identity_for_every_value():
    samples = np.arange(-32768, 32768).astype(np.int16)
    assert audio.to_float(samples).dtype == np.float32
    np.testing.assert_array_equal(audio.to_int16(audio.to_float(samples)), samples)


def test_the_loudest_negative_int16_is_minus_one_and_half_of_it_exactly_minus_a_half(tmp_path):
    samples = np.array([-32768, -16384, 16384, 32767], np.int16)
    expected = np.array([-1.0, -0.5, 0.5, 1 - 2**-15], np.float32)
    np.testing.assert_array_equal(audio.to_float(samples), expected)
    soundfile.write(tmp_path / "four.wav", samples, 16000)
    np.testing.assert_array_equal(audio.load(tmp_path / "four.wav"), expected)


def test_float_to_int16_rounds_and_clips():
    values = np.array([-2.0, -1.0, -0.4 / 32768, 0.6 / 32768, 1.5 / 32768, 2.5 / 32768, 1.0, 2.0])
    np.testing.assert_array_equal(audio.to_int16(values), [-32768, -32768, 0, 1, 2, 2, 32767, 32767])


@pytest.mark.parametrize("extension", audio.WRITABLE)
def test_a_saved_file_loads_with_its_rate_length_and_level(tmp_path, extension):
    path = tmp_path / f"clip{extension}"
    audio.save(path, sine(), 16000)
    loaded = audio.load(path)
    assert loaded.dtype == np.float32 and loaded.ndim == 1
    assert abs(len(loaded) - 8000) <= (2500 if extension in (".opus", ".mp3") else 0)  # codec delay
    assert np.sqrt(np.mean(loaded[2000:6000] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.03)


def test_pcm_is_read_bit_for_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32767, 1000).astype(np.int16)
    audio.save(tmp_path / "noise.flac", audio.to_float(samples))
    np.testing.assert_array_equal(audio.to_int16(audio.load(tmp_path / "noise.flac")), samples)


def test_stereo_at_8_khz_becomes_mono_at_16_khz_at_the_same_level(tmp_path):
    tone = sine(sample_rate=8000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, 0.5 * tone], axis=1), 8000)
    loaded = audio.load(tmp_path / "stereo.wav")
    assert loaded.shape == (8000,)
    np.testing.assert_allclose(loaded[1000:-1000], 0.75 * sine()[1000:-1000], atol=2e-3)


def test_saving_an_unknown_format_says_which_are_known(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write \.doc, use one of .*\.flac"):
        audio.save(tmp_path / "clip.doc", sine())
    with pytest.raises(ValueError, match="12345 Hz"):
        audio.save(tmp_path / "clip.opus", sine(), 12345)


def test_a_truncated_wav_is_not_read_as_a_shorter_one(wav):
    content = wav.read_bytes()
    wav.write_bytes(content[: len(content) // 2])
    assert len(soundfile.read(wav)[0])  # libsndfile alone would not notice
    with pytest.raises(audio.TruncatedAudio, match="7978 of 16000 bytes"):
        audio.load(wav)


def test_a_wav_streamed_with_a_placeholder_for_its_size_is_read(wav):
    content = bytearray(wav.read_bytes())
    struct.pack_into("<I", content, 4, 0xFFFFFFFF)
    struct.pack_into("<I", content, content.index(b"data") + 4, 0xFFFFFFFF)
    wav.write_bytes(content)
    assert len(audio.load(wav)) == 8000


@pytest.mark.parametrize("extension", [".flac", ".ogg", ".opus", ".mp3"])
def test_no_compressed_file_that_is_cut_short_is_read_as_a_shorter_one(tmp_path, extension):
    path = tmp_path / f"noise{extension}"
    audio.save(path, 0.5 * noise(40000))
    content = path.read_bytes()
    for size in (*np.linspace(200, len(content), 12, endpoint=False).astype(int), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises((audio.TruncatedAudio, audio.NotAudio)):
            list(audio.read_blocks(path, block_seconds=0.1))
    path.write_bytes(content)
    assert len(audio.load(path)) >= 40000


@pytest.mark.parametrize("extension", [".flac", ".ogg", ".opus"])
def test_no_flipped_bit_of_the_samples_goes_unnoticed_where_a_format_has_checksums(tmp_path, extension):
    path, rng = tmp_path / f"noise{extension}", np.random.default_rng(0)
    audio.save(path, 0.5 * noise(40000))
    content = path.read_bytes()
    for place in rng.integers(200, len(content), 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises((audio.CorruptAudio, audio.TruncatedAudio, audio.NotAudio)):
            audio.load(path)


def ogg_pages(content):
    return [b"OggS" + page for page in content.split(b"OggS")[1:]]


def test_ogg_pages_that_are_missing_are_named_and_bytes_after_the_last_are_not_minded(tmp_path):
    path = tmp_path / "noise.ogg"
    audio.save(path, 0.5 * noise(80000))
    pages = ogg_pages(path.read_bytes())
    assert len(pages) > 5
    path.write_bytes(b"".join(pages[:3] + pages[4:]))
    with pytest.raises(audio.CorruptAudio, match=r"noise\.ogg: corrupt, pages are missing before byte \d+$"):
        audio.load(path)
    path.write_bytes(
        b"".join(pages[:-1])
    )  # nothing tells it from a file whose writer flags no last page, as many do not
    assert 40000 < len(audio.load(path)) < 80000
    path.write_bytes(b"".join((*pages[:-1], b"Og")))
    with pytest.raises(audio.TruncatedAudio, match=r"noise\.ogg: truncated, the last page is cut short$"):
        audio.load(path)
    path.write_bytes(b"".join((*pages[:3], b"hello", *pages[3:])))
    with pytest.raises(audio.CorruptAudio, match="there is no page at byte"):
        audio.load(path)
    path.write_bytes(b"".join((*pages, b"hello")))
    assert len(audio.load(path)) == 80000


def mp3_frames(content):
    """The frames of an mp3 without tags."""
    frames = []
    while content:
        size = containers._mp3_frame_bytes(content)
        frames.append(content[:size])
        content = content[size:]
    return frames


def test_mp3_frames_that_do_not_follow_on_each_other_are_named(tmp_path):
    path = tmp_path / "noise.mp3"
    audio.save(path, 0.5 * noise(40000))
    content = path.read_bytes()
    frames = mp3_frames(content)
    assert len(frames) > 50
    path.write_bytes(b"".join(frames[:20]) + frames[20][:30] + b"".join(frames[21:]))
    with pytest.raises(audio.CorruptAudio, match=r"no frame begins at byte \d+, some do after it"):
        audio.load(path)
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    path.write_bytes(tag + content + b"TAG".ljust(128, b"\0"))
    assert len(audio.load(path)) == 40000


def test_an_mp3_of_frames_alone_which_tells_no_length_is_read_whole_or_refused(tmp_path):
    path = tmp_path / "noise.mp3"
    audio.save(path, np.concatenate([0.9 * noise(20000), 0.001 * noise(20000)]))
    frames = mp3_frames(path.read_bytes())
    assert b"Xing" in frames[0] or b"Info" in frames[0]
    path.write_bytes(b"".join(frames[:-1]))
    with pytest.raises(audio.TruncatedAudio, match="of 40000 frames"):
        audio.load(path)
    path.write_bytes(b"".join(frames[1:]))  # libsndfile guesses its length by the size of the first frames: too low
    with pytest.raises(audio.TruncatedAudio, match="of 40896 frames"):
        audio.load(path)
    path.write_bytes(b"".join(frames[10:]))  # and here too high
    assert len(audio.load(path)) == 576 * len(frames[10:])
    path.write_bytes(b"".join(frames[10:])[:-10])
    with pytest.raises(audio.TruncatedAudio, match=r"the last of \d+ frames is cut short"):
        audio.load(path)


@pytest.mark.parametrize("sample_rate", [1, 10, 3999, 768001])
def test_a_header_with_an_absurd_rate_is_refused_before_any_sample_is_read(wav, monkeypatch, sample_rate):
    content = bytearray(wav.read_bytes())
    struct.pack_into("<II", content, 24, sample_rate, 2 * sample_rate)
    wav.write_bytes(content)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(audio.ImplausibleAudio) as caught:
        audio.load(wav)
    assert str(caught.value) == f"{wav}: claims {sample_rate} Hz, expected 4000 to 768000"


def test_the_highest_and_the_lowest_rate_are_read_and_more_channels_than_64_are_not(tmp_path):
    for sample_rate in audio.SAMPLE_RATES:
        soundfile.write(tmp_path / "tone.wav", sine(0.5, sample_rate), sample_rate)
        assert len(audio.load(tmp_path / "tone.wav")) == 8000
    soundfile.write(tmp_path / "many.wav", np.zeros((100, 65)), 16000)
    with pytest.raises(audio.ImplausibleAudio, match=r"many\.wav: claims 65 channels, expected at most 64"):
        audio.load(tmp_path / "many.wav")


def test_a_pipe_and_a_socket_by_the_name_of_a_recording_are_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    pipe = os.open(tmp_path / "pipe.wav", os.O_RDWR)  # so that one who opens it after all does not wait here
    os.write(pipe, b"RIFF")
    with pytest.raises(audio.NotAFile, match=r"pipe\.wav: not a regular file"):
        audio.load(tmp_path / "pipe.wav")
    os.close(pipe)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket.wav")
        with pytest.raises(audio.NotAFile):
            audio.load("socket.wav")
    with pytest.raises(audio.NotAFile):
        audio.load("/dev/zero")


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", audio.ZeroBytes), (b"hello, I am a text file", audio.NotAudio)],
    ids=["empty", "text"],
)
def test_files_that_are_not_audio_are_named_in_one_line(tmp_path, content, error):
    path = tmp_path / "odd.wav"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        audio.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    samples = sine()
    samples[17] = value
    soundfile.write(tmp_path / "odd.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(audio.NonFiniteAudio, match=r"odd\.wav: NaN or infinite samples, the first at 0\.001 s"):
        audio.load(tmp_path / "odd.wav")


def test_a_file_without_frames_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(audio.EmptyAudio, match="0 frames"):
        audio.load(tmp_path / "none.wav")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(audio.UnreadableAudio, match=r"gone\.wav: No such file"):
        audio.load(tmp_path / "gone.wav")


def test_short_and_silent_audio_is_refused_at_the_stated_limits():
    audio.check_usable(sine(0.02), "ok.wav")
    with pytest.raises(audio.TooShortAudio, match=r"0\.019 s"):
        audio.check_usable(sine(0.019), "short.wav")
    with pytest.raises(audio.SilentAudio, match="-70 dBFS"):
        audio.check_usable(np.full(16000, 10 ** (-70.1 / 20), np.float32), "silent.wav")
    audio.check_usable(np.full(16000, 10 ** (-69.9 / 20), np.float32), "quiet.wav")


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, num_samples).astype(np.float32)


@pytest.mark.parametrize("native_rate", [8000, 11025, 16000, 22050, 44100, 48000, 12345])
@pytest.mark.parametrize("num_samples", [1, 7, 1000, 30001])
def test_blocks_are_the_resampled_whole_bit_for_bit(tmp_path, native_rate, num_samples):
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise(num_samples), native_rate, subtype="FLOAT")
    blocks = list(audio.read_blocks(path, block_seconds=0.0173))
    whole = audio.resample(noise(num_samples), native_rate, 16000).clip(-1.0, 1.0)
    assert len(whole) == -(-num_samples * 16000 // native_rate)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(audio.load(path), whole)
    assert all(0 < len(block) < 5000 for block in blocks)
    assert len(blocks) > 1 or num_samples <= 1000  # soxr holds the first ones back


class Pipe(io.BytesIO):
    """A stream that can only be read."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_blocks_come_from_an_open_stream_as_from_a_file(wav, stream):
    np.testing.assert_array_equal(np.concatenate(list(audio.read_blocks(stream(wav.read_bytes())))), audio.load(wav))
    with pytest.raises(audio.TruncatedAudio, match="audio: truncated, 7978 of 16000 bytes"):
        next(audio.read_blocks(stream(wav.read_bytes()[:8022])))
    with pytest.raises(audio.ZeroBytes):
        next(audio.read_blocks(stream(b"")))


def test_blocks_before_the_damage_are_good_and_the_damage_is_refused(tmp_path):
    samples = sine(1.0)
    samples[12000] = np.inf
    soundfile.write(tmp_path / "odd.wav", samples, 16000, subtype="FLOAT")
    blocks = audio.read_blocks(tmp_path / "odd.wav", block_seconds=0.5)
    np.testing.assert_array_equal(next(blocks), samples[:8000])
    with pytest.raises(audio.NonFiniteAudio, match=r"first at 0\.750 s"):
        next(blocks)


@pytest.mark.parametrize("extension", audio.WRITABLE)
def test_blocks_are_written_as_the_whole(tmp_path, extension):
    samples = 1.2 * noise(20000)  # beyond full scale, so that clipping shows
    audio.save(tmp_path / f"whole{extension}", samples)
    audio.write_blocks(tmp_path / f"blocks{extension}", np.split(samples, [1, 7000, 7000]))
    whole, blocks = (audio.load(tmp_path / f"{name}{extension}") for name in ("whole", "blocks"))
    assert len(blocks) == len(whole) >= 20000
    difference = np.sqrt(np.mean((blocks - whole) ** 2))
    lossy = extension in (".ogg", ".opus", ".mp3")
    assert difference <= (0.05 if lossy else 0)  # a vorbis encoder hears how it is fed


class FullDisk(io.BytesIO):
    """A file on a disk that has room for so many bytes."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("extension", audio.WRITABLE)
@pytest.mark.parametrize("room", [0, 3000])
def test_a_disk_that_is_full_is_told_as_such_whatever_the_format(extension, room, capfd):
    samples = noise(60000)
    with pytest.raises(OSError, match="No space left on device"):
        audio._write(FullDisk(room), f"clip{extension}", np.split(samples, 4), 16000, len(samples))
    assert capfd.readouterr() == ("", "")  # nothing of what raises within a callback


@pytest.mark.parametrize("extension", [".aiff", ".au", ".caf"])
def test_a_file_that_is_cut_short_is_told_by_its_size(tmp_path, extension):
    path = tmp_path / f"clip{extension}"
    audio.save(path, sine())
    assert len(audio.load(path)) == 8000
    os.truncate(path, 12000)
    with pytest.raises(audio.UnreadableAudio, match=r"truncated, 1\d* of 160\d* bytes|malformed"):
        audio.load(path)


def test_recordings_that_cannot_be_read_are_counted_and_named_where_there_are_no_others(tmp_path, caplog):
    for name in ("a.wav", "b.M4A", "c.aiff", "d.aac", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    with caplog.at_level("WARNING", logger="absl"):
        assert [name for name, _ in recordings.list_audio(tmp_path)] == ["a.wav", "c.aiff"]
    (message,) = caplog.messages
    assert message.endswith("1 .aac, 1 .m4a left out, their formats cannot be read: convert them first")
    for name in ("a.wav", "c.aiff"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"only 1 \.aac, 1 \.m4a, which cannot be read: convert them first"):
        recordings.list_audio(tmp_path)


def test_a_wav_too_large_for_32_bits_is_written_as_rf64_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_WAV_BYTES", 10000)
    path = tmp_path / "long.wav"
    audio.write_blocks(path, [sine(), sine()], num_samples=16000)
    assert path.read_bytes()[:4] == b"RF64"
    np.testing.assert_array_equal(audio.to_int16(audio.load(path)), audio.to_int16(np.tile(sine(), 2)))
    os.truncate(path, 20000)
    with pytest.raises(audio.TruncatedAudio, match="of 32000 bytes"):
        audio.load(path)
    with pytest.raises(ValueError, match="at most 4 GiB, write flac"):
        audio.write_blocks(path, [sine(), sine()])
    audio.write_blocks(path, [sine()[:5000]], num_samples=5000)
    assert path.read_bytes()[:4] == b"RIFF"


def test_importing_the_data_ring_imports_no_heavy_package():
    code = "import sys, jaxcodec.audio, jaxcodec.data, jaxcodec.data.openslr66; "
    code += "print({'tensorflow', 'librosa', 'soundfile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
