"""How far a quantized tensor is from its reference: SQNR and NMSE (appendix D)."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from rfq.stats import moments
from rfq.types import Array

to_float64 = moments.to_float64


class Distortion(NamedTuple):
    """Energies of a reference and of its quantization error.

    Merged across batches by `merge`, in float64 on the host.
    """

    signal: Array  # sum(x**2); includes the mean.
    noise: Array  # sum((x - x_hat)**2)


def measure(reference: Array, quantized: Array) -> Distortion:
    """Sums the energy of the reference and of the error, in float32.

    Raises:
        AssertionError: the shapes differ (broadcasting would hide a bug).
    """
    chex.assert_equal_shape((reference, quantized))
    x, x_hat = (a.astype(jnp.float32) for a in (reference, quantized))
    return Distortion(jnp.sum(x**2), jnp.sum((x - x_hat) ** 2))


def merge(a: Distortion, b: Distortion) -> Distortion:
    """Sums over the union of two samples; only operators, so float64 works."""
    return Distortion(a.signal + b.signal, a.noise + b.noise)


def nmse_of(d: Distortion) -> np.ndarray:
    """|x - x_hat|^2 / |x|^2 of merged sums, on the host.

    0 when there is no noise, even of an all-zero signal; NaN when a sum overflowed.
    """
    signal, noise = (np.asarray(leaf, np.float64) for leaf in d)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise == 0.0, 0.0, noise / signal)
    return np.where(np.isfinite(signal) & np.isfinite(noise), ratio, np.nan)


def sqnr_db_of(d: Distortion) -> np.ndarray:
    """-10 log10 of the NMSE, on the host; +inf when there is no noise."""
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(nmse_of(d))


def nmse(reference: Array, quantized: Array) -> Array:
    """Normalized squared error |x - x_hat|^2 / |x|^2.

    0 when the two are identical, all zeros included; NaN when float32 overflows.
    """
    signal, noise = measure(reference, quantized)
    ratio = jnp.where(noise == 0.0, 0.0, noise / signal)
    return jnp.where(jnp.isfinite(signal) & jnp.isfinite(noise), ratio, jnp.nan)


def sqnr_db(reference: Array, quantized: Array) -> Array:
    """Signal-to-quantization-noise ratio, 10 log10(|x|^2 / |x - x_hat|^2).

    Args:
        reference: x, any shape, full precision.
        quantized: x_hat, same shape, already dequantized to a float type.

    Returns:
        Float32 scalar in decibels; +inf when the two are identical.

    Raises:
        AssertionError: the shapes differ.
    """
    return -10.0 * jnp.log10(nmse(reference, quantized))
