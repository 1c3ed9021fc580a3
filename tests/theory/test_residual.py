"""Lemmas 3 and 11: T7 and the closed forms of T8 in the notes."""

import numpy as np
import pytest

from rfq.stats import central
from rfq.theory import activations, laws, residual


@pytest.mark.parametrize(
    ("law", "phi", "d", "gamma"),
    [
        ("gaussian", "relu", 16, 0.270833),
        ("gaussian", "relu", 64, 0.067708),
        ("gaussian", "relu", 768, 0.0056424),
        ("gaussian", "gelu", 16, 0.283364),
        ("gaussian", "gelu", 64, 0.070841),
        ("gaussian", "gelu", 768, 0.0059034),
        ("laplace", "relu", 4, 3.91667),
        ("laplace", "relu", 16, 1.97917),
        ("laplace", "relu", 64, 1.49479),
        ("laplace", "relu", 768, 1.34679),
    ],
)
def test_lemma_11_formula(law, phi, d, gamma):
    # Five to six digits were recorded.
    np.testing.assert_allclose(residual.added_kurtosis(law, phi, d), gamma, rtol=1e-5)


@pytest.mark.parametrize("d", [1, 7, 4096])
def test_lemma_11_relu_of_a_gaussian_is_13_over_3_d(d):
    exact = residual.added_kurtosis("gaussian", "relu", d)
    np.testing.assert_allclose(exact, 13 / (3 * d), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "num_batches", "atol"), [(16, 96, 0.06), (4, 256, 0.15)])
def test_lemma_11_measured(d, num_batches, atol):
    # The notes: 1.968 +- .06 at d = 16, 3.863 +- .15 at d = 4.
    y = residual.sampled_moments("laplace", "relu", d, seed=3, num_batches=num_batches)
    found = laws.kurtosis_of_batches(y)
    predicted = residual.added_kurtosis("laplace", "relu", d)
    assert found.value == pytest.approx(predicted, abs=atol)
    assert 3 * found.standard_error < 1.5 * atol
    # And 1 + m2 = 1.5, where their draw had 1.5009.
    variance = laws.over_batches(central.variance(y))
    assert abs(variance.value - 1.5) < 4 * variance.standard_error < 0.01


@pytest.mark.parametrize(
    ("law", "phi", "m2", "m4", "c22"),
    [
        ("gaussian", "relu", 0.5, 1.5, 1.5),
        ("gaussian", "gelu", 0.425221, 1.304679, 1.398182),
        ("laplace", "relu", 0.5, 3.0, 3.0),
    ],
)
def test_lemma_11_constants(law, phi, m2, m4, c22):
    f = activations.ACTIVATIONS[phi].exact
    found = (
        laws.expect(law, lambda x: f(x) ** 2),
        laws.expect(law, lambda x: f(x) ** 4),
        laws.expect(law, lambda x: (x * f(x)) ** 2),
    )
    # Six decimals were noted.
    np.testing.assert_allclose(found, (m2, m4, c22), atol=6e-7)


@pytest.mark.parametrize(("phi", "factor"), [("relu", 0.444), ("gelu", 0.492)])
def test_lemma_11_contracts_at_every_width(phi, factor):
    # adding a branch of variance m2 to a wide stream divides gamma by (1 + m2)^2.
    m2 = activations.raw_moment(phi, 2)
    assert residual.wide_kurtosis(1.0, m2) == pytest.approx(factor, abs=5.1e-4)
    wide = residual.added_kurtosis("laplace", "relu", 10**9)
    np.testing.assert_allclose(wide, 4 / 3, rtol=1e-6)


def test_t_8_unrolled_additions_agree_with_their_recursion():
    c = activations.raw_moment("gelu", 2)
    gamma, variance = 3.0, 1.0
    for layer in range(1, 25):
        gamma = residual.wide_kurtosis(gamma, c / variance)
        variance += c
        np.testing.assert_allclose(
            gamma, residual.unrolled_kurtosis(3.0, c, layer), rtol=1e-12
        )
    for layer, noted in ((1, 1.477), (4, 0.411), (12, 0.0806), (24, 0.0239)):
        found = residual.unrolled_kurtosis(3.0, c, layer)
        # Three digits were noted.
        assert found == pytest.approx(noted, abs=5e-4 if layer < 12 else 5e-5)
