"""Lemmas 13 and 14, the temperature, averaging: T13 to T15 and T17 of the notes."""

import jax
import numpy as np
import pytest

from rfq.model import init
from rfq.stats import moments
from rfq.theory import attention, laws


@pytest.mark.parametrize(
    ("num_scores", "gamma"), [(64, 59.0159), (512, 507.0020), (1024, 1019.0010)]
)
def test_lemma_13_saturated_is_a_one_hot_vector(num_scores, gamma):
    formula = attention.saturated_kurtosis(num_scores)
    assert formula == pytest.approx(gamma, abs=1e-4)
    assert formula == pytest.approx(num_scores - 5 + 1 / (num_scores - 1))
    assert formula == pytest.approx(laws.bernoulli_kurtosis(1 / num_scores))
    # It is also the most that the estimator can say of so many values.
    one_hot = np.eye(num_scores)[0]
    m = laws.weighted(one_hot, np.full(num_scores, 1 / num_scores))
    np.testing.assert_allclose(moments.excess_kurtosis(m), formula, rtol=1e-9)


@pytest.mark.parametrize(
    ("tau", "gamma"), [(0.1, 0.1623), (0.25, 1.096), (0.5, 5.90), (1.0, 110.9)]
)
def test_lemma_13_limit_is_lognormal(tau, gamma):
    assert attention.lognormal_kurtosis(tau) == pytest.approx(gamma, rel=1e-3)
    x, w = laws.LAWS["gaussian"].nodes()
    exact = moments.excess_kurtosis(laws.weighted(np.exp(tau * x), w))
    assert attention.lognormal_kurtosis(tau) == pytest.approx(exact, rel=1e-6)


# tau -> scores -> gamma as noted.
SMALL = {0.1: (0.161, 0.164, 0.162), 0.25: (1.02, 1.10, 1.09), 0.5: (5.21, 5.72, 5.82)}
SCORES = (64, 512, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("tau", sorted(SMALL))
def test_lemma_13_not_saturated(tau):
    for num_scores, noted in zip(SCORES, SMALL[tau], strict=True):
        found = attention.softmax_kurtosis(tau, num_scores, seed=1)
        # Against the notes' draw, whose error is ours.
        assert abs(found.value - noted) < 6 * found.standard_error + 0.01 * noted
    limit = attention.lognormal_kurtosis(tau)
    assert abs(found.value - limit) < 0.05 * limit


@pytest.mark.slow
def test_lemma_13_at_unit_scores_grows_towards_111():
    found = [attention.softmax_kurtosis(1.0, t, seed=1) for t in SCORES]
    for estimate, noted in zip(found, (32.5, 64.2, 87.3), strict=True):
        assert abs(estimate.value - noted) < 6 * estimate.standard_error
    values = [estimate.value for estimate in found]
    assert values == sorted(values)
    # F9: nothing near-Gaussian about it.
    assert values[0] > 100 * laws.NEAR_GAUSSIAN


@pytest.mark.slow
def test_lemma_13_saturated_measured():
    for num_scores, noted in zip(SCORES, (59.9, 517.0, 2087.0), strict=True):
        found = attention.softmax_kurtosis(32.0, num_scores, seed=1)
        assert found.value == pytest.approx(noted, rel=0.01)
        formula = attention.saturated_kurtosis(num_scores)
        assert found.value == pytest.approx(formula, rel=0.05)
    # In between it overshoots, most at tau = 2 of 2, 4 and 8.
    for num_scores, most in zip(SCORES, (79.97, 910.0, 4425.0), strict=True):
        found = attention.softmax_kurtosis(2.0, num_scores, seed=1)
        assert found.value > 1.2 * attention.saturated_kurtosis(num_scores)
        assert abs(found.value - most) < 6 * found.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("d", [64, 256, 768])
def test_lemma_14_scores_of_two_tokens_have_unit_variance(d):
    m = init.orthonormal_columns(d, d, key=jax.random.key(d))
    s = attention.single_head_scores(m, d)
    # 160,000 entries of 800 independent vectors of length sqrt(d).
    assert np.var(attention.off_diagonal(s)) == pytest.approx(1.0, abs=0.03)
    diagonal = np.diag(s)
    assert abs(diagonal.mean()) < 0.2
    assert diagonal.std() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(
    ("d", "noted"),
    [
        (64, 8.0),
        pytest.param(256, 16.0, marks=pytest.mark.slow),
        pytest.param(768, 27.7, marks=pytest.mark.slow),
    ],
)
def test_lemma_14_fails_on_the_diagonal(d, noted):
    # F6: with W_Q = W_K the score of a token with itself is |x|^2 / sqrt(d).
    diagonal = np.diag(attention.single_head_scores(None, d))
    np.testing.assert_allclose(diagonal, np.sqrt(d), rtol=1e-4)
    assert np.sqrt(d) == pytest.approx(noted, abs=0.02)


HEAD, WIDTH = 64.0, 768.0


@pytest.mark.parametrize(
    ("divisor", "diagonal", "other"), [(HEAD, 7.2, 0.9), (WIDTH, 2.078, 0.26)]
)
def test_lemma_14_per_head_predictions(divisor, diagonal, other):
    assert attention.diagonal_score(0.9, divisor) == pytest.approx(diagonal, abs=1e-3)
    assert attention.other_score(0.9, divisor) == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [HEAD, WIDTH])
def test_lemma_14_per_head_measured(divisor):
    s = attention.head_scores(divisor, num_tokens=400)
    diagonal = attention.diagonal_score(0.9, divisor)
    assert np.diag(s).mean() == pytest.approx(diagonal, rel=0.02)
    other = attention.other_score(0.9, divisor)
    assert attention.off_diagonal(s).std() == pytest.approx(other, rel=0.05)


def test_temperature_by_layer():
    beta = attention.PAPER.beta
    for layer, tau in ((1, 0.9091), (8, 0.4665), (16, 0.2176), (24, 0.1015)):
        assert beta**-layer == pytest.approx(tau, abs=5.1e-5)


# Layer -> mean weight of a token on itself, 512 tokens, 1/sqrt(d_h).
SELF_WEIGHTS = {0: 0.79, 1: 0.69, 2: 0.58, 4: 0.38, 8: 0.156, 12: 0.075, 16: 0.044,
                24: 0.023}  # fmt: skip


@pytest.mark.parametrize("layer", sorted(SELF_WEIGHTS))
def test_temperature_predicts_the_weight_on_oneself(layer):
    found = attention.self_weight(layer, HEAD)
    # Two or three digits were noted.
    assert found == pytest.approx(SELF_WEIGHTS[layer], abs=3e-3)


def test_temperature_with_the_width_in_the_scale_starts_nearly_uniform():
    assert attention.self_weight(0, WIDTH) == pytest.approx(0.064, abs=1e-3)
    assert attention.self_weight(24, WIDTH) == pytest.approx(0.016, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [HEAD, WIDTH])
@pytest.mark.parametrize("layer", sorted(SELF_WEIGHTS))
def test_temperature_of_the_fresh_weights(layer, divisor):
    predicted = attention.self_weight(layer, divisor)
    found = attention.realized_self_weight(layer, divisor)
    assert found == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(
    ("num_tokens", "gamma"), [(128, 18.3), (512, 51.3), (2048, 147.0)]
)
def test_f_13_causal_averaging_predictions(num_tokens, gamma):
    assert attention.averaged_kurtosis(num_tokens) == pytest.approx(gamma, rel=3e-3)


@pytest.mark.slow
def test_f_13_causal_averaging_measured():
    pooled = attention.uniform_attention(512, normalize=False, seed=2)
    assert abs(pooled.value - 51.3) < 4 * pooled.standard_error < 20
    behind_a_norm = attention.uniform_attention(512, normalize=True, seed=2)
    assert abs(behind_a_norm.value) < 0.05
