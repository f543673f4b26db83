"""The mean of models."""

import sys

import jax
import numpy as np
import pytest

import jaxcodec
from jaxcodec.inference import pretrained
from jaxcodec.quantizers import layout
from tests import support
from tools import average_models


@pytest.fixture(scope="module")
def codec():
    return support.trained_codec(support.small_config())


def moved(codec, factor):
    """The codec with other numbers everywhere."""
    params, constants = jax.tree.map(lambda x: factor * x, (codec.params, codec.constants))
    return codec.replace(params=params, constants=constants)


def test_the_mean_has_the_mean_of_every_number_of_weights_and_codebooks(codec, tmp_path, monkeypatch):
    for name, factor in (("a", 0.5), ("b", 2.0)):
        pretrained.save(moved(codec, factor), tmp_path / f"{name}.safetensors")
    models = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["average_models.py", *models, "-o", str(tmp_path / "mean.safetensors")])
    average_models.main()
    mean = jaxcodec.load(tmp_path / "mean.safetensors").arrays
    assert mean.keys() == codec.arrays.keys() and any(name.endswith("centroids") for name in mean)
    for name, array in codec.arrays.items():
        np.testing.assert_allclose(mean[name], 1.25 * array, rtol=1e-6)


def test_a_model_that_is_not_told_its_rate_and_one_that_is_have_a_mean_that_is():
    recipe = dict(model__causal=True, model__latent_dim=24 + layout.NUM_BANDS, model__gain_shape__told_rate=False)
    plain = support.trained_codec(support.small_config("gain_shape", **recipe))
    told = pretrained.told_rate(plain)
    mean = average_models.average([moved(told, 3.0), plain])
    assert mean.config == told.config != plain.config
    for name, array in told.arrays.items():
        np.testing.assert_allclose(mean.arrays[name], 2 * array, rtol=1e-6)


@pytest.mark.parametrize(("part", "kept"), [("decoder", True), ("encoder", False), ("codebooks", False)])
def test_tables_of_the_entropy_coder_stay_where_codes_do(codec, part, kept):
    tables = object()
    other = moved(codec, 2.0)
    if part == "codebooks":
        other = codec.replace(constants=other.constants)
    else:
        other = codec.replace(params={**codec.params, part: other.params[part]})
    mean = average_models.average([other, codec.replace(entropy=tables)])
    assert mean.entropy is (tables if kept else None)


def test_models_of_different_recipes_have_no_mean(codec, tmp_path, monkeypatch):
    other = support.trained_codec(support.small_config("gain_shape", model__causal=True))
    pretrained.save(codec, tmp_path / "a.safetensors")
    pretrained.save(other, tmp_path / "b.safetensors")
    models = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["average_models.py", *models, "-o", str(tmp_path / "mean.safetensors")])
    with pytest.raises(SystemExit, match=r"average_models.py: models of different recipes have no mean\."):
        average_models.main()
    assert not (tmp_path / "mean.safetensors").exists()
