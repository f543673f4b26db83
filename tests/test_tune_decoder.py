"""The decoder of tokens tuned to codes of the search."""

import sys

import jax
import numpy as np
import pytest

import jaxcodec
from jaxcodec.inference import pretrained
from tests import support
from tools import refit_codebooks, tune_decoder

RATES = [tune_decoder.Rate(4, 0.1, 0.5), tune_decoder.Rate(2, 0.1, 0.5)]


@pytest.fixture(scope="module")
def codec():
    return support.trained_codec(support.small_config("gain_shape", model__causal=True, model__rvq__beams=2))


def batches(count):
    batch = support.make_batch(num_samples=2560, lengths=(2560, 2000, 2560, 0))
    return [{name: array[None] for name, array in batch.items()}] * count


def test_it_lowers_the_error_at_every_rate_and_leaves_the_codes_alone(codec):
    seen = {4: [], 2: []}
    tuned = codec
    for tuned, codebooks, means in tune_decoder.tune(codec, batches(150), RATES, 150, 2e-3):  # noqa: B007
        seen[codebooks].append(means["error"])
    for errors in seen.values():
        assert 30 < len(errors) < 120
        assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])
    changed = {name for name, array in tuned.arrays.items() if np.any(array != codec.arrays[name])}
    assert changed and all(name.startswith("params/decoder/") for name in changed)
    clip = support.speech_like(1, 3000, seed=3)[0]
    np.testing.assert_array_equal(tuned.encode(clip), codec.encode(clip))


def test_it_hears_codes_of_the_search(codec, monkeypatch):
    decoded, kind = [], type(codec.module.quantizer)
    find = kind.decode
    monkeypatch.setattr(kind, "decode", lambda self, codes: decoded.append(codes) or find(self, codes))
    (batch,) = batches(1)
    with jax.disable_jit():
        next(tune_decoder.tune(codec, [batch], RATES[:1], 100, 1e-3))
    expected = codec.encode(batch["audio"][0], lengths=batch["length"][0])
    nearest = codec.with_beams(1).encode(batch["audio"][0], lengths=batch["length"][0])
    exist = np.arange(expected.shape[2]) < codec.num_frames(batch["length"][0])[:, None]
    found = np.asarray(decoded[0])[:, :, : expected.shape[2]]
    assert np.mean((found == expected).all(1)[exist]) > 0.99 and np.mean((found == nearest).all(1)[exist]) < 0.9


def test_the_greater_a_weight_the_less_is_lost_of_what_it_weighs(codec):
    lost = []
    for ear, pesq in ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0)):
        rates = [tune_decoder.Rate(4, ear, 1.0)]
        *_, (_, _, means) = tune_decoder.tune(codec, batches(60), rates, 60, 2e-3, pesq=pesq)
        lost.append(means)
    nothing, loudness, both = lost
    assert loudness["loudness"] < 0.98 * nothing["loudness"]
    assert both["pesq"] < 0.8 * loudness["pesq"]


def test_the_command_writes_a_model(tmp_path, monkeypatch, capsys, codec):
    pretrained.save(codec, tmp_path / "model.safetensors")
    out = tmp_path / "tuned.safetensors"
    arguments = [str(tmp_path / "model.safetensors"), "--steps", "41", "--rates", "4:0.1:1", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["tune_decoder.py", *arguments, "--prepared_dir", str(tmp_path)])
    tune_decoder.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 41 of 41: ") and line.endswith(" at 4 codebooks")
    assert jaxcodec.load(out).config == codec.config


def test_the_command_passes_on_what_it_is_given(tmp_path, monkeypatch, codec):
    pretrained.save(codec, tmp_path / "model.safetensors")
    given = []

    def tune(codec, batches, *arguments):
        given.extend(arguments)
        yield codec, 2, {"error": 0.1, "loudness": 0.2, "pesq": 0.3}

    monkeypatch.setattr(tune_decoder, "tune", tune)
    flags = ["--steps=50", "--rates", "2:3:0.5", "4:1:0.5", "--pesq=0.25", "--learning_rate=2e-4", "--seed=7"]
    paths = ["-o", str(tmp_path / "out.safetensors"), "--prepared_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tune_decoder.py", str(tmp_path / "model.safetensors"), *flags, *paths])
    tune_decoder.main()
    assert given == [[(2, 3.0, 0.5), (4, 1.0, 0.5)], 50, 2e-4, 7, 0.25]


def test_what_cannot_be_is_refused(codec, monkeypatch):
    with pytest.raises(ValueError, match="this codec has no codebooks"):
        next(tune_decoder.tune(jaxcodec.load("files"), [], RATES, 100, 1e-3))
    with pytest.raises(ValueError, match="num_codebooks is 5"):
        next(tune_decoder.tune(codec, [], [tune_decoder.Rate(5, 1.0, 1.0)], 100, 1e-3))
    monkeypatch.setattr(sys, "argv", ["tune_decoder.py", "tokens", "--steps", "3", "-o", "never"])
    with pytest.raises(SystemExit, match="--steps is 3"):
        tune_decoder.main()
    monkeypatch.setattr(sys, "argv", ["tune_decoder.py", "tokens", "--pesq=-1", "-o", "never"])
    with pytest.raises(SystemExit, match=r"--pesq is -1\.0, expected a number from 0 on"):
        tune_decoder.main()


@pytest.mark.parametrize("tool", [tune_decoder, refit_codebooks])
def test_a_batch_of_no_crop_is_refused(tool, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "tokens", "--batch_size", "0", "-o", "never"])
    with pytest.raises(SystemExit, match="--batch_size is 0, expected at least 1"):
        tool.main()


@pytest.mark.parametrize("text", ["16", "16:0.5", "x:1:1", "16:-1:1", "16:1:0", "16:nan:1"])
def test_a_rate_that_cannot_be_is_refused_in_one_line(text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tune_decoder.py", "tokens", "--rates", text, "-o", "never"])
    with pytest.raises(SystemExit):
        tune_decoder.main()
    assert f'"{text}" is not CODEBOOKS:EAR:SHARE' in capsys.readouterr().err
