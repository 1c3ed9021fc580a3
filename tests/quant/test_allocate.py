"""Bits dealt out over sites: no other deal of the same mean is better."""

import itertools

import numpy as np
import pytest

from rfq.quant import allocate

WIDTHS = np.arange(2, 7)


def case(seed, num_sites=4):
    rng = np.random.default_rng(seed)
    gains = rng.lognormal(0.0, 1.5, num_sites)
    errors = rng.lognormal(0.0, 1.0, (num_sites, 1)) * 4.0**-WIDTHS
    return gains, errors


def cost(gains, errors, bits):
    return np.sum(gains * errors[np.arange(len(bits)), np.asarray(bits) - WIDTHS[0]])


@pytest.mark.parametrize("seed", range(4))
def test_no_deal_of_the_same_mean_costs_less(seed):
    gains, errors = case(seed)
    found = allocate.bits(gains, errors, WIDTHS, 4.0)
    assert found.mean() == 4.0
    deals = [
        deal
        for deal in itertools.product(WIDTHS, repeat=len(gains))
        if np.mean(deal) <= 4.0
    ]
    best = min(cost(gains, errors, deal) for deal in deals)
    np.testing.assert_allclose(cost(gains, errors, found), best, rtol=1e-12)
    assert cost(gains, errors, found) < cost(gains, errors, [4] * len(gains))


def test_a_site_gets_a_bit_more_for_an_error_four_times_as_large():
    gains = np.array([1.0, 4.0, 16.0])
    found = allocate.bits(gains, np.tile(4.0**-WIDTHS, (3, 1)), WIDTHS, 4.0)
    assert found.tolist() == [3, 4, 5]


def test_no_site_leaves_the_widths():
    gains, errors = case(0)
    for mean, every in ((2.0, 2), (6.0, 6), (9.0, 6)):
        assert set(allocate.bits(gains, errors, WIDTHS, mean)) == {every}
