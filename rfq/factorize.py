"""Factorizations that are safe to batch inside a compiled program.

XLA's CPU backend runs a batched LAPACK call by scheduling its matrices on the thread
pool and blocking a thread of the same pool until they are done. Two such calls at once
on a machine of two cores wait for each other for ever (seen with jaxlib 0.10.2 in the
refresh of KL-Shampoo, whose two sides are independent). A call of one matrix runs in
place and cannot block, so on CPU a batch is a loop; elsewhere it stays a batch.

A TPU's compiler unrolls what it expands, so that a TPU gets the rolled programs of
`rfq.rolled`, and Jacobi's rotations for eigenvectors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rfq import rolled
from rfq.types import Array


def per_matrix(
    factorize: Callable[[Array], Any], on_tpu: Callable[[Array], Any] | None = None
) -> Callable[[Array], Any]:
    """Wrap a function of one matrix so that `jax.vmap` loops over matrices on CPU.

    Args:
        factorize: the function, by the platform's library.
        on_tpu: what computes the same on a TPU; None is `factorize`.
    """
    there = factorize if on_tpu is None else on_tpu

    @jax.custom_batching.custom_vmap
    def one(a: Array) -> Any:
        if on_tpu is None:
            return factorize(a)
        return jax.lax.platform_dependent(a, tpu=there, default=factorize)

    @one.def_vmap
    def batched(axis_size: int, in_batched: list[bool], a: Array) -> tuple[Any, Any]:
        del axis_size, in_batched  # The only argument, hence batched.
        result = jax.lax.platform_dependent(
            a,
            cpu=lambda a: jax.lax.map(one, a),
            tpu=jax.vmap(there),
            default=jax.vmap(factorize),
        )
        return result, jax.tree.map(lambda _: True, result)

    return one


def _eigh(a: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(a, symmetrize_input=False))


def _eigh_by_rotations(a: Array) -> tuple[Array, Array]:
    """Compute `_eigh` by Jacobi's rotations, which XLA has as one loop."""
    vectors, values = jax.lax.linalg.eigh(
        a,
        symmetrize_input=False,
        implementation=jax.lax.linalg.EighImplementation.JACOBI,
    )
    return values, vectors


def _cholesky_qr(x: Array) -> tuple[Array, Array]:
    """Return X L^-T and L, for the Cholesky factor L of X^T X = L L^T."""
    lower = cholesky(jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST))
    q = jax.lax.linalg.triangular_solve(
        lower, x, left_side=False, lower=True, transpose_a=True
    )
    return q, lower


# Functions of one matrix [m, n]; vmap them over a batch.
qr = per_matrix(lambda a: tuple(jnp.linalg.qr(a)), rolled.qr)
eigh = per_matrix(_eigh, _eigh_by_rotations)
svd = per_matrix(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
singular_values = per_matrix(lambda a: jnp.linalg.svd(a, compute_uv=False))
cholesky = per_matrix(
    lambda a: jax.lax.linalg.cholesky(a, symmetrize_input=False), rolled.cholesky
)
cholesky_qr = per_matrix(_cholesky_qr, rolled.cholesky_qr)
