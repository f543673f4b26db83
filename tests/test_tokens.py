"""Token files: what is in them, who makes which, and what a second run does."""

import json

import numpy as np
import pytest

from jaxcodec import audio, inference
from jaxcodec.inference import files, pretrained, tokens
from tests import support

LENGTHS = (900, 16000, 333, 5000, 2500, 40)


@pytest.fixture(scope="module")
def model(codec, tmp_path_factory):
    """The codec's file."""
    return support.save(codec, tmp_path_factory)


@pytest.fixture
def corpus(tmp_path):
    """A folder of recordings of different lengths, some of them deeper, one that is no recording."""
    folder = tmp_path / "corpus"
    (folder / "b").mkdir(parents=True)
    for i, length in enumerate(LENGTHS):
        audio.save(folder / f"{'b/' if i % 2 else ''}{i}.wav", support.speech_like(1, length, seed=i)[0])
    (folder / "3.flac").write_bytes(b"hello")
    return folder


NAMES = ["0.wav", "2.wav", "4.wav", "b/1.wav", "b/3.wav", "b/5.wav"]


def write(model, corpus, output, **options):
    return list(tokens.write_tokens(model, corpus, output, **dict(shard_size=3) | options))


def contents(output):
    """{name: {array: value}} of all token files."""
    return {path.name: dict(np.load(path)) for path in sorted(output.glob("*.npz"))}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, arrays in expected.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(actual[name][key], value, err_msg=f"{name} {key}")


@pytest.mark.parametrize("blocks", [6, 1, 0])
def test_files_have_the_codes_they_have_alone_whether_batched_or_in_blocks(codec, corpus, monkeypatch, blocks):
    monkeypatch.setattr("jaxcodec.inference.files._BATCH_BLOCKS", blocks)
    monkeypatch.setattr("jaxcodec.inference.files._BLOCK_SECONDS", 0.3)
    paths = [corpus / name for name in NAMES]
    encoded = list(files.encode_files(codec, enumerate(paths), 3))
    assert [item.key for item in encoded] == list(range(len(NAMES)))
    for item, path in zip(encoded, paths, strict=True):
        clip = audio.load(path)
        assert item.codes.dtype == np.uint16 and item.num_samples == len(clip) and item.error is None
        np.testing.assert_array_equal(item.codes, inference.encode(codec, clip, 3))
    assert len(np.unique(encoded[3].codes)) == codec.codebook_size


def test_a_file_that_cannot_be_read_does_not_stop_the_others(codec, corpus):
    encoded = {item.key: item for item in files.encode_files(codec, [(p, corpus / p) for p in ("0.wav", "3.flac")])}
    assert encoded["0.wav"].error is None and encoded["0.wav"].codes.shape[0] == codec.num_codebooks
    assert isinstance(encoded["3.flac"].error, audio.NotAudio)


def test_a_shard_loads_with_numpy_alone(codec, model, corpus, tmp_path):
    write(model, corpus, tmp_path / "out")
    shards = contents(tmp_path / "out")
    assert list(shards) == [f"tokens-0000{i}-of-00003.npz" for i in range(3)]
    assert [name for shard in shards.values() for name in shard["names"]] == NAMES
    for shard in shards.values():
        assert shard["codes"].dtype == np.uint16 and shard["codes"].shape == (4, shard["offsets"][-1])
        for i, name in enumerate(shard["names"]):
            clip = audio.load(corpus / name)
            assert shard["num_samples"][i] == len(clip)
            codes = shard["codes"][:, shard["offsets"][i] : shard["offsets"][i + 1]]
            np.testing.assert_array_equal(codes, inference.encode(codec, clip))


def test_load_shard_gives_one_recording_after_the_other(codec, model, corpus, tmp_path):
    write(model, corpus, tmp_path / "out", shard_size=100, num_codebooks=2)
    loaded = list(tokens.load_shard(tmp_path / "out" / "tokens-00000-of-00001.npz"))
    assert [name for name, _, _ in loaded] == NAMES
    assert [codes.shape for _, codes, _ in loaded] == [(2, codec.num_frames(samples)) for _, _, samples in loaded]


def test_the_manifest_says_how_the_shards_were_made_and_what_failed(codec, model, corpus, tmp_path):
    summaries = write(model, corpus, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == codec.fingerprint.hex()
    assert (manifest["num_codebooks"], manifest["codebook_size"], manifest["recordings"]) == (4, 16, 7)
    assert manifest["complete"] and sum(shard["clips"] for shard in manifest["shards"].values()) == 6
    assert list(manifest["failed"]) == ["3.flac"] and "not audio" in manifest["failed"]["3.flac"]
    assert [name for summary in summaries for name in summary.failed] == ["3.flac"]


def test_a_run_that_was_stopped_makes_only_what_is_missing(model, corpus, tmp_path, monkeypatch):
    output = tmp_path / "out"
    write(model, corpus, tmp_path / "whole")
    savez = np.savez

    def stop_in_second_shard(file, **arrays):
        if arrays["names"][0] == "4.wav":
            file.write(b"half of it")
            raise KeyboardInterrupt
        savez(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", stop_in_second_shard)
        with pytest.raises(KeyboardInterrupt):
            write(model, corpus, output)
    assert sorted(path.name for path in output.iterdir()) == ["manifest.json", "tokens-00000-of-00003.npz"]
    assert not json.loads((output / "manifest.json").read_text())["complete"]
    (output / ".tokens-00001-of-00003.0123abcd.npz").write_bytes(b"of a process that was killed")
    first = (output / "tokens-00000-of-00003.npz").stat().st_mtime_ns
    write(model, corpus, output)
    assert (output / "tokens-00000-of-00003.npz").stat().st_mtime_ns == first
    assert_same(contents(output), contents(tmp_path / "whole"))
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert (output / "manifest.json").read_text() == (tmp_path / "whole" / "manifest.json").read_text()


def test_hosts_share_the_work_and_the_last_completes_the_manifest(model, corpus, tmp_path):
    write(model, corpus, tmp_path / "one")
    write(model, corpus, tmp_path / "two", shard_index=1, num_shards=2)
    assert list(contents(tmp_path / "two")) == ["tokens-00001-of-00003.npz"]
    assert not json.loads((tmp_path / "two" / "manifest.json").read_text())["complete"]
    write(model, corpus, tmp_path / "two", shard_index=0, num_shards=2)
    assert_same(contents(tmp_path / "two"), contents(tmp_path / "one"))
    assert (tmp_path / "two" / "manifest.json").read_text() == (tmp_path / "one" / "manifest.json").read_text()


def test_several_processes_make_the_same_shards_as_one(model, corpus, tmp_path):
    write(model, corpus, tmp_path / "one")
    summaries = write(model, corpus, tmp_path / "two", processes=2)
    assert_same(contents(tmp_path / "two"), contents(tmp_path / "one"))
    assert sum(summary.clips for summary in summaries) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_codebooks=2), "begun with num_codebooks = 4, this command has 2"),
        (dict(shard_size=4), "begun with shard_size = 3, this command has 4"),
        ("model", "begun with model = "),
        ("more recordings", "begun with recordings = 7, this command has 8"),
        ("renamed", "begun with names = "),
    ],
)
def test_other_settings_for_the_same_output_are_refused(codec, model, corpus, tmp_path, change, message):
    write(model, corpus, tmp_path / "out")
    if change == "model":
        model = tmp_path / "other.safetensors"
        pretrained.save(codec.replace(constants={"centroids": codec.constants["centroids"] + 1}), model)
    elif change == "more recordings":
        audio.save(corpus / "new.wav", np.zeros(100, np.float32))
    elif change == "renamed":
        (corpus / "0.wav").rename(corpus / "00.wav")
    with pytest.raises(ValueError, match=message):
        write(str(model), corpus, tmp_path / "out", **change if isinstance(change, dict) else {})


def test_an_output_that_is_something_else_and_options_that_cannot_be_are_refused(model, corpus, tmp_path):
    (tmp_path / "manifest.json").write_text("{]")
    with pytest.raises(ValueError, match="not a manifest of tokens"):
        write(model, corpus, tmp_path)
    with pytest.raises(ValueError, match="shard_index 2 of num_shards 2"):
        write(model, corpus, tmp_path, shard_index=2, num_shards=2)
    with pytest.raises(ValueError, match="num_codebooks is 5, this codec has 1 to 4"):
        write(model, corpus, tmp_path / "out", num_codebooks=5)
    assert not (tmp_path / "out").exists()
