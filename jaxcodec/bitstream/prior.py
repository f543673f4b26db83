"""The learned prior of scalar codes frame by frame: `quantizers.scalar.Prior` in numbers that are equal on every machine.

Frames are coded one after the other: quality and shaping (or that they stay), the envelope's changes in the order of
`layout.BAND_ORDER`, the magnitudes in the passes of `layout.passes`, then the signs. Blocks do not know each other, so many
are decoded side by side: each product then serves all of them. The range coder is that of the library constriction
(Bamler 2022).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxcodec.bitstream import entropy, exact, jit, symbols
from jaxcodec.quantizers import layout


class PriorModel(exact.Network):
    """Weights of a prior."""

    kind = "prior"
    name = b"prior 1"
    coding = 2
    max_block_frames = 2**16 - 1
    band_order = layout.BAND_ORDER
    earlier: "PriorModel | None" = None  # what it was before its large matrices were rounded

    @property
    def num_bins(self):
        return self.weights["seen_1/kernel"].shape[0]

    @functools.cached_property
    def depth(self) -> int:
        """Blocks of the larger trunk."""
        return sum(name.startswith("trunk_block_") and name.endswith("layer_scale") for name in self.weights)

    def shapes(self):
        return _shapes(self.num_bins, self.weights["seen_1/kernel"].shape[1], self.depth)

    @classmethod
    def from_arrays(cls, arrays):
        """The model of the parameters of `quantizers.scalar.Prior`, by path; large matrices in `exact.whole` numbers.

        Files of before they were rounded are coded with its `earlier`.
        """
        earlier = cls(arrays)
        model = cls({name: _whole(array) if exact.is_large(name) else array for name, array in earlier.weights.items()})
        model.earlier = earlier
        return model

    # Coding.

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """What `encode` makes of each block, several at a time: numpy lets other threads work while it does."""
        loops = self._loops(codes.shape[1] for codes in blocks)
        return exact.each(self._encode if loops is None else functools.partial(loops.encode, self), blocks)

    def _loops(self, sizes):
        """What codes so many frames faster, or None."""
        loops = jit.loops(sum(sizes))
        return loops if loops is not None and loops.suits(self) else None

    def _encode(self, codes):
        if not codes.shape[1]:
            return b""
        tables, frames = self.tables(codes), _Frames.of(codes)
        coder = symbols.Encoder()
        changes, magnitudes = _changes(frames.levels), np.abs(frames.coefficients)
        groups = [_Symbols.of_changes(changes[:, bands], tables.envelope[:, bands]) for bands in self.band_groups]
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

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """Codes (num_codebooks, T) int32 of blocks of T in `sizes` frames, or the `DamagedCodes` of one, side by side."""
        loops = self._loops(sizes)
        if loops is not None:
            return exact.each(functools.partial(loops.decode, self), blocks, sizes)
        # The longest first: those at work are always the first ones.
        order = np.argsort(-np.asarray(sizes), kind="stable")
        lengths = np.asarray(sizes)[order]
        decoders = [symbols.Decoder(blocks[index]) for index in order]
        codes = np.zeros((len(order), max(lengths, default=0), num_codebooks), np.int32)
        state = _State.fresh(len(order), self.num_bins, self._blocks)
        with exact.one_thread():
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
        for number, bands in enumerate(self.band_groups):
            found = _symbols(decoders, self.change_rows(hidden, changes, number)) - layout.MAX_CHANGE
            for lane, band in np.argwhere(np.abs(found) == layout.MAX_CHANGE):
                found[lane, band] += np.sign(found[lane, band]) * decoders[lane].number()
            changes[:, bands] = found
        levels = np.clip(state.levels + changes, -layout.MAX_CODE - 1, layout.MAX_CODE)
        steps = exact.steps(head[:, 0], head[:, 1], levels, self.num_bins)
        context = self._context(state.magnitudes, state.steps, steps, levels, state.levels, state.trunk)
        magnitudes = np.zeros((len(decoders), self.num_bins))
        for number, group in enumerate(layout.passes(self.num_bins)):
            rows, tails = self._rows(self._logits(number, context, magnitudes))
            found = _symbols(decoders, rows)
            for lane in np.flatnonzero((found == exact.ESCAPE).any(axis=1)):
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
        steps = exact.steps(frames.quality, frames.shaping, frames.levels, self.num_bins)
        steps_before = _before(steps.steps), _before(_before(steps.steps))
        hidden = self._envelope_hidden(self._heard(before[0]), levels_before, state.envelope)
        envelope = np.zeros((num_frames, layout.NUM_BANDS, 2 * layout.MAX_CHANGE + 1))
        changes = _changes(frames.levels)
        for number, bands in enumerate(self.band_groups):
            envelope[:, bands] = self.change_rows(hidden, changes, number)
        context = self._context(before, steps_before, steps, frames.levels, levels_before, state.trunk)
        logits = (self._logits(number, context, magnitudes) for number in range(len(layout.NEIGHBORS)))
        rows, tails = zip(*(self._rows(x) for x in logits), strict=True)
        return Tables(envelope, rows, tails)

    # The network. Activations are float64 arrays (rows, C) of whole numbers; rows are lanes times frames.

    @property
    def _blocks(self):
        """Width and number of the convolutions of both trunks."""
        depths = {"trunk": self.depth, "envelope": layout.ENVELOPE_DEPTH}
        return {name: (len(self.weights[f"{name}_norm/scale"]), depth) for name, depth in depths.items()}

    def _trunk(self, name, x, memory):
        """A trunk on rows (L * T, C), L lanes that remember in `memory` (D, L, KERNEL_SIZE - 1, C)."""
        x = self.dense(f"{name}_input", x)
        for number, past in enumerate(memory):
            block = f"{name}_block_{number}"
            seen = np.concatenate([past, x.reshape(len(past), -1, x.shape[1])], axis=1)
            past[:] = seen[:, -past.shape[1] :]
            num_frames = seen.shape[1] - past.shape[1]
            kernel = self.float64[f"{block}/DepthwiseConv_0/kernel"]
            if num_frames == 1:
                y = np.add.reduce(seen * kernel, axis=1)
            else:
                y = sum(seen[:, i : i + num_frames] * kernel[i] for i in range(layout.KERNEL_SIZE))
            x = self.after_convolution(block, x, y.reshape(x.shape))
        return self.norm(f"{name}_norm", x)

    def _heard(self, magnitudes):
        """Mean compressed magnitude of each band."""
        member, sizes = exact.members(self.num_bins)
        return np.rint(exact.compress(magnitudes) @ member / sizes)

    def _envelope_hidden(self, heard, levels_before, memory):
        """What the envelope's bands know of the frames before, (rows, N, 32)."""
        before = exact.of_levels(levels_before - layout.START_LEVEL)
        trunk = self._trunk("envelope", np.concatenate([before, heard], axis=1), memory)
        return self.dense("hidden", trunk).reshape(len(trunk), layout.NUM_BANDS, -1)

    def _context(self, magnitudes, steps_before, steps, levels, levels_before, memory):
        """What the passes see of the frames before and of the envelope."""
        past, older = (
            exact.compress(before * exact.powers()[exact.clip_step(then - steps.steps)])
            for before, then in zip(magnitudes, steps_before, strict=True)
        )
        expected = np.rint((steps.envelope - 2 * steps.steps) * 0.8)  # in units of 1/16 dB, to 1 / exact.UNIT of 20 dB
        shapes = [exact.of_levels(x - layout.START_LEVEL) for x in (levels, levels_before)]
        trunk = self._trunk("trunk", np.concatenate([past, older, expected, *shapes], axis=1), memory)
        return trunk, np.stack([expected, past, older, exact.beside(past, 1)], axis=-1)

    def _logits(self, number, context, magnitudes):
        """Logits (rows, G, 3) of the coefficients of a pass; `magnitudes` of later ones are not looked at."""
        h, near = context
        group = layout.passes(self.num_bins)[number]
        near = near[:, group]
        if number:
            seen = exact.compress(magnitudes * layout.known(number, self.num_bins))
            h = exact.rounded(h + self.dense(f"seen_{number}", seen))
            beside = [exact.beside(seen, distance)[:, group, None] for distance in layout.NEIGHBORS[number]]
            near = np.concatenate([near, *beside], axis=-1)
        h = exact.rounded(h + self.dense(f"down_{number}", self.dense_gelu(f"up_{number}", h)))
        far = self.dense(f"far_{number}", self.norm(f"norm_{number}", h))
        hidden = self.dense_gelu(f"near_{number}", near.reshape(-1, near.shape[-1]))
        return far.reshape(len(h), -1, 3) + self.dense(f"beside_{number}", hidden).reshape(len(h), -1, 3)

    def _rows(self, logits):
        """Frequencies less one (rows, G, exact.ESCAPE + 1) of magnitudes, and which tail each has beyond."""
        present = exact.grid_index(logits[..., 0], exact.LOGIT_STEP, exact.MAX_LOGIT)
        two, more = (exact.grid_index(logits[..., i], exact.TAIL_STEP, exact.MAX_TAIL) for i in (1, 2))
        rows = np.empty((*present.shape, exact.ESCAPE + 1))
        np.multiply(exact.tails()[two, more], exact.presence()[present][..., None], out=rows[..., 1:])
        np.floor(rows[..., 1:], out=rows[..., 1:])
        rows[..., 0] = exact.TOTAL - (exact.ESCAPE + 1) - rows[..., 1:].sum(-1)
        return rows, more


class Tables(NamedTuple):
    """Frequencies less one, of the sum 2^24 - K, with which the codes of a block are coded."""

    envelope: np.ndarray  # (T, N, 2 * MAX_CHANGE + 1)
    rows: tuple[np.ndarray, ...]  # of each pass (T, G, exact.ESCAPE + 1)
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


# The coder, a frame at a time. What `symbols.Encoder` says `symbols.Decoder` understands, method by method.


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
        escaped = (magnitudes >= exact.ESCAPE).any(axis=1)
        escape = lambda coder, t: coder.beyond_magnitudes(magnitudes[t], tails[t])  # noqa: E731
        return cls._of(np.minimum(magnitudes, exact.ESCAPE), rows, escaped, escape)

    @classmethod
    def _of(cls, symbols, rows, *escapes):
        return cls(np.ascontiguousarray(symbols, np.int32), np.ascontiguousarray(rows), *escapes)


def _symbols(decoders, rows):
    """Symbols (L, n) float64 of as many lanes as rows (L, n, K) are for."""
    found = np.empty(rows.shape[:2])
    for lane, decoder in enumerate(decoders):
        found[lane] = decoder.symbols(rows[lane])
    return found


def _before(x):
    """What the frame before had (T, C), zeros at the first."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def _changes(levels):
    """Change of each level (T, N) from the frame before."""
    return levels - layout.START_LEVEL - _before(levels - layout.START_LEVEL)


def _whole(matrix):
    numbers, units = exact.whole(matrix.astype(np.float32))
    return numbers * units


def _shapes(num_bins, width, depth):
    """Shapes of all weights by name."""
    shapes = exact.change_shapes(width // 2)
    envelope = "envelope", width // 2, layout.ENVELOPE_DEPTH, 2 * layout.NUM_BANDS
    trunks = ("trunk", width, depth, 3 * num_bins + 2 * layout.NUM_BANDS), envelope
    for trunk, channels, blocks, inputs in trunks:
        shapes |= exact.dense_shapes(f"{trunk}_input", inputs, channels) | exact.norm_shapes(f"{trunk}_norm", channels)
        for number in range(blocks):
            shapes |= exact.block_shapes(f"{trunk}_block_{number}", channels, layout.EXPANSION)
    for number, group in enumerate(layout.passes(num_bins)):
        if number:
            shapes |= exact.dense_shapes(f"seen_{number}", num_bins, width)
        shapes |= exact.dense_shapes(f"up_{number}", width, 2 * width)
        shapes |= exact.dense_shapes(f"down_{number}", 2 * width, width)
        shapes |= exact.norm_shapes(f"norm_{number}", width)
        shapes |= exact.dense_shapes(f"far_{number}", width, 3 * len(group))
        shapes |= exact.dense_shapes(f"near_{number}", 4 + len(layout.NEIGHBORS[number]), layout.NEAR_WIDTH)
        shapes |= exact.dense_shapes(f"beside_{number}", layout.NEAR_WIDTH, 3)
    return shapes


entropy.MODELS[PriorModel.kind] = PriorModel
