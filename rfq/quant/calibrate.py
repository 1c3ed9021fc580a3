"""Calibration: what a site's values looked like, and the range to quantize them over.

Observation happens on the device, in one or two passes over calibration tokens; the
choice of a range happens on the host, in float64, once per site and layer.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.errors import InputError
from rfq.quant import spec
from rfq.types import Array

# range_lo and range_hi of a site: numbers, or arrays over its layers.
Bounds = tuple[np.ndarray | float, np.ndarray | float]


class Range(NamedTuple):
    """Extremes of the finite values of a sample; lo > hi when there were none.

    The leaves share one shape: scalars from `observe`, `[L]` out of a scan over layers.
    """

    lo: Array
    hi: Array
    num_nonfinite: Array
    count: Array


def observe(x: Array, *, axis: tuple[int, ...] | None = None) -> Range:
    """Extremes of an array, with NaN and inf counted apart.

    Args:
        x: any shape.
        axis: the axes that share a range, kept with size 1 so that the grid made from
            it broadcasts against x: all but the last for static ranges per channel.
            None pools the whole array into scalars.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> seen = quant.observe(jnp.array([1.0, -2.0, jnp.nan]))
        >>> float(seen.lo), float(seen.hi), float(seen.num_nonfinite)
        (-2.0, 1.0, 1.0)
    """
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    keepdims = axis is not None
    lo = jnp.min(jnp.where(finite, x, jnp.inf), axis=axis, keepdims=keepdims)
    hi = jnp.max(jnp.where(finite, x, -jnp.inf), axis=axis, keepdims=keepdims)
    bad = jnp.sum(~finite, axis=axis, keepdims=keepdims, dtype=jnp.int32)
    count = jnp.full(lo.shape, x.size // lo.size, jnp.float32)
    return Range(lo, hi, bad.astype(jnp.float32), count)


def merge(a: Range, b: Range) -> Range:
    """Extremes of the union of two samples; on the host, numpy in and out."""
    return Range(
        lo=np.minimum(a.lo, b.lo),
        hi=np.maximum(a.hi, b.hi),
        num_nonfinite=np.add(a.num_nonfinite, b.num_nonfinite),
        count=np.add(a.count, b.count),
    )


def finalize(ranges: Mapping[str, Range], sites: Iterable[str]) -> dict[str, Bounds]:
    """Checks the merged records and returns (range_lo, range_hi) of each site.

    Args:
        ranges: site -> merged record, leaves scalar or `[L]`.
        sites: the sites that will be quantized.

    Returns:
        site -> two float32 arrays, shaped as the record's leaves.

    Raises:
        InputError: calibration never reached a site, or it met NaN or inf there.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> ranges = quant.finalize({"x": quant.observe(jnp.array([1.0, -2.0]))}, ["x"])
        >>> tuple(map(float, ranges["x"]))
        (-2.0, 1.0)
    """
    checked = {}
    for site in sites:
        record = ranges.get(site)
        if record is None:
            raise InputError(
                f"site {site!r} is to be quantized but calibration never reached it; "
                f"observed sites: {sorted(ranges)}"
            )
        lo, hi, num_nonfinite, count = (np.asarray(leaf) for leaf in record)
        _raise_where(count == 0, site, "was never reached by calibration; give it data")
        _raise_where(
            num_nonfinite > 0,
            site,
            "produced NaN or inf during calibration; evaluate the checkpoint in full "
            "precision first, it may have diverged",
        )
        checked[site] = (lo.astype(np.float32), hi.astype(np.float32))
    return checked


class Evidence(NamedTuple):
    """What calibration recorded about one site in one layer.

    Attributes:
        batches: the ranges of the batches in the order they came, leaves
            `[num_batches]`.
        rms: sqrt(E[x**2]) over all of them. For a site behind a normalization it is the
            RMS of the gain, known without data.
        counts: histogram, `[num_bins]`.
        edges: of the bins in units of x, `[num_bins + 1]`.
    """

    batches: Range
    rms: float
    counts: np.ndarray
    edges: np.ndarray


# (evidence, num_bits, scheme) -> (range_lo, range_hi)
Calibrator = Callable[[Evidence, int, spec.Scheme], Bounds]


def min_max(evidence: Evidence, num_bits: int, scheme: spec.Scheme) -> Bounds:
    """The extremes over all batches: nothing is clipped."""
    del num_bits, scheme
    return np.min(evidence.batches.lo), np.max(evidence.batches.hi)


def absmax(evidence: Evidence, num_bits: int, scheme: spec.Scheme) -> Bounds:
    """The largest magnitude, to both sides."""
    lo, hi = min_max(evidence, num_bits, scheme)
    largest = np.maximum(-lo, hi)
    return -largest, largest


def ema(
    evidence: Evidence, num_bits: int, scheme: spec.Scheme, *, momentum: float
) -> Bounds:
    """Exponential moving average of the batches' extremes (Bondarenko et al., 2023).

    Starts from the first batch. A large value that few batches hold is averaged away,
    hence clipped.
    """
    del num_bits, scheme
    lo, hi, *_ = (np.asarray(leaf, np.float64) for leaf in evidence.batches)
    averages = []
    for series in (lo, hi):
        average = series[0]
        for value in series[1:]:
            average = momentum * average + (1.0 - momentum) * value
        averages.append(average)
    return averages[0], averages[1]


def percentile(
    evidence: Evidence, num_bits: int, scheme: spec.Scheme, *, fraction: float
) -> Bounds:
    """The range that keeps this fraction of the values, half of the rest at each end.

    Interpolated within the histogram's bins, and inside the extremes.
    """
    lo, hi = min_max(evidence, num_bits, scheme)
    below = np.concatenate([[0.0], np.cumsum(evidence.counts)])
    tail = 0.5 * (1.0 - fraction)
    ends = np.interp([tail, 1.0 - tail], below / below[-1], evidence.edges)
    return np.maximum(ends[0], lo), np.minimum(ends[1], hi)


def mse(evidence: Evidence, num_bits: int, scheme: spec.Scheme) -> Bounds:
    """The shrunk min-max range of least squared error on the stored histogram.

    One factor from 1e-3 to 1 for both ends: 100 of them, then 100 around the best.
    """
    lo, hi = min_max(evidence, num_bits, scheme)
    occupied = np.flatnonzero(evidence.counts)
    # The outermost bins reach beyond the extremes.
    left = np.clip(evidence.edges[occupied], lo, hi)
    right = np.clip(evidence.edges[occupied + 1], lo, hi)
    counts = evidence.counts[occupied]

    def best_of(factors: np.ndarray) -> float:
        errors = expected_error(
            left, right, counts, scheme(factors * lo, factors * hi, num_bits)
        )
        return factors[np.argmin(errors)]

    coarse = np.geomspace(1e-3, 1.0, 100)
    ratio = coarse[1] / coarse[0]
    factor = best_of(coarse)
    factor = best_of(np.minimum(np.geomspace(factor / ratio, factor * ratio, 100), 1.0))
    return factor * lo, factor * hi


def gaussian(evidence: Evidence, num_bits: int, scheme: spec.Scheme) -> Bounds:
    """The range of least squared error for a Gaussian of the site's RMS and mean 0.

    Needs one number and no extremes: with the RMS of a gain, a normalized site is
    quantized without any data.
    """
    clip = gaussian_clip(num_bits, scheme) * evidence.rms
    return -clip, clip


@functools.cache
def gaussian_clip(num_bits: int, scheme: spec.Scheme) -> float:
    """Half-range c of least squared error for N(0, 1), to four digits.

    Examples:
        >>> from rfq import quant
        >>> f"{quant.gaussian_clip(4, quant.SCHEMES['symmetric_half']):.2f}"
        '2.54'
    """
    edges = np.linspace(-8.0, 8.0, 4097)
    below = np.array([0.5 * math.erfc(-edge / math.sqrt(2.0)) for edge in edges])
    ends = Range(*(np.array([value]) for value in (-8.0, 8.0, 0.0, 1.0)))
    return float(mse(Evidence(ends, 1.0, np.diff(below), edges), num_bits, scheme)[1])


def expected_error(
    left: np.ndarray, right: np.ndarray, counts: np.ndarray, grid: Array
) -> np.ndarray:
    """Sum of squared errors of values spread evenly within bins, exact, float64.

    With t = x / s the error is (t - k)^2 with k the nearest code, whose integral from 0
    is k / 12 + (t - k)^3 / 3; it holds in the clipped tails too, where k is the last
    code.

    Args:
        left: left edges of the bins, `[num_bins]`, below their right edges.
        right: right edges.
        counts: values in each bin.
        grid: a `Grid` with leaves `[num_grids]`.

    Returns:
        One sum per grid.
    """
    step, zero_point, levels = (
        np.asarray(leaf, np.float64).reshape(-1, 1) for leaf in grid
    )

    def integral(x: np.ndarray) -> np.ndarray:
        t = x / step
        k = np.clip(np.rint(t), -zero_point, levels - zero_point)
        return k / 12.0 + (t - k) ** 3 / 3.0

    width = right - left
    per_bin = (integral(right) - integral(left)) * step**3 / width
    return (per_bin * counts).sum(-1)


CALIBRATORS: Mapping[str, Calibrator] = {
    "min_max": min_max,
    "absmax": absmax,
    "ema": functools.partial(ema, momentum=0.9),
    "percentile_99.9": functools.partial(percentile, fraction=0.999),
    "percentile_99.99": functools.partial(percentile, fraction=0.9999),
    "percentile_99.999": functools.partial(percentile, fraction=0.99999),
    "mse": mse,
    "gaussian": gaussian,
}


def _raise_where(bad: np.ndarray, site: str, problem: str) -> None:
    if not bad.any():
        return
    layers = (np.flatnonzero(bad) + 1).tolist()
    where = f"site {site!r}" if bad.ndim == 0 else f"site {site!r} in layers {layers}"
    raise InputError(f"{where} {problem}")
