"""Corrections of a rounded site, one of each channel, learnt from clean activations.

Behind a rounded site stands x_hat' = gain x_hat + offset. A fit sees the clean tensor x
and the rounded one x_hat of the same tokens, in a model whose earlier sites are rounded
and corrected, so that a correction mends what has come down to it as well.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rfq.types import Array


class Correction(NamedTuple):
    """Numbers of each channel, `[D]`."""

    gain: Array
    offset: Array

    def apply(self, x_hat: Array) -> Array:
        """Return gain x_hat + offset."""
        gain, offset = (_row(leaf, x_hat) for leaf in self)
        return gain * x_hat + offset


def scale(x: Array, x_hat: Array) -> Correction:
    """Restore the root mean square of the whole tensor."""
    gain = jnp.sqrt(jnp.mean(x**2) / jnp.mean(x_hat**2))
    return Correction(jnp.full(x.shape[-1], gain), jnp.zeros(x.shape[-1]))


def bias(x: Array, x_hat: Array) -> Correction:
    """Restore the mean of each channel (Nagel et al., arXiv 1906.04721)."""
    return Correction(jnp.ones(x.shape[-1]), _mean(x) - _mean(x_hat))


def bias_and_scale(x: Array, x_hat: Array) -> Correction:
    """Restore the mean and the standard deviation of each channel."""
    return _through_means(x, x_hat, jnp.sqrt(_ratio(_power(x), _power(x_hat))))


def bias_and_gain(x: Array, x_hat: Array) -> Correction:
    """Regress x on x_hat: gain cov(x, x_hat) / var(x_hat), and the offset to it.

    No other line through x_hat has a smaller squared error.
    """
    both = _mean(_centered(x) * _centered(x_hat))
    return _through_means(x, x_hat, _ratio(both, _power(x_hat)))


FITS: Mapping[str, Callable[[Array, Array], Correction]] = {
    "scale": scale,
    "bias": bias,
    "bias_and_scale": bias_and_scale,
    "bias_and_gain": bias_and_gain,
}
"""What a site is corrected to, by name: (x, x_hat) [..., D] -> `Correction`."""


def _through_means(x: Array, x_hat: Array, gain: Array) -> Correction:
    return Correction(gain, _mean(x) - gain * _mean(x_hat))


def _ratio(a: Array, b: Array) -> Array:
    """Divide, with 1 where a channel rounds to a constant."""
    return jnp.where(b > 0.0, a / jnp.where(b > 0.0, b, 1.0), 1.0)


def _power(x: Array) -> Array:
    return _mean(_centered(x) ** 2)


def _centered(x: Array) -> Array:
    return x - _row(_mean(x), x)


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(x.ndim - 1)))


def _row(numbers: Array, x: Array) -> Array:
    return numbers.reshape((1,) * (x.ndim - 1) + numbers.shape)
