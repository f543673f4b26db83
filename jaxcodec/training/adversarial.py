"""The adversarial part of a step: what discriminators say of decoded speech, and their own update.

Hinge losses and feature matching (Kumar et al. 2019, MelGAN, equations 1 to 4). The weight is not a number but a *share*:
the gradient at the decoded audio is scaled to so much of that of all other terms (the balancer of EnCodec, Defossez et al.
2022, section 3.4, with the norms of the present batch), so it means the same for every recipe and at every level of speech.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcodec.nn import discriminators, layers, losses


class Adversary(flax.struct.PyTreeNode):
    """The discriminators of a run; shipped codecs do not have them."""

    params: dict
    opt_state: optax.OptState


def from_config(section) -> discriminators.Discriminators:
    """The discriminators that the section `adversarial` of a config describes."""
    if not section.fft_lengths and not section.periods:
        raise ValueError("adversarial.fft_lengths and adversarial.periods are empty: no discriminator is left.")
    names = ("spectrogram_width", "spectrogram_depth", "period_width", "period_depth")
    sizes = {name: section[name] for name in names}
    return discriminators.Discriminators(tuple(section.fft_lengths), tuple(section.periods), **sizes)


def make_optimizer(section) -> optax.GradientTransformation:
    """Adam for the discriminators, clipped."""
    return optax.chain(
        optax.clip_by_global_norm(section.clip_norm), optax.adam(section.learning_rate, section.b1, section.b2)
    )


def init(rng, section) -> Adversary:
    """Fresh discriminators; their shapes do not depend on the length of the audio."""
    params = from_config(section).init(rng, jnp.zeros((1, 4096)))["params"]
    return Adversary(params, make_optimizer(section).init(params))


def judge(params, section, reference, decoded, lengths):
    """Lists of judgements of the recorded and of the decoded audio (B, S), at the level of the recorded one."""
    energy = jnp.sum(reference**2, axis=1) / jnp.maximum(lengths, 1)
    scale = lax.rsqrt(energy + losses.SILENCE_POWER)[:, None]
    both = jnp.concatenate([reference * scale, decoded * scale])
    rows = reference.shape[0]
    judgements = from_config(section).apply({"params": params}, both)
    halves = slice(rows), slice(rows, None)
    recorded, decoded = (jax.tree.map(lambda x, half=half: x[half], judgements) for half in halves)
    return recorded, decoded


def fooling_terms(recorded, decoded, weights, lengths, num_samples) -> dict[str, jax.Array]:
    """Of the codec: "adversarial", hinge of how decoded speech is judged; "feature", distance in the discriminators' layers.

    Each a sum over clips with `weights` (B,), of means over what exists of a clip.
    """
    terms: dict[str, Any] = {"adversarial": 0.0, "feature": 0.0}
    for real, fake in zip(recorded, decoded, strict=True):
        terms["adversarial"] += _mean(-fake.logits, lengths, num_samples)
        for target, actual in zip(real.features, fake.features, strict=True):
            target = lax.stop_gradient(target)
            size = _mean(jnp.mean(jnp.abs(target), axis=-1), lengths, num_samples)
            distance = _mean(jnp.mean(jnp.abs(actual - target), axis=-1), lengths, num_samples)
            terms["feature"] += distance / (size + 1e-3) / len(real.features)
    return {name: jnp.sum(term * weights) / len(recorded) for name, term in terms.items()}


def telling_loss(recorded, decoded, weights, lengths, num_samples) -> jax.Array:
    """Of the discriminators: hinge, 0 where they tell all apart, 2 where they know nothing."""
    total = sum(
        _mean(nn.relu(1 - real.logits), lengths, num_samples) + _mean(nn.relu(1 + fake.logits), lengths, num_samples)
        for real, fake in zip(recorded, decoded, strict=True)
    )
    return jnp.sum(total * weights) / len(recorded)


def _mean(values, lengths, num_samples):
    """Mean (B,) over the part of values (B, T', F') that a clip's samples reach."""
    steps = values.shape[1]
    reached = jnp.ceil(lengths * (steps / num_samples)).astype(jnp.int32)
    mask = layers.length_mask(reached, steps)
    return jnp.sum(mask * jnp.mean(values, axis=-1), axis=1) / jnp.maximum(reached, 1)
