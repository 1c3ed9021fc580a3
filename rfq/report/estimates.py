"""Numbers over seeds: estimates, their differences, and intervals of pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import scipy.stats

from rfq.stats import bootstrap

ENOUGH_SEEDS = 3  # From so many on the spread between seeds makes an interval.


class Estimate(NamedTuple):
    """A number over seeds and over draws of calibration tokens.

    Attributes:
        value: The mean over the finite numbers; None without one.
        lo, hi: The 95 % interval: the hull of the intervals of the lines, which holds
            both the sampling error and the spread of seeds.
        spread: The standard deviation over lines, None with one.
        num_seeds: How many seeds are behind `value`.
        not_finite: Whether a line gave NaN or infinity, which is not in `value`.
    """

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    spread: float | None = None
    num_seeds: int = 0
    not_finite: bool = False

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and it is without 0."""
        lo, hi = self.lo, self.hi
        return lo is not None and hi is not None and not lo <= 0.0 <= hi

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """From lo to hi; else one standard deviation to both sides; else none."""
        if self.value is None or self.spread is None or None not in (self.lo, self.hi):
            return self.lo, self.hi
        return self.value - self.spread, self.value + self.spread


Estimates = Mapping[tuple, Estimate]


def of_groups(
    frame: pl.DataFrame, by: Sequence[str], field: str, ends: Sequence[str] = ()
) -> Estimates:
    """Estimate a column, with the columns `ends` of its intervals, in each group."""
    known = pl.col(field).is_finite()
    values = pl.col(field).filter(known)
    lo, hi = (
        pl.col(end).filter(pl.col(end).is_finite()) for end in ends or 2 * [field]
    )
    bounded = (lo.len() == values.len()) & (hi.len() == values.len()) & bool(ends)
    grouped = frame.group_by(by, maintain_order=True).agg(
        value=values.mean(),
        lo=pl.when(bounded).then(lo.min()),
        hi=pl.when(bounded).then(hi.max()),
        spread=values.std(),
        num_seeds=pl.col("seed").filter(known).n_unique(),
        not_finite=(~pl.col(field).is_finite()).any(),
    )
    return {line[: len(by)]: Estimate(*line[len(by) :]) for line in grouped.rows()}


def of_all(frame: pl.DataFrame, field: str, ends: Sequence[str] = ()) -> Estimate:
    """Estimate a column over all lines of a frame."""
    found = of_groups(frame.with_columns(all=pl.lit(0)), ["all"], field, ends)
    return found.get((0,), Estimate())


def by_layer(found: Estimates) -> Mapping[tuple, list[Estimate]]:
    """Put the estimates of layers, the last part of their keys, into lists."""
    lists: dict[tuple, list[Estimate]] = {}
    for key, each in found.items():
        lists.setdefault(key[:-1], []).append(each)
    return lists


def difference(low: Estimate, high: Estimate) -> Estimate:
    """Return high less low; its interval is without 0 where theirs are apart.

    Two that are not finite do not differ. Without both there is no value.
    """
    if low.value is None or high.value is None:
        return Estimate()
    if math.isinf(low.value) and math.isinf(high.value):
        return Estimate(0.0, 0.0, 0.0)
    value = high.value - low.value
    if low.lo is None or low.hi is None or high.lo is None or high.hi is None:
        return Estimate(value)
    return Estimate(value, high.lo - low.hi, high.hi - low.lo)


def paired(
    low: Mapping[tuple, np.ndarray], high: Mapping[tuple, np.ndarray]
) -> Estimate:
    """Estimate high less low, paired over the sequences of the runs that both have.

    The interval is the hull of paired bootstraps over sequences and, from ENOUGH_SEEDS
    on, over runs.
    """
    pairs = [
        (low[key], high[key])
        for key in low
        if key in high
        and low[key].shape == high[key].shape
        and np.isfinite(high[key] - low[key]).all()
    ]
    if not pairs:
        return Estimate()
    sides = [np.stack(side) for side in zip(*pairs, strict=True)]
    value = float(np.mean([np.mean(after - before) for before, after in pairs]))
    axes = [0, 1] if len(pairs) >= ENOUGH_SEEDS else [0]
    hull = [
        bootstrap.paired_interval(*(side.mean(at) for side in sides)) for at in axes
    ]
    return Estimate(value, min(lo for lo, _ in hull), max(hi for _, hi in hull))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rho; None where one side is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    found: Any = scipy.stats.spearmanr(x, y)
    return float(found.statistic)


def rank_interval(rho: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's rho, by Fisher's z.

    Its variance is 1.06 / (n - 3): Fieller, Hartley and Pearson (1957).
    """
    z = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, rho)))
    half = 1.96 * math.sqrt(1.06 / (count - 3))
    return math.tanh(z - half), math.tanh(z + half)
