"""Corrections of a rounded site: what each restores, and that none does more."""

import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import correct, grid

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 16, 8)) * np.linspace(0.2, 2.0, 8) + np.linspace(-1, 1, 8)
X = jnp.asarray(X, jnp.float32)
X_HAT = grid.fake_quantize(X, grid.grid_from_range(-3.0, 5.0, 3))


def corrected(name):
    return correct.FITS[name](X, X_HAT).apply(X_HAT)


def error(x_hat, axis=(0, 1)):
    return np.mean((np.asarray(x_hat, np.float64) - np.asarray(X)) ** 2, axis=axis)


def test_scale_restores_the_root_mean_square():
    np.testing.assert_allclose(
        jnp.mean(corrected("scale") ** 2), jnp.mean(X**2), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["bias", "bias_and_scale", "bias_and_gain"])
def test_the_mean_of_each_channel_is_restored(name):
    assert np.abs(X_HAT.mean((0, 1)) - X.mean((0, 1))).max() > 0.01
    np.testing.assert_allclose(
        corrected(name).mean((0, 1)), X.mean((0, 1)), rtol=1e-4, atol=1e-5
    )


def test_bias_and_scale_restores_the_deviation_of_each_channel():
    found = corrected("bias_and_scale").std((0, 1))
    np.testing.assert_allclose(found, X.std((0, 1)), rtol=1e-4)


def test_no_line_has_a_smaller_error_than_the_regression():
    fitted = correct.FITS["bias_and_gain"](X, X_HAT)
    best = error(corrected("bias_and_gain"))
    for moved in (
        fitted._replace(gain=1.02 * fitted.gain),
        fitted._replace(offset=fitted.offset + 0.01),
        correct.FITS["bias"](X, X_HAT),
        correct.FITS["bias_and_scale"](X, X_HAT),
    ):
        assert np.all(best <= error(moved.apply(X_HAT)) + 1e-9)
    assert best.mean() < 0.99 * error(X_HAT).mean()


@pytest.mark.parametrize("name", sorted(correct.FITS))
def test_a_channel_that_rounds_to_nothing_stays_finite(name):
    flat = jnp.zeros_like(X_HAT).at[..., 0].set(X_HAT[..., 0])
    fitted = correct.FITS[name](X, flat)
    assert np.isfinite(fitted.apply(flat)).all()
