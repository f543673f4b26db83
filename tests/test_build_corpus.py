import importlib.util
import itertools
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("build_corpus", ROOT / "tools" / "build_corpus.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    """Makes a file of an extracted package below `tmp_path`."""

    def make(package_name, path, samples=None, sample_rate=16000):
        file = tmp_path / "extracted" / package_name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(path)).uniform(-0.3, 0.3, 8000)
        soundfile.write(file, noise if samples is None else samples, sample_rate)

    return make


@pytest.mark.parametrize(
    ("package_name", "path"),
    [
        ("festvox-ru", "wav/ru_0007.wav"),
        ("festvox-ru", "wav/ru_0617.wav"),
        ("klettres-data", "usr/share/klettres/ml/alpha/a.ogg"),
        ("tuxpaint-stamps-default", "stamps/animals/cat_desc_ml.ogg"),
        ("festvox-te-nsk", "wav/anything.wav"),
        ("festvox-hi-nsk", "wav/anything.wav"),
        ("festvox-mr-nsk", "wav/anything.wav"),
        ("festival-te", "anything.wav"),
        ("asterisk-core-sounds-it-g722", "usr/share/asterisk/sounds/it/hello.g722"),
    ],
)
def test_the_test_set_is_held_out(corpus, package_name, path):
    assert corpus.held_out(package_name, path)


@pytest.mark.parametrize(
    ("package_name", "path"),
    [
        ("festvox-ru", "wav/ru_0071.wav"),
        ("klettres-data", "klettres/it/ml.ogg"),
        ("gcin-voice", "ogg/a/7.ogg"),
    ],
)
def test_what_resembles_the_test_set_is_not_held_out(corpus, package_name, path):
    assert not corpus.held_out(package_name, path)


def test_no_package_of_the_test_set_is_listed_or_extracted(corpus, tmp_path):
    assert not {package.name for package in corpus.PACKAGES} & set(corpus.HELD_OUT_PACKAGES)
    with pytest.raises(ValueError, match="festvox-te-nsk belongs to the test set"):
        corpus.extract_package("festvox-te-nsk", tmp_path)


def test_festvox_ru_is_split_by_the_last_digit(corpus, package, tmp_path):
    for number in range(1, 31):
        package("festvox-ru", f"wav/ru_{number:04d}.wav")
    splits = {clip.name: clip.split for clip in corpus.festvox_ru_clips(tmp_path, trimmed=False)}
    assert len(splits) == 27 and not any(name.endswith("7") for name in splits)
    assert [name for name, split in sorted(splits.items()) if split == "validation"] == [
        "ru_0003",
        "ru_0013",
        "ru_0023",
    ]


def test_clipped_silent_and_low_rate_files_are_dropped_and_speakers_named(corpus, package, tmp_path, capsys):
    package("ktuberling-data", "sounds/ca/good.wav", sample_rate=44100)
    package("ktuberling-data", "sounds/de/low.wav", sample_rate=11025)
    package("ktuberling-data", "sounds/de/silent.wav", samples=np.zeros(8000))
    package("ktuberling-data", "sounds/de/clipped.wav", samples=np.sign(np.sin(np.arange(8000))))
    (listed,) = [package for package in corpus.PACKAGES if package.name == "ktuberling-data"]
    (clip,) = corpus.package_clips(listed, tmp_path)
    assert (clip.speaker, clip.split, clip.source) == (
        "ktuberling-data-ca",
        "train",
        "ktuberling-data good.wav",
    )
    assert len(clip.samples) == pytest.approx(8000 * 16000 / 44100, abs=1)
    assert "left out 3 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speaker", "codes"),
    [
        ("asterisk-core-sounds-fr-g722-fr_CA_f_June", {"fr", "fr_CA"}),
        ("asterisk-core-sounds-ru-g722-ru_RU_f_IvrvoiceRU", {"ru", "ru_RU"}),
        ("klettres-data-fr", {"fr"}),
        ("klettres-data-en_GB", {"en", "en_GB"}),
        ("klettres-data-nds", {"nds"}),
        ("ktuberling-data-sr@latin", {"sr"}),
        ("tuxpaint-stamps-default-pt_BR", {"pt", "pt_BR"}),
        ("tuxpaint-stamps-default-default", {"en"}),
        ("gcin-voice-default", {"zh"}),
        ("festvox-ru", {"ru"}),
        ("espeak-te", {"te"}),
        ("espeak-te-Annie", {"te"}),
        ("anna", set()),
    ],
)
def test_a_speaker_name_tells_the_language(corpus, speaker, codes):
    assert corpus.languages(speaker) == codes


def test_only_clips_in_a_language_that_is_held_out_change_their_split(corpus):
    def split(speaker, split, *hold_out):
        return corpus.choose_split(corpus.Clip(split, speaker, "", np.zeros(1), "", ""), hold_out)

    assert split("klettres-data-pt_BR", "train", "fr", "pt") == "test"
    assert split("festvox-ru", "validation", "ru") == "test"
    assert split("festvox-ru", "validation", "fr") == "validation"
    assert split("klettres-data-fr", "train") == "train"


@pytest.mark.skipif(shutil.which("flac") is None, reason="needs the flac command")
def test_holding_out_a_language_moves_its_files_and_no_others(corpus, package, tmp_path):
    for path in ("ca/a.wav", "fr/abc.wav", "fr/abcd.wav", "uk/abcde.wav"):
        package("ktuberling-data", f"sounds/{path}")

    def build(*hold_out):
        corpus.build_full(tmp_path / "out", tmp_path, 0, ["ktuberling-data"], hold_out)
        files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.flac")}
        listed = [line.split("\t") for line in (tmp_path / "out" / "manifest.tsv").read_text().splitlines()[1:]]
        assert files == {row[0] for row in listed} and all(row[0].startswith(row[1] + "/") for row in listed)
        return files

    whole, held = build(), build("fr")
    assert {re.sub("^train(?=/ktuberling-data-fr/)", "test", path) for path in whole} == held != whole
    assert sum(path.startswith("test/") for path in held) == 2
    assert build() == whole  # an earlier test/ is gone


def test_a_language_that_no_clip_has_is_named_and_nothing_is_removed(corpus, package, tmp_path):
    package("ktuberling-data", "sounds/fr/a.wav")
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "manifest.tsv").touch()
    with pytest.raises(SystemExit, match=r"^build_corpus: no clip is in xx \(--hold_out\), only in fr$"):
        corpus.build_full(tmp_path / "out", tmp_path, 0, ["ktuberling-data"], ["fr", "xx"])
    assert (tmp_path / "out" / "train").exists()


def test_a_language_whose_files_are_all_unusable_is_named(corpus, package, tmp_path):
    package("ktuberling-data", "sounds/fi/low.wav", sample_rate=11025)
    with pytest.raises(SystemExit, match="no clip is in fi"):
        corpus.build_full(tmp_path / "out", tmp_path, 0, ["ktuberling-data"], ["fi"])


def test_sentences_of_train_and_validation_differ_and_made_ones_are_all_new(corpus):
    sections = corpus.read_sentences()
    assert len(sections["train"]) >= 50 and len(sections["validation"]) >= 5
    made = list(itertools.islice(corpus.made_sentences(sections), 500))
    assert len(set(made)) == 500 and not set(made) & set(sections["validation"])
    assert made == list(itertools.islice(corpus.made_sentences(sections), 500))
    assert not any("{" in text for text in made)


def test_trimming_keeps_a_tenth_of_a_second_around_speech(corpus):
    samples = np.zeros(16000, np.int16)
    samples[8000:9600] = 3000
    np.testing.assert_array_equal(corpus.trim(samples), samples[6400:11200])


def test_a_foreign_folder_is_not_overwritten(corpus, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(SystemExit, match="was not written by this tool"):
        corpus.remove_splits(tmp_path)
    assert (tmp_path / "train").exists()


def test_a_test_folder_of_other_origin_is_neither_removed_nor_mixed(corpus, tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "manifest.tsv").write_text("file\tsplit\ntrain/a.flac\ttrain\n")
    corpus.remove_splits(tmp_path)
    assert (tmp_path / "test").exists()
    with pytest.raises(SystemExit, match="test was not written by this tool"):
        corpus.remove_splits(tmp_path, with_test=True)
    assert (tmp_path / "test").exists()


def test_a_missing_command_is_named_in_one_line(corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda command: None if command in ("flac", "ffmpeg") else command)
    with pytest.raises(SystemExit, match=r"^build_corpus: install flac and ffmpeg and run again$"):
        corpus.main(["full", "--out", str(tmp_path)])


@pytest.mark.skipif(shutil.which("flac") is None, reason="needs the flac command")
def test_written_clips_read_back_and_are_indexed(corpus, tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 16000).astype(np.int16)
    clip = corpus.Clip("train", "anna", "one", samples, "made", "none")
    row, num_bytes = corpus.write_clip(clip, tmp_path, corpus.SMALLEST)
    assert num_bytes == (tmp_path / "train/anna/one.flac").stat().st_size
    np.testing.assert_array_equal(soundfile.read(tmp_path / "train/anna/one.flac", dtype="int16")[0], samples)
    corpus.write_index([row], tmp_path / "index.tsv")
    header, line = (tmp_path / "index.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["file", "split", "speaker"]
    assert line.split("\t")[:6] == ["train/anna/one.flac", "train", "anna", "made", "none", "1.000"]
