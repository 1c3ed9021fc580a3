"""SQNR, NMSE and their mergeable sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import distortion
from rfq.stats import moments


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
        leaf = moments.to_float64(leaf)
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
