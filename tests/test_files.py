"""Recordings to .jxc files at any rate and back: what is asked for is met, and pieces are the whole."""

import dataclasses
import io
import re

import jax
import numpy as np
import pytest

import jaxcodec
from jaxcodec import audio, bitstream, quantizers
from jaxcodec.inference import files, functions, pretrained
from tests import support, test_scalar

SECONDS = 3


@pytest.fixture(scope="module")
def codec():
    """A small codec of scalar codes with weights that are not small; nothing costs it less than some 30 kbit/s."""
    state, rng = support.make_state(support.make_model(test_scalar.small_config())), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), state.params)
    return pretrained.make(params, state.quantizer, test_scalar.small_config())


@pytest.fixture(scope="module")
def clip():
    """A noisy clip of some seconds."""
    return support.speech_like(1, SECONDS * 16000)[0]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording that is too long to be held, its path and its samples."""
    path = str(tmp_path_factory.mktemp("long") / "long.wav")
    audio.save(path, support.speech_like(1, 62 * 16000 + 77)[0])
    return path, audio.load(path)


@pytest.fixture(scope="module")
def long_file(codec, recording):
    """It as a .jxc file."""
    return files.compress(codec, recording[1], quality=0)


def kbps_of(data, seconds=SECONDS):
    return 8e-3 * len(data) / seconds


def quality_of(codec, data):
    return jaxcodec.unpack(codec, data).codes[0, 0] * quantizers.QUALITY_DB


def test_kbps_are_met_within_two_percent_and_never_exceeded(codec, clip):
    made = [files.compress(codec, clip, kbps=kbps) for kbps in (38, 60, 110)]
    for kbps, data in zip((38, 60, 110), made, strict=True):
        assert 0.98 * kbps < kbps_of(data) <= kbps
    qualities = [quality_of(codec, data) for data in made]
    assert qualities == sorted(qualities, reverse=True) and qualities[0] > qualities[2] + 6
    assert made[1] == files.compress(codec, clip, quality=float(qualities[1]))
    # A step finer would not be closer by more than the search leaves.
    finer = files.compress(codec, clip, quality=float(qualities[1]) - quantizers.QUALITY_DB)
    assert kbps_of(finer) > 60 or kbps_of(made[1]) > 0.99 * 60


def test_the_shaping_that_is_asked_for_stays(codec, clip):
    data = files.compress(codec, clip, kbps=80, shape=0)
    assert 0.97 * 80 < kbps_of(data) <= 80
    assert not jaxcodec.unpack(codec, data).codes[1].any()


def test_what_cannot_be_reached_says_what_can_and_what_is_more_than_enough_is_the_finest(codec, clip):
    with pytest.raises(
        ValueError, match=r"^5 kbit/s cannot be reached, this recording needs [\d.]+ at least\.$"
    ) as error:
        files.compress(codec, clip, kbps=5)
    least = float(re.search(r"needs ([\d.]+)", str(error.value))[1])
    assert 5 < least < kbps_of(files.compress(codec, clip, kbps=least + 0.01)) + 0.02
    most = files.compress(codec, clip, kbps=1e5)
    assert most == files.compress(codec, clip, quality=quantizers.MIN_QUALITY) and kbps_of(most) < 1e4


def test_silence_and_nothing_have_files(codec, clip):
    data = files.compress(codec, np.zeros_like(clip), kbps=60)
    assert kbps_of(data) <= 60 and np.abs(files.decompress(codec, data)).max() < 1e-3
    assert np.abs(files.decompress(codec, files.compress(codec, clip, kbps=60))).max() > 0.01
    for kbps in (None, 8):
        nothing = files.compress(codec, clip[:0], kbps=kbps)
        assert files.decompress(codec, nothing).shape == (0,) and len(nothing) < 100


def test_a_search_needs_few_attempts(codec, clip):
    rates = []

    def attempt(rate):
        rates.append(rate)
        return files.pack(codec, functions.encode(codec, clip, rate), len(clip))

    for kbps in (33, 110, 1e4):
        rates.clear()
        files.at_kbps(codec, attempt, kbps, SECONDS)
        assert len(rates) == len(set(rates)) <= 9, (kbps, rates)


@pytest.mark.parametrize("bend", [0.1, 1.0, 4.0])
def test_the_search_ends_where_sizes_bend_jump_and_stand_still(codec, bend):
    sizes = {}

    def attempt(rate):
        fineness = (quantizers.MAX_QUALITY - rate[0]) / 106  # 0 to 1
        assert rate not in sizes
        sizes[rate] = round(100 + 1e4 * fineness**bend // 50 * 50)
        return bytes(sizes[rate])

    for kbps in (0.9, 1, 7, 20, 60, 79, 200):
        sizes.clear()
        rate, data = files.at_kbps(codec, attempt, kbps, 1.0)
        assert len(data) == sizes[rate] <= 125 * kbps and len(sizes) < 40
        finer = 100 + 1e4 * min(1, (quantizers.MAX_QUALITY - rate[0] + 0.125) / 106) ** bend // 50 * 50
        assert finer > 125 * kbps or len(data) > 0.99 * 125 * kbps or rate[0] == quantizers.MIN_QUALITY


def test_two_rates_at_once_and_what_is_no_rate_are_refused_in_one_line(codec, clip):
    for named, message in (
        (dict(kbps=60, quality=-8), "kbps and quality both set the rate: give one of them."),
        (dict(kbps=-1), "kbps is -1, expected a number above 0."),
        (dict(kbps=float("nan")), "kbps is nan, expected a number above 0."),
        (dict(quality=99), "quality 99 dB, shaping 0.75: expected -66 to 40 and 0 to 1."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            files.compress(codec, clip, **named)
    with pytest.raises(
        ValueError, match="kbps cannot be chosen freely, the rate of this codec is set by num_codebooks"
    ):
        files.compress(support.untrained_codec(), clip, kbps=8)


@pytest.fixture
def shorter(monkeypatch):
    """What is longer than 0.2 s is a long recording, which is not held."""
    monkeypatch.setattr(files, "_READ_SECONDS", 0.1)
    monkeypatch.setattr(files, "_BATCH_BLOCKS", 2)


@pytest.mark.parametrize("kbps", [None, 60])
def test_recordings_of_a_path_and_of_a_pipe_have_the_files_they_have_alone(codec, shorter, tmp_path, kbps):
    expected, sources = {}, []
    for name, size in (("a", 3000), ("long", 16000), ("b", 2000)):
        audio.save(tmp_path / f"{name}.wav", support.speech_like(1, size, seed=size)[0])
        expected[name] = audio.load(tmp_path / f"{name}.wav")
        sources.append((name, tmp_path / f"{name}.wav"))
    (tmp_path / "bad.wav").write_text("hello")
    sources.insert(1, ("bad", tmp_path / "bad.wav"))
    sources += [(f"{name} pipe", Pipe(path.read_bytes())) for name, path in sources[:3]]
    rate = (-8, None) if kbps is None else None
    made = {made.key: made for made in files.compress_files(codec, sources, rate, kbps=kbps)}
    assert set(made) == {key for key, _ in sources}
    for key in ("a", "long", "b", "a pipe", "long pipe"):
        samples = expected[key.split()[0]]
        assert made[key].error is None and made[key].num_samples == len(samples)
        assert made[key].data == files.compress(codec, samples, rate, kbps=kbps)
    if kbps:
        assert 0.97 * 60 < kbps_of(made["long"].data, 1) <= 60
    assert str(made["bad"].error).startswith(f"{tmp_path}/bad.wav: not audio that can be read")
    assert str(made["bad pipe"].error).startswith("stdin: not audio") and not made["bad pipe"].data


def test_kbps_that_a_recording_cannot_have_are_its_error_and_the_others_are_done(codec, shorter, tmp_path):
    for name, size in (("short", 200), ("long", 8000)):
        audio.save(tmp_path / f"{name}.wav", support.speech_like(1, size)[0])
    made = list(files.compress_files(codec, [(n, tmp_path / f"{n}.wav") for n in ("short", "long")], kbps=50))
    assert "50 kbit/s cannot be reached" in str(made[0].error)  # the header alone is more
    assert made[1].error is None and made[1].data


class Pipe(io.BytesIO):
    """An open file that can be read once."""

    name = "<stdin>"

    def seekable(self):
        return False


def test_the_codes_of_a_long_recording_are_never_held_whole(codec, recording, long_file, monkeypatch):
    sizes, add, unpack_pieces = [], bitstream.Packer.add, bitstream.unpack_pieces
    monkeypatch.setattr(
        bitstream.Packer, "add", lambda self, codes: (sizes.append(codes.shape[1]), add(self, codes))[1]
    )

    def measured(*arguments, **options):
        for content in unpack_pieces(*arguments, **options):
            sizes.append(content.codes.shape[1])
            yield content

    monkeypatch.setattr(bitstream, "unpack_pieces", measured)
    monkeypatch.setattr(files, "_PIECE_BLOCKS", 2)
    frames = codec.num_frames(len(recording[1]))
    (made,) = files.compress_files(codec, [("long", recording[0])], (0, None))
    assert made.data == long_file and sum(sizes) == frames and max(sizes) <= 2048 < frames / 7
    sizes.clear()
    for _ in files.decode_file(codec, long_file).blocks:
        pass
    assert sum(sizes) == frames and max(sizes) == 2 * 5 * codec.frame_rate


def test_files_of_before_the_prior_was_rounded_are_read(codec, clip):
    earlier = codec.replace(entropy=codec.entropy.earlier)
    data = jaxcodec.compress(earlier, clip)
    assert data != jaxcodec.compress(codec, clip)
    np.testing.assert_array_equal(jaxcodec.unpack(codec, data).codes, jaxcodec.unpack(earlier, data).codes)
    with pytest.raises(bitstream.WrongEntropyModel):
        jaxcodec.unpack(earlier, jaxcodec.compress(codec, clip))


@pytest.fixture
def lanes(codec, monkeypatch):
    """How many blocks were decoded side by side, call by call."""
    calls, decode_blocks = [], type(codec.entropy).decode_blocks

    def counted(self, blocks, *sizes):
        calls.append(len(blocks))
        return decode_blocks(self, blocks, *sizes)

    monkeypatch.setattr(type(codec.entropy), "decode_blocks", counted)
    return calls


def test_short_files_are_read_side_by_side_and_sound_as_each_does_alone(codec, clip, long_file, lanes, monkeypatch):
    short = [files.compress(codec, clip[:size], quality=0) for size in (16000, 48000, 8000, 0)]
    alone = [files.decompress(codec, data) for data in short]
    lanes.clear()
    for one, other in zip(files.decompress(codec, short), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert lanes == [3]
    lanes.clear()
    for one, data in zip(jaxcodec.unpack(codec, short), short, strict=True):
        np.testing.assert_array_equal(one.codes, jaxcodec.unpack(codec, data).codes)
    assert lanes == [3, 1, 1, 1]
    lanes.clear()
    monkeypatch.setattr(files, "_PIECE_BLOCKS", 2)
    given = [short[0], short[1], short[2], long_file, b"none", short[0]]
    read = files.read_together((place, codec, data) for place, data in enumerate(given))
    assert [(one.key, one.content is None) for one in read] == list(enumerate([False] * 3 + [True, True, False]))
    assert lanes == [2, 1, 1]


def test_what_is_wrong_with_one_of_several_files_is_said_as_of_it_alone(codec, clip, lanes):
    good, other = (files.compress(codec, clip[:size], quality=0) for size in (16000, 48000))
    flipped = bytearray(good)
    flipped[-10] ^= 1
    for read in (jaxcodec.unpack, files.decompress):
        with pytest.raises(ValueError, match=r"block 0 .* is damaged"):
            read(codec, [other, bytes(flipped)])
    read = jaxcodec.unpack(codec, [bytes(flipped), good], errors="report")
    assert [one.damaged for one in read] == [[(0, codec.num_frames(16000))], []]
    with pytest.raises(ValueError, match=r"errors is .*other"):
        jaxcodec.unpack(codec, [good], errors="other")
    lanes.clear()
    with pytest.raises(files.TooLong, match=r"3\.0 s"):
        files.decompress(codec, [good, other], max_seconds=2)
    assert lanes == [1]  # what is too long is never decoded


def test_a_long_file_decoded_in_pieces_sounds_as_the_whole(codec, recording, long_file):
    codes, num_samples, _ = jaxcodec.unpack(codec, long_file)
    whole = np.asarray(functions.decode(codec, codes, num_samples))
    decoded = files.decode_file(codec, long_file)
    blocks = list(decoded.blocks)
    assert decoded.num_samples == num_samples == len(recording[1]) and len(blocks) > 4 and decoded.damaged == []
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5)
    np.testing.assert_array_equal(files.decompress(codec, long_file), np.concatenate(blocks))
    assert np.abs(whole).max() > 0.05


def test_a_damaged_block_is_silence_there_only_and_is_said(codec, long_file):
    good = files.decompress(codec, long_file)
    data = bytearray(long_file)
    data[len(data) // 2] ^= 4
    (block,) = bitstream.damaged_blocks(bytes(data))
    with pytest.raises(ValueError, match=rf"^block {block.block} at .* is damaged, --keep_damaged decodes the rest$"):
        files.decode_file(codec, bytes(data))
    decoded = files.decode_file(codec, bytes(data), keep_damaged=True)
    heard = np.concatenate(list(decoded.blocks))
    assert decoded.damaged == [(block.start_frame / codec.frame_rate, block.stop_frame / codec.frame_rate)]
    start, stop = (frame * codec.hop_length for frame in (block.start_frame, block.stop_frame))
    assert start > 0 and stop < len(good) and good[start:stop].any() and not heard[start:stop].any()
    context = 20 * codec.hop_length  # what the decoder sees beside a frame
    np.testing.assert_allclose(heard[: start - context], good[: start - context], atol=1e-5)
    np.testing.assert_allclose(heard[stop + context :], good[stop + context :], atol=1e-5)


def test_damage_that_only_decoding_finds_is_said_when_it_is_reached(codec, long_file, monkeypatch):
    decode = type(codec.entropy).decode_blocks

    def fail_once(self, payloads, *arguments):
        results = decode(self, payloads, *arguments)
        if payloads and payloads[0] == first:
            results[0] = bitstream.entropy.DamagedCodes("broken")
        return results

    first = _first_payload(codec, long_file, monkeypatch)
    monkeypatch.setattr(type(codec.entropy), "decode_blocks", fail_once)
    with pytest.raises(ValueError, match=r"^block 0 at 0.00 to 5.00 s is damaged"):
        list(files.decode_file(codec, long_file).blocks)
    decoded = files.decode_file(codec, long_file, keep_damaged=True)
    assert decoded.damaged == []
    heard = np.concatenate(list(decoded.blocks))
    assert decoded.damaged == [(0.0, 5.0)] and not heard[:80000].any() and heard[80000:].any()


def _first_payload(codec, data, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(type(codec.entropy), "decode_blocks", lambda self, payloads, *_: seen.extend(payloads) or [])
        with pytest.raises(ValueError, match="zip"):
            bitstream.unpack(data, codec.entropy, stop_frame=1)
    return seen[0]


def sealed(data, **fields):
    """The file with other fields in its header, and CRCs that are right; what is in no header of its version is added."""
    layout = bitstream.container._parse(data)
    header = dataclasses.replace(layout.header, version=2, **fields)
    payloads = [(data[b.offset : b.offset + b.size], b.coded) for b in layout.blocks]
    return bitstream.container._assemble(header, payloads)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sample_rate", 8000), ("hop_length", 63), ("codebook_size", 2**15), ("kind", "toy"), ("least_code", 0)],
)
def test_a_header_that_says_what_its_model_does_not_is_refused(codec, recording, field, value):
    data = files.compress(codec, recording[1][:8000])
    np.testing.assert_array_equal(files.decompress(codec, sealed(data)), files.decompress(codec, data))
    for read in (files.decompress, files.unpack):
        with pytest.raises(bitstream.DamagedHeader, match=rf"^the header says {field} = {value}, its model has "):
            read(codec, sealed(data, **{field: value}))


def test_a_file_of_another_model_is_told_by_its_fingerprint_before_anything_else(codec, recording):
    data = sealed(files.compress(codec, recording[1][:8000]), fingerprint=bytes(8), sample_rate=8000)
    with pytest.raises(files.WrongModel, match="made with the model 0000000000000000"):
        files.decompress(codec, data)


def test_a_small_file_of_many_hours_is_refused_unless_they_are_allowed(codec, monkeypatch):
    silence = np.zeros(40000, np.float32)
    data = files.compress(codec, silence)
    with pytest.raises(files.TooLong, match=r"^2.5 s of audio, max_seconds = 2 allows less: give more$"):
        files.decompress(codec, data, max_seconds=2)
    assert len(files.decompress(codec, data, max_seconds=2.5)) == len(silence)
    packer = bitstream.Packer(**files._fields(codec), num_codebooks=codec.num_codebooks, fingerprint=codec.fingerprint)
    packer.add(np.zeros((codec.num_codebooks, 0), np.int32))
    header = dataclasses.replace(packer._header, num_samples=16000 * 3600 * 13, num_frames=250 * 3600 * 13 + 1)
    monkeypatch.setattr(bitstream, "read_header", lambda data: header)
    for read in (files.decompress, files.unpack, files.decode_file):
        with pytest.raises(files.TooLong, match=r"^46800.0 s of audio, max_seconds = 43200 allows less: give more$"):
            read(codec, data)


def test_weights_whose_audio_is_no_number_are_told(codec):
    large = codec.replace(params=jax.tree.map(lambda x: x * 1e30, codec.params))
    codes = np.ones((codec.num_codebooks, 11), np.int32)
    data = files.pack(large, codes, int(codec.module.num_samples(11)), entropy=False)
    with pytest.raises(ValueError, match="decoding gives samples that are no numbers"):
        files.decompress(large, data)


def test_codes_that_no_encoder_writes_are_a_damaged_block_behind_whatever_crc(codec):
    codes = np.zeros((codec.num_codebooks, 1301), np.int32)
    num_samples = codec.module.num_samples(codes.shape[1])
    for row, entropy in ((0, False), (1, True), (2, False), (12, False)):
        wrong = codes.copy()
        wrong[row, 1280] = 400
        data = files.pack(codec, wrong, num_samples, entropy=entropy)
        assert not bitstream.damaged_blocks(data)
        with pytest.raises(bitstream.DamagedBlock, match=r"block 1 .* is damaged: its codes are none that an encoder"):
            files.unpack(codec, data)
        assert files.unpack(codec, data, errors="report").damaged == [(1250, 1301)]
    with pytest.raises(ValueError, match=r"^block 1 at 5.00 to 5.20 s is damaged"):
        list(files.decode_file(codec, data).blocks)
    decoded = files.decode_file(codec, data, keep_damaged=True)
    heard = np.concatenate(list(decoded.blocks))
    assert decoded.damaged == [(5.0, 5.204)] and not heard[80000:].any() and heard[:79000].any()
    files.unpack(codec, files.pack(codec, codes, num_samples))  # which are all possible
