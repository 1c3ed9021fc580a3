"""Laws and golden numbers of the streamed moments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.stats import central as m


def kurtosis_float64(x):
    """Definition 1 in float64, two passes."""
    d = x.astype(np.float64) - x.astype(np.float64).mean()
    return (d**4).mean() / (d**2).mean() ** 2 - 3.0


def streamed(x, num_batches):
    """Float32 leaves on the device, merged in float64 on the host."""
    total = None
    for batch in x.reshape(num_batches, -1):
        leaf = m.to_float64(m.moments(jnp.asarray(batch)))
        total = leaf if total is None else m.merge(total, leaf)
    return total


def test_relu_of_gaussian_has_the_kurtosis_of_lemma_12():
    x = jax.random.normal(jax.random.key(0), (1 << 20,))
    gamma = m.excess_kurtosis(m.moments(jax.nn.relu(x)))
    # Sampling error of the fourth moment at 2**20 draws is about 0.03.
    chex.assert_trees_all_close(gamma, jnp.float32(2.4076), atol=0.1)


def test_massive_activations_keep_six_digits():
    # 34 values of +-1000 among 4 M: the kurtosis 94188 example, with another draw.
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4_000_000).astype(np.float32)
    x[:17], x[17:34] = 1000.0, -1000.0
    exact = kurtosis_float64(x)
    assert abs(exact - 94_188) < 15  # The draw moves the bulk variance by 1e-4.
    np.testing.assert_allclose(
        m.excess_kurtosis(streamed(rng.permutation(x), 10)), exact, rtol=1e-6
    )


def test_a_mean_of_100_standard_deviations_costs_nothing():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(2_000_000) + 100.0).astype(np.float32)
    # Raw power sums in float32 are off by tens here; a float32 sum of d**4 over 2e5
    # values is off by about 1e-6.
    np.testing.assert_allclose(
        m.excess_kurtosis(streamed(x, 10)), kurtosis_float64(x), atol=1e-5
    )


def test_merging_moments_is_pooling():
    a = jax.random.normal(jax.random.key(1), (64,)) + 3.0
    b = jax.random.normal(jax.random.key(2), (257,)) ** 3
    pooled = m.moments(jnp.concatenate([a, b]))
    # Float32 leaves and a float32 merge: a few ulp of the largest term.
    chex.assert_trees_all_close(m.merge(m.moments(a), m.moments(b)), pooled, rtol=1e-4)


def test_merging_is_associative_and_commutative_in_float64():
    rng = np.random.default_rng(2)
    a, b, c = (
        m.to_float64(m.moments(jnp.asarray(rng.standard_normal(n) * n + k)))
        for n, k in ((7, 0.0), (100, -5.0), (33, 50.0))
    )
    left, right = m.merge(m.merge(a, b), c), m.merge(c, m.merge(b, a))
    chex.assert_trees_all_close(left, right, rtol=1e-12)
    assert left.m4.dtype == np.float64


def test_layers_are_batch_axes():
    x = jax.random.normal(jax.random.key(3), (3, 50)) * jnp.arange(1.0, 4.0)[:, None]
    _, stacked = jax.lax.scan(lambda carry, row: (carry, m.moments(row)), 0, x)
    chex.assert_trees_all_close(stacked, jax.vmap(m.moments)(x), rtol=1e-6)
    chex.assert_shape(stacked.m4, (3,))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_kurtosis_does_not_depend_on_scale(scale):
    # Uniform: 9/5 - 3. The documented range of deviations neither under- nor overflows.
    x = jnp.linspace(-1.0, 1.0, 100_001) * scale
    chex.assert_trees_all_close(
        m.excess_kurtosis(m.moments(x)), jnp.float32(-1.2), atol=1e-4
    )


def test_rms_includes_the_mean():
    x = jnp.array([3.0, 5.0])
    chex.assert_trees_all_close(m.rms(m.moments(x)), jnp.sqrt(17.0), rtol=1e-6)
    chex.assert_trees_all_close(m.variance(m.moments(x)), jnp.float32(1.0))


def test_a_constant_has_no_kurtosis_and_no_warning():
    assert np.isnan(m.excess_kurtosis(m.to_float64(m.moments(jnp.zeros(5)))))


def test_nan_reaches_the_readout():
    assert jnp.isnan(m.excess_kurtosis(m.moments(jnp.array([1.0, jnp.nan, 2.0]))))


@pytest.mark.mesh
def test_one_device_and_eight_agree():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((64, 3000)) * 3.0 + 1.0).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    one = m.to_float64(jax.jit(m.moments)(x))
    eight = m.to_float64(jax.jit(m.moments)(jax.device_put(x, sharding)))
    assert one.count == eight.count == x.size
    # Another order of float32 additions; m3 is a sum that cancels.
    for field in ("mean", "m2", "m4"):
        np.testing.assert_allclose(
            getattr(one, field), getattr(eight, field), rtol=1e-6
        )
    np.testing.assert_allclose(
        m.excess_kurtosis(one), m.excess_kurtosis(eight), atol=1e-5
    )


def test_moments_of_some_values_are_those_of_the_values():
    x = np.random.default_rng(3).standard_normal((50, 3)).astype(np.float32) + 2.0
    kept = np.arange(50) % 3 > 0
    found = m.moments(jnp.asarray(x), axis=0, where=jnp.asarray(kept)[:, None])
    expected = m.moments(jnp.asarray(x[kept]), axis=0)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    # No values change nothing.
    none = m.to_float64(m.moments(jnp.asarray(x), axis=0, where=jnp.zeros((50, 1)) > 0))
    some = m.to_float64(found)
    chex.assert_trees_all_equal(m.merge(none, some), m.merge(some, none), some)
    assert all(not leaf.any() for leaf in m.merge(none, none))
