"""Who holds the outliers, against numpy on the values themselves."""

import numpy as np
import scipy.stats

from rfq.stats import central, holders

B, T, D = 3, 7, 10


def batch(seed):
    """Gaussian values, one huge in channel 6 of the first token."""
    x = np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)
    x[:, 0, 6] += 50.0 + seed
    return x


def read(*batches):
    merged = None
    for x in batches:
        new = central.to_float64(holders.holders(x))
        merged = new if merged is None else holders.merge(merged, new)
    return holders.numbers(merged)


def test_numbers_are_those_of_the_values_that_are_left():
    x = np.concatenate([batch(0), batch(1)])
    found = read(batch(0), batch(1))
    kurtosis = lambda values: scipy.stats.kurtosis(values.ravel())  # noqa: E731
    largest = np.argsort(np.abs(x).max((0, 1)))[-holders.NUM_CHANNELS :]
    expected = {
        "excess_kurtosis": kurtosis(x),
        "without_first": kurtosis(x[:, 1:]),
        "without_channels": kurtosis(np.delete(x, largest, axis=2)),
        "rms": np.sqrt((x**2).mean()),
        "peak": np.abs(x).max(),
        "channel": 6,
        "position": 0,
        "first_share": (x[:, 0] ** 2).sum() / (x**2).sum(),
        "channel_share": (x[..., 6] ** 2).sum() / (x**2).sum(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    assert found["excess_kurtosis"] > 50 > 1 > abs(found["without_first"])


def test_heads_are_channels_and_layers_stay_apart():
    x = batch(0)
    flat = holders.holders(x)
    cut = holders.holders(x.reshape(B, T, 2, D // 2))
    for a, b in zip(flat.first + flat.rest, cut.first + cut.rest, strict=True):
        np.testing.assert_array_equal(a, b)
    both = central.to_float64([holders.holders(x), holders.holders(batch(1))])
    stacked = holders.Holders(
        *(
            type(a)(*map(np.stack, zip(a, b, strict=True)))
            if isinstance(a, central.Moments)
            else np.stack([a, b])
            for a, b in zip(*both, strict=True)
        )
    )
    found = holders.numbers(stacked)
    for layer, one in enumerate(both):
        for name, value in holders.numbers(one).items():
            np.testing.assert_allclose(found[name][layer], value, rtol=1e-12)
