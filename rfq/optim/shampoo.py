"""Shampoo (Gupta et al., arXiv 1802.09568) with grafting (arXiv 2002.11803).

As in Distributed Shampoo (arXiv 2309.06497), without its blocking and merging. With
factors L, R (running averages of G G^T and G^T G), at step t = 1, 2, ...:

    M^  = EMA(G; b1) / (1 - b1^t)
    P   = (L / (1 - b2^t) + e I)^(-1/4) M^ (R / (1 - b2^t) + e I)^(-1/4)
    U   = P ||A||_F / ||P||_F,  A = M^ / (sqrt(EMA(G^2; b2) / (1 - b2^t)) + graft_eps)

The roots are recomputed every k steps, before they are used, and until the first time
U = A. A side of length 1, or longer than `max_precondition_dim`, has no factor, and the
other side's power is then -1/2; where neither has one, U = A for ever.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import linalg, matrix
from rfq.optim.adamw import WithAdamW

Array = jax.Array
Grafting = Literal["adam", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShampooConfig(WithAdamW):
    """Shampoo on the matrices.

    Attributes:
        b1: average of the gradients.
        b2: average of the factors and of the squared gradients.
        eps: e, added to the eigenvalues.
        relative_eps: added to e, in units of the factor's mean diagonal.
        precondition_frequency: k, steps between two computations of the roots.
        grafting: "adam" gives each direction the norm of Adam's; "none" uses P, and M^
            until the first root.
        max_precondition_dim: longer sides have no factor either; None gives all one.
        graft_eps: added to the root of Adam's second moment.
        mu_dtype: storage type of the momentum; None keeps it at least float32.
    """

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 0.0
    relative_eps: float = 1e-8
    precondition_frequency: int = 10
    grafting: Grafting = "adam"
    graft_eps: float = 1e-8
    mu_dtype: linalg.StorageDtype = None
    max_precondition_dim: int | None = 16_384

    def rule(self) -> matrix.Rule:
        """Return the rule: factors, their roots and a graft."""

        def init(num: int, m: int, n: int, dtype: jnp.dtype) -> ShampooStack:
            def side(size: int) -> Array | None:
                longest = self.max_precondition_dim
                if size == 1 or (longest is not None and size > longest):
                    return None
                return jnp.zeros((num, size, size), dtype)

            return ShampooStack(
                momentum=jnp.zeros((num, m, n), dtype),
                second=jnp.zeros((num, m, n), dtype),
                factor_l=side(m),
                factor_r=side(n),
                root_l=side(m),
                root_r=side(n),
                t=jnp.zeros((num,), jnp.int32),
                rooted=jnp.zeros((num,), bool),
                failures=jnp.zeros((num,), jnp.int32),
            )

        def observe(g: Array, stack: ShampooStack, t: Array) -> ShampooStack:
            return jax.vmap(lambda g, one, t: _observe(g, one, t, self))(g, stack, t)

        def refresh(stack: ShampooStack) -> ShampooStack:
            return jax.vmap(lambda one: _refresh(one, self))(stack)

        def step(g: Array, stack: ShampooStack, t: Array) -> tuple[Array, ShampooStack]:
            del g, t
            return jax.vmap(lambda one: _direction(one, self))(stack), stack

        return matrix.Rule(
            init=init,
            observe=observe,
            refresh=refresh,
            step=step,
            period=self.precondition_frequency,
            stored={"momentum": self.mu_dtype},
        )


class ShampooStack(NamedTuple):
    """Shampoo's memory of a stack.

    Attributes:
        momentum: EMA(G; b1), [N, m, n].
        second: EMA(G^2; b2), [N, m, n].
        factor_l: L, [N, m, m]; None for a side without one.
        factor_r: R, [N, n, n]; likewise.
        root_l: inverse root of L, as of the last time it was computed.
        root_r: inverse root of R, likewise.
        t: int32 [N], steps in the averages.
        rooted: bool [N], whether the roots were computed yet.
        failures: int32 [N], computations of roots that were not finite.
    """

    momentum: Array
    second: Array
    factor_l: Array | None
    factor_r: Array | None
    root_l: Array | None
    root_r: Array | None
    t: Array
    rooted: Array
    failures: Array

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return {"refresh_failures": self.failures}


def _observe(
    g: Array, one: ShampooStack, t: Array, config: ShampooConfig
) -> ShampooStack:
    def average(old: Array | None, outer: Array) -> Array | None:
        return None if old is None else config.b2 * old + (1.0 - config.b2) * outer

    return one._replace(
        momentum=config.b1 * one.momentum + (1.0 - config.b1) * g,
        second=config.b2 * one.second + (1.0 - config.b2) * g**2,
        factor_l=average(one.factor_l, linalg.dot(g, g.T, linalg.EXACT)),
        factor_r=average(one.factor_r, linalg.dot(g.T, g, linalg.EXACT)),
        t=t,
    )


def _refresh(one: ShampooStack, config: ShampooConfig) -> ShampooStack:
    num_sides = (one.factor_l is not None) + (one.factor_r is not None)
    if num_sides == 0:
        return one
    t = one.t.astype(one.second.dtype)

    def root(factor: Array | None) -> Array | None:
        if factor is None:
            return None
        factor = factor / (1.0 - config.b2**t)
        eps = config.eps + config.relative_eps * jnp.mean(jnp.diagonal(factor))
        # 1e-30 makes the zero matrix legal.
        return linalg.inverse_root(factor, 0.5 / num_sides, eps + 1e-30)

    new_l, new_r = root(one.factor_l), root(one.factor_r)
    sound = jnp.array(True)
    for new in (new_l, new_r):
        if new is not None:
            sound &= jnp.all(jnp.isfinite(new))

    def keep(new: Array | None, old: Array | None) -> Array | None:
        return None if new is None or old is None else jnp.where(sound, new, old)

    return one._replace(
        root_l=keep(new_l, one.root_l),
        root_r=keep(new_r, one.root_r),
        rooted=one.rooted | sound,
        failures=one.failures + ~sound,
    )


def _direction(one: ShampooStack, config: ShampooConfig) -> Array:
    t = one.t.astype(one.second.dtype)
    momentum = one.momentum / (1.0 - config.b1**t)
    p = momentum
    if one.root_l is not None:
        p = linalg.dot(one.root_l, p, linalg.EXACT)
    if one.root_r is not None:
        p = linalg.dot(p, one.root_r, linalg.EXACT)
    if config.grafting == "none":
        return jnp.where(one.rooted, p, momentum)
    adam = momentum / (jnp.sqrt(one.second / (1.0 - config.b2**t)) + config.graft_eps)
    p = p * (jnp.linalg.norm(adam) / (jnp.linalg.norm(p) + 1e-16))
    return jnp.where(one.rooted, p, adam)
