"""Factorizations as small programs of matrix products, for compilers that unroll.

A TPU's compiler expands Cholesky, triangular solves and Householder QR into programs
that grow with the matrix: minutes of compiling and tens of megabytes at 3,072. Here the
same algorithms run panel by panel in loops: one small program for every size. It has as
few products as possible, because each takes that compiler seconds, and all of them
state full precision.

Every function takes one matrix; `jax.vmap` batches the products.
"""

import jax
import jax.numpy as jnp

from rfq.types import Array

# Columns of a panel; within one, a loop goes column by column.
PANEL = 128


def cholesky(a: Array) -> Array:
    """Return the lower L with A = L L^T, not finite where A is not definite.

    Args:
        a: symmetric [n, n]; its lower triangle is read.
    """
    return _factor_and_solve(a, jnp.zeros((0, a.shape[0]), a.dtype))[0]


def cholesky_qr(x: Array) -> tuple[Array, Array]:
    """Return X L^-T and L, for the Cholesky factor L of X^T X = L L^T."""
    lower, q = _factor_and_solve(_dot(x.T, x), x)
    return q, lower


def _factor_and_solve(a: Array, x: Array) -> tuple[Array, Array]:
    """Return L of A = L L^T [n, n] and Q = X L^-T of X [m, n].

    Left-looking by panels J: with the columns before J done,

        [P; S] = [A; X][:, J] - [L; Q] L[J, :]^T,  L[J, J] = chol(P[J]),
        [L; Q][:, J] = [P; S] L[J, J]^-T, below J.
    """
    n, width = a.shape[0], min(PANEL, a.shape[0])
    extra = -n % width
    size = n + extra
    # Continued to whole panels by ones on the diagonal.
    ones = jnp.diag((jnp.arange(size) >= n).astype(a.dtype))
    source = jnp.concatenate(
        [
            jnp.pad(a, ((0, extra), (0, extra))) + ones,
            jnp.pad(x, ((0, 0), (0, extra))),
        ]
    )
    rows = jnp.arange(source.shape[0])

    def panel(index: Array, done: Array) -> Array:
        start = index * width
        block = jax.lax.dynamic_slice_in_dim(done, start, width)
        columns = jax.lax.dynamic_slice_in_dim(source, start, width, axis=1)
        columns = columns - _dot(done, block.T)
        corner, inverse = _small_cholesky(
            jax.lax.dynamic_slice_in_dim(columns, start, width)
        )
        solved = jnp.where(
            (rows >= start + width)[:, None], _dot(columns, inverse), 0.0
        )
        solved = jax.lax.dynamic_update_slice_in_dim(solved, corner, start, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(done, solved, start, axis=1)

    done = jax.lax.fori_loop(0, size // width, panel, jnp.zeros_like(source))
    return done[:n, :n], done[size:, :n]


def _small_cholesky(a: Array) -> tuple[Array, Array]:
    """Return L and L^-T of a small A, one column a step and without products.

    Below A stands the identity, of which the same steps make I L^-T.
    """
    size = a.shape[0]
    rows = jnp.arange(2 * size)

    def column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, done = carry
        x = jax.lax.dynamic_index_in_dim(rest, j, axis=1, keepdims=False)
        pivot = jnp.sum(jnp.where(rows == j, x, 0.0))
        x = jnp.where(rows >= j, x / jnp.sqrt(pivot), 0.0)
        done = jax.lax.dynamic_update_index_in_dim(done, x, j, axis=1)
        return rest - x[:, None] * x[None, :size], done

    both = jnp.concatenate([a, jnp.eye(size, dtype=a.dtype)])
    _, done = jax.lax.fori_loop(0, size, column, (both, jnp.zeros_like(both)))
    return done[:size], done[size:]


def qr(a: Array) -> tuple[Array, Array]:
    """Return Q [m, k] and R [k, n] of A [m, n], k = min(m, n), by Householder.

    The reflections of a panel are gathered as H = I - V T V^T (Schreiber and Van Loan,
    1989), which one product applies to R^T and to Q, from the right: H^T R and Q H.
    """
    m, n = a.shape
    k = min(m, n)
    width = min(PANEL, k)
    steps = -(-k // width)
    # Columns of zeros are reflected by nothing, and stay.
    columns = max(steps * width, n)
    both = jnp.concatenate(
        [jnp.pad(a, ((0, 0), (0, columns - n))).T, jnp.eye(m, dtype=a.dtype)]
    )

    def panel(index: Array, both: Array) -> Array:
        start = index * width
        v, t = _reflectors(jax.lax.dynamic_slice_in_dim(both, start, width).T, start, k)
        return both - _dot(_dot(both, v), _dot(t, v.T))

    both = jax.lax.fori_loop(0, steps, panel, both)
    return both[columns:, :k], jnp.triu(both[:n, :k].T)


def _reflectors(panel: Array, start: Array, last: int) -> tuple[Array, Array]:
    """Return V [m, width] and T of a panel's reflections, without products.

    Column j is made zero below row start + j, by v = x + sign(x_p) |x| e_p of length 1.
    A column that is zero there already is left alone, as in LAPACK. T is upper
    triangular; its column j is -2 T V^T v above the diagonal and 2 on it.
    """
    rows, width = jnp.arange(panel.shape[0]), panel.shape[1]
    columns = jnp.arange(width)

    def column(j: Array, carry: tuple[Array, Array, Array]):
        panel, vectors, t = carry
        pivot = start + j
        x = jax.lax.dynamic_index_in_dim(panel, j, axis=1, keepdims=False)
        x = jnp.where(rows >= pivot, x, 0.0)
        due = jnp.any((rows > pivot) & (x != 0.0)) & (pivot < last)
        # Scaled, so that squares neither overflow nor vanish.
        scale = jnp.max(jnp.abs(x))
        unit = x / jnp.where(scale > 0.0, scale, 1.0)
        head = jnp.sum(jnp.where(rows == pivot, unit, 0.0))
        sign = jnp.where(head < 0.0, -1.0, 1.0)
        v = unit + sign * jnp.sqrt(jnp.sum(unit * unit)) * (rows == pivot)
        norm = jnp.sqrt(jnp.sum(v * v))
        v = jnp.where(due, v / jnp.where(norm > 0.0, norm, 1.0), 0.0)
        against = jnp.sum(vectors * v[:, None], axis=0)
        new = 2.0 * (columns == j) - 2.0 * jnp.sum(t * against[None, :], axis=1)
        panel = panel - 2.0 * v[:, None] * jnp.sum(v[:, None] * panel, axis=0)[None, :]
        return (
            panel,
            jax.lax.dynamic_update_index_in_dim(vectors, v, j, axis=1),
            jax.lax.dynamic_update_index_in_dim(t, new, j, axis=1),
        )

    empty = jnp.zeros((width, width), panel.dtype)
    carry = (panel, jnp.zeros_like(panel), empty)
    _, vectors, t = jax.lax.fori_loop(0, width, column, carry)
    return vectors, t


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
