"""Exported codecs, StableHLO and ONNX: the results of the package itself, at any size, in processes that do not have it."""

import functools
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodec
from jaxcodec import export
from jaxcodec.export import artifacts
from tests import support

ROOT = pathlib.Path(__file__).parent.parent
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx or onnxruntime is not installed (extra: onnx)",
)


@functools.cache
def tiny_codec(architecture="mdct", causal=True, dtype="float32"):
    """A codec whose codes say something."""
    beams = {"model__rvq__beams": 3} if architecture == "gain_shape" else {}
    config = support.small_config(architecture, model__causal=causal, model__dtype=dtype, **beams)
    return support.trained_codec(config)


def clips(codec):
    """Clips of whole blocks and not, short and long."""
    return [support.speech_like(1, int(n * codec.hop_length), seed=int(n))[0] for n in (64, 71.3, 100, 1, 9.5)]


def padded(codec, audio, blocks):
    """A batch of one, in so many blocks; what lies beyond the clip must not matter."""
    return np.pad(audio, (0, blocks * codec.hop_length - len(audio)), constant_values=0.5)[None]


@pytest.fixture(scope="module", params=["mdct", "seanet", "gain_shape"])
def stablehlo(request, tmp_path_factory):
    codec, directory = tiny_codec(request.param), tmp_path_factory.mktemp("stablehlo")
    paths = export.export_stablehlo(codec, directory)
    assert [path.name for path in paths] == ["encode.stablehlo", "decode.stablehlo", "codec.json"]
    return codec, directory


def call(directory, name, *arguments):
    exported = jax.export.deserialize((directory / f"{name}.stablehlo").read_bytes())
    return np.asarray(exported.call(*arguments))


def test_stablehlo_gives_the_codes_and_the_audio_of_the_package_at_every_length(stablehlo):
    codec, directory = stablehlo
    for audio in clips(codec):
        blocks = -(-len(audio) // codec.hop_length)
        lengths = np.array([len(audio)], np.int32)
        codes = call(directory, "encode", padded(codec, audio, blocks), lengths)
        expected = np.asarray(jaxcodec.encode(codec, audio))
        np.testing.assert_array_equal(codes[0], expected)
        decoded = call(directory, "decode", codes, lengths)
        assert decoded.shape == (1, blocks * codec.hop_length)
        np.testing.assert_allclose(
            decoded[0, : len(audio)], jaxcodec.decode(codec, expected, len(audio)), rtol=0, atol=1e-5
        )
        assert not decoded[0, len(audio) :].any()
    assert len(np.unique(expected)) > 3  # the codes say something


def test_stablehlo_takes_batches_of_clips_of_different_lengths(stablehlo):
    codec, directory = stablehlo
    audio = clips(codec)
    batch = np.concatenate([padded(codec, clip, 110) for clip in audio])
    lengths = np.array([len(clip) for clip in audio], np.int32)
    codes = call(directory, "encode", batch, lengths)
    decoded = call(directory, "decode", codes, lengths)
    for i, clip in enumerate(audio):
        expected = np.asarray(jaxcodec.encode(codec, clip))
        np.testing.assert_array_equal(codes[i, :, : expected.shape[1]], expected)
        assert not codes[i, :, expected.shape[1] :].any()
        np.testing.assert_allclose(
            decoded[i, : len(clip)], jaxcodec.decode(codec, expected, len(clip)), rtol=0, atol=1e-5
        )


def test_stablehlo_rounds_short_clips_as_the_package_does(tmp_path):
    codec, rng = tiny_codec(), np.random.default_rng(0)
    audio = clips(codec)[4]
    frame = np.asarray(jaxcodec.latents(codec, audio))[5]
    ties = frame + 1e-7 * rng.standard_normal(codec.constants["centroids"].shape, np.float32)  # the last bits decide
    codec = codec.replace(constants={"centroids": jnp.asarray(ties)})
    export.export_stablehlo(codec, tmp_path, platforms=("cpu",))
    codes = call(tmp_path, "encode", padded(codec, audio, 10), np.array([len(audio)], np.int32))
    np.testing.assert_array_equal(codes[0], jaxcodec.encode(codec, audio))


def test_stablehlo_runs_where_the_package_is_not_imported(stablehlo, tmp_path):
    codec, directory = stablehlo
    audio = clips(codec)[2]
    np.save(tmp_path / "audio.npy", audio[None])
    code = """
        import json, pathlib, sys
        import numpy as np
        from jax import export
        exported, work = map(pathlib.Path, sys.argv[1:])
        description = json.loads((exported / "codec.json").read_text())
        encode, decode = (
            export.deserialize((exported / f"{name}.stablehlo").read_bytes()).call for name in ("encode", "decode")
        )
        audio = np.load(work / "audio.npy")
        lengths = np.array([audio.shape[1]], np.int32)
        codes = encode(audio, lengths)
        assert codes.shape[1] == description["num_codebooks"]
        np.savez(work / "results.npz", codes=codes, audio=decode(codes, lengths))
        assert not {"jaxcodec", "flax"} & set(sys.modules)
    """
    run_python(code, directory, tmp_path, cwd=tmp_path)
    results = np.load(tmp_path / "results.npz")
    np.testing.assert_array_equal(results["codes"][0], jaxcodec.encode(codec, audio))
    expected = jaxcodec.decode(codec, results["codes"][0], len(audio))
    np.testing.assert_allclose(results["audio"][0], expected, rtol=0, atol=1e-5)


def run_python(code, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_stablehlo_is_lowered_for_every_platform_asked_for(tmp_path):
    export.export_stablehlo(tiny_codec(), tmp_path, platforms=("cpu", "tpu"))
    for name in ("encode", "decode"):
        exported = jax.export.deserialize((tmp_path / f"{name}.stablehlo").read_bytes())
        assert exported.platforms == ("cpu", "tpu")
    with pytest.raises(ValueError, match='platform is "gpu", expected "cpu", "cuda"'):
        export.export_stablehlo(tiny_codec(), tmp_path, platforms=("gpu",))


def test_the_description_says_what_the_codes_mean(stablehlo):
    codec, directory = stablehlo
    description = json.loads((directory / "codec.json").read_text())
    assert description.pop("fingerprint") == codec.fingerprint.hex()
    rule = description.pop("num_frames")
    assert description == {
        "sample_rate": 16000,
        "hop_length": codec.hop_length,
        "num_codebooks": 4,
        "codebook_size": 16,
    }
    names = {"ceil": lambda x: -int(-x // 1)}
    for num_samples in (1, codec.hop_length, 1001):
        assert eval(rule, names | {"num_samples": num_samples}) == codec.num_frames(num_samples)


@needs_onnx
@pytest.mark.parametrize("architecture", ["mdct", "seanet", "gain_shape"])
@pytest.mark.parametrize("causal", [True, False])
def test_onnx_gives_the_codes_and_the_audio_of_the_package_at_every_length(architecture, causal, tmp_path):
    import onnxruntime

    codec = tiny_codec(architecture, causal)
    paths = export.export_onnx(codec, tmp_path)
    assert [path.name for path in paths] == ["encode.onnx", "decode.onnx", "codec.json"]
    encoder, decoder = (onnxruntime.InferenceSession(path.read_bytes()) for path in paths[:2])
    audio = clips(codec)
    batch = np.concatenate([padded(codec, clip, 103) for clip in audio])
    lengths = np.array([len(clip) for clip in audio], np.int32)
    codes, latents = encoder.run(["codes", "latents"], {"audio": batch, "lengths": lengths})
    assert codes.dtype == np.int32
    for i, clip in enumerate(audio):
        num_frames = codec.num_frames(len(clip))
        np.testing.assert_allclose(latents[i, :num_frames], jaxcodec.latents(codec, clip), rtol=1e-5, atol=1e-5)
        equal = codes[i, :, :num_frames] == np.asarray(jaxcodec.encode(codec, clip))
        assert equal.all(axis=0).mean() >= 0.97  # a frame near a tie may flip
    (decoded,) = decoder.run(None, {"codes": codes, "lengths": lengths})
    for i, clip in enumerate(audio):
        expected = jaxcodec.decode(codec, codes[i, :, : codec.num_frames(len(clip))], len(clip))
        np.testing.assert_allclose(decoded[i, : len(clip)], expected, rtol=0, atol=1e-5)
        assert not decoded[i, len(clip) :].any()


@needs_onnx
def test_onnx_models_carry_their_description_and_how_well_they_agreed(tmp_path):
    import onnx

    codec = tiny_codec()
    paths = export.export_onnx(codec, tmp_path)
    description = json.loads(paths[2].read_text())
    agreement = description["onnxruntime"]
    assert agreement["equal_codes"] > 0.99 and 0 < agreement["audio_error"] < 1e-5
    for path in paths[:2]:
        properties = {p.key: p.value for p in onnx.load_from_string(path.read_bytes()).metadata_props}
        assert properties["fingerprint"] == codec.fingerprint.hex()
        assert properties["num_frames"] == description["num_frames"]


@needs_onnx
def test_onnx_export_refuses_a_model_that_does_not_agree(tmp_path, monkeypatch):
    codec = tiny_codec()
    other = codec.replace(params=jax.tree.map(lambda x: 1.01 * x, codec.params))
    synthesize = functools.partial(lambda f, _, *xs: f(other, *xs), artifacts._synthesize)
    monkeypatch.setattr(artifacts, "_synthesize", synthesize)
    with pytest.raises(ValueError, match=r"results are not those of this package: \{.*audio_error"):
        export.export_onnx(codec, tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


@needs_onnx
def test_onnx_graphs_index_and_divide_as_jax_does():
    import onnxruntime

    from jaxcodec.export import onnx_graph

    def function(x, y):
        reached = jax.lax.slice(x, (0, 1), (4, 6), (2, 3)).T
        return reached[:, :1].squeeze(1), x[:, ::2] // 3, jax.lax.rem(x, jnp.full_like(x, -3)), y[1:] + 1

    x, y = np.arange(-14, 14, dtype=np.int32).reshape(4, 7), np.arange(9, dtype=np.int32)
    (size,) = jax.export.symbolic_shape("2*t + 1")
    arguments = {"x": jax.ShapeDtypeStruct(x.shape, jnp.int32), "y": jax.ShapeDtypeStruct((size,), jnp.int32)}
    model = onnx_graph.convert(function, arguments, ("a", "b", "c", "d"), {}).SerializeToString()
    results = onnxruntime.InferenceSession(model).run(None, {"x": x, "y": y})
    for actual, expected in zip(results, function(jnp.asarray(x), jnp.asarray(y)), strict=True):
        np.testing.assert_array_equal(actual, expected)


@needs_onnx
def test_onnx_export_names_a_primitive_that_it_does_not_know():
    from jaxcodec.export import onnx_graph

    arguments = {"x": jax.ShapeDtypeStruct(jax.export.symbolic_shape("t"), jnp.float32)}
    with pytest.raises(ValueError, match='does not know the primitive "cumsum"'):
        onnx_graph.convert(lambda x: (jnp.cumsum(x),), arguments, ("y",), {})


def test_onnx_export_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx: pip install 'jaxcodec\[onnx\]'\.$"):
        export.export_onnx(tiny_codec(), tmp_path)


@needs_onnx
def test_onnx_export_is_for_float32(tmp_path):
    for codec in (tiny_codec(dtype="bfloat16"), tiny_codec().with_matmul_precision("bfloat16")):
        with pytest.raises(ValueError, match="this one computes in bfloat16"):
            export.export_onnx(codec, tmp_path)


def document_blocks():
    text = (ROOT / "docs/export.md").read_text()
    return re.findall(r"^<!-- ci: export -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("with_onnx", [False, pytest.param(True, marks=needs_onnx)])
def test_the_document_is_right(with_onnx, tmp_path):
    jaxcodec.save(tiny_codec(), tmp_path / "telugu.safetensors")
    blocks = [block for block in document_blocks() if ("onnx" in block) == with_onnx]
    assert len(blocks) == (2 if with_onnx else 3)
    for block in blocks:
        packages = {"jaxcodec"} if "import jaxcodec" not in block else set()
        packages |= {"jax"} if "import onnxruntime" in block else set()
        run_python(block + f"\nimport sys; assert not set({sorted(packages)}) & set(sys.modules)", cwd=tmp_path)
