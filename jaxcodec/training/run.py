"""A training run: its compiled functions, its data and its place in time. Every epoch it trains, evaluates, reports, saves.

The one `pmap` of training stands here; the mathematics is in `training.step`.
"""

import dataclasses
import functools
import json
import os
import sys
import time

import flax.jax_utils
import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from jaxcodec import codec, data, pcm, quantizers
from jaxcodec.bitstream import entropy
from jaxcodec.inference import pretrained
from jaxcodec.nn import layers
from jaxcodec.training import checkpoint, step, stopping, summaries

AXIS = "devices"
LOG_EVERY = 10  # steps between looks at the loss


def train(config) -> dict:
    """Trains to the end of the last epoch, resuming from the latest snapshot; returns the last validation summary.

    Raises:
      stopping.Stopped: it was asked to end, and has saved where it stands.
      ValueError: what the config or the data cannot do; too many updates that were not finite.
    """
    model = codec.from_config(config.model, config.fixes)
    run_dir = epath.Path(config.checkpoint_dir) / config.experiment_name
    with checkpoint.Checkpoints(os.fspath(run_dir / "checkpoints"), config) as checkpoints:
        train_split, validation_split = (data.open_split(config.data, split) for split in ("train", "validation"))
        with stopping.Stop() as stop:
            return Run(config, model, train_split, validation_split, stop).loop(
                checkpoints, os.fspath(run_dir / "tensorboard")
            )


def replicate(state):
    """A copy of `state` on every local device, laid out as the pmapped step returns it.

    flax.jax_utils.replicate names the device axis otherwise, which costs a second compilation of the step.
    """
    copy = jax.pmap(lambda _, tree: tree, AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), jax.tree.map(np.asarray, state))


def _sharding():
    """This host's part of every global batch."""
    return dict(
        num_devices=jax.local_device_count(), process_index=jax.process_index(), process_count=jax.process_count()
    )


def first_replica(tree):
    """What the first local device holds, on the host."""
    return jax.device_get(flax.jax_utils.unreplicate(tree))


class Run:
    """One training run: its compiled functions, its data and its place in time."""

    def __init__(self, config, model, train_split, validation_split, stop=None):
        self.config, self.model = config, model
        self.stop = stop or stopping.Stop()
        self.train_split, self.validation_split = train_split, validation_split
        self.reader = data.PatientReader(validation_split)
        self.crop_samples = round(config.data.crop_seconds * config.model.sample_rate)
        self.steps_per_epoch = config.steps_per_epoch or max(
            data.crops_per_pass(train_split, self.crop_samples) // config.batch_size, config.min_steps_per_epoch
        )
        self.total_steps = config.num_epochs * self.steps_per_epoch
        self.optimizer = step.make_optimizer(config.optimizer, self.total_steps)
        self.pace = summaries.Pace(self.total_steps, self.crop_samples * config.batch_size / config.model.sample_rate)
        shared = dict(model=model, config=config, axis_name=AXIS)
        update = functools.partial(step.train_step, optimizer=self.optimizer, **shared)
        self.train_step = jax.pmap(update, AXIS, in_axes=(0, 0, None), donate_argnums=0)
        self.eval_step = jax.pmap(functools.partial(step.eval_step, **shared), AXIS)
        self.gradient_norms = jax.pmap(functools.partial(step.latent_gradient_norms, **shared), AXIS)
        self.decode_example = jax.jit(model.apply)
        self.rng = jax.random.key(config.seed)
        self.knob = quantizers.kind_of(config.model).knob.name
        self.writer: summaries.SummaryWriter | None = None  # of the first process

    def loop(self, checkpoints, log_dir) -> dict:
        """Every epoch: train, evaluate, report, save."""
        fresh = self.init_state()
        state, progress = checkpoints.restore(fresh) or (self.start(fresh), checkpoint.Progress())
        done = int(state.step)
        bits = self.model.bits_per_second(self.model.quantizer.rates[-1])
        logging.info(
            "%s parameters, %d steps an epoch, %s, %d x %s.",
            f"{sum(p.size for p in jax.tree.leaves(fresh.params)):,}",
            self.steps_per_epoch,
            "a variable rate" if bits is None else f"{bits:g} bit/s",
            jax.device_count(),
            jax.devices()[0].device_kind,
        )
        if done >= self.total_steps and progress.reported:
            logging.info("This run is complete at step %d: a larger --num_epochs trains on.", done)
        first_unseen = done + progress.reported  # what a killed process wrote of later steps is told again
        if jax.process_index() == 0:
            self.writer = writer = summaries.SummaryWriter(log_dir, self.config, first_unseen)
            rate = step.learning_rate(self.config.optimizer, self.total_steps)
            self.pace.show = lambda number, values: writer.steps(number, values | {"learning_rate": rate(number)})
            if not progress.reported:  # what a killed process may have shown of this step is forgotten
                self.pace.point(done, progress.window)
        state, summary = replicate(state), {}
        batches = self.train_batches(done)
        try:
            for epoch in range((done - (not progress.reported)) // self.steps_per_epoch, self.config.num_epochs):
                state, progress = self.train_epoch(state, progress, batches, epoch, checkpoints)
                evaluated = None if self.stop.signum else self.evaluate(state)
                if evaluated is None:
                    if not progress.reported:  # or the snapshot is there
                        self.save(checkpoints, state, progress)
                    raise stopping.Stopped(self.stop.signum)
                summary, shares = evaluated
                if self.writer is not None:
                    self.report(epoch, state, progress, summary, shares)
                progress = dataclasses.replace(progress, sums={}, steps=0, reported=True)
                self.save(checkpoints, state, progress, self.score(summary, self.done(epoch)))
        finally:
            batches.close()
            if self.writer is not None:
                self.writer.close()
        if self.model.quantizer.codebook_size is not None:
            run = os.path.dirname(log_dir)
            logging.info(summaries.ENTROPY_HINT, run)
        return summary

    def done(self, epoch):
        """Steps at the end of an epoch."""
        return (epoch + 1) * self.steps_per_epoch

    def save(self, checkpoints, state, progress, score=None):
        """A snapshot; a run that goes on from it does not tell again what the curves have, so these come first."""
        if self.writer is not None:
            self.writer.flush()
        checkpoints.save(first_replica(state), progress, score)

    def report(self, epoch, state, progress, summary, shares):
        """What an epoch came to, on stdout and to TensorBoard."""
        means = {name: total / max(progress.steps, 1) for name, total in progress.sums.items()}
        scale = first_replica(state.params["decoder"]["output_scale"]) if self.config.fixes.learnable_scale else None
        means |= {"output_scale": None if scale is None else float(scale)}
        place = epoch, self.config.num_epochs, self.done(epoch)
        tqdm.write(
            summaries.format_report(*place, progress.seconds, summary, means, shares, self.knob), file=sys.stdout
        )
        self.writer.epoch(self.done(epoch), summary, means, shares)
        self.write_examples(self.done(epoch), state)

    def score(self, summary, done) -> float:
        """What ranks a snapshot, the higher the better."""
        if self.config.adversarial.share:
            return float(done)  # what it is trained for, no figure of the report says: the last is the best
        # Where bits are a term of the loss, SNR could be had by spending them; where loudness is, at the cost of the ear.
        judged_by_loss = "rate" in self.model.quantizer.penalties or self.config.loss.loudness_weight
        return -summary["loss"] if judged_by_loss else summary["snr"]

    def init_state(self):
        """A fresh state from the config's seed."""
        average = self.config.optimizer.average_decay > 0
        section = self.config.adversarial if self.config.adversarial.share else None
        init = functools.partial(step.init_state, self.model, self.optimizer, average=average, discriminators=section)
        return jax.jit(init)(self.rng)

    def start(self, state):
        """The state that training begins with: the weights of `init_from`, or fresh ones with the quantizer started."""
        if not self.config.init_from:
            return self.start_quantizer(state)
        trained = pretrained.load(self.config.init_from)
        current = json.loads(self.config.to_json_best_effort())
        if current["model"].get("gain_shape", {}).get("told_rate", False):
            trained = pretrained.told_rate(trained)
        known = json.loads(trained.config.to_json_best_effort())
        if "rvq" in current["model"] and "rvq" in known["model"]:  # of more codebooks the first ones are taken
            most = current["model"]["rvq"]["num_codebooks"]
            known["model"]["rvq"]["num_codebooks"] = min(known["model"]["rvq"]["num_codebooks"], most)
        checkpoint.check_architecture(known, current, self.config.init_from)
        logging.info("Weights and codebooks from %s.", self.config.init_from)
        return state.replace(
            params=trained.params,
            quantizer=self.model.quantizer.resumed(trained.constants),
            average=None if state.average is None else trained.params,
        )

    def start_quantizer(self, state):
        """A quantizer that has seen the latents of the first batches, where its kind and the config ask for it."""
        wanted = self.model.quantizer.frames_to_start(self.config)
        if not wanted:
            return state
        collections = self.model.collections(state.params, state.quantizer)
        analyze = jax.jit(functools.partial(self.model.apply, collections, method=codec.Codec.analyze))
        vectors: list[np.ndarray] = []
        # Every host sees the same global batches here, so all start alike.
        batches = self.train_batches(0, num_devices=1, process_index=0, process_count=1)
        while sum(len(frames) for frames in vectors) < wanted:
            batch = next(batches)
            audio, lengths = batch["audio"][0], batch["length"][0]
            latents = np.asarray(analyze(audio, layers.length_mask(lengths, audio.shape[1])))
            vectors.append(latents[np.asarray(self.model.frame_mask(lengths, latents.shape[1]))])
        batches.close()
        return state.replace(quantizer=self.model.quantizer.started(self.rng, np.concatenate(vectors), self.config))

    def train_batches(self, start_step, **overrides):
        """The training batches from `start_step` on, a pure function of (seed, step)."""
        return data.train_batches(
            self.train_split,
            seed=self.config.seed,
            start_step=start_step,
            batch_size=self.config.batch_size,
            crop_samples=self.crop_samples,
            prefetch=self.config.data.prefetch,
            backend=self.config.data.backend,
            gain_db=tuple(self.config.data.gain_db),
            **(_sharding() | overrides),
        )

    def clips_of(self, number):
        """The clips in the batch of a step, by name."""
        config = self.config
        return data.clips_of_batch(self.train_split, config.seed, number, config.batch_size, self.crop_samples)

    def train_epoch(self, state, progress, batches, epoch, checkpoints):
        """Steps to the end of the epoch, or until it is to stop, with snapshots on the way; the state and the progress."""
        done, last = int(first_replica(state.step)), self.done(epoch)
        pending, started, saved = [], time.monotonic(), time.monotonic()
        every_steps = self.config.snapshots.every_steps
        with tqdm(total=last, initial=done, desc=f"epoch {epoch}", unit="step", disable=None, leave=False) as bar:
            while done < last and not self.stop.signum:
                state, logs = self.train_step(state, next(batches), self.rng)
                pending.append(logs)
                done += 1
                by_steps = bool(every_steps and done % every_steps == 0)
                if not self.stop.look() and len(pending) < LOG_EVERY and done < last and not by_steps:
                    continue
                progress = self.told(progress, pending, done, started)
                loss = float(first_replica(logs["loss"]))
                self.pace.add(len(pending), time.monotonic() - started)
                bar.set_postfix(loss=f"{loss:.4f}", whole_run=self.pace.left(done), refresh=False)
                bar.update(len(pending))
                pending, started = [], time.monotonic()
                if done < last and not self.stop.signum and (by_steps or self.is_due(started - saved)):
                    self.save(checkpoints, state, progress)
                    saved = started
        return state, progress

    def is_due(self, seconds) -> bool:
        """Whether a snapshot is to be made so long after the last one; the first process has the clock."""
        minutes = self.config.snapshots.every_minutes
        due = bool(minutes) and seconds >= 60 * minutes
        return bool(multihost_utils.broadcast_one_to_all(np.array(due))) if jax.process_count() > 1 else due

    def told(self, progress, pending, done, started):
        """The progress after the steps up to `done` whose logs are pending, the first of them begun at `started`.

        Raises:
          ValueError: too many updates in a row were skipped.
        """
        sums, count, skipped, window = dict(progress.sums), progress.steps, progress.skipped, progress.window
        fetched = first_replica(pending)  # waits for the steps
        elapsed = time.monotonic() - started
        for number, logs in enumerate(fetched, done - len(pending)):
            logs = {name: float(value) for name, value in logs.items()}
            is_skipped = bool(logs.pop("skipped"))
            window = summaries.extended(window, number, None if is_skipped else logs["loss"], elapsed / len(pending))
            self.pace.point(number + 1, window)
            if not is_skipped:
                sums = {name: sums.get(name, 0.0) + value for name, value in logs.items()}
                count, skipped = count + 1, 0
                continue
            skipped += 1
            names = *step.term_names(self.model, self.config), "grad_norm"
            found = ", ".join(f"{name} {logs[name]:.3g}" for name in names)
            if skipped > self.config.optimizer.max_skipped:
                raise ValueError(
                    f"The loss of step {number} is not finite, or its gradient ({found}), {skipped} times in a "
                    "row: lower optimizer.learning_rate. The snapshots are from before it."
                )
            clips = ", ".join(self.clips_of(number))
            logging.warning(
                "The update of step %d was skipped, it is not finite: %s. Its clips: %s.", number, found, clips
            )
        return checkpoint.Progress(sums, count, skipped, progress.seconds + elapsed, reported=False, window=window)

    def evaluate(self, state):
        """The validation summary, and each loss term's share of the gradient at the latents; None where it is to stop."""
        params = state.params if state.average is None else state.average
        total, norms = {}, {}
        for batch in self.validation_batches():
            inputs = {name: batch[name] for name in ("audio", "length")}
            sums = first_replica(self.eval_step(params, state.quantizer, inputs))
            total = jax.tree.map(np.add, total, sums) if total else sums
            norms = norms or first_replica(self.gradient_norms(params, state.quantizer, inputs))
            if self.stop.look():
                return None
        whole = max(sum(norms.values()), 1e-30)
        shares = {name: float(norms[name] / whole) for name in step.term_names(self.model, self.config)}
        best = self.model.quantizer.name_of(self.model.quantizer.rates[-1])
        return summaries.summarize_pass(total, best) | self.code_examples(params, state.quantizer), shares

    def code_examples(self, params, quantizer) -> dict:
        """Of a quantizer whose prior codes files: the first validation clips' kbit/s in real bytes, and their entropy."""
        if not (kind := self.model.quantizer.prior_kind):
            return {}
        params, quantizer = first_replica((params, quantizer))
        coder = entropy.from_arrays(kind, self.model.quantizer.prior_arrays(params["quantizer"]))
        bits, num_bytes, seconds = 0.0, 0, 0.0
        for _, padded, lengths in self.examples():
            output = self.decode_example(self.model.collections(params, quantizer), padded, lengths)
            bits += float(np.sum(output.penalties["rate"].values * output.frame_mask[None]))
            codes = np.asarray(output.quantized.codes[0])[:, np.asarray(output.frame_mask[0])]
            num_bytes += len(coder.encode_blocks([codes])[0])
            seconds += lengths[0] / self.model.sample_rate
        if not seconds:  # none of them can be read
            return {}
        return {"kbps_coded": 8e-3 * num_bytes / seconds, "kbps_entropy": bits / 1000 / seconds}

    def examples(self):
        """The first validation clips (S,), padded (1, S') and with their lengths (1,); none that cannot be read."""
        longest = 10 * self.model.sample_rate
        for index in range(min(self.config.num_examples, len(self.validation_split))):
            clip = pcm.to_float(self.reader.audio(index)[:longest])
            if clip.size:
                yield clip, np.pad(clip, (0, longest - len(clip)))[None], np.array([len(clip)], np.int32)

    def validation_batches(self):
        """Whole validation clips, each once."""
        devices = jax.device_count()
        return data.eval_batches(
            self.validation_split,
            batch_size=-(-self.config.eval_batch_size // devices) * devices,
            max_seconds=self.config.data.max_eval_seconds,
            **_sharding(),
        )

    def write_examples(self, done, state):
        """Sound and spectrograms of the first validation clips beside what they decode to."""
        local, rate = first_replica(state), self.model.sample_rate
        params = local.params if local.average is None else local.average
        collections = self.model.collections(params, local.quantizer)
        for index, (clip, padded, lengths) in enumerate(self.examples()):
            decoded = self.decode_example(collections, padded, lengths).audio
            self.writer.pair(done, f"example_{index}", clip, np.asarray(decoded)[0, : len(clip)], rate)
