"""Lemmas 2, 6, 7, appendix C.3, theorem 2: T3 to T6 and T18 of the notes."""

import numpy as np
import pytest

from rfq.stats import central
from rfq.theory import activations, laws, mixing
from rfq.theory.activations import ACTIVATIONS
from rfq.theory.laws import LAWS

RNG = np.random.default_rng(0)


def unit_row(d):
    a = RNG.standard_normal(d)
    return a / np.linalg.norm(a)


def test_lemma_6_on_every_state_of_eight_signs():
    for _ in range(3):
        a = unit_row(8)
        exact = mixing.enumerated_kurtosis(a)
        np.testing.assert_allclose(exact, -2.0 * np.sum(a**4), atol=1e-12)
        np.testing.assert_allclose(exact, mixing.kurtosis_of_sum(a, -2.0), atol=1e-12)


def test_lemma_6_in_general_adds_cumulants():
    # Inputs of different scales are one row of different entries.
    a, std = unit_row(8), np.linspace(0.5, 2.0, 8)
    np.testing.assert_allclose(
        mixing.kurtosis_of_sum(a, -2.0, std),
        mixing.enumerated_kurtosis(a * std),
        atol=1e-12,
    )
    # Two inputs of different laws, by the product of their quadratures.
    (x, p), (y, q) = (LAWS[law].nodes() for law in ("uniform", "rademacher"))
    values = (0.6 * x[:, None] + 0.8 * y[None, :]).ravel()
    exact = central.excess_kurtosis(laws.weighted(values, np.outer(p, q).ravel()))
    predicted = mixing.kurtosis_of_sum(np.array([0.6, 0.8]), np.array([-1.2, -2.0]))
    np.testing.assert_allclose(predicted, exact, atol=1e-10)


# rows -> law -> gamma_y at d = 16.
LEMMA_7 = {
    "flat": {"laplace": 0.1875, "uniform": -0.075, "rademacher": -0.125},
    "haar": {"laplace": 0.5, "uniform": -0.2, "rademacher": -1 / 3},
    "gaussian": {"laplace": 0.9375, "uniform": 0.15, "rademacher": 0.0},
}
CASES = [(rows, law) for rows, found in LEMMA_7.items() for law in found]


@pytest.mark.parametrize(("rows", "law"), CASES)
def test_lemma_7_and_corollary_1_predictions(rows, law):
    predicted = mixing.mixed_kurtosis(rows, LAWS[law].excess_kurtosis, 16)
    np.testing.assert_allclose(predicted, LEMMA_7[rows][law], atol=1e-12)


def test_appendix_c3_a_widening_isometry_injects_less_than_gaussian_rows():
    assert mixing.widening_kurtosis(768, 3072) == pytest.approx(0.005856, abs=1e-6)
    assert mixing.widening_kurtosis(768, 3072) < 6 / 768


@pytest.mark.parametrize("phi", ["relu", "gelu"])
def test_theorem_2_bound_is_an_equality_for_every_coordinate(phi):
    # Two inputs and a rotation, by the product of their quadratures.
    x, p = LAWS["gaussian"].nodes()
    f, p = ACTIVATIONS[phi].exact(x), np.outer(p, p).ravel()
    for angle in (0.3, 1.0):
        w = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        for row in w:
            y = (row[0] * f[:, None] + row[1] * f[None, :]).ravel()
            found = central.excess_kurtosis(laws.weighted(y, p))
            mu = 2.0 * np.sum(row**4)
            predicted = mu / 2.0 * activations.kurtosis(phi)
            np.testing.assert_allclose(found, predicted, rtol=1e-9)


def test_theorem_2_variance_of_gelu_and_relu():
    for phi, variance in (("relu", 0.3408), ("gelu", 0.3456)):
        mean, second = (activations.raw_moment(phi, k) for k in (1, 2))
        assert second - mean**2 == pytest.approx(variance, abs=5.1e-5)
