"""Trains a codec: python train.py --config configs/telugu.py [--data_dir recordings/] [--config.model.width=512].

Flags, config, devices, the one pmap, the loop and the log. The mathematics is in `jaxcodec.training`.
"""

import functools
import glob
import importlib.util
import logging as python_logging
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow only reads data here and has nothing to tell
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import flax.jax_utils
import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags
from tqdm import tqdm

from jaxcodec import audio, checkpoint, codec, data, rvq, summaries, training

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.")
_MULTIHOST = flags.DEFINE_enum(
    "multihost", "auto", ["auto", "on", "off"], "Call jax.distributed.initialize; auto: on a pod or a cluster."
)
# The names of the original run, each the short form of a config value.
_SHORTHANDS = {
    "data.data_dir": flags.DEFINE_string("data_dir", None, "Recordings or prepared shards, local or gs://."),
    "checkpoint_dir": flags.DEFINE_string("checkpoint_dir", None, "Where runs are kept, local or gs://."),
    "experiment_name": flags.DEFINE_string("experiment_name", None, "The run's folder in checkpoint_dir."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Clips a step over all devices."),
    "num_epochs": flags.DEFINE_integer("num_epochs", None, "Epochs to train."),
    "optimizer.learning_rate": flags.DEFINE_float("learning_rate", None, "Peak learning rate."),
}

AXIS = "devices"
LOG_EVERY = 10  # steps between looks at the loss


def main(argv):
    """Runs the recipe in --config; what a user can mend ends in one line and exit code 1 (--verbosity=1: a traceback)."""
    show_own_log()
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected argument {argv[1]}: flags start with --.")
        start_distributed()
        train(resolve_config())
    except (ValueError, OSError) as error:
        logging.debug("Where it was raised:", exc_info=True)
        sys.exit(f"train.py: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted. The same command resumes from the last epoch's snapshot.")


def parse_flags(argv):
    """Flags as absl parses them; a misspelt config key ends in one line, with ml_collections' suggestion."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"train.py: {one_line(error)}")


def one_line(error):
    """What an error says, on one line; ml_collections' messages come with line breaks, some of them quoted twice."""
    return " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())


def show_own_log():
    """This project's messages as plain lines; of the libraries' only warnings (all of them with --verbosity=1)."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    if logging.get_verbosity() < logging.DEBUG:
        own = (__file__, os.path.dirname(codec.__file__))
        handler.addFilter(lambda record: record.levelno > python_logging.INFO or record.pathname.startswith(own))


def resolve_config():
    """The config file with every override applied, locked and checked."""
    config = _CONFIG.value
    if config is None:
        raise ValueError("No recipe given: --config configs/telugu.py.")
    for key, flag in _SHORTHANDS.items():
        if flag.value is not None:
            config.update_from_flattened_dict({key: flag.value})
    devices = jax.device_count()
    if config.batch_size < 1 or config.batch_size % devices:
        raise ValueError(f"batch_size is {config.batch_size}, expected a multiple of the {devices} devices.")
    if config.model.sample_rate != data.SAMPLE_RATE:
        raise ValueError(
            f"model.sample_rate is {config.model.sample_rate}, recordings are read at {data.SAMPLE_RATE} Hz."
        )
    if config.num_epochs < 1:
        raise ValueError(f"num_epochs is {config.num_epochs}, expected at least 1.")
    return config.lock()


def start_distributed():
    """Joins the other hosts of a TPU slice, of a Slurm job, or of a cluster described by JAX_COORDINATOR_ADDRESS."""
    if _MULTIHOST.value == "off" or (_MULTIHOST.value == "auto" and not _on_cluster(os.environ)):
        return
    num_processes, process_id = (
        int(os.environ[name]) if name in os.environ else None for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(num_processes=num_processes, process_id=process_id)


def _on_cluster(env):
    if "JAX_COORDINATOR_ADDRESS" in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    has_tpu = importlib.util.find_spec("libtpu") is not None and (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )
    return bool(has_tpu) and env.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def train(config) -> dict:
    """Trains to the end of the last epoch, resuming from the latest snapshot; returns the last validation summary."""
    model = codec.from_config(config.model, config.fixes)
    run_dir = epath.Path(config.checkpoint_dir) / config.experiment_name
    with checkpoint.Checkpoints(os.fspath(run_dir / "checkpoints"), config) as checkpoints:
        splits = (data.open_split(config.data, split) for split in ("train", "validation"))
        run = Run(config, model, *splits)
        return run.loop(checkpoints, os.fspath(run_dir / "tensorboard"))


def replicate(state):
    """A copy of `state` on every local device, laid out as the pmapped step returns it.

    flax.jax_utils.replicate names the device axis otherwise, which costs a second compilation of the step.
    """
    copy = jax.pmap(lambda _, tree: tree, AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), jax.tree.map(np.asarray, state))


def first_replica(tree):
    """What the first local device holds, on the host."""
    return jax.device_get(flax.jax_utils.unreplicate(tree))


class Run:
    """One training run: its compiled functions, its data and its place in time."""

    def __init__(self, config, model, train_split, validation_split):
        self.config, self.model = config, model
        self.train_split, self.validation_split = train_split, validation_split
        self.crop_samples = round(config.data.crop_seconds * config.model.sample_rate)
        self.steps_per_epoch = config.steps_per_epoch or max(
            data.crops_per_pass(train_split, self.crop_samples) // config.batch_size, config.min_steps_per_epoch
        )
        self.total_steps = config.num_epochs * self.steps_per_epoch
        self.optimizer = training.make_optimizer(config.optimizer, self.total_steps)
        shared = dict(model=model, config=config, axis_name=AXIS)
        step = functools.partial(training.train_step, optimizer=self.optimizer, **shared)
        self.train_step = jax.pmap(step, AXIS, in_axes=(0, 0, None), donate_argnums=0)
        self.eval_step = jax.pmap(functools.partial(training.eval_step, **shared), AXIS)
        self.gradient_norms = jax.pmap(functools.partial(training.latent_gradient_norms, **shared), AXIS)
        self.decode_example = jax.jit(model.apply)
        self.rng = jax.random.key(config.seed)

    def loop(self, checkpoints, log_dir) -> dict:
        """Every epoch: train, evaluate, report, save."""
        fresh = self.init_state()
        state = checkpoints.restore(fresh) or self.init_codebooks(fresh)
        step = int(state.step)
        primary = jax.process_index() == 0
        writer = summaries.SummaryWriter(log_dir, self.config) if primary else None
        state = replicate(state)
        logging.info(
            "%s parameters, %d steps an epoch, %g bit/s, %d x %s.",
            f"{sum(p.size for p in jax.tree.leaves(fresh.params)):,}",
            self.steps_per_epoch,
            self.model.bits_per_second,
            jax.device_count(),
            jax.devices()[0].device_kind,
        )
        if step >= self.total_steps:
            logging.info("This run is complete at step %d: a larger --num_epochs trains on.", step)
        summary, seconds = {}, 0.0
        batches = self.train_batches(step)
        try:
            for epoch in range(step // self.steps_per_epoch, self.config.num_epochs):
                started = time.monotonic()
                state, train_means = self.train_epoch(state, batches, epoch, step)
                seconds += time.monotonic() - started
                step = (epoch + 1) * self.steps_per_epoch
                summary, shares = self.evaluate(state)
                if primary:
                    args = (epoch, self.config.num_epochs, step, seconds, summary, train_means, shares)
                    tqdm.write(summaries.format_report(*args), file=sys.stdout)
                    writer.epoch(step, summary, train_means, shares)
                    self.write_examples(writer, step, state)
                checkpoints.save(first_replica(state), summary["snr"])
        finally:
            batches.close()
            if writer is not None:
                writer.close()
        return summary

    def init_state(self):
        """A fresh state from the config's seed."""
        average = self.config.optimizer.average_decay > 0
        init = functools.partial(training.init_state, self.model, self.optimizer, average=average)
        return jax.jit(init)(self.rng)

    def init_codebooks(self, state):
        """Codebooks by k-means on the latents of the first batches where the config asks for it."""
        config = self.config
        if config.quantizer.init == "normal":
            return state
        if config.quantizer.init != "kmeans":
            raise ValueError(f'quantizer.init is "{config.quantizer.init}", expected "normal" or "kmeans".')
        encode = jax.jit(functools.partial(self.model.apply, method=codec.Codec.encode))
        variables = training.variables(state.params, state.codebooks)
        vectors: list[np.ndarray] = []
        # Every host sees the same global batches here, so all start from the same codebooks.
        batches = self.train_batches(0, num_devices=1, process_index=0, process_count=1)
        while sum(len(frames) for frames in vectors) < 8 * config.model.codebook_size:
            batch = {name: value[0] for name, value in next(batches).items()}
            latents = np.asarray(encode(variables, batch["audio"], batch["length"]))
            vectors.append(latents[np.asarray(self.model.frame_mask(batch["length"], latents.shape[1]))])
        batches.close()
        fit = jax.jit(rvq.kmeans_codebooks, static_argnums=(2, 3))
        sizes = config.model.num_codebooks, config.model.codebook_size
        return state.replace(codebooks=fit(self.rng, np.concatenate(vectors), *sizes))

    def train_batches(self, start_step, **overrides):
        """The training batches from `start_step` on, a pure function of (seed, step)."""
        sharding = dict(
            num_devices=jax.local_device_count(), process_index=jax.process_index(), process_count=jax.process_count()
        )
        return data.train_batches(
            self.train_split,
            seed=self.config.seed,
            start_step=start_step,
            batch_size=self.config.batch_size,
            crop_samples=self.crop_samples,
            prefetch=self.config.data.prefetch,
            backend=self.config.data.backend,
            gain_db=tuple(self.config.data.gain_db),
            **(sharding | overrides),
        )

    def train_epoch(self, state, batches, epoch, step):
        """Steps to the end of the epoch; returns the state and the epoch's mean terms."""
        last = (epoch + 1) * self.steps_per_epoch
        pending, history = [], []
        with tqdm(total=last, initial=step, desc=f"epoch {epoch}", unit="step", disable=None, leave=False) as bar:
            for step in range(step, last):  # noqa: B020, the bar and the loop count the same steps
                state, logs = self.train_step(state, next(batches), self.rng)
                pending.append(logs)
                if len(pending) == LOG_EVERY or step + 1 == last:
                    history += self.fetch(pending, step + 1 - len(pending))
                    bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
                    bar.update(len(pending))
                    pending = []
        means = {name: float(np.mean([logs[name] for logs in history])) for name in history[0]}
        scale = history[-1]["output_scale"] if self.config.fixes.learnable_scale else None
        return state, means | {"output_scale": scale}

    def fetch(self, pending, first_step):
        """Logs of consecutive steps from the first device, as floats; a non-finite loss ends the run by name."""
        fetched = [jax.tree.map(float, first_replica(logs)) for logs in pending]
        for offset, logs in enumerate(fetched):
            if not np.isfinite(logs["loss"]):
                terms = ", ".join(f"{name} {logs[name]:.3g}" for name in training.TERMS)
                raise ValueError(
                    f"The loss of step {first_step + offset} is not finite ({terms}): lower optimizer.learning_rate. "
                    "The last snapshot is from before it."
                )
        return fetched

    def evaluate(self, state):
        """The validation summary, and each loss term's share of the gradient at the latents."""
        params = state.params if state.average is None else state.average
        total, norms = {}, {}
        for batch in self.validation_batches():
            inputs = {name: batch[name] for name in ("audio", "length")}
            sums = first_replica(self.eval_step(params, state.codebooks, inputs))
            total = jax.tree.map(np.add, total, sums) if total else sums
            norms = norms or first_replica(self.gradient_norms(params, state.codebooks, inputs))
        shares = {name: float(norm / max(sum(norms.values()), 1e-30)) for name, norm in norms.items()}
        return summaries.summarize(total, self.config.model.num_codebooks), shares

    def validation_batches(self):
        """Whole validation clips, each once."""
        devices = jax.device_count()
        return data.eval_batches(
            self.validation_split,
            batch_size=-(-self.config.eval_batch_size // devices) * devices,
            num_devices=jax.local_device_count(),
            max_seconds=self.config.data.max_eval_seconds,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def write_examples(self, writer, step, state):
        """Sound and spectrograms of the first validation clips beside what they decode to."""
        local, rate = first_replica(state), self.model.sample_rate
        params = local.params if local.average is None else local.average
        longest = 10 * rate
        for index in range(min(self.config.num_examples, len(self.validation_split))):
            clip = audio.to_float(self.validation_split[index]["audio"][:longest])
            padded, lengths = np.pad(clip, (0, longest - len(clip)))[None], np.array([len(clip)], np.int32)
            decoded = self.decode_example(training.variables(params, local.codebooks), padded, lengths).audio
            writer.pair(step, f"example_{index}", clip, np.asarray(decoded)[0, : len(clip)], rate)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
