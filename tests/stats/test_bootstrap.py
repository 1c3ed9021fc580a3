"""The paired bootstrap covers what it should, and says so when it cannot."""

import numpy as np
import pytest

from rfq.stats.bootstrap import paired_interval, stratified_interval


def test_the_interval_covers_the_mean_at_its_level():
    # 200 samples of 64 skewed differences of mean .1; each interval covers the mean
    # with probability about .9 (percentile intervals fall a little short).
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        before = 3.0 + rng.standard_normal(64)
        after = before + 0.1 * rng.exponential(size=64)
        lo, hi = paired_interval(
            before, after, seed=trial, num_resamples=200, level=0.9
        )
        assert lo <= np.mean(after - before) <= hi
        covered += lo <= 0.1 <= hi
    # Binomial: standard deviation .021 at .9; .04 for the shortfall.
    assert 0.9 - 0.04 - 3 * 0.021 < covered / 200 < 0.9 + 3 * 0.021


def test_its_width_is_that_of_the_normal_limit():
    rng = np.random.default_rng(1)
    before = rng.standard_normal(1000)
    after = before + 0.5 * rng.standard_normal(1000)
    lo, hi = paired_interval(before, after)
    # 2 * 1.96 * s / sqrt(n); the quantiles of 2000 resamples are good to 5 %.
    expected = 3.92 * np.std(after - before) / np.sqrt(1000)
    assert hi - lo == pytest.approx(expected, rel=0.1)


def test_what_makes_an_item_hard_cancels():
    difficulty = 100.0 * np.random.default_rng(2).standard_normal(50)
    lo, hi = paired_interval(difficulty, difficulty + 0.25)
    assert lo == pytest.approx(0.25) and hi == pytest.approx(0.25)


def test_swapping_the_sides_mirrors_the_interval():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 40))
    lo, hi = paired_interval(a, b)
    mirrored = paired_interval(b, a)
    assert mirrored == pytest.approx((-hi, -lo))


def test_the_seed_decides_everything():
    a, b = np.random.default_rng(4).standard_normal((2, 40))
    assert paired_interval(a, b, seed=1) == paired_interval(a, b, seed=1)
    assert paired_interval(a, b, seed=1) != paired_interval(a, b, seed=2)


def test_one_pair_has_an_interval_of_one_point():
    assert paired_interval(np.array([1.0]), np.array([3.0])) == (2.0, 2.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_a_number_that_is_not_finite_is_not_averaged_away(bad, both):
    before, after = np.zeros(100_000), np.ones(100_000)
    after[7] = bad
    if both:
        before[7] = bad
    # Without a warning: those raised from rfq are errors here.
    lo, hi = paired_interval(before, after, num_resamples=3)
    assert np.isnan(lo) and np.isnan(hi)


@pytest.mark.parametrize("sizes", [(3, 4), (3, 1), (0, 0)])
def test_sides_that_do_not_pair_are_refused(sizes):
    before, after = map(np.zeros, sizes)
    with pytest.raises(AssertionError):
        paired_interval(before, after)


def test_strata_are_resampled_by_themselves():
    # Two strata of n = 400 differences with variance v: sd of the mean of means is
    # sqrt(2 v / n) / 2 = 0.032 for v = 0.81, half the 95 % interval 1.96 of those. The
    # quantiles of 2,000 resamples vary by about 4 % of that.
    stratum = np.repeat([-0.9, 0.9], 200)
    lo, hi = stratified_interval([stratum, 10.0 + stratum])
    np.testing.assert_allclose((hi + lo) / 2, 5.0, atol=0.005)
    expected = 1.96 * np.sqrt(2 * 0.81 / 400) / 2
    np.testing.assert_allclose((hi - lo) / 2, expected, rtol=0.12)


def test_one_stratum_of_one_value_has_no_width():
    assert stratified_interval([np.full(7, 0.5)]) == (0.5, 0.5)
