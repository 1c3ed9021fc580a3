"""Real integers: the arithmetic that `grid.fake_quantize` simulates.

Codes are stored as signed integers, q - shift with shift half the range of the dtype,
because int8 x int8 -> int32 is the product that hardware has. Up to rounding in
float32 of the final scaling, `dot` of the codes is the exact value of the simulated
product, which itself rounds after every addition.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.errors import InputError
from rfq.quant import grid as grid_lib
from rfq.types import Array

# K * 255**2 < 2**31: the int32 sum of K products of two 8-bit codes cannot overflow.
MAX_CONTRACTED = (2**31 - 1) // 255**2

# The widest codes that `dot` multiplies; `grid.MAX_BITS` are stored.
MAX_DOT_BITS = 8


class Codes(NamedTuple):
    """An integer tensor: x_hat = (values + shift - zero_point) * step.

    `values` is int4, int8 or int16 and `shift` 8, 128 or 32,768 by its dtype.
    """

    values: Array
    grid: grid_lib.Grid


class Operands(NamedTuple):
    """The grids of the two factors of a product x W."""

    x: grid_lib.Grid
    w: grid_lib.Grid


def storage_dtype(num_bits: int) -> jnp.dtype:
    """Choose the smallest of int4, int8 and int16 that holds codes of this width.

    Raises:
        InputError: `num_bits` is not in 2..16.
    """
    for dtype, width in ((jnp.int4, 4), (jnp.int8, 8), (jnp.int16, 16)):
        if grid_lib.MIN_BITS <= num_bits <= width:
            return jnp.dtype(dtype)
    raise InputError(
        f"num_bits={num_bits} must be from {grid_lib.MIN_BITS} to {grid_lib.MAX_BITS}"
    )


def store(x: Array, grid: grid_lib.Grid, num_bits: int) -> Codes:
    """Encode x as integers.

    Args:
        x: any shape, finite.
        grid: broadcasts against x; made with `num_bits`.
        num_bits: static here, because it chooses the dtype.
    """
    dtype = storage_dtype(num_bits)
    q = grid_lib.encode(x, grid).astype(jnp.int32)
    return Codes((q - _shift(dtype)).astype(dtype), grid)


def load(codes: Codes) -> Array:
    """Decode to float32: bit for bit `fake_quantize` of the original."""
    q = codes.values.astype(jnp.int32) + _shift(codes.values.dtype)
    return grid_lib.decode(q, codes.grid)


def dot(x: Codes, w: Codes, num_contracted: int) -> Array:
    """Contract the last axes of x with the first axes of w, in int32.

    sum (q_x - z_x)(q_w - z_w) = sum q_x q_w - z_x sum q_w - z_w sum q_x + K z_x z_w,
    then times s_x s_w (Jacob et al., 2018, section 2.3).

    Args:
        x: codes of at most 8 bits; one grid for the tensor (scalar leaves), or one for
            each index of the axes that are kept (contracted axes of size 1).
        w: codes of at most 8 bits; one grid for the tensor, or one for each output
            (contracted axes of size 1). int4 is widened to int8 for the product.
        num_contracted: the number of axes summed over.

    Returns:
        Float32, the axes of x that are kept, then those of w.

    Raises:
        InputError: codes are wider than 8 bits, or the sum could overflow int32.
    """
    kept = x.values.ndim - num_contracted
    contracted = tuple(range(num_contracted))
    summed = tuple(range(kept, x.values.ndim))
    num_terms = math.prod(w.values.shape[:num_contracted])
    if num_terms > MAX_CONTRACTED:
        raise InputError(
            f"a sum of {num_terms} products of 8-bit codes can overflow int32; the "
            f"most is {MAX_CONTRACTED}"
        )
    outputs = w.values.ndim - num_contracted
    x_int8, w_int8 = (_widen(codes) for codes in (x, w))
    acc = jax.lax.dot_general(
        x_int8,
        w_int8,
        ((summed, contracted), ((), ())),
        preferred_element_type=jnp.int32,
    )
    # Shapes that broadcast against the result: [kept axes of x, outputs of w].
    of_x = (*x.values.shape[:kept], *(1,) * outputs)
    of_w = (*(1,) * kept, *w.values.shape[num_contracted:])
    sum_x = jnp.sum(x_int8, axis=summed, dtype=jnp.int32).reshape(of_x)
    sum_w = jnp.sum(w_int8, axis=contracted, dtype=jnp.int32).reshape(of_w)
    z_x, z_w = _placed(_zero_point(x), of_x), _placed(_zero_point(w), of_w)
    total = acc - z_x * sum_w - z_w * sum_x + num_terms * z_x * z_w
    step = _placed(x.grid.step, of_x) * _placed(w.grid.step, of_w)
    return total.astype(jnp.float32) * step


def pack_int4(values: Array) -> Array:
    """Pack two int4 codes a byte, low half first; flat uint8, padded with a zero."""
    low_bits = values.astype(jnp.int8).ravel().astype(jnp.uint8) & 0xF
    low_bits = jnp.pad(low_bits, (0, low_bits.size % 2))
    return low_bits[0::2] | (low_bits[1::2] << 4)


def unpack_int4(packed: Array, shape: tuple[int, ...]) -> Array:
    """Invert `pack_int4` for codes of this shape."""
    halves = jnp.stack([packed & 0xF, packed >> 4], axis=-1).ravel()
    signed = halves.astype(jnp.int8) - 16 * (halves >= 8).astype(jnp.int8)
    return signed[: math.prod(shape)].reshape(shape).astype(jnp.int4)


def _shift(dtype: jnp.dtype) -> int:
    return -int(jnp.iinfo(dtype).min)


def _zero_point(codes: Codes) -> Array:
    """Return the zero point in the shifted numbering of `values`, int32."""
    return codes.grid.zero_point.astype(jnp.int32) - _shift(codes.values.dtype)


def _placed(leaf: Array, shape: tuple[int, ...]) -> Array:
    """Shape a leaf of a grid so that it multiplies the result; keep a scalar."""
    return leaf.reshape(shape) if leaf.ndim else leaf


def _widen(codes: Codes) -> Array:
    if codes.values.dtype == jnp.int16:
        raise InputError(
            "integer products take codes of at most 8 bits; 9 to 16 bits are stored "
            "as int16 and simulated with grid.fake_quantize"
        )
    return codes.values.astype(jnp.int8)
