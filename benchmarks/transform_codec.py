"""A plain transform coder, a baseline without anything learned from end to end: MDCT, one step size, a context model.

The modified discrete cosine transform of Princen and Bradley (1987) with a sine window of 50 ms; every coefficient quantized
with the same step, which for squared error is reverse water-filling; magnitudes coded by a range coder (the library
constriction, Bamler 2022) with tables chosen by what is decoded already: the block before, the average of the past, and the
neighbors in frequency; signs as plain bits. The encoder weighs squared error against bits for each coefficient, and looks
for the step that brings the whole clip just below the rate asked for.

    data = encode(clip, sample_rate, kbps)      # (S,) to bytes: all that `decode` reads
    decoded = decode(data)                      # (S,) float32

The decoder's contexts are integers, so that it follows the encoder exactly. Magnitudes of a block are coded in three passes,
every fourth coefficient, those half-way between, the odd ones, each with the whole block's earlier passes for context.
"""

import functools

import numpy as np
from constriction import stream

HOP_LENGTH = 400  # coefficients of a block, and samples from one to the next: 25 ms at 16 kHz
NUM_SYMBOLS = 64  # magnitudes from the last symbol on are followed by what is above it, 20 bits
LAGRANGIAN = 2 * np.log(2) / 12  # squared steps that a bit is worth, where the step is small
NUM_CLASSES, CLASSES_PER_OCTAVE, LEAST_OCTAVE = 36, 2, -10  # of expected magnitudes, 2^-10 to 2^7.5
PRIOR = 300  # how many observations a table's initial shape counts for
UNIT = 1024  # what one observation adds to a table
AVERAGE_BITS = 8  # fractional bits of the running average

# Expected magnitude in 1/1024: the places of a pass, kernels over frequency (distance 0, 1, 2, ...) on the magnitudes of the
# block before, on their running average and on what is decoded of the block, and a least value. Maximum likelihood under
# geometric distributions on the training clips of the bundled corpus.
PASSES = (
    (slice(0, None, 4), (253, 171, 59, 31, 39), (83, 27, 10, 8), (0,), 9),
    (slice(2, None, 4), (204, 99, 10, 4, 2), (11, 3, 1), (0, 0, 136, 0, 0, 0, 91, 0, 0, 0, 47), 2),
    (slice(1, None, 2), (122, 47, 4), (7, 1), (0, 280, 0, 12, 0, 45, 0, 39), 1),
)


def encode(clip: np.ndarray, sample_rate: int, kbps: float) -> bytes:
    """The bytes of a clip (S,) at the finest step whose file is not above `kbps`, or else at the coarsest.

    The header: the number of samples, 4 bytes, and the step, 1 byte.
    """
    coefficients = analyze(np.asarray(clip, np.float64))
    coarse, fine = 0, 256
    while fine - coarse > 1:
        middle = (coarse + fine) // 2
        if 8e-3 * len(encode_at(coefficients, len(clip), middle)) <= kbps * len(clip) / sample_rate:
            coarse = middle
        else:
            fine = middle
    return encode_at(coefficients, len(clip), coarse)


def encode_at(coefficients: np.ndarray, num_samples: int, fineness: int) -> bytes:
    """The bytes at a given step, from coefficients (T, HOP_LENGTH)."""
    coder = stream.queue.RangeEncoder()
    scaled = coefficients / step(fineness)

    def choose(block, places, counts):
        magnitudes = cheapest(np.abs(scaled[block, places]), counts)
        write(coder, magnitudes, scaled[block, places] < 0, counts)
        return magnitudes

    walk(len(scaled), choose)
    payload = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return num_samples.to_bytes(4, "little") + bytes([fineness]) + payload


def decode(data: bytes) -> np.ndarray:
    """The clip (S,) float32 in the bytes of `encode`."""
    num_samples, fineness, payload = int.from_bytes(data[:4], "little"), data[4], data[5:]
    coder = stream.queue.RangeDecoder(np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32))
    quantized = np.zeros((num_blocks(num_samples), HOP_LENGTH))

    def read_block(block, places, counts):
        magnitudes, negative = read(coder, counts)
        quantized[block, places] = np.where(negative, -magnitudes, magnitudes)
        return magnitudes

    walk(len(quantized), read_block)
    return synthesize(quantized * step(fineness), num_samples).astype(np.float32)


def walk(blocks: int, visit, size: int = HOP_LENGTH) -> None:
    """Goes through all passes of all blocks of `size` coefficients as both sides do, and keeps tables and contexts.

    `visit(block, places, counts)` gets the table (N, NUM_SYMBOLS) of each of the coefficients at `places` and returns their
    magnitudes (N,).
    """
    tables = initial_tables()
    previous, average = (np.zeros(size, np.int64) for _ in range(2))
    for block in range(blocks):
        current = np.zeros(size, np.int64)
        for places, *kernels, least in PASSES:
            sources = (previous << AVERAGE_BITS, average, current << AVERAGE_BITS)
            expected = (least << AVERAGE_BITS) + sum(
                smooth(x, kernel) for x, kernel in zip(sources, kernels, strict=True)
            )
            classes = np.searchsorted(thresholds(), expected[places])
            magnitudes = visit(block, places, tables[classes])
            np.add.at(tables, (classes, np.minimum(magnitudes, NUM_SYMBOLS - 1)), UNIT)
            current[places] = magnitudes
        previous, average = current, average + (((current << AVERAGE_BITS) - average) >> 3)


def cheapest(scaled: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the two integers beside each scaled magnitude (N,) the one of least squared error plus LAGRANGIAN times bits."""
    lower = np.floor(scaled).astype(np.int64)
    bits = np.log2(counts.sum(axis=1, keepdims=True) / counts)
    costs = []
    for candidate in (lower, lower + 1):
        symbols = np.minimum(candidate, NUM_SYMBOLS - 1)
        rate = bits[np.arange(len(bits)), symbols] + (candidate > 0)
        costs.append((scaled - candidate) ** 2 + LAGRANGIAN * rate)
    return np.where(costs[1] < costs[0], lower + 1, lower)


def write(coder, magnitudes, negative, counts):
    """Codes magnitudes (N,) and the signs of those that are not zero."""
    symbols = np.minimum(magnitudes, NUM_SYMBOLS - 1)
    coder.encode(symbols.astype(np.int32), stream.model.Categorical(perfect=False), counts.astype(np.float64))
    above = magnitudes[symbols == NUM_SYMBOLS - 1] - (NUM_SYMBOLS - 1)
    coder.encode(above.astype(np.int32), stream.model.Uniform(2**20))
    coder.encode(negative[magnitudes > 0].astype(np.int32), stream.model.Uniform(2))


def read(coder, counts):
    """What `write` coded: magnitudes (N,) int64 and which are negative (N,)."""
    magnitudes = coder.decode(stream.model.Categorical(perfect=False), counts.astype(np.float64)).astype(np.int64)
    above = magnitudes == NUM_SYMBOLS - 1
    magnitudes[above] += coder.decode(stream.model.Uniform(2**20), int(above.sum()))
    negative = np.zeros(len(magnitudes), bool)
    negative[magnitudes > 0] = coder.decode(stream.model.Uniform(2), int((magnitudes > 0).sum()))
    return magnitudes, negative


def initial_tables() -> np.ndarray:
    """Counts (NUM_CLASSES, NUM_SYMBOLS) int64, UNIT for an observation: geometric distributions of each class's mean."""
    means = 2.0 ** (np.arange(NUM_CLASSES) / CLASSES_PER_OCTAVE + LEAST_OCTAVE)
    ratio = (means / (1 + means))[:, None]
    return 1 + np.rint(UNIT * PRIOR * (1 - ratio) * ratio ** np.arange(NUM_SYMBOLS)).astype(np.int64)


@functools.cache
def thresholds() -> np.ndarray:
    """Edges (NUM_CLASSES - 1,) between the classes of expected magnitudes, in the units of `walk`, int64."""
    octaves = (np.arange(1, NUM_CLASSES) - 0.5) / CLASSES_PER_OCTAVE + LEAST_OCTAVE
    return np.rint(2.0 ** (octaves + 10 + AVERAGE_BITS)).astype(np.int64)


def smooth(values: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Integers (N,) convolved with the symmetric kernel whose values at distances 0, 1, 2, ... are given; zero outside."""
    return np.convolve(values, (*kernel[:0:-1], *kernel))[len(kernel) - 1 :][: len(values)]


def step(fineness: int) -> float:
    """The quantizer's step, from 16 down by a sixteenth of an octave at a time."""
    return 2.0 ** (4 - fineness / 16)


def analyze(clip: np.ndarray) -> np.ndarray:
    """MDCT (T, HOP_LENGTH) of a clip (S,), orthonormal."""
    padded = np.zeros((num_blocks(len(clip)) + 1) * HOP_LENGTH)
    padded[HOP_LENGTH : HOP_LENGTH + len(clip)] = clip
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP_LENGTH)[::HOP_LENGTH] @ basis()


def synthesize(coefficients: np.ndarray, num_samples: int) -> np.ndarray:
    """The clip (num_samples,) of coefficients (T, HOP_LENGTH): overlap and add."""
    blocks = coefficients @ basis().T
    padded = np.zeros((len(blocks) + 1, HOP_LENGTH))
    padded[:-1] += blocks[:, :HOP_LENGTH]
    padded[1:] += blocks[:, HOP_LENGTH:]
    return padded.ravel()[HOP_LENGTH : HOP_LENGTH + num_samples]


def num_blocks(num_samples: int) -> int:
    """T: every sample lies in two blocks."""
    return -(-num_samples // HOP_LENGTH) + 1


@functools.cache
def basis() -> np.ndarray:
    """The MDCT's cosines under their window, (2 M, M) with M = HOP_LENGTH, scaled to be orthonormal."""
    n, k = np.arange(2 * HOP_LENGTH)[:, None] + 0.5, np.arange(HOP_LENGTH) + 0.5
    window = np.sin(np.pi * n / (2 * HOP_LENGTH))
    return np.sqrt(2 / HOP_LENGTH) * window * np.cos(np.pi / HOP_LENGTH * (n + HOP_LENGTH / 2) * k)
