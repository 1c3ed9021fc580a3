"""Who holds the outliers, against numpy on the values themselves."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rfq.stats import central, holders

B, T, D = 3, 7, 10


# In the first batch a document begins at token 4 of sequence 1; no other does.
STARTS = np.zeros((2, B, T), bool)
STARTS[0, 1, 4] = True


def batch(seed):
    """Gaussian values, huge in channel 6 of the tokens that begin anything."""
    x = np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)
    x[:, 0, 6] += 50.0 + seed
    x[STARTS[seed], 6] += 40.0
    return x


def read(*batches):
    merged = None
    for seed, x in enumerate(batches):
        new = central.to_float64(holders.holders(x, jnp.asarray(STARTS[seed])))
        merged = new if merged is None else holders.merge(merged, new)
    return holders.numbers(merged)


def test_numbers_are_those_of_the_values_that_are_left():
    x = np.concatenate([batch(0), batch(1)])
    begun = np.concatenate(STARTS)
    found = read(batch(0), batch(1))
    kurtosis = lambda values: scipy.stats.kurtosis(values.ravel())  # noqa: E731
    largest = np.argsort(np.abs(x).max((0, 1)))[-holders.NUM_CHANNELS :]
    expected = {
        "excess_kurtosis": kurtosis(x),
        "without_first": kurtosis(x[:, 1:]),
        "without_starts": kurtosis(x[:, 1:][~begun[:, 1:]]),
        "without_channels": kurtosis(np.delete(x, largest, axis=2)),
        "rms": np.sqrt((x**2).mean()),
        "peak": np.abs(x).max(),
        "channel": 6,
        "position": 0,
        "first_share": (x[:, 0] ** 2).sum() / (x**2).sum(),
        "start_share": (x[begun] ** 2).sum() / (x**2).sum(),
        "channel_share": (x[..., 6] ** 2).sum() / (x**2).sum(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    assert found["excess_kurtosis"] > 50 > 1 > abs(found["without_starts"])
    # Fewer tokens that are as large as before are more extreme.
    assert found["without_first"] > 2 * found["excess_kurtosis"]


def test_heads_are_channels_and_layers_stay_apart():
    x = batch(0)
    first, second = map(jnp.asarray, STARTS)
    flat = holders.holders(x, first)
    cut = holders.holders(x.reshape(B, T, 2, D // 2), first)
    for a, b in zip(flat.starts + flat.rest, cut.starts + cut.rest, strict=True):
        np.testing.assert_array_equal(a, b)
    both = central.to_float64([flat, holders.holders(batch(1), second)])
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


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        # 9 begins a document, or ends one; in the first place it counts as neither.
        (holders.Mark(9, False), [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]),
        (holders.Mark(9, True), [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]),
    ],
)
def test_documents_begin_where_their_mark_says(mark, expected):
    tokens_BT = jnp.asarray([[3, 1, 9, 4, 9], [9, 2, 2, 3, 3]])
    found = np.asarray(holders.starts(tokens_BT, mark), int)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("gammas", "said"),
    [
        ((238e3, 75.0, 75.0, 991.0), "the first token of each sequence"),
        ((238e3, 1.6e6, 75.0, 991.0), "the tokens that begin sequences and documents"),
        ((26.0, 25.0, 25.0, 2.0), "the 4 largest channels"),
        ((26.0, 25.0, 25.0, 11.0), "many tokens and channels"),
        ((0.9, 0.01, 0.01, 0.01), "nobody"),
        ((float("nan"), 0.0, 0.0, 0.0), "nobody: values are all the same"),
    ],
)
def test_who_holds_outliers_is_who_takes_most_of_the_kurtosis_away(gammas, said):
    columns = ("excess_kurtosis", "without_first", "without_starts", "without_channels")
    numbers = dict(zip(columns, gammas, strict=True))
    assert holders.named(numbers).startswith(said)
