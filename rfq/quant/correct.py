"""Corrections of a rounded site, one of each channel, learnt from clean activations.

Behind a rounded site stands gain x_hat + offset. A fit sees the clean tensor x and the
rounded one x_hat of the same tokens, in a model whose earlier sites are rounded and
corrected, so that a correction mends what has come down to it as well.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq import taps
from rfq.errors import lookup
from rfq.quant import grid as grid_lib
from rfq.types import Array, Record


class Correction(NamedTuple):
    """Numbers of each channel, `[D]`."""

    gain: Array
    offset: Array


def bias(x: Array, x_hat: Array) -> Correction:
    """Restore the mean of each channel (Nagel et al., arXiv 1906.04721)."""
    return Correction(jnp.ones(x.shape[-1]), _mean(x) - _mean(x_hat))


def bias_and_scale(x: Array, x_hat: Array) -> Correction:
    """Restore the mean and the standard deviation of each channel.

    A channel that rounds to a constant keeps a gain of 1.
    """
    power = _mean((x_hat - _row(_mean(x_hat), x)) ** 2)
    wanted = _mean((x - _row(_mean(x), x)) ** 2)
    varies = power > 0.0
    ratio = jnp.where(varies, wanted / jnp.where(varies, power, 1.0), 1.0)
    gain = jnp.sqrt(ratio)
    return Correction(gain, _mean(x) - gain * _mean(x_hat))


FITS: Mapping[str, Callable[[Array, Array], Correction]] = {
    "bias": bias,
    "bias_and_scale": bias_and_scale,
}
"""What a correction restores, by name: (x, x_hat) [..., D] -> `Correction`."""


def apply(x_hat: Array, correction: Correction) -> Array:
    """Return gain x_hat + offset."""
    gain, offset = (_row(leaf, x_hat) for leaf in correction)
    return gain * x_hat + offset


class Corrected(NamedTuple):
    """The state of a site that is rounded and then corrected."""

    target: grid_lib.Grid | grid_lib.Dynamic
    correction: Correction


def round_and_correct(x: Array, state: Corrected) -> tuple[Array, Record]:
    """Round x to the site's grid and correct it; a tap."""
    return apply(grid_lib.fake_quantize(x, state.target), state.correction), None


@dataclasses.dataclass(frozen=True)
class Fit:
    """Round and correct the quantized of two models, and record the corrections; a tap.

    The two run side by side, the clean one first, as `taps.measure_divergence` says.
    The state of a site is what it is rounded to.

    Attributes:
        name: A row of `FITS`.

    Raises:
        InputError: The name is unknown.
    """

    name: str = "bias_and_scale"

    def __post_init__(self):
        lookup(FITS, self.name, "correction")

    def __call__(
        self, x: Array, state: grid_lib.Grid | grid_lib.Dynamic
    ) -> tuple[Array, Record]:
        """Leave the clean x alone."""
        clean, quantized = jax.lax.all_gather(x, taps.PAIR)
        x_hat = grid_lib.fake_quantize(quantized, state)
        correction = FITS[self.name](clean.astype(jnp.float32), x_hat)
        is_clean = jax.lax.axis_index(taps.PAIR) == 0
        return jnp.where(is_clean, x, apply(x_hat, correction)), correction


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(x.ndim - 1)))


def _row(numbers: Array, x: Array) -> Array:
    return numbers.reshape((1,) * (x.ndim - 1) + numbers.shape)
