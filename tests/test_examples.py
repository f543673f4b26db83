"""The examples, run as a user would, with a tiny codec in place of the bundled one."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import jaxcodec
from jaxcodec import audio
from tests import support

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
SAMPLES = EXAMPLES.parent / "jaxcodec/datasets/sample"
NOTEBOOK_PACKAGES = ("IPython", "ipykernel", "jupyter_core", "matplotlib", "nbclient")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file that `jaxcodec.load` reads."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    jaxcodec.save(support.trained_codec(support.small_config(model__causal=True)), path)
    return path


def run_python(*arguments, cwd, fails=False, **environment):
    """What it prints, or where it fails the last line of its complaint."""
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "JAX_PLATFORMS": "cpu"} | environment
    environment.pop("XLA_FLAGS", None)  # eight devices are for the tests
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert bool(result.returncode) == fails, result.stderr
    return result.stderr.splitlines()[-1] if fails else result.stdout


def test_the_language_model_learns_to_predict_codes(model, tmp_path):
    speech = SAMPLES / "validation/piper-joe"
    arguments = ("--model", model, "--recordings", speech, "--clips", 3, "--steps", 14)
    printed = run_python(EXAMPLES / "language_model.py", *arguments, cwd=tmp_path)
    assert re.match(r"3 recordings, \d+ codes of 4 bits\n", printed)
    pattern = r"^step +\d+: (\S+) bits per code, \S+ of recordings left out$"
    losses = [float(x) for x in re.findall(pattern, printed, re.MULTILINE)]
    assert len(losses) == 8
    assert 3.5 < losses[0] < 4.5  # guessing
    assert losses[-1] < losses[0] - 0.5


def test_the_stream_has_the_codes_of_the_whole_and_is_aligned_with_the_recording(model, tmp_path):
    recording, codec = SAMPLES / "validation/piper-joe/te_061.flac", jaxcodec.load(model)
    printed = run_python(
        EXAMPLES / "streaming.py", recording, "out.wav", "--chunk_ms", 100, "--model", model, cwd=tmp_path
    )
    assert printed.startswith("latency 101 ms: a chunk of 100 ms and 16 samples of delay\n")
    assert printed.endswith("wrote out.wav; its codes are those of the whole recording\n")
    assert re.search(r"^24 chunks, each computed in \S+ ms \(at most \S+\)\nreal-time factor \d", printed, re.MULTILINE)
    speech = audio.load(recording)
    expected = np.asarray(jaxcodec.decode(codec, jaxcodec.encode(codec, speech), len(speech)))
    np.testing.assert_allclose(audio.load(tmp_path / "out.wav"), expected.clip(-1, 1), rtol=0, atol=1e-4)


def test_the_stream_refuses_a_chunk_that_is_not_whole_frames(model, tmp_path):
    arguments = (EXAMPLES / "streaming.py", "--chunk_ms", 2.5, "--model", model)
    assert run_python(*arguments, cwd=tmp_path, fails=True).endswith(
        "--chunk_ms must be a multiple of 1, a frame of this codec"
    )


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NOTEBOOK_PACKAGES),
    reason="nbclient, ipykernel or matplotlib is not installed (extra: examples)",
)
def test_the_notebook_runs_and_plays_and_plots(model, tmp_path):
    command = ("-m", "jupyter", "execute", EXAMPLES / "listen.ipynb", f"--output={tmp_path / 'executed.ipynb'}")
    recording = str(SAMPLES / "validation/piper-joe/te_061.flac")
    run_python(*command, cwd=tmp_path, MODEL=str(model), RECORDING=recording)
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")
    assert re.match(r"2\.38 s are 2381 frames of 4 codes, 16 kbit/s\n1 of 4 codebooks, 4 kbit/s\n", printed)
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 4
    players = ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
    assert len(players) == 4 and all("<audio" in player for player in players)


def test_the_notebook_is_kept_with_what_the_bundled_model_gave():
    text = (EXAMPLES / "listen.ipynb").read_text()
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)) and len(code) > 4
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}  # and no error
    assert "16 codes, 8 kbit/s" in outputs[0]["text"][0]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 4 and kinds.count("text/html") == 6
    assert len(text) < 2e6


def test_every_example_is_in_the_list():
    listed = (EXAMPLES / "README.md").read_text()
    assert all(path.name in listed for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
