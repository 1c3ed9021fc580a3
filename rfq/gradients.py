"""The gradient of a batch, a microbatch at a time, and its norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rfq.types import Array, Batch, Params


def accumulated(
    objective: Callable[[Params, Batch], tuple[Array, dict[str, Array]]],
    params: Params,
    batch: Batch,
    num_microbatches: int,
) -> tuple[dict[str, Array], Params]:
    """Compute what a batch's objective reports and its gradient, by microbatches.

    Microbatch i has the rows i, i + A, i + 2A, ... of the batch, so that each device
    takes them from its own rows whatever the mesh. Sums are float32 and live where the
    parameters do.
    """

    def of(part: Batch) -> tuple[dict[str, Array], Params]:
        gradient = jax.value_and_grad(objective, has_aux=True)
        (_, values), grads = gradient(params, part)
        return values, grads

    if num_microbatches == 1:
        return of(batch)
    parts = batch.reshape(-1, num_microbatches, batch.shape[1]).swapaxes(0, 1)

    def add(sums: tuple[dict[str, Array], Params], part: Batch):
        return jax.tree.map(jnp.add, sums, of(part)), None

    _, values = jax.eval_shape(objective, params, parts[0])
    zeros = (
        {name: jnp.float32(0) for name in values},
        jax.tree.map(jnp.zeros_like, params),
    )
    sums, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda total: total / num_microbatches, sums)


def global_norm(grads: Params) -> Array:
    """Compute the norm of all numbers of a tree as of one vector."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
