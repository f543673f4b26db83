"""Codecs on disk: what is written is what is read, whatever the kind of file, and damage has a name."""

import json
import re

import jax
import numpy as np
import pytest
from etils import epath

import jaxcodec
from jaxcodec import bundled, recipe
from jaxcodec.inference import pretrained
from jaxcodec.training import checkpoint
from tests import support


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
        checkpoints.save(state, 3.0)
        checkpoints.save(state.replace(step=state.step + 1, params=jax.tree.map(lambda x: 2 * x, state.params)), 1.0)
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
    inner |= {"format": "jaxcodec 1", "config": inner["config"] | {"model": flat_model(codec.config)}}
    header["__metadata__"]["jaxcodec"] = json.dumps(inner)
    text = json.dumps(header).encode()
    (tmp_path / "old.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert jaxcodec.load(tmp_path / "old.safetensors").fingerprint == codec.fingerprint


def test_the_bundled_model_keeps_its_name():
    assert jaxcodec.load().fingerprint.hex() == "73887b6e62945ab5"  # files made with it say so


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
        checkpoints.save(state, 1.0)
    (saved,) = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name == "config" and "mdct" in p.read_text()]
    text = json.loads(saved.read_text())
    assert "rvq" in text["model"]
    saved.write_text(json.dumps(text | {"model": json.loads(json.dumps(flat_model(config)))}))
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        support.assert_trees_close(checkpoints.restore(state).params, state.params, rtol=0)
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
