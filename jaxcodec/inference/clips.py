"""Arguments of the functions of `inference.functions` and what comes back: a clip, a padded batch, or a list of clips."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodec import pcm

LOUDEST = 8.0  # that float audio may be: 18 dB beyond full scale, which is clipped; more is no audio in [-1, 1]
# Two rows of a batch of a second and more, without lengths, whose normalized product is greater: channels, most likely.
# Two clips of speech have next to none; stereo that shares so little is not noticed.
ALIKE = 0.5


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
        clips = [pcm.to_float(to_numpy(clip)) for clip in audio]
        for clip in clips:
            if clip.ndim != 1:
                raise _analysis_error(f"{clip.shape} in a list")
        return _finite_clips(clips, max(map(len, clips), default=0), "list")
    traced = is_traced(codec, audio, lengths)
    audio = pcm.to_float(audio if traced else to_numpy(audio))
    if audio.ndim not in (1, 2):
        raise _analysis_error(audio.shape)
    kind = "clip" if audio.ndim == 1 else "batch"
    if kind == "batch" and audio.shape[1] <= 8 and audio.shape[0] > 1000:
        raise ValueError(
            f"audio has shape {audio.shape}: samples by channels? Give mono (S,), e.g. audio.mean(axis=1)."
        )
    batch = audio if kind == "batch" else audio[None]
    if not traced and lengths is None:
        _warn_of_stereo(codec, batch)
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


def soft_clips(codec, codes):
    """Soft codes (Q, T, K), (B, Q, T, K) or a list of (Q, T, K) as `Clips`, frames first, checked."""
    expected = "(Q, T, K), (B, Q, T, K) or a list of (Q, T, K)"
    return _frame_clips(codec, codes, None, "codes", expected, _check_soft, ndim=3)


def are_soft(codes) -> bool:
    """Whether codes are weights of a codebook's entries."""
    first = codes[0] if isinstance(codes, list | tuple) and codes else codes
    return "float" in str(getattr(first, "dtype", "")) and first.ndim > 2


def codes_clips(codec, codes, lengths=None):
    """Codes (Q, T), (B, Q, T) or a list of (Q, T) as `Clips`, frames first, checked."""
    return _frame_clips(codec, codes, lengths, "codes", "(Q, T), (B, Q, T) or a list of (Q, T)", check_codes)


def _frame_clips(codec, arrays, lengths, name, expected, check, ndim=2):
    """Clips of latents or codes of `ndim` axes, frames first; every frame exists."""
    if isinstance(arrays, list | tuple):
        _refuse_traced_list(codec, [*arrays, lengths])
        values, kind = [to_numpy(array) for array in arrays], "list"
    else:
        traced = is_traced(codec, arrays, lengths)
        arrays = arrays if traced else to_numpy(arrays)
        if arrays.ndim not in (ndim, ndim + 1):
            raise ValueError(f"{name} have shape {arrays.shape}, expected {expected}.")
        kind = "clip" if arrays.ndim == ndim else "batch"
        batch = arrays if kind == "batch" else arrays[None]
        if traced:
            check(codec, batch)
            batch = jnp.asarray(batch.swapaxes(1, 2) if name == "codes" else batch)
            return Clips(batch, batch.shape[1], jnp.full(len(batch), batch.shape[1]), kind, True)
        values = list(batch)
    for value in values:
        if value.ndim != ndim:
            raise ValueError(f"{name} have shape {value.shape} in a list, expected {expected}.")
        check(codec, value)
    values = [value.swapaxes(0, 1) if name == "codes" else value for value in values]
    return Clips(values, max(map(len, values), default=0), None, kind, False)


def _refuse_traced_list(codec, arrays):
    if is_traced(codec, list(arrays)):
        raise ValueError("inside jit, vmap or grad give a padded batch and its lengths instead of a list.")


def check_finite(audio, where=""):
    """Raises `ValueError` where a sample is NaN or infinite, or beyond `LOUDEST`."""
    if not np.isfinite(audio).all():
        count = np.count_nonzero(~np.isfinite(audio))
        raise ValueError(f"audio{where} has {count} NaN or infinite samples: remove or replace them.")
    peak = max(audio.max(initial=0.0), -audio.min(initial=0.0))
    if peak > LOUDEST:
        raise ValueError(
            f"audio{where} reaches {peak:g}, float audio lies in [-1, 1]: divide 16-bit samples by 32768, or give them as "
            "int16."
        )


def _warn_of_stereo(codec, batch):
    """Warns of a batch of two whose rows are alike as channels are; see `ALIKE`."""
    if len(batch) != 2 or batch.shape[1] < codec.sample_rate:
        return
    left, right = batch
    product, energies = abs(float(left @ right)), float(left @ left) * float(right @ right)
    if np.isfinite(energies) and product > ALIKE * np.sqrt(energies) > 0:
        warnings.warn(
            f"audio {batch.shape} is taken for a batch of two clips, and its rows are as alike as the channels of one "
            "recording: give audio.mean(axis=0) if they are, and lengths=[...] if they are two clips.",
            stacklevel=4,
        )


def to_numpy(array):
    """An array of whatever library, by DLPack where it is not NumPy's or JAX' own, such as a tensor of PyTorch.

    Raises:
      ValueError: a tensor that cannot be handed over, as it requires a gradient or lies on a device unknown to JAX.
    """
    if isinstance(array, np.ndarray | jax.Array) or not hasattr(array, "__dlpack__"):
        return np.asarray(array)
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError):  # no memory of the CPU, or a type that NumPy has not
        try:
            return np.asarray(jnp.from_dlpack(array))
        except Exception as error:  # of as many kinds as there are libraries
            told = " ".join(str(error).split())[:200]
            raise ValueError(f"the {type(array).__name__} cannot be taken over by DLPack ({told}).") from None


def _check_latents(codec, latents):
    dim = codec.module.latent_dim
    if latents.shape[-1] != dim or not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"latents are {latents.dtype} {latents.shape}, expected float (..., T, {dim}).")


def _check_soft(codec, codes):
    size = codec.module.quantizer.codebook_size
    if size is None:
        raise ValueError(
            f"soft codes weigh the entries of codebooks, this codec's ({codec.config.model.quantizer}) has none."
        )
    if codes.shape[-1] != size or not 1 <= codes.shape[-3] <= codec.num_codebooks:
        raise ValueError(
            f"soft codes are {codes.shape}, expected (..., Q, T, {size}) of 1 to {codec.num_codebooks} codebooks."
        )


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
    if is_traced(codes) or not codes.size:
        return
    codes = np.asarray(codes)  # the reductions of JAX are two programs, which take ten times as long
    if not low <= codes.min() <= codes.max() <= high:
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
