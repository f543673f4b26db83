"""Codecs on disk: what is written is what is read, whatever the kind of file, and damage has a name."""

import json
import re
import resource
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import jaxcodec
from configs import seed, telugu, telugu_gan, telugu_mdct, telugu_vbr, tiny
from jaxcodec import audio, bundled, codec as codec_module, recipe
from jaxcodec.inference import pretrained
from jaxcodec.nn import losses, metrics
from jaxcodec.training import checkpoint
from tests import fuzz_models, support


@pytest.fixture(scope="module")
def codec():
    """A small codec with the marks of training."""
    return support.trained_codec(support.small_config(model__causal=True))


def test_a_safetensors_file_holds_the_whole_codec(codec, tmp_path):
    written = jaxcodec.save(codec, tmp_path / "codec.safetensors")
    loaded = jaxcodec.load(tmp_path / "codec.safetensors")
    support.assert_trees_close(loaded, codec, rtol=0)
    assert loaded.module == codec.module and loaded.config == codec.config
    assert loaded.fingerprint == codec.fingerprint == written.fingerprint


def test_half_precision_is_half_the_size_and_its_own_model(codec, tmp_path):
    jaxcodec.save(codec, tmp_path / "full.safetensors")
    written = jaxcodec.save(codec, tmp_path / "half.safetensors", dtype="float16")
    sizes = [len(pretrained.to_bytes(codec, dtype)) for dtype in ("float32", "float16")]
    assert 0.4 < sizes[1] / sizes[0] < 0.75
    loaded = jaxcodec.load(str(tmp_path / "half.safetensors"))
    support.assert_trees_close(loaded, written, rtol=0)
    support.assert_trees_close(loaded, codec, rtol=1e-3, atol=1e-6)
    assert loaded.fingerprint != codec.fingerprint
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}


def test_the_fingerprint_names_weights_codebooks_and_recipe(codec):
    other = [
        codec.replace(params=jax.tree.map(lambda x: x + 1e-6, codec.params)),
        codec.replace(constants={"centroids": codec.constants["centroids"] + 1e-6}),
        support.trained_codec(support.small_config(model__causal=False)),
    ]
    fingerprints = {c.fingerprint for c in (codec, *other)}
    assert len(fingerprints) == 4 and {len(f) for f in fingerprints} == {8}


def test_the_checkpoints_of_a_run_load_from_either_directory(tmp_path):
    config = support.small_config()
    state = support.trained_state(config)
    with checkpoint.Checkpoints(str(tmp_path / "checkpoints"), config) as checkpoints:
        checkpoints.save(state, checkpoint.Progress(), 3.0)
        louder = state.replace(step=state.step + 1, params=jax.tree.map(lambda x: 2 * x, state.params))
        checkpoints.save(louder, checkpoint.Progress(), 1.0)
    best = jaxcodec.load(tmp_path)
    support.assert_trees_close(best.params, state.params, rtol=0)
    latest = jaxcodec.load(tmp_path / "checkpoints", best=False)
    support.assert_trees_close(latest.params, jax.tree.map(lambda x: 2 * x, state.params), rtol=0)
    np.testing.assert_array_equal(best.constants["centroids"], state.quantizer.centroids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file that can be read"),
        (b"RIFF" + bytes(100), "is not a safetensors file that can be read"),
        (None, "There is no codec at"),
    ],
)
def test_a_file_that_holds_no_codec_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "codec.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        jaxcodec.load(path)
    assert "\n" not in str(error.value)


def test_other_safetensors_files_and_cut_ones_are_refused(codec, tmp_path):
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros(3)}))
    with pytest.raises(ValueError, match='holds no codec of this version: its format is "None", not "jaxcodec 2"'):
        jaxcodec.load(path)
    path.write_bytes(pretrained.to_bytes(codec)[:-5])
    with pytest.raises(ValueError, match="is not a safetensors file that can be read"):
        jaxcodec.load(path)


def test_the_same_codec_is_the_same_file(codec):
    assert len({pretrained.to_bytes(codec) for _ in range(4)}) == 1


def flat_model(config):
    """The section `model` as versions before 0.2 wrote it."""
    model = config.to_dict()["model"]
    nested = [value for value in model.values() if isinstance(value, dict)]
    flat = {name: value for name, value in model.items() if not isinstance(value, dict) and name != "quantizer"}
    return flat | {name: value for section in nested for name, value in section.items()}


def test_a_flat_recipe_of_an_older_version_is_the_same_codec(codec, tmp_path):
    assert recipe.upgraded(flat_model(codec.config)) == codec.config.to_dict()["model"]
    assert recipe.flat(codec.config.to_dict()["model"]) == flat_model(codec.config)
    data = pretrained.to_bytes(codec)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["jaxcodec"])
    del inner["checksum"]  # those versions wrote none
    inner |= {"format": "jaxcodec 1", "config": inner["config"] | {"model": flat_model(codec.config)}}
    header["__metadata__"]["jaxcodec"] = json.dumps(inner)
    text = json.dumps(header).encode()
    (tmp_path / "old.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert jaxcodec.load(tmp_path / "old.safetensors").fingerprint == codec.fingerprint


def test_the_bundled_model_keeps_its_name():
    assert jaxcodec.load().fingerprint.hex() == "7527c501f6e6847a"  # files made with it say so


@pytest.mark.parametrize(("codebooks", "snr", "loudness", "pesq"), [(8, 7.5, 0.44, 1.0), (16, 11.55, 0.367, 0.74)])
def test_the_bundled_tokens_sound_as_measured(codebooks, snr, loudness, pesq):
    codec = jaxcodec.load("tokens")
    paths = (Path(jaxcodec.__file__).parent / "datasets/sample/validation").rglob("*.flac")
    clips = sorted((audio.load(path) for path in paths), key=len)[:4]
    lengths = [len(clip) for clip in clips]
    decoded = codec.decode(codec.encode(clips, num_codebooks=codebooks), lengths)
    pairs = [(x[None], y[None], np.array([len(x)])) for x, y in zip(clips, decoded, strict=True)]
    assert np.mean([metrics.snr(*pair) for pair in pairs]) > snr
    assert np.mean([losses.loudness_loss(*pair) for pair in pairs]) < loudness
    assert np.mean([losses.pesq_loss(*pair) for pair in pairs]) < pesq


def test_the_bundled_models_are_known_by_their_fingerprints_without_being_loaded():
    fingerprints = {name: jaxcodec.load(name).fingerprint for name in bundled.BUNDLED}
    assert {name: fingerprint for fingerprint, name in bundled.names().items()} == fingerprints
    assert [bundled.quantizer(name) for name in ("files", "tokens")] == ["scalar", "rvq"]
    assert jaxcodec.load().fingerprint == jaxcodec.load(None).fingerprint == fingerprints["tokens"]
    for fingerprint in fingerprints.values():
        assert pretrained.load_for(fingerprint).fingerprint == fingerprint
    with pytest.raises(ValueError, match="made with the model 0001020304050607, which is not bundled: give that"):
        pretrained.load_for(bytes(range(8)))


def test_a_snapshot_of_an_older_version_resumes_and_loads(config, model, state, tmp_path):
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        checkpoints.save(state, checkpoint.Progress(seconds=5.0), 1.0)
    shutil.rmtree(tmp_path / str(int(state.step)) / "progress")
    (saved,) = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name == "config" and "mdct" in p.read_text()]
    text = json.loads(saved.read_text())
    assert "rvq" in text["model"]
    saved.write_text(json.dumps(text | {"model": json.loads(json.dumps(flat_model(config)))}))
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        restored, progress = checkpoints.restore(state)
    support.assert_trees_close(restored.params, state.params, rtol=0)
    assert progress == checkpoint.Progress()
    _, quantizer, loaded = checkpoint.load_model(str(tmp_path))
    assert loaded.model.rvq.num_codebooks == config.model.rvq.num_codebooks
    np.testing.assert_array_equal(quantizer.counts, state.quantizer.counts)
    other = support.small_config(model__rvq__num_codebooks=3)
    refused = pytest.raises(ValueError, match=r"has model.rvq.num_codebooks = 4, this config says 3")
    with checkpoint.Checkpoints(str(tmp_path), other) as checkpoints, refused:
        checkpoints.restore(state)


def test_weights_that_are_not_those_of_the_recipe_are_refused(codec, tmp_path):
    encoder = {name: value for name, value in codec.params.items() if name == "encoder"}
    (tmp_path / "half.safetensors").write_bytes(pretrained.to_bytes(codec.replace(params=encoder)))
    with pytest.raises(ValueError, match=r"params/decoder/network/.* has shape None, its recipe has \("):
        jaxcodec.load(tmp_path / "half.safetensors")
    fewer = codec.replace(constants={"centroids": codec.constants["centroids"][:2]})
    (tmp_path / "fewer.safetensors").write_bytes(pretrained.to_bytes(fewer))
    with pytest.raises(ValueError, match=r"codebooks/centroids has shape \(2, 16, 8\), its recipe has \(4, 16, 8\)"):
        jaxcodec.load(tmp_path / "fewer.safetensors")


def test_a_save_that_fails_leaves_what_was_there(codec, tmp_path, monkeypatch):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(b"precious")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        jaxcodec.save(codec, path)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_stored_is_refused(codec, tmp_path):
    with pytest.raises(ValueError, match='dtype is "int8", expected "float32" or "float16"'):
        jaxcodec.save(codec, tmp_path / "x", dtype="int8")
    far = codec.replace(constants={"centroids": codec.constants["centroids"] + 1e6})
    with pytest.raises(ValueError, match="codebooks/centroids has values that float16 cannot hold"):
        jaxcodec.save(far, tmp_path / "x", dtype="float16")
    assert not (tmp_path / "x").exists()


def refused(data, folder):
    """The one line with which a model file is refused."""
    (folder / "bad.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"^\S*bad\.safetensors\b") as error:
        jaxcodec.load(folder / "bad.safetensors")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["params/decoder/output_scale", "params/encoder/network/input/kernel", "codebooks/centroids"]
)
def test_a_weight_that_is_no_number_is_named(codec, tmp_path, name, value):
    header, said, body = fuzz_models.take_apart(pretrained.to_bytes(codec))
    at = header[name]["data_offsets"][0]
    body = body[:at] + np.float32(value).tobytes() + body[at + 4 :]
    del said["checksum"]
    problem = refused(fuzz_models.assemble(header, said, body), tmp_path)
    assert f"{name} has 1 NaN or infinite values" in problem


def test_a_run_whose_weights_are_no_numbers_is_refused(tmp_path, monkeypatch):
    config = support.small_config()
    state = support.trained_state(config)
    state.params["decoder"]["output_scale"] = np.float32(np.nan)
    monkeypatch.setattr(checkpoint, "_check_finite", lambda state: None)  # a version that did not look
    with checkpoint.Checkpoints(str(tmp_path / "checkpoints"), config) as checkpoints:
        checkpoints.save(state, checkpoint.Progress(), 3.0)
    with pytest.raises(ValueError, match="params/decoder/output_scale has 1 NaN or infinite values"):
        jaxcodec.load(tmp_path)


IMPOSSIBLE = [
    ("model.mdct.encoder_depth", 10**7, "model.mdct.encoder_depth is 10000000, expected a whole number from 0 to 16."),
    ("model.mdct.kernel_size", 10**9, "model.mdct.kernel_size is 1000000000, expected a whole number from 1 to 64."),
    ("model.sample_rate", 10**30, f"model.sample_rate is {10**30}, expected a whole number from 1 to 1000000."),
    ("model.seanet.strides", [2] * 60, "model.seanet.strides is [2, 2, 2"),
    ("model.seanet.strides", 8, "model.seanet.strides is 8, expected one to eight whole numbers"),
    ("model.width", 256.5, "model.width is 256.5, expected a whole number from 1 to 4096."),
    ("model.width", "256", "model.width is 256, expected a whole number from 1 to 4096."),
    ("model.width", True, "model.width is True, expected a whole number"),
    ("model.width", 10**400, "model.width is 10000"),
    ("model.causal", 1, "model.causal is 1, expected true or false."),
    ("model.output_scale", float("nan"), "model.output_scale is nan, expected a number from 1e-06 to 1e+06."),
    ("model.output_scale", 0, "model.output_scale is 0, expected a number from"),
    ("model.architecture", ["mdct"], "model.architecture is ['mdct'], expected a name."),
    ("model.architecture", "wavenet", 'model.architecture is "wavenet", expected "mdct" or'),
    ("model.quantizer", None, "model.quantizer is None, expected a name."),
    ("model.rvq", [], "model.rvq is [], expected a section of the recipe."),
    ("model.rvq.beams", 65, "model.rvq.beams is 65, expected a whole number from 1 to 64."),
    ("model.vocoder", {}, "model.vocoder is unknown to this version."),
    ("model.keys", 3, "model.keys is unknown to this version."),
    ("model.a\nb", 3, r"'model.a\nb' is unknown to this version."),
    ("fixes.ninth", True, "fixes.ninth is unknown to this version."),
    ("fixes.no_tanh", "yes", "fixes.no_tanh is yes, expected true or false."),
    ("fixes", 3, "fixes is 3, expected a section of the recipe."),
    ("model", 3, "the recipe is not one of the sections model and fixes."),
    ("data", {}, "the recipe is not one of the sections model and fixes."),
]


@pytest.mark.parametrize(("path", "value", "message"), IMPOSSIBLE)
def test_a_recipe_that_cannot_be_is_refused_by_its_field_before_anything_is_built(
    codec, tmp_path, monkeypatch, path, value, message
):
    if path != "model.architecture":
        monkeypatch.setattr(codec_module, "Codec", None)
    assert message in refused(fuzz_models.with_recipe(pretrained.to_bytes(codec), path, value), tmp_path)


@pytest.mark.parametrize(
    "path", ["model.mdct", "model.rvq", "model.mdct.kernel_size", "model.width", "fixes.no_tanh", "fixes"]
)
def test_a_recipe_with_something_missing_is_refused(codec, tmp_path, path):
    problem = refused(fuzz_models.with_recipe(pretrained.to_bytes(codec), path, None, remove=True), tmp_path)
    assert f"{path} is missing" in problem or f"{path} is None, expected a section" in problem or path == "fixes"


def test_every_recipe_of_this_repository_is_within_the_bounds_and_training_configs_are_checked_too():
    for module in (seed, telugu, telugu_gan, telugu_mdct, telugu_vbr, tiny):
        config = module.get_config()
        codec_module.from_config(config.model, config.fixes)
    config.model.width = 4097
    with pytest.raises(ValueError, match=r"model\.width is 4097, expected a whole number from 1 to 4096"):
        codec_module.from_config(config.model, config.fixes)


def test_a_recipe_that_claims_more_than_the_file_holds_costs_nothing(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "eval_shape", None)
    data = fuzz_models.with_recipe(pretrained.to_bytes(codec), "model.mdct.hop_length", 2048)
    weights = sum(array.size for array in codec.arrays.values())
    least = 8 * (2048 + 2 * 3)
    assert f"a codec of its recipe has at least {least} weights, the file has {weights}" in refused(data, tmp_path)


def test_an_entropy_model_that_is_none_is_refused(codec, tmp_path):
    header, said, body = fuzz_models.take_apart(pretrained.to_bytes(codec))
    del said["checksum"]
    assert "its entropy model is none" in refused(fuzz_models.assemble(header, said | {"entropy": []}, body), tmp_path)


def test_any_changed_byte_of_a_model_is_noticed(codec, tmp_path):
    data = pretrained.to_bytes(codec)
    body = 8 + int.from_bytes(data[:8], "little")
    for at in range(body, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        assert "does not match its checksum" in refused(bytes(flipped), tmp_path)
    header, said, tensors = fuzz_models.take_apart(data)
    said["config"]["model"]["output_scale"] = 2.0
    assert "does not match its checksum" in refused(fuzz_models.assemble(header, said, tensors), tmp_path)


def test_a_header_that_lies_about_its_length_or_its_tensors_is_refused_without_memory(codec, tmp_path):
    data = pretrained.to_bytes(codec)
    header, said, body = fuzz_models.take_apart(data)
    first, second = sorted(set(header) - {"__metadata__"})[:2]
    lies = {
        "longer than the file": (2**31).to_bytes(8, "little") + data[8:],
        "as long as can be": (2**64 - 1).to_bytes(8, "little") + data[8:],
        "overlapping": header | {second: header[second] | {"data_offsets": header[first]["data_offsets"]}},
        "beyond the end": header | {second: header[second] | {"data_offsets": [0, 2**50]}},
        "large": header | {second: header[second] | {"shape": [2**40, 2**20]}},
        "negative": header | {second: header[second] | {"shape": [-1]}},
    }
    for lie in lies.values():
        lie = lie if isinstance(lie, bytes) else fuzz_models.assemble(lie, said, body)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        try:
            assert "is not a safetensors file that can be read" in refused(lie, tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        finally:
            tracemalloc.stop()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 2**10  # kB


def test_a_tensor_of_another_kind_of_number_is_refused(codec, tmp_path):
    header, said, body = fuzz_models.take_apart(pretrained.to_bytes(codec))
    del said["checksum"]
    for tensor in header.values():
        if "dtype" in tensor:
            tensor["dtype"] = "I32"
    assert "holds int32, expected floating point" in refused(fuzz_models.assemble(header, said, body), tmp_path)
