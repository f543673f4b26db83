"""Runs that are stopped, killed, started twice, and whose snapshots, disks and batches are damaged."""

import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from absl import flags  # noqa: F401, ml_collections needs it first

from jaxcodec import codec, data
from jaxcodec.training import checkpoint, run, step, stopping, summaries
from tests import crash_train, support
from tests.test_train import compilation_cache, make_config, recordings  # noqa: F401, fixtures


@pytest.fixture
def config(recordings, tmp_path, monkeypatch):  # noqa: F811
    """Two epochs of three steps, with a snapshot after every step and a point of the curves after every second."""
    monkeypatch.setattr(summaries, "POINTS_EVERY", 2)
    config = make_config(recordings, tmp_path)
    config.steps_per_epoch, config.snapshots.every_steps = 3, 1
    return config


@pytest.fixture
def state():
    return support.trained_state(support.small_config())


def final(config):
    """Everything that the last snapshot of a run holds, but the time it took."""
    directory = f"{config.checkpoint_dir}/{config.experiment_name}/checkpoints"
    with checkpoint.Checkpoints(directory, config) as checkpoints:
        splits = [data.open_split(config.data, split) for split in ("train", "validation")]
        one = run.Run(config, codec.from_config(config.model, config.fixes), *splits)
        restored, progress = checkpoints.restore(one.init_state())
    return restored, vars(progress) | {"seconds": 0.0, "window": progress.window | {"seconds": 0.0}}


def points(config):
    return crash_train.points(pathlib.Path(config.checkpoint_dir), config.experiment_name)


def test_a_run_that_is_killed_goes_on_to_the_same_bits(recordings, tmp_path):  # noqa: F811
    (tmp_path / "recordings").symlink_to(recordings)
    killed, leaves = crash_train.crash(tmp_path, kills=2, seed=0)
    assert killed and not leaves


class Interruptions:
    """Sends the process a signal after the n-th call of a method of a run."""

    def __init__(self, monkeypatch, name, call, signum):
        original, self.calls = getattr(run.Run, name), 0

        def counted(one, *args):
            result = original(one, *args)
            self.calls += 1
            if self.calls == call:
                os.kill(os.getpid(), signum)
            return result

        monkeypatch.setattr(run.Run, name, counted)


@pytest.mark.parametrize(
    ("name", "call", "signum"),
    [
        ("told", 1, signal.SIGTERM),
        ("told", 5, signal.SIGINT),
        ("validation_batches", 1, signal.SIGTERM),
        ("score", 1, signal.SIGTERM),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits_report_and_curves(config, name, call, signum, monkeypatch, capsys):
    config.experiment_name = "whole"
    run.train(config)
    whole = capsys.readouterr().out

    config.experiment_name = "stopped"
    with monkeypatch.context() as patch:
        Interruptions(patch, name, call, signum)
        with pytest.raises(stopping.Stopped) as stopped:
            run.train(config)
    assert stopped.value.signum == signum
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run.train(config)

    def without_time(text):
        return [line for line in text.splitlines() if "of training" not in line]

    assert without_time(capsys.readouterr().out) == without_time(whole)
    goes_on = final(config), points(config)
    config.experiment_name = "whole"
    jax.tree.map(np.testing.assert_array_equal, goes_on, (final(config), points(config)))
    assert {number for name, number in goes_on[1] if name == "validation/snr"} == {3, 6}
    assert {number for name, number in goes_on[1] if name == "steps/loss"} == {2, 4, 6}


def test_what_was_reported_before_a_kill_but_not_saved_is_told_once_in_the_curves(config, monkeypatch):
    config.experiment_name = "whole"
    run.train(config)
    whole = points(config)

    config.experiment_name = "killed"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(config)
    assert {number for _, number in points(config)} == {2, 3}  # written, and to be forgotten
    run.train(config)
    assert points(config) == whole


def test_the_second_signal_ends_the_process_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(stopping.os, "_exit", codes.append)
    with stopping.Stop() as stop:
        assert not stop.look()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.look() and stop.signum == signal.SIGINT and not codes
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


def test_an_update_that_is_not_finite_is_skipped_on_all_devices_and_told_with_its_clips(config, monkeypatch):
    batches, warnings = run.Run.train_batches, []

    def damaged(self, start_step, **overrides):
        for number, batch in enumerate(batches(self, start_step, **overrides), start_step):
            if number == 1:
                batch["audio"][3, 0, 7] = np.nan  # of one device
            yield batch

    monkeypatch.setattr(run.Run, "train_batches", damaged)
    monkeypatch.setattr(run.logging, "warning", lambda text, *args: warnings.append(text % args))
    run.train(config)
    (told,) = [message for message in warnings if "skipped" in message]
    assert "update of step 1 was skipped, it is not finite: mse nan" in told and ".wav" in told
    restored, _ = final(config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored))


def test_a_skipped_update_changes_nothing_but_the_step():
    config = support.small_config()
    model = support.make_model(config)
    optimizer = step.make_optimizer(config.optimizer, 10)
    state = support.settle_codebooks(support.make_state(model, optimizer))
    batch = support.make_batch((256, 200))
    update = jax.jit(
        lambda s, b: step.train_step(s, b, jax.random.key(0), model=model, optimizer=optimizer, config=config)
    )
    moved, logs = update(state, batch)
    assert logs["skipped"] == 0 and not np.array_equal(moved.params["decoder"]["output_scale"], 2.5)
    batch["audio"] = (
        batch["audio"].at[0, 3].set(np.inf)
        if hasattr(batch["audio"], "at")
        else np.where(np.arange(batch["audio"].shape[1]) == 3, np.nan, batch["audio"])
    )
    kept, logs = update(state, batch)
    assert logs["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, kept.replace(step=state.step), state)
    assert int(kept.step) == int(state.step) + 1


# Snapshots.


def saved(state, tmp_path, steps=(1, 2, 3)):
    """A directory with snapshots of the steps, their weights multiplied by it; the first the best."""
    config = support.small_config()
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        for number in steps:
            params = jax.tree.map(lambda x, number=number: number * x, state.params)
            progress = checkpoint.Progress({"loss": 0.5 * number}, number)
            checkpoints.save(state.replace(step=np.int32(number), params=params), progress, -float(number))
    return config


def flip(path):
    """Flips a bit of the largest file below a folder, in its midst."""
    victim = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def restore(config, tmp_path, state):
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        return checkpoints.restore(state)


def test_of_the_snapshots_the_two_latest_and_the_best_are_kept_with_their_progress(state, tmp_path):
    config = saved(state, tmp_path, (1, 2, 3, 4))
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [1, 3, 4]
    restored, progress = restore(config, tmp_path, state)
    assert int(restored.step) == 4 and progress == checkpoint.Progress({"loss": 2.0}, 4)


def test_a_snapshot_from_within_an_epoch_is_no_best_one_but_before_the_first_was_evaluated(state, tmp_path):
    config = support.small_config()
    scores = {1: None, 2: None, 3: -5.0, 4: None, 5: None}
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
        for number, score in scores.items():
            params = jax.tree.map(lambda x, number=number: number * x, state.params)
            checkpoints.save(state.replace(step=np.int32(number), params=params), checkpoint.Progress(), score)
            checkpoints._manager.wait_until_finished()
            best = 3 if number >= 3 else number
            loaded, _, _ = checkpoint.load_model(str(tmp_path))
            support.assert_trees_close(loaded, jax.tree.map(lambda x, best=best: best * x, state.params), rtol=0)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 4, 5]


@pytest.mark.parametrize("item", ["model", "optimizer", "config", "progress"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_snapshot_gives_way_to_the_one_before_and_is_set_aside(item, damage, state, tmp_path):
    config = saved(state, tmp_path)
    part = tmp_path / "3" / item
    if damage == "delete":
        victim = max((p for p in part.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        victim.unlink()
    else:
        flip(part)
    restored, _ = restore(config, tmp_path, state)
    assert int(restored.step) == 2
    support.assert_trees_close(restored.params, jax.tree.map(lambda x: 2 * x, state.params), rtol=0)
    assert (tmp_path / "3.damaged").exists() and not (tmp_path / "3").exists()
    saved(state, tmp_path, (3,))  # nothing is in its way
    assert int(restore(config, tmp_path, state)[0].step) == 3


def test_where_all_snapshots_are_damaged_nothing_starts_anew(state, tmp_path):
    config = saved(state, tmp_path)
    for number in (1, 2, 3):
        flip(tmp_path / str(number) / "model")
    with pytest.raises(ValueError, match=r"None of the snapshots in .* can be read: put a copy back, or give another"):
        restore(config, tmp_path, state)
    assert (tmp_path / "3").exists()
    with pytest.raises(ValueError, match=r"snapshot of step 1 in .* is damaged"):
        checkpoint.load_model(str(tmp_path))


def test_a_snapshot_that_another_was_to_replace_comes_back_where_that_was_never_written(state, tmp_path):
    config = saved(state, tmp_path, (1,))
    (tmp_path / "1").rename(tmp_path / "1.replaced")
    assert int(restore(config, tmp_path, state)[0].step) == 1
    saved(state, tmp_path, (1,))
    assert not list(tmp_path.glob("*.replaced"))
    assert int(restore(config, tmp_path, state)[0].step) == 1


def test_a_state_that_is_not_finite_is_never_saved(state, tmp_path):
    config = saved(state, tmp_path, (1,))
    broken = state.replace(step=np.int32(2), average=jax.tree.map(lambda x: x + np.nan, state.params))
    with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints, pytest.raises(ValueError, match="is not finite"):
        checkpoints.save(broken, checkpoint.Progress(), 100.0)
    assert int(restore(config, tmp_path, state)[0].step) == 1


def test_a_second_run_in_a_directory_is_refused(state, tmp_path):
    config = saved(state, tmp_path, (1,))
    with checkpoint.Checkpoints(str(tmp_path), config) as first:
        with pytest.raises(ValueError, match=f"Process {os.getpid()} is training in .*: wait for its end"):
            checkpoint.Checkpoints(str(tmp_path), config)
        assert first.restore(state) is not None
    assert restore(config, tmp_path, state) is not None  # it is free again


@pytest.mark.parametrize("failing", ["save", "wait_until_finished"])
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_keeps_the_snapshots(failing, state, tmp_path, monkeypatch):
    config = saved(state, tmp_path, (1,))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def go_on():
        with checkpoint.Checkpoints(str(tmp_path), config) as checkpoints:
            checkpoints.save(state.replace(step=np.int32(2)), checkpoint.Progress(), 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, failing, full)
        with pytest.raises(ValueError, match=r"Cannot write a snapshot to .*No space left on device.*before it stand"):
            go_on()
    assert int(restore(config, tmp_path, state)[0].step) in (1, 2)


def test_what_is_new_in_a_recipe_is_told_when_a_run_goes_on(state, tmp_path, monkeypatch):
    config, told = saved(state, tmp_path, (1,)).copy_and_resolve_references(), []
    config.seed, config.batch_size, config.checkpoint_dir = 5, 4, "elsewhere"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.logging, "info", lambda text, *args, **_: told.append(text % args if args else text))
        restore(config, tmp_path, state)
    (changes,) = [message for message in told if "goes on with" in message]
    assert "seed = 5 (was 0)" in changes and "batch_size = 4" in changes and "checkpoint_dir" not in changes
    config.optimizer.average_decay = 0.9
    with pytest.raises(ValueError, match=r"has optimizer.average_decay = 0.0 and cannot go on with 0.9"):
        restore(config, tmp_path, state.replace(average=state.params))


def test_events_that_cannot_be_written_are_lost_and_the_run_goes_on(config, monkeypatch):
    from tensorboardX import event_file_writer

    write, calls, told = event_file_writer.RecordWriter.write, [], []

    def full(writer, data):
        calls.append(data)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        write(writer, data)

    monkeypatch.setattr(summaries.logging, "warning", lambda text, *args: told.append(text % args))
    monkeypatch.setattr(event_file_writer.RecordWriter, "write", full)
    assert np.isfinite(run.train(config)["snr"])
    (lost,) = [message for message in told if "events" in message]
    assert lost == "TensorBoard events are lost: No space left on device. Training goes on."
    assert pathlib.Path(config.checkpoint_dir, "tiny", "checkpoints", "6").exists()
