"""The update: N devices equal one, padding is nothing, one compilation, progress, lowering for other platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodec import codec, training
from jaxcodec.nn import losses, metrics
from jaxcodec.quantizers import interface, rvq
from jaxcodec.training import step as steps
from tests import support

LENGTHS = (256, 200, 131, 256, 1, 0, 90, 16, 0, 0, 250, 33, 256, 17, 64, 128)  # filler among them, a device of its own


class Bench:
    """A model in mid-training with plain SGD, and its compiled step; states are NumPy copies, so they can be donated."""

    def __init__(self, architecture="mdct"):
        self.config = support.small_config(architecture, optimizer__average_decay=0.9)
        self.model, self.optimizer = support.make_model(self.config), optax.sgd(0.1)
        state = support.make_state(self.model, self.optimizer, average=True)
        self.state = to_numpy(support.settle_codebooks(state))
        self.step = jax.jit(self.train_step, donate_argnums=0)
        self.evaluate = jax.jit(self.eval_step)

    def train_step(self, state, batch, rng, axis_name=None):
        return training.train_step(
            state,
            batch,
            rng,
            model=self.model,
            optimizer=self.optimizer,
            config=self.config,
            axis_name=axis_name,
        )

    def eval_step(self, state, batch, axis_name=None):
        return training.eval_step(
            state.params, state.quantizer, batch, model=self.model, config=self.config, axis_name=axis_name
        )


bench = functools.cache(Bench)
RNG = jax.random.key(3)


def to_numpy(tree):
    """A copy that no donation can reach."""
    return jax.tree.map(np.array, tree)


def on_eight_devices(function, *, replicated):
    """`function` as a pmap over shards of a global batch, with the replicas' agreement checked."""
    mapped = jax.pmap(functools.partial(function, axis_name="devices"), "devices", in_axes=replicated)

    def run(*args):
        outputs = to_numpy(mapped(*args))
        jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[-1]), outputs)
        return jax.tree.map(lambda x: x[0], outputs)

    return run


def shards(batch):
    return {name: x.reshape(8, -1, *x.shape[1:]) for name, x in batch.items()}


def test_one_step_on_eight_devices_is_one_step_on_one():
    b, batch = bench(), support.make_batch(LENGTHS)
    many = on_eight_devices(b.train_step, replicated=(None, 0, None))
    new_state, logs = b.step(to_numpy(b.state), batch, RNG)
    many_state, many_logs = many(b.state, shards(batch), RNG)
    support.assert_trees_close(many_logs, logs, rtol=1e-4)
    support.assert_trees_close(many_state, new_state, rtol=1e-4, atol=1e-6)

    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), new_state.params, b.state.params)
    assert min(jax.tree.leaves(moved)) > 1e-6  # a wrong gradient scale would show
    frames = np.sum(b.model.num_frames(batch["length"]))
    uniform = (0.9 * b.state.quantizer.counts.sum(-1, keepdims=True) + 0.1 * frames) / 16
    assert np.sum(np.isclose(new_state.quantizer.counts, uniform, rtol=1e-6)) > 4  # entries were revived


@pytest.mark.parametrize("architecture", ["mdct", "gain_shape"])
def test_an_update_in_parts_is_the_update_at_once_in_less_memory(architecture):
    b, batch = bench(architecture), support.make_batch(LENGTHS)
    parts = Bench(architecture)
    parts.config.gradient_accumulation_steps = 4
    whole, divided = (x.step.lower(b.state, batch, RNG).compile() for x in (b, parts))
    state, logs = whole(to_numpy(b.state), batch, RNG)
    parts_state, parts_logs = divided(to_numpy(b.state), batch, RNG)
    support.assert_trees_close(parts_logs, logs, rtol=1e-4)
    support.assert_trees_close(parts_state, state, rtol=1e-4, atol=1e-6)
    needed = [x.memory_analysis().temp_size_in_bytes for x in (whole, divided)]
    assert needed[1] < 0.7 * needed[0]


def test_one_evaluation_on_eight_devices_is_one_on_one():
    b, batch = bench(), support.make_batch(LENGTHS)
    sums = b.evaluate(b.state, batch)
    many = on_eight_devices(b.eval_step, replicated=(None, 0))(b.state, shards(batch))
    support.assert_trees_close(many, sums, rtol=1e-3, atol=1e-4)
    assert sums["clips"] == 13
    assert sums["frames"] == np.sum(b.model.num_frames(np.array(LENGTHS))) == np.sum(sums["usage"][0])
    everything = {"snr_1", "snr_2", "snr_4", "snr_unquantized", "segmental_snr", "si_sdr", "range_ratio", "rms_ratio"}
    everything |= {"optimal_gain"}
    assert everything | {"loss", "mse", "perceptual", "commitment", "input_min", "output_max"} <= set(sums)


def test_gradient_shares_on_eight_devices_are_those_on_one():
    b, batch = bench(), support.make_batch(LENGTHS)

    def norms(state, batch, axis_name=None):
        options = dict(model=b.model, config=b.config, axis_name=axis_name)
        return training.latent_gradient_norms(state.params, state.quantizer, batch, **options)

    one = jax.jit(norms)(b.state, batch)
    many = on_eight_devices(norms, replicated=(None, 0))(b.state, shards(batch))
    assert (
        set(one) == set(training.term_names(b.model, b.config)) == {"mse", "perceptual", "commitment"}
        and min(one.values()) > 0
    )
    support.assert_trees_close(many, one, rtol=1e-4)


def test_latent_moments_are_those_of_the_frames_that_exist():
    b, batch = bench(), support.make_batch(LENGTHS)
    sums = b.evaluate(b.state, batch)
    variables = b.model.collections(b.state.params, b.state.quantizer)
    output = jax.jit(b.model.apply)(variables, batch["audio"], batch["length"])
    latents = np.asarray(output.latents)[np.asarray(output.frame_mask)]
    mean = sums["latent_sum"] / sums["frames"]
    covariance = sums["latent_outer"] / sums["frames"] - np.outer(mean, mean)
    np.testing.assert_allclose(covariance, np.cov(latents.T, bias=True), rtol=1e-2, atol=1e-6)
    assert 1 < metrics.effective_dimension(covariance) < 8
    codes = np.moveaxis(output.quantized.codes, 1, 2)[np.asarray(output.frame_mask)]
    np.testing.assert_array_equal(sums["usage"], [np.bincount(c, minlength=16) for c in codes.T])


def test_evaluation_consumes_no_randomness():
    b, batch = bench(), support.make_batch()
    evaluation, update = jax.make_jaxpr(b.eval_step)(b.state, batch), jax.make_jaxpr(b.train_step)(b.state, batch, RNG)
    assert "random_bits" in str(update)
    assert "random_" not in str(evaluation)


def test_padding_changes_nothing_of_the_update():
    b, batch = bench(), support.make_batch()
    longer = {"audio": np.pad(batch["audio"], ((0, 0), (0, 64))), "length": batch["length"]}
    tight, loose = (b.step(to_numpy(b.state), x, RNG) for x in (batch, longer))
    support.assert_trees_close(loose, tight, rtol=1e-4, atol=1e-6)
    heard = {"audio": longer["audio"], "length": np.minimum(batch["length"] + 64, 320) * (batch["length"] > 0)}
    counted = b.step(to_numpy(b.state), heard, RNG)[0].quantizer.counts
    assert np.abs(counted - loose[0].quantizer.counts).max() > 0.1  # the same samples taken for signal


def test_a_donated_numpy_copy_leaves_the_original_and_repeats_to_the_bit():
    b, batch = bench(), support.make_batch()
    before = to_numpy(b.state)
    first, second = (to_numpy(b.step(b.state, batch, RNG)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, b.state, before)


def test_randomness_depends_on_the_step_alone():
    b, batch = bench(), support.make_batch()
    first, _ = b.step(to_numpy(b.state), batch, RNG)
    again, _ = b.step(to_numpy(b.state), batch, RNG)
    later, _ = b.step(to_numpy(b.state.replace(step=np.int32(1))), batch, RNG)
    np.testing.assert_array_equal(first.quantizer.centroids, again.quantizer.centroids)
    assert np.any(first.quantizer.centroids != later.quantizer.centroids)  # other frames revive
    assert (int(first.step), int(later.step)) == (1, 2)


def test_moving_average_of_the_weights_is_the_numpy_reference():
    b, batch = bench(), support.make_batch()
    state, expected = to_numpy(b.state), b.state.params["decoder"]["network"]["output"]["kernel"]
    for step in range(3):
        state, _ = b.step(state, batch, RNG)
        decay = min(0.9, (1 + step) / (10 + step))
        weights = np.asarray(state.params["decoder"]["network"]["output"]["kernel"])
        expected = decay * expected + (1 - decay) * weights
    average = state.average["decoder"]["network"]["output"]["kernel"]
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-8)
    assert np.abs(average - weights).max() > 1e-5


@pytest.mark.parametrize("cause", ["audio", "parameter"])
def test_a_loss_that_is_not_finite_shows_in_the_log(cause):
    b, batch, state = bench(), support.make_batch(), to_numpy(bench().state)
    assert np.isfinite(b.step(to_numpy(state), batch, RNG)[1]["loss"])
    if cause == "audio":
        batch["audio"][0, 3] = np.nan
    else:
        state.params["decoder"]["output_scale"] = np.float32(1e30)  # its error overflows to infinity
    assert not np.isfinite(b.step(state, batch, RNG)[1]["loss"])


@pytest.mark.parametrize("name", ["mdct", "seanet"])
def test_a_short_overfit_raises_the_snr_with_one_compilation_and_no_dead_parameter(name):
    steps = 80
    config = support.small_config(name, quantizer__dropout=0.25, loss__perceptual_weight=0.0)
    model, optimizer = support.make_model(config), optax.adam(1e-2)
    step = functools.partial(training.train_step, model=model, optimizer=optimizer, config=config)
    step = jax.jit(step, donate_argnums=0)
    evaluate = jax.jit(functools.partial(training.eval_step, model=model, config=config))
    state, batch = support.make_state(model, optimizer), support.make_batch()
    initial, snrs = to_numpy(state.params), []
    for index in range(steps):
        if index in (0, steps // 2):
            snrs.append(_snr(evaluate, state, batch))
        state, logs = step(state, batch, RNG)
    snrs.append(_snr(evaluate, state, batch))
    assert snrs[2] > max(0.0, snrs[1]) > snrs[0]
    assert step._cache_size() == evaluate._cache_size() == 1
    assert np.isfinite(logs["grad_norm"])
    for (path, old), new in zip(jax.tree.leaves_with_path(initial), jax.tree.leaves(state.params), strict=True):
        assert np.mean(old != new) > 0.9, jax.tree_util.keystr(path)


def _snr(evaluate, state, batch):
    sums = evaluate(state.params, state.quantizer, batch)
    return float(sums["snr_4"] / sums["clips"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_lowers_for_tpu_and_cuda_from_here(architecture, dtype):
    config = support.small_config(architecture, model__dtype=dtype, optimizer__warmup_steps=2)
    model, optimizer = support.make_model(config), training.make_optimizer(config.optimizer, 10)
    step = functools.partial(training.train_step, model=model, optimizer=optimizer, config=config)
    state = jax.eval_shape(lambda rng: training.init_state(model, optimizer, rng, average=False), RNG)
    traced = jax.jit(step, donate_argnums=0).trace(state, support.make_batch(), RNG)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.fft" in text
        assert ("xbf16>" in text) == (dtype == "bfloat16")


def test_the_learning_rate_warms_up_and_follows_the_cosine():
    config = support.small_config(optimizer__schedule="cosine", optimizer__warmup_steps=4, optimizer__weight_decay=0.0)
    config.optimizer.final_fraction = 0.1
    rates = _learning_rates(config.optimizer, 20)
    np.testing.assert_allclose(rates[:5], 1e-3 * np.array([0, 0.25, 0.5, 0.75, 1]), rtol=1e-3, atol=1e-9)
    half = 1e-3 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose([rates[12], rates[20]], [half, 1e-4], rtol=1e-3)


def test_a_constant_learning_rate_stays_where_it_is():
    config = support.small_config(optimizer__weight_decay=0.0)
    np.testing.assert_allclose(_learning_rates(config.optimizer, 5), 1e-3, rtol=1e-3)


def _learning_rates(optimizer_config, total_steps):
    """Adam moves a weight with a constant gradient by the learning rate."""
    optimizer, params = training.make_optimizer(optimizer_config, total_steps), {"w": jnp.ones((1, 1))}
    state, update, rates = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(total_steps + 1):
        updates, state = update(params, state, params)
        rates.append(-float(updates["w"][0, 0]))
    return np.array(rates)


def test_weight_decay_spares_vectors_and_the_output_scale():
    config = support.small_config(optimizer__weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "output_scale": jnp.ones(())}
    optimizer = training.make_optimizer(config.optimizer, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -1e-3 * 0.5, rtol=1e-5)
    assert updates["output_scale"] == 0 and np.all(updates["bias"] == 0)


def test_gradients_are_clipped_by_their_global_norm():
    config = support.small_config(optimizer__weight_decay=0.0, optimizer__clip_norm=1.0)
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    optimizer = training.make_optimizer(config.optimizer, 10)
    state = optimizer.update(params, optimizer.init(params), params)[1]
    first_moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose([first_moments["a"][0], first_moments["b"][0]], [0.06, 0.08], rtol=1e-5)


def test_a_clip_of_silence_takes_nothing_from_the_others():
    """Its error, a thousand times its energy, would use up the bound of the batch and scale every gradient down."""
    speech = support.speech_like(4, 256)
    silence = np.concatenate([np.zeros((1, 256), np.float32), speech[1:]])
    noise = np.full((4, 256), 0.05, np.float32)

    def gradient(reference, clip_bound):
        config = support.small_config(loss__perceptual_weight=0.0, loss__clip_bound=clip_bound)

        def loss(decoded):
            frames = jnp.zeros((4, 4, 16, 8))
            trace = rvq.Trace(jnp.zeros((4, 4, 16), jnp.int32), frames, frames)
            quantized = interface.Quantized(frames[0], trace.codes, trace)
            output = codec.CodecOutput(
                decoded, jnp.asarray(reference), frames[0], quantized, {}, jnp.ones((4, 16), bool)
            )
            return training.total_loss(output, jnp.full(4, 256), config)[0]

        return jax.grad(loss)(reference + noise)[1:]

    np.testing.assert_allclose(gradient(silence, 1.0), gradient(speech, 1.0), rtol=1e-5)
    assert np.abs(gradient(silence, 1e9)).max() < 0.1 * np.abs(gradient(speech, 1e9)).max()


WEIGHTS = {"mse": 0.7, "perceptual": 0.3, "loudness": 0.2, "commitment": 0.5}


class Loss:
    """`total_loss` as a function of decoded audio and latents, and beside it each term as its definition has it."""

    def __init__(self, bounds, relative=True):
        flat = {f"loss__{name}_weight": weight for name, weight in WEIGHTS.items()}
        flat |= {f"loss__{name}_bound": bound for name, bound in bounds.items()}
        self.config = support.small_config(loss__relative=relative, loss__clip_bound=1e9, **flat)
        self.relative, self.model = relative, support.make_model(self.config)
        state = support.settle_codebooks(support.make_state(self.model))
        self.variables = self.model.collections(state.params, state.quantizer)
        self.batch = support.make_batch()
        self.output = jax.jit(self.model.apply)(self.variables, self.batch["audio"], self.batch["length"])
        self.arrays = to_numpy((self.output.audio, self.output.latents))

    def shares(self, arrays, output, lengths, axis_name=None):
        """What this replica's part of the batch adds to the loss."""
        audio, latents = arrays
        args = latents, output.quantized, output.frame_mask
        penalties = self.model.apply(self.variables, *args, method=codec.Codec.penalize)
        output = output.replace(audio=audio, latents=latents, penalties=penalties)
        return training.total_loss(output, lengths, self.config, axis_name)

    def terms(self, arrays):
        """The terms before weights and bounds: means over the clips, or frames, that exist."""
        audio, latents = arrays
        clips, reference = np.flatnonzero(self.batch["length"]), self.output.clipped
        trace, mask, lengths = self.output.quantized.trace, self.output.frame_mask, self.batch["length"]
        # What entered a codebook, less what it chose: the latents less what all up to it have taken off.
        taken = np.asarray(self.output.latents) - np.asarray(trace.residuals) + np.asarray(trace.stages)
        distances = jnp.sum((latents[None] - taken) ** 2 * np.asarray(mask)[None, ..., None])
        size = np.sum(self.output.latents**2) if self.relative else latents.shape[-1] * np.sum(mask)
        measures = {
            "mse": losses.waveform_error(reference, audio, lengths, relative=self.relative),
            "perceptual": losses.spectral_loss(reference, audio, lengths, relative=self.relative),
            "loudness": losses.loudness_loss(reference, audio, lengths),
        }
        means = {name: jnp.mean(values[clips]) for name, values in measures.items()}
        return means | {"commitment": distances / (self.config.model.rvq.num_codebooks * size)}

    def reference(self):
        """Each term's value and gradients."""
        values = {name: float(value) for name, value in jax.jit(self.terms)(self.arrays).items()}
        return values, to_numpy(jax.jit(jax.jacrev(self.terms))(self.arrays))


OPEN = dict.fromkeys(WEIGHTS, 1e9)
CLOSED = {"mse": 0.05, "perceptual": 0.1, "loudness": 0.2, "commitment": 0.01}  # far under every value


@pytest.mark.parametrize(("bounds", "relative"), [(OPEN, True), (OPEN, False), (CLOSED, True)])
def test_the_loss_is_the_weighted_sum_of_bounded_means_over_what_exists(bounds, relative):
    loss = Loss(bounds, relative)
    values, gradients = loss.reference()
    share = jax.jit(jax.value_and_grad(lambda x: loss.shares(x, loss.output, loss.batch["length"]), has_aux=True))
    (total, logs), gradient = share(loss.arrays)
    assert set(logs) == {*values, "loss"}
    support.assert_trees_close({name: logs[name] for name in values}, values, rtol=1e-4)
    scales = {name: min(1.0, bounds[name] / value) for name, value in values.items()}
    assert all((scale < 0.9) == (bounds is CLOSED) for scale in scales.values())
    expected = sum(WEIGHTS[name] * scales[name] * value for name, value in values.items())
    np.testing.assert_allclose([total, logs["loss"]], expected, rtol=1e-4)
    for index in range(2):  # at the audio, at the latents
        parts = [WEIGHTS[name] * scales[name] * gradients[name][index] for name in values]
        scale = np.abs(sum(parts)).max()
        np.testing.assert_allclose(gradient[index], sum(parts), rtol=1e-3, atol=1e-4 * scale)
        assert scale > 0


def test_a_bound_is_of_the_global_term_however_many_devices_share_it():
    loss = Loss(CLOSED)
    output, lengths = loss.output.replace(penalties={}), loss.batch["length"]

    def split(x, axis=0):
        return np.stack(np.split(np.asarray(x), 4, axis))

    trace = rvq.Trace(
        *(split(x, axis) for x, axis in zip(vars(output.quantized.trace).values(), (0, 1, 1), strict=True))
    )
    quantized = interface.Quantized(split(output.quantized.latents), split(output.quantized.codes), trace)
    rest = {name: split(getattr(output, name)) for name in ("audio", "clipped", "latents", "frame_mask")}
    local = output.replace(quantized=quantized, **rest)

    def shares(arrays, output, lengths):
        gradient, logs = jax.grad(loss.shares, has_aux=True)(arrays, output, lengths, "devices")
        return gradient, logs, jax.lax.psum(loss.shares(arrays, output, lengths, "devices")[0], "devices")

    gradient, logs, total = jax.pmap(shares, "devices")((local.audio, local.latents), local, split(lengths))
    whole = jax.jit(jax.value_and_grad(lambda x: loss.shares(x, output, lengths), has_aux=True))
    (expected, expected_logs), expected_gradient = whole(loss.arrays)
    np.testing.assert_allclose(total, np.full(4, expected), rtol=1e-4)
    support.assert_trees_close({name: value[0] for name, value in logs.items()}, expected_logs, rtol=1e-4)
    for actual, one in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(np.concatenate(actual), one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_filler_rows_change_nothing_of_the_update():
    b, batch = bench(), support.make_batch((256, 200, 131, 90))
    filled = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in batch.items()}
    (state, logs), (filled_state, filled_logs) = (b.step(to_numpy(b.state), x, RNG) for x in (batch, filled))
    support.assert_trees_close(filled_logs, logs, rtol=1e-4)
    support.assert_trees_close(filled_state, state, rtol=1e-4, atol=1e-6)


def test_an_update_decodes_some_clips_from_fewer_codebooks():
    b, batch = bench(), support.make_batch()
    apply = jax.jit(functools.partial(b.model.apply, b.model.collections(b.state.params, b.state.quantizer)))

    def errors(count):
        output = apply(batch["audio"], batch["length"], jnp.full(8, count))
        return np.asarray(losses.waveform_error(output.clipped, output.audio, batch["length"]))[batch["length"] > 0]

    by_count = np.array([errors(count) for count in (1, 2, 3, 4)])  # of each clip
    assert by_count.max() < b.config.loss.clip_bound
    _, logs = b.step(to_numpy(b.state), batch, RNG)
    assert by_count.min(0).mean() < logs["mse"] < by_count.max(0).mean()
    assert abs(logs["mse"] / by_count[3].mean() - 1) > 1e-2


def test_clips_of_few_codebooks_are_meant_to_please_the_ear_more():
    b, batch = bench(), support.make_batch()
    config = support.small_config(loss__few_exponent=0.5)
    rates = jnp.array([1, 2, 4, 4, 4, 4, 4, 4])
    output = b.model.apply(b.model.collections(b.state.params, b.state.quantizer), *batch.values(), rates)
    heard = steps._heard(output, rates, b.model.quantizer, config.loss.few_exponent)
    np.testing.assert_allclose(heard.quantized.hearing, (4 / np.asarray(rates)) ** 0.5)
    alike, weighted = (steps.loss_terms(x, batch["length"], config) for x in (output, heard))
    errors = steps.clip_errors(output, batch["length"], config)["perceptual"] * (batch["length"] > 0)
    expected = jnp.sum(errors * heard.quantized.hearing) / jnp.sum(batch["length"] > 0)
    np.testing.assert_allclose(weighted["perceptual"], expected, rtol=1e-5)
    assert weighted["perceptual"] > 1.05 * alike["perceptual"] and weighted["mse"] == alike["mse"]
    logs = [
        functools.partial(training.train_step, model=b.model, optimizer=b.optimizer, config=config)(
            b.state, batch, RNG
        )[1]["perceptual"]
        for config in (b.config, config)
    ]
    assert logs[1] > 1.01 * logs[0]


def test_an_unknown_schedule_is_refused_by_name():
    config = support.small_config(optimizer__schedule="linear")
    with pytest.raises(ValueError, match=r'optimizer.schedule is "linear", expected "cosine" or "constant"'):
        training.make_optimizer(config.optimizer, 10)


def test_quantizer_dropout_draws_every_count_and_can_be_switched_off():
    keys = jax.random.split(RNG, 4000)
    quantizer = bench().model.quantizer
    never, half = (support.small_config(quantizer__dropout=dropout) for dropout in (0.0, 0.5))
    assert np.all(quantizer.draw_rates(keys, None, never) == 4)
    counts = np.bincount(quantizer.draw_rates(keys, None, half), minlength=5) / 4000
    shares = np.log([2 / 1, 3 / 2, 4 / 3, 5 / 4]) / np.log(5)
    np.testing.assert_allclose(counts, [0, *shares / 2 + [0, 0, 0, 0.5]], atol=0.02)


def test_evaluation_counts_codebooks_by_doubling():
    assert rvq.doublings(1) == (1,)
    assert rvq.doublings(6) == (1, 2, 4, 6)
    assert rvq.doublings(16) == (1, 2, 4, 8, 16)
