"""Snapshots of a training run on disk or in a bucket: state and config in, state and config out (orbax).

A snapshot holds three items: "model" (params, their moving average, the quantizer's state by the name of its collection),
"optimizer" (step, optimizer state, discriminators where there are any) and "config". The model can be restored without the
optimizer, which is all that encoding and decoding need.
"""

import json
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jaxcodec import codec, recipe
from jaxcodec.training.step import TrainState

# Sections of the config that fix the shapes and the meaning of the parameters.
ARCHITECTURE_SECTIONS = ("model", "fixes")


class Checkpoints:
    """The snapshots of one run: the latest and the best by validation SNR are kept. Use as a context manager."""

    def __init__(self, directory: str, config: ml_collections.ConfigDict):
        """Opens `directory`, making it where it does not exist.

        Raises:
          ValueError: the directory cannot be written.
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
        policies = ocp.checkpoint_managers
        kept = policies.AnyPreservationPolicy([policies.LatestN(1), policies.BestN(get_metric_fn=_snr, n=1)])
        options = ocp.CheckpointManagerOptions(best_fn=_snr, best_mode="max", preservation_policy=kept)
        self._manager = ocp.CheckpointManager(path, options=options, item_names=("model", "optimizer", "config"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, score: float) -> None:
        """Writes an unreplicated state in the background; `score`, SNR in dB or what stands for it, ranks it."""
        state = jax.tree.map(np.asarray, state)
        self._manager.save(
            int(state.step),
            args=self._items(state, ocp.args.StandardSave, config=ocp.args.JsonSave(self._config)),
            metrics={"snr": float(score)},  # the name in snapshots
        )

    def restore(self, template: TrainState) -> TrainState | None:
        """The latest snapshot in the shape of `template`, or None where there is none.

        Raises:
          ValueError: the snapshot belongs to another architecture.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        check_architecture(saved, self._config, self._manager.directory)
        template = jax.tree.map(np.asarray, template)
        restored = self._manager.restore(step, args=self._items(template, ocp.args.StandardRestore))
        model, optimizer = restored["model"], restored["optimizer"]
        logging.info("Resumed from step %d in %s.", step, self._manager.directory)
        return TrainState(
            step=jnp.asarray(optimizer["step"], jnp.int32),
            params=model["params"],
            quantizer=model[self._collection],
            opt_state=optimizer["opt_state"],
            average=model["average"] or None,
            adversary=optimizer.get("adversary"),
        )

    def _items(self, state, args, **others):
        # Orbax stores no None: an average that is switched off is an empty tree.
        model = {"params": state.params, "average": state.average or {}, self._collection: state.quantizer}
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        if state.adversary is not None:
            optimizer["adversary"] = state.adversary
        return ocp.args.Composite(model=args(model), optimizer=args(optimizer), **others)


def load_model(directory: str, *, best: bool = True) -> tuple[dict, Any, ml_collections.ConfigDict]:
    """Params (the moving average where one was kept), quantizer state and config of a run's best or latest snapshot.

    Raises:
      ValueError: there is no snapshot in `directory`.
    """
    path = _absolute(directory)
    if not path.exists():
        raise ValueError(f"There is no checkpoint directory {directory}.")
    options = ocp.CheckpointManagerOptions(best_fn=_snr, best_mode="max", read_only=True)
    with ocp.CheckpointManager(path, options=options, item_names=("model", "optimizer", "config")) as manager:
        step = manager.best_step() if best else manager.latest_step()
        if step is None:
            raise ValueError(f"There is no checkpoint in {directory}: expected numbered folders written by train.py.")
        args = ocp.args.Composite(model=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
        restored = manager.restore(step, args=args)
    model = restored["model"]
    config = ml_collections.ConfigDict(restored["config"] | {"model": recipe.upgraded(restored["config"]["model"])})
    quantizer = codec.from_config(config.model, config.fixes).quantizer
    return model["average"] or model["params"], quantizer.state_of(model[quantizer.collection]), config


def _absolute(directory):
    """Orbax wants absolute paths; those of a bucket are."""
    path = epath.Path(directory).expanduser()
    return path if "://" in str(directory) else path.absolute()


def _snr(metrics):
    return metrics["snr"]


def check_architecture(saved: dict, current: dict, directory) -> None:
    """Raises `ValueError` where the saved config of `directory` describes another model than the current one."""
    saved = saved | {"model": recipe.upgraded(saved["model"])}
    for section in ARCHITECTURE_SECTIONS:
        known = flax.traverse_util.flatten_dict(saved[section], sep=".")
        for name, value in flax.traverse_util.flatten_dict(current[section], sep=".").items():
            if known.get(name) != value:
                raise ValueError(
                    f"The model in {directory} has {section}.{name} = {known.get(name)}, this config says "
                    f"{value}: give another --experiment_name or --checkpoint_dir, or the config it was trained with."
                )
