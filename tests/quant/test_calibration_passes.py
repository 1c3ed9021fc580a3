"""From calibration tokens to ranges: two passes, one range a layer and calibrator."""

import jax
import numpy as np
import pytest

from rfq import taps
from rfq.errors import InputError
from rfq.quant import CALIBRATORS, calibrate, grid

# Two layers of another scale and offset, and a site that exists once.
LAYERS = np.array([[0.5, 1.0], [-3.0, 0.1]])
rng = np.random.default_rng(0)
DRAWN = rng.standard_normal((3, 2, 4, 32, 8)).astype(np.float32)
BATCHES = DRAWN * LAYERS[:, 1, None, None, None] + LAYERS[:, 0, None, None, None]
BATCHES = BATCHES.astype(np.float32)
SITES = ("attn_in", "head_in")

first_of = jax.jit(taps.Measure(("range", "moments", "binning")))
second_of = jax.jit(taps.Measure(("histogram",)))


def first(batch):
    per_layer = jax.vmap(lambda x: first_of(x, None)[1])(batch)
    return {"attn_in": per_layer, "head_in": first_of(batch[0], None)[1]}


def second(batch, binnings):
    per_layer = jax.vmap(lambda x, b: second_of(x, b)[1])(batch, binnings["attn_in"])
    return {
        "attn_in": per_layer,
        "head_in": second_of(batch[0], binnings["head_in"])[1],
    }


@pytest.fixture(scope="module")
def observed():
    return calibrate.observe(first, second, BATCHES, SITES)


def chosen(observed, calibrator, num_bits=8, known_rms=None):
    return calibrate.ranges(
        observed, calibrator, num_bits, grid.grid_from_range, known_rms or {}
    )


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_gives_every_layer_its_range(observed, calibrator):
    found = chosen(observed, calibrator)
    assert set(found) == set(SITES)
    lo, hi = found["attn_in"]
    assert lo.shape == hi.shape == (2,) and lo.dtype == np.float32
    once = [end.shape for end in found["head_in"]]
    assert once == [(), ()]
    # The site that exists once saw what the first layer of the other saw.
    np.testing.assert_array_equal(found["head_in"], [lo[0], hi[0]])
    # The second layer is at -3 +- .4; a range with its sign wrong would not hold it.
    assert lo[1] < -2.9


def test_min_max_is_the_extremes_over_all_batches(observed):
    lo, hi = chosen(observed, "min_max")["attn_in"]
    np.testing.assert_array_equal(lo, BATCHES.min(axis=(0, 2, 3, 4)))
    np.testing.assert_array_equal(hi, BATCHES.max(axis=(0, 2, 3, 4)))


def test_ema_sees_batches_in_their_order(observed):
    _, hi = chosen(observed, "ema")["head_in"]
    tops = BATCHES[:, 0].max(axis=(1, 2, 3)).astype(np.float64)
    expected = 0.9 * (0.9 * tops[0] + 0.1 * tops[1]) + 0.1 * tops[2]
    np.testing.assert_allclose(hi, expected, rtol=1e-6)


def test_a_gain_stands_for_the_data(observed):
    gain_rms = np.array([2.0, 3.0])
    lo, hi = chosen(observed, "gaussian", 4, {"attn_in": gain_rms})["attn_in"]
    clip = calibrate.gaussian_clip(4, grid.grid_from_range)
    np.testing.assert_allclose(hi, clip * gain_rms, rtol=1e-6)
    np.testing.assert_allclose(lo, -hi)
    # Without a gain it is the data's RMS.
    _, hi = chosen(observed, "gaussian", 4)["head_in"]
    rms = np.sqrt(np.mean(BATCHES[:, 0].astype(np.float64) ** 2))
    np.testing.assert_allclose(hi, clip * rms, rtol=1e-5)


def test_the_bulk_holds_999_of_1000_values(observed):
    limits = calibrate.bulk_limits(observed)
    for layer in (0, 1):
        inside = np.mean(np.abs(BATCHES[:, layer]) <= limits["attn_in"][layer])
        # 3,072 values: the limit is the far end of the bin of the 3,069th.
        assert 0.999 <= inside < 1.0
    assert limits["head_in"] == limits["attn_in"][0]


def test_a_site_that_was_not_reached_or_not_finite_is_refused():
    with pytest.raises(InputError, match=r"'mlp_in'.*never reached"):
        calibrate.observe(first, second, BATCHES, (*SITES, "mlp_in"))
    bad = BATCHES.copy()
    bad[2, 1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"'attn_in' in layers \[2\].*NaN or inf"):
        calibrate.observe(first, second, bad, SITES)


def test_an_unknown_calibrator_is_a_sentence(observed):
    with pytest.raises(InputError, match=r"quantize\.calibrators='kl'"):
        chosen(observed, "kl")
