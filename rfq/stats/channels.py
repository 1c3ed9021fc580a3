"""Statistics per channel: does a channel or a token make the pooled kurtosis?

A pooled excess kurtosis in the hundreds can be one channel that is large for every
token, or a few tokens that are large in every channel. Every function reads `Moments`
whose last axis is the channel; these merge over batches as any other moments do.
"""

import jax.numpy as jnp
import numpy as np

from rfq.stats import central
from rfq.types import Array


def channel_moments(x: Array, where: Array | None = None) -> central.Moments:
    """Reduce each channel (the last axis) over all tokens; the leaves are `[D]`.

    With `where`, of the shape of x without its last axis, only those tokens count.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> m = stats.channel_moments(jnp.array([[1.0, 4.0], [3.0, 4.0]]))
        >>> m.mean.tolist(), stats.variance(m).tolist()
        ([2.0, 4.0], [1.0, 0.0])
    """
    x = jnp.asarray(x)
    where = None if where is None else where.reshape(-1, 1)
    return central.moments(x.reshape(-1, x.shape[-1]), axis=0, where=where)


def pooled(m: central.Moments) -> central.Moments:
    """Merge the moments of all channels (Pebay, SAND2008-6212, many sets at once)."""
    count = m.count.sum(-1)
    mean = (m.count * m.mean).sum(-1) / count
    delta = m.mean - mean[..., None]
    return central.Moments(
        count=count,
        mean=mean,
        m2=(m.m2 + m.count * delta**2).sum(-1),
        m3=(m.m3 + 3.0 * delta * m.m2 + m.count * delta**3).sum(-1),
        m4=(m.m4 + 4.0 * delta * m.m3 + 6.0 * delta**2 * m.m2 + m.count * delta**4).sum(
            -1
        ),
    )


def mean_excess_kurtosis(m: central.Moments) -> Array:
    """Average the channels' excess kurtosis, leaving constant channels out."""
    alive = m.m2 != 0.0  # NaN counts as alive, so that it is seen.
    m2 = m.m2 + ~alive
    gamma = (m.m4 / m2) / (m2 / m.count) - 3.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gamma * alive).sum(-1) / alive.sum(-1)


def _per_channel(x: Array | central.Moments) -> central.Moments:
    return x if isinstance(x, central.Moments) else channel_moments(x)


def he_kurtosis(x: Array | central.Moments) -> Array:
    """Return the kurtosis of the channels' RMS, mean_j s_j^4 / (mean_j s_j^2)^2.

    s_j^2 = E[x_j^2] over tokens (He et al., 2024). It lies between 1 (all channels are
    alike) and D (one channel has it all); no 3 is subtracted. It is NaN for all zeros.

    Args:
        x: Activations `[..., D]`, or what `channel_moments` made of them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([[1.0, 1.0, 1.0, 7.0], [-1.0, 1.0, -1.0, 7.0]])
        >>> round(float(stats.he_kurtosis(x)), 3)
        3.556
    """
    m = _per_channel(x)
    power = m.mean**2 + m.m2 / m.count
    with np.errstate(divide="ignore", invalid="ignore"):
        return (power**2).mean(-1) / power.mean(-1) ** 2


def mean_share(x: Array | central.Moments) -> Array:
    """Return the share of the energy in channel means, sum_j mean_j^2 / sum_j E[x_j^2].

    It is near 1 when all tokens are alike, a collapse that a kurtosis near 0 can hide.
    It is NaN for all zeros.

    Args:
        x: Activations `[..., D]`, or what `channel_moments` made of them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> float(stats.mean_share(x))
        0.5
    """
    m = _per_channel(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (m.mean**2).sum(-1) / (m.mean**2 + m.m2 / m.count).sum(-1)
