"""The prior as files use it: exact numbers, the same probabilities everywhere, and codes that come back."""

import fractions
import os
import pathlib
import subprocess
import sys
import zlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodec.bitstream import checkerboard, entropy, exact, prior, symbols
from jaxcodec.quantizers import layout, scalar
from tests.fuzz_bitstream import checkerboard_weights, prior_weights as weights, scalar_codes as speech_codes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "prior_tables.npy"
F = 64


def model(**sizes):
    return prior.PriorModel.from_arrays(weights(**sizes))


def decode(coder, data, codes):
    return coder.decode(data, *codes.shape)


def wild_codes(rng):
    """Codes (Q, 40) of which some are as far out as can be."""
    wild = speech_codes(40)
    wild[:, 7] = layout.MAX_CODE
    wild[:, 8] = -layout.MAX_CODE - 1
    wild[0, 20:] = 300  # another quality from here on
    wild[1, 30:] = -5
    wild[layout.EXTRA :, 12] = rng.integers(-80, 80, F)  # beyond one escape, beyond several
    wild[2 : layout.EXTRA, 15] += rng.integers(-40, 40, layout.NUM_BANDS)
    return wild


@pytest.mark.usefixtures("blocks_by")
def test_codes_come_back_whatever_they_are():
    coder, rng = model(), np.random.default_rng(1)
    wild = wild_codes(rng)
    for codes in (wild, speech_codes(30), np.zeros_like(wild), wild[:, :1], wild[:, :0]):
        data = coder.encode(codes)
        np.testing.assert_array_equal(decode(coder, data, codes), codes)
        np.testing.assert_array_equal(decode(coder, data + bytes(7), codes), codes)
    noise = rng.integers(-layout.MAX_CODE - 1, layout.MAX_CODE + 1, wild.shape).astype(np.int32)
    np.testing.assert_array_equal(decode(coder, coder.encode(noise), noise), noise)


@pytest.mark.usefixtures("blocks_by")
def test_blocks_decoded_side_by_side_are_what_they_are_alone():
    coder, rng = model(), np.random.default_rng(2)
    clips = [speech_codes(size, seed=size) for size in (3, 50, 0, 21, 50)] + [wild_codes(rng) for _ in range(3)]
    blocks = coder.encode_blocks(clips)
    assert blocks == [coder.encode(codes) for codes in clips]
    blocks.insert(2, b"\xff" * 40)  # nothing that was ever coded, among them
    sizes = [codes.shape[1] for codes in clips]
    sizes.insert(2, 50)
    decoded = coder.decode_blocks(blocks, F + layout.EXTRA, sizes)
    broken = decoded.pop(2)
    assert isinstance(broken, entropy.DamagedCodes) or broken.shape == (F + layout.EXTRA, 50)
    for codes, result in zip(clips, decoded, strict=True):
        np.testing.assert_array_equal(result, codes)


@pytest.mark.usefixtures("blocks_by")
def test_probabilities_are_those_of_the_network_that_was_trained():
    network, codes = scalar.Prior(32, 2), speech_codes(200)
    frames = jnp.asarray(codes.T, jnp.float32)[None]
    levels, magnitudes = frames[..., 2 : layout.EXTRA], jnp.abs(frames[..., layout.EXTRA :])
    quantizer = scalar.ScalarQuantizer(F, 32, 2)
    decibels = quantizer._decibels(levels, frames[..., 0], frames[..., 1])
    inputs = magnitudes, levels, decibels, jnp.ones((1, 200, 1), bool)
    params = network.init(jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), params)
    coefficients, changes = jax.jit(network.apply)(params, *inputs)
    bits = scalar.coefficient_bits(coefficients, magnitudes).sum() + scalar.envelope_bits(changes, levels).sum()
    arrays = flax.traverse_util.flatten_dict(params["params"], sep="/")
    coder = prior.PriorModel.from_arrays(arrays)
    coded = coder.encode(codes)
    assert abs(8 * len(coded) / float(bits) - 1) < 0.005
    spoiled = arrays | {"up_1/kernel": np.asarray(arrays["up_1/kernel"])[:, ::-1]}
    assert prior.PriorModel.from_arrays(spoiled).encode(codes) != coded


def test_a_code_has_no_say_in_its_own_probability_nor_in_earlier_ones():
    coder, codes, at = model(), speech_codes(20), 9
    plain = coder.tables(codes)
    pass_of = {bin: number for number, group in enumerate(layout.passes(F)) for bin in group}
    for edited in (0, 4, 2, 33, 63):
        other = codes.copy()
        other[layout.EXTRA + edited, at] += 2
        tables = coder.tables(other)
        np.testing.assert_array_equal(tables.envelope[: at + 1], plain.envelope[: at + 1])
        number = pass_of[edited]
        for earlier in range(len(plain.rows)):
            seen = at if earlier > number else at + 1
            np.testing.assert_array_equal(tables.rows[earlier][:seen], plain.rows[earlier][:seen])
        assert any(np.any(a[at + 1] != b[at + 1]) for a, b in zip(tables.rows, plain.rows, strict=True))
    other = codes.copy()
    other[2 + 5, at] += 1  # the band that all others see
    tables = coder.tables(other)
    np.testing.assert_array_equal(tables.envelope[at, 5], plain.envelope[at, 5])
    assert np.any(tables.envelope[at, 0] != plain.envelope[at, 0])


def test_sums_are_exact_whatever_their_order():
    coder, rng = model(num_bins=320, width=192, depth=3), np.random.default_rng(0)
    x = rng.integers(-exact.LIMIT, exact.LIMIT + 1, (3, 192)).astype(np.float64)
    kernel = coder.float64["up_1/kernel"]
    product_of_integers = x.astype(np.int64).astype(object) @ (kernel * 2**24).astype(np.int64).astype(object)
    order = rng.permutation(192)
    for product in (x @ kernel, x[:, order] @ kernel[order], sum(x[:, i : i + 1] * kernel[i] for i in order)):
        assert np.all((product * 2**24).astype(np.int64).astype(object) == product_of_integers)
    bias = (coder.float64["up_1/bias"] * 2**24).astype(np.int64).astype(object)
    whole = np.vectorize(lambda n: round(fractions.Fraction(n, 2**24)), otypes=[float])(product_of_integers + bias)
    np.testing.assert_array_equal(coder.dense("up_1", x), whole.clip(-exact.LIMIT, exact.LIMIT))
    size, total = 192, x.astype(np.int64).sum(-1)
    normal = (size * x[0] - float(total[0])) / np.sqrt(
        float(size * int((x[0].astype(np.int64) ** 2).sum()) - int(total[0]) ** 2) + size * size * 1e-6 * exact.UNIT**2
    )
    scale, bias = (exact.UNIT * coder.weights[f"norm_1/{name}"].astype(np.float64) for name in ("scale", "bias"))
    np.testing.assert_array_equal(coder.norm("norm_1", x[:1])[0], np.rint(normal * scale + bias))


def test_large_matrices_become_whole_numbers_which_a_file_of_its_weights_repeats():
    kernel = np.array([[3.0, 127, -0.3, 0], [-127, 0.25, 0.1, 0], [0.4, -0.5, 0.2, 0]], np.float32)
    numbers, units = exact.whole(kernel / np.array([1, 128, 0.001, 1], np.float32))
    np.testing.assert_array_equal(units, [1, 1 / 128, 4, 1])
    np.testing.assert_array_equal(numbers.T, [[3, -127, 0], [127, 0, 0], [-75, 25, 50], [0, 0, 0]])
    rng = np.random.default_rng(0)
    given = weights()
    for name in given:
        given[name] = (given[name] * 2.0 ** rng.integers(-6, 4, given[name].shape[-1:])).astype(np.float16)
    rounded = prior.PriorModel.from_arrays(given)
    assert rounded.earlier == prior.PriorModel(given) != rounded
    large = [name for name in given if exact.is_large(name)]
    assert len(large) == 2 + 2 * 3 + 1 + 3 * 3 + 2
    for name in rounded.weights:
        before, now = (model.weights[name].astype(np.float32) for model in (rounded.earlier, rounded))
        if name not in large:
            np.testing.assert_array_equal(now, before)
            continue
        numbers, units = exact.whole(before)
        assert np.all(np.abs(now - before) <= units / 2) and np.any(now != before)
        np.testing.assert_array_equal(numbers * units, now)
        assert np.all(np.abs(numbers.astype(int)).max(axis=0)[before.any(axis=0)] > 63)
    assert prior.PriorModel.from_arrays(rounded.to_arrays()) == rounded


def test_every_row_of_frequencies_is_whole_and_adds_up():
    tables = model().tables(speech_codes(30))
    for rows in (tables.envelope, *tables.rows, exact.geometric(), symbols.stay_row()):
        assert rows.min() >= 0 and np.all(rows == np.rint(rows))
        np.testing.assert_array_equal(rows.sum(-1), exact.TOTAL - rows.shape[-1])


def golden_checksums():
    """A CRC-32 of the frequencies in each of 10,000 contexts, at the size of the bundled model."""
    tables = prior.PriorModel(weights(num_bins=320, width=192, depth=3)).tables(speech_codes(31, 320))
    rows = [row for array in (tables.envelope, *tables.rows) for row in array.reshape(-1, array.shape[-1])]
    return np.array([zlib.crc32(row.astype("<i4").tobytes()) for row in rows[:10_000]], np.uint32)


def test_the_tables_of_10_000_contexts_are_those_of_the_golden_file():
    expected = np.load(GOLDEN)
    assert len(np.unique(expected)) > 3_000
    np.testing.assert_array_equal(golden_checksums(), expected)


@pytest.mark.parametrize("variables", [{"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_CORETYPE": "Prescott"}])
def test_they_are_the_same_with_other_threads_and_on_a_processor_without_fused_products(variables):
    script = (
        "import numpy as np; from tests import test_prior as t; print(all(t.golden_checksums() == np.load(t.GOLDEN)))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(GOLDEN.parents[2])} | variables
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.strip() == "True", result.stderr


@pytest.mark.usefixtures("blocks_by")
@pytest.mark.parametrize(
    "coder", [model(), checkerboard.CheckerboardModel(checkerboard_weights())], ids=lambda x: x.kind
)
def test_damage_ends_in_an_error_of_its_own_or_in_other_codes(coder):
    codes, rng = speech_codes(30), np.random.default_rng(3)
    data, different = coder.encode(codes), 0
    for _ in range(40):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            different += np.any(decode(coder, bytes(broken), codes) != codes)
        except entropy.DamagedCodes:
            different += 1
    assert different > 35


def test_weights_that_cannot_be_are_refused():
    good = weights()
    large = good | {"up_0/kernel": np.full_like(good["up_0/kernel"], 2000)}
    cases = [
        ({name: good[name] for name in good if name != "mix"}, r"mix has shape None, expected \(11, 11, 32\)"),
        (good | {"extra": good["mix"]}, r"extra has shape \(11, 11, 32\), expected None"),
        ({}, "arrays are missing"),
        (large, "up_0/kernel is too large to be computed exactly"),
        (good | {"up_0/bias": good["up_0/bias"] * np.nan}, "up_0/bias is too large"),
    ]
    for arrays, message in cases:
        with pytest.raises(ValueError, match=message):
            prior.PriorModel(arrays)
    same = entropy.from_arrays("prior", model().to_arrays())
    assert same == model() and same != model(seed=1) and hash(same) == hash(model())
    assert same.fits(F + layout.EXTRA, -(2**15), 2**16) and not same.fits(F, -(2**15), 2**16)


if __name__ == "__main__":
    np.save(GOLDEN, golden_checksums())
