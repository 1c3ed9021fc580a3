"""Channel and token statistics on planted structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.stats import central, channels, isometry, per_token

D, NUM_TOKENS = 768, 2048
tokens_of = jax.jit(per_token.tokens)
channel_moments = jax.jit(channels.channel_moments)


def planted(kind):
    x = jax.random.normal(jax.random.key(0), (NUM_TOKENS, D))
    if kind == "channel":
        return x.at[:, 7].multiply(50.0)
    return x.at[7].multiply(200.0) if kind == "token" else x


# Pooled kurtosis alone cannot tell a channel from a token.
@pytest.mark.parametrize(
    ("kind", "pooled", "he", "of_channels", "of_tokens"),
    [
        # Sampling deviation of a kurtosis over n values: sqrt(24 / n), here
        # .0039 pooled and .1 for one channel or .18 for one token.
        ("none", (0.0, 0.02), (1.001, 1e-3), (0.0, 0.05), (0.0, 0.05)),
        ("channel", (1276.0, 120.0), (446.0, 10.0), (0.0, 0.05), None),
        ("token", (5283.0, 300.0), (2.7, 0.2), None, (0.0, 0.05)),
    ],
)
def test_each_statistic_sees_its_own_outliers(kind, pooled, he, of_channels, of_tokens):
    x = planted(kind)
    m = central.to_float64(channel_moments(x))
    t = tokens_of(x)
    found = {
        "pooled": central.excess_kurtosis(channels.pooled(m)),
        "he": channels.he_kurtosis(m),
        "of_channels": channels.mean_excess_kurtosis(m),
        "of_tokens": per_token.mean_excess_kurtosis(t),
    }
    for name, expected in zip(found, (pooled, he, of_channels, of_tokens), strict=True):
        if expected is None:
            assert found[name] > 50.0
        else:
            np.testing.assert_allclose(found[name], expected[0], atol=expected[1])


def test_pooling_channels_is_the_moments_of_all():
    x = jax.random.normal(jax.random.key(1), (4, 100, 6)) * jnp.arange(6.0)[None, None]
    m = channels.pooled(central.to_float64(channel_moments(x + 3.0)))
    np.testing.assert_allclose(m, central.moments(x + 3.0), rtol=1e-4)


def test_the_mean_share_is_one_when_tokens_are_alike():
    row = jax.random.normal(jax.random.key(2), (1, D))
    alike = jnp.broadcast_to(row, (64, D))
    m = channel_moments(alike)
    np.testing.assert_allclose(channels.mean_share(m), 1.0, rtol=1e-5)
    np.testing.assert_allclose(per_token.token_cosine(tokens_of(alike)), 1.0, rtol=1e-5)
    m = channel_moments(planted("none"))
    # Each mean of 2,048 tokens has variance 1 / 2048.
    np.testing.assert_allclose(channels.mean_share(m), 1 / NUM_TOKENS, rtol=0.2)


def test_token_cosine_is_the_mean_over_pairs():
    x = np.asarray(jax.random.normal(jax.random.key(3), (3, 4, 5)) + 0.5)
    unit = x.reshape(12, 5) / np.linalg.norm(x.reshape(12, 5), axis=1, keepdims=True)
    cosine = unit @ unit.T
    expected = (cosine.sum() - 12) / (12 * 11)
    np.testing.assert_allclose(
        per_token.token_cosine(tokens_of(jnp.asarray(x))), expected, rtol=1e-5
    )


def test_max_over_median_is_per_token():
    x = jnp.array([[1.0, -2.0, 8.0], [0.0, 1.0, -3.0]])
    t = tokens_of(x)
    np.testing.assert_allclose(per_token.max_over_median(t), (4.0 + 3.0) / 2)


def test_dead_tokens_and_channels_are_left_out_and_nan_is_not():
    x = jax.random.normal(jax.random.key(4), (50, 8)).at[3].set(0.0).at[:, 5].set(0.0)
    t = tokens_of(x)
    assert (t.num_varying, t.num_with_median, t.num_nonzero) == (49.0, 49.0, 49.0)
    for value in (
        per_token.mean_excess_kurtosis(t),
        per_token.max_over_median(t),
        per_token.token_cosine(t),
        channels.mean_excess_kurtosis(channel_moments(x)),
    ):
        assert np.isfinite(value)
    bad = x.at[0, 0].set(jnp.nan)
    assert np.isnan(per_token.mean_excess_kurtosis(tokens_of(bad)))
    assert np.isnan(channels.mean_excess_kurtosis(channel_moments(bad)))


def test_batches_of_tokens_merge_to_the_whole():
    x = planted("token")
    a, b = (central.to_float64(tokens_of(part)) for part in (x[:500], x[500:]))
    merged, whole = per_token.merge(a, b), tokens_of(x)
    for left, right in zip(merged, whole, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (8, 16), (16, 8)])
def test_a_scaled_isometry_has_no_deviation_on_its_small_side(shape):
    w = 3.0 * jax.nn.initializers.orthogonal()(jax.random.key(5), shape, jnp.float32)
    s = isometry.singular_values(jnp.stack([w, 2.0 * w]))
    assert s.shape == (2, 8 if 8 in shape else 16)
    np.testing.assert_allclose(isometry.deviation(s[0], 9.0), 0.0, atol=1e-5)
    np.testing.assert_allclose(isometry.deviation(s, 9.0)[1], 3.0, atol=1e-4)
    np.testing.assert_allclose(isometry.spread(s), [1.0, 1.0], rtol=1e-5)


def test_deviation_is_the_spectral_norm():
    w = jax.random.normal(jax.random.key(6), (5, 9)) / 3.0
    gram = np.asarray(w @ w.T) - np.eye(5)
    expected = np.abs(np.linalg.eigvalsh(gram)).max()
    found = isometry.deviation(isometry.singular_values(w), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
