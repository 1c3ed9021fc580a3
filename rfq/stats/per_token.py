"""Statistics within one token and between tokens, averaged over the sample."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.stats import central, select
from rfq.types import Array


class Tokens(NamedTuple):
    """Sums over tokens; each mean is over the tokens for which it is defined."""

    excess_kurtosis: Array
    num_varying: Array  # Tokens that are not constant: the others have no kurtosis.
    max_over_median: Array
    num_with_median: Array  # Tokens whose median magnitude is not 0.
    direction: Array  # [D]: sum(x_t / |x_t|).
    num_nonzero: Array
    num_tokens: Array


def tokens(x: Array) -> Tokens:
    """Reduce `[..., D]` activations, whose leading axes all count tokens.

    The median makes this the most expensive of the statistics, so give it a sample.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> t = stats.tokens(jnp.array([[1.0, 1.0, 8.0], [2.0, 2.0, 2.0]]))
        >>> float(stats.max_over_median(t))
        4.5
    """
    x = jnp.asarray(x, jnp.float32)
    x = x.reshape(-1, x.shape[-1])
    m = central.moments(x, axis=-1)
    varying = m.m2 != 0.0  # NaN counts as varying, so that it is seen.
    size = jnp.abs(x)
    median = select.median(size)
    with_median = median != 0.0
    norm = jnp.linalg.norm(x, axis=-1)
    nonzero = norm != 0.0
    ratio = jnp.max(size, axis=-1) / jnp.where(with_median, median, 1.0)
    unit = x / jnp.where(nonzero, norm, 1.0)[:, None]
    return Tokens(
        excess_kurtosis=jnp.sum(jnp.where(varying, central.excess_kurtosis(m), 0.0)),
        num_varying=jnp.sum(varying).astype(jnp.float32),
        max_over_median=jnp.sum(jnp.where(with_median, ratio, 0.0)),
        num_with_median=jnp.sum(with_median).astype(jnp.float32),
        direction=jnp.sum(unit, axis=0),
        num_nonzero=jnp.sum(nonzero).astype(jnp.float32),
        num_tokens=jnp.float32(x.shape[0]),
    )


def merge(a: Tokens, b: Tokens) -> Tokens:
    """Return the sums over the union of two samples; float64 works too."""
    return Tokens(*(left + right for left, right in zip(a, b, strict=True)))


def mean_excess_kurtosis(t: Tokens) -> Array:
    """Average over tokens the excess kurtosis across channels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return t.excess_kurtosis / t.num_varying


def _tokens_of(x: Array | Tokens) -> Tokens:
    return x if isinstance(x, Tokens) else tokens(x)


def max_over_median(x: Array | Tokens) -> Array:
    """Average max_j |x_j| / median_j |x_j| over tokens (He et al., 2024).

    Args:
        x: Activations `[..., D]`, or what `tokens` made of them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> float(stats.max_over_median(jnp.array([[1.0, -4.0, 1.0]])))
        4.0
    """
    t = _tokens_of(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return t.max_over_median / t.num_with_median


def token_cosine(x: Array | Tokens) -> Array:
    """Average the cosine of two different tokens, (|sum_t u_t|^2 - n) / (n (n - 1)).

    u_t = x_t / |x_t|, and n counts the tokens that are not all zeros.

    Args:
        x: Activations `[..., D]`, or what `tokens` made of them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> f"{stats.token_cosine(x):.4f}"
        '0.7071'
    """
    t = _tokens_of(x)
    n = t.num_nonzero
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((t.direction**2).sum(-1) - n) / (n * (n - 1.0))
