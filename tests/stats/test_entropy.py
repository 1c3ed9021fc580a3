"""The negentropy table, for the estimate and for the proxies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as laws

from rfq.stats import bins, central
from rfq.stats import entropy as n

NUM_VALUES = 400_000
sample_of = jax.jit(n.sample)


def mixture(fraction, shift, std=1.0):
    """(1 - fraction) N(0, 1) + fraction N(+-shift, std^2): sampler and log density."""

    def sample(rng, size):
        other = rng.random(size) < fraction
        far = shift * rng.choice([-1.0, 1.0], size) + std * rng.standard_normal(size)
        return np.where(other, far, rng.standard_normal(size))

    def log_density(x):
        near = math.log1p(-fraction) + laws.norm.logpdf(x)
        sides = np.logaddexp(
            laws.norm.logpdf(x, shift, std), laws.norm.logpdf(x, -shift, std)
        )
        return np.logaddexp(near, math.log(fraction / 2) + sides)

    return sample, log_density


def frozen(law):
    return lambda rng, size: law.rvs(size, random_state=rng), law.logpdf


def bimodal():
    """N(+-1, .01)."""

    def sample(rng, size):
        return rng.choice([-1.0, 1.0], size) + 0.1 * rng.standard_normal(size)

    def log_density(x):
        sides = (laws.norm.logpdf(x, 1, 0.1), laws.norm.logpdf(x, -1, 0.1))
        return np.logaddexp(*sides) - math.log(2)

    return sample, log_density


# name: ((sampler, log density), exact J, largest bias of the estimate).
LAWS = {
    "gaussian": (frozen(laws.norm()), 0.0, 5e-4),
    "uniform": (frozen(laws.uniform(-1, 2)), 0.176485, 4e-3),
    "laplace": (frozen(laws.laplace()), 0.072365, 5e-4),
    "t5": (frozen(laws.t(5)), 0.046849, 5e-4),
    "logistic": (frozen(laws.logistic()), 0.014362, 5e-4),
    "scale_mixture": (mixture(0.1, 0.0, 3.0), 0.086232, 5e-4),
    "far_1e-2": (mixture(1e-2, 10.0), 0.283641, 5e-4),
    "far_1e-3": (mixture(1e-3, 30.0), 0.312327, 5e-4),
    "far_1e-4": (mixture(1e-4, 100.0), 0.345483, 1e-3),
    "bimodal": (bimodal(), 1.6144, 1e-3),
}


@pytest.mark.parametrize("name", sorted(LAWS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_has_the_reference_value(name, dtype):
    (sample, log_density), exact, bias = LAWS[name]
    x = sample(np.random.default_rng(0), NUM_VALUES)
    found = float(n.negentropy(jnp.asarray(x, dtype)))
    # What this sample says of J when the density is known: the rest is bias.
    terms = 0.5 * (x - x.mean()) ** 2 / x.var() + log_density(x)
    known = 0.5 * math.log(2 * math.pi * x.var()) + terms.mean()
    # bfloat16 rounding moves the ends of a uniform and .04 % of a spacing elsewhere.
    extra = 1e-3 if dtype == "bfloat16" else 0.0
    assert abs(found - known) < bias + extra
    # Four standard deviations of the mean of those terms.
    assert abs(known - exact) < 4 * terms.std() / math.sqrt(x.size) + 1e-5


def test_without_dither_bfloat16_itself_reads_as_negentropy():
    x = jax.random.normal(jax.random.key(0), (NUM_VALUES,)).astype(jnp.bfloat16)
    as_float32 = x.astype(jnp.float32)  # Not bfloat16 any more: no dither.
    np.testing.assert_allclose(n.negentropy(as_float32), 0.0133, atol=2e-3)
    np.testing.assert_allclose(n.negentropy(x), 0.0, atol=5e-4)


def test_dither_stays_within_half_an_ulp_and_fills_it():
    x = jnp.full((10_000,), 3.0, jnp.bfloat16)
    noise = np.asarray(n.dither(x)) - 3.0
    ulp = 2.0 ** (1 - 7)
    assert np.abs(noise).max() <= ulp / 2
    np.testing.assert_allclose(noise.mean(), 0.0, atol=1e-2 * ulp)
    np.testing.assert_allclose(noise.std(), ulp / math.sqrt(12), rtol=1e-2)
    np.testing.assert_array_equal(n.dither(jnp.zeros(3, jnp.bfloat16)), np.zeros(3))


def test_negentropy_does_not_depend_on_units():
    x = jax.random.laplace(jax.random.key(1), (NUM_VALUES,))
    base = n.negentropy(x)
    # Another scale moves values across bins: noise far below the sampling error .002.
    np.testing.assert_allclose(n.negentropy(1e-4 * x), base, atol=1e-3)
    np.testing.assert_allclose(n.negentropy(x + 100.0), base, atol=1e-3)


def test_batches_merge_to_the_whole():
    x = jax.random.laplace(jax.random.key(2), (4, 50_000))
    binning = bins.robust_binning(x)
    merged = None
    for row in x:
        part = central.to_float64(sample_of(row, binning))
        merged = part if merged is None else n.merge(merged, part)
    np.testing.assert_allclose(n.negentropy(merged), n.negentropy(x), atol=2e-4)


def test_layers_are_batch_axes():
    x = jax.random.laplace(jax.random.key(3), (3, 10_000))
    unit = bins.Binning(0.0, 1.0)
    h = jax.vmap(lambda row: bins.histogram(row, unit))(x)
    m = jax.vmap(central.moments)(x)
    found = n.from_histogram(h, central.variance(m))
    alone = n.from_histogram(bins.histogram(x[1], unit), jnp.var(x[1]))
    np.testing.assert_allclose(found[1], alone, atol=1e-5)


@pytest.mark.parametrize("x", [[1.0, np.nan, 2.0, 5.0], [1.0, np.inf, 0.0], [3.0] * 5])
def test_undefined_is_nan(x):
    assert np.isnan(n.negentropy(jnp.asarray(x)))


# name: quantile function, J_A, J_B.
PROXIES = {
    "gaussian": (laws.norm.ppf, 0.0, 0.0),
    "uniform": (laws.uniform.ppf, 0.05151, 0.06446),
    "laplace": (laws.laplace.ppf, 0.09142, 0.08677),
    "t5": (laws.t(5).ppf, 0.04372, 0.05180),
    "logistic": (laws.logistic.ppf, 0.01251, 0.01548),
}


@pytest.mark.parametrize("name", sorted(PROXIES))
def test_the_proxies_have_their_reference_values(name):
    quantile, j_a, j_b = PROXIES[name]
    # Midpoints of equal probability stand for the law, but for the variance of t5.
    x = quantile((np.arange(1_000_000) + 0.5) / 1_000_000)
    c = n.contrasts(jnp.asarray(x), x.mean(), x.std())
    np.testing.assert_allclose(n.hyvarinen_a(c), j_a, rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(n.hyvarinen_b(c), j_b, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PROXIES))
def test_a_histogram_knows_the_proxies(name):
    quantile = PROXIES[name][0]
    x = jnp.asarray(3.0 * quantile((np.arange(100_000) + 0.5) / 100_000) + 1.0)
    layers = jnp.stack([x, -x])  # The layers of a site.
    binnings = jax.vmap(bins.robust_binning)(layers)
    seen = central.to_float64(jax.vmap(n.sample)(layers, binnings))
    exact = n.contrasts(x, x.mean(), x.std())
    for proxy in (n.hyvarinen_a, n.hyvarinen_b):
        found = proxy(n.contrasts_of(seen))
        assert found.shape == (2,)
        np.testing.assert_allclose(found, proxy(exact), rtol=2e-3, atol=1e-6)
