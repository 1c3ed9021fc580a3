"""How training stands in for rounding: its value, its energy and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import aware, calibrate, grid

X = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)


def through(kind, target, *, is_on=True, x=X):
    """The value and the slope of the mean."""
    state = aware.Rounding(target, jnp.bool_(is_on), jax.random.key(0))

    def total(x):
        x_hat, record = aware.Train(kind)(x, state)
        assert record is None
        return jnp.sum(x_hat.astype(jnp.float32)), x_hat

    slope, x_hat = jax.grad(total, has_aux=True)(jnp.asarray(x))
    return np.asarray(x_hat), np.asarray(slope)


def test_round_has_the_value_of_rounding_and_no_slope_where_it_clips():
    target = grid.grid_from_range(-1.0, 2.0, 4)
    x_hat, slope = through("round", target)
    np.testing.assert_array_equal(x_hat, grid.fake_quantize(X, target))
    np.testing.assert_array_equal(slope, ~np.asarray(grid.clips(X, target)))
    assert 0.1 < slope.mean() < 0.9


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
def test_noise_has_the_energy_of_the_rounding_error(granularity):
    target = grid.Dynamic(jnp.int32(6), granularity)
    noisy, slope = through("noise", target)
    error = noisy - X
    of_rounding = np.asarray(grid.fake_quantize(X, target)) - X
    # 8,192 squares: 2 % is one and a half standard errors of their ratio.
    assert np.mean(error**2) == pytest.approx(np.mean(of_rounding**2), rel=0.06)
    np.testing.assert_array_equal(slope, 1.0)
    # It is Gaussian, so some of it is beyond half a step, where rounding never is.
    step = np.asarray(grid.grid_for(X, target).step)
    assert np.mean(np.abs(error) > 0.5 * step) == pytest.approx(0.083, abs=0.01)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric_half"])
def test_a_gaussian_range_is_the_calibrator_s(scheme):
    qat = aware.QatConfig(spec="A4", range="gaussian", scheme=scheme)
    target = aware.RANGES[qat.range](qat, jnp.full((3,), 4, jnp.int32))
    found = aware.grid_of(X, jax.tree.map(lambda leaf: leaf[1], target))
    rms = np.sqrt(np.mean(np.square(X, dtype=np.float64)))
    make = grid.SCHEMES[scheme]
    end = rms * calibrate.gaussian_clip(4, make)
    expected = make(-end, end, 4)
    np.testing.assert_allclose(found.step, expected.step, rtol=1e-6)
    assert (found.zero_point, found.levels) == (expected.zero_point, expected.levels)
    _, slope = through("round", found)
    clipped = np.abs(X) > 3 * rms
    assert clipped.any() and not slope[clipped].any()


@pytest.mark.parametrize("kind", sorted(aware.KINDS))
def test_before_it_begins_a_tensor_is_left_alone_whatever_its_range(kind):
    x = np.stack([X[0], np.full(128, np.nan, np.float32)])
    x_hat, slope = through(kind, grid.Dynamic(4, "per_token"), is_on=False, x=x)
    np.testing.assert_array_equal(x_hat, x)
    np.testing.assert_array_equal(slope, 1.0)


@pytest.mark.parametrize("kind", sorted(aware.KINDS))
def test_a_tensor_keeps_its_type(kind):
    x_hat, slope = through(kind, grid.Dynamic(8), x=jnp.asarray(X, jnp.bfloat16))
    assert x_hat.dtype == slope.dtype == jnp.bfloat16
