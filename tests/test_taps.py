"""What each tap does to an activation and what it learns from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import taps
from rfq.quant import calibrate, distortion, grid
from rfq.stats import moments

X = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
GRID = grid.Grid(*map(np.float32, (0.25, 7.0, 15.0)))
SCALE = np.float32(1.0)

# Every tap that must not touch x, with a state that suits it.
OBSERVERS = {
    "identity": (taps.identity, None),
    "observe_range": (taps.observe_range, None),
    "measure_distortion": (taps.measure_distortion, GRID),
    **{f"measure {name}": (taps.Measure((name,)), SCALE) for name in taps.STATISTICS},
}


def applied(tap, state=None, x=X):
    return jax.jit(tap)(x, state)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_observers_leave_the_activation_alone(name):
    tap, state = OBSERVERS[name]
    for x in (X, X.astype(jnp.bfloat16)):
        y, record = applied(tap, state, x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)
        assert all(leaf.dtype != x.dtype or x is X for leaf in jax.tree.leaves(record))


def test_the_identity_learns_nothing():
    assert taps.identity(X, GRID) == (X, None)


def test_observe_range_records_the_extremes():
    _, record = applied(taps.observe_range)
    assert (record.lo, record.hi, record.count) == (X.min(), X.max(), X.size)
    assert isinstance(record, calibrate.Range)


def test_fake_quantize_rounds_to_the_grid_in_float32():
    y, record = applied(taps.fake_quantize, GRID, X.astype(jnp.bfloat16))
    assert record is None and y.dtype == jnp.float32
    rounded = np.clip(np.round(np.float32(X.astype(jnp.bfloat16)) / 0.25), -7, 8)
    np.testing.assert_array_equal(y, 0.25 * rounded)


def test_distortion_is_that_of_fake_quantize():
    y, _ = applied(taps.fake_quantize, GRID)
    _, record = applied(taps.measure_distortion, GRID)
    assert isinstance(record, distortion.Distortion)
    # Float32 sums of 120 squares in another order.
    np.testing.assert_allclose(record.signal, np.sum(np.float64(X) ** 2), rtol=1e-6)
    np.testing.assert_allclose(
        record.noise, np.sum((np.float64(X) - y) ** 2), rtol=1e-5
    )


@pytest.mark.parametrize("tap", [taps.fake_quantize, taps.measure_distortion])
def test_a_forgotten_grid_does_not_pass_for_full_precision(tap):
    with pytest.raises(AssertionError, match="no grid"):
        tap(X, None)


def test_measure_records_each_statistic_under_its_name():
    _, record = applied(taps.Measure(("moments", "histogram")), SCALE)
    assert set(record) == {"moments", "histogram"}
    assert isinstance(record["moments"], moments.Moments)
    np.testing.assert_allclose(record["moments"].mean, X.mean(), rtol=1e-5)
    assert np.sum(record["histogram"].counts) == X.size


def test_both_applies_the_second_to_what_the_first_made():
    both = taps.Both(taps.fake_quantize, taps.observe_range)
    y, (first, second) = applied(both, GRID)
    quantized, _ = applied(taps.fake_quantize, GRID)
    np.testing.assert_array_equal(y, quantized)
    assert first is None
    assert (second.lo, second.hi) == (quantized.min(), quantized.max())
    # The other way round the extremes are those of x.
    _, (observed, _) = applied(taps.Both(taps.observe_range, taps.fake_quantize), GRID)
    assert (observed.lo, observed.hi) == (X.min(), X.max())


def test_taps_reach_the_named_sites_and_no_others():
    chosen = taps.Taps(taps.fake_quantize, ("q", "k"))
    for site in ("q", "k"):
        y, _ = chosen.at(site, X, GRID)
        assert not np.array_equal(y, X)
    for site in ("v", "attn_in"):
        y, record = chosen.at(site, X, GRID)
        assert y is X and record is None
    assert taps.NO_TAPS.at("q", X, GRID) == (X, None)


def test_equal_taps_are_one_static_value():
    # They are static arguments of compiled programs: equal ones must not recompile.
    one, two = (
        taps.Taps(taps.Both(taps.Measure(("moments",)), taps.fake_quantize), ("q",))
        for _ in range(2)
    )
    assert one == two and hash(one) == hash(two)
    assert one != taps.Taps(taps.Measure(("moments",)), ("q",))
