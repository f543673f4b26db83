"""The command line, in process: files in, files out, exit codes, and one line for whatever goes wrong."""

import csv
import errno
import importlib.resources
import io
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile

import jaxcodec
from configs import tiny
from jaxcodec import audio, bitstream, bundled, cli, data, evaluation, export, inference, quantizers
from jaxcodec.bitstream import entropy
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers
from tests import fuzz_bitstream, support, test_scalar

ROOT = pathlib.Path(jaxcodec.__file__).parent.parent


@pytest.fixture(scope="module")
def model(codec, tmp_path_factory):
    """The codec's file."""
    return support.save(codec, tmp_path_factory)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def speech(folder):
    """A recording of 1.2 s, speech.wav."""
    audio.save("speech.wav", support.speech_like(1, 19201)[0])
    return audio.load("speech.wav")


@pytest.fixture
def recordings(folder):
    """A folder recordings/ with recordings of several rates, one of them in a folder of its own, and a file that is none."""
    os.makedirs("recordings/deep")
    audio.save("recordings/a.wav", support.speech_like(1, 3000)[0])
    soundfile.write("recordings/deep/b.flac", support.speech_like(2, 9000)[:, :8001].T, 22050)
    audio.save("recordings/deep/c.ogg", support.speech_like(1, 5000)[0])
    pathlib.Path("recordings/text.wav").write_text("hello")
    return folder / "recordings"


@pytest.fixture
def run(model, capsys):
    """Runs one command with the tiny model; returns its exit code, stdout and the lines of stderr."""

    def run(*arguments, model=model):
        if model and arguments[0] in ("encode", "decode", "truncate", "eval", "tokens", "verify"):
            arguments += ("--model", model)
        code = cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err.splitlines()

    return run


def stream(data=b""):
    """A pipe's end of which only the bytes matter."""
    return types.SimpleNamespace(buffer=io.BytesIO(data), flush=lambda: None)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in pathlib.Path(folder).rglob("*") if path.is_file())


def test_a_recording_goes_to_bytes_and_back_as_through_the_functions(run, codec, speech):
    code, out, told = run("encode", "speech.wav", "-o", "speech.jxc")
    assert (code, out, len(told)) == (0, "", 1)
    data = pathlib.Path("speech.jxc").read_bytes()
    codes = np.asarray(inference.encode(codec, speech))
    assert data == jaxcodec.pack(codec, codes, len(speech))
    rate = float(re.search(r"encoded 1 of 1, 1\.2 s of audio in .* x real time\), (.*) kbit/s$", told[0])[1])
    assert rate == pytest.approx(8e-3 * len(data) / (len(speech) / 16000), rel=1e-2)

    code, out, told = run("decode", "speech.jxc", "-o", "decoded.wav")
    assert (code, out, len(told)) == (0, "", 1)
    decoded, rate = soundfile.read("decoded.wav", dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(decoded, audio.to_int16(inference.decode(codec, codes, len(speech))))


def test_a_folder_keeps_its_tree_and_a_bad_file_does_not_stop_the_others(run, recordings):
    code, _, told = run("encode", "recordings", "-o", "codes")
    assert code == 1 and len(told) == 2
    assert told[0] == "jaxcodec: recordings/text.wav: not audio that can be read (Format not recognised)"
    assert "encoded 3 of 4" in told[1]
    assert files("codes") == ["a.jxc", "deep/b.jxc", "deep/c.jxc"]
    assert run("decode", "codes", "-o", "decoded", "--format", "flac")[0] == 0
    assert files("decoded") == ["a.flac", "deep/b.flac", "deep/c.flac"]
    assert len(audio.load("decoded/deep/b.flac")) == -(-8001 * 16000 // 22050)


def test_several_files_go_to_a_folder_and_two_of_one_name_are_not_mixed_up(run, recordings):
    audio.save("recordings/deep/a.wav", support.speech_like(1, 500)[0])
    code, _, told = run("encode", "recordings/a.wav", "recordings/deep/a.wav", "-o", "codes")
    assert code == 1 and told[0].startswith("jaxcodec: recordings/deep/a.wav: another input is written to codes/a.jxc")
    assert files("codes") == ["a.jxc"]
    assert bitstream.read_header(pathlib.Path("codes/a.jxc").read_bytes()).num_samples == 3000


def test_what_exists_is_replaced_only_by_force(run, speech):
    pathlib.Path("speech.jxc").write_text("mine")
    code, _, told = run("encode", "speech.wav", "-o", "speech.jxc")
    assert code == 1 and told == ["jaxcodec: speech.wav: speech.jxc exists, --force replaces it"]
    assert pathlib.Path("speech.jxc").read_text() == "mine"
    assert run("encode", "speech.wav", "-o", "speech.jxc", "--force")[0] == 0
    assert pathlib.Path("speech.jxc").read_bytes()[:4] == bitstream.MAGIC


def test_an_output_that_is_an_input_is_refused_whatever_the_flags_the_names_and_the_links(run, speech, codec):
    run("encode", "speech.wav", "-o", "a.jxc")
    data = pathlib.Path("a.jxc").read_bytes()
    os.mkdir("deep")
    os.symlink("../a.jxc", "deep/link.jxc")
    os.symlink("a.jxc", "other.jxc")
    for source, target in (
        ("a.jxc", "a.jxc"),
        ("a.jxc", "./deep/../a.jxc"),
        ("a.jxc", "other.jxc"),
        ("deep/link.jxc", "a.jxc"),
        ("a.jxc", "."),
        ("deep", "deep"),
    ):
        code, _, told = run("truncate", source, "-o", target, "--codebooks", "2", "--force")
        assert code == 1 and len(told) == 1 and "is an input, which nothing replaces: give another output" in told[0]
    assert pathlib.Path("a.jxc").read_bytes() == data and os.path.islink("other.jxc")
    pretrained.save(codec, "own.safetensors")
    code, _, told = run("export", "own.safetensors", "-o", "own.safetensors", "--dtype", "float16", "--force")
    assert code == 2 and told == ["jaxcodec: own.safetensors is an input, which nothing replaces: give another output"]
    # What is no file is not replaced by one.
    os.mkfifo("pipe.jxc")
    code, _, told = run("encode", "speech.wav", "-o", "pipe.jxc", "--force")
    assert code == 1 and told == ["jaxcodec: speech.wav: pipe.jxc exists and is no file"]


def test_files_are_decoded_to_what_libsndfile_writes(run, speech):
    assert [f".{name}" for name in cli.decode.FORMATS] == list(audio.WRITABLE)
    run("encode", "speech.wav", "-o", "speech.jxc")
    run("decode", "speech.jxc", "-o", "speech_again.wav")
    expected = audio.load("speech_again.wav")
    for extension in (".aiff", ".au", ".caf", ".w64"):
        assert run("decode", "speech.jxc", "-o", f"decoded{extension}")[0] == 0
        assert soundfile.info(f"decoded{extension}").format == audio.WRITABLE[extension][0]
        np.testing.assert_array_equal(audio.load(f"decoded{extension}"), expected)
    assert run("decode", "speech.jxc", "-o", "sounds/", "--format", "aiff")[0] == 0 and files("sounds") == [
        "speech.aiff"
    ]


def test_a_folder_that_cannot_be_written_is_told_before_any_work(run, speech, recordings, monkeypatch):
    os.remove("recordings/text.wav")
    work = []
    monkeypatch.setattr(pretrained, "load", lambda *_: work.append("loaded"))
    for arguments in (
        ("encode", "speech.wav", "-o", "speech.wav/out.jxc"),
        ("encode", "recordings", "-o", "speech.wav/out"),
        ("eval", "recordings", "--json", "speech.wav/scores.json"),
        ("report", "speech.wav/page"),
        ("tokens", "recordings", "-o", "speech.wav/out"),
        ("export", "-o", "speech.wav/model.safetensors"),
    ):
        code, _, told = run(*arguments)
        assert code == 1 and len(told) == 1 and re.search(r"jaxcodec: \S*speech\.wav: Not a directory$", told[0]), told
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system", "/x"))
    )
    code, _, told = run("encode", "recordings", "-o", "codes")
    assert code == 1 and told == [f"jaxcodec: {os.getcwd()}: Read-only file system"]
    assert not work


def test_a_folder_that_cannot_be_made_is_told_of_each_input(run, speech):
    code, _, told = run("encode", "speech.wav", "-o", "a" * 300 + "/")
    assert code == 1 and len(told) == 1 and told[0].startswith("jaxcodec: ") and told[0].endswith("File name too long")


def test_a_message_names_the_file_that_was_asked_for_and_no_temporary_one(run, speech, monkeypatch):
    run("encode", "speech.wav", "-o", "speech.jxc")
    monkeypatch.setattr(audio, "_WAV_BYTES", 1000)
    code, _, told = run("decode", "speech.jxc", "-o", "out.aiff")
    assert code == 1 and told == ["jaxcodec: speech.jxc: out.aiff: a aiff file holds at most 4 GiB, write flac instead"]

    def fail(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

    monkeypatch.setattr(audio, "write_blocks", fail)
    for target, name in (("out.wav", "out.wav"), ("-", "stdout")):
        code, _, told = run("decode", "speech.jxc", "-o", target)
        assert code == 1 and told == [f"jaxcodec: speech.jxc: {name}: No space left on device"]


def test_sigterm_ends_a_command_without_what_is_half_written(run, speech, monkeypatch):
    run("encode", "speech.wav", "-o", "speech.jxc")
    before = signal.getsignal(signal.SIGTERM)

    def terminate(*_):
        yield np.zeros(10, np.float32)
        assert len(files(".")) == 3  # one is half written
        os.kill(os.getpid(), signal.SIGTERM)
        yield np.zeros(10, np.float32)

    monkeypatch.setattr("jaxcodec.inference.files._silence", terminate)
    assert run("decode", "speech.jxc", "-o", "out.wav") == (143, "", ["jaxcodec: terminated"])
    assert files(".") == ["speech.jxc", "speech.wav"] and signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_folder_goes_on_and_quiet_is_quiet(run, recordings):
    os.remove("recordings/text.wav")
    run("encode", "recordings/a.wav", "-o", "codes/")
    made = os.stat("codes/a.jxc").st_mtime_ns
    code, _, told = run("encode", "recordings", "-o", "codes", "--skip-existing")
    assert code == 0 and told[0].startswith("jaxcodec: encoded 2 of 3, 1 already there, ")
    assert os.stat("codes/a.jxc").st_mtime_ns == made and len(files("codes")) == 3
    code, _, told = run("encode", "recordings", "-o", "codes", "--skip_existing")
    assert code == 0 and told == ["jaxcodec: encoded 0 of 3, 3 already there"]
    assert run("decode", "codes", "-o", "decoded", "--quiet") == (0, "", [])
    code, _, told = run("decode", "codes/a.jxc", "gone.jxc", "-o", "decoded", "--quiet", "--force")
    assert code == 1 and told == ["jaxcodec: gone.jxc: No such file or directory"]


@pytest.mark.parametrize("long", [False, True])
def test_a_part_of_a_recording_has_the_codes_of_that_part(run, codec, speech, monkeypatch, long):
    if long:
        monkeypatch.setattr("jaxcodec.inference.files._BATCH_BLOCKS", 0)
        monkeypatch.setattr("jaxcodec.inference.files._READ_SECONDS", 0.1)
    assert run("encode", "speech.wav", "-o", "part.jxc", "--start", "0.25", "--end", "0.9")[0] == 0
    part = speech[4000:14400]
    assert pathlib.Path("part.jxc").read_bytes() == jaxcodec.pack(codec, inference.encode(codec, part), len(part))
    assert run("encode", "speech.wav", "-o", "rest.jxc", "--start", "1")[0] == 0
    assert bitstream.read_header(pathlib.Path("rest.jxc").read_bytes()).num_samples == len(speech) - 16000
    code, _, told = run("encode", "speech.wav", "-o", "none.jxc", "--start", "5")
    assert code == 1 and told == ["jaxcodec: speech.wav: nothing from 5 s on, it has 1.2 s"]


def test_a_long_recording_tells_how_far_it_is(codec, speech, monkeypatch):
    monkeypatch.setattr("jaxcodec.inference.files._BATCH_BLOCKS", 0)
    monkeypatch.setattr("jaxcodec.inference.files._READ_SECONDS", 0.5)
    told = []
    made = inference.files.compress_files(codec, [("key", "speech.wav")], progress=lambda *told_: told.append(told_))
    assert [one.key for one in made] == ["key"]
    assert told == [("key", 0.5), ("key", 1.0), ("key", 1.2000625)]


def test_this_packages_warnings_are_told_and_the_libraries_are_not(run, recordings):
    from absl import logging

    os.remove("recordings/text.wav")
    pathlib.Path("recordings/deep/d.m4a").write_bytes(b"")
    code, _, told = run("encode", "recordings", "-o", "codes")
    left_out = "jaxcodec: recordings: 1 .m4a left out, their formats cannot be read: convert them first"
    assert code == 0 and told[0] == left_out and len(told) == 2
    run("tokens", "recordings", "-o", "out")
    shard = next(pathlib.Path("out").glob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:-100])
    code, _, told = run("tokens", "recordings", "-o", "out")
    assert code == 0 and any("is damaged" in line and line.endswith("it is made again.") for line in told)
    handler = cli._Warnings()
    with pytest.MonkeyPatch.context() as patch:
        heard = []
        patch.setattr(cli, "tell", heard.append)
        for level in (logging.WARNING, logging.ERROR):
            level = logging.converter.absl_to_standard(level)
            handler.emit(logging.get_absl_logger().makeRecord("absl", level, "/lib/orbax.py", 1, "theirs", (), None))
        assert heard == ["theirs"]  # the error


def test_fast_files_are_decoded_as_all_files_are(run, speech, scalar_codec):
    weights = fuzz_bitstream.checkerboard_weights(num_bins=scalar_codec.module.quantizer.num_bins, width=4)
    codec = scalar_codec.replace(fast_entropy=bitstream.checkerboard.CheckerboardModel(weights))
    pretrained.save(codec, "codec.safetensors")
    for name, flags in (("usual", ()), ("fast", ("--fast",))):
        assert run("encode", "speech.wav", "-o", f"{name}.jxc", *flags, model="codec.safetensors")[0] == 0
        assert run("decode", f"{name}.jxc", "-o", f"{name}.wav", model="codec.safetensors")[0] == 0
    codings = [bitstream.read_header(pathlib.Path(f"{name}.jxc").read_bytes()).coding for name in ("usual", "fast")]
    assert codings == [2, 3]
    assert re.findall(r"^fast +(\w+)$", run("info", "usual.jxc", "fast.jxc")[1], re.MULTILINE) == ["no", "yes"]
    np.testing.assert_array_equal(audio.load("usual.wav"), audio.load("fast.wav"))
    assert re.search(r"^fast files +yes$", run("info", "codec.safetensors")[1], re.MULTILINE)
    code, _, told = run("encode", "speech.wav", "-o", "other.jxc", "--fast")
    assert code and "no prior that predicts many frames at once" in told[-1] and not os.path.exists("other.jxc")


def test_info_looks_at_the_checksums_and_verify_at_every_block(run, speech, monkeypatch):
    os.mkdir("codes")
    run("encode", "speech.wav", "-o", "codes/whole.jxc", "--no_entropy", "--block_seconds", "0.5")
    data = pathlib.Path("codes/whole.jxc").read_bytes()
    code, out, told = run("info", "codes/whole.jxc")
    assert code == 0 and not told and re.search(r"^damage +none$", out, re.MULTILINE)
    code, out, told = run("verify", "codes/whole.jxc")
    assert (code, out) == (0, "") and told == ["jaxcodec: 1 of 1 files whole, 1.2 s of audio"]
    pathlib.Path("codes/flipped.jxc").write_bytes(data)
    damage("codes/flipped.jxc", 1)
    pathlib.Path("codes/cut.jxc").write_bytes(data[:-10])
    cut = f"the header announces {len(data)} bytes, there are {len(data) - 10}"
    code, out, told = run("info", "codes/flipped.jxc", "codes/cut.jxc", "--json")
    assert code == 1 and [one["damage"] for one in json.loads(out)] == ["damaged at 0.50 to 1.00 s", cut]
    assert told == ["jaxcodec: codes/flipped.jxc: damaged at 0.50 to 1.00 s", f"jaxcodec: codes/cut.jxc: {cut}"]
    code, out, told = run("verify", "codes")
    assert code == 1 and told == [
        f"jaxcodec: codes/cut.jxc: {cut}",
        "jaxcodec: codes/flipped.jxc: damaged at 0.50 to 1.00 s",
        "jaxcodec: 1 of 3 files whole, 1.2 s of audio",
    ]
    # What no checksum tells: codes that no encoder writes.
    monkeypatch.setattr(quantizers.interface.Quantizer, "possible", lambda self, codes: np.zeros(codes.shape[1], bool))
    assert run("info", "codes/whole.jxc")[0] == 0 and run("verify", "codes/whole.jxc", "--quiet")[0] == 1


def test_an_output_that_cannot_be_finished_leaves_nothing(run, speech, monkeypatch):
    run("encode", "speech.wav", "-o", "speech.jxc")

    def fill_the_disk(*_):
        yield np.zeros(10, np.float32)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxcodec.inference.files._silence", fill_the_disk)
    assert run("decode", "speech.jxc", "-o", "out.wav") == (1, "", ["jaxcodec: speech.jxc: No space left on device"])
    assert files(".") == ["speech.jxc", "speech.wav"]


def test_pipes_carry_the_bytes_of_files(run, speech, monkeypatch):
    run("encode", "speech.wav", "-o", "speech.jxc")
    run("decode", "speech.jxc", "-o", "decoded.wav")
    for command, source, expected in (("encode", "speech.wav", "speech.jxc"), ("decode", "speech.jxc", "decoded.wav")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stream(pathlib.Path(source).read_bytes()))
            patch.setattr(sys, "stdout", stream())
            assert run(command, "-", "-o", "-")[0] == 0
            assert sys.stdout.buffer.getvalue() == pathlib.Path(expected).read_bytes()


def test_long_recordings_in_blocks_have_the_same_bytes_and_the_same_sound(run, speech, monkeypatch):
    run("encode", "speech.wav", "-o", "whole.jxc")
    run("decode", "whole.jxc", "-o", "whole.wav")
    monkeypatch.setattr("jaxcodec.inference.files._BATCH_BLOCKS", 0)
    monkeypatch.setattr("jaxcodec.inference.files._READ_SECONDS", 0.1)
    monkeypatch.setattr("jaxcodec.inference.files._WHOLE_SECONDS", 0.1)
    run("encode", "speech.wav", "-o", "blocks.jxc")
    run("decode", "blocks.jxc", "-o", "blocks.wav")
    assert pathlib.Path("blocks.jxc").read_bytes() == pathlib.Path("whole.jxc").read_bytes()
    np.testing.assert_allclose(audio.load("blocks.wav"), audio.load("whole.wav"), atol=1.5 / 32768)


def damage(path, block):
    """Flips a bit of one block of a file whose blocks are of one size; returns its frames."""
    data = bytearray(pathlib.Path(path).read_bytes())
    frames, size = bitstream.BLOCK_FRAMES, bitstream.BLOCK_FRAMES * 4 * 4 // 8 + 4
    last = bitstream.read_header(data).num_frames % frames * 4 * 4 // 8 + 4
    data[-last - (bitstream.read_header(data).num_blocks - 1 - block) * size + 7] ^= 1
    pathlib.Path(path).write_bytes(data)
    return block * frames, (block + 1) * frames


def test_a_damaged_file_is_refused_with_the_place_or_decoded_with_silence_in_it(run, codec, speech):
    run("encode", "speech.wav", "-o", "speech.jxc", "--no_entropy", "--block_seconds", "0.5")
    run("decode", "speech.jxc", "-o", "good.wav")
    start, stop = damage("speech.jxc", 1)
    code, _, told = run("decode", "speech.jxc", "-o", "decoded.wav")
    assert code == 1
    assert told == ["jaxcodec: speech.jxc: block 1 at 0.50 to 1.00 s is damaged, --keep_damaged decodes the rest"]
    assert not os.path.exists("decoded.wav")
    code, _, told = run("decode", "speech.jxc", "-o", "decoded.wav", "--keep_damaged")
    assert code == 1 and told[0] == "jaxcodec: speech.jxc: damaged, silence at 0.50 to 1.00 s"
    good, decoded = audio.load("good.wav"), audio.load("decoded.wav")
    start, stop = start * codec.hop_length, stop * codec.hop_length
    assert not decoded[start:stop].any()
    assert good[start:stop].any()
    context = 100 * codec.hop_length  # beyond what the decoder sees of neighbors
    np.testing.assert_allclose(decoded[: start - context], good[: start - context], atol=1.5 / 32768)
    np.testing.assert_allclose(decoded[stop + context :], good[stop + context :], atol=1.5 / 32768)


def test_more_audio_than_is_allowed_is_refused_in_one_line(run, speech):
    run("encode", "speech.wav", "-o", "speech.jxc")
    code, _, told = run("decode", "speech.jxc", "-o", "decoded.wav", "--max_seconds", "1.1")
    assert code == 1 and told == ["jaxcodec: speech.jxc: 1.2 s of audio, max_seconds = 1.1 allows less: give more"]
    assert not os.path.exists("decoded.wav")
    assert run("decode", "speech.jxc", "-o", "decoded.wav", "--max_seconds", "inf")[0] == 0
    with pytest.raises(SystemExit):
        run("decode", "speech.jxc", "-o", "decoded.wav", "--max_seconds", "0")
    assert inference.files.MAX_SECONDS == 43200  # as --help says
    with pytest.raises(SystemExit):
        run("decode", "--help")


def test_truncating_is_encoding_with_fewer_codebooks(run, speech):
    run("encode", "speech.wav", "-o", "whole.jxc")
    run("encode", "speech.wav", "-o", "two.jxc", "--codebooks", "2")
    assert run("truncate", "whole.jxc", "-o", "truncated.jxc", "--codebooks", "2")[0] == 0
    assert pathlib.Path("truncated.jxc").read_bytes() == pathlib.Path("two.jxc").read_bytes()
    code, _, told = run("truncate", "two.jxc", "-o", "three.jxc", "--codebooks", "3")
    assert code == 1 and told == ["jaxcodec: two.jxc: cannot keep 3 of 2 codebooks."]


@pytest.fixture(scope="module")
def scalar_codec():
    """A small codec of scalar codes, not trained; nothing costs it less than some 17 kbit/s."""
    state = support.make_state(support.make_model(test_scalar.small_config()))
    return pretrained.make(state.params, state.quantizer, test_scalar.small_config())


@pytest.fixture
def small_models(codec, scalar_codec, monkeypatch):
    """Small models in place of the bundled ones; a list of the names that are loaded."""
    contents = {"files": pretrained.to_bytes(scalar_codec), "tokens": pretrained.to_bytes(codec)}
    # The package looks its public names up once: before this one is replaced, or the replacement would stay.
    loaded, load = [], jaxcodec.load
    monkeypatch.setattr(bundled, "read", contents.__getitem__)
    monkeypatch.setattr(pretrained, "load", lambda path=None: loaded.append(path) or load(path))
    caches = bundled.names, bundled.quantizer
    for cache in caches:
        cache.cache_clear()
    yield loaded
    for cache in caches:
        cache.cache_clear()


def header_of(path):
    return bitstream.read_header(pathlib.Path(path).read_bytes())


def test_the_flags_of_the_rate_choose_the_bundled_model(run, codec, scalar_codec, small_models, speech):
    fingerprints = {"files": scalar_codec.fingerprint, "tokens": codec.fingerprint}
    for number, (flags, model) in enumerate(
        (
            ("", "files"),
            ("--quality -20", "files"),
            ("--shape 0.5", "files"),
            ("--kbps 60 --shape 0", "files"),
            ("--codebooks 2", "tokens"),
            ("--model tokens", "tokens"),
            ("--model files --kbps 60", "files"),
        )
    ):
        code, _, told = run("encode", "speech.wav", "-o", f"{number}.jxc", *flags.split(), model=None)
        assert code == 0 and len(told) == 1, told
        assert header_of(f"{number}.jxc").fingerprint == fingerprints[model]
    codes = {n: jaxcodec.unpack(scalar_codec, pathlib.Path(f"{n}.jxc").read_bytes()).codes for n in (0, 1, 2, 3)}
    assert [codes[n][0, 0] * quantizers.QUALITY_DB for n in (0, 1, 2)] == [-14, -20, -14]
    assert [codes[n][1, 0] for n in (0, 1, 2, 3)] == [12, 12, 8, 0]
    assert 57 < 8e-3 * os.path.getsize("3.jxc") / header_of("3.jxc").seconds <= 60
    assert header_of("4.jxc").num_codebooks == 2


def test_kbps_of_stdin_and_of_a_folder_and_what_cannot_be_reached(run, small_models, speech, recordings, monkeypatch):
    run("encode", "speech.wav", "-o", "speech.jxc", "--kbps", "50", model=None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stream(pathlib.Path("speech.wav").read_bytes()))
        patch.setattr(sys, "stdout", stream())
        assert run("encode", "-", "-o", "-", "--kbps", "50", model=None)[0] == 0
        assert sys.stdout.buffer.getvalue() == pathlib.Path("speech.jxc").read_bytes()
    code, _, told = run("encode", "recordings", "-o", "codes", "--kbps", "50", model=None)
    assert code == 1 and told[0].startswith("jaxcodec: recordings/text.wav: not audio")
    assert "encoded 3 of 4" in told[1] and files("codes") == ["a.jxc", "deep/b.jxc", "deep/c.jxc"]
    code, _, told = run("encode", "speech.wav", "-o", "low.jxc", "--kbps", "0.5", model=None)
    assert code == 1 and len(told) == 1 and not os.path.exists("low.jxc")
    assert re.fullmatch(
        r"jaxcodec: speech.wav: 0.5 kbit/s cannot be reached, this recording needs [\d.]+ at least\.", told[0]
    )


def test_files_are_decoded_truncated_and_described_by_the_model_that_made_them(run, codec, small_models, speech):
    other = codec.replace(constants={"centroids": codec.constants["centroids"] + 1})
    os.mkdir("codes")
    run("encode", "speech.wav", "-o", "codes/a.jxc", model=None)
    for name, flags in (("b", "--codebooks 2"), ("c", "--quality -20"), ("d", "--codebooks 3")):
        run("encode", "speech.wav", "-o", f"codes/{name}.jxc", *flags.split(), model=None)
    small_models.clear()
    code, _, told = run("decode", "codes", "-o", "decoded", model=None)
    assert code == 0 and sorted(small_models) == ["files", "tokens"]  # each once, of four files
    assert files("decoded") == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert all(len(audio.load(f"decoded/{name}.wav")) == len(speech) for name in "abcd")

    pathlib.Path("codes/b.jxc").write_bytes(jaxcodec.pack(other, inference.encode(other, speech), len(speech)))
    message = f"made with the model {other.fingerprint.hex()}, which is not bundled: give that model (--model)."
    code, _, told = run("decode", "codes", "-o", "decoded", "--force", model=None)
    assert code == 1 and told[0] == f"jaxcodec: codes/b.jxc: {message}" and "decoded 3 of 4" in told[1]
    small_models.clear()
    assert run("truncate", "codes/d.jxc", "-o", "e.jxc", "--codebooks", "1", model=None)[0] == 0
    code, out, _ = run("info", *(f"codes/{name}.jxc" for name in "abd"))
    assert code == 0 and not small_models
    assert re.findall(r"^model +(.*)$", out, re.MULTILINE) == [
        f"{pretrained.load('files').fingerprint.hex()} (files)",
        other.fingerprint.hex(),
        f"{codec.fingerprint.hex()} (tokens)",
    ]


def test_a_tokens_file_with_tables_is_truncated_by_its_own_model(run, codec, small_models, speech, monkeypatch):
    codes = np.asarray(inference.encode(codec, speech))
    fitted = codec.replace(entropy=entropy.fit([codes], codec.codebook_size))
    contents = {"files": bundled.read("files"), "tokens": pretrained.to_bytes(fitted)}
    monkeypatch.setattr(bundled, "read", contents.__getitem__)
    pathlib.Path("speech.jxc").write_bytes(jaxcodec.pack(fitted, codes, len(speech)))
    assert header_of("speech.jxc").entropy_digest
    assert run("truncate", "speech.jxc", "-o", "two.jxc", "--codebooks", "2", model=None)[0] == 0
    assert small_models == ["tokens"]
    assert pathlib.Path("two.jxc").read_bytes() == jaxcodec.pack(fitted, codes[:2], len(speech))


def test_info_without_arguments_describes_both_bundled_models(run, codec, scalar_codec, small_models):
    code, out, _ = run("info", "--json")
    assert code == 0
    assert [(d["bundled"], d["model"], d["file"], d["quantizer"]) for d in json.loads(out)] == [
        ("files", scalar_codec.fingerprint.hex(), bundled.BUNDLED["files"], "scalar"),
        ("tokens", codec.fingerprint.hex(), bundled.BUNDLED["tokens"], "rvq"),
    ]
    counts = [(d.get("codes_per_frame"), d.get("num_codebooks")) for d in json.loads(out)]
    assert counts == [(scalar_codec.num_codebooks, None), (None, codec.num_codebooks)]
    assert run("info", "tokens")[1] == run("info")[1].split("\n\n")[1]


def test_tokens_and_export_are_of_codebooks_by_default(run, codec, small_models, recordings):
    os.remove("recordings/text.wav")
    assert run("tokens", "recordings", "-o", "out", model=None)[0] == 0
    assert json.loads(pathlib.Path("out/manifest.json").read_text())["model"] == codec.fingerprint.hex()
    code, _, told = run("tokens", "recordings", "-o", "other", model="files")
    assert code == 1 and len(told) == 1 and "this codec's quantizer (scalar) has none" in told[0]
    assert run("export", "-o", "a.safetensors")[0] == run("export", "files", "-o", "b.safetensors")[0] == 0
    assert [bundled.names()[jaxcodec.load(f"{name}.safetensors").fingerprint] for name in "ab"] == ["tokens", "files"]
    code, _, told = run("export", "files", "-o", "c.safetensors", "--entropy_data", "recordings")
    assert code == 2 and told == ["jaxcodec: --entropy_data fits tables to codebooks, and this model has none."]


def test_eval_at_kbps_says_what_was_asked_and_what_was_measured(run, small_models, recordings):
    os.remove("recordings/text.wav")
    wanted = "eval", "recordings", "--json", "scores.json", "--csv", "scores.csv", "--group", "speaker"
    code, out, told = run(*wanted, "--kbps", "40,70.5", "--shape", "0.5", model=None)
    assert code == 0, told
    _, table, groups = out.split("\n\n")
    lines = [re.split("  +", line) for line in table.splitlines()]
    assert lines[:2] == [["kbit/s asked", "40", "70.5"], ["shape", "0.5", "0.5"]] and lines[2][0] == "kbit/s"
    assert all(0.95 * asked < float(kbps) <= asked for asked, kbps in zip((40, 70.5), lines[2][1:], strict=True))
    assert groups.splitlines()[0].split()[:5] == ["speaker", "kbit/s", "asked", "shape", "clips"]
    report = json.loads(pathlib.Path("scores.json").read_text())
    assert report["knob"] == "kbps_asked" and len(report["rows"]) == 6
    for row in report["rows"]:
        assert 8e-3 * row["bytes"] / row["seconds"] <= row["kbps_asked"] and row["shape"] == 0.5
    assert [(point["kbps_asked"], point["shape"]) for point in report["points"]] == [(40, 0.5), (70.5, 0.5)]
    qualities = [row["quality"] for row in report["rows"][:2]]
    assert qualities[0] > qualities[1]
    (first, *_) = csv.DictReader(pathlib.Path("scores.csv").read_text().splitlines())
    assert list(first)[:7] == ["clip", "speaker", "kbps_asked", "shape", "quality", "seconds", "bytes"]
    # A rate that one clip cannot have is told, and the others are measured.
    audio.save("recordings/short.wav", support.speech_like(1, 500)[0])
    code, out, told = run(*wanted, "--kbps", "40", "--force", model=None)
    (problem,) = (line for line in told if "short.wav" in line)
    assert code == 1 and problem.startswith("jaxcodec: short.wav: 40 kbit/s cannot be reached, this recording needs ")
    report = json.loads(pathlib.Path("scores.json").read_text())
    assert report["failed"] == [problem.removeprefix("jaxcodec: ")] and report["points"][0]["clips"] == 3
    code, out, told = run("eval", "recordings/a.wav", "--kbps", "1", model=None)
    assert (code, out) == (1, "") and told[-1] == "jaxcodec: no recording could be measured."


def test_eval_at_qualities_and_at_its_default_rates(run, small_models, speech, monkeypatch):
    code, out, _ = run("eval", "speech.wav", "--quality=-8,-20", model=None)
    lines = [re.split("  +", line) for line in out.split("\n\n")[1].splitlines()]
    assert code == 0 and lines[:2] == [["quality", "-8", "-20"], ["shape", "0.75", "0.75"]]
    monkeypatch.setattr(evaluation, "KBPS", (40.0, 70.0))
    code, out, _ = run("eval", "speech.wav", model=None)
    assert code == 0 and re.search(r"^kbit/s asked +40 +70$", out, re.MULTILINE)
    code, out, _ = run("eval", "speech.wav", "--codebooks", "1,4", model=None)
    assert code == 0 and re.search(r"^codebooks +1 +4$", out, re.MULTILINE)


def test_a_faster_search_is_asked_for_by_flags(run, codec, small_models, speech):
    for precision in layers.MATMUL_PRECISIONS:
        flags = ["--model", "tokens", "--beams", "3", "--matmul_precision", precision]
        assert run("encode", "speech.wav", "-o", f"{precision}.jxc", *flags, model=None)[0] == 0
        fast = codec.with_beams(3).with_matmul_precision(precision)
        codes = jaxcodec.unpack(codec, pathlib.Path(f"{precision}.jxc").read_bytes()).codes
        np.testing.assert_array_equal(codes, fast.encode(speech))
        assert np.any(codes != codec.encode(speech))
    scores = {}
    for name, given in (("fast", flags), ("exact", flags[:4]), ("exhaustive", flags[:2])):
        assert run("eval", "speech.wav", *given, "--json", f"{name}.json", model=None)[0] == 0
        scores[name] = json.loads(pathlib.Path(f"{name}.json").read_text())["points"][-1]["snr"]
    assert len(set(scores.values())) == 3
    for more, problem in (
        ("--beams 3", "this codec has no codebooks to search: beams belong to tokens."),
        ("--model tokens --beams 9999", f"beams is 9999, expected 1 to {codec.codebook_size}."),
    ):
        code, _, told = run("encode", "speech.wav", "-o", "other.jxc", *more.split(), model=None)
        assert code == 1 and told == [f"jaxcodec: {problem}"]


@pytest.mark.parametrize(
    "command", ["encode speech.wav -o out.jxc", "eval speech.wav", "report out --clips speech.wav"]
)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kbps 8 --quality=-8", "--kbps and --quality both set the rate: give one of them."),
        ("--kbps 0", "argument --kbps: 0 is not a rate, expected a number above 0"),
        ("--kbps x", "argument --kbps: could not convert string to float: 'x'"),
        ("--quality 99", "--quality 99.0: quality 99 dB, shaping 0.75: expected -66 to 40 and 0 to 1."),
        ("--shape 2", "--shape 2.0: quality -14 dB, shaping 2: expected -66 to 40 and 0 to 1."),
        ("--model tokens --kbps 8", "--kbps is for other models, the rate of this one is set by --codebooks."),
        ("--model tokens --shape 1", "--shape is for other models, the rate of this one is set by --codebooks."),
        (
            "--model files --codebooks 2",
            "--codebooks is for other models, the rate of this one is set by --quality and --shape and --kbps.",
        ),
        ("--codebooks 2 --kbps 8", "--codebooks is for other models, the rate of this one is set by --quality"),
    ],
)
def test_rates_that_make_no_sense_are_refused_in_one_line(command, flags, message, small_models, speech, capsys):
    try:
        code = cli.main([*command.split(), *flags.split()])
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2 and message in told[-1]
    assert files(".") == ["speech.wav"]


def test_info_describes_files_and_models(run, codec, model, speech):
    run("encode", "speech.wav", "-o", "speech.jxc", "--codebooks", "2")
    code, out, _ = run("info", "speech.jxc", model, "--json")
    file, description = json.loads(out)
    assert code == 0
    assert (file["num_samples"], file["num_codebooks"], file["nominal_kbps"]) == (len(speech), 2, 8.0)
    assert file["bytes"] == os.path.getsize("speech.jxc") and file["seconds"] == len(speech) / 16000
    assert file["model"] == description["model"] == codec.fingerprint.hex()
    assert (description["frame_rate"], description["latency_seconds"]) == (1000.0, None)
    code, out, told = run("info", "gone.jxc", "speech.jxc", "speech.wav")
    assert code == 1 and re.search(r"^num samples +19201$", out, re.MULTILINE)
    assert [line.split(": ")[1] for line in told] == ["gone.jxc", "speech.wav"]


def test_eval_prints_a_table_and_writes_every_clip(run, recordings, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pystoi" else find(name))
    audio.save("recordings/silence.wav", np.zeros(8000, np.float32))
    files_to_write = "--json", "scores.json", "--csv", "scores.csv"
    code, out, told = run("eval", "recordings", "--codebooks", "1,4", "--group", "speaker", *files_to_write)
    assert code == 1
    pattern = r"jaxcodec: not measured, as their packages are not installed: .*\bestoi\b.*: pip install .*"
    assert any(re.fullmatch(pattern, line) for line in told)  # others may be missing, too
    assert [line for line in told if line.startswith("jaxcodec: recordings/text.wav: not audio")]
    assert "jaxcodec: snr is the mean without 1 of 4 clips: too short or silent" in told
    header, table, usage, groups = out.split("\n\n")
    lines = {line.split()[0]: line.split() for line in table.splitlines()}
    assert lines["codebooks"][1:] == ["1", "4"] and "ESTOI" not in lines
    report = json.loads(pathlib.Path("scores.json").read_text())
    assert f"model {report['model']} (mdct, 4 x 16 at 1000 frames/s), 4 clips" in header and report["date"] in header
    assert report["version"] == jaxcodec.__version__ and report["config"]["model"]["mdct"]["hop_length"] == 16
    assert f"{report['codebooks'][1]['perplexity']:.1f}" == usage.splitlines()[3].split()[2]
    assert [line.split()[:3] for line in groups.splitlines()] == [
        ["speaker", "codebooks", "clips"],
        ["-", "1", "2"],
        ["-", "4", "2"],
        ["deep", "1", "2"],
        ["deep", "4", "2"],
    ]
    rows = list(csv.DictReader(pathlib.Path("scores.csv").read_text().splitlines()))
    assert len(rows) == len(report["rows"]) == 8 and len(report["clips"]) == 4 and len(report["failed"]) == 1
    assert {row["speaker"] for row in report["rows"]} == {"", "deep"} == {row["speaker"] for row in report["groups"]}
    names = {row["clip"] for row in rows}
    assert names == {"a.wav", "deep/b.flac", "deep/c.ogg", "silence.wav"}
    snrs = [float(row["snr"]) for row in rows if row["codebooks"] == "4" and row["snr"]]
    assert float(lines["SNR"][4]) == pytest.approx(np.mean(snrs), abs=0.006)
    code, _, told = run("eval", "recordings", "--csv", "scores.csv")
    assert code == 1 and told == ["jaxcodec: scores.csv exists, --force replaces it"]


def test_eval_measures_a_split_of_prepared_speech_as_its_recordings(run, folder):
    for name in ("train/a/1.wav", "validation/b/2.wav", "validation/c/3.wav"):
        os.makedirs(os.path.dirname(f"speech/{name}"))
        audio.save(f"speech/{name}", support.speech_like(1, 8000, seed=int(name[-5]))[0])
    config = tiny.get_config().data
    config.update(data_dir="speech", prepared_dir="shards")
    prepared = data.prepare(config).data_path
    measure = "eval", "--codebooks", "4", "--json"
    assert run(*measure, "prepared.json", prepared)[0] == run(*measure, "folder.json", "speech/validation")[0] == 0
    prepared_rows, rows = (
        {row["speaker"]: row["snr"] for row in json.loads(pathlib.Path(name).read_text())["rows"]}
        for name in ("prepared.json", "folder.json")
    )
    assert prepared_rows == rows and set(rows) == {"b", "c"}
    clips = json.loads(pathlib.Path("prepared.json").read_text())["clips"]
    assert dict(clip="validation/b/2.wav", seconds=0.5) in clips
    assert run(*measure, "train.json", prepared, "--split", "train")[0] == 0
    assert json.loads(pathlib.Path("train.json").read_text())["rows"][0]["speaker"] == "a"
    code, _, told = run("eval", "speech/train", "speech/train/a/1.wav", "speech/train")
    assert code == 2 and told[-1].startswith("jaxcodec: two recordings are called a/1.wav: give the folder above them")
    code, _, told = run("eval", "speech", "--split", "train")
    assert code == 2 and told[-1] == "jaxcodec: --split is for prepared folders, those with a dataset_info.json."


def test_tokens_are_made_once_and_bad_recordings_are_named(run, recordings):
    code, _, told = run("tokens", "recordings", "-o", "out", "--codebooks", "3", "--shard_size", "2")
    assert code == 1
    assert [line.split(": ")[1] for line in told] == ["recordings/text.wav", told[1].removeprefix("jaxcodec: ")]
    assert told[1].startswith("jaxcodec: 3 recordings, ") and told[1].endswith("in out, 1 failed")
    assert files("out") == ["manifest.json", "tokens-00000-of-00002.npz", "tokens-00001-of-00002.npz"]
    shards = [np.load(path) for path in sorted(pathlib.Path("out").glob("*.npz"))]
    assert sum(shard["codes"].shape[1] for shard in shards) == sum(-(-n // 16) for n in (3000, 5806, 5000)) + 3 * (
        support.untrained_codec().num_frames(16) - 1
    )
    code, _, told = run("tokens", "recordings", "-o", "out", "--shard_size", "2")
    assert code == 1 and "begun with num_codebooks = 3, this command has 4" in told[0]


def test_export_writes_a_model_that_makes_the_same_files(run, codec, model, speech, recordings, monkeypatch):
    os.remove("recordings/text.wav")
    assert run("export", model, "-o", "half.safetensors", "--dtype", "float16")[0] == 0
    assert os.path.getsize("half.safetensors") < 0.7 * os.path.getsize(model)
    tables = entropy.fit([np.asarray(inference.encode(codec, speech))], codec.codebook_size)
    fitted = []
    monkeypatch.setattr(entropy, "fit", lambda clips, size: fitted.extend(clips) or tables)
    assert run("export", model, "-o", "coded.safetensors", "--entropy_data", "recordings")[0] == 0
    assert [clip.shape[0] for clip in fitted] == [4, 4, 4]
    exported = pretrained.load("coded.safetensors")
    assert exported.entropy == tables
    assert exported.fingerprint == codec.fingerprint
    code, _, told = run("export", model, "-o", "coded.safetensors")
    assert code == 1 and told == ["jaxcodec: coded.safetensors exists, --force replaces it"]


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_other_formats_are_written_by_their_exporters(run, codec, model, folder, monkeypatch, format):
    called = []
    monkeypatch.setattr(export, f"export_{format}", lambda codec, directory: called.append((codec, directory)) or [])
    assert run("export", model, "-o", "exported", "--format", format)[0] == 0
    ((exported, directory),) = called
    assert directory == "exported" and exported.fingerprint == codec.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("encode speech.wav", "the following arguments are required: -o/--output"),
        ("encode speech.wav -o out --codebooks 0", "0 is less than 1"),
        ("encode speech.wav -o out --codebok 2", "unrecognized arguments"),
        (
            "encode speech.wav -o out.jxc --codebooks 5 --model {model}",
            "--codebooks 5: num_codebooks is 5, this codec has 1 to 4.",
        ),
        ("encode speech.wav - -o -", "-o - is for one input, several need a folder."),
        ("encode - - -o out/", "stdin can be given once."),
        ("encode speech.wav other.wav -o speech.wav", "-o speech.wav is a file, several inputs need a folder."),
        ("encode speech.wav other.wav -o out.jxc", "-o out.jxc is the name of a file, several inputs need a folder."),
        ("encode . -o codes.wav --force", "-o codes.wav is the name of a file, several inputs need a folder."),
        ("decode a.jxc b.jxc -o out.caf", "-o out.caf is the name of a file, several inputs need a folder."),
        ("encode speech.wav -o out.mp3 --force", "-o out.mp3: expected a folder or a name that ends in .jxc."),
        ("encode speech.wav -o speech.wav --force", "-o speech.wav: expected a folder or a name that ends in .jxc."),
        ("encode speech.wav -o a.jxc --start 2 --end 1", "--end 1 is not after --start 2."),
        ("encode speech.wav -o a.jxc --start -1", "argument --start: -1 is less than 0"),
        ("report page.html", "page.html is the name of a file, expected a folder, in which index.html is written."),
        ("eval speech.wav --json speech.wav --force", "speech.wav is an input, which nothing replaces"),
        ("decode speech.jxc -o decoded.doc", "-o decoded.doc: expected a folder or a name that ends in .wav, .flac"),
        ("eval speech.wav --codebooks 1,x", "argument --codebooks: 'x' is not a whole number"),
        ("export -o out --format onnx --dtype float16", "--dtype and --entropy_data are for safetensors files"),
    ],
)
def test_a_command_that_makes_no_sense_ends_with_2(arguments, message, model, speech, capsys):
    try:
        code = cli.main([part.format(model=model) for part in arguments.split()])
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr().err
    assert code == 2 and message in told.splitlines()[-1]
    assert files(".") == ["speech.wav"]


@pytest.mark.parametrize(
    ("command", "name", "content", "message"),
    [
        ("encode", "gone.wav", None, "gone.wav: No such file or directory"),
        ("encode", "empty.wav", b"", "empty.wav: zero bytes"),
        ("decode", "gone.jxc", None, "gone.jxc: No such file or directory"),
        ("decode", "empty.jxc", b"", "empty.jxc: not a .jxc file"),
        ("decode", "odd.jxc", b"hello", "odd.jxc: not a .jxc file"),
        ("decode", "short.jxc", bitstream.MAGIC, "short.jxc: the data ends within the header"),
        ("truncate", "odd.jxc", b"hello", "odd.jxc: not a .jxc file"),
        ("eval", "odd.wav", b"hello", "odd.wav: not audio that can be read"),
    ],
)
def test_an_input_that_fails_is_named_in_one_line(run, folder, command, name, content, message):
    if content is not None:
        pathlib.Path(name).write_bytes(content)
    options = {
        "encode": ["-o", "out.jxc"],
        "decode": ["-o", "out.wav"],
        "truncate": ["-o", "out.jxc", "--codebooks", "1"],
    }
    code, out, told = run(command, name, *options.get(command, []))
    told = [line for line in told if "packages are not installed" not in line]
    assert (code, out) == (1, "") and told[0].startswith(f"jaxcodec: {message}")
    assert len(told) == (2 if command == "eval" else 1)  # eval also says that nothing is left to measure
    assert files(".") == ([name] if content is not None else [])


def test_missing_models_other_models_and_empty_folders_are_told_in_one_line(run, codec, speech):
    run("encode", "speech.wav", "-o", "speech.jxc")
    pretrained.save(codec.replace(constants={"centroids": codec.constants["centroids"] + 1}), "other.safetensors")
    os.mkdir("empty")
    for arguments, model, message in (
        (("encode", "speech.wav", "-o", "out.jxc"), "nowhere", "There is no codec at nowhere"),
        (("encode", "speech.wav", "-o", "out.jxc"), "speech.wav", "speech.wav is not a safetensors file"),
        (("decode", "speech.jxc", "-o", "out.wav"), "other.safetensors", "speech.jxc: "),
        (("decode", "empty", "-o", "out"), "nowhere", "empty has no .jxc file in it."),
        (("encode", "empty", "-o", "out"), "nowhere", "the folder 'empty' has no wav/flac/ogg/opus/mp3/aiff/"),
    ):
        code, _, told = run(*arguments, model=model)
        assert code == 1 and len(told) == 1 and told[0].startswith(f"jaxcodec: {message}")


def test_a_reader_that_leaves_and_ctrl_c_are_told_in_one_line(run, speech, monkeypatch):
    def leave(*_):
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(
            sys, "stdout", types.SimpleNamespace(buffer=types.SimpleNamespace(write=leave), fileno=lambda: -1)
        )
        patch.setattr(os, "dup2", lambda *_: None)
        code = run("encode", "speech.wav", "-o", "-")[0]
    assert code == 1

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcodec.inference.files.pack", interrupt)
    assert run("encode", "speech.wav", "-o", "speech.jxc") == (130, "", ["jaxcodec: interrupted"])
    assert files(".") == ["speech.wav"]


def test_help_is_there_at_once():
    code = "import sys, time; from jaxcodec import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'jax', 'numpy', 'soundfile', 'tensorflow'} & set(sys.modules)\n"
    code += "print(heavy, time.process_time(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy, seconds = done.stderr.rsplit(maxsplit=1)
    assert heavy == "set()" and float(seconds) < 0.5
    assert all(name in done.stdout for name in ("encode", "decode", "info", "truncate", "eval", "tokens", "export"))


def test_a_command_keeps_its_programs_for_the_next(model, speech):
    command = [sys.executable, "-m", "jaxcodec", "encode", "speech.wav", "-o", "-", "--model", model, "--quiet"]
    environment = os.environ | {"JAXCODEC_CACHE": "cache", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def encode():
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    def kept():
        return {path: path.stat().st_ino for path in pathlib.Path("cache/programs").iterdir()}

    first, programs = encode(), kept()
    assert programs
    assert encode() == first and kept() == programs
    (file, *_) = programs
    file.unlink()
    assert encode() == first and kept().keys() == programs.keys()


def documented(mark, language):
    return re.findall(
        rf"<!-- ci: {mark} -->\n```{language}\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL
    )


def test_the_documented_commands_do_what_they_say(run, speech, recordings, monkeypatch):
    os.remove("recordings/text.wav")
    blocks = documented("cli", "sh")
    assert len(re.findall(r"^```sh", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)) == len(blocks) == 2
    for line in "".join(blocks).splitlines():
        piped = b""
        for command in line.split("|"):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", stream(piped))
                if shlex.split(command, comments=True)[-1] == "-":
                    patch.setattr(sys, "stdout", stream())
                name, *arguments = shlex.split(command, comments=True)
                assert name == "jaxcodec"
                assert run(*arguments, model=None)[0] == 0, command
                piped = sys.stdout.buffer.getvalue() if isinstance(sys.stdout, types.SimpleNamespace) else b""
    assert len(audio.load("decoded.wav")) == len(audio.load("decoded.flac")) == len(speech)
    assert os.path.getsize("smaller.jxc") < 0.6 * os.path.getsize("codebooks.jxc")
    assert 7.5 < 8e-3 * os.path.getsize("speech.jxc") / (len(speech) / 16000) <= 8
    assert files("decoded") == ["a.flac", "deep/b.flac", "deep/c.flac"]
    names = {}
    (load_tokens,) = documented("load", "python")
    exec(load_tokens, names)
    assert names["first"].shape[0] == 16 and names["shard"]["names"][0] == "a.wav"
    scores = json.loads(pathlib.Path("scores.json").read_text())
    assert {row["codebooks"] for row in scores["points"]} == {1, 2, 4, 8, 16}
    assert set(evaluation.MEASURES) <= set(scores["rows"][0])
