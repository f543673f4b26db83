"""A stream has the codes and the audio of the whole recording, however it is cut."""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from configs import telugu_vbr
from jaxcodec.inference import pretrained, windows
from jaxcodec.quantizers import layout
from tests import support

BLOCKS = 90


@functools.cache
def trained(architecture="mdct", causal=True):
    """A codec with the marks of training."""
    return support.trained_codec(support.small_config(architecture, model__causal=causal))


@functools.cache
def looking_ahead(lookahead, kernel_size=3):
    """A codec whose decoder sees `lookahead` frames ahead, with the marks of training."""
    config = telugu_vbr.get_config().lock()
    values = {"model.latent_dim": 64 + layout.EXTRA, "model.width": 16}
    values |= {"model.transform.hop_length": 64, "model.transform.depth": 2, "model.transform.expansion": 2}
    values |= {"model.transform.kernel_size": kernel_size, "model.transform.lookahead": lookahead}
    values |= {"model.scalar.width": 16, "model.scalar.depth": 1}
    config.update_from_flattened_dict(values)
    state, rng = support.make_state(support.make_model(config)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), state.params)
    return pretrained.make(params, state.quantizer, config)


CODECS = {
    "mdct": trained,
    "seanet": lambda: trained("seanet"),
    "looking ahead by 1": lambda: looking_ahead(1),
    "looking ahead by 2": lambda: looking_ahead(2),
}


@functools.cache
def whole(name, blocks=33):
    """A codec by its name in `CODECS`; codes (2, Q, T) of clips of so many blocks, and their audio, decoded at once."""
    codec = CODECS[name]()
    codes = np.asarray(jaxcodec.encode(codec, support.speech_like(2, blocks * codec.hop_length)))
    return codec, codes, np.asarray(jaxcodec.decode(codec, codes))


def decode_stream(codec, codes, sizes):
    """What the steps for so many frames each give of codes (..., Q, T), and the end."""
    state = jaxcodec.init_stream(codec, *codes.shape[:-2])
    stops = np.cumsum(sizes)
    parts = []
    for start, stop in zip(stops - sizes, stops, strict=True):
        state, audio = jaxcodec.decode_step(codec, state, codes[..., start:stop])
        parts.append(np.asarray(audio))
    return np.concatenate(parts, axis=-1), np.asarray(jaxcodec.decode_end(codec, state))


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


@pytest.mark.parametrize("name", CODECS)
def test_a_stream_may_take_the_row_of_another_at_any_time(name):
    codec, _, _ = whole(name)
    audio = support.speech_like(2, 33 * codec.hop_length)
    expected = np.asarray(jaxcodec.encode(codec, audio))
    late = audio[1, : 24 * codec.hop_length]
    state, first = jaxcodec.encode_step(codec, jaxcodec.init_stream(codec, 2), audio[:, : 9 * codec.hop_length])
    state = jax.tree.map(lambda rows, row: rows.at[1].set(row), state, jaxcodec.init_stream(codec))
    state, codes = jaxcodec.encode_step(codec, state, np.stack([audio[0, 9 * codec.hop_length :], late]))
    np.testing.assert_array_equal(np.concatenate([first[0], codes[0]], axis=-1), expected[0, :, :33])
    np.testing.assert_array_equal(codes[1], expected[1, :, :24])
    np.testing.assert_array_equal(state.encoded, [33, 24])


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


@pytest.mark.parametrize("name", CODECS)
def test_the_steps_and_the_end_are_the_whole_clip(name):
    codec, codes, expected = whole(name)
    total = codes.shape[-1]
    for sizes in ([1, 5, 2, 1, 5, 20], [5, 20, 1, 2, 1, 5], [total]):
        sizes[-1] += total - sum(sizes)
        steps_audio, end = decode_stream(codec, codes, sizes)
        assert steps_audio.shape == (2, total * codec.hop_length) and end.shape == (2, codec.delay)
        assert not steps_audio[:, : codec.delay].any()
        decoded = np.concatenate([steps_audio, end], axis=1)[:, codec.delay :]
        assert decoded.shape == (2, total * codec.hop_length)
        np.testing.assert_allclose(decoded[:, : expected.shape[1]], expected, atol=1e-5)
    waiting = expected[:, steps_audio.shape[1] - codec.delay :]
    assert np.abs(waiting).max(initial=0) > 1e-2 or waiting.size == 0  # the end is not silence


@pytest.mark.parametrize("lookahead", [1, 2])
def test_a_block_waits_for_the_frames_that_the_decoder_looks_at(lookahead):
    codec, codes, expected = whole(f"looking ahead by {lookahead}")
    hop_length, frames = codec.hop_length, 25
    assert codec.causal and codec.delay == (1 + lookahead) * hop_length
    assert codec.latency == (2 + lookahead) * hop_length / codec.sample_rate
    early = np.asarray(jaxcodec.decode(codec, codes[..., :frames]))  # as far as `overlap` alone would let it
    errors = np.abs(early - expected[:, : early.shape[1]]).reshape(2, -1, hop_length).max(axis=(0, 2))
    known = frames - 1 - lookahead
    assert errors[:known].max() < 1e-5 and np.all(errors[known:] > 1e-3) and len(errors) == frames - 1
    steps_audio, end = decode_stream(codec, codes[..., :frames], [frames])
    np.testing.assert_allclose(steps_audio[:, codec.delay :], expected[:, : known * hop_length], atol=1e-5)
    np.testing.assert_allclose(end[:, : lookahead * hop_length], early[:, known * hop_length :], atol=1e-5)


def test_a_stream_remembers_all_that_a_block_of_samples_hears():
    codec = looking_ahead(2, kernel_size=40)
    context = codec.module.decoder.network.context
    assert context == (76, 3)
    codes = jaxcodec.encode(codec, 3 * support.speech_like(1, 120 * codec.hop_length)[0])
    steps_audio, end = decode_stream(codec, np.asarray(codes), [11] * 11)
    expected = np.asarray(jaxcodec.decode(codec, codes))
    decoded = np.concatenate([steps_audio, end])[codec.delay :][: len(expected)]
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


def test_a_stream_remembers_all_that_a_frame_hears():
    config = support.small_config(model__causal=True, model__mdct__encoder_depth=2, model__mdct__kernel_size=50)
    codec = support.trained_codec(config)
    # Blocks that are loud beside what passes them by: what was far before is heard in many codes.
    params = flax.traverse_util.path_aware_map(lambda path, x: 5 * x if "layer_scale" in path else x, codec.params)
    codec = codec.replace(params=params)
    before, after = codec.module.encoder.network.context
    assert (before, after) == (99, 0) and before > windows.MIN_FRAMES
    audio = support.speech_like(2, 300 * codec.hop_length)
    state, codes = jaxcodec.init_stream(codec, 2), []
    for chunk in np.split(audio, 30, axis=1):
        state, new = jaxcodec.encode_step(codec, state, chunk)
        codes.append(np.asarray(new))
    expected = np.asarray(jaxcodec.encode(codec, audio))[..., :300]
    np.testing.assert_array_equal(np.concatenate(codes, axis=-1), expected)


@pytest.mark.parametrize("name", CODECS)
def test_a_stream_may_end_before_anything_is_heard(name):
    codec, codes, _ = whole(name)
    assert not np.any(jaxcodec.decode_end(codec, jaxcodec.init_stream(codec)))
    for frames in (1, 2, 3):
        decoded = np.concatenate(decode_stream(codec, codes[0, :, :frames], [1] * frames))[codec.delay :]
        expected = np.asarray(jaxcodec.decode(codec, codes[0, :, :frames]))
        np.testing.assert_allclose(decoded[: len(expected)], expected, atol=1e-5)


def test_the_end_can_be_compiled_and_vmapped():
    codec, codes, _ = whole("looking ahead by 2")
    state, _ = jaxcodec.decode_step(codec, jaxcodec.init_stream(codec, 2), codes)
    expected = jaxcodec.decode_end(codec, state)
    np.testing.assert_allclose(jax.jit(jaxcodec.decode_end)(codec, state), expected, atol=1e-6)
    apart = jax.vmap(lambda state: jaxcodec.decode_end(codec, state))(state)
    np.testing.assert_allclose(apart, expected, atol=1e-6)


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
