"""The pure functions that use a trained codec: audio to codes, codes to audio.

Everything is computed in the windows of `inference.windows`: a clip has the same codes alone, in a padded batch, in pieces
and under `jit`, and a few compiled shapes serve every length. A `rate` is a value of the codec's knob, which may also be
given by name: the number of leading codebooks of a residual quantizer, `num_codebooks=4`. None is the best there is.
"""

from collections.abc import Iterable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec.inference import clips, windows
from jaxcodec.inference.clips import Clips
from jaxcodec.inference.trained import TrainedCodec, method
from jaxcodec.nn import layers
from jaxcodec.quantizers import interface


@method
def encode(codec: TrainedCodec, audio, rate=None, *, lengths=None, sample_rate: int | None = None, **named):
    """Audio to codes, int32; in [0, codebook_size) of a residual quantizer.

    Args:
      codec: what `jaxcodec.load` returns.
      audio: float in [-1, 1] or int16 at `codec.sample_rate` Hz, mono: (S,), a padded batch (B, S) or a list of (S,).
        Louder samples are clipped as in training. May be traced.
      rate: of the codec's knob, the best when None; `num_codebooks`, the first so many codebooks only.
      lengths: (B,) samples of each clip of a padded batch; what lies beyond is ignored.
      sample_rate: rate of `audio` in Hz where it is known, to be checked.

    Returns:
      Codes (Q, T), (B, Q, T), or a list of (Q, T), T = codec.num_frames(S). Beyond a clip's frames codes are zero.

    Raises:
      ValueError: a shape, dtype, rate or number of codebooks that cannot be, NaN or infinite samples.
    """
    rate = codec.check_rate(rate, named)
    given = clips.audio_clips(codec, audio, lengths, sample_rate)
    return _run(_encode_operation(codec), at_rate(codec, rate), given).restore(_by_row(codec, rate))


@method
def decode(codec: TrainedCodec, codes, lengths=None):
    """Codes to audio, float32 at `codec.sample_rate` Hz, which may exceed [-1, 1].

    Args:
      codec: what `jaxcodec.load` returns.
      codes: int (Q', T), (B, Q', T) or a list of (Q', T), the first Q' <= Q codebooks. May be traced.
      lengths: samples of the clip, or of each clip: codes do not hold them. None: as long as the frames reach.

    Returns:
      Audio (S,), (B, S) or a list of (S,). A batch is zero beyond each length; its S is the largest length, or, where
      lengths are traced, as long as T frames reach.

    Raises:
      ValueError: a shape or dtype that cannot be, codes that cannot be, a length that needs more frames.
    """
    return _decode(_decode_operation(codec), codec, clips.codes_clips(codec, codes, lengths), lengths)


@method
def latents(codec: TrainedCodec, audio, *, lengths=None, sample_rate: int | None = None):
    """Audio as for `encode` to the latents before quantization, float32 (T, D), (B, T, D) or a list of (T, D)."""
    given = clips.audio_clips(codec, audio, lengths, sample_rate)
    return _run(latents_operation(codec), codec, given).restore()


@method
def quantize(codec: TrainedCodec, latents, rate=None, **named):
    """Latents (T, D), (B, T, D) or a list of (T, D) to codes (Q, T), (B, Q, T) or a list of (Q, T); rate as for `encode`."""
    rate = codec.check_rate(rate, named)
    given = clips.latents_clips(codec, latents)
    return _run(_quantize_operation(codec), at_rate(codec, rate), given).restore(_by_row(codec, rate))


@method
def dequantize(codec: TrainedCodec, codes):
    """Codes (Q', T), (B, Q', T) or a list of (Q', T), Q' <= Q, to quantized latents (T, D), (B, T, D) or a list.

    Of codebooks there may be soft codes too, float (Q', T, K), (B, Q', T, K) or a list of (Q', T, K): weights of the K
    entries, such as probabilities or a one-hot code with a gradient, of which weighted sums are taken. Differentiable.
    """
    given = (clips.soft_clips if clips.are_soft(codes) else clips.codes_clips)(codec, codes)
    return _run(_DEQUANTIZE, codec, given).restore()


@method
def synthesize(codec: TrainedCodec, latents, lengths=None):
    """Quantized latents (T, D), (B, T, D) or a list of (T, D) to audio; `lengths` and result as for `decode`."""
    return _decode(_synthesize_operation(codec), codec, clips.latents_clips(codec, latents, lengths), lengths)


@method
def reconstruct(codec: TrainedCodec, audio, rate=None, *, lengths=None, **named):
    """Audio (S,) or (B, S) through the codec and back, differentiable in `codec` and `audio`.

    The gradient passes the quantizer as if it were the identity (straight-through).
    """
    if isinstance(audio, list | tuple):
        raise ValueError("reconstruct takes an array (S,) or (B, S), not a list: pad the clips and give their lengths.")
    z = latents(codec, audio, lengths=lengths)
    z_q = interface.straight_through(z, dequantize(codec, quantize(codec, lax.stop_gradient(z), rate, **named)))
    if lengths is None:
        lengths = np.full(audio.shape[:-1], audio.shape[-1])
    decoded = synthesize(codec, z_q, lengths)
    missing = max(0, audio.shape[-1] - decoded.shape[-1])
    return jnp.pad(decoded, [(0, 0)] * (audio.ndim - 1) + [(0, missing)])[..., : audio.shape[-1]]


def encode_blocks(codec: TrainedCodec, blocks: Iterable[np.ndarray], rate=None, **named) -> Iterator:
    """Codes (Q, n) piece by piece from the consecutive pieces of one recording, float or int16 (S,): bounded memory.

    Concatenated along frames they are the codes of the whole.
    """
    rate = codec.check_rate(rate, named)
    pieces = (clips.audio_clips(codec, block, None, None).values[0] for block in blocks)
    for codes in windows.run_pieces(_encode_operation(codec), at_rate(codec, rate), pieces):
        yield np.ascontiguousarray(_by_row(codec, rate)(codes))


def decode_blocks(codec: TrainedCodec, codes: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Audio (S,) piece by piece from the consecutive pieces (Q', n) of one recording's codes: bounded memory."""
    pieces = (clips.codes_clips(codec, block).values[0] for block in codes)
    remaining = num_samples
    for blocks in windows.run_pieces(_decode_operation(codec), codec, pieces):
        audio = blocks.reshape(-1)[:remaining]
        remaining -= len(audio)
        yield audio
    if remaining:
        raise ValueError(f"the codes end {remaining} samples before num_samples = {num_samples}.")


# Operations on windows: of a window (G, F * unit, ...) only the elements from starts (G,) up to stops (G,) exist.


def latents_window(codec, audio, starts, stops):
    """Samples (G, F * hop_length) to latents (G, F, D)."""
    mask = layers.length_mask(stops, audio.shape[1], starts)
    z = codec.module.apply(codec.variables, audio, mask, method="analyze")
    return z[:, : audio.shape[1] // codec.hop_length]


class _Size(flax.struct.PyTreeNode):
    """A rate that sizes follow from: another one is another program."""

    rate: int = flax.struct.field(pytree_node=False)


def at_rate(codec, rate):
    """The context of windows that are encoded at a rate."""
    if "ready" in vars(codec) or not clips.is_traced(codec):  # looking through all its arrays takes as long as a layer
        codec = codec.ready
    return codec, _Size(rate) if codec.module.quantizer.rate_is_a_size else rate


def rates_of(rate, count):
    """The rate of a context of `at_rate` as `Quantizer.encode` wants it for so many clips."""
    if isinstance(rate, _Size):
        return rate.rate
    return jax.tree.map(lambda value: jnp.broadcast_to(jnp.asarray(value), (count,)), rate)


def quantize_window(context, latents, starts, stops):
    """Latents (G, F, D) to codes (G, F, Q) in a `context` of `at_rate`; zero where no frame exists."""
    codec, rate = context
    mask = layers.length_mask(stops, latents.shape[1], starts)
    codes = codec.module.apply(codec.variables, latents, rates_of(rate, len(starts)), mask, method="encode_latents")
    return jnp.moveaxis(codes, 1, 2) * mask[..., None]


def encode_window(context, audio, starts, stops):
    """Samples (G, F * hop_length) to codes (G, F, Q) in a `context` of `at_rate`."""
    codec, _ = context
    z = latents_window(codec, audio, starts, stops)
    # A quantizer that looks at single frames is given those alone that are kept: a block of its search begins with them.
    first = 0 if codec.module.quantizer.context else codec.module.encoder.network.context[0]
    starts, stops = jnp.maximum(starts // codec.hop_length - first, 0), codec.num_frames(stops) - first
    return jnp.roll(quantize_window(context, jnp.roll(z, -first, axis=1), starts, stops), first, axis=1)


def dequantize_window(codec, codes, starts, stops):
    """Codes (G, F, Q') to quantized latents (G, F, D), zero where no frame exists."""
    z_q = codec.module.apply(codec.variables, jnp.moveaxis(codes, 2, 1), method="dequantize")
    return z_q * layers.length_mask(stops, codes.shape[1], starts)[..., None]


def synthesize_window(codec, latents, starts, stops):
    """Quantized latents (G, F, D) to blocks of samples (G, F, hop_length), zero where frame t does not exist."""
    num_frames, num_samples = latents.shape[1], codec.module.num_samples(latents.shape[1])
    mask = layers.length_mask(stops, num_frames, starts)
    audio = codec.module.apply(codec.variables, latents, mask, num_samples, method="synthesize")
    blocks = audio.reshape(len(audio), -1, codec.hop_length)
    blocks = jnp.pad(blocks, ((0, 0), (0, num_frames - blocks.shape[1]), (0, 0)))
    return blocks * mask[..., None]


def decode_window(codec, codes, starts, stops):
    """Codes (G, F, Q') to blocks of samples (G, F, hop_length)."""
    return synthesize_window(codec, dequantize_window(codec, codes, starts, stops), starts, stops)


def latents_operation(codec):
    """Samples to latents, as an operation on windows."""
    return windows.Operation(latents_window, codec.hop_length, codec.module.encoder.network.context, codec.num_frames)


def _encode_operation(codec):
    before, after = codec.module.encoder.network.context
    return latents_operation(codec)._replace(
        step=encode_window, context=(before + codec.module.quantizer.context, after)
    )


def _quantize_operation(codec):
    return windows.Operation(quantize_window, 1, (codec.module.quantizer.context, 0), lambda frames: frames)


def _synthesize_operation(codec):
    return windows.Operation(synthesize_window, 1, codec.module.decoder.network.context, lambda frames: frames)


def _decode_operation(codec):
    return _synthesize_operation(codec)._replace(step=decode_window)


_DEQUANTIZE = windows.Operation(dequantize_window, 1, (0, 0), lambda frames: frames)


def _run(op, context, given: Clips) -> Clips:
    """The results of `op` in place of the clips' values: a list of (T, ...) or, of a traced batch, (B, T, ...)."""
    arguments = (given.values, given.lengths) if given.traced else (given.values,)
    values = (windows.run_batch if given.traced else windows.run_clips)(op, context, *arguments)
    return given._replace(values=values, size=op.num_frames(given.size))


def _decode(op, codec, given, lengths):
    """Audio from whatever `op` makes blocks of hop_length samples of; see `decode` for lengths."""
    decode = _decode_batch if given.traced else _decode_clips
    return decode(op, codec, given, lengths).restore()


def _decode_clips(op, codec, given, lengths):
    frames = [len(value) for value in given.values]
    if lengths is None:
        lengths = [max(0, codec.module.num_samples(count)) for count in frames]
    lengths = clips.check_lengths(codec, lengths, frames)
    values = [value[: codec.num_frames(length)] for value, length in zip(given.values, lengths, strict=True)]
    blocks = _run(op, codec, given._replace(values=values)).values
    audio = [block.reshape(-1)[:length] for block, length in zip(blocks, lengths, strict=True)]
    return given._replace(values=audio, size=max(lengths, default=0))


def _decode_batch(op, codec, given, lengths):
    size = max(0, codec.module.num_samples(given.size))
    if lengths is None:
        lengths = np.full(len(given.values), size)
    elif not clips.is_traced(lengths):
        lengths = np.array(clips.check_lengths(codec, lengths, [given.size] * len(given.values)))
        size = int(lengths.max(initial=0))
    lengths = jnp.broadcast_to(jnp.asarray(lengths), given.lengths.shape)
    frames = jnp.minimum(codec.num_frames(lengths), given.size)
    blocks = _run(op, codec, given._replace(lengths=frames)).values
    audio = blocks.reshape(len(given.values), -1)[:, :size] * layers.length_mask(lengths, size)
    return given._replace(values=audio)


def _by_row(codec, rate):
    """A function from codes (..., T, Q) to the rows of a rate (..., Q', T)."""
    num_rows = codec.module.quantizer.num_rows(rate)
    return lambda codes: codes[..., :num_rows].swapaxes(-1, -2)
