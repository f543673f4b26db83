"""The prior that predicts many frames at once: codes that come back, exact numbers, and the network that was trained."""

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

import jaxcodec
from jaxcodec import bitstream, quantizers
from jaxcodec.bitstream import checkerboard, entropy, exact
from jaxcodec.inference import files, pretrained
from jaxcodec.quantizers import checkerboard as network, layout, scalar
from tests import support, test_scalar
from tests.fuzz_bitstream import checkerboard_weights as weights, scalar_codes
from tests.test_prior import wild_codes
from tools import fit_checkerboard

GOLDEN = pathlib.Path(__file__).parent / "golden" / "checkerboard_tables.npy"
F = 64


def model(**sizes):
    return checkerboard.CheckerboardModel(weights(**sizes))


class Recorder:
    """A coder that writes nothing down but how probable what it is told was, and the rows and logits that said so."""

    def __init__(self):
        self.bits, self.rows, self.logits = [], [], []

    def _told(self, found, rows):
        self.rows.append(rows.reshape(-1, rows.shape[-1]))
        chosen = rows.reshape(-1, rows.shape[-1])[np.arange(found.size), found.astype(int).ravel()] + 1
        self.bits.append(np.sum(entropy.PRECISION - np.log2(chosen)))

    def heads(self, head):
        return head

    def changes(self, changes, rows):
        self._told(changes.clip(-layout.MAX_CHANGE, layout.MAX_CHANGE) + layout.MAX_CHANGE, rows)
        return changes

    def magnitudes(self, magnitudes, *logits):
        self.logits.append(np.stack(logits, axis=1))
        present = magnitudes != 0
        self._told(present, checkerboard._presence_rows(logits[0]))
        self._told(magnitudes[present] - 1, checkerboard._tails(np.flatnonzero(present), *logits)[0])
        return magnitudes

    def signs(self, signs):
        self.bits.append(len(signs))
        return signs


def recorded(coder, codes):
    recorder = Recorder()
    np.testing.assert_array_equal(coder._walk(codes.T.astype(np.float64), recorder), codes.T)
    return recorder


def test_codes_come_back_whatever_they_are():
    coder, rng = model(), np.random.default_rng(1)
    wild, speech = wild_codes(rng), scalar_codes(130)
    for codes in (wild, speech, np.zeros_like(wild), *(speech[:, :size] for size in (0, 1, 2, 3, 4, 5, 64, 65))):
        data = coder.encode(codes)
        for more in (0, 7):
            np.testing.assert_array_equal(coder.decode(data + bytes(more), *codes.shape), codes)
    noise = rng.integers(-layout.MAX_CODE - 1, layout.MAX_CODE + 1, wild.shape).astype(np.int32)
    np.testing.assert_array_equal(coder.decode(coder.encode(noise), *noise.shape), noise)


def test_blocks_of_more_than_a_portion_come_back():
    coder, codes = model(width=4), scalar_codes(4 * checkerboard.PORTION + 3)
    np.testing.assert_array_equal(coder.decode(coder.encode(codes), *codes.shape), codes)


def test_several_blocks_are_what_they_are_alone():
    coder = model()
    clips = [scalar_codes(size, seed=size) for size in (3, 50, 0, 21)]
    blocks = coder.encode_blocks(clips)
    assert blocks == [coder.encode(codes) for codes in clips]
    decoded = coder.decode_blocks([*blocks, b"\xff" * 40], F + layout.EXTRA, [3, 50, 0, 21, 50])
    for codes, result in zip(clips, decoded, strict=False):
        np.testing.assert_array_equal(result, codes)
    assert isinstance(decoded[-1], entropy.DamagedCodes) or decoded[-1].shape == (F + layout.EXTRA, 50)


def trained_network(num_frames):
    """A network that says something, and what it is told of `num_frames` frames of codes."""
    codes, prior = scalar_codes(num_frames), network.CheckerboardPrior(16, 1)
    inputs = scalar.ScalarQuantizer(F).prior_inputs(jnp.asarray(codes)[None])
    params = prior.init(jax.random.key(0), *inputs, jnp.ones((1, num_frames, 1)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), params)
    params = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), params)
    return prior, params, codes, inputs


def test_probabilities_are_those_of_the_network_that_was_trained():
    prior, params, codes, inputs = trained_network(77)
    bits = np.asarray(jax.jit(lambda *x: prior.apply(params, *x, method="bits"))(*inputs, jnp.ones((1, 77, 1))))
    coder = checkerboard.CheckerboardModel(flax.traverse_util.flatten_dict(params["params"], sep="/"))
    *told, signs = recorded(coder, codes).bits
    passes = np.array(told[-2 * len(layout.CHECKERS) :]).reshape(-1, 2).sum(1)
    envelope = sum(told) - passes.sum()
    np.testing.assert_allclose(envelope, bits[0], rtol=0.003)
    coefficients = codes[layout.EXTRA :].T
    expected = [bits[1 + i] - np.count_nonzero(coefficients[which]) for i, which in enumerate(layout.checkers())]
    np.testing.assert_allclose(passes, expected, rtol=0.01)
    assert signs == np.count_nonzero(coefficients)


def test_clips_in_a_padded_batch_cost_what_they_cost_alone():
    prior, params, _, inputs = trained_network(40)
    cost = jax.jit(lambda mask, *x: prior.apply(params, *x, mask, method="bits"))
    longer = [jnp.concatenate([x, 3 + jnp.abs(x[:, ::-1])], axis=1) for x in inputs]
    alone = cost(jnp.ones((1, 40, 1)), *inputs)
    padded = cost((jnp.arange(80) < 40).astype(jnp.float32)[None, :, None], *longer)
    np.testing.assert_allclose(padded, alone, rtol=1e-4)
    assert np.all(cost(jnp.ones((1, 80, 1)), *longer) > 1.2 * alone)
    logits, changes = prior.apply(params, *inputs, jnp.ones((1, 40, 1)))
    beside, changes_beside = prior.apply(params, *longer, (jnp.arange(80) < 40).astype(jnp.float32)[None, :, None])
    for x, y in zip([*logits, changes], [*beside, changes_beside], strict=True):
        np.testing.assert_allclose(y[:, : x.shape[1]], x, atol=2e-5)


def test_every_row_of_frequencies_is_whole_and_adds_up():
    for rows in recorded(model(), scalar_codes(30)).rows:
        assert rows.min(initial=0) >= 0 and np.all(rows == np.rint(rows))
        np.testing.assert_array_equal(rows.sum(-1), exact.TOTAL - rows.shape[-1])


def golden_checksums():
    """A CRC-32 of frequencies of the envelope and of all logits, in 31 frames, at the size of the bundled model."""
    told = recorded(model(num_bins=320, width=128, depth=2), scalar_codes(31, 320))
    arrays = [rows for rows in told.rows if rows.shape[1] == 2 * layout.MAX_CHANGE + 1] + told.logits
    return np.array([zlib.crc32(row.astype("<i4").tobytes()) for rows in arrays for row in rows], np.uint32)


@pytest.mark.parametrize("variables", [{}, {"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_CORETYPE": "Prescott"}])
def test_the_tables_are_those_of_the_golden_file_on_any_processor(variables):
    expected = np.load(GOLDEN)
    assert len(expected) > 10_000 and len(np.unique(expected)) > 8_000
    script = "from tests import test_checkerboard as t; print((t.golden_checksums() == t.np.load(t.GOLDEN)).all())"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(GOLDEN.parents[2])} | variables
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "True", result.stderr


def test_weights_that_cannot_be_are_refused():
    good = weights()
    cases = [
        ({name: good[name] for name in good if name != "mix"}, r"mix has shape None, expected \(11, 11, 32\)"),
        (good | {"extra": good["mix"]}, r"extra has shape \(11, 11, 32\), expected None"),
        ({}, "arrays are missing"),
        (good | {"input/kernel": np.full_like(good["input/kernel"], 2000)}, "input/kernel is too large"),
    ]
    for arrays, message in cases:
        with pytest.raises(ValueError, match=f"checkerboard: {message}"):
            checkerboard.CheckerboardModel(arrays)
    same = entropy.from_arrays("checkerboard", model().to_arrays())
    assert same == model() and same != model(seed=1)
    assert same.fits(F + layout.EXTRA, -(2**15), 2**16) and not same.fits(F, -(2**15), 2**16)


# In files.


@pytest.fixture(scope="module")
def codec():
    """A small codec for files, with both priors."""
    config = test_scalar.small_config()
    state = support.make_state(support.make_model(config))
    bare = pretrained.make(state.params, state.quantizer, config)
    num_bins = bare.module.quantizer.num_bins
    return bare.replace(fast_entropy=model(num_bins=num_bins, width=8))


def test_fast_files_say_so_themselves(codec, tmp_path):
    clip = support.speech_like(1, 9000)[0]
    codes = np.asarray(codec.encode(clip))
    jaxcodec.audio.save(tmp_path / "clip.wav", clip)
    (of_file,) = files.compress_files(codec, [("key", tmp_path / "clip.wav")], layout=files.Layout(fast=True))
    fast = jaxcodec.compress(codec, clip, fast=True)
    assert fast == jaxcodec.pack(codec, codes, 9000, fast=True) == jaxcodec.pack(codec, [codes], [9000], fast=True)[0]
    assert bitstream.read_header(of_file.data).coding == bitstream.read_header(fast).coding == 3
    usual = jaxcodec.compress(codec, clip)
    assert bitstream.read_header(usual).coding == 2
    for data in (fast, usual):
        np.testing.assert_array_equal(jaxcodec.unpack(codec, data).codes, codes)
    for unpacked in jaxcodec.unpack(codec, [usual, fast, usual]):  # read side by side
        np.testing.assert_array_equal(unpacked.codes, codes)
    np.testing.assert_array_equal(jaxcodec.decompress(codec, fast), jaxcodec.decompress(codec, usual))


def test_kbps_of_fast_files_are_those_of_their_own_bytes(codec):
    clip, qualities = support.speech_like(1, 16000)[0], []
    for fast, coding in ((False, 2), (True, 3)):
        data = jaxcodec.compress(codec, clip, kbps=60, fast=fast)
        qualities.append(jaxcodec.unpack(codec, data).codes[0, 0] * quantizers.QUALITY_DB)
        finer = jaxcodec.compress(codec, clip, quality=qualities[-1] - quantizers.QUALITY_DB, fast=fast)
        assert bitstream.read_header(data).coding == bitstream.read_header(finer).coding == coding
        assert 8e-3 * len(data) <= 60 and max(8e-3 * len(finer), len(data) * 8e-3 / 0.99) > 60
    assert qualities[0] != qualities[1]


def test_a_codec_without_it_says_what_is_missing(codec):
    bare, clip = codec.replace(fast_entropy=None), support.speech_like(1, 3000)[0]
    with pytest.raises(ValueError, match="no prior that predicts many frames at once"):
        jaxcodec.compress(bare, clip, fast=True)
    unread = (pytest.fail("read before it is told") for _ in range(1))
    with pytest.raises(ValueError, match="no prior that predicts many frames at once"):
        next(files.compress_files(bare, unread, layout=files.Layout(fast=True)))
    fast = jaxcodec.compress(codec, clip, fast=True)
    with pytest.raises(bitstream.WrongEntropyModel, match=codec.fast_entropy.digest[:4].hex()):
        jaxcodec.decompress(bare, fast)
    assert jaxcodec.compress(bare, clip, fast=True, entropy=False) == jaxcodec.compress(bare, clip, entropy=False)


def test_blocks_that_would_take_too_much_memory_are_refused(codec):
    clip, most = support.speech_like(1, 3000)[0], checkerboard.CheckerboardModel.max_block_frames
    with pytest.raises(ValueError, match=rf"expected a number above 0, at most {most / codec.frame_rate:g}"):
        jaxcodec.compress(codec, clip, fast=True, block_seconds=1 + most / codec.frame_rate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkerboard.CheckerboardModel, "max_block_frames", 2 * most)
        data = jaxcodec.compress(codec, clip, fast=True, block_seconds=1 + most / codec.frame_rate)
    with pytest.raises(bitstream.DamagedHeader, match=f"its entropy coder has at most {most}"):
        jaxcodec.decompress(codec, data)


def test_model_files_keep_it_and_refuse_another_kind(codec, tmp_path):
    for dtype in ("float32", "float16"):
        written = pretrained.save(codec, tmp_path / "model.safetensors", dtype)
        assert written.fast_entropy == codec.fast_entropy and written.entropy.kind == "prior"
        assert jaxcodec.load(tmp_path / "model.safetensors").fast_entropy == codec.fast_entropy
    assert codec.fingerprint == codec.replace(fast_entropy=None).fingerprint
    wrong = codec.replace(fast_entropy=codec.entropy)
    with pytest.raises(ValueError, match="its entropy model is of the kind prior, its quantizer has checkerboard"):
        pretrained.save(wrong, tmp_path / "wrong.safetensors")


# The tool that fits it.


def batches(count):
    batch = support.make_batch(num_samples=2560, lengths=(2560, 2000, 2560, 0))
    return [{name: array[None] for name, array in batch.items()}] * count


def test_the_tool_lowers_the_bits_and_leaves_the_codes_alone(codec, monkeypatch):
    monkeypatch.setattr(fit_checkerboard, "WARMUP", 5)
    seen = []
    for fitted, bits, own_bits in fit_checkerboard.fit(codec, batches(50), 50, 1e-2, width=16, depth=1):  # noqa: B007
        seen.append(bits.sum() / own_bits())  # levels and qualities differ from step to step
        assert bits.shape == (1 + len(layout.CHECKERS),)
    assert np.mean(seen[-9:]) < 0.9 * np.mean(seen[:3])
    clip, result = support.speech_like(1, 3000, seed=3)[0], fitted()
    assert result.fingerprint == codec.fingerprint
    assert len(jaxcodec.compress(result, clip, fast=True)) < len(jaxcodec.compress(codec, clip, fast=True))


def test_the_tool_writes_a_model_and_refuses_what_cannot_be(codec, tmp_path, monkeypatch, capsys):
    pretrained.save(codec.replace(fast_entropy=None), tmp_path / "model.safetensors")
    out = tmp_path / "fitted.safetensors"
    sizes = ["--width", "8", "--depth", "1", "--batch_size", "2"]
    monkeypatch.setattr(fit_checkerboard, "WARMUP", 5)
    arguments = ["fit", str(tmp_path / "model.safetensors"), "--steps", "6", *sizes, "-o", str(out)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--prepared_dir", str(tmp_path)])
    fit_checkerboard.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 6 of 6: ") and "of the codec's own prior; envelope" in line
    assert jaxcodec.load(out).fast_entropy.weights["input/kernel"].shape == (22, 8)
    monkeypatch.setattr(sys, "argv", ["fit", "files", "--steps", "3", "-o", "never"])
    with pytest.raises(SystemExit, match="--steps is 3, expected at least 6"):
        fit_checkerboard.main()
    with pytest.raises(ValueError, match="not one for files"):
        next(fit_checkerboard.fit(support.trained_codec(support.small_config()), [], 101, 1e-3))


if __name__ == "__main__":
    np.save(GOLDEN, golden_checksums())
