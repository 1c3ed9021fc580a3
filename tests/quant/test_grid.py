"""Laws and golden numbers of the uniform quantizer."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import errors
from rfq.quant import grid as g

ALL_BITS = range(2, 17)
SCHEMES = sorted(g.SCHEMES)
FINE = 1_600_000  # Points of a lattice for 16 bits.


def sqnr_db(grid, x, density):
    """SQNR of a law given by its density on a fine lattice, in float64."""
    x_hat = np.asarray(g.fake_quantize(jnp.asarray(x), grid), np.float64)
    x = np.asarray(x, np.float64)
    return 10 * math.log10((density * x**2).sum() / (density * (x - x_hat) ** 2).sum())


def gaussian(half_range=8.0, num_points=200_000):
    """Lattice and density of N(0, 1); finer than any grid of up to 12 bits."""
    edges = np.linspace(-half_range, half_range, num_points + 1)
    x = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    return x, np.exp(-0.5 * x.astype(np.float64) ** 2)


def codes_float32(x, lo, hi, num_bits):
    """The specification in numpy float32, one rounding per operation."""
    n = np.float32(2**num_bits - 1)
    lo, hi = np.minimum(np.float32(lo), np.float32(0)), np.maximum(np.float32(hi), 0)
    step = (hi - lo) / n
    zero_point = np.clip(np.rint(-lo / step), 0, n)
    return np.clip(np.rint(x / step) + zero_point, 0, n), step, zero_point


@pytest.mark.parametrize("num_bits", [4, 8, 16])
@pytest.mark.parametrize("compiled", [False, True])
def test_codes_are_those_of_the_specification(num_bits, compiled):
    # 16 bits catch a multiplication by a reciprocal and an addition before rounding.
    x = np.random.default_rng(0).standard_normal(393_216).astype(np.float32)
    lo, hi = x.min(), x.max()

    def encode(x, lo, hi, num_bits):
        return g.encode(x, g.grid_from_range(lo, hi, num_bits))

    encode = jax.jit(encode) if compiled else encode
    q = encode(jnp.asarray(x), lo, hi, jnp.float32(num_bits))
    expected, _, _ = codes_float32(x, lo, hi, num_bits)
    np.testing.assert_array_equal(np.asarray(q), expected)


def test_codes_are_those_of_the_specification_with_a_constant_grid():
    # A compiler may turn a division by a constant into a multiplication.
    x = np.random.default_rng(0).standard_normal(393_216).astype(np.float32)
    grid = g.grid_from_range(x.min(), x.max(), 16)
    q = jax.jit(lambda x: g.encode(x, grid))(jnp.asarray(x))
    expected, _, _ = codes_float32(x, x.min(), x.max(), 16)
    np.testing.assert_array_equal(np.asarray(q), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_bits", ALL_BITS)
def test_fake_quantize_is_idempotent_bit_for_bit(scheme, num_bits):
    x = 3.0 * jax.random.normal(jax.random.key(num_bits), (4096,)) + 1.0
    grid = g.SCHEMES[scheme](jnp.min(x), jnp.max(x), num_bits)
    once = g.fake_quantize(x, grid)
    np.testing.assert_array_equal(g.fake_quantize(once, grid), once)


@pytest.mark.parametrize("num_bits", ALL_BITS)
def test_error_is_at_most_half_a_step(num_bits):
    x = jax.random.uniform(jax.random.key(0), (100_000,), minval=-0.7, maxval=2.0)
    grid = g.grid_from_range(jnp.float32(-0.7), jnp.float32(2.0), num_bits)
    error = jnp.max(jnp.abs(g.fake_quantize(x, grid) - x)) / grid.step
    # Half a step, and the float32 rounding of codes up to 2**bits.
    assert error <= 0.5 + 2.0 ** (num_bits - 23)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_bits", [2, 5, 8, 16])
def test_zero_is_exact(scheme, num_bits):
    ranges = [(-0.3, 1.7), (0.0, 5.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0)]
    for lo, hi in ranges:
        grid = g.SCHEMES[scheme](jnp.float32(lo), jnp.float32(hi), num_bits)
        x_hat = g.fake_quantize(jnp.array([0.0, -0.0]), grid)
        np.testing.assert_array_equal(x_hat, [0.0, 0.0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_bits", ALL_BITS)
def test_scaling_by_a_power_of_two_commutes(scheme, num_bits):
    x = jax.random.normal(jax.random.key(1), (4096,))
    build = g.SCHEMES[scheme]
    base = g.fake_quantize(x, build(jnp.float32(-2.1), jnp.float32(3.3), num_bits))
    for a in (2.0**-20, 0.5, 2.0**30):
        grid = build(jnp.float32(-2.1 * a), jnp.float32(3.3 * a), num_bits)
        np.testing.assert_array_equal(g.fake_quantize(x * a, grid), base * a)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_map_never_decreases(scheme):
    x = jnp.linspace(-4.0, 4.0, 20_001)
    for num_bits in (2, 4, 9):
        grid = g.SCHEMES[scheme](jnp.float32(-1.3), jnp.float32(3.0), num_bits)
        assert jnp.all(jnp.diff(g.fake_quantize(x, grid)) >= 0.0)


def test_the_symmetric_grid_is_odd():
    x = jax.random.normal(jax.random.key(2), (4096,))
    for num_bits in ALL_BITS:
        grid = g.symmetric(jnp.min(x), jnp.max(x), num_bits)
        np.testing.assert_array_equal(
            g.fake_quantize(-x, grid), -g.fake_quantize(x, grid)
        )


def test_rounding_is_half_to_even():
    grid = g.grid_from_range(jnp.float32(0.0), jnp.float32(15.0), 4)
    x_hat = g.fake_quantize(jnp.array([0.5, 1.5, 2.5, 3.5]), grid)
    np.testing.assert_array_equal(x_hat, [0.0, 2.0, 2.0, 4.0])


def test_symmetric_variants_use_the_codes_they_should():
    x = jnp.array([-10.0, -7.6, -1.0, 0.0, 7.0, 10.0])

    def ends(build):
        grid = build(jnp.float32(-7.5), jnp.float32(7.5), 4)
        x_hat = g.fake_quantize(x, grid)
        return float(grid.step), float(x_hat[0]), float(x_hat[-1])

    step = float(np.float32(7.5) / np.float32(7.0))
    assert ends(g.symmetric) == (
        step,
        pytest.approx(-7 * step),
        pytest.approx(7 * step),
    )
    assert ends(g.symmetric_full) == (
        step,
        pytest.approx(-8 * step),
        pytest.approx(7 * step),
    )
    assert ends(g.symmetric_half) == (1.0, -8.0, 7.0)


def test_an_all_negative_range_keeps_its_zero_point_on_the_grid():
    grid = g.grid_from_range(jnp.float32(-5.0), jnp.float32(-2.0), 4)
    assert grid.zero_point == 15.0
    np.testing.assert_allclose(
        g.fake_quantize(jnp.array([-5.0]), grid), [-5.0], rtol=1e-6
    )


def test_degenerate_groups():
    zeros = g.grid_from_range(jnp.float32(0.0), jnp.float32(0.0), 8)
    assert (zeros.step, zeros.zero_point) == (1.0, 0.0)
    np.testing.assert_array_equal(g.fake_quantize(jnp.zeros(3), zeros), jnp.zeros(3))
    for value in (0.3, -7.0):
        constant = jnp.full((3,), value)
        grid = g.grid_from_range(jnp.min(constant), jnp.max(constant), 8)
        # c / n * n is within an ulp of c.
        np.testing.assert_allclose(g.fake_quantize(constant, grid), constant, rtol=2e-7)
    tiny = g.grid_from_range(jnp.float32(-1e-35), jnp.float32(1e-35), 8)
    x_hat = g.fake_quantize(jnp.array([-1e-35, 0.0, 1e-35]), tiny)
    np.testing.assert_allclose(x_hat, jnp.zeros(3), atol=1e-30)


def test_nan_stays_and_inf_goes_to_the_ends():
    grid = g.grid_from_range(jnp.float32(-1.0), jnp.float32(2.0), 4)
    x_hat = g.fake_quantize(jnp.array([jnp.nan, -jnp.inf, jnp.inf]), grid)
    assert jnp.isnan(x_hat[0])
    np.testing.assert_allclose(x_hat[1:], [-1.0, 2.0], atol=float(grid.step) / 2)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_range_is_never_silent(bad):
    grid = g.grid_from_range(jnp.float32(-1.0), jnp.float32(bad), 8)
    assert jnp.all(jnp.isnan(g.fake_quantize(jnp.array([0.5, -0.5]), grid)))


@pytest.mark.parametrize("num_bits", [1, 17, 32])
def test_impossible_widths_are_refused(num_bits):
    with pytest.raises(errors.InputError, match="from 2 to 16"):
        g.grid_from_range(jnp.float32(-1.0), jnp.float32(1.0), num_bits)


def test_no_grid_is_the_identity():
    x = jnp.arange(3.0)
    assert g.fake_quantize(x, None) is x


def test_one_compilation_serves_every_width():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def quantize(x, lo, hi, num_bits):
        return g.fake_quantize(x, g.grid_from_range(lo, hi, num_bits))

    x = jax.random.normal(jax.random.key(3), (128,))
    for num_bits in ALL_BITS:
        traced = quantize(x, jnp.float32(-3.0), jnp.float32(3.0), jnp.int32(num_bits))
        static = g.grid_from_range(jnp.float32(-3.0), jnp.float32(3.0), num_bits)
        np.testing.assert_array_equal(traced, g.fake_quantize(x, static))


def test_stacked_grids_are_scanned_layer_by_layer():
    x = jax.random.normal(jax.random.key(4), (3, 2, 8))
    lo, hi = jnp.array([-1.0, -2.0, -3.0]), jnp.array([1.0, 0.5, 4.0])
    grids = g.grid_from_range(lo, hi, 5)
    chex.assert_shape(grids, (3,))
    _, scanned = jax.lax.scan(
        lambda carry, layer: (carry, g.fake_quantize(*layer)), 0, (x, grids)
    )
    for layer in range(3):
        alone = g.grid_from_range(lo[layer], hi[layer], 5)
        np.testing.assert_array_equal(scanned[layer], g.fake_quantize(x[layer], alone))


# SQNR of N(0, 1) with the min-max range of 32768 * 768 draws, +-5.467 sigma.
MIN_MAX_DB = {
    "asymmetric": {2: 0.95, 3: 6.92, 4: 13.54, 5: 19.84, 6: 26.0, 8: 38.15, 10: 50.21,
                   12: 62.24, 16: 86.3},
    "symmetric": {2: 0.09, 3: 5.59, 4: 12.94, 5: 19.56, 6: 25.86, 8: 38.11, 10: 50.2,
                  12: 62.24, 16: 86.3},
}  # fmt: skip


@pytest.mark.parametrize("scheme", sorted(MIN_MAX_DB))
def test_min_max_sqnr_of_a_gaussian(scheme):
    for num_bits, expected in MIN_MAX_DB[scheme].items():
        # The entry at 16 bits counts rounding alone: no mass beyond the range.
        x, density = gaussian(5.467, FINE) if num_bits == 16 else gaussian()
        grid = g.SCHEMES[scheme](-5.467, 5.467, num_bits)
        # The table has two decimals, one at 16 bits; the lattice adds less than 0.01.
        atol = 0.06 if num_bits == 16 else 0.015
        np.testing.assert_allclose(sqnr_db(grid, x, density), expected, atol=atol)


# Minimum mean squared error for N(0, 1): the half-range c and its SQNR.
OPTIMAL_CLIP = {
    "symmetric": {2: (1.224, 7.21), 3: (1.952, 13.29), 4: (2.474, 18.90),
                  5: (2.899, 24.33), 6: (3.270, 29.71), 7: (3.608, 35.11),
                  8: (3.921, 40.54), 10: (4.493, 51.54)},
    "symmetric_full": {2: (1.048, 8.26), 3: (1.806, 13.91), 4: (2.370, 19.26),
                       5: (2.832, 24.53), 6: (3.230, 29.82), 7: (3.584, 35.16),
                       8: (3.907, 40.57), 10: (4.489, 51.55)},
}  # fmt: skip


@pytest.mark.parametrize("scheme", sorted(OPTIMAL_CLIP))
def test_optimal_clip_of_a_gaussian(scheme):
    x, density = gaussian()
    for num_bits, (clip, expected) in OPTIMAL_CLIP[scheme].items():

        def at(c, num_bits=num_bits):
            return sqnr_db(g.SCHEMES[scheme](-c, c, num_bits), x, density)

        best = at(clip)
        np.testing.assert_allclose(best, expected, atol=0.015)
        # A flat optimum: 3% to either side is worse, by more than the lattice's error.
        assert best > at(0.97 * clip) and best > at(1.03 * clip)


def test_clipping_at_5_sigma_caps_a_16_bit_gaussian_at_83_decibels():
    # Rounding alone 86.3 dB, overload alone 85.8 dB.
    x, density = gaussian(num_points=FINE)
    grid = g.grid_from_range(-5.467, 5.467, 16)
    np.testing.assert_allclose(sqnr_db(grid, x, density), 83.0, atol=0.1)


@pytest.mark.parametrize(("num_bits", "expected"), [(4, 23.52), (8, 48.13)])
def test_uniform_gains_six_decibels_per_bit(num_bits, expected):
    # 20 log10(2**b - 1), exact at high resolution.
    x = ((np.arange(1_000_000) + 0.5) / 500_000 - 1.0).astype(np.float32)
    grid = g.grid_from_range(-1.0, 1.0, num_bits)
    measured = sqnr_db(grid, x, np.ones(x.size))
    np.testing.assert_allclose(measured, expected, atol=0.01)
    np.testing.assert_allclose(measured, 20 * math.log10(2**num_bits - 1), atol=0.01)


@pytest.mark.parametrize(
    ("num_bits", "float32_db", "bfloat16_db"),
    [(8, 38.1, 38.0), (10, 50.2, 49.1), (12, 62.2, 54.7), (16, 86.3, 55.6)],
)
def test_a_bfloat16_carrier_cannot_hold_wide_grids(num_bits, float32_db, bfloat16_db):
    x, density = gaussian(5.467, FINE)
    grid = g.grid_from_range(-5.467, 5.467, num_bits)
    x_hat = g.fake_quantize(jnp.asarray(x), grid)
    assert x_hat.dtype == jnp.float32
    error = np.asarray(x_hat.astype(jnp.bfloat16), np.float64) - x
    carried = -10 * math.log10((density * error**2).sum() / (density * x**2.0).sum())
    # The published draw has a range of about +-5.5; the table has one decimal.
    np.testing.assert_allclose(sqnr_db(grid, x, density), float32_db, atol=0.1)
    np.testing.assert_allclose(carried, bfloat16_db, atol=0.1)


def test_straight_through_has_the_value_of_fake_quantize_and_a_clipped_gradient():
    grid = g.grid_from_range(jnp.float32(-1.0), jnp.float32(1.0), 4)
    x = jnp.array([-5.0, -0.9, 0.0, 0.33, 0.9, 5.0])
    np.testing.assert_array_equal(g.straight_through(x, grid), g.fake_quantize(x, grid))
    gradient = jax.grad(lambda x: jnp.sum(g.straight_through(x, grid)))(x)
    np.testing.assert_array_equal(gradient, [0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert jnp.isnan(g.straight_through(jnp.array([jnp.nan]), grid))[0]


def test_each_extent_quantizes_its_groups_alone():
    x = (
        jax.random.normal(jax.random.key(5), (2, 3, 8))
        * jnp.arange(1.0, 9.0)[None, None]
    )

    def alone(part):
        return g.fake_quantize(part, g.grid_from_range(part.min(), part.max(), 4))

    def dynamic(granularity):
        return g.fake_quantize(x, g.Dynamic(4, granularity))

    np.testing.assert_array_equal(g.fake_quantize(x, 4), alone(x))
    np.testing.assert_array_equal(dynamic("per_tensor"), alone(x))
    np.testing.assert_array_equal(dynamic("per_token")[1, 2], alone(x[1, 2]))
    np.testing.assert_array_equal(dynamic("per_channel")[..., 5], alone(x[..., 5]))
    found = dynamic("per_group_4")[0, 1, 4:]
    np.testing.assert_array_equal(found, alone(x[0, 1, 4:]))
    np.testing.assert_array_equal(dynamic("per_group_8"), dynamic("per_token"))


def test_a_group_must_divide_the_axis():
    with pytest.raises(errors.InputError, match="group_size=3"):
        g.fake_quantize(jnp.ones((2, 8)), g.Dynamic(4, "per_group_3"))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token", "per_channel"])
def test_one_token_of_one_value_shares_nothing(granularity):
    # Where a group is the whole array, what shares a grid does not matter.
    row = jax.random.normal(jax.random.key(7), (1, 64))
    x = row if granularity != "per_channel" else row.T
    found = g.fake_quantize(x, g.Dynamic(4, granularity))
    np.testing.assert_array_equal(found, g.fake_quantize(x, 4))


def test_bits_are_data_and_granularity_is_not():
    traces = []

    @jax.jit
    def rounded(x, how):
        traces.append(how)
        return g.fake_quantize(x, how)

    x = jax.random.normal(jax.random.key(8), (3, 16))
    for granularity in ("per_tensor", "per_token", "per_group_4"):
        for num_bits in (2, 4, 8):
            found = rounded(x, g.Dynamic(jnp.int32(num_bits), granularity))
            expected = g.fake_quantize(x, g.Dynamic(num_bits, granularity))
            np.testing.assert_array_equal(found, expected)
    assert len(traces) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: g.Dynamic(4, "per_row"), "granularity='per_row' is unknown"),
        (lambda: g.Dynamic(4, scheme="log"), "scheme='log' is unknown"),
        (lambda: g.fake_quantize(jnp.ones(3), 1), "num_bits=1 must be"),
        (lambda: g.fake_quantize(jnp.ones(3), 4.5), r"num_bits=4\.5 must be"),
        (lambda: g.fake_quantize(jnp.ones(3), np.int64(17)), "num_bits=17 must be"),
    ],
)
def test_what_nothing_can_be_rounded_to_is_a_sentence(make, said):
    with pytest.raises(errors.InputError, match=said):
        make()


def test_a_list_and_a_numpy_array_are_arrays():
    values = [-1.0, 0.4, 2.0]
    for x in (values, np.array(values)):
        np.testing.assert_array_equal(g.fake_quantize(x, 2), [-1.0, 0.0, 2.0])


@pytest.mark.parametrize(("num_bits", "expected"), [(4, 17.1), (6, 30.0), (8, 42.3)])
def test_dynamic_tokens_of_a_gaussian(num_bits, expected):
    x = jax.random.normal(jax.random.key(6), (2048, 768))
    x_hat = g.fake_quantize(x, g.Dynamic(num_bits, "per_token", "symmetric"))
    measured = 10 * jnp.log10(jnp.sum(x**2) / jnp.sum((x - x_hat) ** 2))
    # Mean over 2,048 tokens; the table has one decimal.
    np.testing.assert_allclose(measured, expected, atol=0.1)
