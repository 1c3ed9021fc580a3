"""Lemmas 3 and 11: T7 and the closed forms of T8 in the notes."""

import numpy as np
import pytest

from rfq.theory import activations, residual


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


def test_lemma_11_contracts_at_every_width():
    # Adding a branch of variance m2 to a wide stream divides gamma by (1 + m2)^2.
    wide = residual.added_kurtosis("laplace", "relu", 10**9)
    np.testing.assert_allclose(wide, residual.unrolled_kurtosis(3.0, 0.5, 1), rtol=1e-6)


def test_t_8_unrolled_additions_agree_with_their_recursion():
    c = activations.raw_moment("gelu", 2)
    gamma, variance = 3.0, 1.0
    for layer in range(1, 25):
        gamma = residual.unrolled_kurtosis(gamma, c / variance, 1)
        variance += c
        np.testing.assert_allclose(
            gamma, residual.unrolled_kurtosis(3.0, c, layer), rtol=1e-12
        )
