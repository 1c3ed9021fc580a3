"""Confidence intervals by resampling, on the host."""

from collections.abc import Sequence

import numpy as np


def paired_interval(
    before: np.ndarray,
    after: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap a percentile interval of mean(after - before) over pairs (Efron 1979).

    The same items are on both sides, so the difficulty of an item cancels.

    Args:
        before: One number per item, float64 [N].
        after: The same items under another setting, [N].
        seed: Seed of the resampling.
        num_resamples: Draws of N pairs with replacement.
        level: Coverage in (0, 1).

    Returns:
        Lower and upper end; NaN when any number is not finite.

    Raises:
        AssertionError: the two differ in length, or are empty.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    assert before.ndim == 1 and before.shape == after.shape and before.size > 0
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return float("nan"), float("nan")
    difference = after - before
    rng = np.random.default_rng(seed)
    means = np.array(
        [
            difference[rng.integers(difference.size, size=difference.size)].mean()
            for _ in range(num_resamples)
        ]
    )
    return _middle(means, level)


def stratified_interval(
    strata: Sequence[np.ndarray],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap a percentile interval of the mean of means, each resampled by itself.

    It serves numbers of few distinct values, such as differences of right and wrong.
    How often each value is drawn is multinomial, so no item is drawn on its own.

    Args:
        strata: Numbers per item, float64 [N_i], one array a stratum.
        seed: Seed of the resampling.
        num_resamples: Draws of N_i items with replacement.
        level: Coverage in (0, 1).

    Returns:
        Lower and upper end.

    Raises:
        AssertionError: there is no stratum, or an empty one.
    """
    assert strata and all(np.size(items) for items in strata)
    rng = np.random.default_rng(seed)
    means = np.zeros(num_resamples)
    for items in strata:
        values, counts = np.unique(items, return_counts=True)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), num_resamples)
        means += drawn @ values / counts.sum() / len(strata)
    return _middle(means, level)


def _middle(means: np.ndarray, level: float) -> tuple[float, float]:
    """Return the ends of the middle share of some means."""
    tail = (1.0 - level) / 2.0
    lo, hi = np.quantile(means, (tail, 1.0 - tail))
    return float(lo), float(hi)
