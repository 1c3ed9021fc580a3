"""What per-channel moments say beyond the pooled kurtosis: is it a channel or a token?

A pooled excess kurtosis in the hundreds can be one channel that is large for every
token, or a few tokens that are large in every channel. Every function reads `Moments`
whose last axis is the channel, merged over batches as any other moments.
"""

import numpy as np

from rfq.stats import moments as moments_lib
from rfq.types import Array


def channel_moments(x: Array) -> moments_lib.Moments:
    """Moments of each channel (the last axis) over all tokens; leaves `[D]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> m = stats.channel_moments(jnp.array([[1.0, 4.0], [3.0, 4.0]]))
        >>> m.mean.tolist(), stats.variance(m).tolist()
        ([2.0, 4.0], [1.0, 0.0])
    """
    return moments_lib.moments(x.reshape(-1, x.shape[-1]), axis=0)


def pooled(m: moments_lib.Moments) -> moments_lib.Moments:
    """Moments of all channels together (Pebay, SAND2008-6212, many sets at once)."""
    count = m.count.sum(-1)
    mean = (m.count * m.mean).sum(-1) / count
    delta = m.mean - mean[..., None]
    return moments_lib.Moments(
        count=count,
        mean=mean,
        m2=(m.m2 + m.count * delta**2).sum(-1),
        m3=(m.m3 + 3.0 * delta * m.m2 + m.count * delta**3).sum(-1),
        m4=(m.m4 + 4.0 * delta * m.m3 + 6.0 * delta**2 * m.m2 + m.count * delta**4).sum(
            -1
        ),
    )


def mean_excess_kurtosis(m: moments_lib.Moments) -> Array:
    """Mean over channels of each channel's excess kurtosis; constant ones left out."""
    alive = m.m2 != 0.0  # NaN is alive, so that it is seen.
    m2 = m.m2 + ~alive
    gamma = (m.m4 / m2) / (m2 / m.count) - 3.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gamma * alive).sum(-1) / alive.sum(-1)


def he_kurtosis(m: moments_lib.Moments) -> Array:
    """Kurtosis of the channels' RMS: mean_j s_j^4 / (mean_j s_j^2)^2 (He et al., 2024).

    s_j^2 = E[x_j^2] over tokens. Between 1 (all channels alike) and D (one channel); no
    3 is subtracted. NaN for all zeros.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([[1.0, 1.0, 1.0, 7.0], [-1.0, 1.0, -1.0, 7.0]])
        >>> round(float(stats.he_kurtosis(stats.channel_moments(x))), 3)
        3.556
    """
    power = m.mean**2 + m.m2 / m.count
    with np.errstate(divide="ignore", invalid="ignore"):
        return (power**2).mean(-1) / power.mean(-1) ** 2


def mean_share(m: moments_lib.Moments) -> Array:
    """Share of the energy in the channel means: sum_j mean_j^2 / sum_j E[x_j^2].

    Near 1 when all tokens are alike, a collapse that a kurtosis near 0 can hide. NaN
    for all zeros.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> float(stats.mean_share(stats.channel_moments(x)))
        0.5
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (m.mean**2).sum(-1) / (m.mean**2 + m.m2 / m.count).sum(-1)
