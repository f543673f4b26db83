import itertools
import threading
import time

import numpy as np
import pytest

from jaxcodec import audio, data
from jaxcodec.training import run
from tests import support

CROP = 400


class Clips:
    """A source in memory. `fails` has how often a clip raises."""

    def __init__(self, lengths, fails=None, level=0.5):
        rng = np.random.default_rng(0)
        self.clips = [audio.to_int16(rng.uniform(-level, level, length)) for length in lengths]
        self.lengths = np.array(lengths, np.int32)
        self.fails = dict(fails or {})

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        if self.fails.get(index, 0) > 0:
            self.fails[index] -= 1
            raise OSError("the disk is gone")
        return {"audio": self.clips[index], "id": f"{index}", "speaker": ""}


@pytest.fixture
def source():
    return Clips([100, 399, 400, 401, 1000, 1700, 30, 800])


def batches(source, count, **options):
    defaults = {"seed": 0, "start_step": 0, "batch_size": 4, "crop_samples": CROP, "backend": "numpy"}
    iterator = data.train_batches(source, **(defaults | options))
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_a_training_batch_has_the_stated_shapes(source, backend):
    (batch,) = batches(source, 1, batch_size=6, num_devices=2, backend=backend)
    assert batch["audio"].shape == (2, 3, CROP) and batch["audio"].dtype == np.float32
    assert batch["length"].shape == (2, 3) and batch["length"].dtype == np.int32


def test_both_backends_give_the_same_bits_with_gain_and_padding(source):
    options = {"gain_db": (-20.0, 20.0), "num_devices": 2, "start_step": 3}
    assert_same(batches(source, 9, **options), batches(source, 9, **options, backend="tensorflow"))


def test_rows_are_pieces_of_their_clips_with_zeros_after_them(source):
    whole = [audio.to_float(clip) for clip in source.clips]
    seen = set()
    for batch in batches(source, 12):
        for row, length in zip(batch["audio"][0], batch["length"][0], strict=True):
            assert not row[length:].any()
            found = [
                (number, start)
                for number, clip in enumerate(whole)
                for start in range(len(clip) - length + 1)
                if clip[start] == row[0] and np.array_equal(clip[start : start + length], row[:length])
            ]
            assert len(found) == 1 and length == min(CROP, len(whole[found[0][0]]))
            seen.add(found[0])
    assert {number for number, _ in seen} == set(range(len(source)))
    assert len(seen) > 15  # crops start at different places


def test_a_pass_takes_each_clip_in_proportion_to_its_length(source):
    assert data.crops_per_pass(source, CROP) == 1 + 1 + 1 + 1 + 2 + 4 + 1 + 2
    order = data.batches._TrainOrder(source.lengths, CROP, 0, (0.0, 0.0))
    passes = [order.take(np.arange(13 * number, 13 * (number + 1))) for number in range(3)]
    for examples in passes:
        assert np.bincount(examples.clip).tolist() == [1, 1, 1, 1, 2, 4, 1, 2]
    examples = passes[0]
    starts = np.sort(examples.start[examples.clip == 5])
    assert (starts // (1301 / 4)).astype(int).tolist() == [
        0,
        1,
        2,
        3,
    ]  # one in each quarter: all of it is heard
    assert not np.array_equal(passes[0].clip, passes[1].clip)


def test_a_batch_depends_on_seed_and_step_alone(source):
    straight = batches(source, 10)
    assert_same(straight[6:], batches(source, 4, start_step=6))
    assert_same(straight, batches(source, 10, prefetch=1))
    assert not np.array_equal(straight[0]["audio"], batches(source, 1, seed=1)[0]["audio"])
    examples = np.concatenate([batch["audio"] for batch in straight], axis=1)
    larger = np.concatenate([batch["audio"] for batch in batches(source, 5, batch_size=8)], axis=1)
    np.testing.assert_array_equal(examples, larger)  # nor on how examples are grouped into batches


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_processes_share_out_the_rows_of_the_one_process_batch(source, backend):
    whole = batches(source, 5, batch_size=8, num_devices=4, backend=backend)
    options = {"batch_size": 8, "num_devices": 2, "process_count": 2, "backend": backend}
    parts = [batches(source, 5, process_index=process, **options) for process in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(whole, joined)


def test_a_batch_size_that_does_not_divide_is_refused(source):
    with pytest.raises(ValueError, match="batch_size 6 does not divide by 2 devices x 2 processes"):
        batches(source, 1, batch_size=6, num_devices=2, process_count=2)
    with pytest.raises(ValueError, match="batch_size 0"):
        next(data.eval_batches(source, batch_size=0))


def test_gain_is_drawn_from_its_range_and_never_exceeds_full_scale():
    loud = Clips([CROP] * 40, level=0.5)
    plain, changed = batches(loud, 10), batches(loud, 10, gain_db=(-12.0, 12.0))
    peaks = [np.abs([batch["audio"] for batch in run]).max(axis=3).ravel() for run in (plain, changed)]
    gains = 20 * np.log10(peaks[1] / peaks[0])
    assert -12 <= gains.min() < -8 and gains.max() > 5
    assert peaks[1].max() == 1.0  # at most full scale, though +12 dB of 0.5 would be 2


def test_a_training_run_draws_gain_from_the_range_of_its_config():
    config = support.small_config(batch_size=8, data__gain_db=(-12.0, -12.0), data__crop_seconds=CROP / 16000)
    clips = Clips([CROP] * 16)
    batch_iterator = run.Run(config, support.make_model(config), clips, clips).train_batches(0)
    batch = next(batch_iterator)
    batch_iterator.close()
    (plain,) = batches(clips, 1, batch_size=8, num_devices=8, seed=config.seed)
    np.testing.assert_allclose(batch["audio"], plain["audio"] * 10 ** (-12 / 20), rtol=1e-6)


def test_a_validation_clip_that_cannot_be_read_is_no_example(monkeypatch):
    class Broken(Clips):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("gone")
            return super().__getitem__(index)

    monkeypatch.setattr(data.batches, "FIRST_WAIT_SECONDS", 0.0)
    config = support.small_config(batch_size=8, num_examples=3, data__crop_seconds=CROP / 16000)
    clips = Broken([CROP, CROP, 2 * CROP, CROP])
    shown = [clip for clip, _, _ in run.Run(config, support.make_model(config), clips, clips).examples()]
    assert [len(clip) for clip in shown] == [CROP, 2 * CROP]


def test_no_gain_leaves_the_samples_as_they_are(source):
    rows = np.concatenate([batch["audio"].reshape(-1, CROP) for batch in batches(source, 4)])
    np.testing.assert_array_equal(rows, audio.to_float(audio.to_int16(rows)))


LENGTHS = [100, 399, 400, 401, 1000, 1700, 30, 800]
FOR_EVER = 10**9


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_a_clip_that_fails_now_and_then_is_tried_again_after_longer_and_longer_waits(source, backend):
    waits = []
    read = batches(Clips(LENGTHS, {3: 4}), 6, backend=backend, wait=waits.append)
    assert_same(read, batches(source, 6))
    assert waits == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_a_clip_that_always_fails_is_left_out_logged_once_and_nothing_else_changes(source, backend, caplog):
    waits = []
    options = {"backend": backend, "wait": waits.append, "gain_db": (-20.0, 20.0)}
    read, whole = batches(Clips(LENGTHS, {4: FOR_EVER}), 12, **options), batches(source, 12, **options)
    left_out = 0
    for batch, good in zip(read, whole, strict=True):
        for name in ("audio", "length"):
            here, there = batch[name][0], good[name][0]
            same = [np.array_equal(a, b) for a, b in zip(here, there, strict=True)]
            assert all(matches or not here[row].any() for row, matches in enumerate(same))
        left_out += (batch["length"] == 0).sum()
    assert left_out >= 2 * 3 and waits == [0.5, 1.0, 2.0, 4.0]  # each pass has two crops of it: waited for once
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    told = "clip 4: OSError: the disk is gone, left out after 5 tries; 1 of 8 clips cannot be read"
    assert warnings == [told]
    # Resumed, it is left out of the same rows.
    assert_same(read[7:], batches(Clips(LENGTHS, {4: FOR_EVER}), 5, start_step=7, **options))


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_more_failures_than_a_twentieth_of_the_clips_end_the_run_in_one_line(backend):
    fails = dict.fromkeys(range(3), FOR_EVER)
    message = r"^3 of 40 clips cannot be read, more than 2; the last is clip \d: OSError: the disk is gone$"
    with pytest.raises(ValueError, match=message):
        batches(Clips([500] * 40, fails), 20, backend=backend, wait=lambda seconds: None)
    with pytest.raises(ValueError, match="1 of 1 clips cannot be read, more than 0"):
        batches(Clips([500], {0: FOR_EVER}), 1, backend=backend, wait=lambda seconds: None)


def test_a_disk_that_is_gone_for_good_is_not_tried_for_every_clip_of_a_large_corpus():
    waits = []
    with pytest.raises(ValueError, match=r"10\d of 5000 clips cannot be read, more than 100"):
        batches(Clips([5] * 5000, dict.fromkeys(range(5000), FOR_EVER)), 2000, wait=waits.append)
    assert sum(waits) < 120 * 7.5


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_closing_the_iterator_does_not_wait_for_a_disk(backend):
    failing = threading.Event()

    class Dying(Clips):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > 20:
                failing.set()
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    options = {"batch_size": 4, "crop_samples": CROP, "prefetch": 10, "backend": backend}
    iterator = data.train_batches(Dying([500] * 8), seed=0, start_step=0, **options)
    next(iterator)
    assert failing.wait(30)
    started = time.monotonic()
    iterator.close()
    assert time.monotonic() - started < 4


def test_evaluation_leaves_out_a_clip_that_cannot_be_read(caplog):
    lengths, waits = [100, 16000, 5000], []
    whole = data.eval_batches(Clips(lengths), batch_size=4)
    for batch, good in zip(
        data.eval_batches(Clips(lengths, {0: 2, 2: FOR_EVER}), batch_size=4, wait=waits.append), whole, strict=True
    ):
        assert good["index"].tolist() == [[0, 1, 2, -1]] and batch["index"].tolist() == [[0, 1, -1, -1]]
        assert batch["length"].tolist() == [[100, 16000, 0, 0]] and not batch["audio"][0, 2:].any()
        np.testing.assert_array_equal(batch["audio"][0, :2], good["audio"][0, :2])
    assert waits == [0.5, 1.0, 0.5, 1.0, 2.0, 4.0] and "clip 2: OSError" in caplog.text


def test_closing_the_iterator_ends_its_threads(source):
    before = set(threading.enumerate())
    iterator = data.train_batches(
        source, seed=0, start_step=0, batch_size=4, crop_samples=CROP, backend="numpy", prefetch=8
    )
    next(iterator)
    assert set(threading.enumerate()) - before
    iterator.close()
    assert not set(threading.enumerate()) - before


def test_the_backend_is_tensorflow_where_installed_or_what_is_asked_for(monkeypatch):
    assert data.resolve_backend("auto") == "tensorflow"
    monkeypatch.setattr(data.batches.importlib.util, "find_spec", lambda name: None)
    assert data.resolve_backend("auto") == "numpy"
    with pytest.raises(ValueError, match="needs the package tensorflow"):
        data.resolve_backend("tensorflow")
    with pytest.raises(ValueError, match="'torch' is unknown, use auto, tensorflow or numpy"):
        data.resolve_backend("torch")


def test_an_empty_training_split_is_refused():
    with pytest.raises(ValueError, match="no clips"):
        batches(Clips([]), 1)


def test_bucket_lengths_are_few_and_multiples():
    assert data.bucket_lengths(20.0, 1) == [16000, 32000, 64000, 128000, 256000, 320000]
    assert data.bucket_lengths(4.0, 320) == [16000, 32000, 64000]
    assert data.bucket_lengths(1.5, 7000) == [21000, 28000]


def test_evaluation_gives_every_clip_once_and_whole():
    source = Clips([100, 16000, 16001, 40000, 50000, 5000, 70000, 1])
    rows = []
    for batch in data.eval_batches(source, batch_size=4, num_devices=2, max_seconds=4.0, multiple=320):
        assert batch["audio"].shape[:2] == batch["length"].shape == batch["index"].shape == (2, 2)
        assert batch["audio"].shape[2] in (16000, 32000, 64000) and batch["index"].dtype == np.int32
        rows += zip(*(batch[name].reshape(4, -1) for name in ("audio", "length", "index")), strict=True)
    assert sorted(int(index[0]) for _, _, index in rows if index[0] >= 0) == list(range(8))
    for row, (length,), (index,) in rows:
        whole = audio.to_float(source.clips[index][:64000]) if index >= 0 else np.zeros(0, np.float32)
        assert length == len(whole)
        np.testing.assert_array_equal(row[:length], whole)
        assert not row[length:].any()


def test_evaluation_processes_take_the_same_number_of_batches_and_share_the_clips():
    source = Clips([100, 20000, 300, 400, 20001, 500, 600])
    whole = list(data.eval_batches(source, batch_size=4, num_devices=2))
    parts = [
        list(data.eval_batches(source, batch_size=4, num_devices=1, process_index=process, process_count=2))
        for process in range(2)
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(whole, joined)


def test_lengths_are_kept_beside_the_shards_and_read_only_once(tmp_path):
    class Records(list):
        reads = 0

        def __getitem__(self, index):
            Records.reads += 1
            return super().__getitem__(index)

        def __iter__(self):
            return (self[index] for index in range(len(self)))

    lengths = [3, 5, 2, 7]
    clips = Clips(lengths).clips
    records = Records({"audio": clip, "length": len(clip), "id": b"x", "speaker": b""} for clip in clips)
    file = data.prepared.epath.Path(tmp_path / "lengths-train.npy")
    for reads in (4, 2):  # later the first and the last tell whether they are the lengths of these clips
        Records.reads = 0
        assert data.prepared.PreparedSpeech(records, file).lengths.tolist() == lengths
        assert Records.reads == reads
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("held", ["another count", "another split", "floats", "a pickle", "text", "nothing", "half"])
def test_a_lengths_file_that_is_not_of_these_clips_is_made_again(tmp_path, caplog, held):
    lengths = [3, 5, 2, 7]
    records = [{"audio": c, "length": len(c), "id": b"x", "speaker": b""} for c in Clips(lengths).clips]
    file = data.prepared.epath.Path(tmp_path / "lengths-train.npy")
    np.save(file, np.array(lengths, np.int32))
    whole = file.read_bytes()
    {
        "another count": lambda: np.save(file, np.array([3, 5, 7], np.int32)),
        "another split": lambda: np.save(file, np.array([3, 5, 2, 8], np.int32)),
        "floats": lambda: np.save(file, np.array(lengths, np.float32)),
        "a pickle": lambda: np.save(file, np.array([None] * 4)),
        "text": lambda: file.write_text("hello"),
        "nothing": lambda: file.write_bytes(b""),
        "half": lambda: file.write_bytes(whole[:-6]),
    }[held]()
    assert data.prepared.PreparedSpeech(records, file).lengths.tolist() == lengths
    assert f"{file} is not the lengths of these 4 clips, it is made again" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("index", range(6))
def test_each_shard_of_a_split_is_read_from_at_its_beginning_and_its_end_when_opened(index):
    def opened(damaged):
        read = []

        class Records(list):
            def __getitem__(self, index):
                read.append(index)
                if index == damaged:
                    raise RuntimeError("Failed to read\nthe postscript")
                return super().__getitem__(index)

        records = data.prepared._Records(Records(range(6)), {"one": 1, "two": 3, "none": 0, "three": 2}, "folder")
        return records, read

    records, read = opened(None)
    assert set(read) == {0, 1, 3, 4, 5} and list(records) == list(range(6))
    if index != 2:
        shard = ("one", "two", "", "two", "three", "three")[index]
        with pytest.raises(ValueError, match=rf"^{shard} is damaged or gone \(RuntimeError: Failed to read the post"):
            opened(index)


def test_a_length_that_is_wrong_in_the_middle_is_found_when_the_clip_is_read(tmp_path):
    records = [{"audio": c, "length": len(c), "id": b"x", "speaker": b""} for c in Clips([3, 5, 2, 7]).clips]
    file = data.prepared.epath.Path(tmp_path / "lengths-train.npy")
    np.save(file, np.array([3, 6, 2, 7], np.int32))
    source = data.prepared.PreparedSpeech(records, file)
    with pytest.raises(ValueError, match=r"x has 5 samples, .*lengths-train\.npy says 6: delete that file"):
        source[1]


@pytest.mark.parametrize(("memory_bytes", "reads"), [(2**20, 1), (0, 3)])
def test_a_small_split_is_read_once_and_a_large_one_every_time(tmp_path, memory_bytes, reads):
    class Record(dict):
        count = 0

        def __getitem__(self, name):
            Record.count += name == "audio"
            return super().__getitem__(name)

    Record.count = 0
    record = Record(audio=np.arange(4, dtype=np.int16), length=4, id=b"x", speaker=b"y")
    lengths = data.prepared.epath.Path(tmp_path / "lengths.npy")
    source = data.prepared.PreparedSpeech([record], lengths, memory_bytes=memory_bytes)
    assert [source[0]["speaker"] for _ in range(3)] == ["y"] * 3
    assert Record.count == reads


def test_remote_shards_are_copied_once_to_a_local_folder(tmp_path, monkeypatch):
    remote, cache = data.prepared.epath.Path(tmp_path / "bucket"), tmp_path / "cache"
    remote.mkdir()
    for name in ("dataset_info.json", "speech-train.array_record-00000-of-00001"):
        (remote / name).write_text(name)
    assert data.prepared._local_copy(remote, str(cache)) == remote
    monkeypatch.setattr(data.prepared, "_is_remote", lambda path: True)
    copy = data.prepared._local_copy(remote, str(cache))
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in remote.iterdir())
    (remote / "speech-train.array_record-00000-of-00001").unlink()
    assert data.prepared._local_copy(remote, str(cache)) == copy and len(list(copy.iterdir())) == 2
    (remote / "dataset_info.json").write_text("prepared anew")
    assert data.prepared._local_copy(remote, str(cache)) != copy


def test_of_two_processes_that_copy_shards_at_once_both_have_a_copy(tmp_path, monkeypatch):
    remote, cache = data.prepared.epath.Path(tmp_path / "remote"), tmp_path / "cache"
    remote.mkdir()
    for name in ("dataset_info.json", "train.array_record"):
        (remote / name).write_bytes(name.encode())
    monkeypatch.setattr(data.prepared, "_is_remote", lambda path: True)
    rename, first = type(remote).rename, []

    def rename_after_another(partial, target):
        if not first:
            first.append(target)
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", lambda: 1)
                assert data.prepared._local_copy(remote, str(cache)) == target
        return rename(partial, target)

    monkeypatch.setattr(type(remote), "rename", rename_after_another)
    copy = data.prepared._local_copy(remote, str(cache))
    assert first == [copy] and sorted(path.name for path in copy.iterdir()) == [
        "dataset_info.json",
        "train.array_record",
    ]
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
