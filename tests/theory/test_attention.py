"""Lemmas 13 and 14, the temperature, averaging: T13 to T15 and T17 of the notes."""

import numpy as np
import pytest

from rfq.stats import central
from rfq.theory import attention, laws


@pytest.mark.parametrize(
    ("num_scores", "gamma"), [(64, 59.0159), (512, 507.0020), (1024, 1019.0010)]
)
def test_lemma_13_saturated_is_a_one_hot_vector(num_scores, gamma):
    formula = attention.saturated_kurtosis(num_scores)
    assert formula == pytest.approx(gamma, abs=1e-4)
    assert formula == pytest.approx(num_scores - 5 + 1 / (num_scores - 1))
    # It is also the most that the estimator can say of so many values.
    one_hot = np.eye(num_scores)[0]
    m = laws.weighted(one_hot, np.full(num_scores, 1 / num_scores))
    np.testing.assert_allclose(central.excess_kurtosis(m), formula, rtol=1e-9)


@pytest.mark.parametrize(
    ("tau", "gamma"), [(0.1, 0.1623), (0.25, 1.096), (0.5, 5.90), (1.0, 110.9)]
)
def test_lemma_13_limit_is_lognormal(tau, gamma):
    assert attention.lognormal_kurtosis(tau) == pytest.approx(gamma, rel=1e-3)
    x, w = laws.LAWS["gaussian"].nodes()
    exact = central.excess_kurtosis(laws.weighted(np.exp(tau * x), w))
    assert attention.lognormal_kurtosis(tau) == pytest.approx(exact, rel=1e-6)


def test_limit_at_tau_2_is_nine_millions():
    # 9.2e6, from the formula: its eighth-power tail is out of any quadrature's reach.
    assert attention.lognormal_kurtosis(2.0) == pytest.approx(9_220_557, abs=0.5)


HEAD, WIDTH = 64.0, 768.0


@pytest.mark.parametrize(
    ("divisor", "diagonal", "other"), [(HEAD, 7.2, 0.9), (WIDTH, 2.078, 0.26)]
)
def test_lemma_14_per_head_predictions(divisor, diagonal, other):
    assert attention.diagonal_score(0.9, divisor) == pytest.approx(diagonal, abs=1e-3)
    assert attention.other_score(0.9, divisor) == pytest.approx(other, abs=1e-3)


# Layer -> mean weight of a token on itself, 512 tokens, 1/sqrt(d_h), with half a unit
# of the last digit that was noted.
SELF_WEIGHTS = {0: (0.79, 5e-3), 1: (0.69, 5e-3), 2: (0.58, 5e-3), 4: (0.38, 5e-3),
                8: (0.156, 5e-4), 12: (0.075, 5e-4), 16: (0.044, 5e-4),
                24: (0.023, 5e-4)}  # fmt: skip


@pytest.mark.parametrize("layer", sorted(SELF_WEIGHTS))
def test_section_4_iii_t_15_temperature_predicts_the_weight_on_oneself(layer):
    noted, half_a_digit = SELF_WEIGHTS[layer]
    assert attention.self_weight(layer, HEAD) == pytest.approx(noted, abs=half_a_digit)


def test_section_4_iii_t_15_with_the_width_in_the_scale_starts_nearly_uniform():
    assert attention.self_weight(0, WIDTH) == pytest.approx(0.064, abs=5e-4)
    assert attention.self_weight(24, WIDTH) == pytest.approx(0.016, abs=5e-4)


@pytest.mark.parametrize(
    ("num_tokens", "gamma"), [(128, 18.3), (512, 51.3), (2048, 147.0)]
)
def test_causal_averaging_predictions(num_tokens, gamma):
    # Three digits were noted.
    half_a_digit = 0.5 if gamma == 147.0 else 0.05
    found = attention.averaged_kurtosis(num_tokens)
    assert found == pytest.approx(gamma, abs=half_a_digit)
