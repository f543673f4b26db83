"""Codebooks fitted together, and the tool that does it to a trained codec."""

import sys

import jax
import numpy as np
import pytest

import jaxcodec
from jaxcodec.inference import pretrained
from jaxcodec.quantizers import joint, rvq
from tests import support
from tools import refit_codebooks


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codes(num_codebooks, num_vectors, size, seed=0):
    return np.random.default_rng(seed).integers(0, size, (num_codebooks, num_vectors))


def test_the_fit_is_the_least_squares_of_the_sum():
    vectors, chosen = normal(60, 3), codes(2, 60, 4)
    design = np.concatenate([np.eye(4)[row] for row in chosen], axis=1)
    solution = np.linalg.lstsq(design, vectors, rcond=None)[0]
    centroids, errors = joint.refit(normal(2, 4, 3, seed=1), vectors, np.ones(60), {2: chosen}, sweeps=100)
    summed = centroids[0][chosen[0]] + centroids[1][chosen[1]]
    np.testing.assert_allclose(summed, design @ solution, atol=1e-4)
    start = normal(2, 4, 3, seed=1)
    error = np.sum((vectors - start[0][chosen[0]] - start[1][chosen[1]]) ** 2, axis=1).mean()
    np.testing.assert_allclose(errors[2], error, rtol=1e-5)


def test_every_number_of_codebooks_gains_and_counts_by_the_reciprocal_of_its_error():
    vectors, books = normal(200, 3), 0.5 * normal(3, 4, 3, seed=1)
    chosen = {n: codes(n, 200, 4, seed=n) for n in (1, 3)}
    fitted, before = joint.refit(books, vectors, np.ones(200), chosen, sweeps=20)
    _, after = joint.refit(fitted, vectors, np.ones(200), chosen)
    assert after[1] < before[1] and after[3] < before[3]
    first = joint.refit(books, vectors, np.ones(200), chosen, sweeps=1)[0][0]
    wanted = {1: vectors, 3: vectors - books[1][chosen[3][1]] - books[2][chosen[3][2]]}
    for entry in range(4):
        members = {n: chosen[n][0] == entry for n in (1, 3)}
        total = sum(wanted[n][members[n]].sum(0) / before[n] for n in (1, 3))
        mass = sum(members[n].sum() / before[n] for n in (1, 3))
        np.testing.assert_allclose(first[entry], total / mass, atol=1e-5)


def test_what_does_not_exist_or_was_not_chosen_moves_nothing():
    vectors, books, chosen = normal(40, 3), normal(2, 5, 3, seed=1), codes(2, 40, 4)
    there = (np.arange(40) < 25).astype(np.float32)
    fitted, errors = joint.refit(books, vectors, there, {2: chosen})
    alone, errors_alone = joint.refit(books, vectors[:25], np.ones(25), {2: chosen[:, :25]})
    np.testing.assert_allclose(fitted, alone, atol=1e-5)
    np.testing.assert_allclose(errors[2], errors_alone[2], rtol=1e-5)
    np.testing.assert_array_equal(fitted[:, 4], books[:, 4])
    assert np.abs(fitted[:, :4] - books[:, :4]).max() > 0.1


def test_memory_is_batches_that_the_present_entries_stand_for():
    vectors, books, chosen = normal(400, 3), normal(1, 4, 3, seed=1), np.arange(400)[None] % 4
    alone = np.stack([vectors[k::4].mean(0) for k in range(4)])
    for memory in (0, 1, 3):
        fitted, _ = joint.refit(books, vectors, np.ones(400), {1: chosen}, memory, sweeps=1)
        np.testing.assert_allclose(fitted[0], (memory * books[0] + alone) / (memory + 1), atol=1e-4)


@pytest.mark.parametrize("architecture", ["mdct", "gain_shape"])
def test_the_tool_lowers_the_error_at_every_number_of_codebooks(architecture, tmp_path, monkeypatch, capsys):
    causal = dict(model__causal=True) if architecture == "gain_shape" else {}
    codec = support.trained_codec(support.small_config(architecture, **causal))
    pretrained.save(codec, tmp_path / "model.safetensors")
    out = tmp_path / "refit.safetensors"
    arguments = [str(tmp_path / "model.safetensors"), "--minutes", "2", "--batch_size", "20", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["refit_codebooks.py", *arguments, "--prepared_dir", str(tmp_path)])
    refit_codebooks.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["batch 1 of 3", "batch 2 of 3", "batch 3 of 3"]
    first, last = ([float(part.split(" dB")[0]) for part in line.split(": ")[1].split(", ")] for line in lines[::2])
    assert all(after < before - 0.5 for before, after in zip(first, last, strict=True))
    fitted = jaxcodec.load(out)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, codec.params)
    changed = [name for name, array in fitted.arrays.items() if np.any(array != codec.arrays[name])]
    assert all("centroids" in name for name in changed) and len(changed) == 1


def test_a_codec_without_codebooks_is_refused():
    codec = jaxcodec.load("files")
    with pytest.raises(ValueError, match="this codec has no codebooks"):
        next(refit_codebooks.refit(codec, []))


def test_the_shape_of_gain_and_shape_is_what_its_codes_are_of():
    codec = support.trained_codec(support.small_config("gain_shape", model__causal=True))
    latents = codec.latents(support.speech_like(1, 2000)[0])[None]
    shape = codec.module.apply(codec.variables, latents, method=lambda m, z: m.quantizer.shape(z))
    found = codec.module.apply(codec.variables, latents, method="encode_latents")
    np.testing.assert_array_equal(rvq.search(shape, codec.constants["shape"]["centroids"], 1), found[:, 1:])
