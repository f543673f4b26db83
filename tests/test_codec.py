"""The codec as a whole: its parameters, lengths, padding, causality, rates, and what it refuses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodec import codec
from jaxcodec.codec import Codec
from jaxcodec.quantizers import rvq
from tests import support

MDCT_BLOCK = {
    "DepthwiseConv_0/kernel": (3, 8),
    "LayerNorm_0/scale": (8,),
    "LayerNorm_0/bias": (8,),
    "Dense_0/kernel": (8, 32),
    "Dense_0/bias": (32,),
    "Dense_1/kernel": (32, 8),
    "Dense_1/bias": (8,),
    "layer_scale": (8,),
}


def _mdct_network(inputs, outputs):
    ends = {
        "input/kernel": (inputs, 8),
        "input/bias": (8,),
        "LayerNorm_0/scale": (8,),
        "LayerNorm_0/bias": (8,),
        "output/kernel": (8, outputs),
        "output/bias": (outputs,),
    }
    return ends | {f"ConvNeXtBlock_0/{name}": shape for name, shape in MDCT_BLOCK.items()}


def _convolutions(**kernels):
    names = {name.replace("__", "/"): shape for name, shape in kernels.items()}
    biases = {f"{name}/Conv_0/bias": shape[-1:] for name, shape in names.items()}
    return biases | {f"{name}/Conv_0/kernel": shape for name, shape in names.items()}


NETWORKS = {
    "mdct": (_mdct_network(16, 8), _mdct_network(8, 16)),
    "seanet": (
        _convolutions(
            Conv_0=(7, 1, 8),
            ResidualUnit_0__Conv_0=(3, 8, 4),
            ResidualUnit_0__Conv_1=(1, 4, 8),
            Conv_1=(4, 8, 16),
            ResidualUnit_1__Conv_0=(3, 16, 8),
            ResidualUnit_1__Conv_1=(1, 8, 16),
            Conv_2=(8, 16, 32),
            Conv_3=(3, 32, 8),
        ),
        _convolutions(
            Conv_0=(7, 8, 32),
            UpsamplingConv_0__Conv_0=(3, 32, 64),
            ResidualUnit_0__Conv_0=(3, 16, 8),
            ResidualUnit_0__Conv_1=(1, 8, 16),
            UpsamplingConv_1__Conv_0=(3, 16, 16),
            ResidualUnit_1__Conv_0=(3, 8, 4),
            ResidualUnit_1__Conv_1=(1, 4, 8),
            Conv_1=(7, 8, 1),
        ),
    ),
}


class Bench:
    """A codec in mid-training with its two halves compiled: latents, codes and audio out of NumPy arrays."""

    def __init__(self, architecture, causal=False, dtype="float32"):
        self.model = support.make_model(support.small_config(architecture, model__causal=causal, model__dtype=dtype))
        self.state = trained_state(architecture)
        self.variables = self.model.collections(self.state.params, self.state.quantizer)
        self._run = jax.jit(self.model.apply)
        self._decode = jax.jit(self._decode_codes, static_argnums=2)

    def run(self, audio, lengths=None, num_codebooks=(4,), variables=None):
        """`CodecOutput` of audio (B, S)."""
        lengths = _full(audio) if lengths is None else lengths
        rates = jnp.broadcast_to(jnp.array(num_codebooks), lengths.shape)
        return self._run(self.variables if variables is None else variables, audio, lengths, rates)

    def decode(self, codes, num_samples):
        """Codes (B, Q', T) to audio (B, num_samples)."""
        return np.asarray(self._decode(codes, jnp.full(len(codes), num_samples), num_samples))

    def _decode_codes(self, codes, lengths, num_samples):
        z_q = self.model.apply(self.variables, codes, method=Codec.dequantize)
        return self.model.apply(self.variables, z_q, lengths, num_samples, method=Codec.synthesize_clips)

    def clips(self):
        """Three clips of 20 hops: the one shape that most tests share, to compile once."""
        return support.speech_like(3, 20 * self.model.hop_length)


@functools.cache
def trained_state(architecture):
    """A state with the marks of training."""
    return support.trained_state(support.small_config(architecture))


def _full(audio):
    return np.full(len(audio), audio.shape[1])


bench = functools.cache(Bench)


def test_parameters_are_exactly_these(architecture):
    state = trained_state(architecture)
    paths = jax.tree.leaves_with_path(state.params)
    actual = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in paths}
    encoder, decoder = NETWORKS[architecture]
    expected = {"decoder/output_scale": ()}
    expected |= {f"encoder/network/{name}": shape for name, shape in encoder.items()}
    expected |= {f"decoder/network/{name}": shape for name, shape in decoder.items()}
    assert actual == expected
    assert state.params["decoder"]["output_scale"] == 2.5
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    books = {name: array.shape for name, array in vars(state.quantizer).items()}
    assert books == {"centroids": (4, 16, 8), "counts": (4, 16), "sums": (4, 16, 8)}


def test_decoded_length_is_the_input_length_at_every_length(architecture):
    model, variables = bench(architecture).model, bench(architecture).variables
    for num_samples in (*range(1, 2 * model.hop_length + 2), 319, 640, 700, 16001):
        audio, lengths = jnp.zeros((1, num_samples)), jnp.array([num_samples])
        output = jax.eval_shape(model.apply, variables, audio, lengths)
        assert output.audio.shape == (1, num_samples)
        assert output.quantized.codes.shape == (1, 4, model.num_frames(num_samples))


@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_clip_has_the_codes_and_the_audio_it_has_alone_at_every_length(architecture, causal):
    codec_bench, lengths = bench(architecture, causal), np.arange(261)
    audio = support.speech_like(261, 260)
    mask = np.arange(260) < lengths[:, None]
    padded = codec_bench.run(
        np.where(mask, audio, 0.5), lengths
    )  # what lies beyond a length is ignored, whatever it is
    frames = codec_bench.model.num_frames(lengths)
    np.testing.assert_array_equal(padded.frame_mask, np.arange(padded.frame_mask.shape[1]) < frames[:, None])
    np.testing.assert_array_equal(np.asarray(padded.audio)[~mask], 0.0)
    np.testing.assert_array_equal(padded.latents * ~padded.frame_mask[..., None], 0.0)
    for num_samples in (1, 65):
        alone = codec_bench.run(audio[num_samples, None, :num_samples])
        frames = alone.quantized.codes.shape[2]
        np.testing.assert_array_equal(padded.quantized.codes[num_samples, :, :frames], alone.quantized.codes[0])
        np.testing.assert_allclose(padded.audio[num_samples, :num_samples], alone.audio[0], atol=1e-5)
    whole = codec_bench.run(np.where(mask, audio, 0.5), np.full(261, 260))  # the padding taken for signal
    assert np.abs(whole.audio[65, :65] - padded.audio[65, :65]).max() > (0.0 if causal else 1e-4)


def test_decoding_the_codes_is_the_decoded_audio(architecture):
    codec_bench = bench(architecture)
    output = codec_bench.run(codec_bench.clips())
    assert len(np.unique(output.quantized.codes)) > 8
    decoded = codec_bench.decode(output.quantized.codes, output.audio.shape[1])
    np.testing.assert_allclose(decoded, output.audio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gain", [1e-2, 100.0])
def test_the_output_follows_the_output_scale_without_a_limit(architecture, gain):
    codec_bench = bench(architecture)
    decoder, audio = codec_bench.state.params["decoder"], codec_bench.clips()
    louder = codec_bench.state.params | {"decoder": decoder | {"output_scale": gain * decoder["output_scale"]}}
    variables = codec_bench.variables | {"params": louder}
    decoded = [codec_bench.run(audio, variables=x).audio for x in (codec_bench.variables, variables)]
    np.testing.assert_allclose(decoded[1], gain * decoded[0], rtol=1e-5, atol=1e-6 * gain)
    assert np.abs(decoded[1]).max() > 10 or gain < 1  # far beyond full scale


@pytest.mark.parametrize(("name", "look_ahead"), [("mdct", 1), ("seanet", 0)])
def test_a_causal_codec_ignores_the_future(name, look_ahead):
    codec_bench, frame = bench(name, True), 9
    hop_length, audio = codec_bench.model.hop_length, codec_bench.clips()
    cut = frame * hop_length  # code frame t sees samples up to (t + 1) * hop_length, and no further
    edited = audio * (np.arange(audio.shape[1]) < cut)
    codes = [np.asarray(codec_bench.run(x).quantized.codes) for x in (audio, edited)]
    np.testing.assert_array_equal(codes[0][..., :frame], codes[1][..., :frame])
    assert np.any(codes[0][..., frame] != codes[1][..., frame])  # the edit is visible right after the cut
    decoded = [codec_bench.decode(x, audio.shape[1]) for x in codes]
    heard = cut - look_ahead * hop_length  # a block of samples needs the MDCT frames at both its ends
    np.testing.assert_allclose(decoded[0][:, :heard], decoded[1][:, :heard], atol=1e-6)
    assert np.abs(decoded[0] - decoded[1])[:, heard : heard + hop_length].max() > 1e-4


def test_a_codec_that_is_not_causal_sees_the_future(architecture):
    codec_bench, frame = bench(architecture), 9
    audio = codec_bench.clips()
    edited = audio * (np.arange(audio.shape[1]) < frame * codec_bench.model.hop_length)
    latents = [codec_bench.run(x).latents[:, frame - 1] for x in (audio, edited)]
    assert np.any(latents[0] != latents[1])


def test_inner_codes_move_with_a_shift_by_whole_hops(architecture):
    codec_bench, edge = bench(architecture), 4
    hop_length = codec_bench.model.hop_length
    audio = support.speech_like(3, 24 * hop_length)

    def codes(start):
        return np.asarray(codec_bench.run(audio[:, start : start + 20 * hop_length]).quantized.codes)

    still, moved = codes(0), codes(3 * hop_length)
    np.testing.assert_array_equal(still[..., edge + 3 : 20 - edge], moved[..., edge : 17 - edge])
    assert np.mean(codes(hop_length // 2)[..., edge:-edge] != still[..., edge:-edge]) > 0.1  # not so by half a hop


def test_fewer_codebooks_are_a_prefix_of_the_codes(architecture):
    codec_bench, counts = bench(architecture), (1, 3, 4)
    audio = codec_bench.clips()
    output, everything = codec_bench.run(audio, None, counts), codec_bench.run(audio)
    for clip, count in enumerate(counts):
        prefix = codec_bench.decode(output.quantized.codes[:, :count], audio.shape[1])[clip]
        np.testing.assert_allclose(output.audio[clip], prefix, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(everything.audio[2], output.audio[2])
    assert np.abs(everything.audio[:2] - output.audio[:2]).max(axis=1).min() > 1e-3


def test_the_gradient_passes_the_quantizer_as_if_it_were_the_identity(architecture):
    codec_bench = bench(architecture)
    model, audio = codec_bench.model, codec_bench.clips()
    lengths, params = _full(audio), codec_bench.state.params
    z_q = rvq.keep_codebooks(codec_bench.run(audio).quantized.trace.stages, jnp.full(3, 4))

    def apply(params, *args, method=None):
        return model.apply(model.collections(params, codec_bench.state.quantizer), *args, method=method)

    @jax.jit
    def by_hand(params):
        def power(latents):
            return jnp.mean(apply(params, latents, lengths, audio.shape[1], method=Codec.synthesize_clips) ** 2)

        _, encoder = jax.vjp(lambda p: apply(p, audio, np.ones(audio.shape, bool), method=Codec.analyze), params)
        return encoder(jax.grad(power)(z_q))[0]["encoder"]

    straight_through = jax.jit(jax.grad(lambda p: jnp.mean(apply(p, audio, lengths).audio ** 2)))(params)["encoder"]
    expected = by_hand(params)
    scale = float(optax.tree.norm(expected))
    assert scale > 1e-3
    support.assert_trees_close(straight_through, expected, rtol=1e-3, atol=1e-4 * scale)


def test_bfloat16_is_the_networks_affair_alone(architecture):
    half, exact = bench(architecture, False, "bfloat16"), bench(architecture)
    audio = half.clips()
    output, reference = half.run(audio), exact.run(audio)
    floats = (output.audio, output.latents, output.quantized.trace.stages, output.quantized.trace.residuals)
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    error = np.linalg.norm(output.latents - reference.latents) / np.linalg.norm(reference.latents)
    assert 1e-5 < error < 5e-2
    initial = jax.eval_shape(half.model.init, jax.random.key(0), audio, _full(audio))
    assert {x.dtype for x in jax.tree.leaves(initial)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("overrides", "frame_rate", "bits_per_second"),
    [
        (dict(mdct__hop_length=320, rvq__num_codebooks=16, rvq__codebook_size=1024), 50.0, 8000.0),
        (dict(mdct__hop_length=160, rvq__num_codebooks=8, rvq__codebook_size=1024), 100.0, 8000.0),
        (
            dict(architecture="seanet", seanet__strides=(2, 4, 5, 8), rvq__num_codebooks=3, rvq__codebook_size=64),
            50.0,
            900.0,
        ),
        (dict(mdct__hop_length=320, sample_rate=22050, rvq__num_codebooks=1, rvq__codebook_size=2), 68.90625, 68.90625),
    ],
)
def test_rates_are_exact(overrides, frame_rate, bits_per_second):
    config = support.small_config(**{f"model__{name}": value for name, value in overrides.items()})
    model = support.make_model(config)
    assert model.frame_rate == frame_rate
    assert model.bits_per_second(model.quantizer.num_codebooks) == bits_per_second


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "architecture",
            "wavenet",
            'model.architecture is "wavenet", expected "mdct" or "transform" or "gain_shape" or "seanet".',
        ),
        ("quantizer", "fsq", 'model.quantizer is "fsq", expected "rvq" or "scalar".'),
        ("dtype", "float16", 'model.dtype is "float16", expected "float32" or "bfloat16".'),
        ("rvq.num_codebooks", 0, "model.rvq.num_codebooks is 0, expected a whole number from 1 to 256."),
        ("rvq.codebook_size", 1, "model.rvq.codebook_size is 1, expected a whole number from 2 to 65536."),
        ("latent_dim", -3, "model.latent_dim is -3, expected a whole number from 1 to 4096."),
        ("width", 0, "model.width is 0, expected a whole number from 1 to 4096."),
        ("mdct.hop_length", 0, "model.mdct.hop_length is 0, expected a whole number from 1 to 2048."),
        ("mdct.kernel_size", 0, "model.mdct.kernel_size is 0, expected a whole number from 1 to 64."),
        ("mdct.encoder_depth", -1, "model.mdct.encoder_depth is -1, expected a whole number from 0 to 16."),
        ("sample_rate", 0, "model.sample_rate is 0, expected a whole number from 1 to 1000000."),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(name, value, message):
    config = support.small_config(**{f"model.{name}": value})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        codec.from_config(config.model, config.fixes)


def test_strides_and_latents_that_cannot_work_are_refused_in_one_line():
    for overrides, message in (
        (
            dict(architecture="seanet", model__seanet__strides=(2, 0)),
            r"model.seanet.strides is \(2, 0\), expected .* at least 1 whose product is at most 2048.$",
        ),
        (dict(model__latent_dim=17), "model.latent_dim is 17, .* at most hop_length = 16 coefficients.*identity"),
    ):
        config = support.small_config(**overrides)
        with pytest.raises(ValueError, match=message):
            codec.from_config(config.model, config.fixes)
