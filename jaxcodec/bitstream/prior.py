"""The learned prior of scalar codes as files use it: `quantizers.scalar.Prior` in numbers that are equal on every machine.

A range decoder goes astray when one probability differs in its last bit, and floating-point sums differ from machine to
machine. Here nothing is rounded that could be rounded otherwise. Activations are whole numbers of 1 / `UNIT`, below `LIMIT`;
weights are float16, so each is a whole number of 2^-24. A product of matrices in float64 then adds up numbers whose every
partial sum is exact, whatever its order. Between products stand single operations of IEEE 754 (+, -, *, /, square root,
rounding), which are correctly rounded everywhere, and look-ups in tables that `decimal` computed. Logits are rounded to
`LOGIT_STEP` and pick a row of integer frequencies. The range coder is that of the library constriction (Bamler 2022).

Frames are coded one after the other: quality and shaping (or that they stay), the envelope's changes in the order of
`layout.BAND_ORDER`, the magnitudes in the passes of `layout.passes`, then the signs. Blocks do not know each other, so many
are decoded side by side: each product then serves all of them.
"""

import concurrent.futures
import decimal
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
_THREADS = 4  # that encode blocks, at most: half of their work is Python's, of which there is one at a time


class PriorModel:
    """Weights of a prior in float16 and what follows from them. Equal models have equal digests.

    Raises:
      ValueError: arrays that do not fit together, weights so large that sums would not be exact.
    """

    kind = "prior"
    coding = 2

    def __init__(self, weights: dict[str, np.ndarray]):
        with np.errstate(over="ignore"):
            self.weights = {name: np.asarray(weights[name]).astype(np.float16) for name in sorted(weights)}
        try:
            self.num_bins = self.weights["seen_1/kernel"].shape[0]
            width = self.weights["seen_1/kernel"].shape[1]
            self.depth = sum(name.startswith("trunk_block_") and name.endswith("layer_scale") for name in self.weights)
            expected = _shapes(self.num_bins, width, self.depth)
        except (KeyError, IndexError):
            raise ValueError("prior: arrays are missing, this is no prior of scalar codes.") from None
        for name in sorted(expected.keys() | self.weights.keys()):
            shape = self.weights[name].shape if name in self.weights else None
            if shape != expected.get(name):
                raise ValueError(f"prior: {name} has shape {shape}, expected {expected.get(name)}.")
        for name, array in self.weights.items():
            # Every partial sum is a whole number of 2^-24: exact below 2^29, LIMIT times the sum of a column.
            inputs = 0 if name == "mix" else -2 % array.ndim
            if not np.isfinite(array).all() or np.abs(array.astype(np.float64)).sum(axis=inputs).max() > 2**13:
                raise ValueError(f"prior: {name} is too large to be computed exactly.")

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 over names, shapes and contents, 32 bytes."""
        return entropy.digest(self.weights, b"prior 1")

    def __eq__(self, other):
        return isinstance(other, PriorModel) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return f"PriorModel({self.digest.hex()[:16]})"

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
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "PriorModel":
        """The model of `to_arrays`, or of the parameters of a `quantizers.scalar.Prior` by their path."""
        return cls(arrays)

    # Coding.

    def encode(self, codes: np.ndarray) -> bytes:
        """Codes (Q, T) of a block to bytes: 32-bit words, little-endian, without the zero bytes at their end."""
        return self.encode_blocks([codes])[0]

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """What `encode` makes of each block, several at a time: numpy lets other threads work while it does."""
        with _one_thread(), concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            return list((pool.map if len(blocks) > 1 else map)(self._encode, blocks))

    def _encode(self, codes):
        if not codes.shape[1]:
            return b""
        tables, frames = self.tables(codes), _Frames.of(codes)
        coder = _Encoder()
        changes, magnitudes = _changes(frames.levels), np.abs(frames.coefficients)
        groups = [_Symbols.of_changes(changes[:, bands], tables.envelope[:, bands]) for bands in _band_groups()]
        passes = zip(layout.passes(self.num_bins), tables.rows, tables.tails, strict=True)
        groups += [_Symbols.of_magnitudes(magnitudes[:, group], rows, tails) for group, rows, tails in passes]
        head = np.stack([frames.quality, frames.shaping], axis=1)
        negative, nonzero = (frames.coefficients < 0).astype(np.int32), frames.coefficients != 0
        for t in range(codes.shape[1]):
            coder.head(head[t], head[t - 1] if t else None)
            for group in groups:
                coder.symbols(group.symbols[t], group.rows[t])
                if group.escaped[t]:
                    group.escape(coder, t)
            coder.signs(negative[t, nonzero[t]])
        return coder.finish()

    def decode(self, data: bytes, num_codebooks: int, num_frames: int) -> np.ndarray:
        """What `encode` wrote, codes (num_codebooks, num_frames) int32. Bytes beyond the end count as zero.

        Raises `DamagedCodes` where no codes could have led to these bytes.
        """
        (codes,) = self.decode_blocks([data], num_codebooks, [num_frames])
        if isinstance(codes, entropy.DamagedCodes):
            raise codes
        return codes

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """Codes (num_codebooks, T) int32 of blocks of T in `sizes` frames, or the `DamagedCodes` of one, side by side."""
        # The longest first: those at work are always the first ones.
        order = np.argsort(-np.asarray(sizes), kind="stable")
        lengths = np.asarray(sizes)[order]
        decoders = [_Decoder(blocks[index]) for index in order]
        codes = np.zeros((len(order), max(lengths, default=0), num_codebooks), np.int32)
        state = _State.fresh(len(order), self.num_bins, self._blocks)
        with _one_thread():
            for t in range(codes.shape[1]):
                active = int(np.searchsorted(-lengths, -t, side="left"))
                state = state.first(active)
                codes[:active, t] = self._decode_frame(decoders[:active], state)
        results = [
            decoder.finish() or np.ascontiguousarray(codes[i, : lengths[i]].T) for i, decoder in enumerate(decoders)
        ]
        return [results[i] for i in np.argsort(order)]

    def _decode_frame(self, decoders, state):
        before = state.head if state.started else len(decoders) * [None]
        head = np.stack([decoder.head(last) for decoder, last in zip(decoders, before, strict=True)])
        hidden = self._envelope_hidden(self._heard(state.magnitudes[0]), state.levels, state.envelope)
        changes = np.zeros((len(decoders), layout.NUM_BANDS))
        for number, bands in enumerate(_band_groups()):
            found = _symbols(decoders, self._envelope_rows(hidden, changes, number)) - layout.MAX_CHANGE
            for lane, band in np.argwhere(np.abs(found) == layout.MAX_CHANGE):
                found[lane, band] += np.sign(found[lane, band]) * decoders[lane].number()
            changes[:, bands] = found
        levels = np.clip(state.levels + changes, -layout.MAX_CODE - 1, layout.MAX_CODE)
        steps = _steps(head[:, 0], head[:, 1], levels, self.num_bins)
        context = self._context(state.magnitudes, state.steps, steps, levels, state.levels, state.trunk)
        magnitudes = np.zeros((len(decoders), self.num_bins))
        for number, group in enumerate(layout.passes(self.num_bins)):
            rows, tails = self._rows(self._logits(number, context, magnitudes))
            found = _symbols(decoders, rows)
            for lane in np.flatnonzero((found == ESCAPE).any(axis=1)):
                found[lane] = decoders[lane].beyond(found[lane], tails[lane])
            magnitudes[:, group] = found
        coefficients, nonzero = magnitudes.copy(), magnitudes != 0
        signs = [decoder.signs(count) for decoder, count in zip(decoders, nonzero.sum(axis=1).tolist(), strict=True)]
        coefficients[nonzero] *= 1 - 2 * np.concatenate(signs)
        state.advance(head, levels, steps.steps, magnitudes)
        return np.concatenate([head, levels, np.minimum(coefficients, layout.MAX_CODE)], axis=1)

    def tables(self, codes: np.ndarray) -> "Tables":
        """The frequencies with which each code of a block (Q, T) is coded, given those before it."""
        frames = _Frames.of(codes)
        num_frames = codes.shape[1]
        state = _State.fresh(1, self.num_bins, self._blocks)
        magnitudes = np.abs(frames.coefficients)
        before = _before(magnitudes), _before(_before(magnitudes))
        levels_before = _before(frames.levels - layout.START_LEVEL) + layout.START_LEVEL
        steps = _steps(frames.quality, frames.shaping, frames.levels, self.num_bins)
        steps_before = _before(steps.steps), _before(_before(steps.steps))
        hidden = self._envelope_hidden(self._heard(before[0]), levels_before, state.envelope)
        envelope = np.zeros((num_frames, layout.NUM_BANDS, 2 * layout.MAX_CHANGE + 1))
        changes = _changes(frames.levels)
        for number, bands in enumerate(_band_groups()):
            envelope[:, bands] = self._envelope_rows(hidden, changes, number)
        context = self._context(before, steps_before, steps, frames.levels, levels_before, state.trunk)
        logits = (self._logits(number, context, magnitudes) for number in range(len(layout.NEIGHBORS)))
        rows, tails = zip(*(self._rows(x) for x in logits), strict=True)
        return Tables(envelope, rows, tails)

    # The network. Activations are float64 arrays (rows, C) of whole numbers; rows are lanes times frames.

    @functools.cached_property
    def _float64(self):
        """The weights by name; what is added to activations, or becomes them, in their unit."""
        arrays = {name: array.astype(np.float64) for name, array in self.weights.items()}
        in_units = (name for name in arrays if name.split("/")[-1] in ("bias", "scale"))
        return arrays | {name: UNIT * arrays[name] for name in in_units}

    @functools.cached_property
    def _band_weights(self):
        """Of each group of bands: mix (N, n * BAND_WIDTH), kernel (n, BAND_WIDTH, K), bias (n, K)."""
        mix, kernel, bias = (self._float64[name] for name in ("mix", "kernel", "bias"))
        mix = mix * layout.EARLIER[:, :, None]
        return [(mix[:, g].reshape(layout.NUM_BANDS, -1), kernel[g], bias[g]) for g in _band_groups()]

    @property
    def _blocks(self):
        """Width and number of the convolutions of both trunks."""
        depths = {"trunk": self.depth, "envelope": layout.ENVELOPE_DEPTH}
        return {name: (len(self.weights[f"{name}_norm/scale"]), depth) for name, depth in depths.items()}

    def _dense(self, name, x):
        y = x @ self._float64[f"{name}/kernel"]
        y += self._float64[f"{name}/bias"]
        return _rounded(y)

    def _norm(self, name, x):
        """Layer normalization: sums are exact, then one operation after the other."""
        size = x.shape[-1]
        total = x.sum(-1, keepdims=True)
        spread = size * (x * x).sum(-1, keepdims=True) - total * total
        normal = (size * x - total) / np.sqrt(spread + size * size * 1e-6 * UNIT * UNIT)
        return _rounded(normal * self._float64[f"{name}/scale"] + self._float64[f"{name}/bias"])

    def _trunk(self, name, x, memory):
        """A trunk on rows (L * T, C), L lanes that remember in `memory` (D, L, KERNEL_SIZE - 1, C)."""
        x = self._dense(f"{name}_input", x)
        for number, past in enumerate(memory):
            block = f"{name}_block_{number}"
            seen = np.concatenate([past, x.reshape(len(past), -1, x.shape[1])], axis=1)
            past[:] = seen[:, -past.shape[1] :]
            num_frames = seen.shape[1] - past.shape[1]
            kernel = self._float64[f"{block}/DepthwiseConv_0/kernel"]
            if num_frames == 1:
                y = np.add.reduce(seen * kernel, axis=1)
            else:
                y = sum(seen[:, i : i + num_frames] * kernel[i] for i in range(layout.KERNEL_SIZE))
            y = self._norm(f"{block}/LayerNorm_0", _rounded(y.reshape(x.shape)))
            y = self._dense(f"{block}/Dense_1", _gelu(self._dense(f"{block}/Dense_0", y)))
            x = _rounded(x + y * self._float64[f"{block}/layer_scale"])
        return self._norm(f"{name}_norm", x)

    def _heard(self, magnitudes):
        """Mean compressed magnitude of each band."""
        member, sizes = _members(self.num_bins)
        return np.rint(_compress(magnitudes) @ member / sizes)

    def _envelope_hidden(self, heard, levels_before, memory):
        """What the envelope's bands know of the frames before, (rows, N, 32)."""
        before = _rounded((levels_before - layout.START_LEVEL) * UNIT * layout.LEVEL_DB / 20)
        trunk = self._trunk("envelope", np.concatenate([before, heard], axis=1), memory)
        return self._dense("hidden", trunk).reshape(len(trunk), layout.NUM_BANDS, -1)

    def _envelope_rows(self, hidden, changes, number):
        """Frequencies less one (rows, n, 2 * MAX_CHANGE + 1) of the changes of a group of bands, given earlier ones."""
        bands = _band_groups()[number]
        mix, kernel, bias = self._band_weights[number]
        seen = _rounded(changes * UNIT * layout.LEVEL_DB / 20)
        h = _gelu(_rounded(hidden[:, bands] + np.rint(seen @ mix).reshape(len(seen), len(bands), -1)))
        logits = _rounded(np.matmul(h.transpose(1, 0, 2), kernel).transpose(1, 0, 2) + bias)
        depth = (np.maximum.reduce(logits, axis=-1, keepdims=True) - logits).astype(np.intp)
        sums = entropy.scaled_sums(_exponentials().take(depth, mode="clip"))
        rows = sums.astype(np.float64)
        rows[..., 1:] -= sums[..., :-1]
        return rows

    def _context(self, magnitudes, steps_before, steps, levels, levels_before, memory):
        """What the passes see of the frames before and of the envelope."""
        past, older = (
            _compress(before * _powers()[_clip_step(then - steps.steps)])
            for before, then in zip(magnitudes, steps_before, strict=True)
        )
        expected = np.rint((steps.envelope - 2 * steps.steps) * 0.8)  # in units of 1/16 dB, to 1 / UNIT of 20 dB
        shapes = [_rounded((x - layout.START_LEVEL) * UNIT * layout.LEVEL_DB / 20) for x in (levels, levels_before)]
        trunk = self._trunk("trunk", np.concatenate([past, older, expected, *shapes], axis=1), memory)
        return trunk, np.stack([expected, past, older, _beside(past, 1)], axis=-1)

    def _logits(self, number, context, magnitudes):
        """Logits (rows, G, 3) of the coefficients of a pass; `magnitudes` of later ones are not looked at."""
        h, near = context
        group = layout.passes(self.num_bins)[number]
        near = near[:, group]
        if number:
            seen = _compress(magnitudes * layout.known(number, self.num_bins))
            h = _rounded(h + self._dense(f"seen_{number}", seen))
            beside = [_beside(seen, distance)[:, group, None] for distance in layout.NEIGHBORS[number]]
            near = np.concatenate([near, *beside], axis=-1)
        h = _rounded(h + self._dense(f"down_{number}", _gelu(self._dense(f"up_{number}", h))))
        far = self._dense(f"far_{number}", self._norm(f"norm_{number}", h))
        hidden = _gelu(self._dense(f"near_{number}", near.reshape(-1, near.shape[-1])))
        return far.reshape(len(h), -1, 3) + self._dense(f"beside_{number}", hidden).reshape(len(h), -1, 3)

    def _rows(self, logits):
        """Frequencies less one (rows, G, ESCAPE + 1) of magnitudes, and which tail each has beyond."""
        present = _grid_index(logits[..., 0], LOGIT_STEP, MAX_LOGIT)
        two, more = (_grid_index(logits[..., i], TAIL_STEP, MAX_TAIL) for i in (1, 2))
        rows = np.empty((*present.shape, ESCAPE + 1))
        np.multiply(_tails()[two, more], _presence()[present][..., None], out=rows[..., 1:])
        np.floor(rows[..., 1:], out=rows[..., 1:])
        rows[..., 0] = TOTAL - (ESCAPE + 1) - rows[..., 1:].sum(-1)
        return rows, more


class Tables(NamedTuple):
    """Frequencies less one, of the sum 2^24 - K, with which the codes of a block are coded."""

    envelope: np.ndarray  # (T, N, 2 * MAX_CHANGE + 1)
    rows: tuple[np.ndarray, ...]  # of each pass (T, G, ESCAPE + 1)
    tails: tuple[np.ndarray, ...]  # of each pass (T, G), the row of what is beyond


class _Frames(NamedTuple):
    """Codes by what they are, float64, frames first."""

    quality: np.ndarray
    shaping: np.ndarray
    levels: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def of(cls, codes):
        frames = np.asarray(codes).T.astype(np.float64)
        return cls(frames[:, 0], frames[:, 1], frames[:, 2 : layout.EXTRA], frames[:, layout.EXTRA :])


class _Steps(NamedTuple):
    steps: np.ndarray  # (rows, F) in 1/8 dB
    envelope: np.ndarray  # (rows, F) in 1/16 dB


class _State:
    """What lanes remember: the last two frames, and the inputs of the convolutions."""

    def __init__(self, started, head, levels, steps, magnitudes, trunk, envelope):
        self.started, self.head, self.levels = started, head, levels
        self.steps, self.magnitudes = steps, magnitudes  # the last, and the one before
        self.trunk, self.envelope = trunk, envelope  # (D, L, KERNEL_SIZE - 1, C)

    @classmethod
    def fresh(cls, lanes, num_bins, blocks):
        levels = np.full((lanes, layout.NUM_BANDS), float(layout.START_LEVEL))
        past = [np.zeros((lanes, num_bins)) for _ in range(4)]
        memory = {
            name: np.zeros((depth, lanes, layout.KERNEL_SIZE - 1, width)) for name, (width, depth) in blocks.items()
        }
        return cls(False, np.zeros((lanes, 2)), levels, past[:2], past[2:], memory["trunk"], memory["envelope"])

    def first(self, lanes):
        """The state of the first lanes only."""
        if lanes == len(self.levels):
            return self
        return _State(
            self.started,
            self.head[:lanes],
            self.levels[:lanes],
            [x[:lanes] for x in self.steps],
            [x[:lanes] for x in self.magnitudes],
            np.ascontiguousarray(self.trunk[:, :lanes]),
            np.ascontiguousarray(self.envelope[:, :lanes]),
        )

    def advance(self, head, levels, steps, magnitudes):
        """The frame that was decoded last."""
        self.started, self.head, self.levels = True, head, levels
        self.steps, self.magnitudes = [steps, self.steps[0]], [magnitudes, self.magnitudes[0]]


# The coder, a frame at a time. What `_Encoder` says `_Decoder` understands, method by method.


class _Symbols(NamedTuple):
    """What a group of codes is written as, for all frames of a block at once."""

    symbols: np.ndarray  # (T, n) int32
    rows: np.ndarray  # (T, n, K) frequencies less one
    escaped: np.ndarray  # (T,) whether more is to be written than symbols
    escape: Callable  # (encoder, t) writes it

    @classmethod
    def of_changes(cls, changes, rows):
        symbols = np.clip(changes, -layout.MAX_CHANGE, layout.MAX_CHANGE) + layout.MAX_CHANGE
        escaped = (np.abs(changes) >= layout.MAX_CHANGE).any(axis=1)
        return cls._of(symbols, rows, escaped, lambda coder, t: coder.beyond_changes(changes[t]))

    @classmethod
    def of_magnitudes(cls, magnitudes, rows, tails):
        escaped = (magnitudes >= ESCAPE).any(axis=1)
        escape = lambda coder, t: coder.beyond_magnitudes(magnitudes[t], tails[t])  # noqa: E731
        return cls._of(np.minimum(magnitudes, ESCAPE), rows, escaped, escape)

    @classmethod
    def _of(cls, symbols, rows, *escapes):
        return cls(np.ascontiguousarray(symbols, np.int32), np.ascontiguousarray(rows), *escapes)


class _Encoder:
    def __init__(self):
        self.stream = entropy.constriction()
        self.coder = self.stream.queue.RangeEncoder()
        self.family = self.stream.model.Categorical(perfect=False)

    def symbols(self, symbols, rows):
        """Symbols (n,) int32, each by its row of frequencies less one (n, K)."""
        self.coder.encode(symbols, self.family, rows)

    def plain(self, value, size):
        self.coder.encode(int(value), self.stream.model.Uniform(size))

    def number(self, value):
        """A number from 0 to 2^16 - 1: its length, then its bits."""
        length = int(value).bit_length()
        self.plain(length, 17)
        if length > 1:
            self.plain(int(value) - (1 << (length - 1)), 1 << (length - 1))

    def head(self, head, before):
        if before is not None:
            stays = bool((head == before).all())
            self.symbols(np.array([0 if stays else 1], np.int32), _stay_row())
            if stays:
                return
        for value in head:
            self.number(2 * value if value >= 0 else -2 * value - 1)

    def beyond_changes(self, changes):
        """How far changes (n,) go beyond the alphabet, of those at its ends."""
        for change in changes[np.abs(changes) >= layout.MAX_CHANGE]:
            self.number(abs(change) - layout.MAX_CHANGE)

    def beyond_magnitudes(self, magnitudes, tails):
        """The same of magnitudes (n,)."""
        beyond = magnitudes >= ESCAPE
        for _ in range(MAX_ESCAPES):
            if not beyond.any():
                return
            magnitudes, tails = magnitudes[beyond] - ESCAPE, tails[beyond]
            self.symbols(np.minimum(magnitudes, ESCAPE).astype(np.int32), _geometric()[tails])
            beyond = magnitudes >= ESCAPE
        for magnitude in magnitudes[beyond]:
            self.number(magnitude - ESCAPE)

    def signs(self, signs):
        """Ones (n,) for coefficients below zero, of those that are not zero."""
        if len(signs):
            self.coder.encode(signs, self.stream.model.Uniform(2))

    def finish(self):
        return entropy.compressed(self.coder)


class _Decoder:
    """One lane. Where its bytes cannot be, it says so in `problem` and goes on with zeros."""

    def __init__(self, data):
        self.stream = entropy.constriction()
        self.coder = entropy.range_decoder(data)
        self.family = self.stream.model.Categorical(perfect=False)
        self.problem: entropy.DamagedCodes | None = None

    def _decode(self, zeros, *model):
        if self.problem is None:
            try:
                return self.coder.decode(*model)
            except AssertionError:  # constriction's way to say that a quantile lies outside the range
                self.problem = entropy.DamagedCodes("it cannot be decoded: the bytes are not this coder's.")
        return zeros

    def symbols(self, rows):
        return self._decode(np.zeros(len(rows), np.int32), self.family, rows)

    def plain(self, size):
        return self._decode(0, self.stream.model.Uniform(size))

    def number(self):
        length = self.plain(17)
        return length if length < 2 else (1 << (length - 1)) + self.plain(1 << (length - 1))

    def head(self, before):
        if before is not None and not self.symbols(_stay_row())[0]:
            return before
        numbers = (self.number() for _ in range(2))
        return np.array([-(number + 1) // 2 if number % 2 else number // 2 for number in numbers], np.float64)

    def beyond(self, magnitudes, tails):
        """Magnitudes (n,) that have their symbols, with what is told of those beyond the alphabet."""
        beyond = np.flatnonzero(magnitudes == ESCAPE)
        for _ in range(MAX_ESCAPES):
            if not len(beyond):
                return magnitudes
            more = self.symbols(_geometric()[tails[beyond]])
            magnitudes[beyond] += more
            beyond = beyond[more == ESCAPE]
        for index in beyond:
            magnitudes[index] += self.number()
        return np.minimum(magnitudes, layout.MAX_CODE + 1)

    def signs(self, count):
        """Ones (count,) for coefficients below zero."""
        if not count:
            return np.zeros(0, np.int32)
        return self._decode(np.zeros(count, np.int32), self.stream.model.Uniform(2), count)

    def finish(self):
        """What is wrong with the bytes, now that they are decoded."""
        if self.problem is None and not self.coder.maybe_exhausted():
            self.problem = entropy.DamagedCodes(entropy.LEFT_OVER)
        return self.problem


def _symbols(decoders, rows):
    """Symbols (L, n) float64 of as many lanes as rows (L, n, K) are for."""
    found = np.empty(rows.shape[:2])
    for lane, decoder in enumerate(decoders):
        found[lane] = decoder.symbols(rows[lane])
    return found


def _one_thread():
    """A context in which products of matrices take one thread.

    These are small: threads that wait for each other on a busy machine make them up to thirty times slower.
    """
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller():
    return threadpoolctl.ThreadpoolController()


# Single steps on whole numbers.


# A frame is several hundred calls of numpy on small arrays: these overwrite what they are given, which no one else holds.


def _limited(x, limit):
    """`x` between -limit and limit, in place; `np.clip` takes longer on small arrays."""
    return np.minimum(np.maximum(x, -limit, out=x), limit, out=x)


def _rounded(x):
    """Activations, in place."""
    return _limited(np.rint(x, out=x), LIMIT)


def _gelu(x):
    """GELU of activations, which are overwritten."""
    x += _GELU_RANGE
    return _gelu_table().take(x.astype(np.intp), mode="clip")  # below the first it is zero


def _compress(magnitudes):
    """`quantizers.scalar.compress` in whole numbers of 1 / UNIT."""
    return _rounded((np.sqrt(np.sqrt(1 + magnitudes)) - 1) * (4 * UNIT))


def _beside(x, distance):
    """The mean of the coefficients `distance` below and above, rounded."""
    total = np.zeros_like(x)
    total[:, distance:] = x[:, :-distance]
    total[:, :-distance] += x[:, distance:]
    total /= 2
    return np.rint(total, out=total)


def _before(x):
    """What the frame before had (T, C), zeros at the first."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def _changes(levels):
    """Change of each level (T, N) from the frame before."""
    return levels - layout.START_LEVEL - _before(levels - layout.START_LEVEL)


def _steps(quality, shaping, levels, num_bins):
    """Steps from quality and shaping (rows,) as coded and levels (rows, N)."""
    envelope = levels @ _interpolation(num_bins)
    total = envelope.sum(-1, keepdims=True)
    shaped = layout.TILT * (num_bins * envelope - total) + layout.LEVEL * total
    eighths = np.rint(shaped * (shaping[:, None] / (2 * layout.SHAPINGS * num_bins)))
    return _Steps(eighths + quality[:, None], envelope)


def _index(x, limit):
    """Index of whole numbers, which are overwritten, in a table from -limit to limit."""
    return (_limited(x, limit) + limit).astype(np.intp)


def _clip_step(difference):
    return _index(difference, 8 * layout.MAX_STEP_DB)


def _grid_index(logits, step, most):
    """Index of a logit in its table."""
    return _index(np.rint(logits / (UNIT * step)), round(most / step))


# Tables, the same everywhere: `decimal` rounds correctly.

_CONTEXT = decimal.Context(prec=40)
_GELU_RANGE = 8 * UNIT


@functools.cache
def _members(num_bins):
    """Membership (F, N) of coefficients to bands, and how many each has (N,)."""
    member = layout.bands(num_bins).astype(np.float64)
    return member, member.sum(0)


@functools.cache
def _interpolation(num_bins):
    """Weights (N, F) of levels, the envelope in 1/16 dB."""
    level = 16 * layout.LEVEL_DB
    weights = np.floor(layout.interpolation(num_bins) * level + 0.5).astype(np.float64)
    weights[weights.argmax(0), np.arange(num_bins)] += level - weights.sum(0)
    return weights


def _sigmoid(x):
    return float(_CONTEXT.divide(1, 1 + _CONTEXT.exp(-_CONTEXT.create_decimal(x))))


@functools.cache
def _gelu_table():
    """GELU by its tanh (Hendrycks and Gimpel 2016) of whole numbers from -_GELU_RANGE on; above 8 it is the identity."""
    x = [decimal.Decimal(i) / UNIT for i in range(_GELU_RANGE + 1)]
    slope = 2 * _CONTEXT.sqrt(2 / decimal.Decimal("3.14159265358979323846264338327950288"))
    shares = np.array([_sigmoid(slope * (value + decimal.Decimal("0.044715") * value**3)) for value in x])
    above = np.arange(_GELU_RANGE + 1) * shares
    below = above - np.arange(_GELU_RANGE + 1)  # as the sigmoid of -x is one less that of x
    return np.concatenate([np.rint(below[:0:-1]), np.rint(above[:-1]), np.arange(_GELU_RANGE, LIMIT + 1)])


@functools.cache
def _powers():
    """10^(x / 20) of eighths of a decibel from -MAX_STEP_DB on."""
    limit = 8 * layout.MAX_STEP_DB
    return np.array([float(_CONTEXT.power(10, decimal.Decimal(i) / 160)) for i in range(-limit, limit + 1)])


@functools.cache
def _exponentials():
    """Weights of 2^20 * exp(-x / UNIT): what is far below the likeliest keeps 1."""
    ratio, first = _CONTEXT.exp(-decimal.Decimal(1) / UNIT), decimal.Decimal(2**20)
    weights = itertools.accumulate(itertools.repeat(ratio, 16 * UNIT - 1), _CONTEXT.multiply, initial=first)
    return np.array([max(1, round(float(weight))) for weight in weights])


def _logistic(step, most):
    limit = round(most / step)
    return np.array([_sigmoid(i * step) for i in range(-limit, limit + 1)])


@functools.cache
def _presence():
    """Share of what is not zero, of all that is to be given away: each symbol has one in any case."""
    return np.floor(_logistic(LOGIT_STEP, MAX_LOGIT) * (TOTAL - ESCAPE - 1))


@functools.cache
def _tails():
    """Shares (two, more, ESCAPE) of the magnitudes from 1 to ESCAPE of what is not zero."""
    two, more = np.meshgrid(*2 * [_logistic(TAIL_STEP, MAX_TAIL)], indexing="ij")
    return np.concatenate([1 - two[..., None], _shares(two, more, ESCAPE - 1)], axis=-1)


@functools.cache
def _geometric():
    """Frequencies less one (more, ESCAPE + 1) of how far a magnitude goes beyond an escape."""
    more = _logistic(TAIL_STEP, MAX_TAIL)
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


@functools.cache
def _stay_row():
    return np.array([[TOTAL - 2.0**8, 2.0**8 - 2]])


@functools.cache
def _band_groups():
    return tuple(np.flatnonzero(number == layout.BAND_ORDER) for number in range(layout.BAND_ORDER.max() + 1))


def _shapes(num_bins, width, depth):
    """Shapes of all weights by name."""
    bands, size, alphabet = layout.NUM_BANDS, layout.BAND_WIDTH, 2 * layout.MAX_CHANGE + 1

    def dense(name, inputs, outputs):
        return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}

    def norm(name, channels):
        return {f"{name}/scale": (channels,), f"{name}/bias": (channels,)}

    shapes = {"mix": (bands, bands, size), "kernel": (bands, size, alphabet), "bias": (bands, alphabet)}
    envelope = "envelope", width // 2, layout.ENVELOPE_DEPTH, 2 * bands
    trunks = ("trunk", width, depth, 3 * num_bins + 2 * bands), envelope
    for trunk, channels, blocks, inputs in trunks:
        shapes |= dense(f"{trunk}_input", inputs, channels) | norm(f"{trunk}_norm", channels)
        for block in (f"{trunk}_block_{number}" for number in range(blocks)):
            shapes |= {
                f"{block}/DepthwiseConv_0/kernel": (layout.KERNEL_SIZE, channels),
                f"{block}/layer_scale": (channels,),
            }
            shapes |= norm(f"{block}/LayerNorm_0", channels)
            inside = layout.EXPANSION * channels
            shapes |= dense(f"{block}/Dense_0", channels, inside) | dense(f"{block}/Dense_1", inside, channels)
    shapes |= dense("hidden", width // 2, bands * size)
    for number, group in enumerate(layout.passes(num_bins)):
        if number:
            shapes |= dense(f"seen_{number}", num_bins, width)
        shapes |= dense(f"up_{number}", width, 2 * width) | dense(f"down_{number}", 2 * width, width)
        shapes |= norm(f"norm_{number}", width) | dense(f"far_{number}", width, 3 * len(group))
        shapes |= dense(f"near_{number}", 4 + len(layout.NEIGHBORS[number]), layout.NEAR_WIDTH)
        shapes |= dense(f"beside_{number}", layout.NEAR_WIDTH, 3)
    return shapes


entropy.MODELS[PriorModel.kind] = PriorModel
