"""Central moments of a sample, reduced on the device and merged on the host.

Raw power sums lose the fourth moment in float32: with a mean of 100 and a standard
deviation of 1 they report an excess kurtosis of 57 for a Gaussian. Central sums keep
six digits, provided that batches are merged in float64.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rfq.types import Array

AnyRecord = TypeVar("AnyRecord")


class Moments(NamedTuple):
    """Central moment sums of a sample: sum((x - mean)**k) for k = 2, 3, 4.

    The leaves share one shape: scalars from `moments`, `[L]` out of a scan over layers,
    `[D]` per channel. Float32 is exact for the count when the batch's size has at most
    24 significant bits, as B * T * D has in practice.
    """

    count: Array
    mean: Array
    m2: Array
    m3: Array
    m4: Array


def moments(
    x: Array, *, axis: int | None = None, where: Array | None = None
) -> Moments:
    """Reduce an array, or one axis of it, to its central moment sums, in float32.

    Two passes over the data. Deviations between 1e-9 and 1e7 neither underflow nor
    overflow the fourth power. NaN and inf propagate to every field but the count.

    Args:
        x: The values.
        axis: The axis that is reduced; None for all.
        where: Which values count, of a shape that broadcasts to that of x; None for
            all. The moments of no values are all 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> m = stats.moments(jnp.array([1.0, 2.0, 3.0, 6.0]))
        >>> float(m.count), float(m.mean), float(m.m2)
        (4.0, 3.0, 14.0)
    """
    x = jnp.asarray(x, jnp.float32)
    if where is None:
        mean = jnp.mean(x, axis, keepdims=True)
        count = jnp.full(mean.shape, x.size // mean.size, jnp.float32)
        d = x - mean
    else:
        kept = jnp.broadcast_to(where, x.shape)
        count = jnp.sum(kept, axis, dtype=jnp.float32, keepdims=True)
        total = jnp.sum(x, axis, keepdims=True, where=kept)
        mean = total / jnp.maximum(count, 1.0)
        d = jnp.where(kept, x - mean, 0.0)
    d2 = d * d
    return Moments(
        count=jnp.squeeze(count, axis),
        mean=jnp.squeeze(mean, axis),
        m2=jnp.sum(d2, axis),
        m3=jnp.sum(d2 * d, axis),
        m4=jnp.sum(d2 * d2, axis),
    )


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of two disjoint samples (Pebay, SAND2008-6212).

    It uses only operators, so it runs on float32 arrays inside a program and, as it
    should across batches, on the float64 numpy arrays that `to_float64` makes. A sample
    may be empty: its count and its sums are 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> batches = jnp.array([[1.0, 2.0], [3.0, 6.0]])
        >>> a, b = (stats.to_float64(stats.moments(x)) for x in batches)
        >>> m = stats.merge(a, b)
        >>> float(m.count), float(m.mean), float(m.m2)
        (4.0, 3.0, 14.0)
    """
    n = a.count + b.count
    delta = b.mean - a.mean
    r = delta / (n + (n == 0))
    product = a.count * b.count
    return Moments(
        count=n,
        mean=a.mean + r * b.count,
        m2=a.m2 + b.m2 + product * delta * r,
        m3=a.m3
        + b.m3
        + product * (a.count - b.count) * delta * r**2
        + 3 * r * (a.count * b.m2 - b.count * a.m2),
        m4=a.m4
        + b.m4
        + product * (a.count**2 - product + b.count**2) * delta * r**3
        + 6 * r**2 * (a.count**2 * b.m2 + b.count**2 * a.m2)
        + 4 * r * (a.count * b.m3 - b.count * a.m3),
    )


def to_float64(record: AnyRecord) -> AnyRecord:
    """Fetch a record to the host: the same tree with float64 numpy leaves.

    A record is reduced in float32 on the device and merged in float64 on the host; this
    is the step between the two. It serves every record of `rfq.stats` and `rfq.quant`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> stats.to_float64(stats.moments(jnp.ones(3))).mean.dtype
        dtype('float64')
    """
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), record)


def to_float32(record: AnyRecord) -> AnyRecord:
    """Return the same tree with float32 numpy leaves, ready to be an argument."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), record)


def moments_of(x: Array | Moments) -> Moments:
    """Return a record as it is, and reduce an array to its record."""
    return x if isinstance(x, Moments) else moments(x)


def variance(x: Array | Moments) -> Array:
    """Return E[(x - mean)^2], the population (biased) estimate.

    Args:
        x: An array of any shape, or the `Moments` of one.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> float(stats.variance(jnp.array([1.0, 2.0, 3.0, 6.0])))
        3.5
    """
    m = moments_of(x)
    return m.m2 / m.count


def rms(x: Array | Moments) -> Array:
    """Return sqrt(E[x^2]), which includes the mean, as the signal of the SQNR does.

    Args:
        x: An array of any shape, or the `Moments` of one.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> float(stats.rms(jnp.array([3.0, -3.0])))
        3.0
    """
    m = moments_of(x)
    return (m.mean**2 + variance(m)) ** 0.5


def excess_kurtosis(x: Array | Moments) -> Array:
    """Return gamma = E[(x - mean)^4] / E[(x - mean)^2]^2 - 3 (definition 1).

    This is the population estimate: 0 for a Gaussian with sampling deviation
    sqrt(24 / n), and at most n - 5 + 1 / (n - 1), so report n beside it. It is NaN for
    a constant sample, whose kurtosis is undefined.

    Args:
        x: An array of any shape, whose values are pooled, or the `Moments` of one,
            which may have been merged over batches.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.array([1.0, -1.0, 1.0, -1.0])
        >>> float(stats.excess_kurtosis(x))
        -2.0
        >>> float(stats.excess_kurtosis(stats.moments(x)))
        -2.0
    """
    m = moments_of(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        # m4 / m2 is at most the largest squared deviation; m2**2 would overflow first.
        return (m.m4 / m.m2) / (m.m2 / m.count) - 3.0
