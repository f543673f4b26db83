"""A trained codec as a pytree, and the pure functions that use it: audio to codes, codes to audio.

Everything is computed in the windows of `jaxcodec.windows`: a clip has the same codes alone, in a padded batch, in pieces
and under `jit`, and a few compiled shapes serve every length.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec import layers, rvq, windows
from jaxcodec.codec import Codec, variables

if TYPE_CHECKING:
    from jaxcodec.entropy import EntropyModel


class TrainedCodec(flax.struct.PyTreeNode):
    """Weights and codebooks of a codec, with what they mean. Made by `jaxcodec.load`."""

    params: dict
    centroids: jax.Array  # (Q, K, D)
    module: Codec = flax.struct.field(pytree_node=False)
    config: Any = flax.struct.field(pytree_node=False)  # sections model and fixes of the recipe, frozen
    entropy: "EntropyModel | None" = flax.struct.field(pytree_node=False, default=None)  # tables of the entropy coder

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.module.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.module.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.module.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codes a frame, Q."""
        return self.centroids.shape[0]

    @property
    def codebook_size(self) -> int:
        """Entries of a codebook, K."""
        return self.centroids.shape[1]

    @property
    def bits_per_second(self) -> float:
        """Nominal rate with all codebooks."""
        return self.module.bits_per_second

    @property
    def causal(self) -> bool:
        """Whether no frame sees a later one, as streaming needs."""
        return self.module.encoder.network.causal and self.module.decoder.network.causal

    @property
    def delay(self) -> int:
        """Samples by which the stream of decoded audio lags behind the stream of codes."""
        return self.module.decoder.network.overlap * self.hop_length

    @property
    def latency(self) -> float | None:
        """Algorithmic latency in seconds, from a sample to its decoded self; None where the codec is not causal."""
        return (self.hop_length + self.delay) / self.sample_rate if self.causal else None

    def num_frames(self, num_samples):
        """Frames of a clip of `num_samples` samples, an int or an array of ints."""
        return self.module.num_frames(num_samples)

    @property
    def variables(self) -> dict:
        """The collections that `module.apply` takes."""
        nothing = jnp.zeros(())  # the averages that training needs
        return variables(self.params, rvq.Codebooks(self.centroids, nothing, nothing))


def encode(
    codec: TrainedCodec, audio, num_codebooks: int | None = None, *, lengths=None, sample_rate: int | None = None
):
    """Audio to codes, int32 in [0, codebook_size).

    Args:
      codec: what `jaxcodec.load` returns.
      audio: float in [-1, 1] or int16 at `codec.sample_rate` Hz, mono: (S,), a padded batch (B, S) or a list of (S,).
        Louder samples are clipped as in training. May be traced.
      num_codebooks: the first so many codebooks only, all when None.
      lengths: (B,) samples of each clip of a padded batch; what lies beyond is ignored.
      sample_rate: rate of `audio` in Hz where it is known, to be checked.

    Returns:
      Codes (Q, T), (B, Q, T), or a list of (Q, T), T = codec.num_frames(S). Beyond a clip's frames codes are zero.

    Raises:
      ValueError: a shape, dtype, rate or number of codebooks that cannot be, NaN or infinite samples.
    """
    num_codebooks = check_num_codebooks(codec, num_codebooks)
    clips = _audio_clips(codec, audio, lengths, sample_rate)
    return _by_codebook(_run(_encode_operation(codec), codec, clips).restore(), num_codebooks)


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
      ValueError: a shape or dtype that cannot be, codes outside [0, codebook_size), a length that needs more frames.
    """
    return _decode(_decode_operation(codec), codec, _codes_clips(codec, codes, lengths), lengths)


def latents(codec: TrainedCodec, audio, *, lengths=None, sample_rate: int | None = None):
    """Audio as for `encode` to the latents before quantization, float32 (T, D), (B, T, D) or a list of (T, D)."""
    return _run(latents_operation(codec), codec, _audio_clips(codec, audio, lengths, sample_rate)).restore()


def quantize(codec: TrainedCodec, latents, num_codebooks: int | None = None):
    """Latents (T, D), (B, T, D) or a list of (T, D) to codes (Q, T), (B, Q, T) or a list of (Q, T)."""
    num_codebooks = check_num_codebooks(codec, num_codebooks)
    clips = _latents_clips(codec, latents)
    return _by_codebook(_run(_QUANTIZE, codec, clips).restore(), num_codebooks)


def dequantize(codec: TrainedCodec, codes):
    """Codes (Q', T), (B, Q', T) or a list of (Q', T), Q' <= Q, to quantized latents (T, D), (B, T, D) or a list."""
    return _run(_DEQUANTIZE, codec, _codes_clips(codec, codes)).restore()


def synthesize(codec: TrainedCodec, latents, lengths=None):
    """Quantized latents (T, D), (B, T, D) or a list of (T, D) to audio; `lengths` and result as for `decode`."""
    return _decode(_synthesize_operation(codec), codec, _latents_clips(codec, latents, lengths), lengths)


def reconstruct(codec: TrainedCodec, audio, num_codebooks: int | None = None, *, lengths=None):
    """Audio (S,) or (B, S) through the codec and back, differentiable in `codec` and `audio`.

    The gradient passes the quantizer as if it were the identity (straight-through, Bengio et al. 2013).
    """
    if isinstance(audio, list | tuple):
        raise ValueError("reconstruct takes an array (S,) or (B, S), not a list: pad the clips and give their lengths.")
    z = latents(codec, audio, lengths=lengths)
    z_q = dequantize(codec, quantize(codec, lax.stop_gradient(z), num_codebooks))
    z_q = z + lax.stop_gradient(z_q - z)
    if lengths is None:
        lengths = np.full(audio.shape[:-1], audio.shape[-1])
    decoded = synthesize(codec, z_q, lengths)
    return jnp.pad(decoded, [(0, 0)] * (audio.ndim - 1) + [(0, max(0, audio.shape[-1] - decoded.shape[-1]))])[
        ..., : audio.shape[-1]
    ]


def encode_blocks(codec: TrainedCodec, blocks: Iterable[np.ndarray], num_codebooks: int | None = None) -> Iterator:
    """Codes (Q, n) piece by piece from the consecutive pieces of one recording, float or int16 (S,): bounded memory.

    Concatenated along frames they are the codes of the whole.
    """
    num_codebooks = check_num_codebooks(codec, num_codebooks)
    pieces = (_audio_clips(codec, block, None, None).values[0] for block in blocks)
    for codes in windows.run_pieces(_encode_operation(codec), codec, pieces):
        yield np.ascontiguousarray(codes[:, :num_codebooks].T)


def decode_blocks(codec: TrainedCodec, codes: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Audio (S,) piece by piece from the consecutive pieces (Q', n) of one recording's codes: bounded memory."""
    pieces = (_codes_clips(codec, block).values[0] for block in codes)
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
    z = codec.module.apply(codec.variables, audio, mask, method="analyse")
    return z[:, : audio.shape[1] // codec.hop_length]


def quantize_window(codec, latents, starts, stops):
    """Latents (G, F, D) to codes (G, F, Q), zero where no frame exists."""
    codes = rvq.quantize(latents, codec.centroids).codes
    return jnp.moveaxis(codes, 1, 2) * layers.length_mask(stops, latents.shape[1], starts)[..., None]


def encode_window(codec, audio, starts, stops):
    """Samples (G, F * hop_length) to codes (G, F, Q)."""
    z = latents_window(codec, audio, starts, stops)
    hop_length = codec.hop_length
    return quantize_window(codec, z, starts // hop_length, codec.num_frames(stops))


def dequantize_window(codec, codes, starts, stops):
    """Codes (G, F, Q') to quantized latents (G, F, D), zero where no frame exists."""
    z_q = rvq.dequantize(jnp.moveaxis(codes, 2, 1), codec.centroids)
    return z_q * layers.length_mask(stops, codes.shape[1], starts)[..., None]


def synthesize_window(codec, latents, starts, stops):
    """Quantized latents (G, F, D) to blocks of samples (G, F, hop_length), zero where frame t does not exist."""
    num_frames, hop_length = latents.shape[1], codec.hop_length
    mask = layers.length_mask(stops, num_frames, starts)
    audio = codec.module.apply(
        codec.variables, latents, mask, codec.module.num_samples(num_frames), method="synthesise"
    )
    blocks = audio.reshape(len(audio), -1, hop_length)
    blocks = jnp.pad(blocks, ((0, 0), (0, num_frames - blocks.shape[1]), (0, 0)))
    return blocks * mask[..., None]


def decode_window(codec, codes, starts, stops):
    """Codes (G, F, Q') to blocks of samples (G, F, hop_length)."""
    return synthesize_window(codec, dequantize_window(codec, codes, starts, stops), starts, stops)


def latents_operation(codec):
    """Samples to latents, as an operation on windows."""
    return windows.Operation(latents_window, codec.hop_length, codec.module.encoder.network.context, codec.num_frames)


def _encode_operation(codec):
    return latents_operation(codec)._replace(step=encode_window)


def _synthesize_operation(codec):
    return windows.Operation(synthesize_window, 1, codec.module.decoder.network.context, lambda frames: frames)


def _decode_operation(codec):
    return _synthesize_operation(codec)._replace(step=decode_window)


_QUANTIZE = windows.Operation(quantize_window, 1, (0, 0), lambda frames: frames)
_DEQUANTIZE = _QUANTIZE._replace(step=dequantize_window)


class _Clips(NamedTuple):
    """Arguments or results of one call: concrete clips one by one, or a traced batch."""

    values: Any  # list of arrays (L, ...), or one traced array (B, L, ...)
    size: int  # elements a clip of the batch, padding included
    lengths: Any  # of a traced batch, (B,)
    kind: str  # "clip", "batch" or "list": what to give back
    traced: bool

    def restore(self):
        """One array, a padded batch or a list, as it came."""
        if self.traced:
            return self.values if self.kind == "batch" else self.values[0]
        if self.kind == "list":
            return [jnp.asarray(value) for value in self.values]
        if self.kind == "clip":
            return jnp.asarray(self.values[0])
        return jnp.asarray(_pad_batch(self.values, self.size))


def _run(op, codec, clips):
    """The results of `op` in place of the clips' values: a list of (T, ...) or, of a traced batch, (B, T, ...)."""
    values: Any
    if clips.traced:
        values = windows.run_batch(op, codec, clips.values, clips.lengths)
    else:
        values = windows.run_clips(op, codec, clips.values)
    return clips._replace(values=values, size=op.num_frames(clips.size))


def _decode(op, codec, clips, lengths):
    """Audio from whatever `op` makes blocks of hop_length samples of; see `decode` for lengths."""
    decode = _decode_batch if clips.traced else _decode_clips
    return decode(op, codec, clips, lengths).restore()


def _decode_clips(op, codec, clips, lengths):
    frames = [len(value) for value in clips.values]
    if lengths is None:
        lengths = [max(0, codec.module.num_samples(count)) for count in frames]
    lengths = _check_lengths(codec, lengths, frames)
    values = [value[: codec.num_frames(length)] for value, length in zip(clips.values, lengths, strict=True)]
    blocks = _run(op, codec, clips._replace(values=values)).values
    audio = [block.reshape(-1)[:length] for block, length in zip(blocks, lengths, strict=True)]
    return clips._replace(values=audio, size=max(lengths, default=0))


def _decode_batch(op, codec, clips, lengths):
    size = max(0, codec.module.num_samples(clips.size))
    if lengths is None:
        lengths = np.full(len(clips.values), size)
    elif not is_traced(lengths):
        lengths = np.array(_check_lengths(codec, lengths, [clips.size] * len(clips.values)))
        size = int(lengths.max(initial=0))
    lengths = jnp.broadcast_to(jnp.asarray(lengths), clips.lengths.shape)
    frames = jnp.minimum(codec.num_frames(lengths), clips.size)
    blocks = _run(op, codec, clips._replace(lengths=frames)).values
    audio = blocks.reshape(len(clips.values), -1)[:, :size] * layers.length_mask(lengths, size)
    return clips._replace(values=audio)


def _by_codebook(codes, num_codebooks):
    """Codes (..., T, Q), or a list of them, to (..., num_codebooks, T)."""
    return jax.tree.map(lambda c: c[..., :num_codebooks].swapaxes(-1, -2), codes)


def _pad_batch(values, size):
    return np.stack([np.pad(v, [(0, size - len(v))] + [(0, 0)] * (v.ndim - 1)) for v in values])


def is_traced(*trees):
    """Whether any leaf is a tracer of jit, vmap, grad or scan."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _analysis_error(shape):
    return ValueError(f"audio has shape {shape}, expected mono (S,), a batch (B, S) or a list of (S,).")


def _audio_clips(codec, audio, lengths, sample_rate):
    if sample_rate is not None and sample_rate != codec.sample_rate:
        raise ValueError(
            f"audio is at {sample_rate} Hz, the codec works at {codec.sample_rate} Hz: resample it with "
            f"jaxcodec.audio.resample(audio, {sample_rate}, {codec.sample_rate})."
        )
    if isinstance(audio, list | tuple):
        _refuse_traced_list(codec, audio)
        if lengths is not None:
            raise ValueError("lengths are for a padded batch (B, S); the clips of a list have their own.")
        clips = [as_float(np.asarray(clip)) for clip in audio]
        for clip in clips:
            if clip.ndim != 1:
                raise _analysis_error(f"{clip.shape} in a list")
        return _concrete_clips(clips, "list", check_finite)
    traced = is_traced(codec, audio, lengths)
    audio = as_float(audio if traced else np.asarray(audio))
    if audio.ndim not in (1, 2):
        raise _analysis_error(audio.shape)
    kind = "clip" if audio.ndim == 1 else "batch"
    if kind == "batch" and audio.shape[1] <= 8 and audio.shape[0] > 1000:
        raise ValueError(
            f"audio has shape {audio.shape}: samples by channels? Give mono (S,), e.g. audio.mean(axis=1)."
        )
    batch = audio if kind == "batch" else audio[None]
    if not is_traced(lengths):
        lengths = np.full(len(batch), batch.shape[1]) if lengths is None else np.atleast_1d(np.asarray(lengths))
        if lengths.shape != (len(batch),) or lengths.dtype.kind not in "iu":
            raise ValueError(f"lengths must be {len(batch)} integers, one a clip, got {lengths.dtype} {lengths.shape}.")
        if np.any((lengths < 0) | (lengths > batch.shape[1])):
            raise ValueError(f"lengths must be in [0, {batch.shape[1]}], the samples of the batch, got {lengths}.")
    if traced:
        return _Clips(batch, batch.shape[1], jnp.broadcast_to(jnp.asarray(lengths), batch.shape[:1]), kind, True)
    clips = [clip[:n] for clip, n in zip(batch, lengths, strict=True)]
    return _concrete_clips(clips, kind, check_finite, batch.shape[1])


def _latents_clips(codec, latents, lengths=None):
    return _frame_clips(codec, latents, lengths, "latents", "(T, D), (B, T, D) or a list of (T, D)", _check_latents)


def _codes_clips(codec, codes, lengths=None):
    return _frame_clips(codec, codes, lengths, "codes", "(Q, T), (B, Q, T) or a list of (Q, T)", check_codes)


def _frame_clips(codec, arrays, lengths, name, expected, check):
    """Clips of latents or codes, frames first; every frame exists."""
    if isinstance(arrays, list | tuple):
        _refuse_traced_list(codec, [*arrays, lengths])
        values, kind = [np.asarray(array) for array in arrays], "list"
    else:
        traced = is_traced(codec, arrays, lengths)
        arrays = arrays if traced else np.asarray(arrays)
        if arrays.ndim not in (2, 3):
            raise ValueError(f"{name} have shape {arrays.shape}, expected {expected}.")
        kind = "clip" if arrays.ndim == 2 else "batch"
        batch = arrays if kind == "batch" else arrays[None]
        if traced:
            check(codec, batch)
            batch = jnp.asarray(batch.swapaxes(1, 2) if name == "codes" else batch)
            return _Clips(batch, batch.shape[1], jnp.full(len(batch), batch.shape[1]), kind, True)
        values = list(batch)
    for value in values:
        if value.ndim != 2:
            raise ValueError(f"{name} have shape {value.shape} in a list, expected {expected}.")
        check(codec, value)
    return _concrete_clips([value.T if name == "codes" else value for value in values], kind)


def _concrete_clips(values, kind, check=None, size=None):
    for index, value in enumerate(values):
        if check:
            check(value, f" of clip {index}" if kind != "clip" else "")
    size = max(map(len, values), default=0) if size is None else size
    return _Clips(values, size, None, kind, False)


def _refuse_traced_list(codec, arrays):
    if is_traced(codec, list(arrays)):
        raise ValueError("inside jit, vmap or grad give a padded batch and its lengths instead of a list.")


def as_float(audio):
    """Float or int16 samples as float32; raises `ValueError` for another dtype."""
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / np.float32(32768)
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise ValueError(f"audio is {audio.dtype}, expected float in [-1, 1] or int16.")
    return audio.astype(np.float32)


def check_finite(audio, where=""):
    """Raises `ValueError` where a sample is NaN or infinite."""
    if not np.isfinite(audio).all():
        count = np.count_nonzero(~np.isfinite(audio))
        raise ValueError(f"audio{where} has {count} NaN or infinite samples: remove or replace them.")


def _check_latents(codec, latents):
    dim = codec.centroids.shape[2]
    if latents.shape[-1] != dim or not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"latents are {latents.dtype} {latents.shape}, expected float (..., T, {dim}).")


def check_codes(codec, codes):
    """Raises `ValueError` where codes (..., Q', T) cannot be this codec's; their values only if they are concrete."""
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes are {codes.dtype}, expected integers.")
    if not 1 <= codes.shape[-2] <= codec.num_codebooks:
        raise ValueError(
            f"codes {codes.shape} hold {codes.shape[-2]} codebooks, expected 1 to {codec.num_codebooks}: (..., Q, T)."
        )
    if not is_traced(codes) and codes.size and not 0 <= codes.min() <= codes.max() < codec.codebook_size:
        raise ValueError(
            f"codes lie in [{codes.min()}, {codes.max()}], expected [0, {codec.codebook_size - 1}]: "
            "were they made by another model?"
        )


def check_num_codebooks(codec, num_codebooks):
    """All of them for None; raises `ValueError` for a number that this codec has not."""
    if num_codebooks is None:
        return codec.num_codebooks
    if not 1 <= num_codebooks <= codec.num_codebooks:
        raise ValueError(f"num_codebooks is {num_codebooks}, this codec has 1 to {codec.num_codebooks}.")
    return num_codebooks


def _check_lengths(codec, lengths, frames):
    """Lengths in samples as a list of ints, one for each clip of `frames` frames."""
    lengths = np.asarray(lengths)
    if lengths.size != len(frames) or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be {len(frames)} integers, one a clip, got {lengths.dtype} {lengths.shape}.")
    lengths = [int(n) for n in lengths.reshape(-1)]
    for length, present in zip(lengths, frames, strict=True):
        if length < 0 or codec.num_frames(length) > present:
            raise ValueError(
                f"{length} samples need {codec.num_frames(max(0, length))} frames of codes, there are {present}: "
                f"at most {max(0, codec.module.num_samples(present))} samples can be decoded."
            )
    return lengths
