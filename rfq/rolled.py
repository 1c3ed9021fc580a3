"""Factorizations as small programs of matrix products, for compilers that unroll.

A TPU's compiler expands Cholesky, triangular solves and Householder QR into programs
that grow with the matrix: minutes of compiling and tens of megabytes at 3,072. Here the
same algorithms run panel by panel in loops: one small program for every size. Each step
of a loop is a product with a panel's width, and the products state full precision.

Every function takes one matrix; `jax.vmap` batches the products.
"""

import jax
import jax.numpy as jnp

from rfq.types import Array

# Columns of a panel; within one, a loop goes column by column.
PANEL = 128


def cholesky(a: Array) -> Array:
    """Return the lower L with A = L L^T, not finite where A is not definite.

    Left-looking by panels J: with the columns before J done,

        P = A[:, J] - L L[J, :]^T,   L[J, J] = chol(P[J]),   L[:, J] = P L[J, J]^-T

    below J. Only A's lower triangle is read.

    Args:
        a: symmetric [n, n].
    """
    n, width = a.shape[0], min(PANEL, a.shape[0])
    padded = _padded(a, width)
    rows = jnp.arange(padded.shape[0])

    def panel(index: Array, lower: Array) -> Array:
        start = index * width
        block = jax.lax.dynamic_slice_in_dim(lower, start, width)
        columns = jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1)
        columns = columns - _dot(lower, block.T)
        corner = _cholesky_by_columns(
            jax.lax.dynamic_slice_in_dim(columns, start, width)
        )
        below = _dot(columns, _inverse_by_rows(corner).T)
        below = jnp.where((rows >= start + width)[:, None], below, 0.0)
        done = jax.lax.dynamic_update_slice_in_dim(below, corner, start, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(lower, done, start, axis=1)

    steps = padded.shape[0] // width
    return jax.lax.fori_loop(0, steps, panel, jnp.zeros_like(padded))[:n, :n]


def solve_transposed(lower: Array, x: Array) -> Array:
    """Return X L^-T for a lower triangular L [n, n] and X [m, n], panel by panel J.

    Q[:, J] = (X[:, J] - Q L[J, :]^T) L[J, J]^-T
    """
    n, width = lower.shape[0], min(PANEL, lower.shape[0])
    lower = jnp.tril(_padded(lower, width))
    x = jnp.pad(x, ((0, 0), (0, lower.shape[0] - n)))

    def panel(index: Array, q: Array) -> Array:
        start = index * width
        block = jax.lax.dynamic_slice_in_dim(lower, start, width)
        corner = jax.lax.dynamic_slice_in_dim(block, start, width, axis=1)
        columns = jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)
        columns = columns - _dot(q, block.T)
        solved = _dot(columns, _inverse_by_rows(corner).T)
        return jax.lax.dynamic_update_slice_in_dim(q, solved, start, axis=1)

    steps = lower.shape[0] // width
    return jax.lax.fori_loop(0, steps, panel, jnp.zeros_like(x))[:, :n]


def qr(a: Array) -> tuple[Array, Array]:
    """Return Q [m, k] and R [k, n] of A [m, n], k = min(m, n), by Householder.

    Reflections of a panel are gathered as I - V T V^T (Schreiber and Van Loan, 1989,
    the compact WY form), with T^-1 the upper triangle of V^T V and its diagonal halved.
    """
    m, n = a.shape
    k = min(m, n)
    width = min(PANEL, k)
    steps = -(-k // width)
    # Columns of zeros are reflected by nothing, and stay.
    a = jnp.pad(a, ((0, 0), (0, max(steps * width - n, 0))))
    q = jnp.eye(m, dtype=a.dtype)

    def panel(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        r, q = carry
        start = index * width
        columns = jax.lax.dynamic_slice_in_dim(r, start, width, axis=1)
        v = _reflectors(columns, start, k)
        gram = _dot(v.T, v)
        # A zero reflector has a zero row there; any diagonal does.
        half = 0.5 * jnp.diagonal(gram)
        half = jnp.where(half > 0.0, half, 1.0)
        inverse = jnp.triu(gram, 1) + jnp.diag(half)
        t = _inverse_by_rows(inverse.T).T
        r = r - _dot(v, _dot(t.T, _dot(v.T, r)))
        q = q - _dot(_dot(q, _dot(v, t)), v.T)
        return r, q

    r, q = jax.lax.fori_loop(0, steps, panel, (a, q))
    return q[:, :k], jnp.triu(r[:k, :n])


def _reflectors(columns: Array, start: Array, last: int) -> Array:
    """Return Householder's unit vectors of a panel, [m, width], zero where none is due.

    Column j is made zero below row start + j, by v = x + sign(x_p) |x| e_p.
    """
    rows = jnp.arange(columns.shape[0])

    def column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        panel, vectors = carry
        pivot = start + j
        x = jnp.where(rows >= pivot, _at(panel, j, axis=1), 0.0)
        head = jnp.sum(jnp.where(rows == pivot, x, 0.0))
        sign = jnp.where(head < 0.0, -1.0, 1.0)
        # Scaled, so that squares neither overflow nor vanish.
        scale = jnp.max(jnp.abs(x))
        unit = x / jnp.where(scale > 0.0, scale, 1.0)
        v = unit + sign * jnp.linalg.norm(unit) * (rows == pivot)
        norm = jnp.linalg.norm(v)
        # As LAPACK, which leaves a column alone that is zero below its pivot.
        due = jnp.any((rows > pivot) & (x != 0.0)) & (pivot < last)
        v = jnp.where(due, v / jnp.where(norm > 0.0, norm, 1.0), 0.0)
        panel = panel - 2.0 * jnp.outer(v, _dot(v, panel))
        return panel, vectors.at[:, j].set(v)

    empty = jnp.zeros_like(columns)
    return jax.lax.fori_loop(0, columns.shape[1], column, (columns, empty))[1]


def _cholesky_by_columns(a: Array) -> Array:
    """Return the lower factor of a small matrix, one column a step."""
    rows = jnp.arange(a.shape[0])

    def column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, lower = carry
        x = _at(rest, j, axis=1)
        x = jnp.where(rows >= j, x / jnp.sqrt(_at(x, j)), 0.0)
        return rest - x[:, None] * x[None, :], lower.at[:, j].set(x)

    return jax.lax.fori_loop(0, a.shape[0], column, (a, jnp.zeros_like(a)))[1]


def _inverse_by_rows(lower: Array) -> Array:
    """Return the inverse of a small lower triangular matrix, one row a step."""
    size = lower.shape[0]
    columns = jnp.arange(size)

    def row(i: Array, inverse: Array) -> Array:
        weights = _at(lower, i)
        known = _dot(jnp.where(columns < i, weights, 0.0), inverse)
        return inverse.at[i].set(((columns == i) - known) / _at(weights, i))

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(lower))


def _padded(a: Array, width: int) -> Array:
    """Continue a square matrix to a multiple of the panel, by ones on the diagonal."""
    extra = -a.shape[0] % width
    a = jnp.pad(a, ((0, extra), (0, extra)))
    ones = jnp.arange(a.shape[0]) >= a.shape[0] - extra
    return a + jnp.diag(ones.astype(a.dtype))


def _at(x: Array, index: Array, axis: int = 0) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
