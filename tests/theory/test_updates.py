"""Lemmas 4, 8, 9 and 10: T9 to T11 of the notes, with their corrections."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rfq.theory import updates

RATE = 1e-3


def haar(d, seed):
    """Without the cache: a property's matrices are used once."""
    return updates.orthogonal.__wrapped__(d, seed=seed)


sizes, seeds = st.integers(2, 64), st.integers(0, 2**31)
rates = st.floats(0.0, 0.5)


@hypothesis.given(sizes, rates, seeds)
def test_lemma_8_bounds_every_spectral_step(d, rate, seed):
    w, o = haar(d, seed), haar(d, seed + 1)
    found = updates.drift(w - rate * o)
    # Float64 products of 64 terms.
    assert found <= updates.drift_bound(rate, 1.0) + 1e-13
    exact = updates.spectral_drift(w, o, rate)
    np.testing.assert_allclose(found, exact, atol=1e-13)


@hypothesis.given(sizes, rates, seeds, st.floats(0.0, 0.3))
def test_lemma_8_with_an_initial_defect_and_a_gradient_without_full_rank(
    d, rate, seed, stretch
):
    w = haar(d, seed) * (1 + stretch * np.linspace(-1, 1, d))
    o = haar(d, seed + 1)
    partial = o[:, : d // 2] @ haar(d, seed + 2)[: d // 2]
    for step in (o, partial):
        bound = updates.drift_bound(rate, 1.0, updates.drift(w))
        assert updates.drift(w - rate * step) <= bound + 1e-13


def test_lemma_8_is_reached_by_the_worst_step():
    w = haar(32, 0)
    worst, best = updates.drift(w + RATE * w), updates.drift(w - RATE * w)
    assert worst == pytest.approx(2 * RATE + RATE**2, rel=1e-9)
    assert best == pytest.approx(2 * RATE - RATE**2, rel=1e-9)
    assert updates.drift_bound(RATE, 1.0) == pytest.approx(0.002001)


def drifts(d, draws):
    return [
        updates.drift(haar(d, seed) - RATE * haar(d, 1000 + seed))
        for seed in range(draws)
    ]


def test_lemma_4_spectral_steps_drift_by_2_eta_at_width_64():
    # Half of the matrices W^T O have determinant -1, so a phase at the worst; of the
    # others the nearest phase is some 1/d away, and the noted .0020004 is one of them.
    found = drifts(64, 40)
    assert max(found) == pytest.approx(0.002001, abs=1e-12)
    assert np.quantile(found, 0.25) < 0.0020004 < np.quantile(found, 0.75)
    assert min(found) > 0.00199


@pytest.mark.slow
@pytest.mark.parametrize(("d", "draws"), [(256, 4), (768, 1)])
def test_lemma_4_spectral_steps_drift_by_2_eta(d, draws):
    # A phase is within 2 pi / d of the worst, which takes eta (2 pi / d)^2 at most.
    found = drifts(d, draws)
    assert max(found) <= 0.002001 + 1e-12
    assert min(found) == pytest.approx(0.0020010, abs=3e-7)
    assert min(found) > 0.0020004


@pytest.mark.parametrize(
    ("d", "draws", "noted_sign", "noted_bound", "allowed"),
    [
        (64, 32, 0.0213, 0.0308, 0.0014),
        pytest.param(256, 4, 0.0453, 0.0647, 0.0016, marks=pytest.mark.slow),
        pytest.param(768, 1, 0.0799, 0.1127, 0.0008, marks=pytest.mark.slow),
    ],
)
def test_lemma_4_and_10_sign_steps_drift_by_eta_root_d(
    d, draws, noted_sign, noted_bound, allowed
):
    pairs = [(haar(d, 1000 + n), updates.signs(d, seed=n)) for n in range(draws)]
    found = [updates.drift(w - RATE * s) for w, s in pairs]
    bounds = [updates.drift_bound(RATE, updates.norm(s)) for _, s in pairs]
    # The notes' draws against the mean of ours. A draw of either number deviates by
    # .0007 at 64 and .0008 at 256: an extreme eigenvalue's d^(-2/3).
    assert np.mean(found) == pytest.approx(noted_sign, abs=allowed)
    assert np.mean(bounds) == pytest.approx(noted_bound, abs=allowed)
    assert np.all(np.less_equal(found, bounds))
    # Lemma 10's literal bound, with ||S|| = sqrt(d), is broken.
    assert min(found) > updates.drift_bound(RATE, np.sqrt(d))


@pytest.mark.parametrize(
    ("d", "noted"),
    [
        (64, 0.0161),
        pytest.param(256, 0.0323, marks=pytest.mark.slow),
        pytest.param(768, 0.0562, marks=pytest.mark.slow),
    ],
)
def test_lemma_4_at_equal_size_both_steps_are_of_one_order(d, noted):
    # a sign step has the Frobenius norm of a spectral step of eta sqrt(d).
    step, matched = updates.signs(d, seed=5), np.sqrt(d) * haar(d, 5)
    assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(matched))
    spectral = updates.one_step("spectral", d, RATE * np.sqrt(d))
    # 2 eta sqrt(d) + eta^2 d, less some 1/d^2 of it; four digits were noted.
    assert spectral == pytest.approx(noted, abs=1e-4)
    assert 1.0 < updates.one_step("sign", d, RATE) / spectral < 1.6


@pytest.mark.parametrize("d", [64, 256])
def test_a_spectral_step_has_rms_1_over_root_d_and_a_sign_step_1(d):
    for kind, noted in (("spectral", 1.0 / np.sqrt(d)), ("sign", 1.0)):
        step = updates.RANDOM_STEPS[kind](d, seed=5)
        assert np.sqrt(np.mean(step**2)) == pytest.approx(noted, rel=1e-12)


@pytest.mark.parametrize(
    ("d", "noted"),
    [
        (64, 0.0669),
        pytest.param(256, 0.2977, marks=pytest.mark.slow),
        pytest.param(768, 1.1294, marks=pytest.mark.slow),
    ],
)
def test_lemma_10_signs_of_rank_1_drift_by_eta_d(d, noted):
    w, s = updates.orthogonal(d, seed=4), updates.low_rank_signs(d, 1, seed=5)
    u, v = s[:, 0], s[0] * s[0, 0]
    np.testing.assert_array_equal(np.outer(u, v), s)
    found = updates.drift(w - RATE * s)
    cosine = u @ w @ v / d
    assert found == pytest.approx(updates.rank_one_drift(RATE, d, cosine), rel=1e-9)
    assert found <= updates.drift_bound(RATE, d)
    # The cosine deviates by 1/sqrt(d) from 0; the notes' draw is among the nearer ones.
    cosines = np.linspace(-1.0, 1.0, 201) / np.sqrt(d)
    likely = [updates.rank_one_drift(RATE, d, cosine) for cosine in cosines]
    assert min(likely) < noted < max(likely)
    assert max(likely) < 1.35 * min(likely)
    noted_bounds = {64: 0.132, 256: 0.578, 768: 2.126}
    assert updates.drift_bound(RATE, d) == pytest.approx(noted_bounds[d], abs=5.1e-4)


def test_lemma_9_lies_between_root_d_and_d():
    for power in range(1, 8):
        d = 2**power
        h = updates.hadamard(d)
        assert set(np.unique(h)) <= {-1.0, 1.0}
        assert updates.norm(h) == pytest.approx(np.sqrt(d))
        assert updates.norm(np.ones((d, d))) == pytest.approx(d)
        s = updates.signs(d, seed=power)
        assert np.sqrt(d) - 1e-9 <= updates.norm(s) <= d + 1e-9


@pytest.mark.parametrize(
    ("d", "draws", "noted"),
    [
        (64, 32, 15.29),
        (256, 4, 31.86),
        pytest.param(768, 1, 54.85, marks=pytest.mark.slow),
    ],
)
def test_lemma_9_random_signs_reach_twice_root_d(d, draws, noted):
    found = [updates.norm(updates.signs(d, seed=seed)) for seed in range(draws)]
    ratios = np.array(found) / (2 * np.sqrt(d))
    assert ratios.min() > 0.9 and ratios.max() < 1.02
    # The largest singular value is 2 sqrt(d) + 2^(-2/3) d^(-1/6) X with X by Tracy and
    # Widom's law, whose deviation is 1.27: .4, .3 and .26 at these widths, for the
    # notes' draw and each of ours.
    deviation = 0.8 * d ** (-1 / 6)
    assert abs(np.mean(found) - noted) < 2 * deviation * np.sqrt(1 + 1 / draws)


# d -> draws, then rank -> (mean, deviation) of ||sign(G)|| / d.
LOW_RANK = {
    64: (40, {1: (1.0, 0.0), 4: (0.515, 0.021), 16: (0.343, 0.017)}),
    256: (4, {1: (1.0, 0.0), 4: (0.474, 0.008), 16: (0.269, 0.0045)}),
    768: (1, {1: (1.0, 0.0), 4: (0.4446, 0.0057), 16: (0.2411, 0.003)}),
}


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("d", [64, 256, pytest.param(768, marks=pytest.mark.slow)])
def test_lemma_9_signs_of_low_rank_reach_a_share_of_d(d, rank):
    draws, known = LOW_RANK[d]
    mean, deviation = known[rank]
    share = [
        updates.norm(updates.low_rank_signs(d, rank, seed=seed)) / d
        for seed in range(1, draws + 1)
    ]
    allowed = 3 * deviation / np.sqrt(draws) + 1e-3
    assert np.mean(share) == pytest.approx(mean, abs=allowed)
    assert min(share) >= updates.low_rank_norm(rank) - 1e-9
    assert updates.low_rank_norm(4) == pytest.approx(4 / (3 * np.pi))


@pytest.mark.parametrize(("rank", "lo", "hi"), [(4, 0.45, 0.47), (16, 0.25, 0.33)])
def test_the_noted_shares_are_those_of_single_draws(rank, lo, hi):
    # The upper end was noted at 64, the lower one at 768, to two digits: each within
    # three deviations there (D77).
    for d, noted in ((64, hi), (768, lo)):
        mean, deviation = LOW_RANK[d][1][rank]
        assert abs(noted - mean) < 3 * deviation + 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_steps", "noted"),
    [
        ("spectral", 10, 0.0087),
        ("sign", 10, 0.0988),
        ("spectral", 100, 0.0272),
        ("sign", 100, 0.3467),
    ],
)
def test_lemma_4_random_walks(kind, num_steps, noted):
    found = updates.walked_drift(kind, d=128, rate=RATE, num_steps=num_steps, seed=100)
    # An extreme eigenvalue of a 128 x 128 matrix: d^(-2/3) = 4 %, twice over.
    assert found == pytest.approx(noted, rel=0.1)


def test_lemma_4_aligned_steps_add_up():
    # O(eta) is per step; nothing is preserved over T of them.
    w = haar(16, 0)
    moved = w
    for _ in range(50):
        u, _, vt = np.linalg.svd(-moved)
        moved = moved - RATE * (u @ vt)
    found = updates.drift(moved)
    assert found == pytest.approx(updates.aligned_drift(RATE, 50), rel=1e-5)
    assert found > 50 * 2 * RATE
