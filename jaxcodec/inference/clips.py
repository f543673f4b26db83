"""Arguments of the functions of `inference.functions` and what comes back: a clip, a padded batch, or a list of clips."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodec import pcm


class Clips(NamedTuple):
    """Arguments or results of one call: concrete clips one by one, or a traced batch."""

    values: Any  # list of arrays (L, ...), or one traced array (B, L, ...)
    size: int  # elements a clip of the batch, padding included
    lengths: Any  # of a traced batch, (B,)
    kind: str  # "clip", "batch" or "list": what to give back
    traced: bool

    def restore(self, finish=lambda array: array):
        """One array, a padded batch or a list, as it came, with `finish` done to each array.

        Concrete arrays are finished on the host and put on the device as they are: `jnp.asarray` would compile a program
        for every length that comes along, and keep it.
        """
        if self.traced:
            return finish(self.values if self.kind == "batch" else self.values[0])
        if self.kind == "list":
            return [jax.device_put(finish(value)) for value in self.values]
        if self.kind == "clip":
            return jax.device_put(finish(self.values[0]))
        padded = [np.pad(v, [(0, self.size - len(v))] + [(0, 0)] * (v.ndim - 1)) for v in self.values]
        return jax.device_put(finish(np.stack(padded)))


def is_traced(*trees):
    """Whether any leaf is a tracer of jit, vmap, grad or scan."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _analysis_error(shape):
    return ValueError(f"audio has shape {shape}, expected mono (S,), a batch (B, S) or a list of (S,).")


def audio_clips(codec, audio, lengths, sample_rate):
    """Audio (S,), (B, S) or a list of (S,) as float `Clips`, checked."""
    if sample_rate is not None and sample_rate != codec.sample_rate:
        raise ValueError(
            f"audio is at {sample_rate} Hz, the codec works at {codec.sample_rate} Hz: resample it with "
            f"jaxcodec.audio.resample(audio, {sample_rate}, {codec.sample_rate})."
        )
    if isinstance(audio, list | tuple):
        _refuse_traced_list(codec, audio)
        if lengths is not None:
            raise ValueError("lengths are for a padded batch (B, S); the clips of a list have their own.")
        clips = [pcm.to_float(np.asarray(clip)) for clip in audio]
        for clip in clips:
            if clip.ndim != 1:
                raise _analysis_error(f"{clip.shape} in a list")
        return _finite_clips(clips, max(map(len, clips), default=0), "list")
    traced = is_traced(codec, audio, lengths)
    audio = pcm.to_float(audio if traced else np.asarray(audio))
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
        return Clips(batch, batch.shape[1], jnp.broadcast_to(jnp.asarray(lengths), batch.shape[:1]), kind, True)
    return _finite_clips([clip[:n] for clip, n in zip(batch, lengths, strict=True)], batch.shape[1], kind)


def _finite_clips(values, size, kind):
    for index, value in enumerate(values):
        check_finite(value, f" of clip {index}" if kind != "clip" else "")
    return Clips(values, size, None, kind, False)


def latents_clips(codec, latents, lengths=None):
    """Latents (T, D), (B, T, D) or a list of (T, D) as `Clips`, checked."""
    return _frame_clips(codec, latents, lengths, "latents", "(T, D), (B, T, D) or a list of (T, D)", _check_latents)


def codes_clips(codec, codes, lengths=None):
    """Codes (Q, T), (B, Q, T) or a list of (Q, T) as `Clips`, frames first, checked."""
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
            return Clips(batch, batch.shape[1], jnp.full(len(batch), batch.shape[1]), kind, True)
        values = list(batch)
    for value in values:
        if value.ndim != 2:
            raise ValueError(f"{name} have shape {value.shape} in a list, expected {expected}.")
        check(codec, value)
    values = [value.T if name == "codes" else value for value in values]
    return Clips(values, max(map(len, values), default=0), None, kind, False)


def _refuse_traced_list(codec, arrays):
    if is_traced(codec, list(arrays)):
        raise ValueError("inside jit, vmap or grad give a padded batch and its lengths instead of a list.")


def check_finite(audio, where=""):
    """Raises `ValueError` where a sample is NaN or infinite."""
    if not np.isfinite(audio).all():
        count = np.count_nonzero(~np.isfinite(audio))
        raise ValueError(f"audio{where} has {count} NaN or infinite samples: remove or replace them.")


def _check_latents(codec, latents):
    dim = codec.module.latent_dim
    if latents.shape[-1] != dim or not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"latents are {latents.dtype} {latents.shape}, expected float (..., T, {dim}).")


def check_codes(codec, codes):
    """Raises `ValueError` where codes (..., Q', T) cannot be this codec's; their values only if they are concrete."""
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes are {codes.dtype}, expected integers.")
    most = codec.num_codebooks
    least = 1 if codec.knob.nested else most
    if not least <= codes.shape[-2] <= most:
        expected = f"{least} to {most}" if codec.knob.nested else most
        raise ValueError(f"codes {codes.shape} hold {codes.shape[-2]} codebooks, expected {expected}: (..., Q, T).")
    low, high = codec.module.quantizer.code_range
    if not is_traced(codes) and codes.size and not low <= codes.min() <= codes.max() <= high:
        raise ValueError(
            f"codes lie in [{codes.min()}, {codes.max()}], expected [{low}, {high}]: were they made by another model?"
        )


def check_lengths(codec, lengths, frames):
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
