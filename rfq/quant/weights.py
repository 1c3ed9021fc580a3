"""Weight quantization: a map over the parameter tree, one grid per output channel."""

import jax
import jax.numpy as jnp

from rfq import params as table
from rfq.quant import grid as grid_lib
from rfq.quant import integer, spec
from rfq.types import Array, Params


def quantize(
    params: Params,
    weight_bits: int | Array | None,
    *,
    scheme: spec.Scheme = grid_lib.grid_from_range,
    group_size: int | None = None,
    kinds: tuple[str, ...] = ("matrix",),
) -> Params:
    """Rounds every hidden matrix to its own static min-max grids.

    The paper's weights are per-channel, asymmetric and static. A channel is an output
    of y = x W, the only grouping whose step factors out of the product; the reduction
    is over the input axes of the parameter table, so a stacked leaf keeps its layers
    apart. The embedding, which is also the head, what folds into it and the norm gains
    stay as they are.

    Args:
        params: the model's parameter tree.
        weight_bits: 2..16, also a traced scalar so that one program serves all widths;
            None returns `params` itself.
        scheme: range -> grid.
        group_size: number of inputs of a channel that share a grid; None for all.
        kinds: which kinds of leaf to round. "embedding" has a grid per vocabulary
            entry, an output channel of the head and a token of the lookup.

    Returns:
        The same tree; quantized leaves are float32.

    Raises:
        InputError: `group_size` does not divide the inputs of a matrix.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> params = {"blocks": {"w_up": jnp.array([[[0.0, 0.4], [1.0, 3.0]]])}}
        >>> quant.quantize(params, 2)["blocks"]["w_up"].tolist()
        [[[0.0, 0.0], [1.0, 3.0]]]
    """
    if weight_bits is None:
        return params
    chosen = grids(
        params, weight_bits, scheme=scheme, group_size=group_size, kinds=kinds
    )
    return jax.tree.map(grid_lib.fake_quantize, params, chosen)


def encode(
    params: Params,
    weight_bits: int,
    *,
    scheme: spec.Scheme = grid_lib.grid_from_range,
) -> tuple[Params, Params]:
    """The integers behind `quantize`: `integer.load` of them is its result bit for bit.

    Args:
        params: the model's parameter tree.
        weight_bits: 2..16, static because it chooses the dtype.
        scheme: range -> grid.

    Returns:
        The tree with the codes of each hidden matrix in its place (`integer.Codes`
        without their grids), and the tree of their grids as `grids` gives it.
    """
    chosen = grids(params, weight_bits, scheme=scheme)

    def leaf(w: Array, grid: grid_lib.Grid | None) -> Array:
        return w if grid is None else integer.store(w, grid, weight_bits).values

    return jax.tree.map(leaf, params, chosen), chosen


def grids(
    params: Params,
    weight_bits: int | Array,
    *,
    scheme: spec.Scheme = grid_lib.grid_from_range,
    group_size: int | None = None,
    kinds: tuple[str, ...] = ("matrix",),
) -> Params:
    """The grids that `quantize` and `encode` round to; arguments as `quantize`.

    Returns:
        The tree of `params` with a `Grid` at each leaf to round, whose input axes have
        size 1 (or their own, where groups of inputs have their own grid) so that it is
        scanned beside a stacked leaf, and None elsewhere.
    """

    def leaf(w: Array, row: table.ParamAxes) -> grid_lib.Grid | None:
        if row.kind not in kinds:
            return None
        return leaf_grid(w, row.matrix, weight_bits, scheme, group_size)

    return jax.tree.map(leaf, params, table.axes(params))


def leaf_grid(
    w: Array,
    axes: table.MatrixAxes,
    num_bits: int | Array,
    scheme: spec.Scheme,
    group_size: int | None,
) -> grid_lib.Grid:
    """The grids of one leaf, shaped to broadcast against it.

    One per output channel and batch index; the input axes have size 1, or their full
    size where groups of inputs have their own grid.
    """
    w = w.astype(jnp.float32)
    if group_size is None:
        lo = jnp.min(w, axis=axes.in_axes, keepdims=True)
        hi = jnp.max(w, axis=axes.in_axes, keepdims=True)
        return scheme(lo, hi, num_bits)
    # Inputs last, and as one axis: a group may span heads.
    last = tuple(range(w.ndim - len(axes.in_axes), w.ndim))
    inputs_last = jnp.moveaxis(w, axes.in_axes, last)
    flat = inputs_last.reshape(*inputs_last.shape[: last[0]], -1)
    lo, hi = (
        jnp.moveaxis(end.reshape(inputs_last.shape), last, axes.in_axes)
        for end in grid_lib.per_group(group_size)(flat)
    )
    return scheme(lo, hi, num_bits)
