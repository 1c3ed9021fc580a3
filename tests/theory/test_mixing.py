"""Lemmas 2, 6, 7, appendix C.3, theorem 2: T3 to T6 and T18 of the notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.model import init
from rfq.quant import distortion, grid
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


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "law"), CASES)
def test_lemma_7_and_corollary_1_measured(rows, law):
    found = mixing.sampled_mixed_kurtosis(rows, law, 16, seed=1, num_batches=64)
    # The notes' .02 at 2 million draws, and four errors of ours where that is less.
    assert abs(found.value - LEMMA_7[rows][law]) < min(0.02, 4 * found.standard_error)
    assert found.standard_error < 0.01


@pytest.mark.parametrize(
    ("d", "gaussian", "haar"),
    [
        (64, 0.0475, 0.0458),
        pytest.param(256, 0.01176, 0.01163, marks=pytest.mark.slow),
        pytest.param(768, 0.003905, 0.003899, marks=pytest.mark.slow),
    ],
)
def test_appendix_c3_fourth_powers_of_a_row(d, gaussian, haar):
    # The notes' samples of 2,000 rows, and ours, to three deviations.
    for rows, noted, formula in (
        ("gaussian", gaussian, 3 / d),
        ("haar", haar, 3 / (d + 2)),
    ):
        assert mixing.ROWS[rows].fourth(d) == pytest.approx(formula)
        a4 = mixing.sampled_fourth(rows, d, seed=d)
        error = a4.std() / np.sqrt(a4.size)
        assert abs(a4.mean() - formula) < 3 * error
        assert abs(noted - formula) < 3 * error


@pytest.mark.parametrize(("d", "scatter"), [(64, 0.408), (768, 0.118)])
def test_appendix_c3_single_rows_scatter(d, scatter):
    # "= 3 / d" is an expectation.
    assert mixing.relative_scatter(d) == pytest.approx(scatter, abs=5e-4)
    a4 = mixing.sampled_fourth("gaussian", d, seed=1)
    # A deviation from 2,048 heavy-tailed numbers is known to some 5 %.
    assert a4.std() / a4.mean() == pytest.approx(scatter, rel=0.15)


@pytest.mark.slow
def test_appendix_c3_gaussian_inputs():
    gaussian, haar = (
        mixing.sampled_mixed_kurtosis(rows, "gaussian", 16, seed=2)
        for rows in ("gaussian", "haar")
    )
    # 3.5 errors of a million draws.
    assert gaussian.value == pytest.approx(6 / 16, abs=0.03)
    assert haar.value == pytest.approx(0.0, abs=0.02)
    assert gaussian.standard_error < 0.01 and haar.standard_error < 0.01


def test_appendix_c3_a_widening_isometry_injects_less_than_gaussian_rows():
    assert mixing.widening_kurtosis(768, 3072) == pytest.approx(0.005856, abs=1e-6)
    assert mixing.widening_kurtosis(768, 3072) < 6 / 768


@pytest.mark.slow
def test_appendix_c3_a_widening_isometry_injects_kurtosis():
    # 96 -> 384, since the QR of the paper's sizes takes seconds; 64 draws.
    rng = np.random.default_rng(0)
    drawn = [np.linalg.qr(rng.standard_normal((384, 96)))[0].T for _ in range(64)]
    found = laws.over_batches([mixing.column_kurtosis(w).value for w in drawn])
    predicted = mixing.widening_kurtosis(96, 384)
    allowed = 4 * found.standard_error
    assert abs(found.value - predicted) < allowed < 0.05 * predicted
    # The matrices of the model, whose W_D has orthonormal columns.
    w_up = init.orthonormal_columns(384, 96, key=jax.random.key(0)).T
    one_draw = found.standard_error * np.sqrt(64)
    assert abs(mixing.column_kurtosis(w_up).value - predicted) < 4 * one_draw
    assert abs(mixing.column_kurtosis(w_up.T).value) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "gamma"), [("relu", 0.01405), ("gelu", 0.0180)])
def test_lemma_2_mixes_phi_of_x(phi, gamma):
    predicted = activations.kurtosis(phi) * 3 / 514
    assert predicted == pytest.approx(gamma, abs=5.1e-5)
    found = mixing.mean_kurtosis(mixing.mixed(phi, 512))
    # x is Gaussian, and gamma_y is not 0. The notes' tolerance.
    assert found.value == pytest.approx(predicted, abs=2e-3)
    assert found.value > 5 * found.standard_error


@pytest.mark.slow
def test_theorem_2_bound_variance_and_mean():
    y = mixing.per_coordinate(mixing.mixed("relu", 512))
    # A fixed W: Var phi = 1/2 - 1/(2 pi), not E phi^2 = 1/2.
    variance = float(central.variance(y).mean())
    assert variance == pytest.approx(0.5 - 0.5 / np.pi, abs=1e-3)
    # "The same mean" fails: it is m_1 times the sum of the row.
    mean = activations.raw_moment("relu", 1)
    w = np.asarray(mixing.haar(512, seed=512))
    np.testing.assert_allclose(y.mean, mean * w.sum(axis=0), atol=0.01)
    # The sums of a Haar matrix's rows are a point on a sphere, so that the largest
    # deviation over its coordinates is easily drawn: the notes' 1.85, and ours.
    sums = np.random.default_rng(0).standard_normal((4096, 512))
    sums *= np.sqrt(512) / np.linalg.norm(sums, axis=1, keepdims=True)
    low, high = np.quantile(np.max(np.abs(mean * (sums - 1.0)), axis=1), (0.01, 0.99))
    assert 1.3 < low < np.max(np.abs(y.mean - mean)) < high < 2.1
    assert low < 1.85 < high
    # The bound is an equality with mu_j = d sum W_ij^4. Each coordinate's gamma from
    # 65,536 inputs deviates by sqrt(24 / n) = .019, the mean of all 512 by .0007.
    bound = activations.kurtosis("relu") * np.sum(w**4, axis=0)
    deviation = central.excess_kurtosis(y) - bound
    error = mixing.mean_kurtosis(mixing.mixed("relu", 512)).standard_error
    assert abs(deviation.mean()) < 4 * error < 0.003
    assert deviation.std() == pytest.approx(np.sqrt(24 / 65536), rel=0.15)


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


# Decibels of a Gaussian on a grid over +-5.467 deviations, by bits.
GAUSSIAN_DB = {
    "asymmetric": {2: 0.95, 3: 6.92, 4: 13.54, 5: 19.84, 6: 26.00, 8: 38.15,
                   10: 50.21, 12: 62.24, 16: 86.3},
    "symmetric": {2: 0.09, 3: 5.59, 4: 12.94, 5: 19.56, 6: 25.86, 8: 38.11,
                  10: 50.20, 12: 62.24, 16: 86.3},
}  # fmt: skip
GRIDS = {"asymmetric": grid.grid_from_range, "symmetric": grid.symmetric}


@pytest.mark.slow
def test_t_18_a_densely_mixed_activation_quantizes_like_a_gaussian():
    # What near-Gaussian is worth: .3 dB of the Gaussian's table.
    x = jax.random.normal(jax.random.key(0), (2048, 256))
    y = ACTIVATIONS["gelu"].apply(x) @ mixing.haar(256, seed=0)
    y = y - y.mean(axis=0, keepdims=True)
    y = y / y.std()
    for name, by_bits in GAUSSIAN_DB.items():
        for num_bits, expected in by_bits.items():
            made = GRIDS[name](-5.467, 5.467, num_bits)
            found = distortion.sqnr_db(y, grid.fake_quantize(jnp.asarray(y), made))
            assert float(found) == pytest.approx(expected, abs=0.3), (name, num_bits)
