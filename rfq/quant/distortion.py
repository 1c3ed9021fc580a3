"""The distance of a quantized tensor from its reference: SQNR and NMSE (appendix D).

`nmse` of one tensor and its own quantization is local. The same function of the clean
model's tensor and the fully quantized model's is the end-to-end relative error
R_l = |dh|^2 / |h|^2, to which the layers before have contributed.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from rfq.quant import grid as grid_lib
from rfq.stats import central
from rfq.types import Array

to_float64 = central.to_float64


class Distortion(NamedTuple):
    """Energies of a reference and of its quantization error.

    Merged across batches by `merge`, in float64 on the host.
    """

    signal: Array  # sum(x**2); includes the mean.
    noise: Array  # sum((x - x_hat)**2)


def measure(reference: Array, quantized: Array) -> Distortion:
    """Sum the energy of the reference and of the error, in float32.

    Raises:
        AssertionError: the shapes differ (broadcasting would hide a bug).
    """
    chex.assert_equal_shape((reference, quantized))
    x, x_hat = (a.astype(jnp.float32) for a in (reference, quantized))
    return Distortion(jnp.sum(x**2), jnp.sum((x - x_hat) ** 2))


def merge(a: Distortion, b: Distortion) -> Distortion:
    """Return the sums over the union of two samples; float64 works too."""
    return Distortion(a.signal + b.signal, a.noise + b.noise)


def nmse_of(d: Distortion) -> np.ndarray:
    """Divide merged sums into |x - x_hat|^2 / |x|^2, on the host.

    It is 0 when there is no noise, even of an all-zero signal; NaN after an overflow.
    """
    signal, noise = (np.asarray(leaf, np.float64) for leaf in d)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise == 0.0, 0.0, noise / signal)
    return np.where(np.isfinite(signal) & np.isfinite(noise), ratio, np.nan)


def sqnr_db_of(d: Distortion) -> np.ndarray:
    """Return -10 log10 of the NMSE, on the host; +inf when there is no noise."""
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(nmse_of(d))


def nmse(reference: Array, quantized: Array) -> Array:
    """Return the normalized squared error |x - x_hat|^2 / |x|^2 (appendix D).

    It is 0 when the two are identical, all zeros included, and NaN when float32
    overflows.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> f"{quant.nmse(jnp.array([3.0, 4.0]), jnp.array([3.0, 3.0])):.2f}"
        '0.04'
    """
    signal, noise = measure(reference, quantized)
    ratio = jnp.where(noise == 0.0, 0.0, noise / signal)
    return jnp.where(jnp.isfinite(signal) & jnp.isfinite(noise), ratio, jnp.nan)


def sqnr_db(reference: Array, quantized: Array) -> Array:
    """Return the signal-to-quantization-noise ratio 10 log10(|x|^2 / |x - x_hat|^2).

    Args:
        reference: x, any shape, full precision.
        quantized: x_hat, same shape, already dequantized to a float type.

    Returns:
        Float32 scalar in decibels; +inf when the two are identical.

    Raises:
        AssertionError: the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> f"{quant.sqnr_db(jnp.array([3.0, 4.0]), jnp.array([3.0, 3.0])):.2f}"
        '13.98'
    """
    return -10.0 * jnp.log10(nmse(reference, quantized))


class Usage(NamedTuple):
    """The use of a grid: how much it clips, sets to 0 and leaves for the bulk.

    It tells the three ways to lose accuracy apart: clipping (`clip_noise` is most of
    the noise), dead values (`num_dead` is most of the count) and rounding (neither).
    """

    count: Array
    num_clipped: Array  # Values more than half a step outside the grid.
    num_dead: Array  # Values that become 0, zeros included.
    noise: Array
    clip_noise: Array  # The part of `noise` made by clipped values.
    bulk_signal: Array
    bulk_noise: Array


def usage(x: Array, grid: grid_lib.Grid, bulk_limit: Array) -> Usage:
    """Sum what a grid does to x.

    Args:
        x: any shape.
        grid: broadcasts against x.
        bulk_limit: scalar, the magnitude up to which a value belongs to the bulk, such
            as the .999 quantile of |x| in calibration.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> used = quant.usage(jnp.array([-1.0, 0.4, 9.0]), grid, bulk_limit=2.0)
        >>> int(used.num_clipped), int(used.num_dead)
        (1, 1)
    """
    x = x.astype(jnp.float32)
    square = (x - grid_lib.fake_quantize(x, grid)) ** 2
    clipped = grid_lib.clips(x, grid)
    dead = grid_lib.encode(x, grid) == grid.zero_point
    in_bulk = jnp.abs(x) <= bulk_limit
    return Usage(
        count=jnp.float32(x.size),
        num_clipped=_count(clipped),
        num_dead=_count(dead),
        noise=jnp.sum(square),
        clip_noise=jnp.sum(jnp.where(clipped, square, 0.0)),
        bulk_signal=jnp.sum(jnp.where(in_bulk, x**2, 0.0)),
        bulk_noise=jnp.sum(jnp.where(in_bulk, square, 0.0)),
    )


def merge_usage(a: Usage, b: Usage) -> Usage:
    """Return the sums over the union of two samples; float64 works too."""
    return Usage(*(left + right for left, right in zip(a, b, strict=True)))


def bulk(u: Usage) -> Distortion:
    """Return the energies of the bulk alone, for `sqnr_db_of` and `nmse_of`."""
    return Distortion(u.bulk_signal, u.bulk_noise)


def clip_fraction(u: Usage) -> Array:
    """Return the share of the values that the grid clips."""
    return u.num_clipped / u.count


def dead_fraction(u: Usage) -> Array:
    """Return the share of the values that become 0."""
    return u.num_dead / u.count


def clip_noise_fraction(u: Usage) -> Array:
    """Return the share of the noise made by clipped values; NaN without noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return u.clip_noise / u.noise


def cause(clip_noise_fraction: float, dead_fraction: float) -> str:
    """Say what loses a site: "clipping", "dead" or "rounding".

    It is clipping when clipped values make most of the noise. Otherwise it is "dead"
    when most values become 0, as they do when a few large ones stretch a min-max grid:
    the noise is then the signal of all others, and no calibration token was missed.
    """
    if clip_noise_fraction > 0.5:
        return "clipping"
    return "dead" if dead_fraction > 0.5 else "rounding"


def codes_used(x: Array, grid: grid_lib.Grid) -> Array:
    """Tell which of the 2**16 possible codes occur; bool [65536], merged by `|`.

    Its sum is the number of levels used, at most `grid.levels` + 1. NaN has no code.
    """
    q = grid_lib.encode(x, grid).ravel()
    index = jnp.where(jnp.isnan(q), -1, q).astype(jnp.int32)
    # Out of bounds is dropped; -1 would count from the end.
    index = jnp.where(index < 0, 1 << 16, index)
    return jnp.zeros(1 << 16, bool).at[index].set(True, mode="drop")


class Summary(NamedTuple):
    """One number for many sites, in the two ways that differ, and the worst of them."""

    mean_sqnr_db: np.ndarray  # Mean of the decibels: every site counts alike.
    mean_nmse: np.ndarray  # Mean of the ratios: the worst sites count.
    min_sqnr_db: np.ndarray


def summarize(nmse_per_site: np.ndarray) -> Summary:
    """Aggregate NMSE over sites and layers; sites without noise make the mean inf."""
    with np.errstate(divide="ignore"):
        sqnr_db_per_site = -10.0 * np.log10(nmse_per_site)
    return Summary(
        mean_sqnr_db=np.mean(sqnr_db_per_site),
        mean_nmse=np.mean(nmse_per_site),
        min_sqnr_db=np.min(sqnr_db_per_site),
    )


def _count(mask: Array) -> Array:
    # Summed as integers: float32 stops counting at 2**24.
    return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
