"""The product of an activation and a weight, of floats or of integers.

Each function is a `Dot`, and a model multiplies by one of them everywhere.
"""

import math
from collections.abc import Callable

from rfq import params as params_lib
from rfq.quant import grid, integer
from rfq.types import Array, SiteState

# A function for y = x W: (x [..., *in], w [*in, *out], the parameter's name, what its
# products need beside x and w) -> [..., *out].
Dot = Callable[[Array, Array, str, SiteState], Array]


def matmul(x: Array, w: Array, name: str, state: SiteState) -> Array:
    """Contract x's last axes with the input axes of the weight called `name`.

    This is the default `Dot`. The weight is cast to x's dtype.
    """
    del state
    rows, columns, shape = _as_matrices(x, w.astype(x.dtype), name)
    return (rows @ columns).reshape(shape)


def dequantized_matmul(x: Array, w: Array, name: str, state: grid.Grid | None) -> Array:
    """Multiply as `matmul` by a weight stored as integer codes and rounded alone.

    Args:
        x: As for `matmul`.
        w: Codes, as `quant.integer.store` makes them.
        name: As for `matmul`.
        state: The weight's grid; None for a weight that is no codes.
    """
    if state is not None:
        w = integer.load(integer.Codes(w, state))
    return matmul(x, w, name, None)


def integer_matmul(
    x: Array, w: Array, name: str, state: integer.Operands | None
) -> Array:
    """Multiply as `matmul` on integers, int8 x int8 -> int32; round the result once.

    Args:
        x: Float32 on the grid of its site, where a tap has put it: encoding it again
            is exact.
        w: Codes of at most 8 bits, as `quant.integer.store` makes them.
        name: As for `matmul`.
        state: The grids of x and w; None for a weight that is no codes.

    Raises:
        InputError: as `quant.integer.dot`.
    """
    if state is None:
        return matmul(x, w, name, None)
    rows, columns, shape = _as_matrices(x, w, name)
    w_grid = grid.Grid(*(leaf.reshape(1, -1) for leaf in state.w))
    x_codes = integer.store(rows, state.x, integer.MAX_DOT_BITS)
    return integer.dot(x_codes, integer.Codes(columns, w_grid), 1).reshape(shape)


def _as_matrices(x: Array, w: Array, name: str) -> tuple[Array, Array, tuple[int, ...]]:
    """Reshape to one axis each for rows, inputs and outputs; give the product's shape.

    XLA's CPU backend is a third faster on 2-D products.
    """
    matrix = params_lib.TABLE[name].matrix
    assert matrix is not None, name
    num_in = len(matrix.in_axes)
    in_shape, out_shape = w.shape[:num_in], w.shape[num_in:]
    rows = x.reshape(-1, math.prod(in_shape))
    columns = w.reshape(rows.shape[1], math.prod(out_shape))
    return rows, columns, (*x.shape[: x.ndim - num_in], *out_shape)
