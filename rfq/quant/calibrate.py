"""Calibration: what a site's values looked like, and the range to quantize them over.

Two passes go over the calibration tokens on the device: extremes, moments and where a
histogram's bins should lie; then the histogram. A range is then chosen on the host, in
float64, per site, layer and calibrator.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq import taps
from rfq.errors import InputError, lookup
from rfq.quant import grid as grid_lib
from rfq.quant.grid import Scheme
from rfq.stats import bins, central, extremes
from rfq.types import Array, Batch, Params, Record

# The magnitude below which this part of a site's values lies is its bulk.
BULK = 0.999

# range_lo and range_hi of a site: numbers, or arrays over its layers.
Bounds = tuple[np.ndarray | float, np.ndarray | float]


def finalize(
    ranges: Mapping[str, extremes.Range], sites: Iterable[str]
) -> dict[str, Bounds]:
    """Check the merged records and return (range_lo, range_hi) of each site.

    Args:
        ranges: site -> merged record, leaves scalar or `[L]`.
        sites: the sites that will be quantized.

    Returns:
        site -> two float32 arrays, shaped as the record's leaves.

    Raises:
        InputError: calibration never reached a site, or it met NaN or inf there.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant, stats
        >>> seen = {"x": stats.value_range(jnp.array([1.0, -2.0]))}
        >>> ranges = quant.finalize(seen, ["x"])
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


class LayerSample(NamedTuple):
    """The record that calibration made of one site in one layer.

    Attributes:
        batches: the ranges of the batches in the order they came, leaves
            `[num_batches]`.
        rms: sqrt(E[x**2]) over all of them. For a site behind a normalization it is the
            RMS of the gain, known without data.
        counts: histogram, `[num_bins]`.
        edges: of the bins in units of x, `[num_bins + 1]`.
    """

    batches: extremes.Range
    rms: float
    counts: np.ndarray
    edges: np.ndarray


# (sample, num_bits, scheme) -> (range_lo, range_hi)
Calibrator = Callable[[LayerSample, int, Scheme], Bounds]


def min_max(sample: LayerSample, num_bits: int, scheme: Scheme) -> Bounds:
    """Take the extremes over all batches: nothing is clipped."""
    del num_bits, scheme
    return np.min(sample.batches.lo), np.max(sample.batches.hi)


def absmax(sample: LayerSample, num_bits: int, scheme: Scheme) -> Bounds:
    """Take the largest magnitude, to both sides."""
    lo, hi = min_max(sample, num_bits, scheme)
    largest = np.maximum(-lo, hi)
    return -largest, largest


def ema(
    sample: LayerSample, num_bits: int, scheme: Scheme, *, momentum: float
) -> Bounds:
    """Average the batches' extremes with decaying weight (Bondarenko et al., 2023).

    It starts from the first batch. A large value that few batches hold is averaged
    away, and so it is clipped.
    """
    del num_bits, scheme
    lo, hi, *_ = (np.asarray(leaf, np.float64) for leaf in sample.batches)
    averages = []
    for series in (lo, hi):
        average = series[0]
        for value in series[1:]:
            average = momentum * average + (1.0 - momentum) * value
        averages.append(average)
    return averages[0], averages[1]


def percentile(
    sample: LayerSample, num_bits: int, scheme: Scheme, *, fraction: float
) -> Bounds:
    """Keep this fraction of the values, and cut half of the rest at each end.

    The ends are interpolated within the histogram's bins, and inside the extremes.
    """
    lo, hi = min_max(sample, num_bits, scheme)
    below = np.concatenate([[0.0], np.cumsum(sample.counts)])
    tail = 0.5 * (1.0 - fraction)
    ends = np.interp([tail, 1.0 - tail], below / below[-1], sample.edges)
    return np.maximum(ends[0], lo), np.minimum(ends[1], hi)


def mse(sample: LayerSample, num_bits: int, scheme: Scheme) -> Bounds:
    """Shrink the min-max range to the least squared error on the stored histogram.

    One factor from 1e-3 to 1 scales both ends: 100 are tried, then 100 around the best.
    """
    lo, hi = min_max(sample, num_bits, scheme)
    occupied = np.flatnonzero(sample.counts)
    # The outermost bins reach beyond the extremes.
    left = np.clip(sample.edges[occupied], lo, hi)
    right = np.clip(sample.edges[occupied + 1], lo, hi)
    counts = sample.counts[occupied]

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


def gaussian(sample: LayerSample, num_bits: int, scheme: Scheme) -> Bounds:
    """Take the range of least squared error for a Gaussian of the RMS and mean 0.

    It needs one number and no extremes: with the RMS of a gain, a normalized site is
    quantized without any data.
    """
    clip = gaussian_clip(num_bits, scheme) * sample.rms
    return -clip, clip


@functools.cache
def gaussian_clip(num_bits: int, scheme: Scheme) -> float:
    """Find the half-range c of least squared error for N(0, 1), to four digits.

    Examples:
        >>> from rfq import quant
        >>> f"{quant.gaussian_clip(4, quant.SCHEMES['symmetric_half']):.2f}"
        '2.54'
    """
    edges = np.linspace(-8.0, 8.0, 4097)
    below = np.array([0.5 * math.erfc(-edge / math.sqrt(2.0)) for edge in edges])
    ends = extremes.Range(*(np.array([value]) for value in (-8.0, 8.0, 0.0, 1.0)))
    return float(
        mse(LayerSample(ends, 1.0, np.diff(below), edges), num_bits, scheme)[1]
    )


def expected_error(
    left: np.ndarray, right: np.ndarray, counts: np.ndarray, grid: Array
) -> np.ndarray:
    """Sum the squared errors of values spread evenly within bins, exact, float64.

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
"""How a static range is chosen, by name.

Each takes a `LayerSample`, the number of bits and a scheme to (range_lo, range_hi).
"""


# --- A model's sites --------------------------------------------------------------

# What a compiled first pass gives: {site: {"range", "moments", "binning"}}.
FirstPass = Mapping[str, Mapping[str, Record]]


class SiteSample(NamedTuple):
    """The sample that calibration took of a site; leaves [L], or scalars if it is one.

    Attributes:
        batches: the ranges of the batches in order, leaves [num_batches, L].
        rms: sqrt(E[x**2]).
        histogram: of all values.
    """

    batches: extremes.Range
    rms: np.ndarray
    histogram: bins.Histogram

    def layers(self, rms: np.ndarray | None = None) -> list[LayerSample]:
        """List the sample of each layer, with their RMS where it is known otherwise."""
        rms = self.rms if rms is None else rms
        return [self._layer(rms, at) for at in np.ndindex(np.shape(self.rms))]

    def _layer(self, rms: np.ndarray, at: tuple[int, ...]) -> LayerSample:
        center, scale = (np.asarray(leaf)[at] for leaf in self.histogram.binning)
        return LayerSample(
            batches=extremes.Range(*(leaf[:, *at] for leaf in self.batches)),
            rms=float(np.asarray(rms)[at]),
            counts=np.asarray(self.histogram.counts)[at],
            edges=center + scale * bins.edges(),
        )


def observe(
    first: Callable[[Batch], FirstPass],
    second: Callable[[Batch, dict[str, bins.Binning]], FirstPass],
    batches: Sequence[Batch],
    sites: Iterable[str],
) -> dict[str, SiteSample]:
    """Run both passes over the calibration batches.

    Args:
        first: batch -> {site: {"range", "moments", "binning"}}.
        second: (batch, binnings) -> {site: {"histogram": Sample}}.
        batches: calibration tokens.
        sites: the sites that will be quantized.

    Raises:
        InputError: a site was not reached, or NaN or inf came past it.
    """
    seen = taps.by_site(first(batch) for batch in batches)
    merged = {site: taps.merged(records) for site, records in seen.items()}
    finalize({site: record["range"] for site, record in merged.items()}, sites)
    binnings = {
        site: central.to_float32(record["binning"]) for site, record in merged.items()
    }
    counted = taps.by_site(second(batch, binnings) for batch in batches)
    return {
        site: SiteSample(
            _stacked([record["range"] for record in seen[site]]),
            np.asarray(central.rms(record["moments"])),
            taps.merged(counted[site])["histogram"].histogram,
        )
        for site, record in merged.items()
    }


def ranges(
    samples: Mapping[str, SiteSample],
    calibrator: str,
    num_bits: int,
    scheme: Scheme,
    known_rms: Mapping[str, np.ndarray],
) -> dict[str, Bounds]:
    """Choose the range of every observed site, as a row of `CALIBRATORS` does.

    Args:
        samples: what `observe` gave.
        calibrator: a row of `CALIBRATORS`.
        num_bits: for which width; only some calibrators look at it.
        scheme: range -> grid, likewise.
        known_rms: sites whose RMS is known without data, from the gain of their norm.

    Returns:
        {site: (range_lo, range_hi)}, float32 [L] or scalars.
    """
    choose = lookup(CALIBRATORS, calibrator, "quantize.calibrators")

    def of_site(site: str, seen: SiteSample) -> Bounds:
        ends = [
            choose(layer, num_bits, scheme)
            for layer in seen.layers(known_rms.get(site))
        ]
        lo, hi = np.asarray(ends, np.float32).T
        return lo.reshape(np.shape(seen.rms)), hi.reshape(np.shape(seen.rms))

    return {site: of_site(site, seen) for site, seen in samples.items()}


def grids(
    ranges: Mapping[str, Bounds], num_bits: int, scheme: str = "asymmetric"
) -> dict[str, grid_lib.Grid]:
    """Make the static grid of every site from its range; host arrays, to be data."""
    make = lookup(grid_lib.SCHEMES, scheme, "quantize.schemes")
    made = {
        site: make(jnp.asarray(lo), jnp.asarray(hi), num_bits)
        for site, (lo, hi) in ranges.items()
    }
    return jax.device_get(made)


def known_rms(
    params: Params,
    gains: Mapping[str, str],
    fetched: Callable[[dict[str, Any]], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Compute {site: RMS} behind each norm from its gain, where the channels are alike.

    Args:
        params: of the model.
        gains: the gain of each site that stands behind a norm.
        fetched: brings arrays to the host, wherever their parts are.
    """
    tables = {**params, **params["blocks"]}
    on_host = fetched({site: tables[gain] for site, gain in gains.items()})
    return {
        site: np.sqrt(np.mean(np.square(gain), axis=-1))
        for site, gain in on_host.items()
    }


def bulk_limits(samples: Mapping[str, SiteSample]) -> dict[str, np.ndarray]:
    """Find the magnitude below which BULK of each site's values lie, [L] or scalars."""
    return {
        site: np.asarray(list(map(_bulk_limit, seen.layers())), np.float32).reshape(
            np.shape(seen.rms)
        )
        for site, seen in samples.items()
    }


def _bulk_limit(sample: LayerSample) -> float:
    far = np.abs(sample.edges)
    # The end of a bin that is farther from zero: all of its values are inside.
    reach = np.maximum(far[1:], far[:-1])
    order = np.argsort(reach)
    below = np.cumsum(sample.counts[order])
    limit = reach[order][np.searchsorted(below, BULK * below[-1])]
    largest = max(-np.min(sample.batches.lo), np.max(sample.batches.hi))
    return min(limit, largest)


def _stacked(batches: Sequence[extremes.Range]) -> extremes.Range:
    columns: list[Any] = [np.stack(leaves) for leaves in zip(*batches, strict=True)]
    return extremes.Range(*columns)


def _raise_where(bad: np.ndarray, site: str, problem: str) -> None:
    if not bad.any():
        return
    layers = (np.flatnonzero(bad) + 1).tolist()
    where = f"site {site!r}" if bad.ndim == 0 else f"site {site!r} in layers {layers}"
    raise InputError(f"{where} {problem}")
