"""Entropy coding of codes: what a probability model owes, and static context tables of integers.

Codes of residual quantizers are far from uniform and far from independent: each depends on the shallower codes of its own
frame and on the frames beside it. A context of several codes has too many values to count, so an `EntropyModel` walks
through them one by one and remembers only a *state*: a code becomes one of G clusters, and a table of S x G entries
says which state follows from the state before and that cluster. The last state picks the table of K weights that codes
the symbol. Clusters and states are learned by k-means under Kullback-Leibler divergence, so two contexts share a state
when they predict alike (the agglomerative information bottleneck of Slonim and Tishby 1999, with k-means in place of
merging). The range coder is that of the library constriction (Bamler 2022).

Codebooks are coded one after the other within a block: a code may look at shallower codebooks in *any* frame of the
block, later ones included, and at its own codebook's past. So the first Q' codebooks never need the others.

Shapes: codes (Q, T); Q codebooks, K entries, T frames, S states, G clusters, J links of a chain.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

PRECISION = 24  # bits of a probability in constriction's default coders
UNUSED = -1  # source of a link that is not there
MAX_CODEBOOK_SIZE = 2**16
LEFT_OVER = "it goes on after its last code: the bytes are not this coder's."
_ARRAYS = {"links": np.int16, "clusters": np.uint8, "transitions": np.uint8, "weights": np.uint16}


class DamagedCodes(ValueError):
    """Bytes that this model's coder cannot have written."""


class ProbabilityModel(Protocol):
    """What codes of a block can be entropy coded with. `str` of one says what codes it is for."""

    kind: ClassVar[str]  # in files of models, a key of `MODELS`
    coding: ClassVar[int]  # in headers of .jxc files, 1 to 255
    max_block_frames: ClassVar[int]  # which it has in memory at once

    @property
    def digest(self) -> bytes:
        """32 bytes, equal for models that code alike."""

    def fits(self, num_codebooks: int, least_code: int, codebook_size: int) -> bool:
        """Whether it can code such codes."""

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """Codes (Q', T) of each block to bytes. Zero bytes at the end do not count: a reader may see more, or fewer."""

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """What `encode_blocks` wrote, blocks of T in `sizes` frames; `DamagedCodes` where no codes could have led to one."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What it is made of; the static method `from_arrays` takes it back, and raises ValueError where it cannot be."""


class Digested:
    """What is equal where its digest is, and known by that."""

    digest: Any  # bytes, a property

    def __eq__(self, other):
        return isinstance(other, type(self)) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return f"{type(self).__name__}({self.digest.hex()[:16]})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EntropyModel(Digested):
    """Context chains and tables of Q codebooks. Equal models have equal digests.

    Raises:
      ValueError: arrays that do not fit together, with the name of the one at fault.
    """

    links: np.ndarray  # (Q, J, 2) int16: source codebook and frame offset of each context code; source -1 is no link
    clusters: np.ndarray  # (Q, J, K + 1) uint8: cluster of a context code; entry K stands for "outside the block"
    transitions: np.ndarray  # (Q, J, S, G) uint8: the state that follows a state and a cluster
    weights: np.ndarray  # (Q, S, K) uint16: relative frequency of each code in each state

    kind = "tables"
    coding = 1
    max_block_frames = 2**16 - 1

    def __post_init__(self):
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                raise ValueError(f"entropy model: {name} must be an array of {np.dtype(dtype)}.")
        shapes = {name: getattr(self, name).shape for name in _ARRAYS}
        if [len(shape) for shape in shapes.values()] != [3, 3, 4, 3]:
            raise ValueError(f"entropy model: unexpected shapes {shapes}.")
        (q, j, _), (_, _, g), (_, s, k) = self.links.shape, self.transitions.shape[1:], self.weights.shape
        expected = {"links": (q, j, 2), "clusters": (q, j, k + 1), "transitions": (q, j, s, g), "weights": (q, s, k)}
        if shapes != expected or min(q, s, g) < 1 or not 2 <= k <= MAX_CODEBOOK_SIZE:
            raise ValueError(f"entropy model: shapes {shapes} do not fit together.")
        if j and (self.clusters.max() >= g or self.transitions.max() >= s):
            raise ValueError(f"entropy model: clusters must be below {g} and transitions below {s}.")
        for codebook, chain in enumerate(self.links.tolist()):
            for position, (source, offset) in enumerate(chain):
                own_past = source == codebook and offset == -1 and position == len(chain) - 1
                if not (UNUSED <= source < codebook or own_past):
                    raise ValueError(
                        f"entropy model: codebook {codebook} cannot be decoded from codebook {source} at offset {offset}; "
                        "a context is a shallower codebook, or, as the last link, the codebook's own previous frame."
                    )
        if not self.weights.any(axis=-1).all():
            raise ValueError("entropy model: a state whose weights are all zero.")

    @property
    def num_codebooks(self) -> int:
        """Q."""
        return self.weights.shape[0]

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.weights.shape[2]

    def __str__(self):
        return f"{self.num_codebooks} codebooks of {self.codebook_size}"

    def fits(self, num_codebooks: int, least_code: int, codebook_size: int) -> bool:
        """Whether there are tables for such codes."""
        return num_codebooks <= self.num_codebooks and (least_code, codebook_size) == (0, self.codebook_size)

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 over names, shapes and little-endian contents, 32 bytes."""
        return digest(self.to_arrays())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The four integer arrays by name; `from_arrays` takes them back."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "EntropyModel":
        """The model of `to_arrays`. Raises `ValueError` for a missing, unknown or impossible array."""
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"entropy model: got arrays {sorted(arrays)}, expected {sorted(_ARRAYS)}.")
        return cls(**arrays)

    def encode(self, codes: np.ndarray) -> bytes:
        """Codes (Q', T) of the first Q' <= Q codebooks to bytes.

        A range coder's 32-bit words, little-endian, without the zero bytes at their end.
        Raises `ValueError` for codes that this model has no table for.
        """
        self._check(codes.shape[0])
        if codes.size and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise ValueError(f"codes must lie in [0, {self.codebook_size}), got {codes.min()} to {codes.max()}.")
        coder = constriction().queue.RangeEncoder()
        for codebook, row in enumerate(codes):
            tables = self._coder_tables[codebook]
            for code, state in zip(row.tolist(), self.states(codes, codebook).tolist(), strict=True):
                coder.encode(code, tables[state])
        return compressed(coder)

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """What `encode` makes of each block."""
        return [self.encode(codes) for codes in blocks]

    def decode(self, data: bytes, num_codebooks: int, num_frames: int) -> np.ndarray:
        """What `encode` wrote, codes (num_codebooks, num_frames) uint16. Bytes beyond the end count as zero.

        Raises `DamagedCodes` where no code could have led to these bytes, or the coder does not end where an encoder
        does; some damage decodes to wrong codes all the same, so a checksum is the caller's.
        """
        self._check(num_codebooks)
        coder = range_decoder(data)
        codes = np.empty((num_codebooks, num_frames), np.uint16)
        for codebook in range(num_codebooks):
            try:
                codes[codebook] = self._decode_codebook(coder, codes, codebook)
            except AssertionError:  # constriction's way to say that a quantile lies outside the range
                raise DamagedCodes(f"codebook {codebook} cannot be decoded: the bytes are not this coder's.") from None
        if not coder.maybe_exhausted():
            raise DamagedCodes(LEFT_OVER)
        return codes

    def decode_blocks(self, blocks: Sequence[bytes], num_codebooks: int, sizes: Sequence[int]) -> list:
        """What `decode` makes of each block, or the `DamagedCodes` that it raised."""
        return one_by_one(self.decode, blocks, num_codebooks, sizes)

    def _decode_codebook(self, coder, codes: np.ndarray, codebook: int) -> list[int]:
        tables = self._coder_tables[codebook]
        states = self.states(codes, codebook, shallower_only=True).tolist()
        if not self._own_past(codebook):
            return [coder.decode(tables[state]) for state in states]
        clusters, transitions = self.clusters[codebook, -1].tolist(), self.transitions[codebook, -1].tolist()
        code, decoded = self.codebook_size, []
        for state in states:
            code = coder.decode(tables[transitions[state][clusters[code]]])
            decoded.append(code)
        return decoded

    def states(self, codes: np.ndarray, codebook: int, shallower_only: bool = False) -> np.ndarray:
        """The state (T,) in which each code of `codebook` is coded, from codes (Q', T).

        `shallower_only` stops before the link to the codebook's own past.
        """
        states = np.zeros(codes.shape[1], np.uint8)
        chain = self.links[codebook].tolist()
        for j, (source, offset) in enumerate(chain[:-1] if shallower_only and self._own_past(codebook) else chain):
            if source != UNUSED:
                context = self.clusters[codebook, j][_shift(codes[source], offset, self.codebook_size)]
                states = self.transitions[codebook, j][states, context]
        return states

    def bits(self, codes: np.ndarray) -> np.ndarray:
        """Ideal code length of codes (Q', T) by codebook, in bits, (Q',): what `encode` needs but for its rounding up."""
        bits = np.zeros(codes.shape[0])
        for codebook, row in enumerate(codes):
            frequencies = cumulative(self.weights[codebook])
            states = self.states(codes, codebook)
            bits[codebook] = -np.log2((frequencies[states, row + 1] - frequencies[states, row]) / 2**PRECISION).sum()
        return bits

    def _own_past(self, codebook: int) -> bool:
        return self.links.shape[1] > 0 and int(self.links[codebook, -1, 0]) == codebook

    def _check(self, num_codebooks: int) -> None:
        if num_codebooks > self.num_codebooks:
            raise ValueError(f"{num_codebooks} codebooks, the entropy model has tables for {self.num_codebooks}.")

    def __getstate__(self):
        # Without what no other process can be sent.
        return {name: value for name, value in vars(self).items() if name != "_coder_tables"}

    @functools.cached_property
    def _coder_tables(self) -> list[list]:
        """A constriction model for every codebook and state.

        constriction takes floats and adds rounding of its own: it puts the edge below symbol i at
        floor(scale * sum of the entries before i) + i, scale = (2^24 - K) / sum of all. Integer frequencies less one
        sum to 2^24 - K, so scale is exactly 1, every sum is an integer below 2^53, and its edges are ours.
        """
        frequencies = np.diff(cumulative(self.weights)).astype(np.float64)
        categorical = constriction().model.Categorical
        return [[categorical(row - 1.0, perfect=False, lazy=False) for row in codebook] for codebook in frequencies]


def one_by_one(decode, blocks, num_codebooks, sizes) -> list:
    """`ProbabilityModel.decode_blocks` of a model that gains nothing by seeing several."""
    results = []
    for block, size in zip(blocks, sizes, strict=True):
        try:
            results.append(decode(block, num_codebooks, size))
        except DamagedCodes as error:
            results.append(error)
    return results


MODELS: dict[str, Any] = {EntropyModel.kind: EntropyModel}


def from_arrays(kind: str, arrays: dict[str, np.ndarray]) -> ProbabilityModel:
    """The model of a kind that `to_arrays` took apart. Raises `ValueError` where there is none."""
    if kind not in MODELS:
        raise ValueError(f"entropy model: the kind {kind!r} is unknown, this version has {', '.join(MODELS)}.")
    return MODELS[kind].from_arrays(arrays)


def constriction():
    """The library's stream coders, imported when first needed: it has no wheels for Linux on ARM."""
    try:
        from constriction import stream
    except ImportError:
        raise ImportError(
            "entropy coding needs the package constriction, which is not installed: pip install constriction, or write "
            "files of fixed width (entropy=False, on the command line --no_entropy)."
        ) from None
    return stream


def compressed(coder) -> bytes:
    """What a range encoder wrote: 32-bit words, little-endian, without the zero bytes at their end."""
    return of_words(coder.get_compressed())


def of_words(words: np.ndarray) -> bytes:
    """The bytes of 32-bit words (n,), of which `words` makes those again."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def range_decoder(data: bytes):
    """A range decoder of what `compressed` gave; bytes beyond the end count as zero.

    After the last symbol `maybe_exhausted` says whether it has come to the end as an encoder leaves it.
    """
    return constriction().queue.RangeDecoder(words(data))


def words(data: bytes) -> np.ndarray:
    """What a range encoder wrote, as the 32-bit words (n,) uint32 that a decoder reads."""
    data = data.rstrip(b"\0")
    return np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)


def digest(arrays: dict[str, np.ndarray], prefix: bytes = b"") -> bytes:
    """SHA-256 over a prefix and names, shapes and little-endian contents of arrays in their order, 32 bytes."""
    sha = hashlib.sha256(prefix)
    for name, array in arrays.items():
        sha.update(f"{name}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return sha.digest()


def cumulative(weights: np.ndarray) -> np.ndarray:
    """Edges (..., K + 1) of the intervals of [0, 2^24) that weights (..., K) give to each code, int64.

    edge_i = i + floor(sum of the weights before i * (2^24 - K) / sum of all): in integers, and never an empty interval.
    """
    sums = scaled_sums(weights)
    return np.arange(weights.shape[-1] + 1) + np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def scaled_sums(weights: np.ndarray) -> np.ndarray:
    """The edges of `cumulative` above each code less their numbers, (..., K): between two lies a frequency less one."""
    sums = np.cumsum(weights, axis=-1, dtype=np.int64)
    return sums * (2**PRECISION - weights.shape[-1]) // sums[..., -1:]


def context_links(codebook: int) -> list[tuple[int, int]]:
    """The chain `fit` learns for a codebook: (source, frame offset), the most telling first, its own past last.

    Up to four shallower codes of the frame, the next shallower code one frame later and earlier, the previous frame's
    own code. docs/format.md has what other chains reach.
    """
    same_frame = [(source, 0) for source in range(codebook - 1, max(codebook - 5, -1), -1)]
    neighbors = [(codebook - 1, 1), (codebook - 1, -1)] if codebook else []
    return same_frame + neighbors + [(codebook, -1)]


def fit(
    clips: Iterable[np.ndarray],
    codebook_size: int,
    *,
    num_states: int = 64,
    num_clusters: int = 64,
    iterations: int = 12,
    state_smoothing: float = 3000.0,
    weight_smoothing: float = 300.0,
) -> EntropyModel:
    """An `EntropyModel` from the codes (Q, T) of many clips. Deterministic; a few minutes for ten hours of speech.

    The smoothings are counts: a table is its own counts plus that many drawn from the codebook's overall distribution,
    so every code can be coded. `state_smoothing` is the larger, for the many small counts that clustering compares.

    Raises:
      ValueError: no clips, codes outside [0, codebook_size), different numbers of codebooks, more than 256 states.
    """
    clips = [np.asarray(clip) for clip in clips]
    if not clips or len({len(clip) for clip in clips}) != 1:
        raise ValueError(f"fit needs clips of one number of codebooks, got {sorted({len(clip) for clip in clips})}.")
    if min(clip.min(initial=0) for clip in clips) < 0 or max(clip.max(initial=0) for clip in clips) >= codebook_size:
        raise ValueError(f"codes must lie in [0, {codebook_size}).")
    if not (1 <= num_clusters <= 256 and 1 <= num_states <= 256):
        raise ValueError(f"{num_states} states and {num_clusters} clusters, expected 1 to 256 of each.")
    num_codebooks = len(clips[0])
    depth = max(len(context_links(codebook)) for codebook in range(num_codebooks))
    links = np.full((num_codebooks, depth, 2), [UNUSED, 0], np.int16)
    clusters = np.zeros((num_codebooks, depth, codebook_size + 1), np.uint8)
    transitions = np.zeros((num_codebooks, depth, num_states, num_clusters), np.uint8)
    weights = np.zeros((num_codebooks, num_states, codebook_size), np.uint16)
    for codebook in range(num_codebooks):
        codes = np.concatenate([clip[codebook] for clip in clips]).astype(np.int64)
        overall = np.bincount(codes, minlength=codebook_size) + 0.5
        overall /= overall.sum()
        states = np.zeros(codes.size, np.int64)
        chain = context_links(codebook)
        for j, (source, offset) in enumerate(chain, start=depth - len(chain)):
            contexts = np.concatenate([_shift(clip[source], offset, codebook_size) for clip in clips]).astype(np.int64)
            counts = _count(contexts, codes, codebook_size + 1, codebook_size)
            clusters[codebook, j] = _cluster(counts, overall, num_clusters, state_smoothing, iterations)
            pairs = states * num_clusters + clusters[codebook, j][contexts]
            counts = _count(pairs, codes, num_states * num_clusters, codebook_size)
            merged = _cluster(counts, overall, num_states, state_smoothing, iterations)
            links[codebook, j] = source, offset
            transitions[codebook, j] = merged.reshape(num_states, num_clusters)
            states = merged[pairs]
        tables = _distributions(_count(states, codes, num_states, codebook_size), overall, weight_smoothing)
        weights[codebook] = np.maximum(1, np.rint(tables / tables.max(axis=1, keepdims=True) * 65535))
    return EntropyModel(links, clusters, transitions, weights)


def _shift(codes: np.ndarray, offset: int, outside: int) -> np.ndarray:
    """codes[t + offset] for every frame t, `outside` where there is no such frame."""
    if offset == 0:
        return codes
    shifted = np.full(len(codes), outside, np.int32)  # np.pad would take most of the time of a file
    present = codes[max(0, offset) : max(0, len(codes) + min(0, offset))]
    start = max(0, -offset)
    shifted[start : start + len(present)] = present
    return shifted


def _count(contexts, codes, num_contexts, codebook_size) -> np.ndarray:
    """How often each code follows each context, (num_contexts, K)."""
    pairs = np.bincount(contexts * codebook_size + codes, minlength=num_contexts * codebook_size)
    return pairs.reshape(num_contexts, codebook_size).astype(np.float64)


def _distributions(counts, overall, smoothing) -> np.ndarray:
    return (counts + smoothing * overall) / (counts.sum(axis=1, keepdims=True) + smoothing)


def _cluster(counts, overall, size, smoothing, iterations) -> np.ndarray:
    """One of `size` clusters (N,) for each row of counts (N, K): k-means where the distance is the row's code length.

    It starts from the `size` most frequent rows, so nothing is drawn at random.
    """
    start = np.argsort(-counts.sum(axis=1), kind="stable")[:size]
    log_tables = np.log(_distributions(counts[start], overall, smoothing))
    seen = counts.any(axis=1)
    assigned = np.zeros(len(counts), np.int64)
    for _ in range(iterations):
        assigned[seen] = np.argmax(counts[seen] @ log_tables.T, axis=1)
        sums = np.zeros((len(start), counts.shape[1]))
        np.add.at(sums, assigned, counts)
        log_tables = np.log(_distributions(sums, overall, smoothing))
    return assigned
