"""Adversarial training: what discriminators see, the share of their gradient, devices, resuming, and what ships."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import telugu_gan
from jaxcodec import training
from jaxcodec.inference import pretrained
from jaxcodec.nn import discriminators
from jaxcodec.training import adversarial
from tests import support
from tests.test_training import LENGTHS, on_eight_devices, shards, to_numpy

RNG = jax.random.key(3)
SIZES = dict(
    fft_lengths=(64, 128), periods=(2, 3), spectrogram_width=4, spectrogram_depth=2, period_width=4, period_depth=2
)


def small_config(**overrides):
    """A recipe with small discriminators; overrides are of the section `adversarial`."""
    values = dict(share=0.3, feature_weight=2.0, start_step=0, learning_rate=1e-3, b1=0.8, b2=0.99, clip_norm=1.0)
    named = {f"adversarial__{name}": value for name, value in (values | SIZES | overrides).items()}
    return support.small_config("mdct", optimizer__average_decay=0.9, **named)


class Bench:
    """A model in mid-training with discriminators, and its step."""

    def __init__(self, **overrides):
        self.config = small_config(**overrides)
        self.model, self.optimizer = support.make_model(self.config), optax.sgd(0.1)
        init = functools.partial(training.init_state, self.model, self.optimizer, average=True)
        state = jax.jit(lambda rng: init(rng, discriminators=self.config.adversarial))(jax.random.key(0))
        self.state = to_numpy(support.settle_codebooks(state))
        self.step = jax.jit(self.train_step)

    def train_step(self, state, batch, rng, axis_name=None):
        parts = dict(model=self.model, optimizer=self.optimizer, config=self.config, axis_name=axis_name)
        return training.train_step(state, batch, rng, **parts)


bench = functools.cache(Bench)


def judgements(reference, decoded, lengths):
    config = small_config().adversarial
    params = adversarial.init(jax.random.key(0), config).params
    return jax.jit(lambda *arrays: adversarial.judge(params, config, *arrays))(reference, decoded, lengths)


def test_every_discriminator_sees_both_signals_at_the_level_of_the_recorded_one():
    batch = support.make_batch((256, 200))
    noisy = batch["audio"] * 1.1
    recorded, decoded = judgements(batch["audio"], noisy, batch["length"])
    assert len(recorded) == len(decoded) == 4
    quiet = judgements(0.1 * batch["audio"], 0.1 * noisy, batch["length"])
    support.assert_trees_close(quiet, (recorded, decoded), rtol=1e-2, atol=2e-3)
    assert not np.allclose(recorded[0].logits, decoded[0].logits, atol=1e-3)


@pytest.mark.parametrize("frequency", [4, 16, 32])
def test_a_spectrogram_discriminator_sees_every_frequency_in_its_place(frequency):
    model = discriminators.SpectrogramDiscriminator(fft_length=64, width=16, depth=1)
    tone = np.cos(2 * np.pi * frequency * np.arange(256) / 64)[None]
    params = model.init(RNG, tone)
    difference = model.apply(params, tone).features[0] - model.apply(params, 0 * tone).features[0]
    where = np.square(difference).sum((0, 1, 3))
    assert len(where) == 17  # pairs of 33
    assert abs(np.argmax(where) - frequency // 2) <= 1  # the convolution reaches a pair further


def test_what_lies_beyond_a_clip_is_no_part_of_the_terms():
    lengths = np.array([192])
    audio = support.speech_like(1, 192)
    terms = []
    for size in (192, 256):
        padded = np.pad(audio, ((0, 0), (0, size - 192)))
        judged = judgements(padded, 1.3 * padded, lengths)
        fooling = adversarial.fooling_terms(*judged, np.ones(1), lengths, size)
        terms.append([*fooling.values(), adversarial.telling_loss(*judged, np.ones(1), lengths, size)])
    # Layers reach into the zeros behind the clip, where the shorter batch has the convolutions' own padding.
    np.testing.assert_allclose(*terms, rtol=0.02, atol=0.03)


def test_only_steps_that_a_clip_reaches_count():
    steps = jnp.arange(8)[None, :, None]
    real, fake = (
        adversarial.discriminators.Judgement(jnp.where(steps < 6, near, 50.0) * jnp.ones((1, 8, 2)), [])
        for near in (0.5, -0.25)
    )
    arguments = [real], [fake], jnp.ones(1), jnp.array([192]), 256
    np.testing.assert_allclose(adversarial.telling_loss(*arguments), 0.5 + 0.75)
    np.testing.assert_allclose(adversarial.fooling_terms(*arguments)["adversarial"], 0.25)


def test_the_gradient_at_the_decoded_audio_is_the_share_of_that_of_the_other_terms():
    b, batch = bench(share=0.3), support.make_batch()
    variables = b.model.collections(b.state.params, b.state.quantizer)
    output, lengths = jax.jit(b.model.apply)(variables, batch["audio"], batch["length"]), batch["length"]

    def others(audio):
        return training.total_loss(output.replace(audio=audio), lengths, b.config)[0]

    def adversary(audio):
        return training.step._fooling_loss(b.state, output.replace(audio=audio), lengths, b.config, None)[0]

    norms = [np.linalg.norm(jax.jit(jax.grad(term))(output.audio)) for term in (adversary, others)]
    np.testing.assert_allclose(norms[0], 0.3 * norms[1], rtol=1e-3)


def test_hinge_is_2_for_who_knows_nothing_and_0_for_who_tells_all():
    known, unknown = (adversarial.discriminators.Judgement(jnp.full((1, 4, 4), x), []) for x in (1.5, 0.0))
    wrong = adversarial.discriminators.Judgement(jnp.full((1, 4, 4), -1.5), [])
    arguments = jnp.ones(1), jnp.array([16]), 16
    assert adversarial.telling_loss([unknown], [unknown], *arguments) == 2
    assert adversarial.telling_loss([known], [wrong], *arguments) == 0
    assert adversarial.fooling_terms([known], [wrong], *arguments)["adversarial"] == 1.5


def movement(new, old):
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (new, old)), strict=True)))


def test_the_adversary_has_the_share_of_the_gradient_that_the_recipe_says_from_its_start_on():
    batch = support.make_batch()
    without = training.train_step(
        bench().state.replace(adversary=None),
        batch,
        RNG,
        model=bench().model,
        optimizer=bench().optimizer,
        config=bench().config,
    )[0].params
    waits, logs = bench(start_step=1).step(bench().state, batch, RNG)
    assert {"adversarial", "feature", "discriminator"} <= set(logs)
    pulls = [movement(bench(share=share).step(bench().state, batch, RNG)[0].params, without) for share in (0.1, 0.2)]
    assert pulls[0] > 1e-6
    # Not to the bit: two programs add up in other orders, and Adam makes more of it where a gradient is next to none.
    assert movement(waits.params, without) < pulls[0] / 100
    np.testing.assert_allclose(pulls[1] / pulls[0], 2, rtol=1e-2)
    assert movement(waits.adversary.params, bench().state.adversary.params) > 1e-3  # they learn before


def test_one_step_on_eight_devices_is_one_step_on_one():
    b, batch = bench(), support.make_batch(LENGTHS)
    new_state, logs = b.step(b.state, batch, RNG)
    many_state, many_logs = on_eight_devices(b.train_step, replicated=(None, 0, None))(b.state, shards(batch), RNG)
    support.assert_trees_close(many_logs, logs, rtol=1e-3)
    support.assert_trees_close(many_state.params, new_state.params, rtol=1e-3, atol=1e-6)
    # Adam moves all by its learning rate, even where the gradient is nothing but rounding; its moments say how large it is.
    means, many_means = (optax.tree.get(s.adversary.opt_state, "mu") for s in (new_state, many_state))
    assert all(np.abs(mean).max() > 1e-5 for mean in jax.tree.leaves(means) if mean.ndim > 1)
    support.assert_trees_close(many_means, means, rtol=1e-3, atol=1e-6)
    told = jax.tree.map(lambda mean: np.abs(mean) > 1e-5, means)
    params, many_params = (
        jax.tree.map(lambda x, mask: np.where(mask, x, 0), s.adversary.params, told) for s in (new_state, many_state)
    )
    support.assert_trees_close(many_params, params, rtol=0, atol=2e-4)


def test_discriminators_learn_to_tell_what_is_decoded():
    b, batch = bench(learning_rate=5e-3), support.make_batch((256,) * 8)
    state, losses = b.state, []
    for _ in range(30):
        new_state, logs = b.step(state, batch, RNG)
        state = state.replace(adversary=new_state.adversary)  # the codec stands still
        losses.append(float(logs["discriminator"]))
    assert losses[0] > 1.8 and losses[-1] < 0.8 * losses[0]


def test_shipped_codecs_and_runs_without_an_adversary_have_no_discriminator():
    b = bench()
    codec = pretrained.make(b.state.params, b.state.quantizer, b.config)
    assert not any("stft_" in name or "period_" in name or "adversar" in name for name in codec.arrays)
    plain = jax.jit(functools.partial(training.init_state, b.model, b.optimizer, average=False))(jax.random.key(0))
    assert plain.adversary is None


@pytest.mark.parametrize("size", ["small", "full"])
def test_both_sizes_of_the_recipe_make_discriminators(size):
    section = telugu_gan.get_config(size).adversarial
    shapes = jax.eval_shape(lambda rng: adversarial.init(rng, section).params, jax.random.key(0))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert (count < 1e5) == (size == "small") and len(shapes) == (4 if size == "small" else 8)
    with pytest.raises(ValueError, match='"small" and "full", not "huge"'):
        telugu_gan.get_config("huge")


def test_no_discriminator_at_all_is_refused():
    with pytest.raises(ValueError, match="no discriminator is left"):
        adversarial.from_config(small_config(fft_lengths=(), periods=()).adversarial)
