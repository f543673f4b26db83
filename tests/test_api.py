"""The API at its edges: what is easily got wrong is named, and what comes from elsewhere is taken."""

import copy
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from jaxcodec import audio, inference
from jaxcodec.bitstream import entropy
from tests import support


def test_a_forgotten_scale_is_named_and_what_is_a_little_too_loud_is_not(codec):
    speech = support.speech_like(1, 2000)[0]
    samples = audio.to_int16(speech)
    for given in (samples.astype(np.float32), [speech, samples.astype(float)], np.stack([speech, 32768 * speech])):
        with pytest.raises(ValueError, match=r"reaches \d{4,5}\S*, float audio lies in \[-1, 1\]: divide .* int16"):
            inference.encode(codec, given)
    with pytest.raises(ValueError, match="of clip 1 reaches"):
        inference.encode(codec, [speech, 40 * np.ones(100)])
    with pytest.raises(ValueError, match="reaches"):
        list(inference.encode_blocks(codec, [speech, 9 * np.ones(100)]))
    np.testing.assert_array_equal(inference.encode(codec, samples), inference.encode(codec, audio.to_float(samples)))
    inference.encode(codec, 8 * speech / np.abs(speech).max())  # clipped, as it was


def test_two_rows_that_are_alike_are_taken_for_two_clips_with_a_warning(codec):
    left, other = support.speech_like(2, 16000)
    stereo = np.stack([left, 0.6 * left + 0.4 * other])
    with pytest.warns(UserWarning, match=r"\(2, 16000\) is taken for a batch of two clips.*audio\.mean\(axis=0\)"):
        codes = inference.encode(codec, stereo)
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(codes, inference.encode(codec, stereo, lengths=[16000, 16000]))
        inference.encode(codec, np.stack([left, other]))  # two clips
        inference.encode(codec, stereo[:, :15999])  # less than a second
        inference.encode(codec, np.zeros((2, 16000), np.float32))
        inference.encode(codec, np.stack([left, left, left]))
        inference.encode(codec, [left, left])


def test_soft_codes_are_weights_of_entries_and_have_a_gradient(codec):
    codes = np.asarray(inference.encode(codec, support.speech_like(2, 700)))
    one_hot = np.asarray(jax.nn.one_hot(codes, codec.codebook_size))
    expected = inference.dequantize(codec, codes)
    np.testing.assert_allclose(inference.dequantize(codec, one_hot), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(inference.dequantize(codec, one_hot[0, :2]), inference.dequantize(codec, codes[0, :2]))
    _, second = inference.dequantize(codec, [one_hot[0], one_hot[1][:, :9]])
    np.testing.assert_allclose(second, expected[1, :9], rtol=0, atol=1e-6)
    mixed = inference.dequantize(codec, 0.25 * one_hot[0] + 0.75 * one_hot[1])
    np.testing.assert_allclose(mixed, 0.25 * expected[0] + 0.75 * expected[1], rtol=0, atol=1e-6)
    gradient = jax.grad(lambda soft: jnp.sum(inference.dequantize(codec, soft)[:, 0]))(one_hot[0])
    books = np.asarray(codec.constants["centroids"])
    np.testing.assert_allclose(gradient, np.broadcast_to(books[:, None, :, 0], gradient.shape), rtol=1e-5, atol=1e-6)
    for wrong in (one_hot[..., :3], np.repeat(one_hot, 2, axis=1)):
        with pytest.raises(ValueError, match=r"soft codes are .*, expected \(\.\.\., Q, T, 16\) of 1 to 4 codebooks"):
            inference.dequantize(codec, wrong)
    with pytest.raises(ValueError, match="codes are float32, expected integers"):
        inference.dequantize(codec, codes[0].astype(np.float32))


class Tensor:
    """An array of another library, which lets others have it by DLPack and by nothing else."""

    def __init__(self, array, problem=None):
        self.array, self.problem = array, problem

    def __dlpack__(self, **options):
        if self.problem:
            raise BufferError(self.problem)
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_of_other_libraries_are_taken_by_dlpack(codec):
    speech = support.speech_like(2, 700)
    codes = inference.encode(codec, speech)
    np.testing.assert_array_equal(inference.encode(codec, Tensor(speech)), codes)
    np.testing.assert_array_equal(inference.encode(codec, [Tensor(speech[0])])[0], codes[0])
    np.testing.assert_array_equal(
        inference.decode(codec, Tensor(np.array(codes)), [700, 700]), inference.decode(codec, codes, [700, 700])
    )
    with pytest.raises(ValueError, match=r"the Tensor cannot be taken over by DLPack \(.*detach"):
        inference.encode(codec, Tensor(speech, "it requires a gradient: detach() it"))


def test_a_traced_number_of_codebooks_is_refused_in_a_sentence(codec):
    speech = support.speech_like(1, 700)[0]
    with pytest.raises(ValueError, match="a traced num_codebooks: give a Python number, under jit by static_argnames"):
        jax.jit(lambda n: inference.encode(codec, speech, num_codebooks=n))(2)


def test_the_functions_are_methods_and_a_codec_is_one_line(codec):
    speech = support.speech_like(1, 700)[0]
    codes = codec.encode(speech, num_codebooks=3)
    np.testing.assert_array_equal(codes, inference.encode(codec, speech, num_codebooks=3))
    np.testing.assert_array_equal(codec.decode(codes, 700), inference.decode(codec, codes, 700))
    assert codec.unpack(codec.pack(codes, 700)).num_samples == len(codec.decompress(codec.compress(speech))) == 700
    for name in ("latents", "quantize", "dequantize", "synthesize", "reconstruct"):
        assert getattr(type(codec), name) is getattr(inference, name)
    text = f"TrainedCodec({codec.fingerprint.hex()}, mdct, rvq, 16000 Hz, 16 kbit/s)"
    assert repr(codec) == text
    seen = []
    jax.jit(lambda codec: seen.append(repr(codec)) or codec.decode(codes, 700))(codec)
    assert seen == ["TrainedCodec(traced, mdct, rvq, 16000 Hz, 16 kbit/s)"]


@pytest.mark.parametrize("coded", [False, True])
def test_bytes_of_lists_and_padded_batches_are_those_of_each_clip(codec, coded):
    speech, lengths = support.speech_like(3, 900), [900, 1, 333]
    clips = [clip[:n] for clip, n in zip(speech, lengths, strict=True)]
    if coded:
        codes = [np.asarray(inference.encode(codec, clip)) for clip in clips]
        codec = codec.replace(entropy=entropy.fit(codes, codec.codebook_size))
    single = [jaxcodec.compress(codec, clip) for clip in clips]
    assert jaxcodec.compress(codec, clips) == single == jaxcodec.compress(codec, speech, lengths=lengths)
    listed, padded = inference.encode(codec, clips), inference.encode(codec, speech, lengths=lengths)
    assert jaxcodec.pack(codec, listed, lengths) == single == jaxcodec.pack(codec, padded, np.array(lengths))
    for one, expected in zip(jaxcodec.unpack(codec, single), listed, strict=True):
        np.testing.assert_array_equal(one.codes, expected)
    for one, expected in zip(jaxcodec.decompress(codec, single), single, strict=True):
        np.testing.assert_array_equal(one, jaxcodec.decompress(codec, expected))
    with pytest.raises(ValueError, match="num_samples must be 3 integers, one a clip, got 2"):
        jaxcodec.pack(codec, listed, lengths[:2])
    # A codec that has coded is still one that can be sent to another process, and copied.
    for same in (pickle.loads(pickle.dumps(codec)), copy.deepcopy(codec)):
        assert same.fingerprint == codec.fingerprint and jaxcodec.compress(same, clips) == single


def test_a_path_in_place_of_bytes_is_told_as_such(codec, tmp_path):
    for function in (jaxcodec.unpack, jaxcodec.decompress):
        for path in ("speech.jxc", tmp_path / "speech.jxc"):
            with pytest.raises(ValueError, match=r"speech\.jxc is a path, expected the bytes of a file: pathlib\.Path"):
                function(codec, path)
