"""Statistics of a model's activations, layer by layer, for any model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rfq.errors import InputError
from rfq.quant import distortion, grid
from rfq.stats import central, entropy, extremes
from rfq.types import Array


class Layer(NamedTuple):
    """The statistics that `describe` gives of one array.

    Attributes:
        name: Its path in the tree.
        num_values: How many numbers it holds.
        num_nonfinite: How many of them are NaN or inf; all else but the range is then
            NaN.
        excess_kurtosis: 0 for a Gaussian.
        negentropy: In nats, 0 for a Gaussian.
        rms: sqrt(E[x^2]).
        range_lo: The smallest finite value.
        range_hi: The largest.
        sqnr_db: SQNR of the array rounded to its own range, by number of bits.
    """

    name: str
    num_values: int
    num_nonfinite: int
    excess_kurtosis: float
    negentropy: float
    rms: float
    range_lo: float
    range_hi: float
    sqnr_db: Mapping[int, float]


class Description(tuple[Layer, ...]):
    """The layers that `describe` found, in order; `print` shows them as a table."""

    def __str__(self) -> str:
        bits = self[0].sqnr_db
        head = ("layer", "values", "kurtosis", "negentropy", "rms", "low", "high")
        rows = [(*head, *(f"{width} bits" for width in bits))]
        for layer in self:
            numbers = (layer.excess_kurtosis, layer.negentropy, layer.rms)
            ends = (layer.range_lo, layer.range_hi)
            rows.append(
                (
                    layer.name,
                    f"{layer.num_values:,}",
                    *(f"{number:.3f}" for number in numbers),
                    *(f"{end:.2f}" for end in ends),
                    *(f"{layer.sqnr_db[width]:.1f} dB" for width in bits),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def describe(
    activations: Any,
    *,
    bits: Sequence[int] = (4, 5, 6, 7, 8),
    granularity: str = "per_tensor",
) -> Description:
    """Measure every activation of a model: kurtosis, negentropy, range and SQNR.

    The SQNR, 10 log10(|x|^2 / |x - x_hat|^2), is that of rounding the array to grids
    over its own range, so it is what its outliers cost at a width, before any
    calibration. Every number is of the values given; give enough tokens, since the
    kurtosis of a Gaussian sample of n values strays by sqrt(24 / n).

    Args:
        activations: A dictionary or any other tree of arrays: what Linen's
            `capture_intermediates` or NNX's `nnx.capture` returned, or names and arrays
            of your own. Whole numbers and scalars in it are left out.
        bits: The widths, each from 2 to 16.
        granularity: What shares a grid, as in `rfq.quant.Dynamic`.

    Returns:
        A tuple of `Layer`; `print` shows it as a table.

    Raises:
        InputError: The tree holds no array of floating-point numbers, or a width or the
            granularity is unknown.

    Examples:
        >>> import jax
        >>> from rfq import stats
        >>> x = jax.random.normal(jax.random.key(0), (1000, 64))
        >>> wild = x.at[0, 0].set(100.0)
        >>> found = stats.describe({"calm": x, "wild": wild}, bits=(4, 8))
        >>> print(found)
        layer  values  kurtosis  negentropy    rms    low    high   4 bits   8 bits
        calm   64,000    -0.004       0.001  1.002  -4.07    4.20  16.0 dB  40.6 dB
        wild   64,000  1160.173       0.073  1.077  -4.07  100.00   0.6 dB  19.2 dB
        >>> found[0].name, round(found[0].sqnr_db[8])
        ('calm', 41)
    """
    named = _named(activations)
    if not named:
        raise InputError(
            "stats.describe found no array of floating-point numbers in what it was "
            "given; pass a dictionary of names and activations, or what "
            "capture_intermediates or nnx.capture returned"
        )
    return Description(_layer(name, x, bits, granularity) for name, x in named.items())


def _layer(name: str, x: Array, bits: Sequence[int], granularity: str) -> Layer:
    seen, m = extremes.value_range(x), central.moments(x)
    rounded = {
        width: grid.fake_quantize(x, grid.Dynamic(width, granularity)) for width in bits
    }
    return Layer(
        name=name,
        num_values=x.size,
        num_nonfinite=int(seen.num_nonfinite),
        excess_kurtosis=float(central.excess_kurtosis(m)),
        negentropy=float(entropy.negentropy(x)),
        rms=float(central.rms(m)),
        range_lo=float(seen.lo),
        range_hi=float(seen.hi),
        sqnr_db={
            width: float(distortion.sqnr_db(x, x_hat))
            for width, x_hat in rounded.items()
        },
    )


# What the frameworks put into a path beside the names of layers.
_NOT_NAMES = ("intermediates", "__call__", "value")


def _named(activations: Any) -> dict[str, Array]:
    """Name the arrays to describe as a reader would."""
    by_path = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(activations):
        floats = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        if floats and math.prod(leaf.shape) > 1:
            text = jax.tree_util.keystr(path, simple=True, separator="/")
            by_path[tuple(p for p in text.split("/") if p not in _NOT_NAMES)] = leaf
    # A call's output is a tuple of one, unless the layer was called more than once.
    return {
        "/".join(path[:-1] if alone else path) or "output": leaf
        for path, leaf in by_path.items()
        for alone in [path[-1:] == ("0",) and (*path[:-1], "1") not in by_path]
    }
