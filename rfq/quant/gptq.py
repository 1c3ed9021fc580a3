"""GPTQ: weights that are rounded one input after the other, each to mend the last.

For y = x W with calibration inputs X and H = X^T X, rounding W to Q costs

    tr((W - Q)^T H (W - Q)) = |X W - X Q|^2

over all outputs. Frantar et al. (arXiv 2210.17323) round the inputs i in turn and add
to those that are left what makes up for the error of i best: with H^-1 = U^T U and U
upper triangular,

    e = (w_i - q_i) / U_ii,    w_j -= U_ij e   for j > i.

The grids are those of plain rounding, found before on W, so that only codes differ.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rfq import factorize
from rfq.quant import grid as grid_lib
from rfq.quant import weights
from rfq.quant.grid import Grid
from rfq.types import Array

# Inputs are rounded in blocks of at most so many, and those behind a block adapt once
# to all of its errors, by a product instead of as many passes over the matrix.
BLOCK = 128


def quantize(
    params: Any,
    num_bits: int | Array,
    grams: Any,
    *,
    axes: weights.Axes = None,
    scheme: str = "asymmetric",
    group_size: int | None = None,
    damping: float = 0.01,
    is_ordered: bool = True,
) -> Any:
    """Round the matrices of a parameter tree as `quant.quantize` does, with GPTQ.

    Args:
        params: As in `quant.quantize`.
        num_bits: 2..16, also a traced scalar.
        grams: A tree like `params` with H of each matrix, [*batch, K, K] over its K
            inputs in their order, and anything elsewhere.
        axes: As in `quant.quantize`.
        scheme: As in `quant.quantize`.
        group_size: As in `quant.quantize`.
        damping: As in `round_matrix`.
        is_ordered: As in `round_matrix`.

    Returns:
        The same tree; quantized leaves are float32. No output channel has a larger
        objective than under plain rounding.

    Raises:
        InputError: As `quant.quantize`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import quant
        >>> from rfq.quant import gptq
        >>> w, alike = jnp.array([[0.4, 0.0], [0.4, 1.0], [3.0, 3.0]]), jnp.ones((3, 3))
        >>> quant.quantize(w, 2).sum(0).tolist()
        [3.0, 4.0]
        >>> gptq.quantize(w, 2, alike).sum(0).tolist()
        [4.0, 4.0]
    """
    chosen = weights.grids(
        params, num_bits, axes=axes, scheme=scheme, group_size=group_size
    )
    if callable(axes) and jax.tree_util.all_leaves([axes]):
        axes = axes(params)
    if axes is None:
        axes = jax.tree.map(lambda _: weights.MatrixAxes((0,), (1,)), params)

    def leaf(w: Array, grid: Grid | None, h: Array, matrix: weights.MatrixAxes):
        if grid is None:
            return w
        return _leaf(w.astype(jnp.float32), grid, h, matrix, damping, is_ordered)

    return jax.tree.map(leaf, params, chosen, grams, axes)


def round_matrix(
    w_KN: Array, h_KK: Array, grid: Grid, *, damping: float, is_ordered: bool
) -> Array:
    """Round one matrix of K inputs and N outputs.

    An output channel for which plain rounding has the smaller objective keeps plain
    rounding: the greedy order has no guarantee of its own.

    Args:
        w_KN: The weights, float32.
        h_KK: X^T X of the inputs; any scale.
        grid: Leaves [1, N], or [K, N] for groups of inputs.
        damping: This share of the mean diagonal of H is added to its diagonal, without
            which inputs that depend on each other have no inverse.
        is_ordered: Round the inputs of the largest energy first ("actorder").
    """
    energy_K = jnp.diagonal(h_KK)
    # An input that calibration never saw is rounded alone.
    energy_K = jnp.where(energy_K > 0.0, energy_K, jnp.mean(energy_K) + 1e-30)
    h_KK = jnp.fill_diagonal(h_KK, energy_K, inplace=False)
    order_K = jnp.arange(len(w_KN))
    if is_ordered:
        order_K = jnp.argsort(-energy_K, stable=True)
    damped_KK = h_KK + damping * jnp.mean(energy_K) * jnp.eye(len(w_KN))
    u_KK = _inverse_root(damped_KK[order_K[:, None], order_K[None, :]])
    grid_KN = Grid(*(jnp.broadcast_to(leaf, w_KN.shape)[order_K] for leaf in grid))

    size = max(n for n in range(1, BLOCK + 1) if len(w_KN) % n == 0)

    def block(number: Array, w_KN: Array) -> Array:
        """Round a block of inputs; those before it are rounded, those behind adapt."""

        def of_block(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, number * size, size)

        u_SK, grid_SN = of_block(u_KK), Grid(*map(of_block, grid_KN))
        u_SS = jax.lax.dynamic_slice_in_dim(u_SK, number * size, size, axis=1)

        def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            w_SN, errors_SN = carry
            q_N = grid_lib.fake_quantize(w_SN[i], Grid(*(leaf[i] for leaf in grid_SN)))
            error_N = (w_SN[i] - q_N) / u_SS[i, i]
            w_SN = (w_SN - u_SS[i][:, None] * error_N[None, :]).at[i].set(q_N)
            return w_SN, errors_SN.at[i].set(error_N)

        w_SN = of_block(w_KN)
        w_SN, errors_SN = jax.lax.fori_loop(0, size, one, (w_SN, jnp.zeros_like(w_SN)))
        w_KN = w_KN - jnp.matmul(u_SK.T, errors_SN, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(w_KN, w_SN, number * size, axis=0)

    num_blocks = len(w_KN) // size
    rounded_KN = jax.lax.fori_loop(0, num_blocks, block, w_KN[order_K])
    rounded_KN = jnp.zeros_like(w_KN).at[order_K].set(rounded_KN)
    plain_KN = grid_lib.fake_quantize(w_KN, grid)
    better_N = _costs(w_KN - rounded_KN, h_KK) < _costs(w_KN - plain_KN, h_KK)
    return jnp.where(better_N[None, :], rounded_KN, plain_KN)


def objective(w_KN: Array, q_KN: Array, h_KK: Array) -> Array:
    """Compute tr((W - Q)^T H (W - Q))."""
    return jnp.sum(_costs(w_KN - q_KN, h_KK))


def _costs(error_KN: Array, h_KK: Array) -> Array:
    """Compute e^T H e of each output channel."""
    moved_KN = jnp.matmul(h_KK, error_KN, precision="highest")
    return jnp.sum(error_KN * moved_KN, axis=0)


def _upper(h_KK: Array) -> Array:
    """Find the upper triangular U with H^-1 = U^T U, of one matrix.

    With J the reversal and J H J = M M^T, H = P P^T for the upper triangular P = J M J,
    so that U = P^-1.
    """
    reversed_KK = h_KK[::-1, ::-1]
    lower_KK = jax.lax.linalg.cholesky(reversed_KK, symmetrize_input=False)
    eye_KK = jnp.eye(len(h_KK), dtype=h_KK.dtype)
    inverse_KK = jax.lax.linalg.triangular_solve(
        lower_KK, eye_KK, left_side=True, lower=True
    )
    return jnp.triu(inverse_KK[::-1, ::-1])


_inverse_root = factorize.per_matrix(_upper)


def _leaf(
    w: Array,
    grid: Grid,
    h: Array,
    matrix: weights.MatrixAxes,
    damping: float,
    is_ordered: bool,
) -> Array:
    """Round one leaf, whose axes are batch, inputs and outputs in any order."""
    is_matrix = {*matrix.in_axes, *matrix.out_axes}
    batch = tuple(axis for axis in range(w.ndim) if axis not in is_matrix)
    order = (*batch, *matrix.in_axes, *matrix.out_axes)
    sizes = [w.shape[axis] for axis in order]
    num_inputs = math.prod(w.shape[axis] for axis in matrix.in_axes)
    num_batch = math.prod(w.shape[axis] for axis in batch)

    def flat(x: Array) -> Array:
        x = jnp.transpose(x, order)
        own = math.prod(x.shape[len(batch) : len(batch) + len(matrix.in_axes)])
        return x.reshape(num_batch, own, -1)

    def one(w_KN: Array, h_KK: Array, grid: Grid) -> Array:
        return round_matrix(w_KN, h_KK, grid, damping=damping, is_ordered=is_ordered)

    rounded = jax.vmap(one)(
        flat(w),
        h.reshape(num_batch, num_inputs, num_inputs).astype(jnp.float32),
        Grid(*(flat(leaf) for leaf in grid)),
    )
    back = [order.index(axis) for axis in range(w.ndim)]
    return jnp.transpose(rounded.reshape(sizes), back)
