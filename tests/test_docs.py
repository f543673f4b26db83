"""What README.md and docs/api.md show is run as written, with the bundled model."""

import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import jaxcodec
from jaxcodec import audio

ROOT = pathlib.Path(__file__).parent.parent
SAMPLE = ROOT / "jaxcodec/datasets/sample/validation/piper-joe/te_064.flac"


def blocks(page, mark):
    """The fenced blocks of a page that follow <!-- ci: MARK -->."""
    return re.findall(rf"<!-- ci: {mark} -->\n```\w*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with what a clone has in it, and a recording by two names, one of them at another rate."""
    clip = audio.load(SAMPLE)
    audio.save(tmp_path / "speech.wav", audio.resample(clip, 16000, 22050), 22050)
    shutil.copy(SAMPLE, tmp_path / "speech.flac")
    (tmp_path / "jaxcodec").symlink_to(ROOT / "jaxcodec")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_example_runs_with_the_bundled_model(folder):
    (block,) = blocks("README.md", "use")
    names = {}
    exec(block, names)
    speech, decoded = names["speech"], audio.load("decoded.wav")
    assert names["codes"].shape == (16, names["codec"].num_frames(len(speech)))
    assert len(decoded) == len(speech)
    assert 10 * np.log10(np.sum(speech**2) / np.sum((speech - decoded) ** 2)) > 6


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_readmes_commands_run(folder):
    scripts = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    (block,) = blocks("README.md", "hear")
    install, *commands = block.splitlines()
    assert install == "pip install ." and commands[0].split()[:2] == ["cp", str(SAMPLE.relative_to(ROOT))]
    subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(commands)], env=environment, check=True, timeout=300)
    assert len(audio.load("decoded.wav")) == len(audio.load("speech.flac")) == len(audio.load(SAMPLE))
    seconds = len(audio.load(SAMPLE)) / 16000
    assert 0.98 * 8000 < 8 * os.path.getsize("speech.jxc") / seconds <= 8000


def test_the_readmes_codec_for_files_runs(folder):
    (block,) = blocks("README.md", "compress")
    names = {}
    exec(block, names)
    assert 0.98 * 8 < 8e-3 * len(names["data"]) / (len(names["speech"]) / 16000) <= 8
    assert len(audio.load("decoded.wav")) == len(names["speech"])


@pytest.mark.parametrize("index", range(len(blocks("docs/api.md", "api"))))
def test_the_examples_of_the_api_page_run(folder, index):
    exec(blocks("docs/api.md", "api")[index], {})


def test_the_example_of_the_data_page_runs():
    (block,) = blocks("docs/data.md", "batches")
    names = {}
    exec(block, names)
    assert names["batch"]["audio"].shape == (1, 64, 16000)


def test_the_api_page_names_every_public_function():
    page = (ROOT / "docs/api.md").read_text()
    functions = {name for name in dir(jaxcodec) if inspect.isfunction(getattr(jaxcodec, name)) and name[0] != "_"}
    assert {"encode", "decode_step", "save"} <= functions
    assert not {name for name in functions if f"{name}(" not in page} - {"load"}


COMMAND = re.compile(r"(pip|python|jaxcodec|bash|import|from|[A-Z_]+=\S+) ")


def unmarked(text):
    """The first line of every fenced block of commands or Python that no <!-- ci: NAME --> stands above."""
    found = re.findall(r"(<!-- ci: \w+ -->\n)?```\w*\n(.*?)\n```", text, re.DOTALL)
    return [block.split("\n")[0] for mark, block in found if not mark and COMMAND.match(block)]


def test_every_block_of_commands_in_the_documentation_is_run_by_the_checks():
    checks = (ROOT / ".ci/run").read_text() + "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        assert not unmarked(text), path.name
        for name in set(re.findall(r"<!-- ci: (\w+) -->", text)):
            known = rf"{path.name}[\"' :,]+{name}\b|ci: {name} -->|documented\(\"{name}\""
            assert re.search(known, checks), f"{path.name}: {name}"
    assert unmarked("```sh\npip install x\n```\n") == ["pip install x"]
