"""Factorizations that are safe to batch inside a compiled program.

XLA's CPU backend runs a batched LAPACK call by scheduling its matrices on the thread
pool and blocking a thread of the same pool until they are done. Two such calls at once
on a machine of two cores wait for each other for ever (seen with jaxlib 0.10.2 in the
refresh of KL-Shampoo, whose two sides are independent). A call of one matrix runs in
place and cannot block, so on CPU a batch is a loop; elsewhere it stays a batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rfq.types import Array


def per_matrix(factorize: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Wrap a function of one matrix so that `jax.vmap` loops over matrices on CPU."""

    @jax.custom_batching.custom_vmap
    def one(a: Array) -> Any:
        return factorize(a)

    @one.def_vmap
    def batched(axis_size: int, in_batched: list[bool], a: Array) -> tuple[Any, Any]:
        del axis_size, in_batched  # The only argument, hence batched.
        result = jax.lax.platform_dependent(
            a, cpu=lambda a: jax.lax.map(one, a), default=jax.vmap(factorize)
        )
        return result, jax.tree.map(lambda _: True, result)

    return one


# Functions of one matrix [m, n]; vmap them over a batch.
qr = per_matrix(lambda a: tuple(jnp.linalg.qr(a)))
eigh = per_matrix(lambda a: tuple(jnp.linalg.eigh(a, symmetrize_input=False)))
svd = per_matrix(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
singular_values = per_matrix(lambda a: jnp.linalg.svd(a, compute_uv=False))
cholesky = per_matrix(lambda a: jax.lax.linalg.cholesky(a, symmetrize_input=False))
