"""The asinh histogram: exact counts, exact merges, nothing lost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.stats import bins as h
from rfq.stats import central

UNIT = h.Binning(0.0, 1.0)


def test_values_land_between_their_edges():
    edges = h.edges()
    # The middle of every bin within reach of float32 asinh.
    middle = np.sinh((np.arcsinh(edges[1:]) + np.arcsinh(edges[:-1])) / 2)
    x = jnp.asarray(middle * 3.0 + 0.5, jnp.float32)
    counts = h.histogram(x, h.Binning(0.5, 3.0)).counts
    np.testing.assert_array_equal(counts, np.ones(h.NUM_BINS))


def test_every_value_is_counted_once_however_far():
    x = jnp.array([0.0, -1e30, 1e30, 1e-30, 5.0, jnp.inf, -jnp.inf, jnp.nan])
    record = h.histogram(x, UNIT)
    assert int(record.counts.sum()) == 8 == int(record.count)
    assert int(record.num_nonfinite) == 3
    # -1e30, -inf and NaN; 1e30 and inf.
    assert record.counts[0] == 3 and record.counts[-1] == 2


def test_batches_merge_to_the_whole_exactly():
    x = jax.random.normal(jax.random.key(0), (4, 1000)) ** 3
    binning = h.robust_binning(x)
    parts = [central.to_float64(h.histogram(row, binning)) for row in x]
    merged = h.merge(h.merge(parts[0], parts[1]), h.merge(parts[2], parts[3]))
    whole = h.histogram(x, binning)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.count == 4000
    np.testing.assert_allclose(merged.sum_log_slope, whole.sum_log_slope, rtol=1e-5)


@pytest.mark.parametrize("other", [(0.0, 2.0), (1.0, 1.0)])
def test_other_binnings_do_not_merge(other):
    a, b = (h.histogram(jnp.ones(3), h.Binning(*made)) for made in (UNIT, other))
    with pytest.raises(ValueError, match="binnings"):
        h.merge(a, b)


def test_layers_are_batch_axes():
    x = jax.random.normal(jax.random.key(1), (3, 100))
    binning = h.Binning(jnp.array([0.0, 1.0, -1.0]), jnp.array([1.0, 2.0, 0.5]))
    stacked = jax.vmap(h.histogram)(x, binning)
    chex.assert_shape(stacked.counts, (3, h.NUM_BINS))
    chex.assert_trees_all_equal(
        stacked.counts[2], h.histogram(x[2], h.Binning(-1.0, 0.5)).counts
    )


def test_robust_bins_have_the_middle_and_the_deviation_of_the_bulk():
    x = np.random.default_rng(0).standard_normal(100_000) * 4.0 + 7.0
    x[:1000] = 1e6
    binning = h.robust_binning(x)
    # 1 % of outliers on one side make .9 the .909 quantile of the others, 4 % farther
    # out; a quantile of 4,096 values has a standard deviation of .1 here.
    np.testing.assert_allclose(binning.center, 7.0, atol=0.4)
    np.testing.assert_allclose(binning.scale, 4.0, rtol=0.1)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros(9), 1.0),
        (np.array([0.0] * 19 + [3.0]), np.sqrt(19 / 20 * 1 / 20) * 3),
        (np.array([np.nan, np.inf]), 1.0),
    ],
)
def test_a_degenerate_sample_has_a_usable_scale(x, expected):
    binning = h.robust_binning(jnp.asarray(x))
    assert binning.center == 0.0
    np.testing.assert_allclose(binning.scale, expected, rtol=1e-6)


@pytest.mark.mesh
def test_one_device_and_eight_count_alike():
    x = np.asarray(jax.random.normal(jax.random.key(2), (64, 300)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")))
    one, eight = (jax.jit(h.histogram)(v, UNIT) for v in (x, sharded))
    np.testing.assert_array_equal(one.counts, eight.counts)
