"""Histograms whose bins are uniform in asinh: fine in the bulk, wide in the tails.

4,096 fixed bins of u = asinh(x / scale) on [-18, 18] are .0088 of a scale wide near
zero and .9 % of the distance far from it, and reach 3e7 scales, so that no activation
falls outside. Counts are integers, so histograms of batches, devices and hosts merge
exactly.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.types import Array

NUM_BINS = 4096
HALF_WIDTH = 18.0
BIN_WIDTH = 2.0 * HALF_WIDTH / NUM_BINS


class Histogram(NamedTuple):
    """Counts per bin, and what the entropy needs to undo the map.

    Counts and `count` are int32 on the device: a batch holds less than 2**31 values.
    """

    counts: Array  # [NUM_BINS]
    count: Array
    num_nonfinite: Array  # In `count`, and in a bin that means nothing.
    sum_log_slope: Array  # sum(ln dx/du), nats.
    scale: Array


def robust_scale(x: np.ndarray | Array) -> np.float32:
    """1.4826 times the median distance from the median; on the host.

    The standard deviation of a Gaussian, which does not move with outliers. Where more
    than half of the values coincide it falls back on the standard deviation, and on 1
    for a constant. A sample of some thousand values will do. NaN and inf are left out.
    """
    x = np.asarray(x).astype(np.float64).ravel()
    x = x[np.isfinite(x)]
    if x.size == 0:
        return np.float32(1.0)
    deviation = 1.4826 * np.median(np.abs(x - np.median(x)))
    return np.float32(deviation or np.std(x) or 1.0)


def histogram(x: Array, scale: Array) -> Histogram:
    """Counts the values of an array of any shape; the outermost bins take the rest.

    The scale is a scalar, fixed before the pass (`robust_scale` of a calibration
    sample, or an RMS); histograms of another scale do not merge.
    """
    x = x.astype(jnp.float32)
    scale = jnp.asarray(scale, jnp.float32)
    u = jnp.arcsinh(x / scale)
    index = jnp.floor((u + HALF_WIDTH) / BIN_WIDTH)
    index = jnp.clip(jnp.nan_to_num(index), 0, NUM_BINS - 1).astype(jnp.int32)
    # dx/du = scale cosh(u), and ln cosh u = |u| + ln(1 + e^(-2|u|)) - ln 2.
    size = jnp.abs(u)
    log_cosh = size + jnp.log1p(jnp.exp(-2.0 * size)) - jnp.log(2.0)
    return Histogram(
        counts=jnp.bincount(index.ravel(), length=NUM_BINS),
        count=jnp.int32(x.size),
        num_nonfinite=jnp.sum(~jnp.isfinite(x), dtype=jnp.int32),
        sum_log_slope=jnp.sum(log_cosh + jnp.log(scale)),
        scale=scale,
    )


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Histogram of the union of two samples; on the host, numpy in and out.

    Raises:
        ValueError: the two do not have the same scale.
    """
    if not np.array_equal(a.scale, b.scale):
        raise ValueError(f"histograms of other scales: {a.scale} and {b.scale}")
    return Histogram(
        counts=np.add(a.counts, b.counts),
        count=np.add(a.count, b.count),
        num_nonfinite=np.add(a.num_nonfinite, b.num_nonfinite),
        sum_log_slope=np.add(a.sum_log_slope, b.sum_log_slope),
        scale=a.scale,
    )


def edges() -> np.ndarray:
    """The NUM_BINS + 1 edges in units of the scale, float64, symmetric about 0."""
    return np.sinh(np.linspace(-HALF_WIDTH, HALF_WIDTH, NUM_BINS + 1))
