"""A product on integers without integers: float32 that never has to round.

Integer-valued float32 numbers are added exactly as long as every partial sum stays
below 2**24, in whatever order; the steps are multiplied in after the sum, once.
"""

import math

import jax.numpy as jnp

from rfq import params as params_lib
from rfq.model import products
from rfq.quant import grid


def matmul(x, w, name, state):
    """A `products.Dot` that takes what `products.integer_matmul` takes."""
    if state is None:
        return products.matmul(x, w, name, None)
    num_in = len(params_lib.TABLE[name].matrix.in_axes)
    shift = -int(jnp.iinfo(w.dtype).min)
    q_x = grid.encode(x, state.x) - state.x.zero_point
    q_w = w.astype(jnp.float32) + shift - state.w.zero_point
    assert math.prod(w.shape[:num_in]) * 255**2 < 2**24
    total = jnp.tensordot(q_x, q_w, axes=num_in, precision="highest")
    step = state.x.step * state.w.step.reshape(w.shape[num_in:])
    return total * step.reshape((1,) * (total.ndim - step.ndim) + step.shape)
