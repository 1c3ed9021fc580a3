"""Range records and what calibration refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import errors
from rfq.quant import calibrate
from rfq.stats import moments


def observed(x):
    return moments.to_float64(calibrate.observe(jnp.asarray(x)))


def test_merging_ranges_is_pooling():
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    merged = calibrate.merge(
        calibrate.merge(observed(x[0]), observed(x[1])), observed(x[2])
    )
    pooled = observed(x)
    assert merged == pooled
    assert merged.count == 300


def test_min_max_is_the_extremes_of_every_layer():
    x = jnp.arange(24.0).reshape(2, 12) - 5.0
    record = moments.to_float64(jax.vmap(calibrate.observe)(x))
    lo, hi = calibrate.finalize({"mlp_in": record}, ["mlp_in"])["mlp_in"]
    np.testing.assert_array_equal(lo, [-5.0, 7.0])
    np.testing.assert_array_equal(hi, [6.0, 18.0])
    assert lo.dtype == np.float32


def test_non_finite_values_are_counted_not_used():
    record = observed([1.0, jnp.nan, -2.0, jnp.inf, -jnp.inf])
    assert (record.lo, record.hi, record.num_nonfinite) == (-2.0, 1.0, 3.0)


def test_a_site_that_met_nan_is_refused_by_name_and_layer():
    x = jnp.ones((3, 4)).at[1, 2].set(jnp.nan)
    record = moments.to_float64(jax.vmap(calibrate.observe)(x))
    with pytest.raises(
        errors.InputError, match=r"'attn_in' in layers \[2\].*NaN or inf"
    ):
        calibrate.finalize({"attn_in": record}, ["attn_in"])


def test_a_site_that_was_never_reached_is_refused_by_name():
    with pytest.raises(errors.InputError, match=r"'mlp_in'.*never reached.*attn_in"):
        calibrate.finalize({"attn_in": observed([1.0])}, ["attn_in", "mlp_in"])
    nothing = calibrate.Range(*(np.zeros(()) for _ in calibrate.Range._fields))
    with pytest.raises(errors.InputError, match="never reached"):
        calibrate.finalize({"mlp_in": nothing}, ["mlp_in"])
