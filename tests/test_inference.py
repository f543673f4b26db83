"""The public functions: shapes and kinds, the same codes however audio comes, gradients, and what they refuse."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from jaxcodec import inference, programs
from jaxcodec.inference import functions, windows
from jaxcodec.quantizers import layout, rvq
from tests import support

Q, K, D = 4, 16, 8
LENGTHS = (700, 1, 0, 16, 331, 640)


@functools.cache
def trained(architecture="mdct", causal=True, **overrides):
    """A codec with the marks of training, hop length 16 ("mdct") or 8 ("seanet")."""
    return support.trained_codec(support.small_config(architecture, model__causal=causal, **overrides))


@pytest.fixture(params=[True, False], ids=["causal", "centered"])
def codec(architecture, request):
    """Both architectures, causal and not."""
    return trained(architecture, request.param)


def clips(lengths=LENGTHS, seed=0):
    """Clips of these lengths with sound up to the last sample."""
    noise = support.speech_like(len(lengths), max(lengths), seed)
    return [clip[:length] for clip, length in zip(noise, lengths, strict=True)]


def padded(values, fill=0.5):
    """A batch (B, S) that goes on with `fill` beyond each clip."""
    size = max(len(value) for value in values)
    return np.stack([np.pad(value, (0, size - len(value)), constant_values=fill) for value in values])


def whole(codec, clip):
    """Codes (Q, T) and audio (S,) of one clip by one pass of the module, no windows."""
    module, lengths = codec.module, np.array([len(clip)])
    z = module.apply(codec.variables, clip[None], np.ones((1, len(clip)), bool), method="analyze")
    codes = module.apply(codec.variables, z, method="quantize").codes
    z_q = module.apply(codec.variables, codes, method="dequantize")
    return np.asarray(codes[0]), np.asarray(
        module.apply(codec.variables, z_q, lengths, len(clip), method="synthesize_clips")[0]
    )


def test_a_clip_has_the_shapes_it_should(codec):
    clip = clips()[0]
    codes = jaxcodec.encode(codec, clip)
    assert codes.shape == (Q, codec.num_frames(700)) and codes.dtype == jnp.int32
    assert len(np.unique(codes)) > K // 2
    audio = jaxcodec.decode(codec, codes, 700)
    assert audio.shape == (700,) and audio.dtype == jnp.float32
    z = jaxcodec.latents(codec, clip)
    assert z.shape == (codes.shape[1], D)
    np.testing.assert_array_equal(jaxcodec.quantize(codec, z), codes)
    np.testing.assert_allclose(jaxcodec.synthesize(codec, jaxcodec.dequantize(codec, codes), 700), audio, atol=1e-6)


def test_codes_are_the_same_alone_in_a_list_in_a_padded_batch_and_under_jit(codec):
    values = clips()
    alone = [np.asarray(jaxcodec.encode(codec, clip)) for clip in values]
    for listed, expected in zip(jaxcodec.encode(codec, values), alone, strict=True):
        np.testing.assert_array_equal(listed, expected)
    batch, lengths = padded(values), np.array(LENGTHS)
    for encode in (jaxcodec.encode, jax.jit(jaxcodec.encode)):
        codes = np.asarray(encode(codec, batch, lengths=lengths))
        assert codes.shape == (len(LENGTHS), Q, codec.num_frames(700))
        for row, expected in zip(codes, alone, strict=True):
            np.testing.assert_array_equal(row[:, : expected.shape[1]], expected)
            assert not row[:, expected.shape[1] :].any()
    np.testing.assert_array_equal(jax.jit(jaxcodec.encode)(codec, values[0]), alone[0])
    unmasked = np.asarray(jaxcodec.encode(codec, batch))
    assert (unmasked[3, :, 1:2] != codes[3, :, 1:2]).any() or (unmasked[4] != codes[4]).any()  # padding is heard


def test_audio_is_the_same_alone_in_a_list_in_a_padded_batch_and_under_jit(codec):
    codes = jaxcodec.encode(codec, clips())
    alone = [np.asarray(jaxcodec.decode(codec, c, n)) for c, n in zip(codes, LENGTHS, strict=True)]
    for listed, expected in zip(jaxcodec.decode(codec, codes, LENGTHS), alone, strict=True):
        np.testing.assert_allclose(listed, expected, atol=1e-5)
    size = codes[0].shape[1]
    batch = np.stack([np.pad(c, ((0, 0), (0, size - c.shape[1])), constant_values=K - 1) for c in codes])
    for decode in (jaxcodec.decode, jax.jit(jaxcodec.decode)):
        audio = np.asarray(decode(codec, batch, np.array(LENGTHS)))
        for row, expected in zip(audio, alone, strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)
            assert not row[len(expected) :].any()
    wrong = np.asarray(jaxcodec.decode(codec, batch))
    assert np.abs(wrong[4, : LENGTHS[4]] - alone[4]).max() > 1e-4 or codec.causal  # made-up frames are heard


def test_windows_give_what_one_pass_over_the_whole_gives(codec, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 64)
    clip = clips((5000,))[0]
    expected_codes, expected_audio = whole(codec, clip)
    np.testing.assert_array_equal(jaxcodec.encode(codec, clip), expected_codes)
    np.testing.assert_allclose(jaxcodec.decode(codec, expected_codes, 5000), expected_audio, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(jaxcodec.encode)(codec, clip), expected_codes)
    np.testing.assert_allclose(jax.jit(jaxcodec.decode)(codec, expected_codes)[:5000], expected_audio, atol=1e-5)
    assert codec.num_frames(5000) > 3 * 64


def test_a_context_longer_than_a_group_of_windows_is_computed_one_window_at_a_time(monkeypatch):
    codec, clip = trained(causal=False), clips((5000,))[0]
    expected = whole(codec, clip)[0]
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 64)
    monkeypatch.setattr(windows, "MAX_FRAMES", 32)
    np.testing.assert_array_equal(jaxcodec.encode(codec, clip), expected)
    np.testing.assert_array_equal(np.concatenate(list(inference.encode_blocks(codec, [clip])), 1), expected)


def test_too_little_context_would_be_seen(codec, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 64)
    clip = clips((5000,))[0]
    operation = functions.latents_operation(codec)
    starved = operation._replace(context=(0, 0))
    whole, cut = (windows.run_clips(op, codec, [clip])[0] for op in (operation, starved))
    assert np.any(np.abs(whole - cut) > 1e-3 * np.abs(whole).max())


def test_a_recording_in_pieces_has_the_codes_and_the_audio_of_the_whole(codec, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 64)
    clip, rng = clips((5000,))[0], np.random.default_rng(1)
    cuts = np.split(np.arange(5000), np.sort(rng.integers(0, 5000, 9)))
    expected_codes, expected_audio = whole(codec, clip)
    codes = np.concatenate(list(inference.encode_blocks(codec, (clip[cut] for cut in cuts))), axis=1)
    np.testing.assert_array_equal(codes, expected_codes)
    pieces = np.split(codes, np.sort(rng.integers(0, codes.shape[1], 5)), axis=1)
    audio = np.concatenate(list(inference.decode_blocks(codec, pieces, 5000)))
    np.testing.assert_allclose(audio, expected_audio, atol=1e-5)
    with pytest.raises(ValueError, match=r"the codes end .* samples before num_samples = 6000"):
        list(inference.decode_blocks(codec, pieces, 6000))
    assert list(inference.encode_blocks(codec, [])) == []


def test_any_length_comes_back_exactly(codec):
    lengths = (*range(2 * codec.hop_length + 2), 1023, 1024, 1025)
    codes = jaxcodec.encode(codec, clips(lengths))
    assert [c.shape for c in codes] == [(Q, codec.num_frames(n)) for n in lengths]
    audio = jaxcodec.decode(codec, codes, lengths)
    assert [len(a) for a in audio] == list(lengths)
    assert all(np.isfinite(a).all() for a in audio)


def test_fewer_codebooks_are_a_prefix(codec):
    clip = clips()[0]
    codes = jaxcodec.encode(codec, clip)
    np.testing.assert_array_equal(jaxcodec.encode(codec, clip, 2), codes[:2])
    np.testing.assert_array_equal(jaxcodec.quantize(codec, jaxcodec.latents(codec, clip), 2), codes[:2])
    assert jaxcodec.decode(codec, codes[:2], 700).shape == (700,)


def test_a_list_may_mix_numbers_of_codebooks():
    codec = trained()
    codes = [np.asarray(c)[:q] for c, q in zip(jaxcodec.encode(codec, clips((700, 0, 331))), (4, 1, 2), strict=True)]
    for listed, alone in zip(jaxcodec.decode(codec, codes, (700, 0, 331)), codes, strict=True):
        np.testing.assert_allclose(listed, jaxcodec.decode(codec, alone, len(listed)), atol=1e-5)
    assert jaxcodec.decode(codec, []) == []


def test_int16_is_float_divided_by_32768():
    codec = trained()
    samples = (clips()[0] * 32768).astype(np.int16)
    np.testing.assert_array_equal(jaxcodec.encode(codec, samples), jaxcodec.encode(codec, samples / np.float32(32768)))
    np.testing.assert_array_equal(
        jaxcodec.encode(codec, np.full(99, -32768, np.int16)), jaxcodec.encode(codec, -np.ones(99))
    )


def test_vmap_and_pmap_give_the_codes_of_each_clip():
    codec = trained()
    batch = support.speech_like(2, 640)
    expected = np.asarray(jaxcodec.encode(codec, batch))
    np.testing.assert_array_equal(jax.vmap(jaxcodec.encode, (None, 0))(codec, batch), expected)
    np.testing.assert_array_equal(jax.pmap(jaxcodec.encode, in_axes=(None, 0))(codec, batch), expected)
    decoded = jax.vmap(jaxcodec.decode, (None, 0))(codec, expected)
    np.testing.assert_allclose(decoded, jaxcodec.decode(codec, expected), atol=1e-5)


def test_the_gradient_passes_the_quantizer_to_audio_and_weights():
    codec, batch = trained(), support.speech_like(2, 700)
    output = jaxcodec.reconstruct(codec, batch)
    np.testing.assert_allclose(output, jaxcodec.decode(codec, jaxcodec.encode(codec, batch), (700, 700)), atol=1e-5)

    def loss(codec, audio):
        return jnp.mean((jaxcodec.reconstruct(codec, audio) - batch) ** 2)

    def by_hand(codec, audio):
        lengths, mask = np.full(2, 700), np.ones((2, 700), bool)
        z = codec.module.apply(codec.variables, audio, mask, method="analyze")
        z_q = codec.module.apply(codec.variables, z, method="quantize").trace.stages.sum(0)
        z_q = z + jax.lax.stop_gradient(z_q - z)
        return jnp.mean(
            (codec.module.apply(codec.variables, z_q, lengths, 700, method="synthesize_clips") - batch) ** 2
        )

    actual = jax.jit(jax.grad(loss, (0, 1)))(codec, batch)
    expected = jax.jit(jax.grad(by_hand, (0, 1)))(codec, batch)
    support.assert_trees_close(actual, expected, rtol=1e-3, atol=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(actual[0].params))
    assert np.any(actual[1]) and not np.any(actual[0].constants["centroids"])


def test_a_jitted_function_compiles_once_for_codecs_of_one_recipe():
    codec = trained()
    count = 0

    @jax.jit
    def encode(codec, audio):
        nonlocal count
        count += 1
        return jaxcodec.encode(codec, audio)

    clip = clips()[0]
    louder = codec.replace(params=jax.tree.map(lambda p: 1.5 * p, codec.params))
    assert (encode(codec, clip) != encode(louder, clip)).any()
    assert count == 1


def test_another_length_compiles_nothing():
    codec, compiled = trained(), []

    def round_trip(lengths):
        batch = padded(clips(lengths))
        for given in (clips(lengths), clips(lengths)[0], batch):
            codes = jaxcodec.encode(codec, given)
            jaxcodec.decode(codec, codes)
            jaxcodec.dequantize(codec, jaxcodec.quantize(codec, jaxcodec.latents(codec, given)))

    round_trip((700, 33))
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    round_trip((701, 350))
    assert not [event for event in compiled if "backend_compile" in event]
    jax.jit(lambda x: x * 3.25)(1.0)  # were there any, they would be there
    assert [event for event in compiled if "backend_compile" in event]


def test_lengths_of_all_sizes_share_few_compiled_shapes():
    codec, program = trained(), programs.jitted(functions.encode_window)
    program.clear_cache()
    for length in (1, 33, 500, 901):
        jaxcodec.encode(codec, np.zeros(length, np.float32))
    assert program._cache_size() == 1


def test_rates_and_sizes_are_those_of_the_recipe():
    codec = trained()
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (16000, 16, 1000.0)
    assert (codec.num_codebooks, codec.codebook_size, codec.bits_per_second) == (Q, K, 16000.0)
    assert codec.causal and codec.latency == 0.002 and codec.delay == 16
    assert trained("mdct", False).latency is None
    assert trained("seanet").latency == 8 / 16000


NAN = np.array([0.1, np.nan, np.inf])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(audio=NAN), "audio has 2 NaN or infinite samples: remove or replace them."),
        (dict(audio=[np.zeros(3), NAN]), "audio of clip 1 has 2 NaN"),
        (
            dict(audio=np.zeros((2, 3, 4))),
            "audio has shape (2, 3, 4), expected mono (S,), a batch (B, S) or a list",
        ),
        (dict(audio=[np.zeros((3, 2))]), "audio has shape (3, 2) in a list, expected mono"),
        (dict(audio=np.zeros((48000, 2))), "audio has shape (48000, 2): samples by channels? Give mono (S,)"),
        (dict(audio=np.zeros(3, np.int32)), "audio is int32, expected float in [-1, 1] or int16."),
        (
            dict(audio=np.zeros(3), sample_rate=44100),
            "audio is at 44100 Hz, the codec works at 16000 Hz: resample it with",
        ),
        (dict(audio=np.zeros(3), num_codebooks=5), "num_codebooks is 5, this codec has 1 to 4."),
        (dict(audio=np.zeros(3), num_codebooks=0), "num_codebooks is 0, this codec has 1 to 4."),
        (
            dict(audio=np.zeros((2, 3)), lengths=[3, 4]),
            "lengths must be in [0, 3], the samples of the batch, got [3 4].",
        ),
        (dict(audio=np.zeros((2, 3)), lengths=[3]), "lengths must be 2 integers, one a clip, got int64 (1,)."),
        (
            dict(audio=[np.zeros(3)], lengths=[3]),
            "lengths are for a padded batch (B, S)",
        ),
    ],
)
def test_audio_that_cannot_be_encoded_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        jaxcodec.encode(trained(), **arguments)
    assert "\n" not in str(error.value)


CODES = np.zeros((Q, 5), int)


@pytest.mark.parametrize(
    ("codes", "lengths", "message"),
    [
        (CODES + K, None, "codes lie in [16, 16], expected [0, 15]: were they made by another model?"),
        (CODES - 1, None, "codes lie in [-1, -1], expected [0, 15]"),
        (CODES.astype(float), None, "codes are float64, expected integers."),
        (np.zeros((5, 7), int), None, "codes (5, 7) hold 5 codebooks, expected 1 to 4: (..., Q, T)."),
        (np.zeros(7, int), None, "codes have shape (7,), expected (Q, T), (B, Q, T) or a list of (Q, T)."),
        ([np.zeros(7, int)], None, "codes have shape (7,) in a list"),
        (CODES, 65, "65 samples need 6 frames of codes, there are 5: at most 64 samples can be decoded."),
        (CODES, -1, "-1 samples need 0 frames"),
        (CODES, [1, 2], "lengths must be 1 integers, one a clip, got int64 (2,)."),
    ],
)
def test_codes_that_cannot_be_decoded_are_refused_in_one_line(codes, lengths, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        jaxcodec.decode(trained(), codes, lengths)
    assert "\n" not in str(error.value)


def test_what_a_transformation_cannot_take_is_refused_in_one_line():
    codec = trained()
    with pytest.raises(
        ValueError, match="inside jit, vmap or grad give a padded batch and its lengths instead of a list"
    ):
        jax.jit(lambda a: jaxcodec.encode(codec, [a, a]))(np.zeros(64))
    with pytest.raises(ValueError, match="reconstruct takes an array"):
        jaxcodec.reconstruct(codec, [np.zeros(64)])


def test_few_sizes_of_windows_serve_every_length_and_little_of_them_is_idle():
    operation = windows.Operation(step=None, unit=1, context=(18, 1), num_frames=lambda count: count)
    wanted = np.arange(1, 1006)
    sizes = np.array([windows._window_frames(operation, int(count)) for count in wanted])
    assert (sizes >= wanted + 19).all() and len(np.unique(sizes)) == 16
    assert (sizes / (wanted + 19))[wanted > 128].max() < 1.33 and (sizes % rvq._BLOCK == 0).all()
    assert windows._window_frames(operation, 501) == 576  # ten seconds of 20-ms frames
    assert windows._window_frames(operation, 5000) == windows.WINDOW_FRAMES


def test_fewer_beams_are_another_search_of_the_same_codec():
    codec = trained(architecture="gain_shape", model__rvq__beams=8)
    greedy, clip = codec.with_beams(1), clips((6000,))[0]
    assert greedy.fingerprint == codec.fingerprint
    few, many = (np.asarray(one.encode(clip)) for one in (greedy, codec))
    latents = greedy.latents(clip)
    np.testing.assert_array_equal(few, greedy.quantize(latents))
    left = [np.asarray(latents) - np.asarray(codec.dequantize(codes)) for codes in (few, many)]
    errors = [np.sum(layout.gain_shape_parts(x, True)[0] ** 2) for x in left]  # of the coefficients
    assert errors[1] < errors[0]
    for wrong in (0, K + 1, 2.0):
        with pytest.raises(ValueError, match="beams is"):
            codec.with_beams(wrong)
    with pytest.raises(ValueError, match="no codebooks to search"):
        jaxcodec.load("files").with_beams(4)


def test_only_frames_that_are_kept_are_searched_from_the_beginning_of_a_block_on(monkeypatch):
    codec, spans = trained(), []
    first, hop_length = codec.module.encoder.network.context[0], codec.hop_length

    def record(context, latents, starts, stops):
        spans.append((starts.tolist(), stops.tolist()))
        return jnp.broadcast_to(jnp.arange(latents.shape[1])[None, :, None], (*latents.shape[:2], 1))

    monkeypatch.setattr(functions, "quantize_window", record)
    starts, stops = first * hop_length * np.array([1, 0]), hop_length * np.array([first + 40, 64])
    frames = functions.encode_window((codec, None), jnp.zeros((2, 64 * hop_length)), starts, stops)
    assert first > 1 and spans == [([0, 0], [41, 65 - first])]  # with the frame that half a block is in
    assert frames[0, first:, 0].tolist() == list(range(64 - first))


@pytest.mark.parametrize("architecture", ["mdct", "gain_shape"])
def test_networks_that_multiply_in_bfloat16_are_near(architecture):
    codec, clip = trained(architecture), clips((6000,))[0]
    near = codec.with_matmul_precision("bfloat16")
    assert (codec.matmul_precision, near.matmul_precision) == ("default", "bfloat16")
    assert near.fingerprint == codec.fingerprint and near.with_matmul_precision("default").module == codec.module
    codes = codec.encode(clip)
    for exact, rounded in ((codec.latents, near.latents), (codec.synthesize, near.synthesize)):
        given = clip if exact == codec.latents else codec.dequantize(codes)
        one, other = np.asarray(exact(given)), np.asarray(rounded(given))
        assert 0 < np.linalg.norm(other - one) < 5e-3 * np.linalg.norm(one) and other.dtype == np.float32


def test_one_beam_of_a_codec_that_multiplies_in_bfloat16_has_rounded_products():
    codec = trained("gain_shape", model__rvq__beams=8)
    greedy, latents = codec.with_beams(1), codec.latents(clips((6000,))[0])
    rounded = greedy.with_matmul_precision("bfloat16")
    for fewer in (1, 2, None):
        off = np.mean(np.asarray(rounded.quantize(latents, fewer)) != np.asarray(greedy.quantize(latents, fewer)))
        assert off < 0.03 and (off > 0 or fewer)
    np.testing.assert_array_equal(
        codec.with_matmul_precision("bfloat16").quantize(latents), codec.quantize(latents)
    )  # more have them in any case


def test_a_matmul_precision_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match='matmul_precision is "float16", expected "default" or "bfloat16"'):
        trained().with_matmul_precision("float16")
    with pytest.raises(ValueError, match="networks are convolutions"):
        trained("seanet").with_matmul_precision("bfloat16")
