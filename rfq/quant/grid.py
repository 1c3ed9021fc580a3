"""The uniform grid: the one place where a value is rounded.

Everything is float32 inside and stays float32: a bfloat16 carrier cannot hold the
grids of 10 bits and more. The number of levels is data and not a constant, so one
compiled program serves every bit width, and a `Grid` with a leading layer axis is
scanned beside the layers.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.errors import InputError, lookup
from rfq.types import Array

MIN_BITS = 2
MAX_BITS = 16

# Below this spacing a GPU may flush the grid to zero.
_SMALLEST_STEP = 1e-30


class Grid(NamedTuple):
    """Integer grid: x_hat = (q - zero_point) * step, q in 0..levels.

    Float32 leaves of one shape that broadcasts against x. Symmetric grids are the same
    thing with their codes shifted to start at 0.
    """

    step: Array
    zero_point: Array  # An exact integer in 0..levels.
    levels: Array  # The largest code; 2**num_bits - 1 for asymmetric grids.


def grid_from_range(lo: Array, hi: Array, num_bits: int | Array) -> Grid:
    """Make the asymmetric grid over [min(lo, 0), max(hi, 0)], which holds 0 exactly.

    s = (hi - lo) / n, z = clip(rne(-lo / s), 0, n), n = 2**bits - 1. Because z is
    rounded, one end of the range may be clipped by up to half a step. An all-zero range
    gets step 1. The magnitude of the range must be below 1e38; NaN and inf make a grid
    whose every output is NaN, so that they are seen (calibration refuses them earlier).

    Args:
        lo: range_lo of each group, any shape.
        hi: range_hi, same shape.
        num_bits: 2..16; a Python integer is checked, an array (a scalar, or one width
            per group) is taken as it is.

    Raises:
        InputError: a Python integer num_bits is not in 2..16.

    Examples:
        >>> from rfq import quant
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> float(grid.step), float(grid.zero_point), float(grid.levels)
        (1.0, 1.0, 3.0)
    """
    lo, hi = _with_zero(lo, hi)
    levels = _num_codes(num_bits) - 1.0
    step = _safe_step(_divide(hi - lo, levels))
    zero_point = jnp.clip(jnp.round(_divide(-lo, step)), 0.0, levels)
    return _same_shape(step, zero_point, levels)


def symmetric(lo: Array, hi: Array, num_bits: int | Array) -> Grid:
    """Make the symmetric restricted grid q * s for q in -Q..Q, s = max|range| / Q.

    Q = 2**(bits - 1) - 1, so a 2-bit grid has the three values -s, 0 and s. The
    arguments are those of `grid_from_range`.
    """
    lo, hi = _with_zero(lo, hi)
    largest = _num_codes(num_bits) / 2.0 - 1.0
    step = _safe_step(_divide(jnp.maximum(-lo, hi), largest))
    return _same_shape(step, largest, 2.0 * largest)


def symmetric_full(lo: Array, hi: Array, num_bits: int | Array) -> Grid:
    """Make the grid of `symmetric` with the code -2**(bits - 1) allowed."""
    half = _num_codes(num_bits) / 2.0
    step = symmetric(lo, hi, num_bits).step
    return _same_shape(step, half, 2.0 * half - 1.0)


def symmetric_half(lo: Array, hi: Array, num_bits: int | Array) -> Grid:
    """Make the grid of `symmetric_full` with s = max|range| / (Q + 1/2), as qwix does.

    The outer cells end at the range instead of being centred on its ends.
    """
    lo, hi = _with_zero(lo, hi)
    half = _num_codes(num_bits) / 2.0
    step = _safe_step(_divide(jnp.maximum(-lo, hi), half - 0.5))
    return _same_shape(step, half, 2.0 * half - 1.0)


# (range_lo, range_hi, num_bits) -> Grid, elementwise over groups.
Scheme = Callable[[Array, Array, int | Array], Grid]

SCHEMES: Mapping[str, Scheme] = {
    "asymmetric": grid_from_range,
    "symmetric": symmetric,
    "symmetric_full": symmetric_full,
    "symmetric_half": symmetric_half,
}
"""How a range becomes a grid, by name: (range_lo, range_hi, num_bits) -> `Grid`."""


# What shares one grid: x -> (range_lo, range_hi), shaped to broadcast against x.
Extent = Callable[[Array], tuple[Array, Array]]


def per_tensor(x: Array) -> tuple[Array, Array]:
    """Give the whole array one range; scalars."""
    return jnp.min(x), jnp.max(x)


def per_token(x: Array) -> tuple[Array, Array]:
    """Give each vector along the last axis a range; `[..., 1]`."""
    return jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)


def per_channel(x: Array) -> tuple[Array, Array]:
    """Give each index of the last axis a range over all others; `[1, ..., D]`."""
    axes = tuple(range(x.ndim - 1))
    return jnp.min(x, axis=axes, keepdims=True), jnp.max(x, axis=axes, keepdims=True)


def per_group(group_size: int) -> Extent:
    """Give each run of `group_size` neighbors along the last axis a range.

    Raises:
        InputError: The result is applied to an axis that is not a multiple of
            `group_size`.
    """

    def extent(x: Array) -> tuple[Array, Array]:
        if x.shape[-1] % group_size:
            raise InputError(
                f"group_size={group_size} must divide the {x.shape[-1]} values that "
                "share a token or an output channel"
            )
        lo, hi = per_token(x.reshape(*x.shape[:-1], -1, group_size))
        lo, hi = (jnp.repeat(end[..., 0], group_size, axis=-1) for end in (lo, hi))
        return lo, hi

    return extent


GRANULARITIES: Mapping[str, Extent] = {
    "per_tensor": per_tensor,
    "per_token": per_token,
    "per_channel": per_channel,
}
"""What shares a grid, by name; "per_group_N" is another, for any N.

Each takes an array to its (range_lo, range_hi), shaped to broadcast against it.
"""


def group_size(granularity: str) -> int | None:
    """Read N of "per_group_N"; None for any other name."""
    match = re.fullmatch(r"per_group_([1-9][0-9]*)", granularity)
    return None if match is None else int(match[1])


def extent_of(granularity: str, what: str = "granularity") -> Extent:
    """Find what shares a grid by its name, a row of `GRANULARITIES` or "per_group_N".

    Args:
        granularity: The name.
        what: Where it was given, for the message.

    Raises:
        InputError: The name is unknown.
    """
    size = group_size(granularity)
    if size is not None:
        return per_group(size)
    known = {**GRANULARITIES, "per_group_N": per_token}
    return lookup(known, granularity, what)


def check_activations(granularity: str, what: str) -> None:
    """Check that parts of an activation can share a grid by this name.

    Raises:
        InputError: The name is unknown, or is "per_channel".
    """
    extent_of(granularity, what)
    if granularity == "per_channel":
        raise InputError(
            f"{what}='per_channel' is for weights alone: a product sums over the "
            "channels of an activation; choose from per_tensor, per_token and "
            "per_group_N"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Round to grids over the ranges of whatever array comes, as a kernel does.

    Attributes:
        num_bits: 2..16. It is data: an array of any width serves one compiled program.
        granularity: What shares a grid: "per_tensor", "per_token" (the last axis),
            "per_channel" (all axes but the last) or "per_group_N" (runs of N along the
            last axis).
        scheme: A row of `SCHEMES`.

    Raises:
        InputError: The granularity or the scheme is unknown.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> x = jnp.array([[0.0, 0.4, 3.0], [0.0, 0.4, 0.3]])
        >>> rounded = quant.fake_quantize(x, quant.Dynamic(2, "per_token"))
        >>> [[f"{value:.2f}" for value in row] for row in rounded]
        [['0.00', '0.00', '3.00'], ['0.00', '0.40', '0.27']]
    """

    num_bits: int | Array
    granularity: str = dataclasses.field(
        default="per_tensor", metadata={"static": True}
    )
    scheme: str = dataclasses.field(default="asymmetric", metadata={"static": True})

    def __post_init__(self):
        extent_of(self.granularity)
        lookup(SCHEMES, self.scheme, "scheme")


# What an array is rounded to: a grid, widths over its own ranges, or bits alone.
Target = Grid | Dynamic | int | Array


def grid_for(x: Array, target: Target) -> Grid:
    """Find the grid that an array is rounded to; it broadcasts against x.

    Args:
        x: Any shape.
        target: A `Grid`, which is returned as it is; a `Dynamic`; or the number of bits
            of a `Dynamic` with its defaults.

    Raises:
        InputError: The number of bits is not in 2..16, or a group does not divide the
            last axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> grid = quant.grid_for(jnp.array([-1.0, 0.4, 2.0]), 2)
        >>> float(grid.step), float(grid.zero_point), float(grid.levels)
        (1.0, 1.0, 3.0)
    """
    if isinstance(target, Grid):
        return target
    how = target if isinstance(target, Dynamic) else Dynamic(target)
    ends = extent_of(how.granularity)(jnp.asarray(x, jnp.float32))
    return SCHEMES[how.scheme](*ends, how.num_bits)


def encode(x: Array, grid: Grid) -> Array:
    """Encode as integers q = clip(rne(x / s) + z, 0, levels), held in float32.

    It rounds before it adds z, since adding first gives other codes, and divides by s,
    since a reciprocal does too. NaN stays NaN; inf goes to the ends.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> quant.encode(jnp.array([-1.0, 0.4, 9.0]), grid).tolist()
        [0.0, 1.0, 3.0]
    """
    return jnp.clip(_unclipped_codes(x, grid), 0.0, grid.levels)


def decode(q: Array, grid: Grid) -> Array:
    """Decode integers to the values x_hat = (q - z) * s, float32.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> quant.decode(jnp.array([0.0, 1.0, 3.0]), grid).tolist()
        [-1.0, 0.0, 2.0]
    """
    return (q.astype(jnp.float32) - grid.zero_point) * grid.step


def fake_quantize(x: Array, target: Target | None) -> Array:
    """Round x to a grid and back; the result is float32.

    NaN stays NaN, inf goes to the ends of the grid, and a target of None (full
    precision) returns x itself. The gradient is zero almost everywhere; to train
    through quantization use `straight_through`.

    Args:
        x: Any shape.
        target: The number of bits, for the range of x itself; a `Dynamic`, which also
            says what shares a grid; a `Grid`, for a range that was chosen before; or
            None.

    Raises:
        InputError: As `grid_for`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> x = jnp.array([-1.0, 0.4, 2.0])
        >>> quant.fake_quantize(x, 2).tolist()
        [-1.0, 0.0, 2.0]
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> quant.fake_quantize(jnp.array([0.6, 9.0]), grid).tolist()
        [1.0, 2.0]
    """
    if target is None:
        return x
    grid = grid_for(x, target)
    return decode(encode(x, grid), grid)


def clips(x: Array, grid: Grid) -> Array:
    """Tell where x lies more than half a step outside the grid; False for NaN."""
    q = _unclipped_codes(x, grid)
    return (q < 0.0) | (q > grid.levels)


def straight_through(x: Array, target: Target) -> Array:
    """Round as `fake_quantize` does, with gradient 1 where nothing is clipped, else 0.

    The value is bit for bit that of `fake_quantize` (Bengio et al., 2013), so a model
    can be trained through its own quantization.

    Args:
        x: Any shape.
        target: As in `fake_quantize`; with a number of bits nothing is clipped.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> grid = quant.grid_from_range(-1.0, 2.0, 2)
        >>> slope = jax.grad(lambda x: quant.straight_through(x, grid).sum())
        >>> slope(jnp.array([-1.0, 0.4, 9.0])).tolist()
        [1.0, 1.0, 0.0]
    """
    grid = jax.lax.stop_gradient(grid_for(x, target))
    stopped = clips(x, grid) | jnp.isnan(x)
    passed = jnp.where(stopped, 0.0, x.astype(jnp.float32))
    x_hat = jax.lax.stop_gradient(fake_quantize(x, grid))
    return x_hat + (passed - jax.lax.stop_gradient(passed))


def _unclipped_codes(x: Array, grid: Grid) -> Array:
    return jnp.round(_divide(jnp.asarray(x, jnp.float32), grid.step)) + grid.zero_point


def _divide(x: Array, y: Array) -> Array:
    """Divide x by y with one rounding, whatever the compiler; y broadcasts against x.

    XLA turns a division by a broadcast into a multiplication by its reciprocal, which
    changes a fifth to a half of the quotients by one ulp, and with them codes at exact
    ties. A divisor that depends on x, where x is NaN, keeps the division.
    """
    return x / jnp.where(jnp.isnan(x), x, y)


def _with_zero(lo: Array, hi: Array) -> tuple[Array, Array]:
    lo, hi = (jnp.asarray(end, jnp.float32) for end in (lo, hi))
    return jnp.minimum(lo, 0.0), jnp.maximum(hi, 0.0)


def _num_codes(num_bits: int | Array) -> Array:
    given = isinstance(num_bits, int | float | np.number)  # Not an array.
    if given and num_bits not in range(MIN_BITS, MAX_BITS + 1):
        raise InputError(
            f"num_bits={num_bits} must be a whole number from {MIN_BITS} to "
            f"{MAX_BITS}; give None for full precision"
        )
    # A shift is exact on every backend; exp2 is not.
    bits = jnp.asarray(num_bits).astype(jnp.int32)
    return jnp.left_shift(jnp.int32(1), bits).astype(jnp.float32)


def _safe_step(step: Array) -> Array:
    """Give an all-zero group step 1, others at least _SMALLEST_STEP; keep NaN."""
    return jnp.where(step == 0.0, 1.0, jnp.maximum(step, _SMALLEST_STEP))


def _same_shape(*leaves: Array) -> Grid:
    shape = jnp.broadcast_shapes(*(leaf.shape for leaf in leaves))
    return Grid(*(jnp.broadcast_to(leaf, shape) for leaf in leaves))
