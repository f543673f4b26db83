"""What is installed: the package needs less than training, and says which extra brings the rest."""

import ast
import fnmatch
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from jaxcodec import audio
from tests import support

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Modules by the names of their distributions, where these differ.
NAMED = {"absl": "absl-py", "orbax": "orbax-checkpoint", "PIL": "pillow", "ai_edge_litert": "visqol-python"}
NAMED |= {"tensorboardX": "tensorboardX", "tensorflow": "tensorflow-cpu", "visqol": "visqol-python"}
# Brought by another in the list.
BROUGHT = {"jaxlib": "jax", "llvmlite": "numba"}
HEAVY = {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "pytest", "hypothesis", "librosa", "tensorboardx"}


def named(requirements):
    """{normalized name: the requirements of it}."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        found.setdefault(requirement.name.lower().replace("_", "-"), set()).add(str(requirement))
    return found


def extra(name):
    return named(x for x in PROJECT["project"]["optional-dependencies"][name] if not x.startswith("jaxcodec"))


def test_the_command_needs_nothing_that_training_and_tests_need():
    assert not HEAVY & named(PROJECT["project"]["dependencies"]).keys()
    assert {"tensorflow-datasets", "tensorflow-cpu"} <= extra("train").keys() and {"pytest"} <= extra("dev").keys()


def test_requirements_txt_is_the_whole_list_with_the_same_bounds():
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    whole = named(filter(None, lines))
    assert {
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "librosa",
        "numpy",
        "tensorflow-datasets",
        "pytest",
    } <= whole.keys()
    parts = named(PROJECT["project"]["dependencies"]) | extra("train")
    assert parts.items() <= whole.items()
    rest = {name: whole[name] for name in whole.keys() - parts.keys()}
    assert rest.keys() == {"librosa", "pytest", "hypothesis"} and rest.items() <= extra("dev").items()


def imported(path):
    """Packages that a module imports, in functions too, which are not of Python."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"jaxcodec"}


def test_every_package_that_is_imported_is_required_or_in_an_extra():
    project = PROJECT["project"]
    known = named(project["dependencies"]).keys()
    optional = {name for one in project["optional-dependencies"] for name in extra(one)}
    beyond = {}
    for path in sorted((ROOT / "jaxcodec").rglob("*.py")):
        for name in imported(path):
            distribution = NAMED.get(name, BROUGHT.get(name, name)).lower().replace("_", "-")
            assert distribution in known | optional, (path, name)
            if distribution not in known:
                beyond.setdefault(path.relative_to(ROOT / "jaxcodec").parts[0], set()).add(name)
    assert beyond.keys() == {"data", "evaluation", "training", "export", "bitstream"}
    assert beyond["bitstream"] == {"numba", "llvmlite"}


def test_a_wheel_has_the_models_the_sample_corpus_and_the_page():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["jaxcodec"]
    files = [
        path.relative_to(ROOT / "jaxcodec").as_posix() for path in (ROOT / "jaxcodec").rglob("*") if path.is_file()
    ]
    files = [name for name in files if not name.endswith(".py") and "__pycache__/" not in name]
    assert {"models/speech_16khz_vbr.safetensors", "report/page/page.js", "datasets/sample/index.tsv"} <= set(files)
    assert not [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


HIDDEN = """
import importlib.machinery, sys
hidden = {hidden}
class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
PACKAGES = {
    *(
        "tensorflow",
        "tensorflow_datasets",
        "array_record",
        "tensorboardX",
        "PIL",
        "dill",
        "librosa",
        "pytest",
        "hypothesis",
    ),
    *(
        "pesq",
        "pystoi",
        "visqol",
        "ai_edge_litert",
        "speechmos",
        "onnx",
        "onnxruntime",
        "wandb",
        "matplotlib",
    ),
}
COMMANDS = """
from jaxcodec import cli
for command in (
    "encode speech.wav -o speech.jxc", "decode speech.jxc -o decoded.wav", "verify speech.jxc", "info speech.jxc",
    "truncate speech.jxc -o less.jxc --codebooks 1", "export tiny.safetensors -o again.safetensors",
    "tokens recordings -o tokens", "eval speech.wav --codebooks 1", "report page --clips speech.wav --codebooks 1",
    "eval prepared --codebooks 1", "export tiny.safetensors -o onnx --format onnx",
):
    name, *rest = command.split()
    model = ["--model", "tiny.safetensors"] if name not in ("info", "export") else []
    print(f"{command}: {cli.main([name, *rest, *model])}", file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path, codec, monkeypatch):
    """A folder with a model, a recording, and what looks like prepared shards."""
    from jaxcodec.inference import pretrained

    monkeypatch.chdir(tmp_path)
    pretrained.save(codec, "tiny.safetensors")
    for name in ("speech.wav", "recordings/a.wav"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        audio.save(name, support.speech_like(1, 8000)[0])
    os.mkdir("prepared")
    pathlib.Path("prepared/dataset_info.json").write_text("{}")
    return tmp_path


def run_hidden(code, *arguments):
    """What a fresh Python without the packages says on stderr, and its exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", HIDDEN.format(hidden=PACKAGES) + code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.stderr.splitlines(), done.returncode


def test_without_what_training_needs_the_commands_do_their_work_or_say_which_extra(folder):
    told, code = run_hidden(COMMANDS)
    assert code == 0, told
    results = dict(line.rsplit(": ", 1) for line in told if line.rsplit(": ", 1)[-1] in "012")
    assert len(results) == 11
    assert [command for command, code in results.items() if code != "0"] == [
        "eval prepared --codebooks 1",
        "export tiny.safetensors -o onnx --format onnx",
    ]
    said = "\n".join(told)
    assert "mel_distance" in said and "pip install 'jaxcodec[metrics]'" in said
    assert (
        "jaxcodec: reading prepared shards needs the package 'tensorflow_datasets': pip install 'jaxcodec[train]'."
        in told
    )
    assert "jaxcodec: ONNX export needs onnx: pip install 'jaxcodec[onnx]'." in told


def test_training_without_its_extra_says_which_it_is(folder):
    code = "import runpy; runpy.run_path({!r}, run_name='__main__')".format(str(ROOT / "train.py"))
    told, code = run_hidden(code, "--config", str(ROOT / "configs/tiny.py"), "--checkpoint_dir", "runs")
    needs = "needs the package 'tensorflow_datasets': pip install 'jaxcodec[train]'"
    assert code == 1 and told[-1].startswith(f"train.py: preparing recordings {needs}")


def test_compiled_programs_are_kept_where_that_can_be(tmp_path):
    code = "import os; from jaxcodec.cli import compilation; compilation.keep(); print(os.environ.get('{}'))"
    kept = code.format("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")

    def folder(**environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XDG"))}
        command = [sys.executable, "-c", kept]
        return subprocess.run(
            command, env=clean | environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert folder(HOME=str(tmp_path)) == str(tmp_path / ".cache/jaxcodec")
    assert folder(XDG_CACHE_HOME=str(tmp_path / "x")) == str(tmp_path / "x/jaxcodec")
    assert folder(JAXCODEC_CACHE=str(tmp_path / "y")) == str(tmp_path / "y")
    assert folder(JAXCODEC_CACHE="") == "None"
    assert folder(JAXCODEC_CACHE=str(tmp_path / "file" / "z")) == "None"
    assert folder(JAX_COMPILATION_CACHE_DIR="mine") == "mine"
