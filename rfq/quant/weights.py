"""Weight quantization: a map over any parameter tree, one grid per output channel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rfq.errors import InputError
from rfq.params import MatrixAxes
from rfq.quant import grid as grid_lib
from rfq.quant import integer
from rfq.types import Array

# A tree with `MatrixAxes` or None at every leaf of the parameters, a function of the
# parameters that makes one, or None for the rule of plain trees.
Axes = Any | Callable[[Any], Any] | None


def quantize(
    params: Any,
    num_bits: int | Array | None,
    *,
    axes: Axes = None,
    scheme: str = "asymmetric",
    group_size: int | None = None,
) -> Any:
    """Round the matrices of a parameter tree to static min-max grids, one a channel.

    A channel is an output of y = x W, the only grouping whose step factors out of the
    product. The range is taken over the input axes, so a stacked leaf keeps its layers
    apart. The paper's weights are these, per channel, asymmetric and static
    (appendix D). Every other leaf stays as it is.

    Args:
        params: Any tree of arrays; leaves that are no arrays are left alone.
        num_bits: 2..16, also a traced scalar, so that one compiled program serves all
            widths; None returns `params` itself.
        axes: Which leaves are matrices, along which axes, as in `rfq.optim`: a tree
            like `params` with a `MatrixAxes` or None at every leaf, or a function of
            `params` that makes one. None takes the leaves with exactly two axes for
            matrices [in, out], which is wrong for stacked layers and for PyTorch's and
            Equinox's [out, in].
        scheme: A row of `SCHEMES`.
        group_size: How many inputs of a channel share a grid; None for all.

    Returns:
        The same tree; quantized leaves are float32.

    Raises:
        InputError: `group_size` does not divide the inputs of a matrix, the number of
            bits or the scheme is unknown, or `axes` does not fit `params`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> kernel = jnp.array([[0.0, 0.4], [1.0, 3.0]])
        >>> params = {"kernel": kernel, "bias": jnp.ones(2)}
        >>> quant.quantize(params, 2)["kernel"].tolist()
        [[0.0, 0.0], [1.0, 3.0]]
        >>> transposed = {"kernel": quant.MatrixAxes((1,), (0,)), "bias": None}
        >>> rounded = quant.quantize(params, 2, axes=transposed)["kernel"]
        >>> [[f"{value:.2f}" for value in row] for row in rounded]
        [['0.00', '0.40'], ['1.00', '3.00']]
    """
    if num_bits is None:
        return params
    chosen = grids(params, num_bits, axes=axes, scheme=scheme, group_size=group_size)
    return jax.tree.map(grid_lib.fake_quantize, params, chosen)


def encode(
    params: Any, num_bits: int, *, axes: Axes = None, scheme: str = "asymmetric"
) -> tuple[Any, Any]:
    """Encode as the integers behind `quantize`; `integer.load` of them is its result.

    Args:
        params: As in `quantize`.
        num_bits: 2..16, static because it chooses the dtype.
        axes: As in `quantize`.
        scheme: A row of `SCHEMES`.

    Returns:
        The tree with the codes of each matrix in its place (`integer.Codes` without
        their grids), and the tree of their grids as `grids` gives it.
    """
    chosen = grids(params, num_bits, axes=axes, scheme=scheme)

    def leaf(w: Array, grid: grid_lib.Grid | None) -> Array:
        return w if grid is None else integer.store(w, grid, num_bits).values

    return jax.tree.map(leaf, params, chosen), chosen


def grids(
    params: Any,
    num_bits: int | Array,
    *,
    axes: Axes = None,
    scheme: str = "asymmetric",
    group_size: int | None = None,
) -> Any:
    """Find the grids that `quantize` and `encode` round to; arguments as `quantize`.

    Returns:
        The tree of `params` with a `Grid` at each matrix, whose input axes have size 1
        (or their own, where groups of inputs have their own grid) so that it is scanned
        beside a stacked leaf, and None elsewhere.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    # A tree of an Equinox model can be called too, but it is no leaf.
    if callable(axes) and jax.tree_util.all_leaves([axes]):
        axes = axes(params)
    rows = [_plain(w) for _, w in flat]
    if axes is not None:
        try:
            rows = treedef.flatten_up_to(axes)
        except (TypeError, ValueError) as error:
            raise InputError(
                "axes must have the structure of the parameters, with MatrixAxes or "
                f"None at each leaf, or be a function that makes it; got {error}"
            ) from error
    make = grid_lib.Dynamic(num_bits, scheme=scheme)  # Says what is unknown, once.
    return treedef.unflatten(
        None if row is None else _leaf_grid(path, w, row, make, group_size)
        for (path, w), row in zip(flat, rows, strict=True)
    )


def _plain(w: Any) -> MatrixAxes | None:
    if getattr(w, "ndim", None) == 2 and jnp.issubdtype(w.dtype, jnp.floating):
        return MatrixAxes((0,), (1,))
    return None


def _are_axes(given: Any, ndim: int) -> bool:
    """Say whether these are different axes, some but not all of them."""
    return isinstance(given, tuple) and (
        0 < len(given) == len(set(given)) < ndim and set(given) < set(range(ndim))
    )


def _leaf_grid(
    path: tuple,
    w: Array,
    axes: MatrixAxes,
    how: grid_lib.Dynamic,
    group_size: int | None,
) -> grid_lib.Grid:
    """Find the grids of one leaf, shaped to broadcast against it.

    One per output channel and batch index; the input axes have size 1, or their full
    size where groups of inputs have their own grid.
    """
    if not (isinstance(axes, MatrixAxes) and _are_axes(axes.in_axes, w.ndim)):
        raise InputError(
            f"axes of parameter {jax.tree_util.keystr(path)} of shape {w.shape} are "
            f"{axes!r}; give MatrixAxes(in_axes, out_axes), tuples of different axes "
            f"from 0 to {w.ndim - 1}, or None to leave it as it is"
        )
    w, scheme = w.astype(jnp.float32), grid_lib.SCHEMES[how.scheme]
    if group_size is None:
        lo = jnp.min(w, axis=axes.in_axes, keepdims=True)
        hi = jnp.max(w, axis=axes.in_axes, keepdims=True)
        return scheme(lo, hi, how.num_bits)
    # Inputs last, and as one axis: a group may span heads.
    last = tuple(range(w.ndim - len(axes.in_axes), w.ndim))
    inputs_last = jnp.moveaxis(w, axes.in_axes, last)
    flat = inputs_last.reshape(*inputs_last.shape[: last[0]], -1)
    lo, hi = (
        jnp.moveaxis(end.reshape(inputs_last.shape), last, axes.in_axes)
        for end in grid_lib.per_group(group_size)(flat)
    )
    return scheme(lo, hi, how.num_bits)
