"""Eight CPU devices, no silent broadcasting, and the small things that most tests need."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Every device blocks threads of one pool while it waits for the others: too few of them, and XLA 0.11 stands still for ever.
os.environ["NPROC"] = "32"

import jax
import pytest

from jaxcodec.bitstream import exact, jit
from tests import support

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # the time goes into compiling, and this halves it


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Lets the compiled programs of each file go: Linux gives a process 65,530 mappings, and XLA crashes without one."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def blocks_by_numpy(monkeypatch):
    """Has numpy code all blocks of files, however many, where a test does not say otherwise."""
    monkeypatch.setattr(jit, "FRAMES_BEFORE", float("inf"))
    monkeypatch.setattr(exact, "OPERATIONS", {"rounded": exact._rounded, "gelu": exact._gelu})


@pytest.fixture(params=["numpy", "numba"])
def blocks_by(request, monkeypatch, blocks_by_numpy):
    """Has blocks of files coded by each of the two in turn."""
    if request.param == "numba":
        monkeypatch.setattr(jit, "FRAMES_BEFORE", -1)
        monkeypatch.setattr(jit, "FRAMES_BEFORE_COMPILING", -1)
        loops = jit.loops(0)
        monkeypatch.setattr(loops, "suits", lambda model, suits=loops.suits: suits(model) or pytest.fail("by numpy"))


@pytest.fixture(params=["mdct", "seanet"])
def architecture(request):
    """Each of the two networks in turn."""
    return request.param


@pytest.fixture
def config():
    """A codec of a few thousand parameters, the frame-rate network."""
    return support.small_config()


@pytest.fixture
def model(config):
    """The codec that `config` describes."""
    return support.make_model(config)


@pytest.fixture
def state(model):
    """A fresh state for plain SGD."""
    return support.make_state(model)


@pytest.fixture
def batch():
    """Eight clips of different lengths, one of them empty filler."""
    return support.make_batch()


@pytest.fixture(scope="session")
def codec():
    """A tiny codec, not trained, with codes of all values."""
    return support.untrained_codec()
