"""Encoding and decoding as the sound arrives, by pure functions of a state: `jit`, `vmap` and `lax.scan` all work.

The state is what the codec can still hear of the past, as samples and as latents: a step computes the past again together
with the new frames, the same way as a window of a long recording. So a stream has the codes of the whole recording, however
it is cut. A block of samples is given out when the last frame that it needs is there, `codec.delay` samples behind; those
that the last frames of a stream leave waiting come from `decode_end`.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxcodec import pcm
from jaxcodec.inference import clips, functions, windows
from jaxcodec.inference.trained import TrainedCodec


class StreamState(flax.struct.PyTreeNode):
    """What a stream remembers, with a leading batch axis where it has one."""

    samples: jax.Array  # (B, P * hop_length) the last P blocks of input
    latents: jax.Array  # (B, R, D) the last R frames to decode
    encoded: jax.Array  # () int32 frames encoded so far, at most P
    decoded: jax.Array  # () int32 frames decoded so far, at most R


def init_stream(codec: TrainedCodec, batch: int | None = None) -> StreamState:
    """The state before the first sample of `batch` parallel streams, or of one without a batch axis.

    Raises:
      ValueError: the codec is not causal.
    """
    if not codec.causal:
        raise ValueError("this codec is not causal, it cannot stream: train one with --config.model.causal=True.")
    encoder, decoder = codec.module.encoder.network, codec.module.decoder.network
    # With what is remembered every step has at least MIN_FRAMES rows, and so the codes of the whole.
    past = max(windows.MIN_FRAMES, encoder.context[0] + codec.module.quantizer.context)
    remembered = max(windows.MIN_FRAMES, sum(decoder.context))
    shape = () if batch is None else (batch,)
    return StreamState(
        samples=jnp.zeros((*shape, past * codec.hop_length)),
        latents=jnp.zeros((*shape, remembered, codec.module.latent_dim)),
        encoded=jnp.zeros((), jnp.int32),
        decoded=jnp.zeros((), jnp.int32),
    )


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
    _check_shape("chunk", chunk, state.samples.shape[:-1], 1, codec.hop_length)
    chunk = pcm.to_float(chunk)
    if not clips.is_traced(chunk):
        clips.check_finite(chunk)
    rate = codec.check_rate(rate, named)
    state, codes = _encode_step(codec, state, jnp.asarray(chunk), rate)
    return state, codes[..., : codec.module.quantizer.num_rows(rate), :]


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
    _check_shape("codes", codes, state.latents.shape[:-2], 2, 1)
    clips.check_codes(codec, codes)
    return _decode_step(codec, state, jnp.asarray(codes))


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
def _encode_step(codec, state, chunk, rate):
    batched = _with_batch(chunk, 1)
    past = state.samples.shape[-1] // codec.hop_length
    samples = jnp.concatenate([_with_batch(state.samples, 1), batched], axis=1)
    num_frames = batched.shape[1] // codec.hop_length
    starts, stops = _span(samples, (past - state.encoded) * codec.hop_length)
    latents = functions.latents_window(codec, samples, starts, stops)
    first = past - codec.module.quantizer.context  # a search among codebooks costs more than the network
    span = starts // codec.hop_length - first, codec.num_frames(stops) - first
    codes = functions.quantize_window((codec, rate), latents[:, first:], *span)[:, past - first :]
    new_state = state.replace(
        samples=samples[:, -state.samples.shape[-1] :].reshape(state.samples.shape),
        encoded=jnp.minimum(state.encoded + num_frames, past),
    )
    return new_state, jnp.moveaxis(codes, 1, 2).reshape(*chunk.shape[:-1], codes.shape[2], num_frames)


@jax.jit
def _decode_step(codec, state, codes):
    batched = _with_batch(codes, 2)
    remembered = state.latents.shape[-2]
    new = functions.dequantize_window(codec, jnp.moveaxis(batched, 1, 2), *_span(batched[:, 0], 0))
    z_q = jnp.concatenate([_with_batch(state.latents, 2), new], axis=1)
    audio = _next_audio(codec, state, z_q, *_span(z_q, remembered - state.decoded))
    new_state = state.replace(
        latents=z_q[:, -remembered:].reshape(state.latents.shape),
        decoded=jnp.minimum(state.decoded + batched.shape[2], remembered),
    )
    return new_state, audio


@jax.jit
def _decode_end(codec, state):
    latents = _with_batch(state.latents, 2)
    starts, stops = _span(latents, latents.shape[1] - state.decoded)
    missing = codec.module.decoder.network.context[1]
    return _next_audio(codec, state, jnp.pad(latents, ((0, 0), (0, missing), (0, 0))), starts, stops)


def _next_audio(codec, state, z_q, starts, stops):
    """Audio ([B,] n * hop_length) that waited for the last n of the frames z_q (B, R + n, D), R of them the state's."""
    remembered = state.latents.shape[-2]
    num_frames = z_q.shape[1] - remembered
    first = remembered - codec.module.decoder.network.context[1]
    blocks = functions.synthesize_window(codec, z_q, starts, stops)
    audio = lax.dynamic_slice_in_dim(blocks, first, num_frames, axis=1)
    return audio.reshape(*state.latents.shape[:-2], num_frames * codec.hop_length)


def _span(values, start):
    """Starts and stops of a window (B, L, ...) in which everything from `start` on exists."""
    stops = jnp.full(len(values), values.shape[1])
    return jnp.broadcast_to(jnp.asarray(start), stops.shape), stops


def _with_batch(array, ndim):
    return array if array.ndim > ndim else array[None]


def _check_shape(name, array, batch, ndim, unit):
    """`array` has `ndim` axes of its own after the batch's, the last a multiple of `unit`."""
    shape = jnp.shape(array)
    if len(shape) != len(batch) + ndim or shape[:-ndim] != batch:
        streams = f"{batch[0]} streams" if batch else "one stream without a batch axis"
        raise ValueError(f"{name} has shape {shape}, but the state was made for {streams}.")
    if shape[-1] == 0 or shape[-1] % unit:
        raise ValueError(f"{name} has shape {shape}, expected a last axis of {unit} or a multiple of it.")
