"""Long sequences in overlapping windows of a few fixed sizes, each computed exactly.

An operation turns a sequence of elements into frames, and a frame depends on a bounded number of frames around it. So the
sequence is cut into windows that overlap by that context, and of each only the frames in the middle are kept. Memory is
bounded, few shapes are compiled, and the results do not depend on how a sequence came: alone, in a batch, in pieces.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec import programs

# XLA's CPU backend adds up a product of matrices in an order that depends on the number of rows: the same from 64 to some
# 4000, another below and above. A code near a tie would flip, so every window (MIN) and group of windows (MAX) is inside.
MIN_FRAMES, WINDOW_FRAMES, MAX_FRAMES = 64, 1024, 2048


class Operation(NamedTuple):
    """A pure function on windows, and what must be known to cut them."""

    step: Callable  # context, window (G, F * unit, ...), starts (G,), stops (G,) -> (G, F, ...)
    unit: int  # elements a frame
    context: tuple[int, int]  # frames before and after that a frame's result depends on
    num_frames: Callable  # elements of a sequence -> frames of its result


def run_batch(op: Operation, context, values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Results (B, T, ...) of a padded batch (B, L, ...) with lengths (B,) in elements; both may be traced."""
    size = values.shape[1]
    num_frames = op.num_frames(size)
    before, after = op.context
    frames = _window_frames(op, num_frames)
    body = frames - before - after
    num_windows = max(1, -(-num_frames // body))
    padding = (before * op.unit, (num_windows * body + after) * op.unit - size)
    padded = jnp.pad(values, [(0, 0), padding] + [(0, 0)] * (values.ndim - 2))
    firsts = np.arange(num_windows) * body  # the frame each window's results begin with
    windows = jnp.stack([padded[:, i * op.unit : (i + frames) * op.unit] for i in firsts], 1)
    offsets = (before - firsts) * op.unit  # where the clip begins, in the window's elements
    starts = jnp.broadcast_to(jnp.maximum(offsets, 0)[None], windows.shape[:2])
    stops = jnp.where(lengths[:, None] > 0, lengths[:, None] + offsets[None], 0)
    flat = [x.reshape(-1, *x.shape[2:]) for x in (windows, starts, stops)]
    group = _group_size(frames, len(flat[0]))
    missing = -len(flat[0]) % group
    flat = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, group, *x.shape[1:]) for x in flat]
    results = lax.map(lambda arguments: op.step(context, *arguments)[:, before : before + body], tuple(flat))
    results = results.reshape(-1, body, *results.shape[3:])[: windows.shape[0] * num_windows]
    return results.reshape(windows.shape[0], -1, *results.shape[2:])[:, :num_frames]


def run_clips(op: Operation, context, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Results (T, ...) of each of some concrete clips (L, ...), computed together, `MAX_FRAMES` frames at a time."""
    shapes = sorted({clip.shape[1:] for clip in clips})
    if len(shapes) > 1:  # codes of different numbers of codebooks
        results = {shape: iter(run_clips(op, context, [c for c in clips if c.shape[1:] == shape])) for shape in shapes}
        return [next(results[clip.shape[1:]]) for clip in clips]
    counts = [op.num_frames(len(clip)) for clip in clips]
    frames = _window_frames(op, max(counts, default=0))
    body = frames - sum(op.context)
    num_windows = sum(-(-count // body) for count in counts)
    group = _group_size(frames, _power_of_two(num_windows))
    cuts = ((index, window) for index, clip in enumerate(clips) for window in _cut(op, [clip], frames))
    parts: list[list[np.ndarray]] = [[] for _ in clips]
    while batch := list(itertools.islice(cuts, group)):
        for (index, _), result in zip(batch, _apply(op, context, [w for _, w in batch], group), strict=True):
            parts[index].append(result)
    if not all(counts):
        empty = _empty_result(op, context, clips[0], frames)
        parts = [part or [empty] for part in parts]
    return [np.concatenate(part) for part in parts]


def run_pieces(op: Operation, context, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Results (n, ...) of one clip, piece by piece, from its consecutive pieces (L, ...): memory does not grow."""
    frames = _window_frames(op, WINDOW_FRAMES)
    cuts, group = _cut(op, pieces, frames), _group_size(frames, MAX_FRAMES)
    while batch := list(itertools.islice(cuts, group)):
        yield np.concatenate(_apply(op, context, batch, group))


class _Window(NamedTuple):
    """A part of a clip with its context: the clip's elements are those from start to stop."""

    values: np.ndarray  # (F * unit, ...)
    start: int
    stop: int
    wanted: int  # frames of results to keep, from op.context[0] on


def _cut(op, pieces, frames):
    """The windows of one clip that comes in consecutive pieces (L, ...)."""
    before, after = op.context
    body, size = frames - before - after, frames * op.unit
    first, length = 0, 0  # first: the frame the next window's results begin with
    buffer = np.zeros(0)
    for piece in pieces:
        buffer = np.concatenate([buffer, piece] if length else [_zeros(before * op.unit, piece), piece])
        length += len(piece)
        while len(buffer) > size:
            yield _Window(buffer[:size], max(0, (before - first) * op.unit), size, body)
            buffer, first = buffer[body * op.unit :], first + body
    num_frames = op.num_frames(length)
    while first < num_frames:
        offset = (before - first) * op.unit
        window = np.concatenate([buffer[:size], _zeros(max(0, size - len(buffer)), buffer)])
        yield _Window(window, max(0, offset), min(size, length + offset), min(body, num_frames - first))
        buffer, first = buffer[body * op.unit :], first + body


def _apply(op, context, windows, group):
    """The wanted results of up to `group` windows, computed at once."""
    values = np.zeros((group, *windows[0].values.shape), windows[0].values.dtype)
    spans = np.zeros((2, group), np.int32)
    for i, window in enumerate(windows):
        values[i], spans[:, i] = window.values, (window.start, window.stop)
    results = np.asarray(programs.call(op.step, context, values, *spans))
    before = op.context[0]
    return [result[before : before + window.wanted] for result, window in zip(results, windows)]  # noqa: B905


def _empty_result(op, context, value, frames):
    shape = jax.ShapeDtypeStruct((1, frames * op.unit, *value.shape[1:]), value.dtype)
    span = jax.ShapeDtypeStruct((1,), jnp.int32)
    result = jax.eval_shape(op.step, context, shape, span, span)
    return np.zeros((0, *result.shape[2:]), result.dtype)


def _window_frames(op, num_frames):
    """Frames of a window, context included: of few sizes, so that few shapes are compiled and few frames are idle."""
    context = sum(op.context)
    most = max(WINDOW_FRAMES, _power_of_two(4 * context))
    wanted = max(MIN_FRAMES, num_frames + context)
    step = max(MIN_FRAMES, _power_of_two(wanted) // 16)
    return min(most, -(-wanted // step) * step)


def _group_size(frames, num_windows):
    """Windows computed at once: never more frames than MAX_FRAMES, but for a single window that has more."""
    return max(1, min(num_windows, MAX_FRAMES // frames))


def _power_of_two(least):
    return 1 << max(0, least - 1).bit_length()


def _zeros(length, like):
    return np.zeros((length, *like.shape[1:]), like.dtype)
