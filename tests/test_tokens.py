"""Token files: what is in them, who makes which, and what a second run does."""

import json
import re
import tracemalloc
import zipfile

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
    monkeypatch.setattr("jaxcodec.inference.files._READ_SECONDS", 0.3)
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
        (dict(beams=2), "begun with beams = None, this command has 2"),
        (dict(matmul_precision="bfloat16"), "begun with matmul_precision = None, this command has bfloat16"),
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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_search_that_is_asked_for_makes_the_shards_and_is_told(codec, model, corpus, tmp_path, processes):
    write(model, corpus, tmp_path / "out", beams=3, matmul_precision="bfloat16", processes=processes)
    settings = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (settings["beams"], settings["matmul_precision"]) == (3, "bfloat16")
    searched = codec.with_beams(3).with_matmul_precision("bfloat16")
    found = {name: codes for shard in (tmp_path / "out").glob("*.npz") for name, codes, _ in tokens.load_shard(shard)}
    clip = audio.load(corpus / "b/1.wav")
    np.testing.assert_array_equal(found["b/1.wav"], searched.encode(clip))
    assert np.any(found["b/1.wav"] != codec.encode(clip))
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(ValueError, match="was made with beams = 3, not None"):
        write(model, corpus, tmp_path / "out")


def test_an_output_that_is_something_else_and_options_that_cannot_be_are_refused(model, corpus, tmp_path):
    (tmp_path / "manifest.json").write_text("{]")
    with pytest.raises(ValueError, match="not a manifest of tokens"):
        write(model, corpus, tmp_path)
    with pytest.raises(ValueError, match="shard_index 2 of num_shards 2"):
        write(model, corpus, tmp_path, shard_index=2, num_shards=2)
    with pytest.raises(ValueError, match="num_codebooks is 5, this codec has 1 to 4"):
        write(model, corpus, tmp_path / "out", num_codebooks=5)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def made(model, corpus, tmp_path):
    """A folder of tokens, and what its shards have in them."""
    write(model, corpus, tmp_path / "out")
    return tmp_path / "out", {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_flipped_shard_is_refused_by_readers_and_made_again_by_the_command(model, corpus, made):
    output, before = made
    path = output / "tokens-00001-of-00003.npz"
    codes = np.load(path)["codes"].tobytes()
    at = before[path.name].index(codes) + 5
    flipped = bytearray(before[path.name])
    flipped[at] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(tokens.DamagedShard, match=r"tokens-00001-of-00003.npz is damaged \(Bad CRC-32"):
        list(tokens.load_shard(path))
    write(model, corpus, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_shard_whose_arrays_were_changed_does_not_match_its_digest(made):
    path = made[0] / "tokens-00000-of-00003.npz"
    arrays = dict(np.load(path))
    assert json.loads((made[0] / "manifest.json").read_text())["shards"][path.name]["digest"] == arrays["digest"]
    np.savez(path, **arrays | {"codes": arrays["codes"] ^ 1})
    with pytest.raises(tokens.DamagedShard, match="does not match its digest"):
        tokens.read_summary(path)
    for change in (dict(offsets=arrays["offsets"][:-1]), dict(num_samples=arrays["num_samples"].astype(str))):
        changed = arrays | change
        np.savez(path, **changed | {"digest": np.array(tokens._digest(changed))})
        with pytest.raises(tokens.DamagedShard, match="its arrays do not fit together"):
            tokens.read_summary(path)


def test_a_lost_manifest_is_written_again_and_other_settings_are_still_refused(model, corpus, made):
    output, before = made
    (output / "manifest.json").unlink()
    for options, problem in ((dict(num_codebooks=2), "num_codebooks = 4, not 2"), (dict(shard_size=4), "shard_size")):
        with pytest.raises(ValueError, match=f"tokens-00000-of-00003.npz was made with {problem}"):
            write(model, corpus, output, **options)
        assert not (output / "manifest.json").exists()
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.npz")}
    write(model, corpus, output)
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.npz")} == times
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_shards_of_another_folder_and_of_versions_without_settings_are_refused(model, corpus, made):
    output, before = made
    stranger = output / "tokens-00007-of-00009.npz"
    stranger.write_bytes(before["tokens-00000-of-00003.npz"])
    with pytest.raises(ValueError, match=r"tokens-00007-of-00009.npz is none of this command: give another output"):
        write(model, corpus, output)
    stranger.unlink()
    arrays = dict(np.load(output / "tokens-00002-of-00003.npz"))
    older = {name: value for name, value in arrays.items() if name not in ("settings", "digest")}
    np.savez(output / "tokens-00002-of-00003.npz", **older)
    with pytest.raises(tokens.DamagedShard, match=r"no item named 'settings\.npy'"):
        tokens.read_summary(output / "tokens-00002-of-00003.npz")
    assert [name for name, _, _ in tokens.load_shard(output / "tokens-00002-of-00003.npz")] == ["b/5.wav"]
    write(model, corpus, output)  # which makes it again
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_the_same_command_started_twice_loses_nothing(model, corpus, made, tmp_path, monkeypatch):
    _, before = made
    savez, started = np.savez, []

    def second_command(file, **arrays):
        savez(file, **arrays)
        if not started:
            started.append(True)
            write(model, corpus, tmp_path / "twice")  # from beginning to end, while this shard is not yet in its place

    monkeypatch.setattr(np, "savez", second_command)
    write(model, corpus, tmp_path / "twice")
    assert {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()} == before


def test_an_array_cannot_ask_for_more_than_the_file_holds(made, tmp_path):
    lie = tmp_path / "lie.npz"
    with zipfile.ZipFile(lie, "w") as archive, np.load(made[0] / "tokens-00000-of-00003.npz") as good:
        for name in good.files:
            member = good.zip.read(f"{name}.npy")
            larger = re.sub(rb"\((\d+), (\d+)\), } {10}", rb"(\g<1>000000000, \2), } ", member)
            archive.writestr(f"{name}.npy", larger)
            assert (larger != member) == (name == "codes") and len(larger) == len(member)
    tracemalloc.start()
    try:
        with pytest.raises(tokens.DamagedShard, match="cannot reshape"):
            tokens.read_summary(lie)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    with zipfile.ZipFile(lie, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", bytes(10**8))
    with pytest.raises(tokens.DamagedShard, match=r"codes\.npy is compressed"):
        tokens.read_summary(lie)
