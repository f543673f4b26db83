"""What `prior.PriorModel` computes for one frame after the other, in loops that numba (Lam et al. 2015) compiles.

numpy takes longer to be asked for one frame than to answer. The numbers are those of `exact` and the bytes those of
constriction, so either way the same files are written and read. The compiler may order sums only where every part of them
is exact.

A reader computes what it needs as it goes. A writer, who knows all frames, is given what `prior` and `exact` compute for
all of them at once, for which there are faster single steps here. Weights lie in flat arrays in the order of
`prior.PriorModel.shapes`: a layer takes its own from `at` on and says where the next ones are. numba keeps what it has
compiled until this file changes.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from jaxcodec.bitstream import entropy, exact, symbols
from jaxcodec.quantizers import layout

_FINE, _WRONG, _LEFT_OVER = range(3)  # how a block ends
_WRITING, _PROBLEM, _POSITION, _LOWER, _WIDTH, _POINT = range(6)  # of a range coder
_WORD, _PRECISION, _WHOLE = np.uint64(32), np.uint64(entropy.PRECISION), np.uint64(2**64 - 1)
_ALPHABET = 2 * layout.MAX_CHANGE + 1
_BAND_GROUPS = int(layout.BAND_ORDER.max()) + 1
_PASSES = len(layout.NEIGHBORS)
_MAX_LANES = 8  # blocks that are read side by side
_NEAR = 4  # of what lies beside a coefficient: the envelope, the frame before and its neighbors, the one before that
_OF_BANDS = ("mix", "kernel", "bias", "hidden/kernel", "hidden/bias")
_called = numba.njit(cache=True, nogil=True, error_model="numpy")
_inner = functools.partial(numba.njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_compiled, _in_any_order = _inner(), _inner(fastmath={"reassoc", "contract"})


class Weights(NamedTuple):
    """Those of a prior, float32 in flat arrays."""

    bands: np.ndarray  # mix, kernel and bias of the changes of the envelope, then what is hidden
    trunk: np.ndarray
    envelope: np.ndarray  # its trunk
    passes: np.ndarray


class Tables(NamedTuple):
    """What all priors of so many coefficients share."""

    gelu: np.ndarray
    powers: np.ndarray
    exponentials: np.ndarray
    presence: np.ndarray
    tails: np.ndarray
    geometric: np.ndarray
    stay: np.ndarray
    member: np.ndarray  # (F, N)
    sizes: np.ndarray  # (N,)
    interpolation: np.ndarray  # (N, F)
    band_order: np.ndarray  # (N,)
    passes: np.ndarray  # (_PASSES, 3): the first coefficient, the distance to the next, how many there are
    neighbors: np.ndarray  # (_PASSES, 2): of all passes but the first, which has zeros


def encode(model, codes: np.ndarray, changes: np.ndarray, logits) -> bytes:
    """What `entropy.compressed` gives of codes (Q, T) of a `prior.PriorModel`.

    From the frequencies less one (T, N, K) of changes of the envelope, and logits (T, G, 3) of each pass.
    """
    frames = np.array(codes.T, np.int32, order="C")
    return entropy.of_words(_write(frames, changes, tuple(logits), _known(model).tables))


def decode(model, blocks: Sequence[bytes], sizes: Sequence[int]) -> list:
    """Codes (Q, T) int32 of blocks of T in `sizes` frames, or the `DamagedCodes` that the bytes of one are.

    On each core several blocks go side by side, as its weights are read from memory once for all of them.
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")  # the longest first: those at work are always the first ones
    groups = max(min(len(order), os.cpu_count() or 1), -(-len(order) // _MAX_LANES))
    lanes = [order[number::groups] for number in range(groups)]
    results: list = [None] * len(order)
    for places, found in zip(lanes, exact.each(lambda x: _decode(model, blocks, sizes, x), lanes), strict=True):
        for place, result in zip(places, found, strict=True):
            results[place] = result
    return results


def _decode(model, blocks, sizes, places):
    """What `decode` gives of some blocks, the longest first."""
    words = [entropy.words(blocks[place]) for place in places]
    ends, frames = np.cumsum([len(one) for one in words]), np.array([sizes[place] for place in places], np.int64)
    codes, problems = _read(np.concatenate(words), ends, frames, *_known(model))
    whole = (np.ascontiguousarray(one[:size].T) for one, size in zip(codes, frames, strict=True))
    told = {_WRONG: symbols.WRONG, _LEFT_OVER: entropy.LEFT_OVER}
    return [entropy.DamagedCodes(told[how]) if how else one for one, how in zip(whole, problems.tolist(), strict=True)]


class _Known(NamedTuple):
    width: int
    depth: int
    weights: Weights
    tables: Tables


def kept() -> bool:
    """Whether the reader was compiled before, by this process or another, since this file is as it is."""
    folder, written = _read.stats.cache_path, pathlib.Path(__file__).stat().st_mtime
    found = pathlib.Path(folder).glob("compiled._read-*.nbi") if folder is not None else ()
    return any(index.stat().st_mtime >= written for index in found)


@functools.lru_cache(8)
def _known(model) -> _Known:
    """A model as it is used here."""
    parts: dict[str, list] = {name: [] for name in Weights._fields}
    for name in model.shapes():
        first = name.split("_")[0]
        part = first if first in parts else "bands" if name in _OF_BANDS else "passes"
        parts[part].append(model.weights[name].astype(np.float32).ravel())
    weights = Weights(*(np.concatenate(part) for part in parts.values()))
    return _Known(len(model.weights["trunk_norm/scale"]), model.depth, weights, _tables(model.num_bins))


def _tables(num_bins):
    passes = [(group[0], group[1] - group[0], len(group)) for group in layout.passes(num_bins)]
    return Tables(
        gelu=exact.gelu_table(),
        powers=exact.powers(),
        exponentials=exact.exponentials(),
        presence=exact.presence(),
        tails=exact.tails(),
        geometric=exact.geometric(),
        stay=symbols.stay_row()[0],
        member=exact.members(num_bins)[0],
        sizes=exact.members(num_bins)[1],
        interpolation=exact.interpolation(num_bins),
        band_order=layout.BAND_ORDER,
        passes=np.array(passes, np.int64),
        neighbors=np.array([distances or (0, 0) for distances in layout.NEIGHBORS], np.int64),
    )


# Faster operations of `exact`.


def _everywhere(function, slower, x):
    """An operation in place on numbers that lie side by side in memory, in whatever order; a slower one on others."""
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        return slower(x)
    function(x.reshape(-1, order="A"))
    return x


@_called
def _round_all(x):
    _rounded(x)


@_called
def _gelu_all(x, table):
    _gelu(table, x)


# The range coder of docs/format.md. A writer is told each symbol; a reader does not look at what it is told, and where its
# bytes cannot be, it notes the problem and goes on with zeros.


@_compiled
def _next(coder, words):
    """One word more to read; those beyond the end are zero."""
    position = np.int64(coder[_POSITION])
    word = np.uint64(words[position]) if position < len(words) else np.uint64(0)
    coder[_POINT] = coder[_POINT] << _WORD | word
    coder[_POSITION] += np.uint64(1)


@_compiled
def _emit(coder, words):
    """One word more that is written."""
    words[np.int64(coder[_POSITION])] = coder[_LOWER] >> _WORD
    coder[_POSITION] += np.uint64(1)


@_compiled
def _raise(coder, words, amount):
    """The lower end goes up, and carries to the words that are written."""
    coder[_LOWER] += amount
    if coder[_WRITING] and coder[_LOWER] < amount:
        place = np.int64(coder[_POSITION]) - 1
        words[place] += np.uint32(1)
        while words[place] == 0:
            place -= 1
            words[place] += np.uint32(1)


@_compiled
def _take(coder, words, edge, frequency):
    """The symbol that has this interval of 2^24."""
    scale = coder[_WIDTH] >> _PRECISION
    _raise(coder, words, scale * np.uint64(edge))
    coder[_WIDTH] = scale * np.uint64(frequency)
    if coder[_WIDTH] >> _WORD == np.uint64(0):
        if coder[_WRITING]:
            _emit(coder, words)
        else:
            _next(coder, words)
        coder[_LOWER] <<= _WORD
        coder[_WIDTH] <<= _WORD


@_compiled
def _quantile(coder):
    """Where the point lies, of 2^24."""
    quantile = (coder[_POINT] - coder[_LOWER]) // (coder[_WIDTH] >> _PRECISION)
    if quantile >> _PRECISION:
        coder[_PROBLEM] = np.uint64(1)
        return np.int64(0)
    return np.int64(quantile)


@_compiled
def _symbol(coder, words, row, told):
    """A symbol by its frequencies less one."""
    edge, symbol, last = np.int64(0), np.int64(0), len(row) - 1
    quantile = np.int64(0) if coder[_WRITING] else _quantile(coder)
    frequency = np.int64(row[0]) + 1
    while symbol < (told if coder[_WRITING] else last) and (coder[_WRITING] or quantile >= edge + frequency):
        edge += frequency
        symbol += 1
        frequency = np.int64(row[symbol]) + 1
    _take(coder, words, edge, frequency)
    return symbol


@_compiled
def _plain(coder, words, size, told):
    """One of `size` that are alike; what 2^24 leaves is the last one's."""
    frequency = (1 << entropy.PRECISION) // size
    value = told if coder[_WRITING] else min(_quantile(coder) // frequency, size - 1)
    edge = value * frequency
    _take(coder, words, edge, frequency if value < size - 1 else (1 << entropy.PRECISION) - edge)
    return value


@_compiled
def _number(coder, words, told):
    """A number: its length, then its bits."""
    length = np.int64(0)
    while coder[_WRITING] and told >> length:
        length += 1
    length = _plain(coder, words, np.int64(17), length)
    if length < 2:
        return length
    highest = np.int64(1) << (length - 1)
    return highest + _plain(coder, words, highest, told - highest)


@_compiled
def _signed(coder, words, told):
    """A number of either sign."""
    number = _number(coder, words, 2 * told if told >= 0 else -2 * told - 1)
    return -(number + 1) // 2 if number % 2 else number // 2


@_compiled
def _at_end(coder, words):
    """Whether the words end as an encoder leaves them."""
    near = coder[_POINT] - coder[_LOWER] < np.uint64(2**33 - 1) or coder[_WIDTH] == _WHOLE
    return near and np.int64(coder[_POSITION]) >= len(words)


# The layers of `exact` for a frame of some lanes (L, C).


@_compiled
def _rounded(x):
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = min(max(np.rint(flat[i]), -exact.LIMIT), exact.LIMIT)


@_compiled
def _rounded_sum(x, y, out):
    for lane in range(len(x)):
        for i in range(x.shape[1]):
            out[lane, i] = x[lane, i] + y[lane, i]
    _rounded(out)


@_compiled
def _row(weights, at, i, size):
    return weights[at + i * size : at + (i + 1) * size]


@_compiled
def _used(x, used):
    """The places of what is not zero in some lane, to `used`, and how many there are."""
    count = 0
    for i in range(x.shape[1]):
        for lane in range(len(x)):
            if x[lane, i] != 0:
                used[count] = i
                count += 1
                break
    return count


@_in_any_order
def _product(weights, at, x, y):
    """A product with a matrix, to y, by four of its rows and two lanes at a time; rows multiplied by zero are not read."""
    (lanes, size), used = y.shape, np.empty(x.shape[1], np.int64)
    count = _used(x, used)
    fours, pairs = count - count % 4, lanes - lanes % 2
    for lane in range(lanes):
        for j in range(size):
            y[lane, j] = 0
    for k in range(0, fours, 4):
        p, q = _row(weights, at, used[k], size), _row(weights, at, used[k + 1], size)
        r, s = _row(weights, at, used[k + 2], size), _row(weights, at, used[k + 3], size)
        for lane in range(0, pairs, 2):
            u, v, one, other = x[lane], x[lane + 1], y[lane], y[lane + 1]
            a, b, c, d = u[used[k]], u[used[k + 1]], u[used[k + 2]], u[used[k + 3]]
            e, f, g, h = v[used[k]], v[used[k + 1]], v[used[k + 2]], v[used[k + 3]]
            for j in range(size):
                one[j] += a * p[j] + b * q[j] + c * r[j] + d * s[j]
                other[j] += e * p[j] + f * q[j] + g * r[j] + h * s[j]
        if pairs < lanes:
            u, one = x[pairs], y[pairs]
            a, b, c, d = u[used[k]], u[used[k + 1]], u[used[k + 2]], u[used[k + 3]]
            for j in range(size):
                one[j] += a * p[j] + b * q[j] + c * r[j] + d * s[j]
    for k in range(fours, count):
        p = _row(weights, at, used[k], size)
        for lane in range(lanes):
            a, one = x[lane, used[k]], y[lane]
            for j in range(size):
                one[j] += a * p[j]
    return at + x.shape[1] * size


@_compiled
def _with_bias(weights, at, x, y):
    """A product and its bias, not rounded yet."""
    at = _product(weights, at, x, y)
    bias = weights[at : at + y.shape[1]]
    for lane in range(len(y)):
        for j in range(len(bias)):
            y[lane, j] += exact.UNIT * bias[j]
    return at + len(bias)


@_compiled
def _dense(weights, at, x, y):
    at = _with_bias(weights, at, x, y)
    _rounded(y)
    return at


@_compiled
def _gelu(table, x):
    flat, last = x.reshape(-1), len(table) - 1
    for i in range(len(flat)):
        flat[i] = table[np.int64(min(max(np.rint(flat[i]) + (last - exact.LIMIT), 0.0), np.float64(last)))]


@_compiled
def _dense_gelu(table, weights, at, x, y):
    at = _with_bias(weights, at, x, y)
    _gelu(table, y)
    return at


@_in_any_order
def _sums(x):
    """The sum, and that of squares."""
    total, squares = 0.0, 0.0
    for i in range(len(x)):
        total += x[i]
        squares += x[i] * x[i]
    return total, squares


@_compiled
def _norm(weights, at, x, y):
    size = x.shape[1]
    scale, bias = weights[at : at + size], weights[at + size : at + 2 * size]
    for lane in range(len(x)):
        total, squares = _sums(x[lane])
        spread = size * squares - total * total
        root = np.sqrt(spread + size * size * 1e-6 * exact.UNIT * exact.UNIT)
        given, out = x[lane], y[lane]
        for i in range(size):
            out[i] = (size * given[i] - total) / root * (exact.UNIT * scale[i]) + exact.UNIT * bias[i]
    _rounded(y)
    return at + 2 * size


@_compiled
def _convolution(weights, at, h, memory, y):
    """A depthwise convolution of a frame and those before it, which `memory` (L, KERNEL_SIZE - 1, C) has."""
    past, width = memory.shape[1:]
    for lane in range(len(h)):
        now, before, out = h[lane], memory[lane], y[lane]
        for c in range(width):
            out[c] = now[c] * weights[at + past * width + c]
            for k in range(past):
                out[c] += before[k, c] * weights[at + k * width + c]
                before[k, c] = before[k + 1, c] if k + 1 < past else now[c]
    return at + (past + 1) * width


@_compiled
def _trunk(table, weights, x, memory, out):
    """A trunk whose convolutions remember their last inputs, (D, L, KERNEL_SIZE - 1, C)."""
    lanes, width = out.shape
    h, y, wide = np.empty_like(out), np.empty_like(out), np.empty((lanes, layout.EXPANSION * width))
    norm = _dense(weights, np.int64(0), x, h)
    at = norm + 2 * width
    for block in range(len(memory)):
        at = _convolution(weights, at, h, memory[block], y)
        scale = weights[at : at + width]
        _rounded(y)
        at = _norm(weights, at + width, y, y)
        at = _dense_gelu(table, weights, at, y, wide)
        at = _dense(weights, at, wide, y)
        for lane in range(lanes):
            for c in range(width):
                y[lane, c] *= scale[c]
        _rounded_sum(h, y, h)
    _norm(weights, norm, h, out)


@_compiled
def _of_level(level):
    return min(max(np.rint(level * exact.UNIT * layout.LEVEL_DB / 20), -exact.LIMIT), exact.LIMIT)


@_compiled
def _compressed(magnitude):
    return min(np.rint((np.sqrt(np.sqrt(1 + magnitude)) - 1) * (4 * exact.UNIT)), exact.LIMIT)


@_compiled
def _beside(x, distance, out):
    size = len(x)
    for i in range(size):
        below = x[i - distance] if i >= distance else 0.0
        above = x[i + distance] if i + distance < size else 0.0
        out[i] = np.rint((below + above) / 2)


@_compiled
def _grid_index(logit, step, size):
    limit = size // 2
    return np.int64(min(max(np.rint(logit / (exact.UNIT * step)), -limit), limit)) + limit


@_compiled
def _for_each(weights, at, x, y):
    """A dense layer of few channels on many, (C, G) to (C', G), not rounded yet."""
    inputs, outputs = len(x), len(y)
    for j in range(outputs):
        row, bias = y[j], exact.UNIT * weights[at + inputs * outputs + j]
        for i in range(len(row)):
            row[i] = bias
        for k in range(inputs):
            weight, values = weights[at + k * outputs + j], x[k]
            for i in range(len(row)):
                row[i] += weight * values[i]
    return at + (inputs + 1) * outputs


# What a reader knows of a frame.


@_compiled
def _hidden(weights, of_bands, magnitudes, levels, memory, tables, hidden):
    """What the bands know of the frames before, (L, N * BAND_WIDTH)."""
    (bins, bands), lanes = tables.member.shape, len(hidden)
    x, trunk = np.empty((lanes, 2 * bands)), np.empty((lanes, memory.shape[3]))
    for lane in range(lanes):
        for band in range(bands):
            x[lane, band], x[lane, bands + band] = _of_level(levels[lane, band] - layout.START_LEVEL), 0
        for i in range(bins):
            heard = _compressed(magnitudes[lane, i])
            for band in range(bands):
                x[lane, bands + band] += heard * tables.member[i, band]
        for band in range(bands):
            x[lane, bands + band] = np.rint(x[lane, bands + band] / tables.sizes[band])
    _trunk(tables.gelu, weights, x, memory, trunk)
    _dense(of_bands, bands * (bands * layout.BAND_WIDTH + (layout.BAND_WIDTH + 1) * _ALPHABET), trunk, hidden)


@_compiled
def _change_frequencies(weights, band, group, hidden, seen, tables, row):
    """Frequencies less one (K,) of the change of a band, which sees those of the groups before its own."""
    bands, width = len(seen), layout.BAND_WIDTH
    kernel = bands * bands * width  # the mix comes before it
    bias = kernel + bands * width * _ALPHABET
    h, logits = np.empty((1, width)), np.empty((1, _ALPHABET))
    for i in range(width):
        h[0, i] = 0
        for other in range(bands):
            if tables.band_order[other] < group:
                h[0, i] += seen[other] * weights[(other * bands + band) * width + i]
        h[0, i] = hidden[band * width + i] + np.rint(h[0, i])
    _rounded(h)
    _gelu(tables.gelu, h)
    _product(weights, kernel + band * width * _ALPHABET, h, logits)
    for i in range(_ALPHABET):
        logits[0, i] += exact.UNIT * weights[bias + band * _ALPHABET + i]
    _rounded(logits)
    most, total, last = logits[0, 0], np.int64(0), len(tables.exponentials) - 1
    for i in range(_ALPHABET):
        most = max(most, logits[0, i])
    for i in range(_ALPHABET):
        row[i] = tables.exponentials[min(np.int64(most - logits[0, i]), last)]
        total += np.int64(row[i])
    below, edge = np.int64(0), np.int64(0)
    for i in range(_ALPHABET):
        below += np.int64(row[i])
        above = below * ((1 << entropy.PRECISION) - _ALPHABET) // total
        row[i], edge = above - edge, above


@_compiled
def _steps(head, levels, tables, steps, expected):
    """The steps of a frame, and its envelope beside them."""
    bands, bins = tables.interpolation.shape
    total, share = 0.0, head[1] / (2 * layout.SHAPINGS * bins)
    for i in range(bins):
        expected[i] = 0
        for band in range(bands):
            expected[i] += levels[band] * tables.interpolation[band, i]
        total += expected[i]
    for i in range(bins):
        shaped = layout.TILT * (bins * expected[i] - total) + layout.LEVEL * total
        steps[i] = np.rint(shaped * share) + head[0]
        expected[i] = np.rint((expected[i] - 2 * steps[i]) * 0.8)


@_compiled
def _rescaled(magnitudes, then, now, powers, out):
    """The magnitudes of an earlier frame in steps of this one."""
    limit = 8.0 * layout.MAX_STEP_DB
    for i in range(len(out)):
        difference = min(max(then[i] - now[i], -limit), limit)
        out[i] = _compressed(magnitudes[i] * powers[np.int64(difference + limit)])


@_compiled
def _seen(near, levels, before, memory, weights, table, out):
    """What the trunk makes of what is near, and of the levels of two frames."""
    bins, bands = near.shape[2], levels.shape[1]
    x = np.empty((len(out), 3 * bins + 2 * bands))
    for lane in range(len(out)):
        for i in range(bins):
            x[lane, i], x[lane, bins + i], x[lane, 2 * bins + i] = near[lane, 1, i], near[lane, 2, i], near[lane, 0, i]
        for band in range(bands):
            x[lane, 3 * bins + band] = _of_level(levels[lane, band] - layout.START_LEVEL)
            x[lane, 3 * bins + bands + band] = _of_level(before[lane, band] - layout.START_LEVEL)
    _trunk(table, weights, x, memory, out)


@_compiled
def _logits(number, weights, at, trunk, near, magnitudes, tables, logits):
    """Logits (L, G, 3) of the coefficients of a pass, and where the next one's weights are."""
    lanes, width = trunk.shape
    first, distance, count = tables.passes[number]
    h, y, wide = np.empty_like(trunk), np.zeros_like(trunk), np.empty((lanes, 2 * width))
    far, inputs = np.empty((lanes, 3 * count)), _NEAR
    if number:
        seen = np.empty((lanes, magnitudes.shape[1]))
        for lane in range(lanes):
            for i in range(seen.shape[1]):
                seen[lane, i] = _compressed(magnitudes[lane, i])
            for k in range(tables.neighbors.shape[1]):
                _beside(seen[lane], tables.neighbors[number, k], near[lane, _NEAR + k])
        inputs += tables.neighbors.shape[1]
        at = _dense(weights, at, seen, y)
    _rounded_sum(trunk, y, h)
    at = _dense_gelu(tables.gelu, weights, at, h, wide)
    at = _dense(weights, at, wide, y)
    _rounded_sum(h, y, h)
    at = _norm(weights, at, h, y)
    at = _dense(weights, at, y, far)
    x, hidden, beside = np.empty((inputs, count)), np.empty((layout.NEAR_WIDTH, count)), np.empty((3, count))
    end = at
    for lane in range(lanes):
        for k in range(inputs):
            for i in range(count):
                x[k, i] = near[lane, k, first + i * distance]
        end = _for_each(weights, at, x, hidden)
        _gelu(tables.gelu, hidden)
        end = _for_each(weights, end, hidden, beside)
        _rounded(beside)
        for i in range(count):
            for c in range(3):
                logits[lane, i, c] = beside[c, i] + far[lane, 3 * i + c]
    return end


# What is coded of a frame. A writer finds in the arrays what a reader puts there.


@_compiled
def _code_head(coder, words, before, head, stay, first):
    same = head[0] == before[0] and head[1] == before[1]
    if first or _symbol(coder, words, stay, np.int64(0 if same else 1)):
        for i in range(2):
            head[i] = _signed(coder, words, np.int64(head[i]))
    else:
        for i in range(2):
            head[i] = before[i]


@_compiled
def _code_change(coder, words, row, change):
    """The change of a band, or that it lies beyond the alphabet."""
    told = min(max(change, -layout.MAX_CHANGE), layout.MAX_CHANGE) + layout.MAX_CHANGE
    return _symbol(coder, words, row, told) - layout.MAX_CHANGE


@_compiled
def _code_beyond_changes(coder, words, group, changes, told, tables):
    """How far the changes of a group of bands go beyond the alphabet, of those at its ends."""
    for band in range(len(changes)):
        if tables.band_order[band] == group and abs(changes[band]) == layout.MAX_CHANGE:
            more = _number(coder, words, abs(told[band]) - layout.MAX_CHANGE)
            changes[band] += more if changes[band] > 0 else -more


@_compiled
def _frequencies(tail, present, row):
    """Frequencies less one of a magnitude, from the shares that all but zero have of what is present."""
    more = row[1:]
    for k in range(len(tail)):
        more[k] = np.floor(tail[k] * present)
    total, _ = _sums(more)
    row[0] = exact.TOTAL - (exact.ESCAPE + 1) - total


@_compiled
def _code_magnitudes(coder, words, logits, number, magnitudes, tables):
    first, distance, count = tables.passes[number]
    row, tails, escaped = np.empty(exact.ESCAPE + 1), np.empty(count, np.int64), False
    for i in range(count):
        present = tables.presence[_grid_index(logits[i, 0], exact.LOGIT_STEP, len(tables.presence))]
        two = _grid_index(logits[i, 1], exact.TAIL_STEP, len(tables.tails))
        tails[i] = _grid_index(logits[i, 2], exact.TAIL_STEP, len(tables.tails))
        _frequencies(tables.tails[two, tails[i]], present, row)
        place = first + i * distance
        found = _symbol(coder, words, row, min(np.int64(magnitudes[place]), exact.ESCAPE))
        escaped |= found == exact.ESCAPE
        if not coder[_WRITING]:
            magnitudes[place] = found
    if escaped:
        _code_beyond(coder, words, tails, first, distance, magnitudes, tables.geometric)


@_compiled
def _code_beyond(coder, words, tails, first, distance, magnitudes, geometric):
    """What is told of magnitudes beyond the alphabet: escapes of all, the next of those that go on, then the rest."""
    last, told = np.empty(len(tails), np.int64), np.zeros(len(tails), np.int64)
    for i in range(len(tails)):
        told[i] = last[i] = min(np.int64(magnitudes[first + i * distance]), np.int64(exact.ESCAPE))
    for _ in range(exact.MAX_ESCAPES):
        for i in range(len(tails)):
            if last[i] == exact.ESCAPE:
                left = np.int64(magnitudes[first + i * distance]) - told[i]
                last[i] = _symbol(coder, words, geometric[tails[i]], min(left, exact.ESCAPE))
                told[i] += last[i]
    for i in range(len(tails)):
        place = first + i * distance
        if last[i] == exact.ESCAPE:
            told[i] += _number(coder, words, np.int64(magnitudes[place]) - told[i])
        magnitudes[place] = told[i] if told[i] <= layout.MAX_CODE else layout.MAX_CODE + 1


@_compiled
def _code_signs(coder, words, magnitudes, coefficients):
    for i in range(len(coefficients)):
        magnitude = np.int64(magnitudes[i])
        told = np.int64(coefficients[i] < 0)
        if magnitude and _plain(coder, words, np.int64(2), told):
            coefficients[i] = -magnitude
        else:
            coefficients[i] = min(magnitude, layout.MAX_CODE)


@_compiled
def _room(words, needed):
    """The same words with zeros after them where they are fewer than needed."""
    if needed <= len(words):
        return words
    longer = np.zeros(2 * needed, np.uint32)
    for i in range(len(words)):
        longer[i] = words[i]
    return longer


@_compiled
def _coder(writing):
    coder = np.zeros(6, np.uint64)
    coder[_WRITING], coder[_WIDTH] = np.uint64(writing), _WHOLE
    return coder


@_called
def _read(words, ends, sizes, width, depth, weights, tables):
    """Codes (L, T, Q) of blocks side by side, of which the longest are first, and how each ends."""
    (bins, bands), lanes = tables.member.shape, len(sizes)
    codes, problems = np.zeros((lanes, sizes[0], bins + layout.EXTRA), np.int32), np.zeros(lanes, np.int64)
    coders = np.zeros((lanes, 6), np.uint64)
    envelope_memory = np.zeros((layout.ENVELOPE_DEPTH, lanes, layout.KERNEL_SIZE - 1, width // 2))
    memory = np.zeros((depth, lanes, layout.KERNEL_SIZE - 1, width))
    heads, levels, before = np.zeros((lanes, 2)), np.empty((lanes, bands)), np.empty((lanes, bands))
    # Of this frame, of the last, of the one before.
    steps, magnitudes = np.zeros((3, lanes, bins)), np.zeros((3, lanes, bins))
    near, row = np.empty((lanes, _NEAR + tables.neighbors.shape[1], bins)), np.empty(_ALPHABET)
    changes, seen = np.zeros((lanes, bands), np.int64), np.empty(bands)
    for lane in range(lanes):
        coders[lane] = _coder(False)
        _next(coders[lane], _of_lane(words, ends, lane))
        _next(coders[lane], _of_lane(words, ends, lane))
        for band in range(bands):
            levels[lane, band] = layout.START_LEVEL
    for t in range(sizes[0]):
        while sizes[lanes - 1] <= t:
            lanes -= 1
        hidden, trunk = np.empty((lanes, bands * layout.BAND_WIDTH)), np.empty((lanes, width))
        _hidden(weights.envelope, weights.bands, magnitudes[1], levels, envelope_memory, tables, hidden)
        for lane in range(lanes):
            coder, some = coders[lane], _of_lane(words, ends, lane)
            _code_head(coder, some, heads[lane], heads[lane], tables.stay, t == 0)
            for group in range(_BAND_GROUPS):
                for band in range(bands):
                    if tables.band_order[band] == group:
                        _change_frequencies(weights.bands, band, group, hidden[lane], seen, tables, row)
                        changes[lane, band] = _code_change(coder, some, row, np.int64(0))
                _code_beyond_changes(coder, some, group, changes[lane], changes[lane], tables)
                for band in range(bands):
                    seen[band] = _of_level(np.float64(changes[lane, band]))
            for band in range(bands):
                before[lane, band] = levels[lane, band]
                level = levels[lane, band] + changes[lane, band]
                levels[lane, band] = min(max(level, -layout.MAX_CODE - 1.0), np.float64(layout.MAX_CODE))
            _steps(heads[lane], levels[lane], tables, steps[0, lane], near[lane, 0])
            for age in range(1, 3):
                _rescaled(magnitudes[age, lane], steps[age, lane], steps[0, lane], tables.powers, near[lane, age])
            _beside(near[lane, 1], np.int64(1), near[lane, 3])
            for i in range(bins):
                magnitudes[0, lane, i] = 0
        _seen(near, levels, before, memory, weights.trunk, tables.gelu, trunk)
        at = np.int64(0)
        for number in range(_PASSES):
            logits = np.empty((lanes, tables.passes[number, 2], 3))
            at = _logits(number, weights.passes, at, trunk, near, magnitudes[0], tables, logits)
            for lane in range(lanes):
                some = _of_lane(words, ends, lane)
                _code_magnitudes(coders[lane], some, logits[lane], number, magnitudes[0, lane], tables)
        for lane in range(lanes):
            code = codes[lane, t]
            _code_signs(coders[lane], _of_lane(words, ends, lane), magnitudes[0, lane], code[layout.EXTRA :])
            code[0], code[1] = heads[lane, 0], heads[lane, 1]
            for band in range(bands):
                code[2 + band] = levels[lane, band]
            for i in range(bins):
                for age in range(2, 0, -1):
                    steps[age, lane, i], magnitudes[age, lane, i] = (
                        steps[age - 1, lane, i],
                        magnitudes[age - 1, lane, i],
                    )
    for lane in range(len(sizes)):
        if coders[lane, _PROBLEM]:
            problems[lane] = _WRONG
        elif not _at_end(coders[lane], _of_lane(words, ends, lane)):
            problems[lane] = _LEFT_OVER
    return codes, problems


@_compiled
def _of_lane(words, ends, lane):
    return words[(ends[lane - 1] if lane else 0) : ends[lane]]


@_called
def _write(codes, change_rows, logits, tables):
    """The words of codes (T, Q)."""
    (num_frames, bands, _), bins = change_rows.shape, codes.shape[1] - layout.EXTRA
    coder, words = _coder(True), np.zeros(0, np.uint32)
    head, before, levels = np.zeros(2), np.zeros(2), np.empty(bands, np.int64)
    changes, told, magnitudes = np.zeros(bands, np.int64), np.zeros(bands, np.int64), np.empty(bins)
    for band in range(bands):
        levels[band] = layout.START_LEVEL
    for t in range(num_frames):
        words = _room(words, np.int64(coder[_POSITION]) + 8 * (bins + layout.EXTRA))
        for i in range(2):
            before[i], head[i] = head[i], codes[t, i]
        _code_head(coder, words, before, head, tables.stay, t == 0)
        for band in range(bands):
            told[band], levels[band] = codes[t, 2 + band] - levels[band], codes[t, 2 + band]
        for group in range(_BAND_GROUPS):
            for band in range(bands):
                if tables.band_order[band] == group:
                    changes[band] = _code_change(coder, words, change_rows[t, band], told[band])
            _code_beyond_changes(coder, words, group, changes, told, tables)
        for i in range(bins):
            magnitudes[i] = abs(np.int64(codes[t, layout.EXTRA + i]))
        for number in range(_PASSES):
            _code_magnitudes(coder, words, logits[number][t], number, magnitudes, tables)
        _code_signs(coder, words, magnitudes, codes[t, layout.EXTRA :])
    if num_frames:
        _raise(coder, words, np.uint64(2**32 - 1))
        _emit(coder, words)
    return words[: np.int64(coder[_POSITION])]


OPERATIONS = {
    "rounded": functools.partial(_everywhere, _round_all, exact.OPERATIONS["rounded"]),
    "gelu": functools.partial(_everywhere, lambda x: _gelu_all(x, exact.gelu_table()), exact.OPERATIONS["gelu"]),
}
