"""One update and one evaluation, as pure functions of a state and a batch: no I/O, no jit, no clock.

A batch is {"audio": (B, S) float32, "length": (B,) int32}, this replica's share of the global batch. Every reduction is a
sum over devices of a numerator divided by a sum of a denominator, so N devices compute what one would.
"""

import functools
import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcodec.codec import Codec
from jaxcodec.nn import losses, metrics
from jaxcodec.quantizers import interface
from jaxcodec.training import adversarial


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes."""

    step: jax.Array  # () int32
    params: dict
    quantizer: Any  # its state, an empty dict where it has none
    opt_state: optax.OptState
    average: dict | None  # exponential moving average of params, None when switched off
    adversary: adversarial.Adversary | None = None  # discriminators, None without adversarial training


def make_optimizer(optimizer, total_steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, linear warm-up and cosine decay, from the section `optimizer` of a config."""
    schedule = learning_rate(optimizer, total_steps)
    decayed = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    adamw = optax.adamw(schedule, optimizer.b1, optimizer.b2, weight_decay=optimizer.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), adamw)


def learning_rate(optimizer, total_steps: int) -> optax.Schedule:
    """The learning rate of each step, from the section `optimizer` of a config."""
    warmup_steps = min(optimizer.warmup_steps, total_steps // 2)
    peak = optimizer.learning_rate
    first, last = 0.0 if warmup_steps else peak, peak * optimizer.final_fraction
    if optimizer.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(first, peak, warmup_steps, total_steps, last)
    if optimizer.schedule == "constant":
        return optax.linear_schedule(first, peak, warmup_steps)
    raise ValueError(f'optimizer.schedule is "{optimizer.schedule}", expected "cosine" or "constant".')


def init_state(
    model: Codec, optimizer: optax.GradientTransformation, rng, *, average: bool, discriminators=None
) -> TrainState:
    """A fresh state, with discriminators where it is given the section `adversarial` of a config."""
    params, quantizer = model.initial(rng)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        quantizer=quantizer,
        opt_state=optimizer.init(params),
        average=params if average else None,
        adversary=adversarial.init(rng, discriminators) if discriminators else None,
    )


def train_step(state: TrainState, batch, rng, *, model: Codec, optimizer, config, axis_name=None):
    """One update from this replica's share of the batch.

    `rng` is the run's root key, the same on every replica and step. Returns the new state and scalars for the log. Where one
    of these is not finite the update is skipped, on all replicas alike, and "skipped" is 1: only the step is counted.
    """
    rng = jax.random.fold_in(rng, state.step)
    row_keys = _row_keys(rng, batch["length"].shape[0], axis_name)
    rates = model.quantizer.draw_rates(row_keys, batch, config)

    def loss_fn(params):
        def forward(audio, lengths, rates):
            output = model.apply(model.collections(params, state.quantizer), audio, lengths, rates)
            output = _heard(output, rates, model.quantizer, config.loss.few_exponent)
            return output, clip_errors(output, lengths, config)

        groups = config.gradient_accumulation_steps
        output, errors = _in_groups(forward, groups, batch["audio"], batch["length"], rates)
        loss, terms = total_loss(output, batch["length"], config, axis_name, errors)
        if state.adversary is not None:
            fooling, fooling_terms = _fooling_loss(state, output, batch["length"], config, axis_name)
            loss, terms = loss + fooling, terms | fooling_terms
        return loss, (terms, output)

    grads, (terms, output) = jax.grad(loss_fn, has_aux=True)(state.params)
    grads = _sum(grads, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    adversary, adversary_logs = _update_adversary(state.adversary, output, batch["length"], config, axis_name)
    seen = output.quantized, output.frame_mask, row_keys
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        quantizer=model.quantizer.updated(state.quantizer, *seen, config=config, axis_name=axis_name),
        opt_state=opt_state,
        average=_track(state.average, params, state.step, config.optimizer.average_decay),
        adversary=adversary,
    )
    logs = terms | adversary_logs
    logs["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(logs))))
    unchanged = state.replace(step=state.step + 1)
    new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, unchanged)
    logs["skipped"] = 1.0 - finite
    logs["output_scale"] = new_state.params["decoder"].get("output_scale", jnp.ones(()))
    return new_state, logs


def _heard(output, rates, quantizer, exponent):
    """The output, its clips of fewer codebooks meant to please the ear more; they cannot have the waveform."""
    if not exponent or not quantizer.rate_is_a_size:
        return output
    return output.replace(quantized=output.quantized.replace(hearing=(quantizer.rates[-1] / rates) ** exponent))


def _in_groups(function, groups, *arrays):
    """A function of arrays (B, ...) on B / groups rows after B / groups rows.

    The gradient computes each group's intermediate values anew, so that those of one group alone are in memory. The
    outputs are the same, whichever of their axes is the batch's.
    """
    if groups == 1:
        return function(*arrays)
    one, two = (jax.eval_shape(function, *jax.tree.map(operator.itemgetter(slice(n)), arrays)) for n in (1, 2))
    axes = jax.tree.map(lambda a, b: [m == n for m, n in zip(a.shape, b.shape, strict=True)].index(False), one, two)
    parts = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), arrays)
    outputs = lax.map(lambda rows: jax.checkpoint(function)(*rows), parts)

    def joined(x, axis):
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(joined, outputs, axes)


def _fooling_loss(state, output, lengths, config, axis_name):
    """This replica's share of what the codec wants of the discriminators, and the global terms for the log.

    Its gradient at the decoded audio has `adversarial.share` of the norm of the other terms', from `start_step` on.
    """
    section = config.adversarial
    weights = _clip_weights(lengths, axis_name)

    def fooling(audio):
        recorded, decoded = adversarial.judge(state.adversary.params, section, output.clipped, audio, lengths)
        terms = adversarial.fooling_terms(recorded, decoded, weights, lengths, audio.shape[1])
        return terms["adversarial"] + section.feature_weight * terms["feature"], terms

    def others(audio):
        return total_loss(output.replace(audio=audio), lengths, config, axis_name)[0]

    audio = lax.stop_gradient(output.audio)
    gradients = jax.grad(others)(audio), jax.grad(fooling, has_aux=True)(audio)[0]
    norms = [jnp.sqrt(_sum(jnp.sum(gradient**2), axis_name)) for gradient in gradients]
    share = jnp.where(state.step >= section.start_step, section.share, 0.0)
    loss, terms = fooling(output.audio)
    weight = lax.stop_gradient(share * norms[0] / jnp.maximum(norms[1], 1e-12))
    return weight * loss, _sum(lax.stop_gradient(terms), axis_name)


def _update_adversary(adversary, output, lengths, config, axis_name):
    """The discriminators after a step, and their loss for the log."""
    if adversary is None:
        return None, {}
    section = config.adversarial
    weights = _clip_weights(lengths, axis_name)

    def loss_fn(params):
        audio = lax.stop_gradient(output.audio)
        recorded, decoded = adversarial.judge(params, section, output.clipped, audio, lengths)
        return adversarial.telling_loss(recorded, decoded, weights, lengths, audio.shape[1])

    loss, grads = jax.value_and_grad(loss_fn)(adversary.params)
    loss, grads = _sum((loss, grads), axis_name)
    updates, opt_state = adversarial.make_optimizer(section).update(grads, adversary.opt_state)
    return adversarial.Adversary(optax.apply_updates(adversary.params, updates), opt_state), {"discriminator": loss}


def _clip_weights(lengths, axis_name):
    """What each clip (B,) is of the mean over the global batch; nothing where there is no clip."""
    return (lengths > 0) / jnp.maximum(_sum(jnp.sum(lengths > 0), axis_name), 1)


def total_loss(output, lengths, config, axis_name=None, errors=None):
    """This replica's share of mse + perceptual + the quantizer's penalties, each weighted; the global terms for the log.

    `errors` are the `clip_errors` of the output, where they are known.
    """
    shares = loss_terms(output, lengths, config, axis_name, errors)
    totals = {name: _sum(lax.stop_gradient(share), axis_name) for name, share in shares.items()}
    weighted = jnp.zeros(())
    logs = dict(totals, loss=jnp.zeros(()))
    for name, share in shares.items():
        bound = loss_bound(config, name)
        weight = loss_weight(config, name)
        weighted += weight * losses.bounded(share, bound, totals[name])
        logs["loss"] += weight * losses.bounded(totals[name], bound)  # nan, not the bound, for an infinite term
    return weighted, logs


def loss_weight(config, name: str) -> float:
    """Weight of a term. With the fix `pure_mse` undone the spectral loss leads, as it did before the fix."""
    if name == "perceptual" and not config.fixes.pure_mse:
        return 1.0
    return config.loss[f"{name}_weight"]


def loss_bound(config, name: str) -> float:
    """Bound of a term, infinite with the fix `loss_clamping` undone."""
    return config.loss[f"{name}_bound"] if config.fixes.loss_clamping else float("inf")


def loss_terms(output, lengths, config, axis_name=None, errors=None) -> dict:
    """This replica's share of each term, before weights and bounds: their sum over replicas is the global term."""
    errors = clip_errors(output, lengths, config) if errors is None else errors
    clips = _clip_weights(lengths, axis_name)
    heard = clips if output.quantized.hearing is None else clips * output.quantized.hearing
    terms = {name: jnp.sum(error * (clips if name == "mse" else heard)) for name, error in errors.items()}
    for name, penalty in output.penalties.items():
        terms[name] = _penalty(penalty, output.frame_mask, config.loss.relative, axis_name)
    return terms


def clip_errors(output, lengths, config) -> dict:
    """What the decoded audio adds to each term of the loss, for each clip (B,)."""
    loss, relative = config.loss, config.loss.relative
    mse = losses.waveform_error(
        output.clipped,
        output.audio,
        lengths,
        relative=relative,
        weighting=loss.error_weighting,
        preemphasis=loss.preemphasis,
        band_exponent=loss.band_exponent,
        steps=output.quantized.steps,
    )
    if relative and config.fixes.loss_clamping:
        mse = losses.bounded(mse, loss.clip_bound)
    dtype = jnp.float32 if config.fixes.fp32_stft else jnp.dtype(config.model.dtype)
    perceptual = losses.spectral_loss(output.clipped, output.audio, lengths, relative=relative, dtype=dtype)
    errors = {"mse": mse, "perceptual": perceptual}
    if loss.loudness_weight:
        errors["loudness"] = losses.loudness_loss(output.clipped, output.audio, lengths)
    return errors


def _penalty(penalty: interface.Penalty, frame_mask, relative, axis_name):
    """This replica's share of the mean over the batch, relative to the penalty's energy or by frame and element."""
    total, count = jnp.sum(penalty.values * frame_mask[None]), penalty.values.shape[0]
    if relative:
        return total / (count * _sum(jnp.sum(penalty.energy), axis_name) + losses.SILENCE_POWER)
    return total / (count * penalty.size * jnp.maximum(_sum(jnp.sum(frame_mask), axis_name), 1))


def term_names(model: Codec, config) -> tuple[str, ...]:
    """The terms of the loss."""
    return ("mse", "perceptual", *["loudness"] * bool(config.loss.loudness_weight), *model.quantizer.penalties)


def _row_keys(rng, rows, axis_name):
    """A key for each row of the global batch, the same whichever replica holds the row."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * rows
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(first + jnp.arange(rows))


def _track(average, params, step, decay):
    """Moving average of the parameters with a decay that grows from 0, so that early averages forget the start."""
    if average is None:
        return None
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)


def _sum(tree, axis_name):
    return tree if axis_name is None else lax.psum(tree, axis_name)


def eval_step(params, quantizer, batch, *, model: Codec, config, axis_name=None) -> dict:
    """Sums over the clips of the global batch; divide by "clips" (or "frames") for means. Consumes no randomness."""
    collections = model.collections(params, quantizer)
    audio, lengths = batch["audio"], batch["length"]
    output = model.apply(collections, audio, lengths)
    _, terms = total_loss(output, lengths, config, axis_name)
    present = lengths > 0
    decode = functools.partial(model.apply, collections, method=Codec.synthesize_clips)

    def clip_sum(values):
        return jnp.sum(jnp.where(present, values, 0.0))

    def measure(measure_fn, decoded):
        return clip_sum(measure_fn(output.clipped, decoded, lengths))

    sums = {"clips": jnp.sum(present)}
    levels = metrics.range_ratio, metrics.rms_ratio, metrics.optimal_gain
    for measure_fn in (metrics.segmental_snr, metrics.si_sdr, *levels):
        sums[measure_fn.__name__] = measure(measure_fn, output.audio)
    for rate in model.quantizer.rates:
        rates = jax.tree.map(lambda value: jnp.full(lengths.shape, value), rate)
        quantized = model.apply(collections, output.quantized, rates, method=Codec.requantize)
        name = model.quantizer.name_of(rate)
        sums[f"snr_{name}"] = measure(metrics.snr, decode(quantized.latents, lengths, audio.shape[1]))
        if "rate" in model.quantizer.penalties:
            sums |= _bits(model, collections, output, quantized, name)
    if model.quantizer.bypass:
        sums["snr_unquantized"] = measure(metrics.snr, decode(output.latents, lengths, audio.shape[1]))
    for name, signal in (("input", output.clipped), ("output", output.audio)):
        sums[f"{name}_min"], sums[f"{name}_max"] = map(clip_sum, metrics.extent(signal, lengths))
    sums |= _latent_sums(output, model.quantizer.codebook_size)
    sums = _sum(sums, axis_name)
    return sums | {name: term * sums["clips"] for name, term in terms.items()}  # terms are global already


def _bits(model, collections, output, quantized, name):
    """Bits of all clips, as the quantizer's prior has it, and their seconds."""
    arguments = output.latents, quantized, output.frame_mask
    bits = model.apply(collections, *arguments, method=Codec.penalize)["rate"].values
    seconds = jnp.sum(output.frame_mask) / model.frame_rate
    return {f"bits_{name}": jnp.sum(bits * output.frame_mask[None]), "seconds": seconds}


def _latent_sums(output, codebook_size):
    """First and second moments of the latents and, with codebooks, how often each code was used, over frames that exist."""
    mask = output.frame_mask.astype(jnp.float32)
    flat = (output.latents * mask[..., None]).reshape(-1, output.latents.shape[-1])
    sums = {
        "frames": jnp.sum(mask),
        "latent_sum": jnp.sum(flat, axis=0),
        "latent_outer": jnp.matmul(flat.T, flat, precision=lax.Precision.HIGHEST),
    }
    if codebook_size is None:
        return sums
    codes = jnp.moveaxis(output.quantized.codes, 1, 0).reshape(output.quantized.codes.shape[1], -1)
    return sums | {"usage": jax.vmap(lambda c: jax.ops.segment_sum(mask.reshape(-1), c, codebook_size))(codes)}


def latent_gradient_norms(params, quantizer, batch, *, model: Codec, config, axis_name=None) -> dict:
    """Norm of each weighted term's gradient at the latents: who steers the encoder."""
    collections = model.collections(params, quantizer)
    audio, lengths = batch["audio"], batch["length"]
    output = model.apply(collections, audio, lengths)

    def term(latents, name):
        through = interface.straight_through(latents, output.quantized.latents)
        decoded = model.apply(collections, through, lengths, audio.shape[1], method=Codec.synthesize_clips)
        penalties = model.apply(collections, latents, output.quantized, output.frame_mask, method=Codec.penalize)
        passed = output.replace(audio=decoded, latents=latents, penalties=penalties)
        shares = loss_terms(passed, lengths, config, axis_name)
        total = _sum(lax.stop_gradient(shares[name]), axis_name)
        return loss_weight(config, name) * losses.bounded(shares[name], loss_bound(config, name), total)

    squares = {name: jnp.sum(jax.grad(term)(output.latents, name) ** 2) for name in term_names(model, config)}
    return jax.tree.map(jnp.sqrt, _sum(squares, axis_name))
