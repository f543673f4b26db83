import collections
import contextlib
import csv
import functools
import hashlib
import http.server
import itertools
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from jaxcodec import audio, data
from jaxcodec.data import openslr66, recordings
from jaxcodec.data.recordings import PrepareOptions, StagedClip

SAMPLE = pathlib.Path(data.__file__).parents[1] / "datasets" / "sample"


@pytest.fixture
def config(tmp_path):
    return ConfigDict(
        {
            "source": "sample",
            "data_dir": "",
            "prepared_dir": str(tmp_path / "prepared"),
            "min_clip_seconds": 0.02,
            "max_clip_seconds": 20.0,
            "max_bad_fraction": 0.5,
            "validation_fraction": 0.05,
            "test_fraction": 0.05,
        }
    )


def noise(seconds, seed, sample_rate=16000):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * sample_rate)).astype(np.float32)


def write(path, samples, sample_rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sample_rate, **options)


def write_clips(folder, names, seconds=0.1):
    for seed, name in enumerate(names):
        write(folder / name, noise(seconds, seed))


def digest(samples):
    return hashlib.sha256(samples.tobytes()).hexdigest()


def open_all(config):
    """{split: {id: int16 samples}} of the splits that there are."""
    splits = data.prepare(config).info.splits
    sources = {split: data.open_split(config, split) for split in splits}
    return {split: {clip["id"]: clip["audio"] for clip in source} for split, source in sources.items()}


@pytest.fixture
def bad_folder(tmp_path):
    folder = tmp_path / "speech"
    write_clips(folder, ["good one.wav", "good two.flac"], seconds=1.5)
    write(folder / "truncated.wav", noise(1, 10))
    (folder / "truncated.wav").write_bytes((folder / "truncated.wav").read_bytes()[:20000])
    (folder / "zero.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound\n" * 50)
    write(folder / "nan.wav", np.where(np.arange(16000) == 9, np.nan, noise(1, 11)), subtype="FLOAT")
    write(folder / "stereo.wav", np.stack([noise(1, 12, 8000)] * 2, axis=1), 8000)
    write(folder / "long.wav", noise(600, 13))
    write(folder / "short.wav", noise(0.05, 14))
    return folder


def test_a_folder_with_bad_files_prepares_and_names_each_problem_once(config, bad_folder, caplog):
    config.data_dir = str(bad_folder)
    with caplog.at_level(logging.WARNING):
        clips = {name: samples for split in open_all(config).values() for name, samples in split.items()}
    for name in ("truncated.wav", "zero.wav", "text.wav", "nan.wav"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert caplog.text.count("4 of 9 files skipped: 1 not audio, 1 not finite, 1 truncated, 1 zero bytes") == 1
    assert not any(good in caplog.text for good in ("good", "stereo", "long", "short.wav"))
    assert len(clips["short.wav"]) == 800 and len(clips["stereo.wav"]) == 16000
    pieces = [clips[f"long.wav#{k}"] for k in range(30)]
    assert {len(piece) for piece in pieces} == {320000}
    np.testing.assert_array_equal(np.concatenate(pieces), audio.to_int16(audio.load(bad_folder / "long.wav")))
    assert len(clips) == 2 + 2 + 30


def test_a_second_opening_reads_the_prepared_copy_and_is_silent(config, bad_folder, caplog, monkeypatch):
    config.data_dir = str(bad_folder)
    first = open_all(config)
    monkeypatch.setattr(audio, "load", None)
    caplog.clear()
    second = open_all(config)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {split: set(clips) for split, clips in first.items()} == {
        split: set(clips) for split, clips in second.items()
    }


def test_a_changed_folder_is_prepared_anew_and_an_unchanged_one_is_not(config, tmp_path):
    config.data_dir = str(tmp_path / "speech")
    write_clips(tmp_path / "speech", ["a.wav", "b.wav"])
    first = data.prepare(config).data_path
    assert data.prepare(config).data_path == first
    write(tmp_path / "speech" / "c.wav", noise(0.1, 9))
    assert data.prepare(config).data_path != first
    assert sum(map(len, open_all(config).values())) == 3
    os.utime(tmp_path / "speech" / "c.wav", (1, 1))
    assert len({data.prepare(config).data_path, first}) == 2


def test_too_large_a_share_of_bad_files_stops_with_one_line(config, bad_folder):
    config.data_dir, config.max_bad_fraction = str(bad_folder), 0.4
    with pytest.raises(
        ValueError, match=r"4 of 9 files cannot be used \(1 not audio.*max_bad_fraction=0.4.*nan\.wav"
    ) as e:
        data.prepare(config)
    assert "\n" not in str(e.value)
    assert not list(pathlib.Path(config.prepared_dir).glob("*/*/*/*"))


def test_a_wrong_path_an_empty_folder_and_a_file_end_with_one_line(config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for name, problem in (
        ("gone", "is not a directory"),
        ("empty", "has no wav/flac"),
        ("notes.txt", "is not a dir"),
    ):
        config.data_dir = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*{problem}"):
            data.prepare(config)


def test_silent_and_too_short_files_are_counted_by_reason(tmp_path):
    write_clips(tmp_path, ["a.wav", "b.wav", "c.wav"])
    write(tmp_path / "silent.wav", np.zeros(16000))
    write(tmp_path / "tiny.wav", noise(0.01, 1))
    files = recordings.find_recordings(tmp_path)
    clips, skipped = recordings.stage(files, PrepareOptions(), recordings.Staging())
    assert [clip.id for clip in clips] == ["a.wav", "b.wav", "c.wav"]
    assert skipped == {"silent": 1, "too short": 1}


def test_names_that_are_no_recording_or_no_text_are_skipped_and_counted(config, tmp_path, caplog):
    folder = tmp_path / "speech"
    write_clips(folder, [f"{k}.wav" for k in range(5)])
    os.mkfifo(folder / "pipe.wav")
    pipe = os.open(folder / "pipe.wav", os.O_RDWR)  # so that one who opens it after all does not wait here
    os.write(pipe, b"RIFF")
    (folder / "dangling.wav").symlink_to("gone.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    os.link(folder / "0.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    config.data_dir = str(folder)
    with caplog.at_level(logging.WARNING):
        clips = open_all(config)
    os.close(pipe)
    assert sorted(name for split in clips.values() for name in split) == [f"{k}.wav" for k in range(5)]
    assert "4 of 9 files skipped: 1 name not UTF-8, 1 not a file, 2 unreadable" in caplog.text
    for line in (
        r"caf\xe9.wav: its name is not UTF-8",
        "pipe.wav: not a regular file",
        "dangling.wav: No such file or directory",
        "loop.wav: Too many levels of symbolic links",
    ):
        assert caplog.text.count(f"skipped {folder}/{line}") == 1
    prepared = data.prepare(config).data_path
    write(folder / "gone.wav", noise(0.1, 9))  # now the link leads somewhere
    assert data.prepare(config).data_path != prepared
    config.max_bad_fraction = 0.1
    with pytest.raises(
        ValueError, match=r"3 of 10 files cannot be used \(1 name not UTF-8, 1 not a file, 1 unreadable"
    ):
        data.prepare(config)


def test_staged_clips_read_back_what_was_decoded(tmp_path):
    write_clips(tmp_path, ["a.wav", "b.wav"])
    staging = recordings.Staging(str(tmp_path))
    clips, _ = recordings.stage(recordings.find_recordings(tmp_path), PrepareOptions(max_clip_seconds=0.04), staging)
    assert [(clip.id, clip.length) for clip in clips[:3]] == [
        ("a.wav#0", 534),
        ("a.wav#1", 533),
        ("a.wav#2", 533),
    ]
    whole = np.concatenate([staging.read(clip) for clip in clips])
    np.testing.assert_array_equal(audio.to_float(whole[:1600]), audio.load(tmp_path / "a.wav"))
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "b.wav"]  # the staging file has no name


def test_links_are_followed_once_and_hidden_files_are_left_out(tmp_path):
    write_clips(tmp_path / "speech", ["a/1.wav", "b/2.WAV", ".trash/3.wav", "a/._4.wav"])
    write(tmp_path / "elsewhere" / "5.wav", noise(0.1, 5))
    (tmp_path / "speech" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "speech" / "b" / "loop").symlink_to(tmp_path / "speech")
    names = [recording.id for recording in recordings.find_recordings(tmp_path / "speech")]
    assert names == ["a/1.wav", "b/2.WAV", "c/5.wav"]


def test_speakers_are_first_level_folders_only_where_every_file_has_one(tmp_path):
    write_clips(tmp_path / "named", ["anna/1.wav", "anna/x/2.wav", "bela/1.wav"])
    write_clips(tmp_path / "flat", ["anna/1.wav", "2.wav"])
    write_clips(tmp_path / "one", ["wavs/1.wav", "wavs/2.wav"])
    speakers = {
        name: [r.speaker for r in recordings.find_recordings(tmp_path / name)] for name in ("named", "flat", "one")
    }
    assert speakers == {"named": ["anna", "anna", "bela"], "flat": ["", ""], "one": ["", ""]}


@pytest.mark.parametrize("validation", ["validation", "valid", "dev", "val"])
def test_given_split_folders_are_used_as_given(config, tmp_path, validation):
    folder = tmp_path / "speech"
    write_clips(
        folder,
        ["train/anna/1.wav", "train/bela/2.wav", f"{validation}/anna/3.wav", "test/bela/4.wav", "5.wav"],
    )
    config.data_dir = str(folder)
    assert {split: set(clips) for split, clips in open_all(config).items()} == {
        "train": {"train/anna/1.wav", "train/bela/2.wav"},
        "validation": {f"{validation}/anna/3.wav"},
        "test": {"test/bela/4.wav"},
    }
    assert {clip["speaker"] for clip in data.open_split(config, "train")} == {"anna", "bela"}


def test_a_given_train_folder_without_validation_lends_it_some(config, tmp_path):
    write_clips(tmp_path / "speech", [f"train/{k}.wav" for k in range(5)])
    config.data_dir = str(tmp_path / "speech")
    splits = open_all(config)
    assert set(splits) == {"train", "validation"} and sum(map(len, splits.values())) == 5


def clip(name, speaker="", group=None, split=None):
    return StagedClip(name, speaker, group or name, split, 0, 1)


def test_pieces_and_copies_of_one_recording_share_a_split():
    clips = [clip(f"{k}#{piece}", group=str(k)) for k in range(200) for piece in range(3)]
    splits = recordings.assign_splits(clips, PrepareOptions(validation_fraction=0.2, test_fraction=0.2))
    groups = {split: {c.group for c in members} for split, members in splits.items()}
    assert sum(map(len, splits.values())) == 600 and sum(map(len, groups.values())) == 200
    assert 20 < len(groups["validation"]) < 60 and 20 < len(groups["test"]) < 60


def test_ten_speakers_or_more_are_split_by_speaker_fewer_are_not():
    many = [clip(f"{k}", speaker=f"s{k % 12}") for k in range(120)]
    splits = recordings.assign_splits(many, PrepareOptions(validation_fraction=0.2, test_fraction=0.2))
    speakers = [{c.speaker for c in members} for members in splits.values()]
    assert sum(map(len, speakers)) == 12
    few = [clip(f"{k}", speaker=f"s{k % 3}") for k in range(120)]
    splits = recordings.assign_splits(few, PrepareOptions(validation_fraction=0.2, test_fraction=0.2))
    assert all(len({c.speaker for c in members}) == 3 for members in splits.values())


def test_validation_is_never_empty_and_growth_moves_nothing():
    for count in range(2, 30):
        splits = recordings.split_of_groups(map(str, range(count)), 0.05, 0.05)
        assert {"train", "validation"} <= set(splits.values())
    assert set(recordings.split_of_groups(["only"], 0.05, 0.05).values()) == {"train"}
    assert "validation" not in recordings.split_of_groups(map(str, range(9)), 0.0, 0.0).values()
    small = recordings.split_of_groups(map(str, range(1000)), 0.1, 0.1)
    large = recordings.split_of_groups(map(str, range(3000)), 0.1, 0.1)
    assert all(large[group] == split for group, split in small.items())
    assert collections.Counter(large.values())["validation"] == pytest.approx(300, abs=60)


def test_a_copy_of_a_recording_lands_in_the_split_of_the_original(config, tmp_path):
    for seed in range(12):
        write(tmp_path / "speech" / f"{seed}.wav", noise(0.1, seed))
        write(tmp_path / "speech" / f"copy of {seed}.wav", noise(0.1, seed))
    config.update({"data_dir": str(tmp_path / "speech"), "validation_fraction": 0.3, "test_fraction": 0.3})
    hashes = [{samples.tobytes() for samples in clips.values()} for clips in open_all(config).values()]
    assert len(hashes) == 3 and sum(map(len, hashes)) == 12


def test_a_preparation_killed_half_way_leaves_nothing_that_counts(config, tmp_path):
    write_clips(tmp_path / "speech", [f"{k}.wav" for k in range(6)])
    config.data_dir = str(tmp_path / "speech")
    code = f"""
import os, signal
from ml_collections import ConfigDict
from jaxcodec import data
from jaxcodec.data import recordings
read = recordings.Staging.read
def read_one(self, clip):
    return os.kill(os.getpid(), signal.SIGKILL) if clip.offset else read(self, clip)
recordings.Staging.read = read_one
data.prepare(ConfigDict({config.to_dict()!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = list(pathlib.Path(config.prepared_dir).glob("*/*/incomplete*"))
    assert left  # it was killed while writing
    assert sum(map(len, open_all(config).values())) == 6
    assert not left[0].exists()


def test_an_unwritable_prepared_dir_ends_with_one_line(config, tmp_path):
    write_clips(tmp_path / "speech", ["a.wav", "b.wav"])
    (tmp_path / "file").write_text("in the way")
    config.update({"data_dir": str(tmp_path / "speech"), "prepared_dir": str(tmp_path / "file")})
    with pytest.raises(ValueError, match=r"cannot prepare the data: .*file"):
        data.prepare(config)


def test_unknown_sources_and_missing_splits_end_with_one_line(config, tmp_path):
    write_clips(tmp_path / "speech", ["a.wav"])
    with pytest.raises(ValueError, match="'nowhere' is unknown, use sample, folder or openslr66"):
        data.prepare(_with(config, source="nowhere"))
    with pytest.raises(ValueError, match="needs data_dir"):
        data.prepare(_with(config, source="folder"))
    with pytest.raises(ValueError, match=r"no validation split in .*, it has: train"):
        data.open_split(_with(config, data_dir=str(tmp_path / "speech")), "validation")


def _with(config, **values):
    changed = ConfigDict(config.to_dict())
    changed.update(values)
    return changed


WITHOUT_PACKAGES = """
import importlib.machinery, sys
class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("tensorflow", "librosa", "soundfile")
        return None if hidden else super().find_spec(name, path, target)
sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def test_prepared_shards_are_read_without_tensorflow_librosa_and_soundfile(config, tmp_path):
    write_clips(tmp_path / "speech", [f"{k}.wav" for k in range(4)])
    config.data_dir = str(tmp_path / "speech")
    here = {split: sorted(map(digest, clips.values())) for split, clips in open_all(config).items()}
    there = _with(config, data_dir=str(data.prepare(config).data_path))
    code = f"""{WITHOUT_PACKAGES}
import hashlib
from ml_collections import ConfigDict
from jaxcodec import data
config = ConfigDict({there.to_dict()!r})
source = data.open_split(config, "train")
batch = next(data.train_batches(source, seed=0, start_step=0, batch_size=2, crop_samples=800, backend="auto"))
assert batch["audio"].shape == (1, 2, 800) and batch["length"].tolist() == [[800, 800]]
def digests(split):
    clips = data.open_split(config, split)
    return sorted(hashlib.sha256(clip["audio"].tobytes()).hexdigest() for clip in clips)
print({{split: digests(split) for split in ("train", "validation")}})
config.data_dir = {config.data_dir!r}
config.prepared_dir += "-elsewhere"
try:
    data.prepare(config)
except ValueError as error:
    print(error, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(here)
    assert "needs the package 'soundfile': pip install 'jaxcodec[train]', or set data_dir" in done.stderr


def test_the_sample_corpus_is_what_its_index_says():
    with open(SAMPLE / "index.tsv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    files = {path.relative_to(SAMPLE).as_posix(): path.read_bytes() for path in SAMPLE.rglob("*.flac")}
    assert {row["file"]: row["sha256"] for row in rows} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    assert sum(map(len, files.values())) <= 12e6
    seconds = collections.Counter()
    for row in rows:
        seconds[row["split"], row["speaker"] == "festvox-ru"] += float(row["seconds"])
    assert seconds["train", True] > 400 and seconds["train", False] > 120
    assert 60 <= seconds["validation", True] + seconds["validation", False] <= 80
    recorded = {(row["split"], row["file"][-6]) for row in rows if row["speaker"] == "festvox-ru"}
    assert {digit for split, digit in recorded if split == "validation"} == {"3"}
    assert not {"3", "7"} & {digit for split, digit in recorded if split == "train"}


def test_the_sample_corpus_opens_in_its_two_splits(config):
    train, validation = data.open_split(config, "train"), data.open_split(config, "validation")
    assert len(train) > 100 and 12 <= len(validation) <= 20
    assert not {clip["id"].split("/")[-1] for clip in train} & {clip["id"].split("/")[-1] for clip in validation}
    assert {clip["speaker"] for clip in validation} == {"festvox-ru", "piper-joe", "espeak-te-f5"}
    peaks = [np.abs(audio.to_float(clip["audio"])).max() for clip in train]
    assert min(peaks) > 0.1 and max(peaks) < 0.95


@pytest.fixture
def openslr_server(tmp_path, monkeypatch):
    """Small archives in the layout of OpenSLR-66, served over loopback."""
    served = tmp_path / "served"
    served.mkdir()
    for gender, prefix in (("female", "tef"), ("male", "tem")):
        with zipfile.ZipFile(served / f"te_in_{gender}.zip", "w") as archive:
            lines = []
            for speaker in range(6):
                for number in range(2):
                    name = f"{prefix}_{speaker:05d}_{speaker * 10 + number:011d}"
                    write(tmp_path / "clip.wav", noise(0.1, 1000 * len(lines) + (prefix == "tem"), 48000), 48000)
                    archive.write(tmp_path / "clip.wav", f"{name}.wav")
                    lines.append(f"{name}\t{'అందరికీ నమస్కారం.' if number else f'వాక్యం {prefix} {speaker}'}")
        (served / f"line_index_{gender}.tsv").write_text("\n".join(lines), encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(openslr66, "URL", f"http://127.0.0.1:{server.server_port}")
        yield served
        server.shutdown()


def test_openslr66_downloads_and_splits_by_speaker_without_shared_sentences(config, openslr_server):
    config.update({"source": "openslr66", "validation_fraction": 0.2, "test_fraction": 0.2})
    builder = data.prepare(config)
    clips = {split: list(data.open_split(config, split)) for split in builder.info.splits}
    assert set(clips) == {"train", "validation", "test"}
    speakers = {split: {clip["speaker"] for clip in members} for split, members in clips.items()}
    assert sum(map(len, speakers.values())) == 12 and len(set().union(*speakers.values())) == 12
    assert all(len(clip["audio"]) == 1600 for members in clips.values() for clip in members)
    assert all(clip["id"].endswith("0.wav") for clip in clips["train"])  # the greeting is heard in validation
    assert {clip["id"][-5] for clip in clips["validation"]} == {"0", "1"}


def test_openslr66_train_has_no_sentence_of_validation_or_of_test(config):
    speakers = [f"tef_{k:05d}" for k in range(40)]
    chosen = recordings.split_of_groups(speakers, 0.2, 0.2)
    number = itertools.count()
    sentences, clips = {}, []
    for speaker in speakers:
        for sentence in ("of all", f"of {chosen[speaker]} and train", f"of {speaker}"):
            if chosen[speaker] == "train" and sentence == "of train and train":
                sentence = ("of validation and train", "of test and train")[next(number) % 2]
            name = f"{speaker}_{next(number):05d}"
            sentences[name] = sentence
            clips.append(clip(f"{name}.wav#0", speaker))
    builder = object.__new__(openslr66.OpenSLR66)
    builder.options, builder._sentences = PrepareOptions(validation_fraction=0.2, test_fraction=0.2), sentences
    heard = {
        split: {sentences[c.id.split(".")[0]] for c in members} for split, members in builder.splits(clips).items()
    }
    assert heard["validation"] & heard["test"] == {"of all"}
    assert {"of test and train"} < heard["test"] and {"of validation and train"} < heard["validation"]
    assert heard["train"] == {f"of {speaker}" for speaker in speakers if chosen[speaker] == "train"}


def test_openslr66_members_that_would_leave_the_folder_are_not_unpacked(config, openslr_server, tmp_path):
    outside = ["../tef_00001_00000000001.wav", "a/../../../tef_00001_00000000002.wav", f"{tmp_path}/evil.wav"]
    with zipfile.ZipFile(openslr_server / "te_in_female.zip", "a") as archive:
        for name in outside:
            archive.writestr(name, b"evil")
    data.prepare(_with(config, source="openslr66"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


def test_openslr66_archives_that_are_damaged_or_not_as_registered_end_with_one_line(
    config, openslr_server, monkeypatch
):
    config.source = "openslr66"
    path = openslr_server / "te_in_male.zip"
    content = path.read_bytes()

    def refused(problem):
        with pytest.raises(
            ValueError, match=rf"^cannot download and unpack http.*{problem}.*: delete .*downloads to try"
        ) as e:
            data.prepare(config)
        assert "\n" not in str(e.value)
        shutil.rmtree(config.prepared_dir)

    flip(path, len(content) // 2)
    refused("Bad CRC-32")
    path.write_bytes(content[:-100])
    refused("not a zip file")
    path.unlink()
    refused("404")
    path.write_bytes(content)
    other = tfds.download.checksums.UrlInfo(len(content), "0" * 64, path.name)
    monkeypatch.setattr(openslr66.OpenSLR66, "url_infos", {f"{openslr66.URL}/{path.name}": other})
    refused("NonMatchingChecksumError")


def test_openslr66_recordings_without_a_sentence_are_counted(config, openslr_server, caplog):
    index = openslr_server / "line_index_male.tsv"
    index.write_text("\n".join(index.read_text(encoding="utf-8").splitlines()[:-3]), encoding="utf-8")
    data.prepare(_with(config, source="openslr66"))
    assert "3 of 24 recordings have no line in the indices" in caplog.text


def test_openslr66_names_tell_speakers_and_lines_tell_sentences():
    assert openslr66.speaker_of("tef_00432_00141843317.wav") == "tef_00432"
    with pytest.raises(ValueError, match=r"'other\.wav' is not named like"):
        openslr66.speaker_of("other.wav")
    index = "tef_1_2\tనమస్కారం,  అండి.\ntem_1_3\t\tనమస్కారం అండి!\n"
    assert openslr66.read_line_index(index) == {"tef_1_2": "నమస్కారం అండి", "tem_1_3": "నమస్కారం అండి"}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A local folder that can also be reached as gs://bucket."""
    folder = tmp_path / "remote" / "bucket"
    folder.mkdir(parents=True)

    def local(path):
        return os.fspath(path).replace("gs://bucket", str(folder))

    def mapped(original, *paths, **options):
        return original(*(local(path) for path in paths), **options)

    def glob(original, path):
        return [found.replace(str(folder), "gs://bucket") for found in original(local(path))]

    names = ("exists", "isdir", "listdir", "stat", "open", "copy")
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    with epath.testing.mock_epath(glob=glob, **dict.fromkeys(names, mapped)):
        yield folder


def test_recordings_and_prepared_shards_are_read_from_a_bucket(config, bucket):
    write_clips(bucket / "speech", ["anna/1.wav", "bela/2.wav", ".hidden/3.wav"])
    config.data_dir = "gs://bucket/speech"
    here = open_all(config)
    assert {name for clips in here.values() for name in clips} == {"anna/1.wav", "bela/2.wav"}
    shutil.copytree(data.prepare(config).data_path, bucket / "prepared")
    config.data_dir = "gs://bucket/prepared"
    shutil.rmtree(bucket / "speech")
    there = open_all(config)
    assert str(data.prepare(config).data_path).startswith(config.prepared_dir)
    assert {split: set(clips) for split, clips in here.items()} == {split: set(c) for split, c in there.items()}
    config.data_dir = "gs://bucket/gone"
    with pytest.raises(ValueError, match=r"'gs://bucket/gone' is not a directory"):
        data.prepare(config)


@pytest.fixture
def prepared(config, tmp_path):
    """A prepared folder of 12 recordings, and the shard of its train split."""
    write_clips(tmp_path / "speech", [f"{k}.wav" for k in range(12)], seconds=0.5)
    config.data_dir = str(tmp_path / "speech")
    folder = pathlib.Path(data.prepare(config).data_path)
    (shard,) = folder.glob("*-train.array_record*")
    return folder, shard


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("opened_before", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted"])
def test_a_damaged_shard_is_named_before_training_with_what_to_do(config, prepared, damage, opened_before):
    folder, shard = prepared
    if opened_before:  # then there is a lengths file, and no record would be read
        data.open_split(config, "train")
    if damage == "deleted":
        shard.unlink()
    else:
        os.truncate(shard, 100000 if damage == "truncated" else 0)
    for data_dir in (config.data_dir, str(folder)):
        message = rf"^{shard} is damaged or gone \(.*\): delete the folder {folder}, it will be prepared again"
        with pytest.raises(ValueError, match=message) as caught:
            data.open_split(_with(config, data_dir=data_dir), "train")
        assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
    assert sum(map(len, open_all(config).values())) == 12


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_a_flipped_bit_in_a_shard_costs_one_clip_and_names_the_shard(config, prepared, caplog, backend):
    _, shard = prepared
    clips = [clip["audio"] for clip in data.open_split(config, "train")]
    flip(shard, 100000)
    source = data.open_split(config, "train")
    with pytest.raises(ValueError, match=rf"^{shard} is damaged or gone \(RuntimeError: .*\): delete the folder"):
        list(source)
    options = {"seed": 0, "start_step": 0, "batch_size": len(clips), "crop_samples": 8000}
    batches = data.train_batches(source, **options, backend=backend, wait=lambda seconds: None)
    batch = next(batches)
    batches.close()
    assert sorted(batch["length"][0]) == [0] + [8000] * (len(clips) - 1)
    heard = {audio.to_int16(row).tobytes() for row in batch["audio"][0]}
    assert len(heard & {clip.tobytes() for clip in clips}) == len(clips) - 1
    assert f"ValueError: {shard} is damaged or gone" in caplog.text


def test_shards_that_are_gone_during_a_run_end_it_in_one_line_that_names_one(config, prepared, monkeypatch):
    _, shard = prepared
    source = data.open_split(config, "train")
    monkeypatch.setattr(source, "_read", source._read_record)  # as of a split too large for memory

    class Gone(list):
        def __getitem__(self, index):
            raise RuntimeError("read() failed: Stale file handle")

    monkeypatch.setattr(source._records, "_records", Gone())
    options = {"seed": 0, "start_step": 0, "batch_size": 8, "crop_samples": 8000, "wait": lambda seconds: None}
    with pytest.raises(
        ValueError, match=rf"^2 of \d+ clips cannot be read, more than 1; the last is .*{shard} is damaged"
    ):
        next(data.train_batches(source, **options))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["garbage", "nothing", "deleted"])
def test_damaged_metadata_of_prepared_data_is_named_with_what_to_do(config, prepared, name, damage):
    folder, _ = prepared
    (folder / name).unlink()
    if damage != "deleted":
        (folder / name).write_text("{" if damage == "garbage" else "")
    with pytest.raises(
        ValueError, match=rf"^{folder} is damaged or gone \(.*\): delete the folder {folder}, it will"
    ) as e:
        data.prepare(config)
    assert "\n" not in str(e.value)
    shutil.rmtree(folder)
    data.prepare(config)


def test_two_processes_preparing_the_same_folder_agree(config, tmp_path):
    write_clips(tmp_path / "speech", [f"{k}.wav" for k in range(6)])
    config.data_dir = str(tmp_path / "speech")
    code = "from ml_collections import ConfigDict; from jaxcodec import data\n"
    code += f"print(len(data.open_split(ConfigDict({config.to_dict()!r}), 'train')))"
    with contextlib.ExitStack() as stack:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started = [stack.enter_context(subprocess.Popen([sys.executable, "-c", code], **options)) for _ in range(2)]
        printed = [process.communicate()[0].splitlines()[-1] for process in started]
    assert printed[0] == printed[1] == str(len(data.open_split(config, "train")))
