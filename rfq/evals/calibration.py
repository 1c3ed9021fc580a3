"""What calibration tokens look like at every site, and the ranges that follow.

Two passes over the tokens: extremes, moments and where a histogram's bins should lie;
then the histogram. A range is chosen on the host, per site, layer and calibrator.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rfq import taps
from rfq.errors import lookup
from rfq.evals import heldout
from rfq.model.config import NORMALIZED_SITES
from rfq.quant import calibrate
from rfq.quant.spec import Scheme
from rfq.stats import histogram, moments
from rfq.types import Batch, Params, Record

# The magnitude below which this part of a site's values lies is its bulk.
BULK = 0.999

# What a compiled first pass gives: {site: (Range, {"moments", "binning"})}.
FirstPass = Mapping[str, tuple[calibrate.Range, Record]]


class Observed(NamedTuple):
    """What calibration saw of one site; leaves [L], or scalars for what exists once.

    Attributes:
        batches: the ranges of the batches in order, leaves [num_batches, L].
        rms: sqrt(E[x**2]).
        histogram: of all values.
    """

    batches: calibrate.Range
    rms: np.ndarray
    histogram: histogram.Histogram


def observe(
    first: Callable[[Batch], FirstPass],
    second: Callable[
        [Batch, dict[str, histogram.Binning]], Mapping[str, Mapping[str, Record]]
    ],
    batches: Sequence[Batch],
    sites: Iterable[str],
) -> dict[str, Observed]:
    """Runs both passes over the calibration batches.

    Args:
        first: batch -> extremes, moments and binning of each site.
        second: (batch, binnings) -> {site: {"histogram": Sample}}.
        batches: calibration tokens.
        sites: the sites that will be quantized.

    Raises:
        InputError: a site was not reached, or NaN or inf came past it.
    """
    found = heldout.by_site(first(batch) for batch in batches)
    extremes = {site: [range_ for range_, _ in seen] for site, seen in found.items()}
    calibrate.finalize(
        {
            site: functools.reduce(calibrate.merge, seen)
            for site, seen in extremes.items()
        },
        sites,
    )
    statistics = {
        site: taps.merged([record for _, record in seen])
        for site, seen in found.items()
    }
    binnings = {
        site: moments.to_float32(record["binning"])
        for site, record in statistics.items()
    }
    counted = heldout.merge(second(batch, binnings) for batch in batches)
    return {
        site: Observed(
            _stacked(extremes[site]),
            np.asarray(moments.rms(statistics[site]["moments"])),
            counted[site]["histogram"].histogram,
        )
        for site in found
    }


def ranges(
    observed: Mapping[str, Observed],
    calibrator: str,
    num_bits: int,
    scheme: Scheme,
    known_rms: Mapping[str, np.ndarray],
) -> dict[str, calibrate.Bounds]:
    """The range of every observed site, as a row of `CALIBRATORS` chooses it.

    Args:
        observed: what `observe` gave.
        calibrator: a row of `CALIBRATORS`.
        num_bits: for which width; only some calibrators look at it.
        scheme: range -> grid, likewise.
        known_rms: sites whose RMS is known without data, from the gain of their norm.

    Returns:
        {site: (range_lo, range_hi)}, float32 [L] or scalars.
    """
    choose = lookup(calibrate.CALIBRATORS, calibrator, "quantize.calibrators")

    def of_site(site: str, seen: Observed) -> calibrate.Bounds:
        rms = known_rms.get(site, seen.rms)
        ends = [
            choose(_evidence(seen, rms, layer), num_bits, scheme)
            for layer in np.ndindex(np.shape(seen.rms))
        ]
        lo, hi = np.asarray(ends, np.float32).T
        return lo.reshape(np.shape(seen.rms)), hi.reshape(np.shape(seen.rms))

    return {site: of_site(site, seen) for site, seen in observed.items()}


def known_rms(
    params: Params, fetched: Callable[[dict[str, Any]], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """{site: RMS} behind each norm: its gain's, where the channels are alike.

    Args:
        params: of the model.
        fetched: brings arrays to the host, wherever their parts are.
    """
    tables = {**params, **params["blocks"]}
    gains = fetched({site: tables[gain] for site, gain in NORMALIZED_SITES.items()})
    return {
        site: np.sqrt(np.mean(np.square(gain), axis=-1)) for site, gain in gains.items()
    }


def bulk_limits(observed: Mapping[str, Observed]) -> dict[str, np.ndarray]:
    """{site: magnitude below which BULK of the values lie}, float32 [L] or scalars."""

    def of_layer(seen: Observed, layer: tuple[int, ...]) -> float:
        evidence = _evidence(seen, seen.rms, layer)
        far = np.abs(evidence.edges)
        # Of a bin, the end that is farther from zero: all of its values are inside.
        reach = np.maximum(far[1:], far[:-1])
        order = np.argsort(reach)
        below = np.cumsum(evidence.counts[order])
        limit = reach[order][np.searchsorted(below, BULK * below[-1])]
        largest = max(-np.min(evidence.batches.lo), np.max(evidence.batches.hi))
        return min(limit, largest)

    return {
        site: np.asarray(
            [of_layer(seen, layer) for layer in np.ndindex(np.shape(seen.rms))],
            np.float32,
        ).reshape(np.shape(seen.rms))
        for site, seen in observed.items()
    }


def _stacked(batches: Sequence[calibrate.Range]) -> calibrate.Range:
    columns: list[Any] = [np.stack(leaves) for leaves in zip(*batches, strict=True)]
    return calibrate.Range(*columns)


def _evidence(
    seen: Observed, rms: np.ndarray, layer: tuple[int, ...]
) -> calibrate.Evidence:
    binning = seen.histogram.binning
    center, scale = (np.asarray(leaf)[layer] for leaf in binning)
    return calibrate.Evidence(
        batches=calibrate.Range(*(leaf[:, *layer] for leaf in seen.batches)),
        rms=float(np.asarray(rms)[layer]),
        counts=np.asarray(seen.histogram.counts)[layer],
        edges=center + scale * histogram.edges(),
    )
