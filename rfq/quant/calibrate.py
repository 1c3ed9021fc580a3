"""Calibration: what a site's values looked like, and the range to quantize it over."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.errors import InputError
from rfq.types import Array


class Range(NamedTuple):
    """Extremes of the finite values of a sample; lo > hi when there were none.

    The leaves share one shape: scalars from `observe`, `[L]` out of a scan over layers.
    """

    lo: Array
    hi: Array
    num_nonfinite: Array
    count: Array


def observe(x: Array) -> Range:
    """Extremes of an array of any shape, with NaN and inf counted apart."""
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    return Range(
        lo=jnp.min(jnp.where(finite, x, jnp.inf)),
        hi=jnp.max(jnp.where(finite, x, -jnp.inf)),
        num_nonfinite=jnp.sum(~finite).astype(jnp.float32),
        count=jnp.float32(x.size),
    )


def merge(a: Range, b: Range) -> Range:
    """Extremes of the union of two samples; on the host, numpy in and out."""
    return Range(
        lo=np.minimum(a.lo, b.lo),
        hi=np.maximum(a.hi, b.hi),
        num_nonfinite=np.add(a.num_nonfinite, b.num_nonfinite),
        count=np.add(a.count, b.count),
    )


def finalize(
    ranges: Mapping[str, Range], sites: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Checks the merged records and returns (range_lo, range_hi) of each site.

    Args:
        ranges: site -> merged record, leaves scalar or `[L]`.
        sites: the sites that will be quantized.

    Returns:
        site -> two float32 arrays, shaped as the record's leaves.

    Raises:
        InputError: calibration never reached a site, or it met NaN or inf there.
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


def _raise_where(bad: np.ndarray, site: str, problem: str) -> None:
    if not bad.any():
        return
    layers = (np.flatnonzero(bad) + 1).tolist()
    where = f"site {site!r}" if bad.ndim == 0 else f"site {site!r} in layers {layers}"
    raise InputError(f"{where} {problem}")
