"""Range records and what calibration refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as laws

from rfq import errors
from rfq.quant import calibrate, distortion, grid
from rfq.stats import bins, central, extremes


def observed(x):
    return central.to_float64(extremes.value_range(jnp.asarray(x)))


def test_merging_ranges_is_pooling():
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    merged = extremes.merge(
        extremes.merge(observed(x[0]), observed(x[1])), observed(x[2])
    )
    pooled = observed(x)
    assert merged == pooled
    assert merged.count == 300


def test_min_max_is_the_extremes_of_every_layer():
    x = jnp.arange(24.0).reshape(2, 12) - 5.0
    record = central.to_float64(jax.vmap(extremes.value_range)(x))
    lo, hi = calibrate.finalize({"mlp_in": record}, ["mlp_in"])["mlp_in"]
    np.testing.assert_array_equal(lo, [-5.0, 7.0])
    np.testing.assert_array_equal(hi, [6.0, 18.0])
    assert lo.dtype == np.float32


def test_non_finite_values_are_counted_not_used():
    record = observed([1.0, jnp.nan, -2.0, jnp.inf, -jnp.inf])
    assert (record.lo, record.hi, record.num_nonfinite) == (-2.0, 1.0, 3.0)


def test_a_site_that_met_nan_is_refused_by_name_and_layer():
    x = jnp.ones((3, 4)).at[1, 2].set(jnp.nan)
    record = central.to_float64(jax.vmap(extremes.value_range)(x))
    with pytest.raises(
        errors.InputError, match=r"'attn_in' in layers \[2\].*NaN or inf"
    ):
        calibrate.finalize({"attn_in": record}, ["attn_in"])


def test_a_site_that_was_never_reached_is_refused_by_name():
    with pytest.raises(errors.InputError, match=r"'mlp_in'.*never reached.*attn_in"):
        calibrate.finalize({"attn_in": observed([1.0])}, ["attn_in", "mlp_in"])
    nothing = extremes.Range(*(np.zeros(()) for _ in extremes.Range._fields))
    with pytest.raises(errors.InputError, match="never reached"):
        calibrate.finalize({"mlp_in": nothing}, ["mlp_in"])


def test_static_ranges_per_channel_broadcast_against_the_activations():
    x = (
        jax.random.normal(jax.random.key(0), (4, 5, 6))
        * jnp.arange(1.0, 7.0)[None, None]
    )
    record = extremes.value_range(x, axis=(0, 1))
    assert record.lo.shape == (1, 1, 6)
    np.testing.assert_array_equal(record.count, np.full((1, 1, 6), 20.0))
    grids = grid.grid_from_range(record.lo, record.hi, 8)
    for channel in range(6):
        column = x[..., channel]
        alone = grid.grid_from_range(jnp.min(column), jnp.max(column), 8)
        np.testing.assert_array_equal(
            grid.fake_quantize(x, grids)[..., channel],
            grid.fake_quantize(column, alone),
        )


def layer_sample(x, num_batches=1):
    """What the driver collects in two passes over x."""
    batches = [observed(batch) for batch in x.reshape(num_batches, -1)]
    binning = bins.robust_binning(jnp.asarray(x))
    h = bins.histogram(jnp.asarray(x), binning)
    return calibrate.LayerSample(
        batches=extremes.Range(
            *(np.stack(leaf) for leaf in zip(*batches, strict=True))
        ),
        rms=float(np.sqrt(np.mean(x.astype(np.float64) ** 2))),
        counts=np.asarray(h.counts),
        edges=bins.edges() * binning.scale + binning.center,
    )


def normal(n=400_000, quantile=laws.norm.ppf):
    """Midpoints of n parts of equal probability: a sample without sampling error."""
    x = quantile((np.arange(n) + 0.5) / n).astype(np.float32)
    return np.random.default_rng(0).permutation(x)


def sqnr_db(x, bounds, num_bits):
    made = grid.grid_from_range(np.float32(bounds[0]), np.float32(bounds[1]), num_bits)
    return float(distortion.sqnr_db(x, grid.fake_quantize(jnp.asarray(x), made)))


def test_min_max_clips_nothing_and_absmax_is_symmetric():
    x = np.concatenate([normal(999), [9.0]]).astype(np.float32)
    seen = layer_sample(x, num_batches=4)
    assert calibrate.min_max(seen, 8, grid.grid_from_range) == (x.min(), x.max())
    assert calibrate.absmax(seen, 8, grid.grid_from_range) == (-9.0, 9.0)


def test_ema_forgets_the_token_that_one_batch_held():
    x = np.zeros((10, 4), np.float32)
    x[:, 0], x[:, 1], x[2, 2] = -1.0, 1.0, 1000.0
    lo, hi = calibrate.CALIBRATORS["ema"](layer_sample(x, 10), 8, grid.grid_from_range)
    assert lo == -1.0
    # 1 + .1 * 999 after the batch, shrinking by .9 in the seven that follow.
    assert hi == pytest.approx(1.0 + 99.9 * 0.9**7)


# N(0, 1), min-max and the three percentiles; 4 and 8 bits, asymmetric.
@pytest.mark.parametrize(
    ("name", "four_bits_db", "eight_bits_db"),
    [("percentile_99.99", 16.5, 40.5), ("percentile_99.9", 17.9, 37.2)],
)
def test_percentiles_of_a_gaussian(name, four_bits_db, eight_bits_db):
    x = normal(1_000_000)
    for num_bits, expected in ((4, four_bits_db), (8, eight_bits_db)):
        bounds = calibrate.CALIBRATORS[name](
            layer_sample(x), num_bits, grid.grid_from_range
        )
        # The table's own draw of 2e6 has 200 values beyond the .9999 range.
        np.testing.assert_allclose(sqnr_db(x, bounds, num_bits), expected, atol=0.15)


@pytest.mark.parametrize(
    ("name", "four_bits_db", "eight_bits_db"),
    [("percentile_99.99", 12.0, 35.1), ("percentile_99.9", 14.5, 29.2)],
)
def test_percentiles_of_a_laplace(name, four_bits_db, eight_bits_db):
    x = normal(1_000_000, laws.laplace.ppf)
    for num_bits, expected in ((4, four_bits_db), (8, eight_bits_db)):
        bounds = calibrate.CALIBRATORS[name](
            layer_sample(x), num_bits, grid.grid_from_range
        )
        # As above: 2,000 clipped values know the energy of their excess, whose square
        # has a kurtosis of 6, to 5 % or .2 dB.
        np.testing.assert_allclose(sqnr_db(x, bounds, num_bits), expected, atol=0.4)


# Optimal half-range and SQNR of N(0, 1).
@pytest.mark.parametrize(
    ("scheme", "num_bits", "clip", "db"),
    [
        ("symmetric", 2, 1.224, 7.21),
        ("symmetric", 4, 2.474, 18.90),
        ("symmetric", 8, 3.921, 40.54),
        ("symmetric_full", 3, 1.806, 13.91),
        ("symmetric_full", 6, 3.230, 29.82),
        ("symmetric_full", 10, 4.489, 51.55),
    ],
)
def test_gaussian_clip_needs_no_data(scheme, num_bits, clip, db):
    build = grid.SCHEMES[scheme]
    # The optimum is flat: a third digit of c moves the error by less than 1e-5.
    np.testing.assert_allclose(
        calibrate.gaussian_clip(num_bits, build), clip, rtol=2e-3
    )
    # At twice the scale, where an RMS of 2 is all that calibration knows.
    x = np.linspace(-16.0, 16.0, 400_000, dtype=np.float32)
    density = laws.norm.pdf(x / 2.0)
    seen = calibrate.LayerSample(*[None] * 4)._replace(rms=2.0)
    made = build(*map(np.float32, calibrate.gaussian(seen, num_bits, build)), num_bits)
    error = np.asarray(grid.fake_quantize(jnp.asarray(x), made), np.float64) - x
    found = (density * x.astype(np.float64) ** 2).sum() / (density * error**2).sum()
    # Two decimals in the table.
    np.testing.assert_allclose(10 * np.log10(found), db, atol=0.015)


# At 12 bits a step is finer than a bin, so that the search cannot see where in its bin
# the atom of the one-sided law lies.
@pytest.mark.parametrize(
    ("law", "num_bits"),
    [
        *itertools.product(("normal", "outliers", "one_sided"), (2, 4, 8)),
        ("normal", 12),
        ("outliers", 12),
    ],
)
def test_mse_is_the_best_shrink_of_the_range(law, num_bits):
    x = normal()
    if law == "outliers":
        x[:40] = 100.0
    if law == "one_sided":
        x = np.maximum(x, -0.1)
    seen = layer_sample(x)
    lo, hi = calibrate.min_max(seen, num_bits, grid.grid_from_range)
    found = sqnr_db(x, calibrate.mse(seen, num_bits, grid.grid_from_range), num_bits)
    tried = [
        sqnr_db(x, (factor * lo, factor * hi), num_bits)
        for factor in np.geomspace(0.003, 1.0, 60)
    ]
    # Steps of 10%: the search can only be behind by the histogram's resolution.
    assert found > max(tried) - 0.05


def test_expected_error_is_exact_for_a_uniform_density():
    # One bin over [-1, 2], asymmetric 3 bits, against a fine sum.
    grids = grid.grid_from_range(jnp.array([-1.0, -0.5]), jnp.array([2.0, 1.0]), 3)
    x = (np.arange(300_000) + 0.5) / 100_000 - 1.0
    found = calibrate.expected_error(
        np.array([-1.0]), np.array([2.0]), np.array([1.0]), grids
    )
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], grids)
        x_hat = np.asarray(grid.fake_quantize(jnp.asarray(x), one), np.float64)
        np.testing.assert_allclose(found[i], np.mean((x - x_hat) ** 2), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(calibrate.CALIBRATORS))
def test_every_calibrator_covers_the_bulk(name):
    x = normal(10_000) + 0.3
    lo, hi = calibrate.CALIBRATORS[name](layer_sample(x, 5), 8, grid.grid_from_range)
    assert lo < -2.5 and hi > 3.0
    assert sqnr_db(x, (lo, hi), 8) > 36.0
