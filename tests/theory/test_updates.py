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


@pytest.mark.parametrize("d", [64, 256])
def test_a_spectral_step_has_rms_1_over_root_d_and_a_sign_step_1(d):
    for kind, noted in (("spectral", 1.0 / np.sqrt(d)), ("sign", 1.0)):
        step = updates.RANDOM_STEPS[kind](d, seed=5)
        assert np.sqrt(np.mean(step**2)) == pytest.approx(noted, rel=1e-12)


def test_lemma_9_lies_between_root_d_and_d():
    for power in range(1, 8):
        d = 2**power
        h = updates.hadamard(d)
        assert set(np.unique(h)) <= {-1.0, 1.0}
        assert updates.norm(h) == pytest.approx(np.sqrt(d))
        assert updates.norm(np.ones((d, d))) == pytest.approx(d)
        s = updates.signs(d, seed=power)
        assert np.sqrt(d) - 1e-9 <= updates.norm(s) <= d + 1e-9


@pytest.mark.parametrize(("kind", "noted"), [("spectral", 0.0087), ("sign", 0.0988)])
def test_lemma_4_random_walks(kind, noted):
    found = updates.walked_drift(kind, d=128, rate=RATE, num_steps=10, seed=100)
    # An extreme eigenvalue of a 128 x 128 matrix: d^(-2/3) = 4 %, twice over.
    assert found == pytest.approx(noted, rel=0.1)
