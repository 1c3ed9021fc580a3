"""The range of a sample: its extremes, with what is not finite counted apart."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.types import Array


class Range(NamedTuple):
    """Extremes of the finite values of a sample; lo > hi when there were none.

    The leaves share one shape: scalars from `value_range`, `[L]` out of a scan over
    layers.
    """

    lo: Array
    hi: Array
    num_nonfinite: Array
    count: Array


def value_range(x: Array, *, axis: tuple[int, ...] | None = None) -> Range:
    """Find the extremes of an array, and count its NaN and inf apart.

    Args:
        x: Any shape.
        axis: The axes that share a range, kept with size 1 so that a grid made from it
            broadcasts against x: all but the last for static ranges per channel. None
            pools the whole array into scalars.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> seen = stats.value_range(jnp.array([1.0, -2.0, jnp.nan]))
        >>> float(seen.lo), float(seen.hi), float(seen.num_nonfinite)
        (-2.0, 1.0, 1.0)
    """
    x = jnp.asarray(x, jnp.float32)
    finite = jnp.isfinite(x)
    keepdims = axis is not None
    lo = jnp.min(jnp.where(finite, x, jnp.inf), axis=axis, keepdims=keepdims)
    hi = jnp.max(jnp.where(finite, x, -jnp.inf), axis=axis, keepdims=keepdims)
    bad = jnp.sum(~finite, axis=axis, keepdims=keepdims, dtype=jnp.int32)
    count = jnp.full(lo.shape, x.size // lo.size, jnp.float32)
    return Range(lo, hi, bad.astype(jnp.float32), count)


def merge(a: Range, b: Range) -> Range:
    """Return the extremes of the union of two samples, on the host."""
    return Range(
        lo=np.minimum(a.lo, b.lo),
        hi=np.maximum(a.hi, b.hi),
        num_nonfinite=np.add(a.num_nonfinite, b.num_nonfinite),
        count=np.add(a.count, b.count),
    )
