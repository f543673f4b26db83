"""Residual vector quantization against NumPy: codes, commitment, EMA codebooks, revival, k-means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodec.quantizers import rvq

Q, K, D, B, T = 3, 8, 4, 2, 25
quantize_all = jax.jit(rvq.quantize)
update = jax.jit(rvq.update_codebooks)


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.fixture
def latents():
    return normal(B, T, D)


@pytest.fixture
def centroids():
    return np.stack([normal(K, D, seed=q + 1, scale=0.7**q) for q in range(Q)])


@pytest.fixture
def codebooks(centroids):
    counts = np.random.default_rng(9).uniform(1.0, 5.0, (Q, K)).astype(np.float32)
    return rvq.Codebooks(*map(jnp.asarray, (centroids, counts, centroids * counts[..., None])))


def batch_statistics(latents, centroids, mask=None, *, num_candidates=6, seed=0):
    mask = np.ones(latents.shape[:2], bool) if mask is None else mask
    priorities = np.random.default_rng(seed).uniform(size=mask.shape).astype(np.float32)
    return statistics(quantize_all(latents, centroids), mask, priorities, K, num_candidates)


@functools.partial(jax.jit, static_argnums=(3, 4))
def statistics(quantized, mask, priorities, codebook_size, num_candidates):
    return rvq.statistics(quantized, mask, priorities, codebook_size=codebook_size, num_candidates=num_candidates)


def numpy_quantize(latents, centroids):
    residual, codes, stages, residuals = latents.astype(np.float64), [], [], []
    for codebook in centroids:
        distances = ((residual[..., None, :] - codebook) ** 2).sum(-1)
        codes.append(distances.argmin(-1))
        residuals.append(residual)
        stages.append(codebook[codes[-1]])
        residual = residual - stages[-1]
    return np.stack(codes, 1), np.stack(stages), np.stack(residuals)


def test_nearest_is_the_brute_force_nearest():
    vectors, codebook = normal(40, 100, D), normal(64, D, seed=1)
    expected = ((vectors[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    codes = rvq.nearest(jnp.asarray(vectors), jnp.asarray(codebook))
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, expected)
    rounded = rvq.nearest(jnp.asarray(vectors).astype(jnp.bfloat16), jnp.asarray(codebook))
    assert np.any(rounded != expected)  # what distances in half precision would do


def test_distances_are_float32_at_the_highest_matmul_precision(centroids):
    latents = jnp.zeros((B, T, D), jnp.bfloat16)
    text = jax.jit(rvq.quantize).lower(latents, centroids).as_text()
    (product,) = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert "precision = [HIGHEST, HIGHEST]" in product
    assert text.count("xbf16>") == text.count(f"tensor<{B}x{T}x{D}xbf16>") == 2  # the argument and its cast to float32


def test_quantize_is_the_numpy_reference(latents, centroids):
    quantized = quantize_all(latents, centroids)
    codes, stages, residuals = numpy_quantize(latents, centroids)
    assert quantized.codes.shape == (B, Q, T)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_array_equal(quantized.stages, stages)
    np.testing.assert_allclose(quantized.residuals, residuals, atol=1e-6)


def test_dequantized_codes_are_the_sum_of_the_stages_to_the_bit(latents, centroids):
    quantized = quantize_all(latents, centroids)
    decoded = rvq.dequantize(quantized.codes, centroids)
    np.testing.assert_array_equal(decoded, rvq.keep_codebooks(quantized.stages, jnp.full(B, Q)))
    np.testing.assert_allclose(decoded, quantized.stages.sum(0), atol=1e-6)


def test_dequantize_refuses_more_codebooks_than_there_are(centroids):
    with pytest.raises(ValueError, match=f"codes hold {Q + 1} codebooks, the quantizer has {Q}"):
        rvq.dequantize(jnp.zeros((B, Q + 1, T), jnp.int32), centroids)


def test_keeping_n_codebooks_is_decoding_the_first_n(latents, centroids):
    quantized = quantize_all(latents, centroids)
    kept = rvq.keep_codebooks(quantized.stages, jnp.array([1, 2]))
    for clip, count in enumerate((1, 2)):
        prefix = rvq.dequantize(quantized.codes[clip : clip + 1, :count], centroids)
        np.testing.assert_array_equal(kept[clip], prefix[0])
    assert not np.allclose(kept[0], rvq.dequantize(quantized.codes, centroids)[0])


def test_commitment_is_the_squared_distance_to_the_chosen_centroid(latents, centroids):
    quantized = quantize_all(latents, centroids)
    _, stages, residuals = numpy_quantize(latents, centroids)
    actual = rvq.commitment(jnp.asarray(latents), quantized)
    np.testing.assert_allclose(actual, ((residuals - stages) ** 2).sum(-1), rtol=1e-4, atol=1e-5)


def test_commitment_pulls_the_latents_and_leaves_the_centroids_alone(latents, centroids):
    def total(latents, centroids):
        return jnp.sum(rvq.commitment(latents, rvq.quantize(latents, centroids)))

    to_latents, to_centroids = jax.grad(total, argnums=(0, 1))(jnp.asarray(latents), jnp.asarray(centroids))
    _, stages, residuals = numpy_quantize(latents, centroids)
    np.testing.assert_allclose(to_latents, 2 * (residuals - stages).sum(0), atol=1e-5)
    np.testing.assert_array_equal(to_centroids, 0.0)


def test_statistics_are_counts_and_sums_of_the_residuals_that_entered(latents, centroids):
    mask = np.arange(T) < np.array([[T], [7]])
    actual = batch_statistics(latents, centroids, mask)
    codes, _, residuals = numpy_quantize(latents, centroids)
    for q in range(Q):
        for k in range(K):
            chosen = (codes[:, q] == k) & mask
            assert actual.counts[q, k] == chosen.sum()
            np.testing.assert_allclose(actual.sums[q, k], residuals[q][chosen].sum(0), atol=1e-5)


def test_frames_that_do_not_exist_leave_no_trace(latents, centroids):
    mask = np.arange(T) < np.array([[T], [7]])
    loud = np.where(mask[..., None], latents, 1e3).astype(np.float32)
    few, many = (batch_statistics(x, centroids, mask, num_candidates=B * T) for x in (latents, loud))
    jax.tree.map(np.testing.assert_array_equal, few.replace(candidates=0), many.replace(candidates=0))
    assert np.sum(few.priorities >= 0) == T + 7
    np.testing.assert_array_equal(few.candidates[:, : T + 7], many.candidates[:, : T + 7])
    assert np.abs(batch_statistics(loud, centroids).sums).max() > 1e3  # unmasked, they would


def test_candidates_are_the_residuals_of_the_frames_with_the_highest_priorities(latents, centroids):
    actual = batch_statistics(latents, centroids, num_candidates=5, seed=3)
    priorities = np.random.default_rng(3).uniform(size=(B, T)).astype(np.float32).reshape(-1)
    frames = np.argsort(-priorities)[:5]
    _, _, residuals = numpy_quantize(latents, centroids)
    np.testing.assert_array_equal(actual.priorities, priorities[frames])
    np.testing.assert_allclose(actual.candidates, residuals.reshape(Q, -1, D)[:, frames], atol=1e-6)


@pytest.mark.parametrize("num_shards", [2, 5])
def test_merged_statistics_do_not_depend_on_the_sharding(num_shards, centroids):
    latents, priorities = normal(10, T, D), np.random.default_rng(3).uniform(size=(10, T)).astype(np.float32)
    mask = np.arange(T) < np.random.default_rng(4).integers(
        0, 4, (10, 1)
    )  # some shards have fewer frames than candidates

    def local(latents, mask, priorities, axis_name):
        quantized = rvq.quantize(latents, centroids)
        shard = rvq.statistics(quantized, mask, priorities, codebook_size=K, num_candidates=8)
        return rvq.merge_statistics(shard, axis_name)

    whole = jax.jit(lambda *x: local(*x, None))(latents, mask, priorities)
    shards = [x.reshape(num_shards, -1, *x.shape[1:]) for x in (latents, mask, priorities)]
    merged = jax.jit(jax.vmap(lambda *x: local(*x, "shards"), axis_name="shards"))(*shards)
    for shard in range(num_shards):
        one = jax.tree.map(lambda x, i=shard: x[i], merged)
        np.testing.assert_array_equal(one.priorities, whole.priorities)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, whole)
    assert whole.priorities[-1] >= 0  # every candidate is a real frame


def test_too_few_frames_leave_the_remaining_candidates_unused(latents, centroids, codebooks):
    mask = np.zeros((B, T), bool)
    mask[0, 3] = True
    batch = batch_statistics(latents, centroids, mask, num_candidates=2 * B * T)
    assert batch.candidates.shape == (Q, 2 * B * T, D)
    np.testing.assert_array_equal(batch.priorities >= 0, np.arange(2 * B * T) < 1)
    starved = codebooks.replace(counts=codebooks.counts.at[:, 1:3].set(0.0), sums=codebooks.sums.at[:, 1:3].set(0.0))
    updated = update(starved, batch, decay=0.9, revive_below=0.1)
    revived = np.all(np.isclose(updated.centroids, batch.candidates[:, :1], atol=1e-6), axis=-1)
    assert np.all(revived[:, 1:3].sum(1) == 1)  # one candidate, one revival


def numpy_update(codebooks, batch, decay, epsilon=1e-5):
    counts = decay * np.asarray(codebooks.counts, float) + (1 - decay) * np.asarray(batch.counts)
    sums = decay * np.asarray(codebooks.sums, float) + (1 - decay) * np.asarray(batch.sums)
    total = counts.sum(-1, keepdims=True)
    smoothed = (counts + epsilon) / (total + counts.shape[-1] * epsilon) * total  # Laplace
    return sums / smoothed[..., None], counts, sums


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_ema_update_is_the_numpy_reference(latents, centroids, codebooks, epsilon):
    batch = batch_statistics(latents, centroids)
    updated = update(codebooks, batch, decay=0.8, revive_below=0.0, epsilon=epsilon)
    expected = numpy_update(codebooks, batch, 0.8, epsilon)
    for actual, reference in zip((updated.centroids, updated.counts, updated.sums), expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-6)
    assert np.abs(updated.centroids - codebooks.centroids).max() > 0.1


def test_laplace_smoothing_keeps_the_total_count_and_a_rare_centroid_finite(codebooks):
    rare = codebooks.replace(counts=codebooks.counts.at[:, 0].set(1e-12), sums=codebooks.sums.at[:, 0].set(1e-12))
    nothing = rvq.Statistics(jnp.zeros((Q, K)), jnp.zeros((Q, K, D)), jnp.zeros((Q, 1, D)), -jnp.ones(1))
    updated = update(rare, nothing, decay=0.99, revive_below=0.0, epsilon=1e-2)
    assert np.abs(updated.centroids[:, 0]).max() < 1e-6  # sum / count would be 1
    smoothed = updated.sums[:, 1:] / updated.centroids[:, 1:]
    np.testing.assert_allclose(smoothed[..., 0].sum(-1), 0.99 * rare.counts.sum(-1), rtol=1e-2)


def test_centroids_converge_to_the_mean_of_what_they_are_given():
    latents = normal(1, 400, D) + 3.0
    codebooks = rvq.init_codebooks(jax.random.key(0), 1, 1, D)
    for _ in range(60):
        quantized = quantize_all(latents, codebooks.centroids)
        mask = jnp.ones((1, 400), bool)
        batch = statistics(quantized, mask, jnp.ones((1, 400)), 1, 1)
        codebooks = update(codebooks, batch, decay=0.9, revive_below=0.0)
    np.testing.assert_allclose(codebooks.centroids[0, 0], latents.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(codebooks.counts, 400, rtol=1e-2)  # frames a step


def test_initial_codebooks_stand_until_a_frame_is_counted(centroids):
    fresh = rvq.init_codebooks(jax.random.key(0), Q, K, D, scale=0.01)
    assert 0.005 < np.std(fresh.centroids) < 0.02
    np.testing.assert_array_equal(fresh.counts, 0.0)
    silence = batch_statistics(normal(B, T, D), centroids, np.zeros((B, T), bool))
    updated = update(fresh, silence, decay=0.9, revive_below=0.5)
    np.testing.assert_array_equal(updated.centroids, fresh.centroids)


def test_an_entry_that_was_never_chosen_keeps_its_initial_centroid():
    fresh = rvq.init_codebooks(jax.random.key(0), 1, K, D, scale=1.0)
    latents = np.broadcast_to(fresh.centroids[0, 2], (B, T, D))
    updated = update(fresh, batch_statistics(latents, fresh.centroids), decay=0.9, revive_below=0.0)
    np.testing.assert_allclose(updated.counts[0], 0.1 * B * T * (np.arange(K) == 2), rtol=1e-5)
    np.testing.assert_allclose(updated.centroids, fresh.centroids, rtol=1e-4)


def test_a_revived_entry_survives_the_next_update(latents, centroids, codebooks):
    counts = codebooks.counts.at[:, 5].set(1e-3)
    dead = codebooks.replace(counts=counts, sums=codebooks.centroids * counts[..., None])
    batch = batch_statistics(latents, centroids)
    batch = batch.replace(counts=batch.counts.at[:, 5].set(0.0), sums=batch.sums.at[:, 5].set(0.0))
    once = update(dead, batch, decay=0.9, revive_below=0.01)
    revived = np.asarray(once.centroids[:, 5])
    np.testing.assert_array_equal(revived, batch.candidates[:, 0])
    twice = update(once, batch, decay=0.9, revive_below=0.01)  # again nobody chooses the newcomer
    np.testing.assert_allclose(twice.centroids[:, 5], revived, rtol=1e-3)
    forgetful = once.replace(counts=dead.counts, sums=dead.sums)  # revival without its average, the known mistake
    undone = update(forgetful, batch, decay=0.9, revive_below=0.0)
    assert not np.allclose(undone.centroids[:, 5], revived, rtol=1e-3)


def test_only_entries_below_the_threshold_are_revived_each_with_a_frame_of_its_own(latents, centroids, codebooks):
    counts = jnp.full((Q, K), 4.0).at[:, 1].set(0.1).at[:, 6].set(0.1)
    uneven = codebooks.replace(counts=counts, sums=codebooks.centroids * counts[..., None])
    batch = batch_statistics(latents, centroids)
    batch = batch.replace(counts=jnp.zeros((Q, K)), sums=jnp.zeros((Q, K, D)))
    updated = update(uneven, batch, decay=1.0, revive_below=0.1)
    np.testing.assert_allclose(updated.centroids[:, [1, 6]], batch.candidates[:, :2], rtol=1e-6)
    kept = [k for k in range(K) if k not in (1, 6)]
    np.testing.assert_allclose(updated.centroids[:, kept], uneven.centroids[:, kept], rtol=1e-4)
    np.testing.assert_allclose(updated.counts[:, 1], counts.sum(-1) / K)


def test_kmeans_codebooks_are_better_than_random_ones_and_hold_averages():
    vectors = jnp.asarray(normal(300, D) * np.array([3, 1, 0.3, 0.1], np.float32))
    kmeans = jax.jit(rvq.kmeans_codebooks, static_argnums=(2, 3))
    fitted = kmeans(jax.random.key(0), vectors, Q, K)
    drawn = jnp.stack([vectors[q * K : (q + 1) * K] for q in range(Q)])

    def error(centroids):
        quantized = quantize_all(vectors[None], centroids)
        return jnp.mean((vectors - quantized.stages.sum(0)[0]) ** 2)

    assert error(fitted.centroids) < 0.7 * error(fitted.centroids[:1]) < 0.6 * error(drawn[:1])
    np.testing.assert_allclose(fitted.sums / fitted.counts[..., None], fitted.centroids, rtol=1e-6)
    np.testing.assert_allclose(fitted.counts.sum(-1), 300)
    codes = np.asarray(rvq.nearest(vectors, fitted.centroids[0]))
    means = [vectors[codes == k].mean(0) for k in range(K)]
    assert np.abs(np.stack(means) - fitted.centroids[0]).max() < 0.3  # Lloyd's fixed point, nearly


def test_kmeans_refuses_fewer_frames_than_centroids():
    with pytest.raises(ValueError, match=f"at least codebook_size = {K} frames, got {K - 1}"):
        rvq.kmeans_codebooks(jax.random.key(0), jnp.zeros((K - 1, D)), Q, K)
