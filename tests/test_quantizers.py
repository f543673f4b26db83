"""The seam: a second kind of quantizer trains, encodes to files, decodes, streams and is evaluated as it is."""

import json

import jax
import numpy as np
import pytest

import jaxcodec
from configs import tiny
from jaxcodec import audio, bitstream, cli, data, quantizers
from jaxcodec.inference import pretrained
from jaxcodec.training import run
from tests import support, toy_quantizer


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The toy among the kinds."""
    quantizers.KINDS["toy"] = toy_quantizer.KIND
    yield
    del quantizers.KINDS["toy"]


def toy_config():
    """`small_config` with the toy, and a weight and a bound for its penalty."""
    config = support.small_config(model__quantizer="toy", model__causal=True).copy_and_resolve_references()
    with config.unlocked():
        config.loss.magnitude_weight, config.loss.magnitude_bound = 1e-3, 10.0
    return config


@pytest.fixture(scope="module")
def codec():
    """A codec of toy quantizers, not trained."""
    config = toy_config()
    state = support.make_state(support.make_model(config))
    return pretrained.make(state.params, state.quantizer, config)


def speech(num_samples=1234):
    return support.speech_like(1, num_samples)[0]


def test_a_smaller_step_is_nearer_and_a_rate_may_be_given_by_name(codec):
    errors = [np.abs(audio_at(codec, step) - audio_at(codec, 1e-3)).max() for step in (0.5, 0.1, 0.01)]
    assert errors[0] > errors[1] > errors[2] > 0
    named = jaxcodec.encode(codec, speech(), step=0.1)
    np.testing.assert_array_equal(named, jaxcodec.encode(codec, speech(), 0.1))
    np.testing.assert_array_equal(named[0], 100)
    assert np.min(named) < 0  # signed
    for arguments, message in (((2.0,), "step is 2.0, expected 0.001 to 1"), ((None,), "set by step")):
        with pytest.raises((ValueError, TypeError), match=message):
            jaxcodec.encode(codec, speech(), *arguments, **({} if arguments[0] else {"num_codebooks": 2}))


def audio_at(codec, step):
    return np.asarray(jaxcodec.decode(codec, jaxcodec.encode(codec, speech(), step), 1234))


def test_a_batch_a_list_a_jit_a_stream_and_a_file_have_the_codes_of_the_clip(codec):
    clip, hop = speech(1280), codec.hop_length
    codes = np.asarray(jaxcodec.encode(codec, clip, 0.05))
    np.testing.assert_array_equal(jaxcodec.encode(codec, [clip, clip[:100]], 0.05)[0], codes)
    jitted = jax.jit(lambda codec, clip: jaxcodec.encode(codec, clip, 0.05))
    np.testing.assert_array_equal(jitted(codec, clip), codes)
    state, parts = jaxcodec.init_stream(codec), []
    for start in range(0, 1280, 8 * hop):
        state, part = jaxcodec.encode_step(codec, state, clip[start : start + 8 * hop], 0.05)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), codes[:, : 1280 // hop])
    file = jaxcodec.pack(codec, codes, 1280)
    header = bitstream.read_header(file)
    assert (header.version, header.kind, header.least_code, header.bits_per_second) == (2, "toy", -(2**14), None)
    np.testing.assert_array_equal(jaxcodec.unpack(codec, file).codes, codes)


def test_gradients_pass_it(codec):
    gradient = jax.grad(lambda x: np.sum(1.0) * (jaxcodec.reconstruct(codec, x) ** 2).sum())(speech())
    assert np.abs(gradient).max() > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run of two epochs, and what the last report measured."""
    folder = tmp_path_factory.mktemp("toy")
    clips = folder / "recordings"
    clips.mkdir()
    for index, clip in enumerate(support.speech_like(6, 8000)):
        audio.save(clips / f"{index}.wav", clip)
    config = tiny.get_config()
    config.model.quantizer, config.model.causal = "toy", True
    config.loss.magnitude_weight, config.loss.magnitude_bound = 1e-3, 10.0
    config.data.data_dir, config.data.prepared_dir = str(clips), str(folder / "prepared")
    config.checkpoint_dir, config.steps_per_epoch = str(folder), 3
    config.data.validation_fraction, config.data.test_fraction = 0.3, 0.0
    return folder, run.train(config.lock()), data


def test_it_trains_and_the_report_names_its_knob(trained, capsys):
    folder, summary, _ = trained
    assert np.isfinite(summary["loss"]) and summary["snr"] == summary["snr_0.01"] > summary["snr_0.1"]
    assert "usage" not in summary and "magnitude" in summary
    codec = jaxcodec.load(folder / "tiny")
    saved = jaxcodec.save(codec, folder / "toy.safetensors")
    assert saved.fingerprint == codec.fingerprint == jaxcodec.load(folder / "toy.safetensors").fingerprint
    capsys.readouterr()


def test_the_command_line_encodes_decodes_evaluates_and_refuses(trained, capsys, tmp_path, monkeypatch):
    folder, *_ = trained
    monkeypatch.chdir(tmp_path)
    model = str(folder / "tiny")
    source = str(folder / "recordings" / "0.wav")
    for step, name in ((0.01, "fine.jxc"), (0.1, "coarse.jxc")):
        assert cli.main(["encode", source, "-o", name, "--model", model, "--step", str(step)]) == 0
    assert cli.main(["decode", "fine.jxc", "-o", "fine.wav", "--model", model]) == 0
    assert len(audio.load("fine.wav")) == 8000
    assert cli.main(["info", "fine.jxc"]) == 0
    assert "toy" in capsys.readouterr().out
    assert cli.main(["eval", source, "--model", model, "--step", "0.1,0.01", "--json", "scores.json"]) == 0
    points = json.loads((tmp_path / "scores.json").read_text())["points"]
    assert [point["step"] for point in points] == [0.1, 0.01] and points[0]["snr"] < points[1]["snr"]
    capsys.readouterr()
    for command, code, message in (
        (["encode", source, "-o", "x.jxc", "--model", model, "--codebooks", "2"], 2, "is set by --step"),
        (["truncate", "fine.jxc", "-o", "y.jxc", "--codebooks", "2"], 1, "hold no lower rate"),
        (["tokens", str(folder / "recordings"), "-o", "tokens", "--model", model], 1, "has none"),
    ):
        assert cli.main(command) == code
        assert message in capsys.readouterr().err
