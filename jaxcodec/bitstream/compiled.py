"""What `prior.PriorModel` computes to write and to read blocks, in loops that numba (Lam et al. 2015) compiles.

Frames are coded one after the other, and numpy takes longer to be asked for one than to answer. The numbers are those of
`exact` and the bytes those of constriction, so either way the same files are written and read. One walk serves both
directions: a writer is told the codes, a reader zeros, at which it does not look.

Large matrices are `exact.whole` numbers, whose products are sums of integers. Weights lie in flat arrays in the order of
`prior.PriorModel.shapes`: a layer takes its own from `at` on and says where the next ones are. numba keeps what it has
compiled until this file changes.
"""

import functools
import pathlib
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from jaxcodec.bitstream import entropy, exact, symbols
from jaxcodec.quantizers import layout

_FINE, _WRONG, _LEFT_OVER = range(3)  # how a block ends
_WRITING, _PROBLEM, _POSITION, _LOWER, _WIDTH, _POINT = range(6)  # of a range coder
_WORD, _PRECISION, _WHOLE = np.uint64(32), np.uint64(entropy.PRECISION), np.uint64(2**64 - 1)
_ALPHABET = 2 * layout.MAX_CHANGE + 1
_BAND_GROUPS = int(layout.BAND_ORDER.max()) + 1
_PASSES = len(layout.NEIGHBORS)
_ROWS, _COLUMNS = 8, 16  # of the blocks of a large matrix
_LIMIT16 = 2**15 - 1
_INT8, _INT16, _INT32, _ADDRESS = (ir.IntType(size) for size in (8, 16, 32, 64))
# By what a processor has: how many pairs of products an instruction makes, and its name.
_PAIRWISE = {"avx512bw": (16, "llvm.x86.avx512.pmaddw.d.512"), "avx2": (8, "llvm.x86.avx2.pmadd.wd")}
_NEAR = 4  # of what lies beside a coefficient: the envelope, the frame before and its neighbors, the one before that
_OF_BANDS = ("mix", "kernel", "bias", "hidden/kernel", "hidden/bias")
_called = numba.njit(cache=True, nogil=True, error_model="numpy")
_inner = functools.partial(numba.njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_compiled, _in_any_order = _inner(), _inner(fastmath={"reassoc", "contract"})


class Weights(NamedTuple):
    """Those of a prior, float32 in flat arrays; bytes of large matrices lie there as they are."""

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


def suits(model) -> bool:
    """Whether the large matrices of a `prior.PriorModel` are whole numbers, and sums of their products as well."""
    return _packed(model) is not None


def encode(model, codes: np.ndarray) -> bytes:
    """What `entropy.compressed` gives of codes (Q, T) of a model that this suits."""
    words, _ = _walk(np.zeros(0, np.uint32), np.array(codes.T, np.int32, order="C"), True, *_known(model))
    return entropy.of_words(words)


def decode(model, data: bytes, num_frames: int):
    """Codes (Q, num_frames) int32 of what `encode` wrote, or the `DamagedCodes` that the bytes are."""
    codes = np.zeros((num_frames, model.num_bins + layout.EXTRA), np.int32)
    _, end = _walk(entropy.words(data), codes, False, *_known(model))
    if end != _FINE:
        return entropy.DamagedCodes(symbols.WRONG if end == _WRONG else entropy.LEFT_OVER)
    return np.ascontiguousarray(codes.T)


def kept() -> bool:
    """Whether the walk was compiled before, by this process or another, since this file is as it is."""
    folder, written = _walk.stats.cache_path, pathlib.Path(__file__).stat().st_mtime
    found = pathlib.Path(folder).glob("compiled._walk-*.nbi") if folder is not None else ()
    return any(index.stat().st_mtime >= written for index in found)


class _Known(NamedTuple):
    width: int
    depth: int
    weights: Weights
    tables: Tables


def _known(model) -> _Known:
    known = _packed(model)
    assert known is not None, "this does not suit: numpy codes it"
    return known


@functools.lru_cache(8)
def _packed(model) -> _Known | None:
    """A model as it is used here, None where it cannot be."""
    parts: dict[str, list] = {name: [] for name in Weights._fields}
    for name in model.shapes():
        first, array = name.split("_")[0], model.weights[name].astype(np.float32)
        part = first if first in parts else "bands" if name in _OF_BANDS else "passes"
        if exact.is_large(name) and (array := _blocks(array)) is None:
            return None
        parts[part].append(array.ravel())
    weights = Weights(*(np.concatenate(part) for part in parts.values()))
    return _Known(len(model.weights["trunk_norm/scale"]), model.depth, weights, _tables(model.num_bins))


def _blocks(matrix):
    """A matrix as blocks of whole numbers, then the units of its columns; None where they are not or sums are too large."""
    whole, units = exact.whole(matrix)
    if (whole * units != matrix).any() or (_LIMIT16 + 1) * np.abs(whole, dtype=np.int64).sum(axis=0).max() >= 2**31:
        return None
    padded = np.pad(whole, [(0, -size % part) for size, part in zip(whole.shape, (_ROWS, _COLUMNS), strict=True)])
    pairs = padded.reshape(-1, _ROWS // 2, 2, padded.shape[1] // _COLUMNS, _COLUMNS)
    blocks = pairs.transpose(0, 3, 1, 4, 2)  # in each the pairs of its columns, for two rows after the other
    return np.concatenate([np.ascontiguousarray(blocks).ravel().view(np.float32), units])


@functools.cache
def _gelu_table():
    """GELU where it is neither zero nor the identity, from below zero to above it."""
    return exact.gelu_table()[: 2 * exact.GELU_RANGE].astype(np.float32)


def _tables(num_bins):
    passes = [(group[0], group[1] - group[0], len(group)) for group in layout.passes(num_bins)]
    return Tables(
        gelu=_gelu_table(),
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


# The layers of `exact` for one frame.


@_compiled
def _rounded(x):
    for i in range(len(x)):
        x[i] = min(max(np.rint(x[i]), -exact.LIMIT), exact.LIMIT)


@_compiled
def _rounded_sum(x, y, out):
    for i in range(len(x)):
        out[i] = x[i] + y[i]
    _rounded(out)


@_compiled
def _row(weights, at, i, size):
    return weights[at + i * size : at + (i + 1) * size]


@intrinsic
def _add_block(typing_context, sums, block, x):
    """Adds to `_COLUMNS` int32 sums what a block of a matrix makes of `_ROWS` int16 numbers; all three are addresses.

    Two rows at a time: processors have an instruction that multiplies pairs of 16 bits and adds both products.
    """

    def generate(context, builder, signature, arguments):
        sums, block, x = arguments
        features = context.codegen().magic_tuple()[2].split(",")
        size, name = next((how for feature, how in _PAIRWISE.items() if f"+{feature}" in features), (_COLUMNS, ""))
        one, pairs = ir.VectorType(_INT32, size), ir.VectorType(_INT16, 2 * size)

        def pointer(base, offset, kind):
            return builder.inttoptr(builder.add(base, ir.Constant(_ADDRESS, offset)), kind.as_pointer())

        def parts(vector, first):
            places = ir.Constant(ir.VectorType(_INT32, size), list(range(first, 2 * size, 2)))
            return builder.sext(builder.shuffle_vector(vector, vector, places), one)

        def repeated(number):
            vector = builder.insert_element(ir.Constant(one, ir.Undefined), number, ir.Constant(_INT32, 0))
            return builder.shuffle_vector(vector, vector, ir.Constant(one, size * [0]))

        for column in range(0, _COLUMNS, size):
            place = pointer(sums, 4 * column, one)
            total = builder.load(place, align=4)
            for row in range(0, _ROWS, 2):
                bytes_of = pointer(block, row * _COLUMNS + 2 * column, ir.VectorType(_INT8, 2 * size))
                weights = builder.sext(builder.load(bytes_of, align=1), pairs)
                pair = builder.bitcast(repeated(builder.load(pointer(x, 2 * row, _INT32), align=2)), pairs)
                if name:
                    function = cgutils.get_or_insert_function(
                        builder.module, ir.FunctionType(one, [pairs, pairs]), name
                    )
                    total = builder.add(total, builder.call(function, [weights, pair]))
                else:
                    for first in range(2):
                        total = builder.add(total, builder.mul(parts(weights, first), parts(pair, first)))
            builder.store(total, place, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@_compiled
def _product(blocks, x, sums):
    """A product of int16 numbers with a large matrix, whose rows are not read where they are multiplied by zero."""
    width = len(sums)
    for j in range(width):
        sums[j] = 0
    for k in range(0, len(x), _ROWS):
        used = False
        for i in range(_ROWS):
            used |= x[k + i] != 0
        if used:
            block, given = blocks.ctypes.data + k * width, x.ctypes.data + 2 * k
            for j in range(0, width, _COLUMNS):
                _add_block(sums.ctypes.data + 4 * j, block + j * _ROWS, given)  # type: ignore[call-arg]


@_compiled
def _with_bias(weights, at, x, y):
    """A product and its bias, not rounded yet."""
    size, columns = len(y), _COLUMNS * -(-len(y) // _COLUMNS)
    whole, sums, beyond = np.zeros(_ROWS * -(-len(x) // _ROWS), np.int16), np.empty(columns, np.int32), False
    for i in range(len(x)):
        within = min(max(x[i], -_LIMIT16 - 1.0), np.float64(_LIMIT16))
        whole[i] = np.int16(within)
        beyond |= within != x[i]
    end = at + len(whole) * columns // 4
    blocks = weights[at:end].view(np.int8)
    _product(blocks, whole, sums)
    units, bias = weights[end : end + size], weights[end + size : end + 2 * size]
    for j in range(size):
        y[j] = sums[j] * units[j] + exact.UNIT * bias[j]
    if beyond:
        for i in range(len(x)):
            _add_row(blocks, columns, i, x[i] - whole[i], units, y)
    return end + 2 * size


@_compiled
def _add_row(blocks, columns, i, times, units, y):
    """What 16 bits did not hold of a number, and is rare."""
    start = (i - i % _ROWS) * columns + (i % _ROWS - i % 2) * _COLUMNS + i % 2
    for j in range(len(y)):
        y[j] += times * blocks[start + (j - j % _COLUMNS) * _ROWS + 2 * (j % _COLUMNS)] * units[j]


@_compiled
def _dense(weights, at, x, y):
    at = _with_bias(weights, at, x, y)
    _rounded(y)
    return at


@_compiled
def _gelu(table, x):
    last = len(table)
    for i in range(len(x)):
        whole = np.rint(x[i])
        place = np.int64(min(max(whole + last // 2, 0.0), np.float64(last)))
        x[i] = table[place] if place < last else min(whole, exact.LIMIT)


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
    size = len(x)
    total, squares = _sums(x)
    spread = size * squares - total * total
    root = np.sqrt(spread + size * size * 1e-6 * exact.UNIT * exact.UNIT)
    scale, bias = weights[at : at + size], weights[at + size : at + 2 * size]
    for i in range(size):
        y[i] = (size * x[i] - total) / root * (exact.UNIT * scale[i]) + exact.UNIT * bias[i]
    _rounded(y)
    return at + 2 * size


@_compiled
def _trunk(table, weights, x, memory, out):
    """A trunk whose convolutions remember their last inputs, (D, KERNEL_SIZE - 1, C)."""
    depth, past, width = memory.shape
    h, y, wide = np.empty(width), np.empty(width), np.empty(layout.EXPANSION * width)
    norm = _dense(weights, np.int64(0), x, h)
    at = norm + 2 * width
    for block in range(depth):
        for c in range(width):
            y[c] = h[c] * weights[at + past * width + c]
            for k in range(past):
                y[c] += memory[block, k, c] * weights[at + k * width + c]
                memory[block, k, c] = memory[block, k + 1, c] if k + 1 < past else h[c]
        at += (past + 1) * width
        scale = weights[at : at + width]
        _rounded(y)
        at = _norm(weights, at + width, y, y)
        at = _dense_gelu(table, weights, at, y, wide)
        at = _dense(weights, at, wide, y)
        for c in range(width):
            y[c] *= scale[c]
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


# What is known of a frame.


@_compiled
def _hidden(weights, of_bands, heard, levels, memory, tables, hidden):
    """What the bands know of the frames before, (N * BAND_WIDTH,)."""
    bins, bands = tables.member.shape
    x, trunk = np.empty(2 * bands), np.empty(memory.shape[2])
    for band in range(bands):
        x[band], x[bands + band] = _of_level(levels[band] - layout.START_LEVEL), 0
    for i in range(bins):
        if heard[i]:
            for band in range(bands):
                x[bands + band] += heard[i] * tables.member[i, band]
    for band in range(bands):
        x[bands + band] = np.rint(x[bands + band] / tables.sizes[band])
    _trunk(tables.gelu, weights, x, memory, trunk)
    _dense(of_bands, bands * (bands * layout.BAND_WIDTH + (layout.BAND_WIDTH + 1) * _ALPHABET), trunk, hidden)


@_compiled
def _change_frequencies(weights, band, group, hidden, seen, tables, row):
    """Frequencies less one (K,) of the change of a band, which sees those of the groups before its own."""
    bands, width = len(seen), layout.BAND_WIDTH
    kernel = bands * bands * width  # the mix comes before it
    bias = kernel + bands * width * _ALPHABET
    h = np.zeros(width)
    for other in range(bands):
        if tables.band_order[other] < group:
            mix = _row(weights, 0, other * bands + band, width)
            for i in range(width):
                h[i] += seen[other] * mix[i]
    for i in range(width):
        h[i] = hidden[band * width + i] + np.rint(h[i])
    _rounded(h)
    _gelu(tables.gelu, h)
    for i in range(_ALPHABET):
        row[i] = exact.UNIT * weights[bias + band * _ALPHABET + i]
    for k in range(width):
        part = _row(weights, kernel + band * width * _ALPHABET, k, _ALPHABET)
        for i in range(_ALPHABET):
            row[i] += h[k] * part[i]
    _rounded(row)
    most, total, last = row[0], np.int64(0), len(tables.exponentials) - 1
    for i in range(_ALPHABET):
        most = max(most, row[i])
    for i in range(_ALPHABET):
        row[i] = tables.exponentials[min(np.int64(most - row[i]), last)]
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
        out[i] = 0
        if magnitudes[i]:
            difference = min(max(then[i] - now[i], -limit), limit)
            out[i] = _compressed(magnitudes[i] * powers[np.int64(difference + limit)])


@_compiled
def _seen(near, levels, before, memory, weights, table, out):
    """What the trunk makes of what is near, and of the levels of two frames."""
    bins, bands = near.shape[1], len(levels)
    x = np.empty(3 * bins + 2 * bands)
    for i in range(bins):
        x[i], x[bins + i], x[2 * bins + i] = near[1, i], near[2, i], near[0, i]
    for band in range(bands):
        x[3 * bins + band] = _of_level(levels[band] - layout.START_LEVEL)
        x[3 * bins + bands + band] = _of_level(before[band] - layout.START_LEVEL)
    _trunk(table, weights, x, memory, out)


@_compiled
def _logits(number, weights, at, trunk, near, heard, tables, logits):
    """Logits (G, 3) of the coefficients of a pass, and where the next one's weights are."""
    width, (first, distance, count) = len(trunk), tables.passes[number]
    h, y, wide, far = np.empty(width), np.zeros(width), np.empty(2 * width), np.empty(3 * count)
    inputs = _NEAR
    if number:
        at = _dense(weights, at, heard, y)
        for k in range(tables.neighbors.shape[1]):
            _beside(heard, tables.neighbors[number, k], near[_NEAR + k])
        inputs += tables.neighbors.shape[1]
    _rounded_sum(trunk, y, h)
    at = _dense_gelu(tables.gelu, weights, at, h, wide)
    at = _dense(weights, at, wide, y)
    _rounded_sum(h, y, h)
    at = _norm(weights, at, h, y)
    at = _dense(weights, at, y, far)
    x, hidden = np.empty((inputs, count)), np.empty((layout.NEAR_WIDTH, count))
    for k in range(inputs):
        for i in range(count):
            x[k, i] = near[k, first + i * distance]
    at = _for_each(weights, at, x, hidden)
    for unit in range(layout.NEAR_WIDTH):
        _gelu(tables.gelu, hidden[unit])
    beside = np.empty((3, count))
    at = _for_each(weights, at, hidden, beside)
    for c in range(3):
        _rounded(beside[c])
        for i in range(count):
            logits[i, c] = beside[c, i] + far[3 * i + c]
    return at


# What is coded of a frame.


@_compiled
def _code_head(coder, words, before, head, stay, first):
    """Quality and shaping, which a writer finds in `head`."""
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
def _code_magnitudes(coder, words, logits, number, told, magnitudes, tables):
    first, distance, count = tables.passes[number]
    row, tails, escaped = np.empty(exact.ESCAPE + 1), np.empty(count, np.int64), False
    for i in range(count):
        present = tables.presence[_grid_index(logits[i, 0], exact.LOGIT_STEP, len(tables.presence))]
        two = _grid_index(logits[i, 1], exact.TAIL_STEP, len(tables.tails))
        tails[i] = _grid_index(logits[i, 2], exact.TAIL_STEP, len(tables.tails))
        _frequencies(tables.tails[two, tails[i]], present, row)
        place = first + i * distance
        found = _symbol(coder, words, row, min(told[place], exact.ESCAPE))
        magnitudes[place] = found
        escaped |= found == exact.ESCAPE
    if escaped:
        _code_beyond(coder, words, tails, first, distance, told, magnitudes, tables.geometric)


@_compiled
def _code_beyond(coder, words, tails, first, distance, told, magnitudes, geometric):
    """What lies beyond the alphabet: an escape more of all that have one, then the next, then the rest as numbers."""
    last, found = np.empty(len(tails), np.int64), np.empty(len(tails), np.int64)
    for i in range(len(tails)):
        found[i] = last[i] = np.int64(magnitudes[first + i * distance])
    for _ in range(exact.MAX_ESCAPES):
        for i in range(len(tails)):
            if last[i] == exact.ESCAPE:
                left = told[first + i * distance] - found[i]
                last[i] = _symbol(coder, words, geometric[tails[i]], min(left, exact.ESCAPE))
                found[i] += last[i]
    for i in range(len(tails)):
        place = first + i * distance
        if last[i] == exact.ESCAPE:
            found[i] += _number(coder, words, told[place] - found[i])
        magnitudes[place] = found[i] if found[i] <= layout.MAX_CODE else layout.MAX_CODE + 1


@_compiled
def _code_signs(coder, words, magnitudes, coefficients):
    """Signs, which a writer finds in the coefficients."""
    for i in range(len(coefficients)):
        magnitude = np.int64(magnitudes[i])
        if magnitude and _plain(coder, words, np.int64(2), np.int64(coefficients[i] < 0)):
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
def _walk(words, codes, writing, width, depth, weights, tables):
    """The words of codes (T, Q) when writing; the codes of words, and how these end, when not."""
    bins, bands = tables.member.shape
    coder = _coder(writing)
    if not writing:
        _next(coder, words)
        _next(coder, words)
    envelope_memory = np.zeros((layout.ENVELOPE_DEPTH, layout.KERNEL_SIZE - 1, width // 2))
    memory = np.zeros((depth, layout.KERNEL_SIZE - 1, width))
    head, head_before, levels, before = np.zeros(2), np.empty(2), np.empty(bands), np.empty(bands)
    steps, magnitudes = np.zeros((3, bins)), np.zeros((3, bins))  # of this frame, of the last, of the one before
    heard = np.zeros(bins)  # magnitudes of this frame as they are known, compressed, or of the last before
    told_changes, told = np.empty(bands, np.int64), np.empty(bins, np.int64)
    hidden, row = np.empty(bands * layout.BAND_WIDTH), np.empty(_ALPHABET)
    changes, seen = np.zeros(bands, np.int64), np.zeros(bands)
    near, trunk, logits = np.empty((_NEAR + tables.neighbors.shape[1], bins)), np.empty(width), np.empty((bins, 3))
    for band in range(bands):
        levels[band] = layout.START_LEVEL
    for t in range(len(codes)):
        code = codes[t]
        for i in range(2):
            head_before[i] = head[i]
            if writing:
                head[i] = code[i]
        for band in range(bands):
            told_changes[band] = code[2 + band] - np.int64(levels[band])
        for i in range(bins):
            told[i] = abs(np.int64(code[layout.EXTRA + i]))
        if writing:
            words = _room(words, np.int64(coder[_POSITION]) + 8 * len(code))
        _code_head(coder, words, head_before, head, tables.stay, t == 0)
        _hidden(weights.envelope, weights.bands, heard, levels, envelope_memory, tables, hidden)
        for group in range(_BAND_GROUPS):
            for band in range(bands):
                if tables.band_order[band] == group:
                    _change_frequencies(weights.bands, band, group, hidden, seen, tables, row)
                    changes[band] = _code_change(coder, words, row, told_changes[band])
            _code_beyond_changes(coder, words, group, changes, told_changes, tables)
            for band in range(bands):
                seen[band] = _of_level(np.float64(changes[band]))
        for band in range(bands):
            before[band] = levels[band]
            level = levels[band] + changes[band]
            levels[band] = min(max(level, -layout.MAX_CODE - 1.0), np.float64(layout.MAX_CODE))
            code[2 + band] = levels[band]
        _steps(head, levels, tables, steps[0], near[0])
        for age in range(1, 3):
            _rescaled(magnitudes[age], steps[age], steps[0], tables.powers, near[age])
        _beside(near[1], np.int64(1), near[3])
        _seen(near, levels, before, memory, weights.trunk, tables.gelu, trunk)
        for i in range(bins):
            heard[i] = 0
        at = np.int64(0)
        for number in range(_PASSES):
            at = _logits(number, weights.passes, at, trunk, near, heard, tables, logits)
            _code_magnitudes(coder, words, logits, number, told, magnitudes[0], tables)
            first, distance, count = tables.passes[number]
            for i in range(first, first + count * distance, distance):
                if magnitudes[0, i]:
                    heard[i] = _compressed(magnitudes[0, i])
        _code_signs(coder, words, magnitudes[0], code[layout.EXTRA :])
        code[0], code[1] = head[0], head[1]
        if coder[_PROBLEM]:
            return words, _WRONG
        for age in range(2, 0, -1):
            for i in range(bins):
                steps[age, i], magnitudes[age, i] = steps[age - 1, i], magnitudes[age - 1, i]
    if not writing:
        return words, _FINE if _at_end(coder, words) else _LEFT_OVER
    if len(codes):
        _raise(coder, words, np.uint64(2**32 - 1))
        _emit(coder, words)
    return words[: np.int64(coder[_POSITION])], _FINE


OPERATIONS = {
    "rounded": functools.partial(_everywhere, _round_all, exact.OPERATIONS["rounded"]),
    "gelu": functools.partial(_everywhere, lambda x: _gelu_all(x, _gelu_table()), exact.OPERATIONS["gelu"]),
}
