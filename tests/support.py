"""What several test files build: a small config of its own, and the model, state and batch that go with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import tiny
from jaxcodec import codec, training
from jaxcodec.inference import pretrained
from jaxcodec.quantizers import layout, rvq


def small_config(architecture="mdct", **overrides):
    """The recipe `tiny` with every value that a test relies on set here: tuned defaults may change.

    Overrides are written section__name=value.
    """
    config = tiny.get_config().lock()
    gain_shape = architecture == "gain_shape"  # whose bands need some 40 coefficients
    values = {
        "model.mdct": dict(
            hop_length=16, latent_gain=1.0, encoder_depth=1, decoder_depth=1, kernel_size=3, identity=True
        ),
        "model.seanet": dict(strides=(2, 4)),
        "model.rvq": dict(num_codebooks=4, codebook_size=16),
        "model": dict(
            architecture=architecture,
            sample_rate=16000,
            latent_dim=24 + layout.NUM_BANDS + 1 if gain_shape else 8,
            width=8,
            causal=False,
            output_scale=2.5,
            dtype="float32",
        ),
        "quantizer": dict(init="normal", decay=0.9, revive_below=0.1, revivals_per_step=8, dropout=0.5),
        "loss": dict(
            relative=True,
            error_weighting="plain",
            mse_weight=1.0,
            perceptual_weight=0.01,
            loudness_weight=0.0,
            commitment_weight=0.01,
            mse_bound=10.0,
            clip_bound=10.0,
            perceptual_bound=10.0,
            commitment_bound=10.0,
        ),
        "optimizer": dict(
            learning_rate=1e-3,
            schedule="constant",
            warmup_steps=0,
            weight_decay=0.01,
            clip_norm=1.0,
            average_decay=0.0,
        ),
    }
    flat = {f"{section}.{name}": value for section, names in values.items() for name, value in names.items()}
    if gain_shape:
        section = dict(hop_length=40, tilt=0.3, encoder_depth=1, decoder_depth=1, kernel_size=3, expansion=2)
        section |= dict(lookahead=0, told_rate=True)
        with config.unlocked():
            config.model.update(gain_shape=section, rvq=dict(envelope_codebooks=1, beams=1))
    flat |= {name.replace("__", "."): value for name, value in overrides.items()}
    config.update_from_flattened_dict(flat)
    return config


def make_model(config):
    """The codec of a config."""
    return codec.from_config(config.model, config.fixes)


def make_state(model, optimizer=None, *, seed=0, average=False):
    """A fresh state, for plain SGD unless told otherwise."""
    optimizer = optimizer or optax.sgd(0.1)
    return jax.jit(lambda rng: training.init_state(model, optimizer, rng, average=average))(jax.random.key(seed))


def speech_like(num_clips, num_samples, seed=0):
    """Low-passed noise with a slow envelope, (num_clips, num_samples) float32 with peaks near 0.3."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_clips, num_samples + 8))
    smooth = sum(noise[:, i : i + num_samples] for i in range(8)) / 8
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * np.arange(num_samples) / 400 + rng.uniform(0, 6, (num_clips, 1)))
    return (0.25 * smooth * envelope).astype(np.float32)


def make_batch(lengths=(256, 200, 131, 256, 1, 0, 90, 16), num_samples=256, seed=0):
    """{"audio": (B, S), "length": (B,)}, zero beyond each length."""
    lengths = np.asarray(lengths, np.int32)
    audio = speech_like(len(lengths), num_samples, seed)
    return {"audio": audio * (np.arange(num_samples) < lengths[:, None]), "length": lengths}


def settle_codebooks(state, frames=64.0, seed=1):
    """The state with codebooks in mid-training: noise of the latents' size, uneven counts, every fifth entry dead."""
    rng = np.random.default_rng(seed)

    def settle(books):
        centroids = (
            0.1 * rng.standard_normal(books.centroids.shape) * 0.7 ** np.arange(len(books.counts))[:, None, None]
        )
        counts = frames / books.counts.shape[1] * rng.uniform(0.5, 2.0, books.counts.shape)
        counts[:, ::5] = 1e-3
        arrays = [jnp.asarray(x, jnp.float32) for x in (centroids, counts, centroids * counts[..., None])]
        return rvq.Codebooks(*arrays)

    settled = jax.tree.map(settle, state.quantizer, is_leaf=lambda node: isinstance(node, rvq.Codebooks))
    return state.replace(quantizer=settled)


def trained_state(config):
    """A state with the marks of training: weights that are not small, codebooks of residuals that occur."""
    model = make_model(config)
    state, rng = make_state(model), np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(state.params)
    louder = [x + (0.1 * rng.standard_normal(x.shape) if x.ndim else 0.0) for x in leaves]
    params = jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in louder])
    audio = speech_like(4, 320, seed=7)
    analyze = jax.jit(functools.partial(model.apply, method="analyze"))
    latents = analyze(model.collections(params, state.quantizer), audio, np.ones(audio.shape, bool))
    vectors = np.asarray(latents).reshape(-1, config.model.latent_dim)
    if "envelope_codebooks" in config.model.rvq:
        return state.replace(params=params, quantizer=model.quantizer.started(jax.random.key(0), vectors, config))
    residual, centroids = vectors, []
    for _ in range(config.model.rvq.num_codebooks):
        centroids.append(rng.choice(residual, config.model.rvq.codebook_size, replace=False))
        residual = residual - centroids[-1][np.asarray(rvq.nearest(residual, centroids[-1]))]
    return state.replace(params=params, quantizer=state.quantizer.replace(centroids=jnp.stack(centroids)))


def trained_codec(config):
    """What `jaxcodec.load` would return of `trained_state`."""
    state = trained_state(config)
    return pretrained.make(state.params, state.quantizer, config)


def untrained_codec(**overrides):
    """What `jaxcodec.load` would return of fresh weights with codebooks in mid-training; overrides as `small_config`."""
    config = small_config(**overrides)
    state = settle_codebooks(make_state(make_model(config)))
    return pretrained.make(state.params, state.quantizer, config)


def save(codec, tmp_path_factory):
    """The codec's file, as a string."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(codec, path)
    return str(path)


def assert_trees_close(actual, expected, **tolerance):
    """Same structure, same shapes, close values; the message names the leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)
