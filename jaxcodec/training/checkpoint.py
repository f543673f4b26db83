"""Snapshots of a training run on disk or in a bucket: state and config in, state and config out (orbax).

A snapshot holds four items: "model" (params, their moving average, the quantizer's state by the name of its collection),
"optimizer" (step, optimizer state, discriminators where there are any), "config", and "progress" (`Progress`, and digests of
the other items). The model can be restored without the optimizer, which is all that encoding and decoding need.
"""

import contextlib
import dataclasses
import json
import math
import os
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from jaxcodec import codec, recipe
from jaxcodec.bitstream import entropy
from jaxcodec.data import damage
from jaxcodec.training.step import TrainState

# Sections of the config that fix the shapes and the meaning of the parameters.
ARCHITECTURE_SECTIONS = ("model", "fixes")
# What may differ when a run goes on, and changes nothing of it.
PLACES = ("checkpoint_dir", "data.prepared_dir", "snapshots.every_minutes", "snapshots.every_steps", "wandb_project")
ITEMS = ("model", "optimizer", "config", "progress")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run knows beside its state: of the epoch that is being trained, and of all time."""

    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # of each log over the steps of the epoch
    steps: int = 0  # that were summed
    skipped: int = 0  # of the last steps in a row
    seconds: float = 0.0  # of training
    reported: bool = True  # whether the epoch that ends with this step was
    window: dict[str, float] = dataclasses.field(default_factory=dict)  # of the curves, see `summaries.extended`


class Checkpoints:
    """The snapshots of one run: the latest two and the best by validation SNR are kept. Use as a context manager."""

    def __init__(self, directory: str, config: ml_collections.ConfigDict):
        """Opens `directory`, making it where it does not exist.

        Raises:
          ValueError: the directory cannot be written, or another run writes there.
        """
        self._config = json.loads(config.to_json_best_effort())
        self._collection = codec.from_config(config.model, config.fixes).quantizer.collection
        path = _absolute(directory)
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable-{jax.process_index()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"Cannot write checkpoints to {directory}: {reason}. Give another --checkpoint_dir."
            ) from error
        self._lock = _locked(path, directory) if jax.process_index() == 0 else None
        _put_back(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("put back")
        policies = ocp.checkpoint_managers
        kept = policies.AnyPreservationPolicy([policies.LatestN(2), policies.BestN(get_metric_fn=_snr, n=1)])
        options = ocp.CheckpointManagerOptions(best_fn=_snr, best_mode="max", preservation_policy=kept)
        self._manager = ocp.CheckpointManager(path, options=options, item_names=ITEMS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._naming_failure(), contextlib.ExitStack() as stack:
            if self._lock is not None:
                stack.callback(self._lock.close)
            stack.callback(self._manager.close)
            self._manager.wait_until_finished()
            _put_back(epath.Path(self._manager.directory))

    @contextlib.contextmanager
    def _naming_failure(self):
        """What hinders a save, of this snapshot or the one before that was still being written, in one line."""
        try:
            yield
        except Exception as error:
            problem = damage.in_one_line(error)[:200]
            raise ValueError(
                f"Cannot write a snapshot to {self._manager.directory}: {problem}. Those before it stand; the same command "
                "goes on from them."
            ) from error

    def save(self, state: TrainState, progress: Progress, score: float | None = None) -> None:
        """Writes an unreplicated state in the background; `score`, SNR in dB or what stands for it, ranks it.

        Raises:
          ValueError: the state is not finite, it or the one before cannot be written.
        """
        state = jax.tree.map(np.asarray, state)
        _check_finite(state)
        trees, step = self._trees(state), int(state.step)
        record = dataclasses.asdict(progress)
        record["digests"] = {
            name: _digest(tree) for name, tree in (trees | {"config": self._config, "progress": record}).items()
        }
        if step in self._manager.all_steps():  # saved in the midst of its evaluation; the state is the same
            with self._naming_failure():
                self._manager.wait_until_finished()
            _set_aside(self._path(step), _REPLACED)
            self._manager.reload()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items |= {"config": ocp.args.JsonSave(self._config), "progress": ocp.args.JsonSave(record)}
        metrics = {"snr": None if score is None else float(score)}  # the name in snapshots
        with self._naming_failure():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        """The latest snapshot that can be read, in the shape of `template`, or None where there is no snapshot.

        Newer ones that cannot be read are renamed, so that they are not in the way.

        Raises:
          ValueError: the snapshot belongs to another architecture, or none of the snapshots can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                restored = self._read(step, template)
            except _Damaged as error:
                logging.warning("The snapshot of step %d in %s is damaged: %s.", step, self._manager.directory, error)
                continue
            for damaged in steps[:number]:
                _set_aside(self._path(damaged), _DAMAGED)
            self._manager.reload()
            logging.info("Resumed from step %d in %s.", step, self._manager.directory)
            return restored
        if steps:
            raise ValueError(
                f"None of the snapshots in {self._manager.directory} can be read: put a copy back, or give another "
                "--experiment_name to start anew."
            )
        return None

    def _path(self, step):
        return epath.Path(self._manager.directory) / str(step)

    def _read(self, step, template):
        has_progress = (self._path(step) / "progress").exists()  # older ones have none
        texts = dict.fromkeys(("config", "progress")[: 1 + has_progress], ocp.args.JsonRestore())
        with _naming_damage():
            read = self._manager.restore(step, args=ocp.args.Composite(**texts))
            saved, record = read["config"], read["progress"] if has_progress else {}
            digests = record.pop("digests") if has_progress else {}
            _check_digest("config", saved, digests)
            _check_digest("progress", record, digests)
            progress = Progress(**record)
        check_architecture(saved, self._config, self._manager.directory)
        self._check_recipe(saved)
        trees = self._trees(jax.tree.map(np.asarray, template))
        with _naming_damage():
            args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
            for name in trees:
                _check_digest(name, restored[name], digests)
        model, optimizer = restored["model"], restored["optimizer"]
        state = TrainState(
            step=jnp.asarray(optimizer["step"], jnp.int32),
            params=model["params"],
            quantizer=model[self._collection],
            opt_state=optimizer["opt_state"],
            average=model["average"] or None,
            adversary=optimizer.get("adversary"),
        )
        return state, progress

    def _check_recipe(self, saved):
        """Raises `ValueError` where a state of the saved recipe cannot go on with this one; says what else is new."""
        known, current = (flax.traverse_util.flatten_dict(x, sep=".") for x in (saved, self._config))
        for name in ("optimizer.average_decay", "adversarial.share"):
            if name in known and bool(known[name]) != bool(current[name]):
                raise ValueError(
                    f"The run in {self._manager.directory} has {name} = {known[name]} and cannot go on with "
                    f"{current[name]}: its snapshots hold what goes with it. Give another --experiment_name."
                )
        names = [name for name in current if name in known and known[name] != current[name] and name not in PLACES]
        if names:
            changes = ", ".join(f"{name} = {current[name]} (was {known[name]})" for name in names)
            logging.info("The run goes on with %s.", changes)

    def _trees(self, state):
        # Orbax stores no None: an average that is switched off is an empty tree.
        model = {"params": state.params, "average": state.average or {}, self._collection: state.quantizer}
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        if state.adversary is not None:
            optimizer["adversary"] = state.adversary
        return {"model": model, "optimizer": optimizer}


class _Damaged(Exception):
    """A snapshot that cannot be read, and why."""


@contextlib.contextmanager
def _naming_damage():
    """Whatever goes wrong while a snapshot is read is damage: its files are not as they were written."""
    try:
        yield
    except _Damaged:
        raise
    except Exception as error:
        raise _Damaged(damage.in_one_line(error)[:200]) from error


def _digest(tree) -> str:
    """Of the content of a tree of arrays or of JSON values, whatever its containers are."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: x is None)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    arrays = {name: x if hasattr(x, "shape") else np.array(json.dumps(x)) for name, x in sorted(named.items())}
    return entropy.digest(arrays)[:16].hex()


def _check_digest(name, tree, digests):
    if digests and _digest(tree) != digests.get(name):  # older snapshots have none at all
        raise _Damaged(f"its {name} is not what was saved")


def _check_finite(state):
    kept = {"params": state.params, "average": state.average, "quantizer": state.quantizer}
    for path, leaf in jax.tree.leaves_with_path(kept):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"After step {int(state.step)} {name} is not finite; no snapshot is made of that.")


def _locked(path, directory):
    """A file that this process holds the lock of, or None in a bucket."""
    if "://" in str(path):
        return None
    import fcntl

    lock = open(path / ".lock", "a+")  # noqa: SIM115 - held as long as the run
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(
            f"{holder} is training in {directory}: wait for its end, or give another --experiment_name."
        ) from None
    except OSError as error:
        logging.warning("%s cannot be locked (%s): see that no second run trains there.", directory, error.strerror)
    lock.truncate(0)
    lock.write(f"Process {os.getpid()}")
    lock.flush()
    return lock


# What becomes of the folder of a snapshot that is in the way of another, or cannot be read.
_REPLACED, _DAMAGED = ".replaced", ".damaged"


def _set_aside(path, ending):
    if jax.process_index() == 0:
        aside = path.with_name(path.name + ending)
        if aside.exists():
            aside.rmtree()
        path.rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {path.name}")


def _put_back(path):
    """Snapshots that were set aside for another that never came; the others' old ones go."""
    if jax.process_index() == 0:
        for aside in path.glob(f"*{_REPLACED}"):
            whole = aside.with_name(aside.name.removesuffix(_REPLACED))
            if whole.exists():
                aside.rmtree()
            else:
                aside.rename(whole)


def load_model(directory: str, *, best: bool = True) -> tuple[dict, Any, ml_collections.ConfigDict]:
    """Params (the moving average where one was kept), quantizer state and config of a run's best or latest snapshot.

    Raises:
      ValueError: there is no snapshot in `directory`.
    """
    path = _absolute(directory)
    if not path.exists():
        raise ValueError(f"There is no checkpoint directory {directory}.")
    options = ocp.CheckpointManagerOptions(best_fn=_snr, best_mode="max", read_only=True)
    with ocp.CheckpointManager(path, options=options, item_names=ITEMS) as manager:
        step = manager.best_step() if best else manager.latest_step()
        if step is None:
            raise ValueError(f"There is no checkpoint in {directory}: expected numbered folders written by train.py.")
        items = {"model": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
        if (path / str(step) / "progress").exists():
            items["progress"] = ocp.args.JsonRestore()
        try:
            with _naming_damage():
                restored = manager.restore(step, args=ocp.args.Composite(**items))
                digests = restored["progress"]["digests"] if "progress" in items else {}
                for name in ("model", "config"):
                    _check_digest(name, restored[name], digests)
        except _Damaged as error:
            raise ValueError(f"The snapshot of step {step} in {directory} is damaged: {error}.") from error
    model = restored["model"]
    config = ml_collections.ConfigDict(restored["config"] | {"model": recipe.upgraded(restored["config"]["model"])})
    quantizer = codec.from_config(config.model, config.fixes).quantizer
    return model["average"] or model["params"], quantizer.state_of(model[quantizer.collection]), config


def _absolute(directory):
    """Orbax wants absolute paths; those of a bucket are."""
    path = epath.Path(directory).expanduser()
    return path if "://" in str(directory) else path.absolute()


def _snr(metrics):
    """What ranks a snapshot; one from within an epoch, that was not evaluated, comes last."""
    return -math.inf if metrics["snr"] is None else metrics["snr"]


def check_architecture(saved: dict, current: dict, directory) -> None:
    """Raises `ValueError` where the saved config of `directory` describes another model than the current one."""
    saved = saved | {"model": recipe.upgraded(saved["model"])}
    for section in ARCHITECTURE_SECTIONS:
        known = flax.traverse_util.flatten_dict(saved[section], sep=".")
        for name, value in flax.traverse_util.flatten_dict(current[section], sep=".").items():
            if known.get(name, False) != value:  # a switch of later versions is off
                raise ValueError(
                    f"The model in {directory} has {section}.{name} = {known.get(name)}, this config says "
                    f"{value}: give another --experiment_name or --checkpoint_dir, or the config it was trained with."
                )
