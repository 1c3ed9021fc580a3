"""SQNR, NMSE and their mergeable sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import distortion, grid
from rfq.stats import central


def test_sqnr_is_minus_ten_log_of_the_nmse():
    x = jnp.array([3.0, 4.0])
    x_hat = jnp.array([3.0, 3.5])
    # |x|^2 = 25, |x - x_hat|^2 = 0.25.
    np.testing.assert_allclose(distortion.nmse(x, x_hat), 0.01, rtol=1e-6)
    np.testing.assert_allclose(distortion.sqnr_db(x, x_hat), 20.0, rtol=1e-6)


def test_batches_merge_to_the_whole():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 1000)).astype(np.float32) * 50.0
    x_hat = x + rng.standard_normal(x.shape).astype(np.float32) * 0.1
    total = None
    for batch, batch_hat in zip(x, x_hat, strict=True):
        leaf = distortion.measure(jnp.asarray(batch), jnp.asarray(batch_hat))
        leaf = central.to_float64(leaf)
        total = leaf if total is None else distortion.merge(total, leaf)
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    exact = 10 * np.log10((x**2).sum() / ((x - x_hat) ** 2).sum())
    # Float32 sums of 1,000 terms: 1e-6 relative is 4e-6 dB.
    np.testing.assert_allclose(distortion.sqnr_db_of(total), exact, atol=1e-5)


def test_layers_are_batch_axes():
    x = jax.random.normal(jax.random.key(0), (3, 40))
    d = jax.vmap(distortion.measure)(x, 1.1 * x)
    np.testing.assert_allclose(distortion.sqnr_db_of(d), np.full(3, 20.0), atol=1e-4)


@pytest.mark.parametrize("x", [jnp.ones(4), jnp.zeros(4)])
def test_no_noise_is_infinite_decibels(x):
    assert distortion.sqnr_db(x, x) == jnp.inf
    assert distortion.nmse(x, x) == 0.0
    d = distortion.measure(x, x)
    assert distortion.sqnr_db_of(d) == np.inf
    assert distortion.nmse_of(d) == 0.0


@pytest.mark.parametrize("value", [1e30, jnp.nan])
def test_overflow_and_nan_are_not_good_news(value):
    x = jnp.full((4,), value)
    assert jnp.isnan(distortion.sqnr_db(x, jnp.zeros(4)))
    assert np.isnan(distortion.sqnr_db_of(distortion.measure(x, jnp.zeros(4))))


def test_broadcasting_is_refused():
    with pytest.raises(AssertionError):
        distortion.sqnr_db(jnp.ones((2, 3)), jnp.ones((1, 3)))


def test_bulk_sqnr_sees_what_the_tensor_sqnr_hides():
    # Bulk N(0, 1) and a fraction 1e-5 at +-1000: kurtosis near 8e4.
    rng = np.random.default_rng(0)
    x = rng.standard_normal(2_000_000).astype(np.float32)
    x[:10], x[10:20] = 1000.0, -1000.0
    limit = np.quantile(np.abs(x), 0.999)
    for num_bits, tensor_db, bulk_db in (
        (8, 10.4, 0.0),
        (12, 27.4, 17.0),
        (16, 51.5, 41.1),
    ):
        made = grid.grid_from_range(jnp.float32(-1000), jnp.float32(1000), num_bits)
        tensor = distortion.sqnr_db(x, grid.fake_quantize(jnp.asarray(x), made))
        used = distortion.usage(jnp.asarray(x), made, limit)
        # One decimal in the reference; its draw had another number of outliers.
        np.testing.assert_allclose(tensor, tensor_db, atol=0.3)
        np.testing.assert_allclose(
            distortion.sqnr_db_of(distortion.bulk(used)), bulk_db, atol=0.3
        )
        if num_bits == 8:
            assert distortion.dead_fraction(used) > 0.9998


def test_the_plateau_diagnostics_tell_clipping_rounding_and_dead_sites_apart():
    # Planted massive activations, under three calibrations of 8 bits.
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    x[:5] = 3000.0

    def used(half_range):
        made = grid.grid_from_range(-half_range, half_range, 8)
        return distortion.usage(jnp.asarray(x), made, 4.0)

    clipping, dead = used(5.0), used(3000.0)
    assert distortion.clip_noise_fraction(clipping) > 0.99
    assert distortion.dead_fraction(clipping) < 0.05
    assert distortion.clip_noise_fraction(dead) < 0.01
    assert distortion.dead_fraction(dead) > 0.99
    x[:5] = 3.0
    rounding = used(5.5)
    assert distortion.clip_noise_fraction(rounding) < 0.01
    assert distortion.dead_fraction(rounding) < 0.05


def test_usage_merges_to_the_whole_and_counts_exactly():
    x = jax.random.normal(jax.random.key(0), (2, 5000))
    made = grid.grid_from_range(jnp.float32(-1.0), jnp.float32(2.0), 4)
    parts = [central.to_float64(distortion.usage(row, made, 1.5)) for row in x]
    merged = distortion.merge_usage(*parts)
    whole = central.to_float64(distortion.usage(x, made, 1.5))
    np.testing.assert_allclose(merged, whole, rtol=1e-5)
    outside = (x < -1.0 - 0.7 * made.step) | (x > 2.0 + 0.7 * made.step)
    # The rounded zero point moves both ends of the grid by up to half a step.
    assert jnp.sum(outside) <= merged.num_clipped
    step, zero_point = float(made.step), float(made.zero_point)
    ends = np.array([-zero_point - 0.5, 15.0 - zero_point + 0.5]) * step
    exact = np.sum((np.asarray(x) < ends[0]) | (np.asarray(x) > ends[1]))
    assert merged.num_clipped == exact


def test_levels_used_are_counted_and_merged():
    made = grid.grid_from_range(jnp.float32(0.0), jnp.float32(15.0), 4)
    a = distortion.codes_used(jnp.array([0.0, 3.0, 3.1, jnp.nan]), made)
    b = distortion.codes_used(jnp.array([3.0, 99.0]), made)
    assert np.flatnonzero(a).tolist() == [0, 3]
    assert np.flatnonzero(a | b).tolist() == [0, 3, 15]


def test_mean_of_decibels_is_not_decibels_of_the_mean():
    # Sites at 38, 38 and 10 dB.
    found = distortion.summarize(10.0 ** (-np.array([38.0, 38.0, 10.0]) / 10))
    np.testing.assert_allclose(found.mean_sqnr_db, 28.7, atol=0.05)
    np.testing.assert_allclose(-10 * np.log10(found.mean_nmse), 14.8, atol=0.05)
    np.testing.assert_allclose(found.min_sqnr_db, 10.0)


def test_independent_errors_add_at_a_product():
    # 38.15 dB of activations and 44 dB of weights make 37.1 dB.
    def noisy(v, db, seed):
        noise = jax.random.normal(jax.random.key(seed), v.shape)
        return v + 10.0 ** (-db / 20) * noise

    x = jax.random.normal(jax.random.key(1), (512, 768))
    w = jax.random.normal(jax.random.key(2), (768, 256))
    y_hat = noisy(x, 38.15, 3) @ noisy(w, 44.0, 4)
    np.testing.assert_allclose(distortion.sqnr_db(x @ w, y_hat), 37.1, atol=0.1)


@pytest.mark.parametrize(
    ("x", "limits", "expected"),
    [
        # A Gaussian on its own min-max grid: neither, only rounding.
        ({}, (-4.0, 4.0), "rounding"),
        # One value of 1,000 that the range was not told of.
        ({0: 1000.0}, (-4.0, 4.0), "clipping"),
        # The same, told: a step of 8 sigma leaves nothing of the others.
        ({0: 1000.0}, (-1000.0, 1000.0), "dead"),
    ],
)
def test_the_three_ways_to_lose_a_site_are_told_apart(x, limits, expected):
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    for index, value in x.items():
        values[index] = value
    made = grid.grid_from_range(*map(jnp.float32, limits), 8)
    seen = distortion.usage(jnp.asarray(values), made, jnp.float32(3.3))
    share, dead = distortion.clip_noise_fraction(seen), distortion.dead_fraction(seen)
    assert distortion.cause(share, dead) == expected
