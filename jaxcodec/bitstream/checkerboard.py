"""The prior that predicts many frames at once: `quantizers.checkerboard` in numbers that are equal on every machine.

A block is coded in steps that each tell codes of many frames: quality and shaping, the envelope by ever shorter stretches,
the magnitudes in the passes of `layout.CHECKERS`, then all signs. What a step knows does not depend on what it tells, so one
walk through them serves both directions: what `_Writer` is given it writes, what `_Reader` is asked for it reads.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxcodec.bitstream import entropy, exact, symbols
from jaxcodec.quantizers import layout

PORTION = 256  # frames of a step that are told together
_MARGIN = 8  # zeros below and above the coefficients, more than the farthest neighbor


class CheckerboardModel(exact.Network):
    """Weights of a `quantizers.checkerboard.CheckerboardPrior`."""

    kind = "checkerboard"
    name = b"checkerboard 1"
    coding = 3
    max_block_frames = 2**12  # of which each takes some 40 kB while it is at work
    band_order = layout.CHECKER_BAND_ORDER

    @property
    def num_bins(self):
        inputs = (
            len(self.weights[f"seen_{number + 1}/kernel"])
            for number, (frame, *_) in enumerate(layout.CHECKERS)
            if not frame
        )
        return sum(inputs)

    @property
    def width(self) -> int:
        """Numbers that it keeps of a frame."""
        return self.weights["input/kernel"].shape[1]

    @functools.cached_property
    def depth(self) -> int:
        """Blocks before the first pass."""
        return sum(name.startswith("block_") and name.endswith("layer_scale") for name in self.weights)

    def shapes(self):
        return _shapes(self.num_bins, self.width, self.depth)

    # Coding.

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """Codes (Q, T) of each block to bytes: 32-bit words, little-endian, without the zero bytes at their end."""
        return exact.each(self._encode, blocks)

    def _encode(self, codes):
        if not codes.shape[1]:
            return b""
        writer = _Writer()
        self._walk(np.asarray(codes).T.astype(np.float64), writer)
        return writer.encoder.finish()

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """Codes (num_codebooks, T) int32 of blocks of T in `sizes` frames, or the `DamagedCodes` of one."""
        return exact.each(lambda block, size: self._decode(block, num_codebooks, size), blocks, sizes)

    def _decode(self, data, num_codebooks, num_frames):
        reader = _Reader(data)
        frames = np.zeros((num_frames, num_codebooks))
        if num_frames:
            frames = self._walk(frames, reader)
        return reader.decoder.finish() or np.ascontiguousarray(frames.T.astype(np.int32))

    def _walk(self, told, coder):
        """Frames (T, Q) as `coder` has them, who is told them too: a writer needs it, a reader does not look."""
        head = coder.heads(told[:, :2])
        levels = self._levels(told[:, 2 : layout.EXTRA], coder)
        steps = exact.steps(head[:, 0], head[:, 1], levels, self.num_bins)
        wanted = told[:, layout.EXTRA :]
        coefficients = self._magnitudes(np.abs(wanted), levels, steps, coder)
        present = coefficients != 0
        coefficients[present] *= 1 - 2.0 * coder.signs(wanted[present] < 0)
        return np.concatenate([head, levels, np.minimum(coefficients, layout.MAX_CODE)], axis=1)

    def _levels(self, told, coder):
        """Levels of the envelope (T, N)."""
        num_frames = len(told)
        levels = np.zeros_like(told)
        for half, frames in _stretches(num_frames):
            before = levels[frames - half] if half else np.full_like(levels[:1], layout.START_LEVEL)
            hidden = self._hidden(levels, before, half, frames)
            changes = np.zeros_like(before)
            wanted = told[frames] - before
            for number, bands in enumerate(self.band_groups):
                changes[:, bands] = coder.changes(wanted[:, bands], self.change_rows(hidden, changes, number))
            levels[frames] = np.clip(before + changes, -layout.MAX_CODE - 1, layout.MAX_CODE)
        return levels

    def _hidden(self, levels, before, half, frames):
        """What is known of each band (n, N, BAND_WIDTH) of frames in the middle of stretches."""
        x = [exact.of_levels(before - layout.START_LEVEL)]
        for distance in layout.MIDDLE_NEIGHBORS:
            places = frames + distance * half
            known = ((half > 0) & (places >= 0) & (places < len(levels)))[:, None].astype(np.float64)
            beside = levels[np.where(known[:, 0], places, 0)]
            x += [exact.of_levels(known * (beside - before)), exact.UNIT * known]
        h = np.concatenate([*x, exact.UNIT * layout.middle_slots(len(levels))[frames]], axis=1)
        for number in range(2):
            h = self.dense_gelu(f"envelope_{number}", h)
        return self.dense("hidden", h).reshape(len(frames), layout.NUM_BANDS, -1)

    def _magnitudes(self, told, levels, steps, coder):
        """Magnitudes (T, F)."""
        member, sizes = exact.members(self.num_bins)
        expected = exact.rounded((steps.envelope - 2 * steps.steps) * 0.8)  # in units of 1/16 dB, to 1 / UNIT of 20 dB
        shape = exact.of_levels(levels - layout.START_LEVEL)
        h = self.dense("input", np.concatenate([np.rint(expected @ member / sizes), shape], axis=1))
        for number in range(self.depth):
            self._block(f"block_{number}", h, slice(None))
        magnitudes, heard = np.zeros_like(told), _Heard(steps.steps)
        for number, (frames, bins) in enumerate(layout.checkers()):
            if number:
                known = layout.checkers()[number - 1]
                h[known[0]] = exact.rounded(h[known[0]] + self.dense(f"seen_{number}", heard.inside(0)[known]))
                self._block(f"seen_block_{number}", h, frames)
            rows = np.arange(len(told))[frames]
            for start in range(0, len(rows), PORTION):
                portion = rows[start : start + PORTION]
                logits = self._logits(number, portion, h, heard, expected)
                found = coder.magnitudes(told[portion, bins].ravel(), *logits)
                magnitudes[portion, bins] = found.reshape(len(portion), -1)
            heard.add(frames, bins, magnitudes)
        return magnitudes

    def _block(self, name, h, frames):
        """A convolution block on some frames of h (T, C), which are changed."""
        kernel = self.float64[f"{name}/DepthwiseConv_0/kernel"]
        reach = layout.KERNEL_SIZE // 2
        longer = np.pad(h, ((reach, reach), (0, 0)))
        changed, step = h[frames], frames.step or 1
        for start in range(0, len(changed), PORTION):
            x = changed[start : start + PORTION]
            first = (frames.start or 0) + step * start
            y = np.zeros_like(x)
            for i in range(layout.KERNEL_SIZE):
                y += longer[first + i : first + i + step * len(x) : step] * kernel[i]
            changed[start : start + PORTION] = self.after_convolution(name, x, y)

    def _logits(self, number, rows, h, heard, expected):
        """Logits of the coefficients of a pass in some frames, three arrays (n,)."""
        _, bins = layout.checkers()[number]
        first = expected[rows, bins].ravel()
        logits = self.dense(f"far_{number}", self.norm(f"norm_{number}", h[rows])).reshape(-1, 3).T.copy()
        worth = np.flatnonzero(first >= np.rint(exact.UNIT * layout.LEAST_EXPECTED))
        near = heard.beside(heard.places[rows, bins].ravel()[worth], layout.CHECKER_NEIGHBORS[number])
        near[0] = first[worth]
        weights = self.float64
        hidden = weights[f"near_{number}/kernel"].T @ near
        hidden += weights[f"near_{number}/bias"][:, None]
        hidden = exact.gelu(hidden)
        beside = weights[f"beside_{number}/kernel"].T @ hidden
        beside += weights[f"beside_{number}/bias"][:, None]
        logits[:, worth] += exact.rounded(beside)
        return logits


class _Heard:
    """Magnitudes that are known, at frames before or after in the steps of these, as the network sees them."""

    def __init__(self, steps):
        self.steps = steps  # (T, F)
        num_frames, self.num_bins = steps.shape
        times = {0} | {time for neighbors in layout.CHECKER_NEIGHBORS for time, _ in neighbors}
        width = self.num_bins + 2 * _MARGIN  # zeros around
        self.at = {time: np.zeros((num_frames, width)) for time in times}
        self.places = width * np.arange(num_frames)[:, None] + np.arange(_MARGIN, _MARGIN + self.num_bins)

    def inside(self, time):
        """Those of frames so far away, (T, F)."""
        return self.at[time][:, _MARGIN : _MARGIN + self.num_bins]

    def add(self, frames, bins, magnitudes):
        """Those of some coefficients of some frames, of magnitudes (T, F)."""
        part = magnitudes[frames, bins]
        row, column = np.divmod(np.flatnonzero(part), part.shape[1])  # most are zero
        there, column = frames.start + frames.step * row, bins.start + bins.step * column
        found, own = magnitudes[there, column], self.steps[there, column]
        for time, heard in self.at.items():
            here = there - time
            exist = slice(*np.searchsorted(here, (0, len(heard))))
            here, bin = here[exist], column[exist]
            scale = exact.powers()[exact.clip_step(own[exist] - self.steps[here, bin])]
            heard[here, _MARGIN + bin] = exact.compress(scale * found[exist])

    def beside(self, places, neighbors):
        """What lies beside coefficients (n,), and a row before it, (1 + len(neighbors), n)."""
        near = np.empty((1 + len(neighbors), len(places)))
        for x, (time, distance) in zip(near[1:], neighbors, strict=True):
            heard = self.at[time].ravel()
            if distance:
                np.add(heard.take(places - distance), heard.take(places + distance), out=x)
                x *= 0.5
                np.rint(x, out=x)
            else:
                heard.take(places, out=x)
        return near


def _stretches(num_frames):
    """Half a stretch and the frames in the middle of such ones, a portion at a time; 0 and the first one before."""
    yield 0, np.zeros(min(num_frames, 1), np.intp)
    half = 2 ** max(num_frames - 1, 1).bit_length() // 2
    while half:
        frames = np.arange(half, num_frames, 2 * half)
        for start in range(0, len(frames), PORTION):
            yield half, frames[start : start + PORTION]
        half //= 2


# The coders: what is told, or zeros where that is to be found out, and what it is coded with, to what was told.


class _Writer:
    def __init__(self):
        self.encoder = symbols.Encoder()

    def _symbols(self, found, rows):
        self.encoder.symbols(np.ascontiguousarray(found, np.int32).ravel(), rows.reshape(-1, rows.shape[-1]))

    def heads(self, head):
        self.encoder.head(head[0], None)
        stays = (head[1:] == head[:-1]).all(axis=1)
        self._symbols(~stays, symbols.stay_row().repeat(len(stays), axis=0))
        for one in head[1:][~stays]:
            self.encoder.head(one, None)
        return head

    def changes(self, changes, rows):
        self._symbols(np.clip(changes, -layout.MAX_CHANGE, layout.MAX_CHANGE) + layout.MAX_CHANGE, rows)
        self.encoder.beyond_changes(changes.ravel())
        return changes

    def magnitudes(self, magnitudes, *logits):
        present = magnitudes != 0
        self._symbols(present, _presence_rows(logits[0]))
        present = np.flatnonzero(present)
        rows, more = _tails(present, *logits)
        found = magnitudes[present]
        self._symbols(np.minimum(found, exact.ESCAPE) - 1, rows)
        self.encoder.beyond_magnitudes(found, more)
        return magnitudes

    def signs(self, signs):
        self.encoder.signs(signs.astype(np.int32))
        return signs


class _Reader:
    def __init__(self, data):
        self.decoder = symbols.Decoder(data)

    def heads(self, head):
        head = np.repeat(self.decoder.head(None)[None], len(head), axis=0)
        changes = self.decoder.symbols(symbols.stay_row().repeat(len(head) - 1, axis=0))
        for frame in np.flatnonzero(changes) + 1:
            head[frame:] = self.decoder.head(None)
        return head

    def changes(self, changes, rows):
        found = self.decoder.symbols(rows.reshape(-1, rows.shape[-1])).astype(np.float64) - layout.MAX_CHANGE
        for place in np.flatnonzero(np.abs(found) == layout.MAX_CHANGE):
            found[place] += np.sign(found[place]) * self.decoder.number()
        return found.reshape(changes.shape)

    def magnitudes(self, magnitudes, *logits):
        magnitudes = np.zeros_like(magnitudes)
        present = np.flatnonzero(self.decoder.symbols(_presence_rows(logits[0])))
        rows, more = _tails(present, *logits)
        magnitudes[present] = self.decoder.beyond(self.decoder.symbols(rows) + 1.0, more)
        return magnitudes

    def signs(self, signs):
        return self.decoder.signs(len(signs))


def _presence_rows(logits):
    """Frequencies less one (n, 2) of "zero" and "not zero"."""
    return _presence().take(exact.grid_index(logits, exact.LOGIT_STEP, exact.MAX_LOGIT), axis=0)


def _tails(present, _, two, more):
    """Frequencies less one (n, ESCAPE) of the magnitudes of those that are not zero, and which tail each has beyond."""
    two, more = (exact.grid_index(x[present], exact.TAIL_STEP, exact.MAX_TAIL) for x in (two, more))
    return _rest()[two, more], more


@functools.cache
def _presence():
    ones = np.floor(exact.logistic(exact.LOGIT_STEP, exact.MAX_LOGIT) * (exact.TOTAL - 2))
    return np.stack([exact.TOTAL - 2 - ones, ones], axis=1)


@functools.cache
def _rest():
    rows = np.floor(exact.tails() * (exact.TOTAL - exact.ESCAPE))
    rows[..., 0] += exact.TOTAL - exact.ESCAPE - rows.sum(-1)
    return rows


def _shapes(num_bins, width, depth):
    """Shapes of all weights by name."""
    inputs = layout.NUM_BANDS + 1
    shapes = exact.dense_shapes("input", 2 * layout.NUM_BANDS, width) | exact.change_shapes(width)
    first = layout.NUM_BANDS + len(layout.MIDDLE_NEIGHBORS) * inputs + layout.MIDDLE_SLOTS
    shapes |= exact.dense_shapes("envelope_0", first, width) | exact.dense_shapes("envelope_1", width, width)
    for number in range(depth):
        shapes |= exact.block_shapes(f"block_{number}", width, layout.CHECKER_EXPANSION)
    sizes = [len(range(num_bins)[bins]) for _, bins in layout.checkers()]
    for number, size in enumerate(sizes):
        if number:
            shapes |= exact.dense_shapes(f"seen_{number}", sizes[number - 1], width)
            shapes |= exact.block_shapes(f"seen_block_{number}", width, layout.CHECKER_EXPANSION)
        shapes |= exact.norm_shapes(f"norm_{number}", width) | exact.dense_shapes(f"far_{number}", width, 3 * size)
        shapes |= exact.dense_shapes(f"near_{number}", 1 + len(layout.CHECKER_NEIGHBORS[number]), layout.NEAR_WIDTH)
        shapes |= exact.dense_shapes(f"beside_{number}", layout.NEAR_WIDTH, 3)
    return shapes


entropy.MODELS[CheckerboardModel.kind] = CheckerboardModel
