import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxcodec.bitstream import entropy
from tests.fuzz_bitstream import markov_codes

K = 20


def clips(count=4, frames=400, seed=0, num_codebooks=4):
    rng = np.random.default_rng(seed)
    return [markov_codes(rng, num_codebooks, frames, K) for _ in range(count)]


def fit(clips, **kwargs):
    return entropy.fit(
        clips, K, **dict(num_states=20, num_clusters=21, state_smoothing=20.0, weight_smoothing=5.0) | kwargs
    )


@pytest.fixture(scope="module")
def model():
    return fit(clips())


def reference_decode(data, model, num_codebooks, num_frames):
    """docs/format.md in plain Python integers: the range decoder, the edges and the chain of states."""
    words = [int.from_bytes(data[i : i + 4].ljust(4, b"\0"), "little") for i in range(0, len(data), 4)]
    words = iter(words + [0] * (num_codebooks * num_frames + 2))
    mask = 2**64 - 1
    lower, width, point = 0, mask, next(words) << 32 | next(words)
    codes = [[0] * num_frames for _ in range(num_codebooks)]
    for q in range(num_codebooks):
        for t in range(num_frames):
            state = 0
            for j, (source, offset) in enumerate(model.links[q].tolist()):
                if source >= 0:
                    code = codes[source][t + offset] if 0 <= t + offset < num_frames else model.codebook_size
                    state = int(model.transitions[q, j, state, model.clusters[q, j, code]])
            weights = model.weights[q, state].tolist()
            edges = [i + sum(weights[:i]) * (2**24 - len(weights)) // sum(weights) for i in range(len(weights) + 1)]
            scale = width >> 24
            quantile = (point - lower & mask) // scale
            code = max(i for i in range(len(weights)) if edges[i] <= quantile)
            lower = lower + scale * edges[code] & mask
            width = scale * (edges[code + 1] - edges[code])
            if width < 2**32:
                lower, width, point = lower << 32 & mask, width << 32, point << 32 & mask | next(words)
            codes[q][t] = code
    return codes


def test_the_specification_in_plain_python_decodes_what_constriction_wrote(model):
    codes = clips(1, frames=60, seed=1)[0]
    codes[:, 40:] = np.random.default_rng(0).integers(0, K, (4, 20))  # rare codes too
    assert reference_decode(model.encode(codes), model, 4, 60) == codes.tolist()


@pytest.mark.parametrize("size", [2, 3, 20, 1000, 1024, 4096])
def test_weights_become_intervals_that_are_never_empty_and_fill_the_whole_range(size):
    weights = np.random.default_rng(0).integers(0, 65536, (3, size)).astype(np.uint16)
    weights[0, 1:], weights[1, :] = 0, 65535
    edges = entropy.cumulative(weights)
    assert np.all(np.diff(edges) >= 1) and np.all(edges[:, 0] == 0) and np.all(edges[:, -1] == 2**24)
    expected = [
        i + int(weights[2, :i].astype(object).sum()) * (2**24 - size) // int(weights[2].astype(object).sum())
        for i in range(0, size, 97)
    ]
    np.testing.assert_array_equal(edges[2, :size:97], expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 40), st.integers(0, 2**32))
def test_any_codes_come_back_and_so_do_their_first_codebooks(model, num_codebooks, num_frames, seed):
    codes = np.random.default_rng(seed).integers(0, K, (num_codebooks, num_frames))
    decoded = model.decode(model.encode(codes), num_codebooks, num_frames)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, codes)


def test_a_code_that_fitting_never_saw_is_coded_all_the_same():
    never = [np.zeros((2, 200), int)] * 3
    model = fit(never)
    codes = np.full((2, 50), K - 1)
    np.testing.assert_array_equal(model.decode(model.encode(codes), 2, 50), codes)


def test_coded_size_is_the_ideal_one_and_beats_the_entropy_of_single_codes(model):
    codes = np.concatenate(clips(6, seed=7), axis=1)
    size, ideal = 8 * len(model.encode(codes)), model.bits(codes).sum()
    assert ideal < size < ideal + 64 + 0.001 * ideal
    singles = 0.0
    for row in codes:
        p = np.bincount(row, minlength=K) / row.size
        singles -= row.size * np.sum(p[p > 0] * np.log2(p[p > 0]))
    assert size < 0.6 * singles


def test_each_link_of_the_chain_is_worth_its_tables(model):
    codes = np.concatenate(clips(6, seed=7), axis=1)
    links = model.links.copy()
    links[:, -1] = entropy.UNUSED, 0
    without_past = dataclasses.replace(model, links=links)
    assert np.all(without_past.bits(codes) > 1.05 * model.bits(codes))


def test_a_codebook_does_not_see_deeper_ones_or_its_own_future(model):
    codes = clips(1, frames=50, seed=3)[0]
    edited = codes.copy()
    edited[2, 25:] = np.random.default_rng(0).integers(0, K, 25)
    for codebook in (0, 1):
        np.testing.assert_array_equal(model.states(codes, codebook), model.states(edited, codebook))
    before, after = model.states(codes, 2), model.states(edited, 2)
    np.testing.assert_array_equal(before[:26], after[:26])
    assert not np.array_equal(before[26:], after[26:])


def test_fitting_twice_gives_the_same_model_and_other_clips_another():
    again, other = fit(clips()), fit(clips(seed=5))
    assert again == fit(clips()) and hash(again) == hash(fit(clips())) and len(again.digest) == 32
    assert again != other and again.digest != other.digest


def test_a_model_survives_its_arrays(model, tmp_path):
    np.savez(tmp_path / "model.npz", **model.to_arrays())
    with np.load(tmp_path / "model.npz") as arrays:
        assert entropy.EntropyModel.from_arrays(dict(arrays)) == model


def test_every_table_is_of_integers(model):
    assert {array.dtype.kind for array in model.to_arrays().values()} <= {"i", "u"}


def damaged(model, name, index, value):
    arrays = {key: array.copy() for key, array in model.to_arrays().items()}
    arrays[name][index] = value
    return arrays


def test_impossible_arrays_are_refused_by_name(model):
    cases = [
        (damaged(model, "weights", (0, 0), 0), "weights are all zero"),
        (damaged(model, "transitions", (1, -1, 0, 0), 200), "below 2[01]"),
        (damaged(model, "clusters", (1, -1, 0), 200), "below 2[01]"),
        (damaged(model, "links", (1, 0), (2, 0)), "codebook 1 cannot be decoded from codebook 2"),
        (damaged(model, "links", (1, -1), (1, 0)), "codebook 1 at offset 0"),
        ({**model.to_arrays(), "weights": model.weights.astype(float)}, "weights must be an array of uint16"),
        ({**model.to_arrays(), "weights": model.weights[:, :, 1:]}, "do not fit together"),
        ({**model.to_arrays(), "links": model.links[0]}, "unexpected shapes"),
        ({"weights": model.weights}, "expected"),
    ]
    for arrays, message in cases:
        with pytest.raises(ValueError, match=message):
            entropy.EntropyModel.from_arrays(arrays)


def test_codes_the_model_cannot_hold_are_refused(model):
    with pytest.raises(ValueError, match=r"must lie in \[0, 20\), got 0 to 20"):
        model.encode(np.array([[0, K]]))
    with pytest.raises(ValueError, match="5 codebooks, the entropy model has tables for 4"):
        model.encode(np.zeros((5, 1), int))
    with pytest.raises(ValueError, match="lie in"):
        entropy.fit([np.array([[K]])], K)
    with pytest.raises(ValueError, match=r"got \[1, 2\]"):
        fit([np.zeros((1, 5), int), np.zeros((2, 5), int)])
    with pytest.raises(ValueError, match="300 states"):
        fit(clips(1), num_states=300)


def test_bytes_no_encoder_wrote_end_in_a_named_error(model):
    outcomes = set()
    rng = np.random.default_rng(0)
    for data in [b"", b"\xff" * 40, *(rng.bytes(n) for n in range(1, 60))]:
        try:
            assert model.decode(data, 4, 30).max() < K
            outcomes.add("codes")
        except entropy.DamagedCodes:
            outcomes.add("refused")
    assert outcomes == {"codes", "refused"}


def test_importing_imports_no_jax():
    code = "import sys, jaxcodec.bitstream, jaxcodec.bitstream.entropy; print({'jax', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
