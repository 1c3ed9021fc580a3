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
from rfq.quant.calibrate import gaussian_clip
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
    # Round in one of so many steps and train the others in full precision, so that
    # the model learns both: 1 rounds in every step, 2 in every other.
    every: int = 1
    # Let these parts of an activation share a range, which is that of each batch.
    granularity: str = "per_tensor"
    # Choose the range of an activation by a row of `rfq.quant.aware.RANGES`: "min_max"
    # clips nothing; "gaussian" loses least of a Gaussian of the tensor's own RMS.
    range: str = "min_max"
    scheme: str = "asymmetric"  # Turn ranges into grids by a row of `SCHEMES`.

    def __post_init__(self):
        check_fields(self, "qat")
        if self.widths.methods:
            raise InputError(
                f"qat.spec={self.spec!r} names methods, and training rounds to nearest "
                f"alone; give {self.widths.widths}"
            )
        lookup(KINDS, self.kind, "qat.kind")
        lookup(RANGES, self.range, "qat.range")
        grid_lib.check_activations(self.granularity, "qat.granularity")
        lookup(grid_lib.SCHEMES, self.scheme, "qat.scheme")
        if not 0 <= self.start < 1:
            raise InputError(
                f"qat.start={self.start} must be from 0 to less than 1, the share of "
                "the run that is trained without rounding"
            )
        if self.every < 1:
            raise InputError(f"qat.every={self.every} must be >= 1")
        if self.range == "gaussian" and self.granularity != "per_tensor":
            raise InputError(
                f"qat.range='gaussian' is of a whole tensor, and qat.granularity is "
                f"{self.granularity!r}; give per_tensor, or qat.range='min_max'"
            )

    @property
    def widths(self) -> QuantSpec:
        """The bits of weights and activations."""
        return QuantSpec.parse(self.spec)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfRms:
    """Round to the grid over [-c, c] sqrt(mean(x^2)) of whatever array comes.

    Attributes:
        num_bits: 2..16; it is data.
        clip: c, likewise.
        scheme: A row of `SCHEMES`.
    """

    num_bits: int | Array
    clip: float | Array
    scheme: str = dataclasses.field(default="asymmetric", metadata={"static": True})


Target = grid_lib.Grid | grid_lib.Dynamic | OfRms


def grid_of(x: Array, target: Target) -> grid_lib.Grid:
    """Find the grid that an array is rounded to, which has no gradient."""
    x = jax.lax.stop_gradient(x)
    if isinstance(target, OfRms):
        end = target.clip * jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
        return grid_lib.SCHEMES[target.scheme](-end, end, target.num_bits)
    return grid_lib.grid_for(x, target)


class Rounding(NamedTuple):
    """What one tensor of the training program is rounded to, all of it data.

    Attributes:
        target: A grid, or widths over a range of the tensor itself.
        is_on: False in a step in full precision.
        key: Draws the noise.
    """

    target: Target
    is_on: Array
    key: Array


def round_through(x: Array, grid: grid_lib.Grid, key: Array) -> Array:
    """Round x, with the gradient of `straight_through`."""
    del key
    return grid_lib.straight_through(x, grid)


def add_noise(x: Array, grid: grid_lib.Grid, key: Array) -> Array:
    """Add Gaussian noise of variance s^2 / 12, that of rounding to a grid of step s.

    Nothing is clipped, and the gradient is 1 everywhere.
    """
    noise = jax.random.normal(key, x.shape, jnp.float32)
    return x.astype(jnp.float32) + grid.step / math.sqrt(12.0) * noise


# (x, its grid, key) -> x_hat in float32, with the gradient to train by.
Kind = Callable[[Array, grid_lib.Grid, Array], Array]

KINDS: Mapping[str, Kind] = {"round": round_through, "noise": add_noise}
"""How training stands in for rounding, by name."""


def of_extremes(qat: QatConfig, num_bits: Array) -> Target:
    """Round over all values that share a grid."""
    return grid_lib.Dynamic(num_bits, qat.granularity, qat.scheme)


def of_gaussian(qat: QatConfig, num_bits: Array) -> Target:
    """Round over the range of least squared error for a Gaussian of the same RMS."""
    bits = qat.widths.act_bits
    assert bits is not None, "only rounded activations have a range"
    clip = gaussian_clip(bits, grid_lib.SCHEMES[qat.scheme])
    return OfRms(num_bits, jnp.full(jnp.shape(num_bits), clip), qat.scheme)


RANGES: Mapping[str, Callable[[QatConfig, Array], Target]] = {
    "min_max": of_extremes,
    "gaussian": of_gaussian,
}
"""What an activation is rounded to in training, by how its range is chosen."""


def rounded(x: Array, rounding: Rounding, kind: str) -> Array:
    """Return x as training sees it, in the type of x: x itself while rounding is off.

    Args:
        x: A weight or an activation.
        rounding: What it is rounded to.
        kind: A row of `KINDS`.
    """
    grid = grid_of(x, rounding.target)
    x_hat = KINDS[kind](x, grid, rounding.key).astype(x.dtype)
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
