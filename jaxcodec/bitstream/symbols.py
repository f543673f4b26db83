"""The range coder of scalar codes, and what they have that is not one symbol.

What `Encoder` says `Decoder` understands, method by method.
"""

import functools

import numpy as np

from jaxcodec.bitstream import entropy, exact
from jaxcodec.quantizers import layout

WRONG = "it cannot be decoded: the bytes are not this coder's."


class Encoder:
    """Symbols to bytes."""

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
            self.symbols(np.array([0 if stays else 1], np.int32), stay_row())
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
        beyond = magnitudes >= exact.ESCAPE
        for _ in range(exact.MAX_ESCAPES):
            if not beyond.any():
                return
            magnitudes, tails = magnitudes[beyond] - exact.ESCAPE, tails[beyond]
            self.symbols(np.minimum(magnitudes, exact.ESCAPE).astype(np.int32), exact.geometric()[tails])
            beyond = magnitudes >= exact.ESCAPE
        for magnitude in magnitudes[beyond]:
            self.number(magnitude - exact.ESCAPE)

    def signs(self, signs):
        """Ones (n,) for coefficients below zero, of those that are not zero."""
        if len(signs):
            self.coder.encode(signs, self.stream.model.Uniform(2))

    def finish(self):
        return entropy.compressed(self.coder)


class Decoder:
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
                self.problem = entropy.DamagedCodes(WRONG)
        return zeros

    def symbols(self, rows):
        return self._decode(np.zeros(len(rows), np.int32), self.family, rows)

    def plain(self, size):
        return self._decode(0, self.stream.model.Uniform(size))

    def number(self):
        length = self.plain(17)
        return length if length < 2 else (1 << (length - 1)) + self.plain(1 << (length - 1))

    def head(self, before):
        if before is not None and not self.symbols(stay_row())[0]:
            return before
        numbers = (self.number() for _ in range(2))
        return np.array([-(number + 1) // 2 if number % 2 else number // 2 for number in numbers], np.float64)

    def beyond(self, magnitudes, tails):
        """Magnitudes (n,) that have their symbols, with what is told of those beyond the alphabet."""
        beyond = np.flatnonzero(magnitudes == exact.ESCAPE)
        for _ in range(exact.MAX_ESCAPES):
            if not len(beyond):
                return magnitudes
            more = self.symbols(exact.geometric()[tails[beyond]])
            magnitudes[beyond] += more
            beyond = beyond[more == exact.ESCAPE]
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


@functools.cache
def stay_row():
    """Frequencies less one (1, 2) of "as in the frame before" and "other"."""
    return np.array([[exact.TOTAL - 2.0**8, 2.0**8 - 2]])
