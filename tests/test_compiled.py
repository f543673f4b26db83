"""Blocks coded by loops that numba compiles are byte for byte what numpy makes of them, whatever they hold."""

import os
import pathlib
import subprocess
import sys

import numba
import numpy as np
import pytest

from jaxcodec.bitstream import checkerboard, compiled, entropy, exact, jit, prior
from jaxcodec.quantizers import layout
from tests.fuzz_bitstream import checkerboard_weights, prior_weights, scalar_codes
from tests.test_prior import wild_codes

ROOT = pathlib.Path(__file__).parent.parent
F = 64


@pytest.fixture(scope="module", params=[(F, 16, 1), (320, 24, 2)], ids=["small", "many coefficients"])
def model(request):
    num_bins, width, depth = request.param
    return prior.PriorModel(prior_weights(num_bins, width, depth))


def of_numpy(model, codes):
    return model._encode(codes, None)


def of_numba(model, codes):
    return model._encode(codes, compiled)


def noise(rng, model, num_frames):
    """Codes (Q, T) of all values."""
    shape = model.num_bins + layout.EXTRA, num_frames
    return rng.integers(-layout.MAX_CODE - 1, layout.MAX_CODE + 1, shape).astype(np.int32)


def same(one, other):
    if isinstance(one, entropy.DamagedCodes) or isinstance(other, entropy.DamagedCodes):
        return type(one) is type(other) and str(one) == str(other)
    return one.dtype == other.dtype and np.array_equal(one, other)


def test_bytes_and_codes_are_those_of_numpy(model):
    rng = np.random.default_rng(0)
    clips = [scalar_codes(size, model.num_bins, seed=size) for size in (0, 1, 2, 5, 70)]
    clips += [noise(rng, model, 9), np.zeros_like(clips[-1])]
    if model.num_bins == F:
        clips.append(wild_codes(rng))
    for codes in clips:
        data = of_numpy(model, codes)
        assert of_numba(model, codes) == data
        (decoded,) = compiled.decode(model, [data], [codes.shape[1]])
        np.testing.assert_array_equal(decoded, codes, strict=True)


def test_a_carry_goes_through_words_that_are_full():
    # The lower end of what is coded so far can lie just below a word's end: what is added then runs through words of ones.
    coder, words = compiled._coder.py_func(True), np.zeros(4, np.uint32)
    for _ in range(3):
        words[int(coder[compiled._POSITION])] = 2**32 - 1
        coder[compiled._POSITION] += np.uint64(1)
    words[0] = 7
    coder[compiled._LOWER] = np.uint64(2**64 - 5)
    carry = numba.njit(lambda coder, words, amount: compiled._raise(coder, words, amount))
    carry(coder, words, np.uint64(4))
    assert words.tolist() == [7, 2**32 - 1, 2**32 - 1, 0]
    carry(coder, words, np.uint64(6))
    assert words.tolist() == [8, 0, 0, 0]
    assert coder[compiled._LOWER] == 5


def test_what_is_damaged_is_read_as_numpy_reads_it(model):
    rng = np.random.default_rng(1)
    codes = scalar_codes(12, model.num_bins)
    data = of_numpy(model, codes)
    broken = [b"", b"\xff" * 40, data[:-9], data[: len(data) // 2], data + b"\x01", data + bytes(9), rng.bytes(300)]
    for _ in range(30):
        one = bytearray(data)
        one[rng.integers(len(one))] ^= 1 << rng.integers(8)
        broken.append(bytes(one))
    sizes = [*len(broken) * [12], 0, 0, 0, 5]
    broken += [b"", b"\xff" * 8, b"\x01" * 9, data]
    expected = model.decode_blocks(broken, len(codes), sizes)
    found = [compiled.decode(model, [one], [size])[0] for one, size in zip(broken, sizes, strict=True)]
    assert all(map(same, found, expected))
    assert all(map(same, compiled.decode(model, broken, sizes), expected))
    problems = {str(one) for one in expected if isinstance(one, entropy.DamagedCodes)}
    assert len(problems) == 2
    assert sum(isinstance(one, np.ndarray) for one in expected) > 2


def test_blocks_side_by_side_are_what_they_are_alone(model, monkeypatch):
    clips = [scalar_codes(size, model.num_bins, seed=size) for size in (3, 20, 0, 11, 20, 1, 17, 20, 2)]
    blocks, sizes = [of_numpy(model, codes) for codes in clips], [codes.shape[1] for codes in clips]
    for lanes, cores in ((8, 1), (8, 4), (2, 1), (1, 2), (9, 20)):
        monkeypatch.setattr(compiled, "_MAX_LANES", lanes)
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        for codes, decoded in zip(clips, compiled.decode(model, blocks, sizes), strict=True):
            np.testing.assert_array_equal(decoded, codes, strict=True)
    assert compiled.decode(model, [], []) == []


def test_a_prior_of_many_frames_writes_and_reads_the_same_with_faster_operations(monkeypatch):
    model, codes = checkerboard.CheckerboardModel(checkerboard_weights()), scalar_codes(70)
    data = model.encode(codes)
    calls = []
    for name, step in compiled.OPERATIONS.items():
        monkeypatch.setitem(exact.OPERATIONS, name, lambda x, step=step, name=name: calls.append(name) or step(x))
    assert model.encode(codes) == data
    np.testing.assert_array_equal(model.decode(data, *codes.shape), codes)
    assert {*calls} == {"rounded", "gelu"}


def test_operations_are_those_of_numpy_in_whatever_order_numbers_lie():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(0, 3000, (50, 40)), rng.integers(-4, 5, (50, 40)) / 2, 1e9 * rng.normal(size=(50, 40))]
    )
    slower = {"rounded": exact._rounded, "gelu": exact._gelu}
    for name, step in compiled.OPERATIONS.items():
        for view in (
            lambda x: x,
            lambda x: x.T,
            lambda x: x[::2, 1:],
            lambda x: x.reshape(5, 30, 40).transpose(1, 0, 2),
        ):
            expected, found = slower[name](view(x.copy())), step(view(x.copy()))
            np.testing.assert_array_equal(found, expected, strict=True)
        given = x.copy()
        assert step(given) is given and np.array_equal(given, slower["rounded"](x.copy())) == (name == "rounded")


def test_numba_is_used_once_its_start_is_worth_it_and_where_it_can_be(monkeypatch):
    for name, frames in {"FRAMES_BEFORE": 100, "FRAMES_BEFORE_COMPILING": 1000, "_frames": 0}.items():
        monkeypatch.setattr(jit, name, frames)
    monkeypatch.setattr(compiled, "kept", lambda: True)
    assert jit.loops(60) is None
    assert exact.OPERATIONS["gelu"] is exact._gelu
    assert jit.loops(60) is compiled
    assert exact.OPERATIONS == compiled.OPERATIONS
    assert jit.loops(1) is compiled
    monkeypatch.setattr(compiled, "kept", lambda: False)
    assert jit.loops(500) is None
    assert jit.loops(500) is compiled
    jit._compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        assert jit.loops(1) is None
        jit._compiled.cache_clear()
        patch.setattr(numba.config, "DISABLE_JIT", False)
        patch.setitem(sys.modules, "numba", None)
        assert jit.loops(1) is None
    jit._compiled.cache_clear()
    assert jit.loops(1) is compiled


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    script = """
from tests import test_compiled as t
from jaxcodec.bitstream import prior
print(t.compiled.kept())
t.compiled.decode(prior.PriorModel(t.prior_weights()), [b""], [0])
print(t.compiled.kept(), sum(t.compiled._read.stats.cache_hits.values()))
"""
    cache = str(tmp_path)
    assert run(script, NUMBA_CACHE_DIR=cache).split() == ["False", "True", "0"]
    assert run(script, NUMBA_CACHE_DIR=cache).split() == ["True", "True", "1"]
    (index,) = tmp_path.rglob("compiled._read-*.nbi")
    os.utime(index, (0, 0))  # of an earlier version of the package
    assert run(script, NUMBA_CACHE_DIR=cache).split()[0] == "False"


def test_where_nothing_can_be_kept_numpy_codes(tmp_path):
    # As root any folder can be written to: numba is told of none.
    script = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from jaxcodec.bitstream import jit
jit.FRAMES_BEFORE = jit.FRAMES_BEFORE_COMPILING = -1
from tests.fuzz_bitstream import prior_weights, scalar_codes
from jaxcodec.bitstream import prior
model, codes = prior.PriorModel(prior_weights()), scalar_codes(5)
print(jit.loops(1), (model.decode(model.encode(codes), *codes.shape) == codes).all())
"""
    assert run(script).split() == ["None", "True"]


def test_bytes_are_the_same_on_a_processor_of_no_kind():
    script = """
from tests import test_compiled as t
from jaxcodec.bitstream import prior
model, codes = prior.PriorModel(t.prior_weights()), t.scalar_codes(40)
data = t.of_numba(model, codes)
print(data == t.of_numpy(model, codes), (t.compiled.decode(model, [data], [40])[0] == codes).all())
"""
    assert run(script, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="").split() == ["True", "True"]


def run(script, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
