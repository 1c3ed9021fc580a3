"""Definition 1, and the constants of lemmas 5 and 12: T1, T2 and T12 of the notes."""

import jax.numpy as jnp
import numpy as np
import pytest

from rfq.stats import central
from rfq.theory import activations, laws
from rfq.theory.activations import ACTIVATIONS

KNOWN = {"gaussian": 0, "laplace": 3, "uniform": -1.2, "rademacher": -2, "student_5": 6}


@pytest.mark.parametrize("law", sorted(KNOWN))
def test_definition_1_gives_the_kurtosis_of_known_laws(law):
    m = laws.moments_of(law, lambda x: x)
    np.testing.assert_allclose((m.mean, m.m2), (0.0, 1.0), atol=1e-12)
    np.testing.assert_allclose(central.excess_kurtosis(m), KNOWN[law], atol=1e-9)
    affine = laws.moments_of(law, lambda x: 5.0 - 3.0 * x)
    np.testing.assert_allclose(central.excess_kurtosis(affine), KNOWN[law], atol=1e-9)


@pytest.mark.parametrize("p", [0.5, 0.1, 1 / 512])
def test_definition_1_gives_the_kurtosis_of_a_coin(p):
    m = laws.weighted(np.array([0.0, 1.0]), np.array([1.0 - p, p]))
    np.testing.assert_allclose(
        central.excess_kurtosis(m), laws.bernoulli_kurtosis(p), rtol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", sorted(set(KNOWN) - {"student_5"}))
def test_what_is_drawn_follows_the_law(law):
    found = laws.pooled_kurtosis(
        lambda key: laws.LAWS[law].draw(key, (1 << 16,)), seed=0, num_batches=16
    )
    # The rule of the checks, four standard errors; Student's has none to speak of.
    assert abs(found.value - KNOWN[law]) <= 4.0 * found.standard_error + 1e-5


# E phi^k for k = 1..4, and gamma.
LEMMA_12 = {
    "relu": (0.398942, 0.5, 0.797885, 1.5, 2.407639),
    "gelu": (0.282095, 0.425221, 0.675106, 1.304679, 3.084665),
    "tanh_gelu": (0.282039, 0.425194, 0.675111, 1.304910, 3.087026),
}


@pytest.mark.parametrize("phi", sorted(LEMMA_12))
def test_lemma_12_moments_and_kurtosis(phi):
    *raw, gamma = LEMMA_12[phi]
    found = [activations.raw_moment(phi, order) for order in (1, 2, 3, 4)]
    # Six decimals were recorded.
    np.testing.assert_allclose(found, raw, atol=1e-6)
    np.testing.assert_allclose(activations.kurtosis(phi), gamma, atol=1e-6)


def test_lemma_12_kurtosis_of_silu():
    np.testing.assert_allclose(activations.kurtosis("silu"), 3.068513, atol=1e-6)


def test_lemma_12_relu_is_exact_and_the_mean_of_gelu_is_half_over_root_pi():
    exact = (1 / np.sqrt(2 * np.pi), 1 / 2, np.sqrt(2 / np.pi), 3 / 2)
    found = [activations.raw_moment("relu", order) for order in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    mean = activations.raw_moment("gelu", 1)
    np.testing.assert_allclose(mean, 0.5 / np.sqrt(np.pi), rtol=1e-12)


@pytest.mark.parametrize(
    ("variance", "gamma"),
    [(0.0625, 1.436), (0.375, 3.228), (0.5625, 3.278), (1.0, 3.0847), (1.5, 2.866),
     (2.25, 2.6595), (16.0, 2.349)],
)  # fmt: skip
def test_lemma_12_kurtosis_of_gelu_depends_on_the_preactivation(variance, gamma):
    np.testing.assert_allclose(
        activations.kurtosis("gelu", variance), gamma, atol=5.1e-4
    )


def test_lemma_12_gelu_of_a_wide_gaussian_is_relu():
    wide = activations.kurtosis("gelu", 1e6)
    np.testing.assert_allclose(wide, activations.kurtosis("relu"), atol=5e-3)
    # In between it has its maximum.
    low, most, high = (activations.kurtosis("gelu", q) for q in (0.4, 0.5, 0.6))
    assert most > max(low, high) and most == pytest.approx(3.283, abs=5.1e-4)


@pytest.mark.parametrize(
    ("mlp_scale", "variance"), [("gram", 0.375), ("suo_sqrt", 1.5), ("suo", 2.25)]
)
def test_lemma_12_preactivation_variance_by_reading(mlp_scale, variance):
    assert activations.preactivation_variance(mlp_scale) == pytest.approx(variance)


@pytest.mark.parametrize("phi", sorted(ACTIVATIONS))
def test_the_two_forms_of_an_activation_agree(phi):
    x = np.linspace(-6.0, 6.0, 101)
    applied = ACTIVATIONS[phi].apply(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(applied, ACTIVATIONS[phi].exact(x), atol=2e-6)


def test_lemma_5_gain_is_a_half_for_relu_at_every_scale():
    for variance in (1e-4, 1.0, 1e4):
        np.testing.assert_allclose(activations.gain("relu", variance), 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("variance", "gain", "half_a_digit"),
    [
        (1e-4, 0.25005, 5e-6),
        (0.1, 0.2909, 5e-5),
        (1.0, 0.425221, 5e-7),
        (10.0, 0.4948, 5e-5),
        (1e4, 0.5, 5e-7),
    ],
)
def test_lemma_5_and_f_10_gain_of_gelu_depends_on_the_scale(
    variance, gain, half_a_digit
):
    found = activations.gain("gelu", variance)
    assert found == pytest.approx(gain, abs=half_a_digit)
    np.testing.assert_allclose(activations.gelu_gain(variance), found, rtol=1e-12)
