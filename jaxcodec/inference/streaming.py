"""Encoding and decoding as the sound arrives, by pure functions of a state: `jit`, `vmap` and `lax.scan` all work.

The state is what every layer can still hear of the past (`nn.layers`), so a step costs what its new frames cost. However a
recording is cut, a stream has its codes, but where two are as near as XLA rounds: it adds up a few rows in another order
than many. A block of samples is given out when the last frame that it needs is there, `codec.delay` samples behind; those
that the last frames of a stream leave waiting come from `decode_end`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from jaxcodec import pcm
from jaxcodec.inference import clips, functions
from jaxcodec.inference.trained import TrainedCodec
from jaxcodec.nn import layers


class StreamState(flax.struct.PyTreeNode):
    """What a stream remembers, with a leading batch axis where it has one."""

    encoder: dict  # what each layer of encoder and quantizer still hears
    decoder: dict
    encoded: jax.Array  # (B,) int32 frames so far


def init_stream(codec: TrainedCodec, batch: int | None = None) -> StreamState:
    """The state before the first sample of `batch` parallel streams, or of one without a batch axis.

    Raises:
      ValueError: the codec is not causal.
    """
    if not codec.causal:
        raise ValueError("this codec is not causal, it cannot stream: train one with --config.model.causal=True.")
    size = 1 if batch is None else batch
    chunk = jnp.zeros((size, codec.hop_length)), jnp.zeros((size, 1, codec.module.latent_dim))
    best = codec.check_rate(None)

    def caches(codec, audio, z_q):
        return _encode(functions.at_rate(codec, best), {}, audio)[0], _synthesize(codec, {}, z_q, True)[0]

    encoder, decoder = jax.eval_shape(caches, codec, *chunk)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (encoder, decoder))
    encoder, decoder = zeros if batch is not None else _without_batch(zeros)
    return StreamState(encoder, decoder, jnp.zeros(() if batch is None else (batch,), jnp.int32))


def encode_step(codec: TrainedCodec, state: StreamState, chunk, rate=None, **named):
    """The next samples to the next codes.

    Args:
      codec: a causal codec.
      state: of `init_stream` or of the step before.
      chunk: (n * hop_length,) or (B, n * hop_length), float or int16, n >= 1.
      rate: as for `jaxcodec.encode`.

    Returns:
      The new state and codes (Q, n) or (B, Q, n). A clip of n whole blocks has codec.num_frames(n * hop_length) frames:
      with the "mdct" architecture one more than blocks, which one block of zeros brings out at the end.

    Raises:
      ValueError: a chunk that is not a multiple of hop_length, of another batch size, or NaN.
    """
    _check_shape("chunk", chunk, state.encoded.shape, 1, codec.hop_length)
    chunk = pcm.to_float(chunk)
    if not clips.is_traced(chunk):
        clips.check_finite(chunk)
    rate = codec.check_rate(rate, named)
    state, codes = _encode_step(functions.at_rate(codec, rate), state, chunk)
    rows = codec.module.quantizer.num_rows(rate)
    return state, codes if rows == codes.shape[-2] else codes[..., :rows, :]


def decode_step(codec: TrainedCodec, state: StreamState, codes):
    """The next codes to the next samples.

    Args:
      codec: a causal codec.
      state: of `init_stream` or of the step before.
      codes: (Q', n) or (B, Q', n), n >= 1, of the first Q' <= Q codebooks.

    Returns:
      The new state and audio (n * hop_length,) or (B, n * hop_length), `codec.delay` samples behind: so many samples of
      silence come before the first one of the clip, and so many wait at the end for `decode_end`.

    Raises:
      ValueError: no frame, another batch size, codes that cannot be.
    """
    _check_shape("codes", codes, state.encoded.shape, 2, 1)
    clips.check_codes(codec, codes)
    return _decode_step(codec, state, codes)


def decode_end(codec: TrainedCodec, state: StreamState):
    """The samples that still wait when no further frame comes.

    Args:
      codec: a causal codec.
      state: of the last `decode_step`.

    Returns:
      Audio (codec.delay,) or (B, codec.delay). The audio of all steps and this, without the first `codec.delay` samples,
      is T * hop_length samples for T frames: the first codec.module.num_samples(T) are those of `jaxcodec.decode`. With
      an MDCT the last block is beyond them, half of it would have come from a frame that does not exist.
    """
    return _decode_end(codec, state)


@jax.jit
def _encode_step(context, state, chunk):
    batched = chunk.ndim == 2
    cache, audio = (state.encoder, chunk) if batched else _with_batch((state.encoder, chunk))
    results = _encode(context, cache, audio)
    encoder, codes = results if batched else _without_batch(results)
    return state.replace(encoder=encoder, encoded=state.encoded + codes.shape[-1]), codes


@jax.jit
def _decode_step(codec, state, codes):
    batched = codes.ndim == 3
    frames = jnp.moveaxis(codes if batched else codes[None], 1, 2)
    stops = jnp.full(len(frames), frames.shape[1])
    z_q = functions.dequantize_window(codec, frames, jnp.zeros_like(stops), stops)
    results = _synthesize(codec, state.decoder if batched else _with_batch(state.decoder), z_q, True)
    decoder, audio = results if batched else _without_batch(results)
    return state.replace(decoder=decoder), audio


@jax.jit
def _decode_end(codec, state):
    batched = state.encoded.ndim == 1
    decoder = state.decoder if batched else _with_batch(state.decoder)
    size = len(state.encoded) if batched else 1
    missing = codec.module.decoder.network.context[1]
    if not missing:
        return jnp.zeros((*state.encoded.shape, 0))
    _, audio = _synthesize(codec, decoder, jnp.zeros((size, missing, codec.module.latent_dim)), False)
    return audio if batched else audio[0]


def _encode(context, cache, audio):
    """What the layers of encoder and quantizer hear after the next samples (B, n * hop_length), and codes (B, Q, n)."""
    codec, rate = context
    cache, latents = _apply(codec, cache, audio, jnp.ones(audio.shape, bool), method="analyze")
    rates, mask = functions.rates_of(rate, len(audio)), jnp.ones(latents.shape[:2], bool)
    return _apply(codec, cache, latents, rates, mask, method="encode_latents")


def _synthesize(codec, cache, latents, exist):
    """The same of the decoder after frames (B, n, D), which may not exist, and their audio (B, n * hop_length)."""
    mask = jnp.full(latents.shape[:2], exist)
    return _apply(codec, cache, latents, mask, latents.shape[1] * codec.hop_length, method="synthesize")


def _apply(codec, cache, *arguments, method):
    variables = codec.variables | {layers.CACHE: cache}
    results, changed = codec.module.apply(variables, *arguments, method=method, mutable=[layers.CACHE])
    return changed.get(layers.CACHE, {}), results


def _with_batch(tree):
    return jax.tree.map(lambda x: x[None], tree)


def _without_batch(tree):
    return jax.tree.map(lambda x: x[0], tree)


def _check_shape(name, array, batch, ndim, unit):
    """`array` has `ndim` axes of its own after the batch's, the last a multiple of `unit`."""
    shape = jnp.shape(array)
    if len(shape) != len(batch) + ndim or shape[:-ndim] != batch:
        streams = f"{batch[0]} streams" if batch else "one stream without a batch axis"
        raise ValueError(f"{name} has shape {shape}, but the state was made for {streams}.")
    if shape[-1] == 0 or shape[-1] % unit:
        raise ValueError(f"{name} has shape {shape}, expected a last axis of {unit} or a multiple of it.")
