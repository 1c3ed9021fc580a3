"""Lemmas 13 and 14, the temperature, averaging: T13 to T15 and T17 of the notes."""

import jax
import numpy as np
import pytest

from rfq.model import init
from rfq.stats import central
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


SCORES = (64, 512, 2048)
# tau -> for each of SCORES: gamma by quadrature, gamma as noted, and how far the notes'
# draw may be from the first. A draw of heavy tails is mostly below its expectation, and
# the notes' are by a quarter at tau = 1 and a tenth at tau = 2 (D77).
LEMMA_13 = {
    0.1: ((0.15313, 0.161, 0.06), (0.16117, 0.164, 0.02), (0.162035, 0.162, 0.01)),
    0.25: ((1.01973, 1.02, 0.01), (1.08624, 1.10, 0.02), (1.09350, 1.09, 0.01)),
    0.5: ((5.08545, 5.21, 0.03), (5.78700, 5.72, 0.02), (5.87029, 5.82, 0.01)),
    1.0: ((34.6990, 32.5, 0.07), (82.8963, 64.2, 0.25), (101.3905, 87.3, 0.15)),
    2.0: ((81.1130, 79.97, 0.02), (929.720, 910.0, 0.03), (4854.44, 4425.0, 0.10)),
    32.0: ((59.8951, 59.9, 0.001), (516.356, 517.0, 0.002), (2086.46, 2087.0, 0.001)),
}


@pytest.mark.parametrize("tau", sorted(LEMMA_13))
def test_lemma_13_softmax_by_quadrature_and_as_noted(tau):
    for num_scores, row in zip(SCORES, LEMMA_13[tau], strict=True):
        known, noted, allowed = row
        found = attention.expected_softmax_kurtosis(tau, num_scores)
        assert found == pytest.approx(known, rel=2e-5)
        assert noted == pytest.approx(found, rel=allowed)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_lemma_13_not_saturated_tends_to_the_lognormal(tau):
    found = [attention.expected_softmax_kurtosis(tau, t) for t in (*SCORES, 1 << 17)]
    limit = attention.lognormal_kurtosis(tau)
    assert found == sorted(found) and found[-1] < limit
    assert found[-1] == pytest.approx(limit, rel=0.01)
    # 1 % of 2,048 scores at tau <= .5; at tau = 1 it is 9 % below 111.
    assert found[2] == pytest.approx(limit, rel=0.01 if tau < 1.0 else 0.09)
    # nothing near-Gaussian about tau = 1.
    assert (found[0] > 100 * laws.PAPERS_LARGEST_GAMMA) == (tau == 1.0)


def test_lemma_13_overshoots_before_it_saturates():
    for num_scores, saturating in zip(SCORES, LEMMA_13[32.0], strict=True):
        most = attention.saturated_kurtosis(num_scores)
        found = [
            attention.expected_softmax_kurtosis(tau, num_scores)
            for tau in (2.0, 4.0, 8.0)
        ]
        # Most at 2 of these; at 32 within the notes' 4 % above a one-hot vector's.
        assert found == sorted(found, reverse=True)
        assert found[0] > 1.3 * most and found[-1] > 1.05 * most
        assert most < saturating[0] < 1.04 * most


# Four standard errors of the drawn gamma over gamma, at most, for each of SCORES.
ERRORS = {
    0.1: (0.12, 0.12, 0.12),
    0.25: (0.05, 0.05, 0.05),
    0.5: (0.07, 0.07, 0.07),
    1.0: (0.1, 0.5, 0.6),
    2.0: (0.03, 0.2, 0.7),
    32.0: (0.01, 0.01, 0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("tau", sorted(ERRORS))
def test_lemma_13_softmax_drawn(tau):
    for num_scores, most in zip(SCORES, ERRORS[tau], strict=True):
        found = attention.softmax_kurtosis(tau, num_scores, seed=1)
        exact = attention.expected_softmax_kurtosis(tau, num_scores)
        allowed = 4 * found.standard_error
        assert abs(found.value - exact) < allowed < most * exact


@pytest.mark.slow
@pytest.mark.parametrize("d", [64, 256, 768])
def test_lemma_14_scores_of_two_tokens_have_unit_variance(d):
    m = init.orthonormal_columns(d, d, key=jax.random.key(d))
    s = attention.single_head_scores(m, d)
    # 160,000 entries of 800 independent vectors of length sqrt(d).
    assert np.var(attention.off_diagonal(s)) == pytest.approx(1.0, abs=0.03)
    # 400 entries x_i M x_i / sqrt(d) about the mean tr(M) / sqrt(d), which deviates by
    # 1/sqrt(d) from one Haar M to the next: four errors of mean and deviation.
    diagonal = np.diag(s)
    trace = float(np.trace(m)) / np.sqrt(d)
    assert diagonal.mean() == pytest.approx(trace, abs=4 / np.sqrt(400))
    assert abs(trace) < 4 / np.sqrt(d)
    assert diagonal.std() == pytest.approx(1.0, abs=4 / np.sqrt(800))


@pytest.mark.parametrize(
    ("d", "noted"),
    [
        (64, 8.0),
        pytest.param(256, 16.0, marks=pytest.mark.slow),
        pytest.param(768, 27.7, marks=pytest.mark.slow),
    ],
)
def test_lemma_14_fails_on_the_diagonal(d, noted):
    # with W_Q = W_K the score of a token with itself is |x|^2 / sqrt(d).
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


def test_section_4_iii_t_15_temperature_by_layer():
    beta = attention.PAPER.beta
    for layer, tau in ((1, 0.9091), (8, 0.4665), (16, 0.2176), (24, 0.1015)):
        assert beta**-layer == pytest.approx(tau, abs=5.1e-5)


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


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [HEAD, WIDTH])
@pytest.mark.parametrize("layer", sorted(SELF_WEIGHTS))
def test_section_4_iii_t_15_weights_of_the_fresh_model(layer, divisor):
    predicted = attention.self_weight(layer, divisor)
    found = attention.realized_self_weight(layer, divisor)
    assert found == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(
    ("num_tokens", "gamma"), [(128, 18.3), (512, 51.3), (2048, 147.0)]
)
def test_causal_averaging_predictions(num_tokens, gamma):
    # Three digits were noted.
    half_a_digit = 0.5 if gamma == 147.0 else 0.05
    found = attention.averaged_kurtosis(num_tokens)
    assert found == pytest.approx(gamma, abs=half_a_digit)


@pytest.mark.slow
def test_causal_averaging_measured():
    pooled = attention.uniform_attention(512, normalize=False, seed=2, num_batches=32)
    assert abs(pooled.value - 51.3) < 4 * pooled.standard_error < 4
    # The notes' draw, 48.4, is one of ours.
    assert abs(48.4 - pooled.value) < 3 * pooled.standard_error * np.sqrt(32)


@pytest.mark.slow
def test_behind_a_norm_per_token_gamma_is_gone():
    found = attention.uniform_attention(512, normalize=True, seed=2, num_batches=32)
    # A coordinate of a sphere has -6 / (d + 2), whatever the averages were. Tokens that
    # average much the same values count as few: a draw deviates by .1, so that the
    # noted .017 is as good as 0.
    on_a_sphere = -6.0 / (attention.PAPER.width + 2.0)
    assert abs(found.value - on_a_sphere) < 4 * found.standard_error < 0.1
    assert abs(found.value) < 0.05
    one_draw = found.standard_error * np.sqrt(32)
    assert abs(0.017 - on_a_sphere) < 0.5 * one_draw < 0.1
