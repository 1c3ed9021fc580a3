"""What each tap does to an activation and what it learns from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import taps
from rfq.quant import distortion, grid
from rfq.stats import bins, central

X = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
GRID = grid.Grid(*map(np.float32, (0.25, 7.0, 15.0)))
PROBE = taps.Probe(GRID, np.float32(1.0))
UNIT = bins.Binning(np.float32(0.0), np.float32(1.0))

# Every tap that must not touch x, with a state that suits it.
OBSERVERS = {
    "identity": (taps.identity, None),
    "measure_distortion": (taps.measure_distortion, PROBE),
    "excess": (taps.Excess(2.0), None),
    **{f"measure {name}": (taps.Measure((name,)), UNIT) for name in taps.STATISTICS},
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


def test_fake_quantize_rounds_to_the_grid_in_float32():
    y, record = applied(taps.fake_quantize, GRID, X.astype(jnp.bfloat16))
    assert record is None and y.dtype == jnp.float32
    rounded = np.clip(np.round(np.float32(X.astype(jnp.bfloat16)) / 0.25), -7, 8)
    np.testing.assert_array_equal(y, 0.25 * rounded)


def test_distortion_is_that_of_fake_quantize():
    y, _ = applied(taps.fake_quantize, GRID)
    _, effect = applied(taps.measure_distortion, PROBE)
    record = effect.error
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
    _, record = applied(taps.Measure(("moments", "histogram")), UNIT)
    assert set(record) == {"moments", "histogram"}
    assert isinstance(record["moments"], central.Moments)
    np.testing.assert_allclose(record["moments"].mean, X.mean(), rtol=1e-5)
    assert np.sum(record["histogram"].histogram.counts) == X.size


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
    one, two = (taps.Taps(taps.Measure(("moments",)), ("q",)) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != taps.Taps(taps.Measure(("range",)), ("q",))


def test_dear_statistics_see_a_sample_and_cheap_ones_all():
    statistics = ("moments", "channels", "tokens", "histogram")
    _, record = applied(taps.Measure(statistics, sample=8), UNIT)
    assert record["moments"].count == X.size
    np.testing.assert_array_equal(record["channels"].count, np.full(6, 20.0))
    # Every one of 4 sequences gives two of its 5 positions.
    assert record["tokens"].num_tokens == 8
    assert record["histogram"].moments.count == 8 * 6
    again = applied(taps.Measure(statistics, sample=8), UNIT)[1]
    for one, other in zip(jax.tree.leaves(record), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sample_has_other_positions_in_every_sequence():
    # A sink at position 0 must neither be in all sequences' samples nor in none's.
    x = np.broadcast_to(np.arange(50.0, dtype=np.float32)[:, None], (40, 50, 1))
    seen = np.asarray(taps.Measure(sample=80)._sampled(jnp.asarray(x)))[..., 0]
    assert seen.shape == (40, 2)
    assert np.all(seen[:, 0] < seen[:, 1])
    assert np.unique(seen).size > 20
    first = np.mean(seen == 0.0)
    assert 0 < first < 0.1


def test_heads_are_part_of_a_tokens_vector():
    x = X.reshape(4, 5, 2, 3)
    _, record = applied(taps.Measure(("channels", "tokens")), None, x)
    assert record["channels"].mean.shape == (6,)
    np.testing.assert_allclose(
        record["channels"].mean, X.reshape(-1, 6).mean(axis=0), atol=1e-6
    )


def test_numbers_have_one_name_each():
    names = [name for row in taps.STATISTICS.values() for name in row.numbers]
    assert len(set(names)) == len(names)


def test_without_a_state_a_histogram_has_bins_of_its_own():
    _, record = applied(taps.Measure(("histogram",)))
    center, scale = record["histogram"].histogram.binning
    low, high = np.quantile(X, [0.1, 0.9], method="lower")
    np.testing.assert_allclose(center, (low + high) / 2, atol=1e-6)
    np.testing.assert_allclose(scale, (high - low) / 2.5632, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(taps.STATISTICS))
def test_every_statistic_merges_to_the_whole(name):
    rows = np.random.default_rng(1).standard_normal((6, 8, 5)).astype(np.float32)
    tap = jax.jit(taps.Measure((name,)))
    parts = [tap(rows[i : i + 2], UNIT)[1] for i in (0, 2, 4)]
    left = taps.merged(parts)
    order = taps.merged([parts[0], *reversed(parts[1:])])
    for key, value in taps.numbers(left).items():
        np.testing.assert_allclose(taps.numbers(order)[key], value, rtol=1e-9)
        whole = taps.numbers(taps.merged([tap(rows, UNIT)[1]]))[key]
        # Float32 within a batch; a negentropy near zero loses digits to its two parts.
        np.testing.assert_allclose(value, whole, rtol=1e-4, atol=1e-4)


def test_divergence_compares_two_models_and_rounds_one():
    x = jnp.stack([jnp.asarray(X), jnp.asarray(X) + 0.1])
    run = jax.vmap(
        lambda leaf: taps.measure_divergence(leaf, GRID), axis_name=taps.PAIR
    )
    (clean, quantized), record = run(x)
    np.testing.assert_array_equal(clean, X)
    np.testing.assert_array_equal(quantized, grid.fake_quantize(x[1], GRID))
    np.testing.assert_allclose(record.noise[0], 0.01 * X.size, rtol=1e-4)
    np.testing.assert_allclose(record.signal[0], np.sum(X**2), rtol=1e-5)


def test_excess_is_the_mean_fourth_power_over_the_thresholds():
    _, found = applied(taps.Excess(2.0))
    np.testing.assert_allclose(found, np.mean((X.astype(np.float64) / 2) ** 4), 1e-5)
