"""Weight quantization: a map over the parameter tree, one grid per output channel."""

import jax
import jax.numpy as jnp

from rfq import params as table
from rfq.quant import grid as grids
from rfq.types import Array, Params


def quantize(params: Params, weight_bits: int | Array | None) -> Params:
    """Rounds every hidden matrix to its own static asymmetric min-max grids.

    The paper's weights are per-channel, asymmetric and static. A channel is an output
    of y = x W, the only grouping whose step factors out of the product; the reduction
    is over the input axes of the parameter table, so a stacked leaf keeps its layers
    apart. The embedding, which is also the head, and the norm gains stay as they are.

    Args:
        params: the model's parameter tree.
        weight_bits: 2..16, also a traced scalar so that one program serves all widths;
            None returns `params` itself.

    Returns:
        The same tree; quantized leaves are float32.
    """
    if weight_bits is None:
        return params

    def leaf(w: Array, row: table.ParamAxes) -> Array:
        if row.kind != "matrix":
            return w
        return fake_quantize(w, row.matrix, weight_bits)

    return jax.tree.map(leaf, params, table.axes(params))


def fake_quantize(w: Array, axes: table.MatrixAxes, num_bits: int | Array) -> Array:
    """Rounds one leaf per output channel, asymmetric."""
    w = w.astype(jnp.float32)
    lo = jnp.min(w, axis=axes.in_axes, keepdims=True)
    hi = jnp.max(w, axis=axes.in_axes, keepdims=True)
    return grids.fake_quantize(w, grids.grid_from_range(lo, hi, num_bits))
