"""Order statistics are those of a sort, bit for bit."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.stats import select

_FLOATS = st.floats(width=32, allow_nan=True, allow_subnormal=False)


@hypothesis.given(st.lists(_FLOATS, min_size=7, max_size=7))
def test_every_rank_is_the_sorted_value(values):
    x = np.array(values, np.float32)
    ranks = jnp.arange(7)
    found = jax.vmap(lambda rank: select.order_statistic(x, rank))(ranks)
    # NaN equals NaN here, and -0.0 equals 0.0.
    np.testing.assert_array_equal(found, np.sort(x))


def test_the_rank_may_differ_by_row():
    x = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    rank = np.arange(15).reshape(3, 5)
    found = jax.jit(select.order_statistic)(x, rank)
    expected = np.take_along_axis(np.sort(x), rank[..., None], -1)[..., 0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_median_is_numpys(n):
    x = np.random.default_rng(n).standard_normal((4, n)).astype(np.float32)
    np.testing.assert_array_equal(select.median(x), np.median(x, axis=-1))


def test_a_row_with_nan_has_it_on_top():
    x = np.array([np.nan, -np.inf, 1.0, np.inf, -2.0], np.float32)
    assert select.order_statistic(x, 2) == 1.0
    assert np.isnan(select.order_statistic(x, 4))
