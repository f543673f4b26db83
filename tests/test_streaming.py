"""A stream has the codes and the audio of the whole recording, however it is cut."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from tests import support

BLOCKS = 90


@functools.cache
def trained(architecture="mdct", causal=True):
    """A codec with the marks of training."""
    return support.trained_codec(support.small_config(architecture, model__causal=causal))


@functools.cache
def offline(architecture):
    """A recording of whole blocks with a block of zeros, its codes and its decoded audio, two streams of them."""
    codec = trained(architecture)
    audio = support.speech_like(2, BLOCKS * codec.hop_length)
    codes = jaxcodec.encode(codec, audio)
    flushed = np.pad(audio, ((0, 0), (0, codec.delay)))
    return flushed, np.asarray(codes), np.asarray(jaxcodec.decode(codec, codes))


@functools.cache
def steps(architecture):
    """`encode_step` and `decode_step` for a chunk of one frame, by scan over a whole stream."""
    codec = trained(architecture)

    def run(state, chunks):
        def step(state, chunk):
            state, codes = jaxcodec.encode_step(codec, state, chunk)
            return jaxcodec.decode_step(codec, state, codes)

        return jax.lax.scan(step, state, chunks)

    return jax.jit(run)


def random_chunks(rng, total, largest=8):
    """Sizes of at least 1 and at most `largest` that add up to `total`."""
    sizes = []
    while total:
        sizes.append(int(rng.integers(1, min(largest, total) + 1)))
        total -= sizes[-1]
    return sizes


def stream(codec, audio, sizes):
    """Codes and audio of a stream cut into chunks of so many blocks."""
    state, codes, decoded, position = jaxcodec.init_stream(codec, len(audio)), [], [], 0
    for size in sizes:
        chunk = audio[:, position * codec.hop_length : (position + size) * codec.hop_length]
        state, new = jaxcodec.encode_step(codec, state, chunk)
        codes.append(np.asarray(new))
        state, new = jaxcodec.decode_step(codec, state, codes[-1])
        decoded.append(np.asarray(new))
        position += size
    return np.concatenate(codes, -1), np.concatenate(decoded, -1)


def test_a_stream_is_the_recording_whatever_the_chunks(architecture):
    codec, rng = trained(architecture), np.random.default_rng(0)
    audio, expected_codes, expected_audio = offline(architecture)
    total = audio.shape[1] // codec.hop_length
    for _ in range(12):
        codes, decoded = stream(codec, audio, random_chunks(rng, total))
        np.testing.assert_array_equal(codes, expected_codes)
        assert not decoded[:, : codec.delay].any()
        np.testing.assert_allclose(decoded[:, codec.delay :], expected_audio, atol=1e-5)
    assert len(np.unique(expected_codes)) > 8
    forgotten, _ = stream(codec, audio[:, 40 * codec.hop_length :], [total - 40])
    assert (forgotten[..., :3] != expected_codes[..., 40:43]).any()  # what was before is heard


def test_nothing_is_heard_before_the_beginning(architecture):
    codec = trained(architecture)
    audio = support.speech_like(64, 4 * codec.hop_length)  # many beginnings: a wrong one changes few codes
    _, codes = jaxcodec.encode_step(codec, jaxcodec.init_stream(codec, 64), audio)
    np.testing.assert_array_equal(codes, jaxcodec.encode(codec, audio)[..., :4])
    _, decoded = jaxcodec.decode_step(codec, jaxcodec.init_stream(codec, 64), codes)
    expected = jaxcodec.decode(codec, codes)[:, : 4 * codec.hop_length - codec.delay]
    np.testing.assert_allclose(decoded[:, codec.delay :], expected, atol=1e-5)


def test_a_stream_can_be_scanned_and_vmapped(architecture):
    codec = trained(architecture)
    audio, _, expected = offline(architecture)
    chunks = audio.reshape(2, -1, codec.hop_length)
    _, decoded = jax.vmap(steps(architecture), (None, 0))(jaxcodec.init_stream(codec), jnp.asarray(chunks))
    np.testing.assert_allclose(decoded.reshape(2, -1)[:, codec.delay :], expected, atol=1e-5)


def test_one_stream_needs_no_batch_axis_and_int16_will_do():
    codec = trained()
    audio, expected, _ = offline("mdct")
    state = jaxcodec.init_stream(codec)
    state, codes = jaxcodec.encode_step(codec, state, audio[0])
    np.testing.assert_array_equal(codes, expected[0])
    state, decoded = jaxcodec.decode_step(codec, state, codes[:2])
    assert decoded.shape == (audio.shape[1],)
    samples = (audio[0] * 32768).astype(np.int16)
    _, codes = jaxcodec.encode_step(codec, jaxcodec.init_stream(codec), samples)
    np.testing.assert_array_equal(codes, jaxcodec.encode(codec, samples[: -codec.delay]))


def test_two_streams_do_not_hear_each_other():
    codec = trained()
    audio, expected, _ = offline("mdct")
    other = audio.copy()
    other[1] = 0.0
    codes, _ = stream(codec, other, [30, 61])
    np.testing.assert_array_equal(codes[0], expected[0])
    assert (codes[1] != expected[1]).any()


def test_the_latency_is_what_is_stated(architecture):
    codec = trained(architecture)
    audio, _, expected = offline(architecture)
    hop_length = codec.hop_length
    _, decoded = stream(codec, audio, [1] * (audio.shape[1] // hop_length))
    inside = slice(0, 80 * hop_length)
    lags = [
        lag for lag in range(4 * hop_length) if np.allclose(decoded[:, lag:][:, inside], expected[:, inside], atol=1e-5)
    ]
    assert lags == [codec.delay]  # where a sample's decoded self is in the stream, and nowhere else
    # It leaves with the chunk it lies in, which is complete a hop after its first sample.
    assert codec.latency * codec.sample_rate == hop_length + lags[0]


def test_a_codec_that_is_not_causal_cannot_stream():
    with pytest.raises(ValueError, match=r"not causal, it cannot stream: train one with --config.model.causal=True"):
        jaxcodec.init_stream(trained(causal=False))


@pytest.mark.parametrize(
    ("batch", "shape", "message"),
    [
        (None, (17,), "chunk has shape (17,), expected a last axis of 16 or a multiple of it."),
        (None, (0,), "chunk has shape (0,), expected a last axis of 16"),
        (None, (2, 16), "chunk has shape (2, 16), but the state was made for one stream without a batch axis."),
        (3, (2, 16), "chunk has shape (2, 16), but the state was made for 3 streams."),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_in_one_line(batch, shape, message):
    codec = trained()
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxcodec.encode_step(codec, jaxcodec.init_stream(codec, batch), np.zeros(shape, np.float32))


def test_codes_and_samples_that_cannot_be_are_refused():
    codec = trained()
    state = jaxcodec.init_stream(codec)
    with pytest.raises(ValueError, match=r"codes lie in \[16, 16\]"):
        jaxcodec.decode_step(codec, state, np.full((4, 1), 16))
    with pytest.raises(ValueError, match="codes has shape"):
        jaxcodec.decode_step(codec, state, np.zeros((1, 4, 1), int))
    with pytest.raises(ValueError, match="NaN"):
        jaxcodec.encode_step(codec, state, np.full(16, np.nan))
