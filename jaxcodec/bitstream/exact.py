"""Networks of whole numbers: what probability models of scalar codes compute, equal on every machine.

A range decoder goes astray when one probability differs in its last bit, and floating-point sums differ from machine to
machine. Here nothing is rounded that could be rounded otherwise. Activations are whole numbers of 1 / `UNIT`, below `LIMIT`;
weights are float16, so each is a whole number of 2^-24. A product of matrices in float64 then adds up numbers whose every
partial sum is exact, whatever its order. Between products stand single operations of IEEE 754 (+, -, *, /, square root,
rounding), which are correctly rounded everywhere, and look-ups in tables that `decimal` computed. Logits are rounded to
`LOGIT_STEP` or `TAIL_STEP` and pick a row of integer frequencies.
"""

import concurrent.futures
import decimal
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import threadpoolctl

from jaxcodec.bitstream import entropy
from jaxcodec.quantizers import layout

UNIT, LIMIT = 256, 2**15  # of activations: what is one, and their greatest value
LOGIT_STEP, MAX_LOGIT = 1 / 16, 12  # of "not zero"
TAIL_STEP, MAX_TAIL = 1 / 4, 8  # of "beyond one" and "and one more"
ESCAPE = 15  # magnitudes from here on are coded as this and what is beyond
MAX_ESCAPES = 4  # of them in a row, then the rest as a plain number
TOTAL = 2**entropy.PRECISION
_THREADS = 4  # of blocks, at most: half of their work is Python's, of which there is one at a time


class Network(entropy.Digested):
    """Weights in float16 by name, and the layers made of them. Equal ones have equal digests.

    Activations are float64 arrays (rows, C) of whole numbers. `shapes` says what a kind's weights are.

    Raises:
      ValueError: arrays that do not fit together, weights so large that sums would not be exact.
    """

    kind: ClassVar[str]
    name: ClassVar[bytes]  # before the weights, in their digest
    band_order: ClassVar[np.ndarray]  # of the bands of the envelope, (N,): one sees those of a lower number

    def __init__(self, weights: dict[str, np.ndarray]):
        with np.errstate(over="ignore"):
            self.weights = {name: np.asarray(weights[name]).astype(np.float16) for name in sorted(weights)}
        try:
            expected = self.shapes()
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.kind}: arrays are missing, this is no prior of scalar codes.") from None
        for name in sorted(expected.keys() | self.weights.keys()):
            shape = self.weights[name].shape if name in self.weights else None
            if shape != expected.get(name):
                raise ValueError(f"{self.kind}: {name} has shape {shape}, expected {expected.get(name)}.")
        for name, array in self.weights.items():
            # Every partial sum is a whole number of 2^-24: exact below 2^29, LIMIT times the sum of a column.
            inputs = 0 if name == "mix" else -2 % array.ndim
            if not np.isfinite(array).all() or np.abs(array.astype(np.float64)).sum(axis=inputs).max() > 2**13:
                raise ValueError(f"{self.kind}: {name} is too large to be computed exactly.")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the weights have to be, from some of them; KeyError or IndexError where these are not there."""
        raise NotImplementedError

    @property
    def num_bins(self) -> int:
        """Coefficients a frame, F."""
        raise NotImplementedError

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 over names, shapes and contents, 32 bytes."""
        return entropy.digest(self.weights, self.name)

    def __str__(self):
        return f"{self.num_bins} coefficients and {layout.EXTRA} codes beside them"

    def fits(self, num_codebooks: int, least_code: int, codebook_size: int) -> bool:
        """Whether these are scalar codes of so many coefficients."""
        whole = num_codebooks == self.num_bins + layout.EXTRA
        return whole and (least_code, codebook_size) == (-layout.MAX_CODE - 1, 2 * layout.MAX_CODE + 2)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The weights by name, float16; `from_arrays` takes them back."""
        return self.weights

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]):
        """The model of `to_arrays`, or of the parameters of the module that was trained, by their path."""
        return cls(arrays)

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """Codes (Q, T) of each block to bytes: 32-bit words, little-endian, without the zero bytes at their end."""
        raise NotImplementedError

    def encode(self, codes: np.ndarray) -> bytes:
        """What `encode_blocks` makes of one block."""
        return self.encode_blocks([codes])[0]

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """Codes (num_codebooks, T) int32 of blocks of T in `sizes` frames, or the `DamagedCodes` of one."""
        raise NotImplementedError

    def decode(self, data: bytes, num_codebooks: int, num_frames: int) -> np.ndarray:
        """What `encode` wrote, codes (num_codebooks, num_frames) int32. Bytes beyond the end count as zero.

        Raises `DamagedCodes` where no codes could have led to these bytes.
        """
        (codes,) = self.decode_blocks([data], num_codebooks, [num_frames])
        if isinstance(codes, entropy.DamagedCodes):
            raise codes
        return codes

    @functools.cached_property
    def float64(self) -> dict[str, np.ndarray]:
        """The weights by name; what is added to activations, or becomes them, in their unit."""
        arrays = {name: array.astype(np.float64) for name, array in self.weights.items()}
        in_units = (name for name in arrays if name.split("/")[-1] in ("bias", "scale"))
        return arrays | {name: UNIT * arrays[name] for name in in_units}

    def dense(self, name, x):
        """A dense layer."""
        y = x @ self.float64[f"{name}/kernel"]
        y += self.float64[f"{name}/bias"]
        return rounded(y)

    def dense_gelu(self, name, x):
        """GELU of a dense layer."""
        y = x @ self.float64[f"{name}/kernel"]
        y += self.float64[f"{name}/bias"]
        return gelu(y)

    def norm(self, name, x):
        """Layer normalization: sums are exact, then one operation after the other."""
        size = x.shape[-1]
        total = x.sum(-1, keepdims=True)
        spread = size * np.einsum("...i,...i->...", x, x)[..., None] - total * total
        normal = size * x
        normal -= total
        normal /= np.sqrt(spread + size * size * 1e-6 * UNIT * UNIT)
        normal *= self.float64[f"{name}/scale"]
        normal += self.float64[f"{name}/bias"]
        return rounded(normal)

    def after_convolution(self, name, x, y):
        """A convolution block on x (rows, C) whose depthwise convolution gave y."""
        y = self.norm(f"{name}/LayerNorm_0", rounded(y))
        y = self.dense(f"{name}/Dense_1", self.dense_gelu(f"{name}/Dense_0", y))
        y *= self.float64[f"{name}/layer_scale"]
        y += x
        return rounded(y)

    @functools.cached_property
    def band_groups(self) -> list[np.ndarray]:
        """The bands that are told together, in their order."""
        return [np.flatnonzero(number == self.band_order) for number in range(self.band_order.max() + 1)]

    @functools.cached_property
    def _band_weights(self):
        """Of each group of bands: mix (N, n * BAND_WIDTH), kernel (n, BAND_WIDTH, K), bias (n, K)."""
        mix, kernel, bias = (self.float64[name] for name in ("mix", "kernel", "bias"))
        mix = mix * layout.earlier(self.band_order)[:, :, None]
        return [(mix[:, g].reshape(layout.NUM_BANDS, -1), kernel[g], bias[g]) for g in self.band_groups]

    def change_rows(self, hidden, changes, number):
        """Frequencies less one (rows, n, 2 * MAX_CHANGE + 1) of the changes of a group of bands, given earlier ones.

        From what else is known of each band, (rows, N, BAND_WIDTH).
        """
        bands = self.band_groups[number]
        mix, kernel, bias = self._band_weights[number]
        h = gelu(rounded(hidden[:, bands] + np.rint(of_levels(changes) @ mix).reshape(len(changes), len(bands), -1)))
        logits = rounded(np.matmul(h.transpose(1, 0, 2), kernel).transpose(1, 0, 2) + bias)
        depth = (np.maximum.reduce(logits, axis=-1, keepdims=True) - logits).astype(np.intp)
        sums = entropy.scaled_sums(exponentials().take(depth, mode="clip"))
        rows = sums.astype(np.float64)
        rows[..., 1:] -= sums[..., :-1]
        return rows


def dense_shapes(name, inputs, outputs):
    """Shapes of a dense layer's weights by name."""
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def norm_shapes(name, channels):
    """The same of a normalization."""
    return {f"{name}/scale": (channels,), f"{name}/bias": (channels,)}


def block_shapes(name, channels, expansion):
    """The same of a convolution block."""
    conv = {f"{name}/DepthwiseConv_0/kernel": (layout.KERNEL_SIZE, channels), f"{name}/layer_scale": (channels,)}
    inside = expansion * channels
    inner = dense_shapes(f"{name}/Dense_0", channels, inside) | dense_shapes(f"{name}/Dense_1", inside, channels)
    return conv | norm_shapes(f"{name}/LayerNorm_0", channels) | inner


def change_shapes(inputs):
    """The same of what tells the changes of the envelope, from so many hidden units."""
    bands, size, alphabet = layout.NUM_BANDS, layout.BAND_WIDTH, 2 * layout.MAX_CHANGE + 1
    shapes = {"mix": (bands, bands, size), "kernel": (bands, size, alphabet), "bias": (bands, alphabet)}
    return shapes | dense_shapes("hidden", inputs, bands * size)


def is_large(name: str) -> bool:
    """Whether weights of this name are a large matrix: what time and memory go to."""
    return name.endswith("/kernel") and not name.startswith(("near_", "beside_")) and "Depthwise" not in name


def whole(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (K, N) float32 as int8 whole numbers, the nearest, and the units (N,) of its columns: powers of two."""
    fraction, exponent = np.frexp(np.abs(matrix).max(axis=0) / np.float32(127))
    units = np.ldexp(np.float32(1), exponent - (fraction == 0.5))
    return np.rint(matrix / units).astype(np.int8), units


def one_thread():
    """A context in which products of matrices take one thread.

    These are small: threads that wait for each other on a busy machine make them up to thirty times slower.
    """
    return _controller().limit(limits=1, user_api="blas")


def each(function, *arguments):
    """What a function makes of each of some, several at a time: numpy lets other threads work while it does."""
    with one_thread(), concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list((pool.map if len(arguments[0]) > 1 else map)(function, *arguments))


@functools.cache
def _controller():
    return threadpoolctl.ThreadpoolController()


# Single steps on whole numbers. These overwrite what they are given, which no one else holds.


def _limited(x, limit):
    """`x` between -limit and limit, in place; on small arrays `np.clip` takes longer."""
    if x.size > _LARGE:
        return np.clip(x, -limit, limit, out=x)
    return np.minimum(np.maximum(x, -limit, out=x), limit, out=x)


def _rounded(x):
    return _limited(np.rint(x, out=x), LIMIT)


def _gelu(x):
    x += GELU_RANGE
    return gelu_table().take(np.rint(x, out=x).astype(np.intp), mode="clip")


# What is done to every number; they overwrite what they are given. `compiled` has faster ones.
OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"rounded": _rounded, "gelu": _gelu}


def rounded(x):
    """Activations, in place."""
    return OPERATIONS["rounded"](x)


def gelu(x):
    """GELU of activations, or of what is rounded to them, which is overwritten.

    The table counts from -GELU_RANGE on: what is less gives zero, of what is beyond LIMIT that.
    """
    return OPERATIONS["gelu"](x)


def of_levels(levels):
    """Levels of the envelope, or their changes, as the networks see them: in units of 20 dB."""
    return rounded(levels * UNIT * layout.LEVEL_DB / 20)


def compress(magnitudes):
    """`quantizers.scalar.compress` in whole numbers of 1 / UNIT."""
    y = 1 + magnitudes
    np.sqrt(np.sqrt(y, out=y), out=y)
    y -= 1
    y *= 4 * UNIT
    return np.minimum(np.rint(y, out=y), LIMIT, out=y)


def beside(x, distance):
    """The mean of the coefficients `distance` below and above, rounded."""
    total = np.zeros_like(x)
    total[:, distance:] = x[:, :-distance]
    total[:, :-distance] += x[:, distance:]
    total /= 2
    return np.rint(total, out=total)


def steps(quality, shaping, levels, num_bins):
    """Steps from quality and shaping (rows,) as coded and levels (rows, N)."""
    envelope = levels @ interpolation(num_bins)
    total = envelope.sum(-1, keepdims=True)
    shaped = layout.TILT * (num_bins * envelope - total) + layout.LEVEL * total
    eighths = np.rint(shaped * (shaping[:, None] / (2 * layout.SHAPINGS * num_bins)))
    return Steps(eighths + quality[:, None], envelope)


def _index(x, limit):
    """Index of whole numbers, which are overwritten, in a table from -limit to limit."""
    return (_limited(x, limit) + limit).astype(np.intp)


def clip_step(difference):
    """Index of a difference of steps in `powers`."""
    return _index(difference, 8 * layout.MAX_STEP_DB)


def grid_index(logits, step, most):
    """Index of a logit in its table."""
    return _index(np.rint(logits / (UNIT * step)), round(most / step))


class Steps(NamedTuple):
    """Of each coefficient of some frames."""

    steps: np.ndarray  # (rows, F) in 1/8 dB
    envelope: np.ndarray  # (rows, F) in 1/16 dB


# Tables, the same everywhere: `decimal` rounds correctly.

_CONTEXT = decimal.Context(prec=40)
GELU_RANGE = 8 * UNIT
_LARGE = 4096


@functools.cache
def members(num_bins):
    """Membership (F, N) of coefficients to bands, and how many each has (N,)."""
    member = layout.bands(num_bins).astype(np.float64)
    return member, member.sum(0)


@functools.cache
def interpolation(num_bins):
    """Weights (N, F) of levels, the envelope in 1/16 dB."""
    level = 16 * layout.LEVEL_DB
    weights = np.floor(layout.interpolation(num_bins) * level + 0.5).astype(np.float64)
    weights[weights.argmax(0), np.arange(num_bins)] += level - weights.sum(0)
    return weights


def _sigmoid(x):
    return float(_CONTEXT.divide(1, 1 + _CONTEXT.exp(-_CONTEXT.create_decimal(x))))


@functools.cache
def gelu_table():
    """GELU by its tanh (Hendrycks and Gimpel 2016) of whole numbers from -GELU_RANGE on; above 8 it is the identity."""
    x = [decimal.Decimal(i) / UNIT for i in range(GELU_RANGE + 1)]
    slope = 2 * _CONTEXT.sqrt(2 / decimal.Decimal("3.14159265358979323846264338327950288"))
    shares = np.array([_sigmoid(slope * (value + decimal.Decimal("0.044715") * value**3)) for value in x])
    above = np.arange(GELU_RANGE + 1) * shares
    below = above - np.arange(GELU_RANGE + 1)  # as the sigmoid of -x is one less that of x
    return np.concatenate([np.rint(below[:0:-1]), np.rint(above[:-1]), np.arange(GELU_RANGE, LIMIT + 1)])


@functools.cache
def powers():
    """10^(x / 20) of eighths of a decibel from -MAX_STEP_DB on."""
    limit = 8 * layout.MAX_STEP_DB
    return np.array([float(_CONTEXT.power(10, decimal.Decimal(i) / 160)) for i in range(-limit, limit + 1)])


@functools.cache
def exponentials():
    """Weights of 2^20 * exp(-x / UNIT): what is far below the likeliest keeps 1."""
    ratio, first = _CONTEXT.exp(-decimal.Decimal(1) / UNIT), decimal.Decimal(2**20)
    weights = itertools.accumulate(itertools.repeat(ratio, 16 * UNIT - 1), _CONTEXT.multiply, initial=first)
    return np.array([max(1, round(float(weight))) for weight in weights])


def logistic(step, most):
    """Probabilities of logits from -most to most, a step apart."""
    limit = round(most / step)
    return np.array([_sigmoid(i * step) for i in range(-limit, limit + 1)])


@functools.cache
def presence():
    """Share of what is not zero, of all that is to be given away: each symbol has one in any case."""
    return np.floor(logistic(LOGIT_STEP, MAX_LOGIT) * (TOTAL - ESCAPE - 1))


@functools.cache
def tails():
    """Shares (two, more, ESCAPE) of the magnitudes from 1 to ESCAPE of what is not zero."""
    two, more = np.meshgrid(*2 * [logistic(TAIL_STEP, MAX_TAIL)], indexing="ij")
    return np.concatenate([1 - two[..., None], _shares(two, more, ESCAPE - 1)], axis=-1)


@functools.cache
def geometric():
    """Frequencies less one (more, ESCAPE + 1) of how far a magnitude goes beyond an escape."""
    more = logistic(TAIL_STEP, MAX_TAIL)
    rows = np.floor(_shares(np.ones_like(more), more, ESCAPE + 1) * (TOTAL - ESCAPE - 1))
    rows[:, 0] += TOTAL - ESCAPE - 1 - rows.sum(-1)
    return rows


def _shares(left, more, count):
    """Shares (..., count) of `left` (...): of each rest what does not go on with probability `more`, and the last rest."""
    shares = np.empty((*left.shape, count))
    for place in range(count - 1):
        shares[..., place] = left * (1 - more)
        left = left * more
    shares[..., -1] = left
    return shares
