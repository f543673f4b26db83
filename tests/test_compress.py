"""A clip through bytes: the same codes, the exact length, and no other model's files."""

import re

import numpy as np
import pytest

import jaxcodec
from jaxcodec import audio, bitstream
from jaxcodec.bitstream import entropy
from jaxcodec.inference import files
from tests import support


@pytest.fixture(scope="module")
def codec():
    """A small codec with tables fitted to the clip of `codes`."""
    bare = support.trained_codec(support.small_config(model__causal=True))
    speech = support.speech_like(4, 4000, seed=3)
    return bare.replace(entropy=entropy.fit(list(np.asarray(jaxcodec.encode(bare, speech))), 16, num_states=8))


@pytest.fixture(scope="module")
def codes(codec):
    """Codes (4, 626) of 10,001 samples."""
    return np.asarray(jaxcodec.encode(codec, support.speech_like(1, 10001)[0]))


@pytest.mark.parametrize("num_codebooks", [1, 3, 4])
def test_what_is_packed_is_unpacked(codec, codes, num_codebooks):
    kept = codes[:num_codebooks]
    data = jaxcodec.pack(codec, kept, 10001)
    unpacked = jaxcodec.unpack(codec, data)
    np.testing.assert_array_equal(unpacked.codes, kept)
    assert unpacked.codes.dtype == np.int32 and unpacked.num_samples == 10001 and unpacked.damaged == []
    assert len(data) <= len(jaxcodec.pack(codec, kept, 10001, entropy=False))
    assert jaxcodec.decode(codec, unpacked.codes, unpacked.num_samples).shape == (10001,)


def test_a_clip_of_no_samples_is_a_file(codec):
    data = jaxcodec.pack(codec, jaxcodec.encode(codec, np.zeros(0, np.float32)), 0)
    assert jaxcodec.unpack(codec, data).codes.shape == (4, 0)


def test_truncated_files_are_the_first_codebooks(codec, codes):
    data = bitstream.truncate(jaxcodec.pack(codec, codes, 10001), 2, codec.entropy)
    assert data == jaxcodec.pack(codec, codes[:2], 10001)


def test_another_models_file_is_refused(codec, codes):
    other = codec.replace(constants={"centroids": codec.constants["centroids"] + 1e-6})
    with pytest.raises(files.WrongModel, match=codec.fingerprint.hex()) as error:
        jaxcodec.unpack(other, jaxcodec.pack(codec, codes, 10001))
    assert isinstance(error.value, bitstream.BitstreamError)


def test_damage_is_raised_or_reported(codec, codes):
    data = bytearray(jaxcodec.pack(codec, codes, 10001, block_seconds=0.5))
    data[-3] ^= 1  # in the last block
    with pytest.raises(bitstream.DamagedBlock):
        jaxcodec.unpack(codec, bytes(data))
    unpacked = jaxcodec.unpack(codec, bytes(data), errors="report")
    ((start, stop),) = unpacked.damaged
    assert 0 < start < stop == codes.shape[1]
    np.testing.assert_array_equal(unpacked.codes[:, :start], codes[:, :start])
    assert not unpacked.codes[:, start:].any()


def test_blocks_are_as_long_as_is_said(codec, codes, tmp_path):
    clip = support.speech_like(1, 10001)[0]
    audio.save(tmp_path / "clip.wav", clip)
    (of_file,) = files.compress_files(codec, [("key", tmp_path / "clip.wav")], layout=files.Layout(block_seconds=0.2))
    for made in (
        of_file.data,
        jaxcodec.pack(codec, codes, 10001, block_seconds=0.2),
        jaxcodec.pack(codec, [codes], [10001], block_seconds=0.2)[0],
        jaxcodec.compress(codec, clip, block_seconds=0.2),
    ):
        header = jaxcodec.bitstream.read_header(made)
        assert header.block_frames == round(0.2 * codec.frame_rate) and header.num_blocks > 3
    np.testing.assert_array_equal(jaxcodec.unpack(codec, made).codes, jaxcodec.encode(codec, clip))
    assert len(made) > len(jaxcodec.compress(codec, clip))
    for wrong in (0, -1, float("nan"), 1e9):
        with pytest.raises(ValueError, match=r"block_seconds is .*, expected a number above 0, at most 65"):
            jaxcodec.pack(codec, codes, 10001, block_seconds=wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes[:, :-1], "codes have shape (4, 625), a clip of 10001 samples has (Q, 627)."),
        (lambda codes: codes[0], "codes have shape (627,)"),
        (lambda codes: codes + 16, "codes"),
    ],
)
def test_codes_of_something_else_are_refused(codec, codes, change, message):
    message = message.replace("625", str(codes.shape[1] - 1)).replace("627", str(codes.shape[1]))
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxcodec.pack(codec, change(codes), 10001)
