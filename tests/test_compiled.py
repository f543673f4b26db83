"""Blocks coded by loops that numba compiles are byte for byte what numpy makes of them, whatever they hold."""

import os
import pathlib
import subprocess
import sys

import llvmlite.binding
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
    return prior.PriorModel.from_arrays(prior_weights(num_bins, width, depth))


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
        data, given = model.encode(codes), codes.copy()
        assert compiled.encode(model, codes) == data
        np.testing.assert_array_equal(compiled.decode(model, data, codes.shape[1]), codes, strict=True)
        np.testing.assert_array_equal(codes, given)  # of which a writer has a copy


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
    data = model.encode(codes)
    broken = [b"", b"\xff" * 40, data[:-9], data[: len(data) // 2], data + b"\x01", data + bytes(9), rng.bytes(300)]
    for _ in range(30):
        one = bytearray(data)
        one[rng.integers(len(one))] ^= 1 << rng.integers(8)
        broken.append(bytes(one))
    sizes = [*len(broken) * [12], 0, 0, 0, 5]
    broken += [b"", b"\xff" * 8, b"\x01" * 9, data]
    expected = model.decode_blocks(broken, len(codes), sizes)
    found = [compiled.decode(model, one, size) for one, size in zip(broken, sizes, strict=True)]
    assert all(map(same, found, expected))
    problems = {str(one) for one in expected if isinstance(one, entropy.DamagedCodes)}
    assert len(problems) == 2
    assert sum(isinstance(one, np.ndarray) for one in expected) > 2


@pytest.mark.usefixtures("blocks_by")
def test_blocks_of_several_sizes_are_what_they_are_alone(model):
    clips = [scalar_codes(size, model.num_bins, seed=size) for size in (3, 20, 0, 11, 20, 1, 17, 20, 2)]
    blocks = model.encode_blocks(clips)
    assert blocks == [model._encode(codes) for codes in clips]
    for codes, decoded in zip(
        clips, model.decode_blocks(blocks, len(clips[0]), [x.shape[1] for x in clips]), strict=True
    ):
        np.testing.assert_array_equal(decoded, codes, strict=True)
    assert model.encode_blocks([]) == model.decode_blocks([], len(clips[0]), []) == []


def test_numpy_codes_what_is_not_of_whole_numbers(model, monkeypatch):
    monkeypatch.setattr(jit, "FRAMES_BEFORE", -1)
    monkeypatch.setattr(jit, "FRAMES_BEFORE_COMPILING", -1)
    codes = scalar_codes(9, model.num_bins)
    assert compiled.suits(model) and not compiled.suits(model.earlier)
    data = model.earlier.encode(codes)
    assert data != model.encode(codes)
    np.testing.assert_array_equal(model.earlier.decode(data, *codes.shape), codes)


def test_large_matrices_of_other_numbers_do_not_suit(model):
    matrix = model.weights["trunk_input/kernel"].astype(np.float32)
    assert compiled._blocks(matrix) is not None
    wider = matrix.copy()
    wider[0] *= 512
    for other in (matrix + np.float32(2**-20), wider):
        assert compiled._blocks(other) is None


def test_sums_that_32_bits_do_not_hold_do_not_suit():
    most = np.full((517, 16), 127, np.float32)
    for last, suits in ((3, True), (4, False), (127, False)):
        most[-1] = last
        assert (compiled._blocks(most) is not None) == suits


@numba.njit(error_model="numpy")
def product(weights, x, y):
    return compiled._with_bias(weights, 0, x, y)


@pytest.mark.parametrize(("rows", "columns"), [(8, 16), (1, 1), (23, 33), (515, 48)])
def test_products_are_exact_to_the_ends_of_their_range(rows, columns):
    rng = np.random.default_rng(rows)
    numbers = rng.integers(-127, 128, (rows, columns))
    numbers[:, 0], numbers[0] = 127, 127
    units, bias = 2.0 ** rng.integers(-9, 3, columns), rng.integers(-99, 100, columns) / 4
    weights = np.concatenate([compiled._blocks((numbers * units).astype(np.float32)), bias.astype(np.float32)])
    for x in (
        rng.integers(-exact.LIMIT, exact.LIMIT + 1, rows),
        np.full(rows, exact.LIMIT),
        np.full(rows, -exact.LIMIT),
        rng.choice([0, exact.LIMIT, exact.LIMIT - 1, -exact.LIMIT - 1, 2**22, -(2**22)], rows),
        np.arange(rows) % 16 // 8 * 3,  # every other block has none
        np.zeros(rows),
    ):
        found = np.full(columns, np.nan)
        assert product(weights, x.astype(np.float64), found) == len(weights)
        np.testing.assert_array_equal(found, (x.astype(int) @ numbers) * units + exact.UNIT * bias)


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
t.compiled.decode(prior.PriorModel.from_arrays(t.prior_weights()), b"", 0)
print(t.compiled.kept(), sum(t.compiled._walk.stats.cache_hits.values()))
"""
    cache = str(tmp_path)
    assert run(script, NUMBA_CACHE_DIR=cache).split() == ["False", "True", "0"]
    assert run(script, NUMBA_CACHE_DIR=cache).split() == ["True", "True", "1"]
    (index,) = tmp_path.rglob("compiled._walk-*.nbi")
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
model, codes = prior.PriorModel.from_arrays(prior_weights()), scalar_codes(5)
print(jit.loops(1), (model.decode(model.encode(codes), *codes.shape) == codes).all())
"""
    assert run(script).split() == ["None", "True"]


@pytest.mark.parametrize("features", ["", "avx2"])
def test_bytes_are_the_same_on_other_processors(features, tmp_path):
    if features and not llvmlite.binding.get_host_cpu_features().get(features):
        pytest.skip(f"this processor has no {features}")
    script = """
from tests import test_compiled as t
from jaxcodec.bitstream import prior
model, codes = prior.PriorModel.from_arrays(t.prior_weights()), t.scalar_codes(40)
data = t.compiled.encode(model, codes)
print(data == model.encode(codes), (t.compiled.decode(model, data, 40) == codes).all())
print(*("pmadd" in t.compiled._walk.inspect_llvm(x) for x in t.compiled._walk.signatures))
for case in [(23, 33), (515, 48)]:
    t.test_products_are_exact_to_the_ends_of_their_range(*case)
"""
    given = f"+{features}" if features else ""
    found = run(script, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES=given, NUMBA_CACHE_DIR=str(tmp_path)).split()
    assert found == ["True", "True", str(bool(features))]


def run(script, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
