"""Residual vector quantization with codebooks learned by exponential moving averages.

Pure functions over a `Codebooks` pytree, then the flax module that owns one; its rate is the number of leading codebooks.
Sources: residual vector quantization as in SoundStream (Zeghidour et al. 2021, algorithm 1); EMA codebooks as in VQ-VAE
(van den Oord et al. 2017, appendix A.1); revival of unused entries as in Jukebox (Dhariwal et al. 2020).
"""

import functools
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcodec.quantizers import interface

# Random streams of a row's key, told apart by number: fold_in takes no names.
_DROPOUT, _REVIVAL = 1, 2


class Codebooks(flax.struct.PyTreeNode):
    """Q codebooks of K centroids and the running averages they are made of."""

    centroids: jax.Array  # (Q, K, D)
    counts: jax.Array  # (Q, K) average number of frames a step assigns to each centroid
    sums: jax.Array  # (Q, K, D) average sum of the residuals assigned


class Statistics(flax.struct.PyTreeNode):
    """What one batch tells the codebooks. `counts` and `sums` add up over devices, `candidates` are merged by priority."""

    counts: jax.Array  # (Q, K)
    sums: jax.Array  # (Q, K, D)
    candidates: jax.Array  # (Q, M, D) residuals of M frames drawn at random: seeds for unused centroids
    priorities: jax.Array  # (M,) the random numbers that drew them, descending; -1 where the batch had too few frames


class Trace(flax.struct.PyTreeNode):
    """A pass through all codebooks."""

    codes: jax.Array  # (B, Q, T) int32
    stages: jax.Array  # (Q, B, T, D) the centroid each codebook chose; their sum is the quantized latent
    residuals: jax.Array  # (Q, B, T, D) what entered each codebook


def init_codebooks(rng, num_codebooks: int, codebook_size: int, dim: int, scale: float = 0.01) -> Codebooks:
    """Centroids as normal noise times `scale`; counts of zero, so that the first update already follows the data."""
    centroids = scale * jax.random.normal(rng, (num_codebooks, codebook_size, dim))
    return Codebooks(centroids, jnp.zeros(centroids.shape[:2]), jnp.zeros_like(centroids))


def nearest(vectors: jax.Array, centroids: jax.Array) -> jax.Array:
    """Index of the closest centroid, vectors (..., D) and centroids (K, D) to (...) int32.

    Float32 at the highest matmul precision: with bfloat16 products about one code in 200 is not the nearest.
    """
    products = jnp.matmul(vectors, centroids.T, precision=lax.Precision.HIGHEST)
    half_norms = 0.5 * jnp.sum(centroids**2, axis=-1).reshape((1,) * (vectors.ndim - 1) + (-1,))
    return greatest(products - half_norms, 1)[..., 0]


def greatest(values: jax.Array, count: int) -> jax.Array:
    """Indices (..., count) int32 of the greatest of values (..., N), of equal ones the first, as `lax.top_k` has them."""
    if count > 1:
        return lax.top_k(values, count)[1]
    # On CPU argmax and sorting take several times as long.
    last = values.shape[-1] - 1
    index = jnp.arange(last + 1, dtype=jnp.int32).reshape((1,) * (values.ndim - 1) + (-1,))
    found = values == jnp.max(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(found, index, last), axis=-1, keepdims=True)


def quantize(latents: jax.Array, centroids: jax.Array) -> Trace:
    """Latents (B, T, D) through every codebook of centroids (Q, K, D) in turn, each seeing the residual of the last."""

    def stage(residual, codebook):
        codes = nearest(residual, codebook)
        chosen = codebook[codes]
        return residual - chosen, (codes, chosen, residual)

    _, (codes, stages, residuals) = lax.scan(stage, latents.astype(jnp.float32), centroids)
    return Trace(jnp.moveaxis(codes, 0, 1), stages, residuals)


class Table(flax.struct.PyTreeNode):
    """Codebooks as `search` multiplies with them."""

    entries: jax.Array  # (Q, D, K) whole numbers
    units: jax.Array  # (Q, K) what a one in the column of a centroid stands for
    energies: jax.Array  # (Q, K) of the centroids
    of_few: jax.Array | None = None  # entries in another type, where a machine multiplies few rows in that one

    def factors(self, rows) -> jax.Array:
        """The entries that so many rows are multiplied with."""
        if self.of_few is not None and isinstance(rows, int) and rows <= _FEW:
            return self.of_few
        return self.entries


class Tabulated(Codebooks):
    """Codebooks whose table is known."""

    table: Table


def tabulate(centroids: jax.Array) -> Table:
    """The `Table` of centroids (Q, K, D)."""
    entries, units = _whole(centroids)
    entries, (many, few) = jnp.swapaxes(entries, 1, 2), _product_dtypes()
    of_few = None if few == many else entries.astype(few)
    return Table(entries.astype(many), units, jnp.sum(centroids**2, axis=-1), of_few)


@functools.cache
def _product_dtypes():
    """What this machine multiplies many rows in, and few: of two types with the same products the faster.

    bfloat16, but on a CPU float32 where it has no instructions for that, and for few rows.
    """
    if jax.default_backend() != "cpu":
        return jnp.bfloat16, jnp.bfloat16
    try:
        with open("/proc/cpuinfo") as file:
            return jnp.bfloat16 if "avx512_bf16" in file.read() else jnp.float32, jnp.float32
    except OSError:
        return jnp.float32, jnp.float32


def _whole(vectors):
    """Vectors (..., D) as whole numbers (..., D) and what a one stands for (...).

    They are at most 256, which bfloat16 holds, and so small that a sum of D products is below 2**24, which float32 holds.
    So products of matrices are exact: the same in both, on every backend, of any number of rows and in whatever order they
    add up.
    """
    most = min(256, math.isqrt(2**24 // vectors.shape[-1]))
    units = jnp.maximum(jnp.max(jnp.abs(vectors), axis=-1), 1e-30) / most
    return jnp.round(vectors / units[..., None]), units


def search(
    latents: jax.Array,
    centroids: jax.Array,
    beams: int,
    frame_mask: jax.Array | None = None,
    table: Table | None = None,
    num_codebooks: int | None = None,
    rounded: bool = False,
) -> jax.Array:
    """Codes (B, Q, T) of latents (B, T, D), the best of a beam search; with one beam those of `quantize`, unless `rounded`.

    After each codebook the `beams` beginnings with the least error go on (M-search, LeBlanc et al. 1993): the nearest
    centroid now may leave a residual that later codebooks have no centroid for. Frames that frame_mask (B, T) leaves out
    need not be searched, their codes mean nothing.

    Products of rounded vectors tell which go on, their true errors which is the best; of one beam only where `rounded`.
    `table` is that of the centroids, where it is known already. Of more than `num_codebooks` the first so many are searched.
    """
    if beams == 1 and not rounded:
        return quantize(latents, centroids[:num_codebooks]).codes  # to the bit, also where two centroids are as near
    batch, num_frames, dim = latents.shape
    count = len(centroids) if num_codebooks is None else min(num_codebooks, len(centroids))
    if not count:
        return jnp.zeros((batch, 0, num_frames), jnp.int32)
    centroids = jnp.asarray(centroids)
    stages = _Stages(count, centroids, tabulate(centroids[:count]) if table is None else table)
    frames = latents.astype(jnp.float32).reshape(-1, dim)
    codes = by_blocks(lambda block: _search_frames(block, stages, beams), beams, frame_mask, frames)
    return jnp.moveaxis(codes.reshape(batch, num_frames, count), 2, 1)


_BLOCK, _MOST_BLOCKS = 64, 4  # frames, or twice or four times as many
_ROWS = 512  # of a product, at most: as many as a processor's cache has room for
_GROUP = 32  # centroids
_FEW = 64  # rows of a product: a CPU with bfloat16 multiplies 8 of them in a quarter of the time in float32


def by_blocks(search, rows, frame_mask, *frames):
    """search(*frames) of frames (N, ...), each of which has a result of its own, a block of them at a time.

    As many at once as have their products in a processor's cache, where a frame has so many rows of them, but half of all at
    most, and none of the blocks that frame_mask, of N elements, leaves out. Symbolic sizes are not cut.
    """
    size = frames[0].shape[0]
    if not isinstance(size, int) or size % _BLOCK:
        return search(*frames)
    block = _BLOCK
    while 4 * block <= size and 2 * block <= min(_ROWS // rows, _MOST_BLOCKS * _BLOCK):
        block *= 2
    if frame_mask is None:
        frame_mask = jnp.ones(size, bool)
    missing = -size % block
    arrays = [
        jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, block, *x.shape[1:])
        for x in (frame_mask.reshape(size), *frames)
    ]
    result = jax.eval_shape(search, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in arrays[1:]))

    def search_block(arguments):
        exist, *frames = arguments
        return lax.cond(jnp.any(exist), lambda: search(*frames), lambda: jnp.zeros(result.shape, result.dtype))

    return lax.map(search_block, arrays).reshape(-1, *result.shape[1:])[:size]


class _Stages(NamedTuple):
    """What a search goes through: the first `number` codebooks and their table.

    Both are looked up in the whole. Slices of them would be copies, for every block of frames.
    """

    number: int
    centroids: jax.Array  # (Q, K, D)
    table: Table


def _search_frames(frames, stages, beams):
    """Codes (N, Q) of frames (N, D) in the stages."""
    _, size, dim = stages.centroids.shape
    entries = stages.centroids.reshape(-1, dim)

    def stage(carry, number):
        residuals, errors, paths = carry  # (N, M, D), (N, M), (N, M, Q), M = 1 before the first codebook
        table = jax.tree.map(lambda x: x.at[number].get(mode="promise_in_bounds"), stages.table)
        origins, codes = _best(residuals, errors, table, beams)
        rows = origins + (residuals.shape[1] * jnp.arange(residuals.shape[0]))[:, None]
        residuals = residuals.reshape(-1, dim)[rows] - entries[number * size + codes]
        at = (jnp.arange(stages.number) == number)[None, None]
        paths = jnp.where(at, codes[..., None], paths.reshape(-1, stages.number)[rows])
        return (residuals, jnp.sum(residuals**2, axis=-1), paths), None

    errors = jnp.sum(frames**2, axis=-1)[:, None]
    paths = jnp.zeros((*errors.shape, stages.number), jnp.int32)
    carry, _ = stage((frames[:, None], errors, paths), 0)
    _, errors, paths = lax.scan(stage, carry, jnp.arange(1, stages.number))[0] if stages.number > 1 else carry
    return pick(paths, greatest(-errors, 1))[:, 0]


def nearest_tabulated(vectors: jax.Array, table: Table, number: int) -> jax.Array:
    """`nearest` by rounded products: the codes (N,) of vectors (N, D) in the codebook of a table."""
    table = jax.tree.map(lambda x: x[number], table)
    return _best(vectors[:, None], jnp.zeros_like(vectors[:, :1]), table, 1)[1][:, 0]


def _best(residuals, errors, table, beams):
    """The best `beams` beginnings of one more centroid: which of residuals (N, M, D) it goes on from, and its code.

    The best candidates lie in the groups with the best maxima, of which only these are sorted: on CPU a maximum is 20 times
    faster than sorting.
    """
    (num_frames, num_beams, dim), size = residuals.shape, table.units.shape[0]
    group = math.gcd(size, _GROUP)
    group = group if size // group >= beams else 1
    whole, scales = _whole(residuals)
    vectors = whole.reshape(-1, dim)
    entries = table.factors(vectors.shape[0])
    highest = lax.Precision.HIGHEST  # float32 is to stay what it is
    products = jnp.matmul(vectors.astype(entries.dtype), entries, precision=highest, preferred_element_type=jnp.float32)
    units, energies = (x.reshape(-1, group) for x in (table.units, table.energies))
    # How much less error than nothing a candidate has, (N, M, groups, group).
    gains = products.reshape(num_frames, num_beams, *units.shape) * (2 * scales[..., None, None] * units[None, None])
    gains -= energies[None, None] + errors[..., None, None]
    best = greatest(jnp.max(gains, axis=-1).reshape(num_frames, -1), beams)
    origins, places = lax.div(best, len(units)), lax.rem(best, len(units))
    # The same again of these groups, as gains are never kept.
    rows = best + (num_beams * len(units) * jnp.arange(num_frames))[:, None]
    chosen = products.reshape(-1, group)[rows] * (2 * pick(scales[..., None], origins) * units[places])
    chosen -= energies[places] + pick(errors[..., None], origins)
    index = greatest(chosen.reshape(num_frames, -1), beams)
    of, within = lax.div(index, group), lax.rem(index, group)
    origins, places = (pick(x[..., None], of)[..., 0] for x in (origins, places))
    return origins, places * group + within


def pick(values, origins):
    """Of values (N, M, D) the beams that origins (N, M') name: a gather, by what every backend and ONNX have."""
    chosen = [origins[..., None] == beam for beam in range(values.shape[1])]
    return sum(jnp.where(mask, values[:, None, beam], 0) for beam, mask in enumerate(chosen))


def dequantize(codes: jax.Array, centroids: jax.Array) -> jax.Array:
    """Codes (B, Q', T) of the first Q' <= Q codebooks to quantized latents (B, T, D).

    Soft codes (B, Q', T, K) are a weight for each centroid, whose weighted sums are taken.
    """
    num_codebooks = codes.shape[1]
    if num_codebooks > centroids.shape[0]:
        raise ValueError(f"codes hold {num_codebooks} codebooks, the quantizer has {centroids.shape[0]}.")
    nothing = jnp.zeros((codes.shape[0], codes.shape[2], centroids.shape[-1]))
    # In order, so that decoding codes repeats encoding's additions exactly.
    chosen = centroids[:num_codebooks], jnp.moveaxis(codes, 1, 0)
    if jnp.issubdtype(codes.dtype, jnp.floating):
        mix = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        return lax.scan(lambda total, stage: (total + mix(stage[1], stage[0]), None), nothing, chosen)[0]
    return lax.scan(lambda total, stage: (total + stage[0][stage[1]], None), nothing, chosen)[0]


def keep_codebooks(stages: jax.Array, num_codebooks: jax.Array) -> jax.Array:
    """Quantized latents (B, T, D) from `stages` (Q, B, T, D), clip b using its first num_codebooks[b] codebooks only."""
    used = jnp.arange(stages.shape[0])[:, None] < num_codebooks[None]
    kept = stages * used[:, :, None, None]
    return lax.scan(lambda total, stage: (total + stage, None), jnp.zeros_like(stages[0]), kept)[0]


def commitment(latents: jax.Array, trace: Trace) -> jax.Array:
    """Squared distance of what entered each codebook to the centroid it chose, (Q, B, T), gradient to the latents only.

    The VQ-VAE commitment term (van den Oord et al. 2017, equation 3) at every stage, before the mean: the earlier stages'
    centroids and the chosen one are constants, so each stage pulls the latents towards its own reconstruction.
    """
    constant = lax.stop_gradient(trace.residuals - trace.stages - latents[None])
    return jnp.sum((latents[None] + constant) ** 2, axis=-1)


def statistics(
    trace: Trace,
    frame_mask: jax.Array,
    priorities: jax.Array,
    *,
    codebook_size: int,
    num_candidates: int,
    track_output: bool = False,
) -> Statistics:
    """EMA statistics of one batch; frames where frame_mask (B, T) is false do not exist.

    The sums are those of the *residual that entered* each codebook: the average of a codebook's own output can never move
    it (`track_output=True` makes that mistake on purpose, to study it). `priorities` (B, T) are random numbers in [0, 1);
    the frames with the `num_candidates` highest are the candidates, so the draw does not depend on how a batch is spread
    over devices.
    """
    weights = frame_mask.reshape(-1).astype(jnp.float32)
    tracked = trace.stages if track_output else trace.residuals
    dim = tracked.shape[-1]

    def stage(carry, inputs):
        codes, vectors = inputs
        counts = jax.ops.segment_sum(weights, codes.reshape(-1), codebook_size)
        sums = jax.ops.segment_sum(vectors.reshape(-1, dim) * weights[:, None], codes.reshape(-1), codebook_size)
        return carry, (counts, sums)

    _, (counts, sums) = lax.scan(stage, None, (jnp.moveaxis(trace.codes, 1, 0), tracked))
    drawn, frames = lax.top_k(jnp.where(frame_mask, priorities, -1.0).reshape(-1), min(num_candidates, frame_mask.size))
    candidates = trace.residuals.reshape(-1, frame_mask.size, dim)[:, frames]
    missing = num_candidates - drawn.size
    return Statistics(
        counts,
        sums,
        jnp.pad(candidates, ((0, 0), (0, missing), (0, 0))),
        jnp.pad(drawn, (0, missing), constant_values=-1.0),
    )


def merge_statistics(local: Statistics, axis_name: str | None) -> Statistics:
    """Statistics of the global batch: counts and sums added, candidates re-drawn by priority over all devices."""
    if axis_name is None:
        return local
    candidates = lax.all_gather(local.candidates, axis_name, axis=1, tiled=True)
    priorities, order = lax.top_k(lax.all_gather(local.priorities, axis_name, tiled=True), local.priorities.size)
    return Statistics(
        lax.psum(local.counts, axis_name), lax.psum(local.sums, axis_name), candidates[:, order], priorities
    )


def update_codebooks(
    codebooks: Codebooks, batch: Statistics, *, decay: float, revive_below: float, epsilon: float = 1e-5
) -> Codebooks:
    """One EMA step from the statistics of the global batch.

    centroid = average sum / average count, with Laplace smoothing of the counts. An entry whose count falls below
    `revive_below` times uniform usage is re-seeded with a candidate and given the count and the sum of a centroid in
    average use, or the next update would undo the revival.
    """
    counts = decay * codebooks.counts + (1 - decay) * batch.counts
    sums = decay * codebooks.sums + (1 - decay) * batch.sums
    size = counts.shape[-1]
    total = jnp.sum(counts, axis=-1, keepdims=True)
    smoothed = (counts + epsilon) / (total + size * epsilon) * total
    # An entry that no frame ever chose has no average to follow: its initial centroid stands.
    centroids = jnp.where(counts[..., None] > 0, sums / jnp.maximum(smoothed, epsilon)[..., None], codebooks.centroids)

    dead = counts < revive_below * total / size
    rank = jnp.cumsum(dead, axis=-1) - 1
    revived = dead & (rank < jnp.sum(batch.priorities >= 0))
    seeds = jnp.take_along_axis(batch.candidates, jnp.clip(rank, 0, batch.priorities.size - 1)[..., None], axis=1)
    counts = jnp.where(revived, total / size, counts)
    centroids = jnp.where(revived[..., None], seeds, centroids)
    sums = jnp.where(revived[..., None], seeds * counts[..., None], sums)
    return Codebooks(centroids, counts, sums)


def kmeans_codebooks(
    rng, vectors: jax.Array, num_codebooks: int, codebook_size: int, iterations: int = 10
) -> Codebooks:
    """Codebooks by k-means on the latents `vectors` (N, D), one after the other on the residual; N >= codebook_size."""
    if vectors.shape[0] < codebook_size:
        raise ValueError(
            f"k-means needs at least codebook_size = {codebook_size} frames, got {vectors.shape[0]}: "
            "use a larger batch_size or a smaller codebook_size."
        )
    ones = jnp.ones(vectors.shape[0])

    def lloyd(centroids, residual):
        codes = nearest(residual, centroids)
        counts = jax.ops.segment_sum(ones, codes, codebook_size)
        means = jax.ops.segment_sum(residual, codes, codebook_size) / jnp.maximum(counts, 1)[:, None]
        return jnp.where(counts[:, None] > 0, means, centroids), counts

    def stage(residual, rng):
        first = residual[jax.random.choice(rng, residual.shape[0], (codebook_size,), replace=False)]
        centroids, counts = lax.scan(lambda c, _: lloyd(c, residual), first, length=iterations)
        return residual - centroids[nearest(residual, centroids)], (centroids, counts[-1])

    _, (centroids, counts) = lax.scan(stage, vectors, jax.random.split(rng, num_codebooks))
    counts = jnp.maximum(counts, 1.0)
    return Codebooks(centroids, counts, centroids * counts[..., None])


def doublings(highest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `highest`."""
    return tuple(2**i for i in range(highest.bit_length()) if 2**i < highest) + (highest,)


class ResidualVectorQuantizer(interface.Quantizer):
    """Q codebooks of K centroids; no parameter is trained by gradient."""

    num_codebooks: int
    size: int
    dim: int
    init_scale: float = 0.01
    beams: int = 1  # of the search for codes; in training the nearest centroid is taken
    matmul_precision: str = "default"  # "bfloat16": a search of one beam has rounded products too

    collection = "codebooks"
    penalties = ("commitment",)
    rate_is_a_size = True

    def setup(self):
        self.codebooks = self.variable(self.collection, "state", self._initial)

    def _initial(self):
        rng = self.make_rng("params")
        return init_codebooks(rng, self.num_codebooks, self.size, self.dim, self.init_scale)

    def __call__(self, latents, rates=None, frame_mask=None):
        trace = quantize(lax.stop_gradient(latents), self.codebooks.value.centroids)
        if rates is None:
            rates = jnp.full(latents.shape[:1], self.num_codebooks)
        return interface.Quantized(keep_codebooks(trace.stages, rates), trace.codes, trace)

    def at(self, quantized, rates):
        return quantized.replace(latents=keep_codebooks(quantized.trace.stages, rates))

    def encode(self, latents, rates=None, frame_mask=None):
        return self._search(latents, self.codebooks.value, rates, frame_mask)

    def _search(self, latents, state, num_codebooks, frame_mask):
        """Codes in the first so many codebooks: the best of so many, which need not be the first of more."""
        table = getattr(state, "table", None)
        return search(latents, state.centroids, self.beams, frame_mask, table, num_codebooks, self._rounded)

    @property
    def _rounded(self):
        return self.beams > 1 or self.matmul_precision == "bfloat16"

    def decode(self, codes):
        return dequantize(codes, self.codebooks.value.centroids)

    def penalize(self, latents, quantized, frame_mask):
        energy = lax.stop_gradient(latents) ** 2
        return {"commitment": interface.Penalty(commitment(latents, quantized.trace), energy, self.dim)}

    @property
    def code_range(self):
        return 0, self.size - 1

    @property
    def codebook_size(self):
        return self.size

    def num_rows(self, rate):
        return rate

    @property
    def rates(self):
        return doublings(self.num_codebooks)

    def check_rate(self, rate):
        if rate is None:
            return self.num_codebooks
        if not 1 <= rate <= self.num_codebooks:
            raise ValueError(f"num_codebooks is {rate}, this codec has 1 to {self.num_codebooks}.")
        return rate

    def bits_per_frame(self, rate):
        return rate * math.log2(self.size)

    def draw_rates(self, row_keys, batch, config):
        """Quantizer dropout: with probability `quantizer.dropout` a clip is decoded from 1 to Q codebooks.

        Log-uniformly: few codebooks teach most, and 1 to 2 come up about as often as 8 to 16.
        """
        most = self.num_codebooks

        def draw(key):
            dropped, count = jax.random.split(jax.random.fold_in(key, _DROPOUT))
            fewer = jnp.exp(jax.random.uniform(count, maxval=math.log(most + 1))).astype(jnp.int32)
            return jnp.where(jax.random.uniform(dropped) < config.quantizer.dropout, jnp.minimum(fewer, most), most)

        return jax.vmap(draw)(row_keys)

    def updated(self, state, quantized, frame_mask, row_keys, *, config, axis_name=None):
        draw = functools.partial(jax.random.uniform, shape=frame_mask.shape[1:])
        local = statistics(
            lax.stop_gradient(quantized.trace),
            frame_mask,
            jax.vmap(lambda key: draw(jax.random.fold_in(key, _REVIVAL)))(row_keys),
            codebook_size=self.size,
            num_candidates=config.quantizer.revivals_per_step,
            track_output=not config.fixes.ema_residual,
        )
        merged = merge_statistics(local, axis_name)
        return update_codebooks(state, merged, decay=config.quantizer.decay, revive_below=config.quantizer.revive_below)

    def frames_to_start(self, config):
        """Some for k-means, none for noise."""
        if config.quantizer.init not in ("normal", "kmeans"):
            raise ValueError(f'quantizer.init is "{config.quantizer.init}", expected "normal" or "kmeans".')
        return 8 * self.size if config.quantizer.init == "kmeans" else 0

    def started(self, rng, latents, config):
        """Codebooks by k-means."""
        return jax.jit(kmeans_codebooks, static_argnums=(2, 3))(rng, latents, self.num_codebooks, self.size)

    def constants(self, state):
        return {"centroids": state.centroids}

    def ready(self, constants):
        if not self._rounded:
            return constants
        table = {name: array for name, array in vars(tabulate(constants["centroids"])).items() if array is not None}
        return constants | {"table": table}

    def state_of(self, constants):
        nothing = np.zeros((), np.float32)  # the averages that training needs
        averages = {"counts": nothing, "sums": nothing}
        if "table" in constants:
            return Tabulated(**averages | constants | {"table": Table(**constants["table"])})
        return Codebooks(**averages | constants)

    def resumed(self, constants):
        """The first codebooks of as many or more; averages as if every centroid had been chosen once a step."""
        return self._averaged(constants["centroids"][: self.num_codebooks])

    def _averaged(self, centroids):
        return Codebooks(centroids, jnp.ones(centroids.shape[:2]), centroids)
