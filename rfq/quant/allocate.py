"""Bits dealt out over sites by the end-to-end law, at an equal mean.

By the law R = sum_s G_s e_s(b_s) (`rfq.quant.propagation`), where e_s is the NMSE of a
site at b_s bits and G_s the gain of its error at the head. Each term has a site of its
own, so that the range which minimises R is that which minimises e_s: ranges need no
law. Bits do, because they are dealt out from one sum.
"""

import numpy as np


def bits(
    gains: np.ndarray, errors: np.ndarray, widths: np.ndarray, mean_bits: float
) -> np.ndarray:
    """Minimise sum_s G_s e_s(b_s) over whole b_s of a given mean.

    Bits go, one at a time, to where the next saves most. That is exact where each
    e_s(b) is convex in b, as errors are that fall fourfold with a bit; where one is
    not, it is an upper bound.

    Args:
        gains: G_s, [N].
        errors: e_s(b), [N, number of widths].
        widths: The b, [number of widths], consecutive and rising.
        mean_bits: The mean of the result, at most.

    Returns:
        b_s, [N].
    """
    costs = np.asarray(gains, np.float64)[:, None] * np.asarray(errors, np.float64)
    at = np.zeros(len(costs), int)
    rows = np.arange(len(costs))
    last = len(widths) - 1
    for _ in range(int(len(costs) * min(mean_bits - widths[0], last))):
        more = np.minimum(at + 1, last)
        saved = np.where(at < last, costs[rows, at] - costs[rows, more], -np.inf)
        at[np.argmax(saved)] += 1
    return np.asarray(widths)[at]
