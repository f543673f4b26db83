"""Importing the package is quick, leaves the heavy libraries alone, and goes from the outer rings inward only."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import jaxcodec

ROOT = pathlib.Path(__file__).parent.parent
# docs/architecture.md draws them. A module may import those of its own ring and of rings inside it.
RINGS = (
    ("pcm", "recipe", "nn", "quantizers"),
    (
        "codec",
        "programs",
        "training.step",
        "training.adversarial",
        "inference.trained",
        "inference.clips",
        "inference.functions",
        "inference.windows",
    )
    + ("inference.streaming",),
    ("bitstream", "atomic", "workers", "audio", "containers", "bundled", "data", "evaluation", "inference", "training"),
    ("report", "export", "cli", "__main__"),
)
PURE = {"os", "io", "time", "pathlib", "etils", "absl", "ml_collections", "orbax", "tensorflow", "soundfile", "soxr"}


def modules():
    """{dotted name below jaxcodec: path} of every module but the package's own __init__."""
    paths = (ROOT / "jaxcodec").rglob("*.py")
    names = {".".join(path.relative_to(ROOT / "jaxcodec").with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if name != "__init__"}


def ring_of(name):
    """The ring of a module: that of the longest entry of `RINGS` that it is, or is below."""
    parts = name.split(".")
    prefixes = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
    return next(ring for prefix in prefixes for ring, names in enumerate(RINGS) if prefix in names)


def imports_of(text):
    """(dotted name below jaxcodec, or a name in one; line) of every import in a module, those in functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxcodec":
            inside = node.module.split(".")[1:]
            yield from ((".".join([*inside, alias.name]), node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.startswith("jaxcodec."))
            yield from ((name.removeprefix("jaxcodec."), node.lineno) for name in names)


def outward(name, text, known):
    """The imports of a module that point to a ring outside its own."""
    found = []
    for target, line in imports_of(text):
        module = target if target in known or f"{target}.__init__" in known else target.rpartition(".")[0]
        if module and ring_of(module) > ring_of(name):
            found.append(f"{name}:{line} imports {target}")
    return found


def run_python(code):
    """What `code` prints in a fresh interpreter that sees this package."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_point_inward():
    known = modules()
    problems = [p for name, path in known.items() for p in outward(name, path.read_text(), known)]
    assert not problems
    # The reader of imports reads: it sees one that points out, at the top and in a function.
    for code in ("from jaxcodec.cli import jobs", "def f():\n    from jaxcodec import report", "import jaxcodec.data"):
        assert outward("nn.layers", code, known)
    assert not outward("nn.losses", "from jaxcodec.nn import layers", known)


def test_every_module_has_a_ring_and_no_import_goes_round():
    known = modules()
    edges = {}
    for name, path in known.items():
        ring_of(name)
        targets = {target for target, _ in imports_of(path.read_text())}
        edges[name] = {t for target in targets for t in (target, target.rpartition(".")[0]) if t in known}
    done = set()
    while ready := {name for name, targets in edges.items() if name not in done and targets - {name} <= done}:
        done |= ready
    assert not set(edges) - done


RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "eval", "exec"}
RUNS_WHAT_IT_READS |= {"serialize_executable"}


def dangerous(text):
    """Imports and calls of a module by which a file that is read could run what it holds."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Call):
            names = {node.func.id} if isinstance(node.func, ast.Name) else set()
            names |= {"pickle" for keyword in node.keywords if keyword.arg == "allow_pickle"}
        else:
            continue
        yield from sorted({name.split(".")[0] for name in names} & RUNS_WHAT_IT_READS)


def test_no_file_that_is_read_can_run_anything():
    # What an exporter evaluates are the dimensions that it wrote itself; a compiled program is there to be run, and only
    # one of the user's own is.
    found = {name: list(dangerous(path.read_text())) for name, path in modules().items()}
    assert {name: names for name, names in found.items() if names} == {
        "export.onnx_graph": ["eval", "eval"],
        "cli.kept_programs": ["serialize_executable"],
    }
    for code in (
        "import pickle",
        "from pickle import load",
        "np.load(f, allow_pickle=True)",
        "def f():\n    eval('1')",
    ):
        assert list(dangerous(code))


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "jaxcodec").rglob("*.py")}
    assert len(folders) > 8 and not {
        folder for folder in folders if not (folder / "__init__.py").exists()
    }  # or no wheel


def test_importing_the_package_takes_less_than_two_seconds():
    # Processor time: the import is single-threaded, so this is the wall-clock of a machine that does nothing else.
    code = "import time; start = time.process_time(); import jaxcodec; print(time.process_time() - start)"
    seconds = sorted(float(run_python(code)) for _ in range(3))
    assert seconds[1] < 2.0


def test_importing_the_package_loads_no_heavy_library():
    heavy = {"tensorflow", "tensorflow_datasets", "librosa", "soundfile", "orbax", "wandb", "matplotlib", "jax", "flax"}
    loaded = set(run_python("import jaxcodec, sys; print(*sys.modules)").split())
    assert "jaxcodec" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize("module", ["bitstream", "bitstream.entropy", "bundled", "cli", "audio", "quantizers"])
def test_bytes_and_the_parsing_of_commands_need_no_jax(module):
    loaded = set(run_python(f"import jaxcodec.{module}, sys; print(*sys.modules)").split())
    assert f"jaxcodec.{module}" in loaded and "jax" not in loaded


def test_every_public_name_is_there_and_so_are_the_modules_of_older_documentation():
    names = {name for name in dir(jaxcodec) if not name.startswith("_")} - {"epy"}
    assert {"encode", "StreamState", "load"} <= names
    assert all(
        inspect.isfunction(x) or inspect.isclass(x) or inspect.ismodule(x)
        for x in (getattr(jaxcodec, name) for name in names)
    )
    code = "from jaxcodec import audio, bitstream, checkpoint, data, evaluate, export, inference, metrics; "
    code += "print(checkpoint.load_model.__name__, inference.encode_blocks.__name__, evaluate.score.__name__)"
    assert run_python(code).split() == ["load_model", "encode_blocks", "score"]
    with pytest.raises(AttributeError, match=r"module 'jaxcodec' has no attribute 'encoder'|encoder"):
        _ = jaxcodec.encoder


def test_the_inner_rings_touch_no_files_and_no_clocks():
    for name, path in modules().items():
        if ring_of(name) > 1 or name in ("recipe", "__init__"):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        assert not PURE & found, name
