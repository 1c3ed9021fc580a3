"""Histograms whose bins are uniform in asinh: fine in the bulk, wide in the tails.

4,096 fixed bins of u = asinh((x - center) / scale) on [-18, 18] are .0088 of a scale
wide at the center and .9 % of the distance far from it, and reach 3e7 scales, so that
no activation falls outside. Counts are integers, so histograms of batches, devices and
hosts merge exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.stats import select
from rfq.types import Array

NUM_BINS = 4096
HALF_WIDTH = 18.0
BIN_WIDTH = 2.0 * HALF_WIDTH / NUM_BINS
_NUM_SAMPLED = 4096


class Binning(NamedTuple):
    """The places of the bins, in units of x: scalars, or one a layer."""

    center: Array
    scale: Array


def robust_binning(x: Array) -> Binning:
    """Place bins by the middle of the .1 and .9 quantiles and half their distance.

    The scale is half their distance over 1.2816, which is the standard deviation of a
    Gaussian; neither a few percent of outliers nor the zeros of a rectifier nor two
    modes move it far. Where four fifths of the values coincide it falls back on the
    standard deviation, and on 1 for a constant. It looks at 4,096 values of a larger
    array, the same in every call, and leaves NaN and inf out.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> binning = stats.robust_binning(jnp.arange(-50.0, 51.0))
        >>> round(float(binning.center), 3), round(float(binning.scale), 2)
        (0.0, 31.21)
    """
    x = jnp.asarray(x, jnp.float32).ravel()
    if x.size > _NUM_SAMPLED:
        x = x[np.random.default_rng(0).integers(x.size, size=_NUM_SAMPLED)]
    x = jnp.where(jnp.isfinite(x), x, jnp.nan)
    last = jnp.sum(jnp.isfinite(x)) - 1
    ranks = (jnp.array([0.1, 0.9]) * last).astype(jnp.int32)
    low, high = jnp.nan_to_num(jax.vmap(lambda r: select.order_statistic(x, r))(ranks))
    std = jnp.nan_to_num(jnp.nanstd(x))
    scale = jnp.where(high > low, (high - low) / (2.0 * 1.2816), std)
    return Binning((low + high) / 2.0, jnp.where(scale > 0.0, scale, 1.0))


class Histogram(NamedTuple):
    """Counts per bin, and what the entropy needs to undo the map.

    Counts and `count` are int32 on the device: a batch holds less than 2**31 values.
    """

    counts: Array  # [NUM_BINS]
    count: Array
    num_nonfinite: Array  # In `count`, and in a bin that means nothing.
    sum_log_slope: Array  # sum(ln dx/du), nats.
    binning: Binning


def histogram(x: Array, binning: Binning) -> Histogram:
    """Count the values of an array of any shape; the outermost bins take the rest.

    The binning is two scalars, fixed before the pass (`robust_binning` of a sample, or
    a mean and a standard deviation); histograms of other binnings do not merge.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> x = jnp.arange(-50.0, 51.0)
        >>> h = stats.histogram(x, stats.robust_binning(x))
        >>> int(h.count), int(h.counts.sum())
        (101, 101)
    """
    x = jnp.asarray(x, jnp.float32)
    binning = Binning(*(jnp.asarray(leaf, jnp.float32) for leaf in binning))
    u = jnp.arcsinh((x - binning.center) / binning.scale)
    index = jnp.floor((u + HALF_WIDTH) / BIN_WIDTH)
    index = jnp.clip(jnp.nan_to_num(index), 0, NUM_BINS - 1).astype(jnp.int32)
    # dx/du = scale cosh(u), and ln cosh u = |u| + ln(1 + e^(-2|u|)) - ln 2.
    size = jnp.abs(u)
    log_cosh = size + jnp.log1p(jnp.exp(-2.0 * size)) - jnp.log(2.0)
    return Histogram(
        counts=jnp.bincount(index.ravel(), length=NUM_BINS),
        count=jnp.int32(x.size),
        num_nonfinite=jnp.sum(~jnp.isfinite(x), dtype=jnp.int32),
        sum_log_slope=jnp.sum(log_cosh + jnp.log(binning.scale)),
        binning=binning,
    )


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of the union of two samples; on the host, numpy in and out.

    Raises:
        ValueError: the two do not have the same binning.
    """
    if not all(map(np.array_equal, a.binning, b.binning)):
        raise ValueError(
            f"histograms of different binnings do not merge: {a.binning}, {b.binning}"
        )
    return Histogram(
        counts=np.add(a.counts, b.counts),
        count=np.add(a.count, b.count),
        num_nonfinite=np.add(a.num_nonfinite, b.num_nonfinite),
        sum_log_slope=np.add(a.sum_log_slope, b.sum_log_slope),
        binning=a.binning,
    )


def edges() -> np.ndarray:
    """Return the NUM_BINS + 1 edges of (x - center) / scale, symmetric about 0."""
    return np.sinh(np.linspace(-HALF_WIDTH, HALF_WIDTH, NUM_BINS + 1))


def middles() -> np.ndarray:
    """Return (x - center) / scale in the middle, in u, of each of the NUM_BINS bins."""
    u = np.linspace(-HALF_WIDTH, HALF_WIDTH, 2 * NUM_BINS + 1)
    return np.sinh(u[1::2])
