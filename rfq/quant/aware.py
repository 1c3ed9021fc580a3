"""Quantization-aware training: what a tensor of the training program is rounded to.

Widths, and whether rounding has begun, are data, so that one compiled program trains
before and after. A range is that of the tensor at hand, so that the training state
holds nothing of it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.errors import InputError, check_fields, lookup
from rfq.quant import grid as grid_lib
from rfq.quant.spec import QuantSpec
from rfq.types import Array, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class QatConfig:
    """Rounding while a model trains, so that it learns to bear it."""

    # Train through the rounding of this WnAm setting, such as W8A4; with FP the
    # program has no rounding in it.
    spec: str = "FP"
    # Use a row of `rfq.quant.aware.KINDS`: "round" rounds and lets gradients through,
    # "noise" adds a Gaussian with the energy of the rounding error.
    kind: str = "round"
    # Begin after this share of the run: 0 for the whole run, 0.9 for the last tenth.
    start: float = 0.0
    taps: str = "paper"  # Round these activations, a row of `TAP_SETS`.
    # Choose what a residual skip carries past a rounded norm input (D19).
    stream: str = "branch"
    # Let these parts of an activation share a range, which is that of each batch.
    granularity: str = "per_tensor"
    scheme: str = "asymmetric"  # Turn ranges into grids by a row of `SCHEMES`.

    def __post_init__(self):
        check_fields(self, "qat")
        QuantSpec.parse(self.spec)
        lookup(KINDS, self.kind, "qat.kind")
        grid_lib.check_activations(self.granularity, "qat.granularity")
        lookup(grid_lib.SCHEMES, self.scheme, "qat.scheme")
        if not 0 <= self.start < 1:
            raise InputError(
                f"qat.start={self.start} must be from 0 to less than 1, the share of "
                "the run that is trained without rounding"
            )

    @property
    def widths(self) -> QuantSpec:
        """The bits of weights and activations."""
        return QuantSpec.parse(self.spec)


class Rounding(NamedTuple):
    """What one tensor of the training program is rounded to, all of it data.

    Attributes:
        target: A grid, or widths over the range of the tensor itself.
        is_on: False before rounding begins.
        key: Draws the noise.
    """

    target: grid_lib.Grid | grid_lib.Dynamic
    is_on: Array
    key: Array


def round_through(x: Array, target: grid_lib.Target, key: Array) -> Array:
    """Round x, with the gradient of `straight_through`."""
    del key
    return grid_lib.straight_through(x, target)


def add_noise(x: Array, target: grid_lib.Target, key: Array) -> Array:
    """Add Gaussian noise of variance s^2 / 12, that of rounding to a grid of step s.

    The step has no gradient, so that of x is 1 everywhere.
    """
    step = jax.lax.stop_gradient(grid_lib.grid_for(x, target).step)
    noise = jax.random.normal(key, x.shape, jnp.float32)
    return x.astype(jnp.float32) + step / math.sqrt(12.0) * noise


# (x, what it is rounded to, key) -> x_hat in float32, with the gradient to train by.
Kind = Callable[[Array, grid_lib.Target, Array], Array]

KINDS: Mapping[str, Kind] = {"round": round_through, "noise": add_noise}
"""How training stands in for rounding, by name."""


def rounded(x: Array, rounding: Rounding, kind: str) -> Array:
    """Return x as training sees it, in the type of x: x itself while rounding is off.

    Args:
        x: A weight or an activation.
        rounding: What it is rounded to.
        kind: A row of `KINDS`.
    """
    x_hat = KINDS[kind](x, rounding.target, rounding.key).astype(x.dtype)
    return jnp.where(rounding.is_on, x_hat, x)


@dataclasses.dataclass(frozen=True)
class Train:
    """Put `rounded` at sites, whose states are `Rounding`s; a tap.

    Attributes:
        kind: A row of `KINDS`.
    """

    kind: str

    def __call__(self, x: Array, state: Rounding) -> tuple[Array, Record]:
        """Round x and record nothing."""
        return rounded(x, state, self.kind), None
