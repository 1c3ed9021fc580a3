"""SOAP (Vyas et al., arXiv 2409.11321): Adam in Shampoo's eigenbasis.

With factors S_L, S_R (running averages of G G^T and G^T G), their slowly updated
eigenbases Q_L, Q_R, and step t = 1, 2, ... using the bases from before G_t:

    H   = Q_L^T G Q_R
    M~ <- b1 M~ + (1 - b1) H,  V <- b2 V + (1 - b2) H^2
    U   = sqrt(1 - b2^t) / (1 - b1^t) Q_L [M~ / (sqrt(V) + eps)] Q_R^T
    S_L <- b S_L + (1 - b) G G^T     (S_R alike)
    every k steps, on each side: sort the eigenvectors, and V with them, by descending
        diag(Q^T S Q); then Q <- QR(S Q).Q, which M~ follows and V does not

The first call changes no parameter: it sets S = (1 - b) G G^T and Q to its
eigenvectors. S and M are kept in the eigenbasis (`rfq.optim.eigenbasis`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import eigenbasis, linalg, matrix
from rfq.optim.eigenbasis import Factors

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoapConfig(eigenbasis.EigenbasisConfig):
    """SOAP on the matrices.

    Attributes:
        b1: average of the rotated gradients.
        b2: average of their squares.
        factor_b2: b, the average of the factors; None is b2.
        eps: added to the root of the second moment, before bias correction.
        bias_correction: the factor before Q_L in U; the reference's `correct_bias`.
    """

    b1: float = 0.95
    b2: float = 0.95
    factor_b2: float | None = None
    eps: float = 1e-8
    max_precondition_dim: int | None = 10_000  # The reference's default.
    bias_correction: bool = True

    @property
    def factor_average(self) -> float:
        """b, the average of the factors."""
        return self.b2 if self.factor_b2 is None else self.factor_b2

    def rule(self) -> matrix.Rule:
        """Return the rule: Adam in the eigenbases of Shampoo's factors."""
        side = self.max_precondition_dim

        def init(num: int, m: int, n: int, dtype: jnp.dtype) -> SoapStack:
            return SoapStack(
                jnp.zeros((num, m, n), dtype),
                jnp.zeros((num, m, n), dtype),
                eigenbasis.zeros(num, m, n, dtype, max_side=side),
            )

        def first(g: Array) -> SoapStack:
            new = 1.0 - self.factor_average
            factors = jax.vmap(
                lambda one: eigenbasis.from_gradient(one, new, new, max_side=side)
            )(g)
            return SoapStack(jnp.zeros_like(g), jnp.zeros_like(g), factors)

        def step(g: Array, stack: SoapStack, t: Array) -> tuple[Array, SoapStack]:
            return jax.vmap(lambda g, one, t: _step(g, one, t, self))(g, stack, t)

        def refresh(stack: SoapStack) -> SoapStack:
            return _refresh(stack, self.decomposition)

        return matrix.Rule(
            init=init, first=first, step=step, refresh=refresh, **self.lifting
        )


class SoapStack(NamedTuple):
    """SOAP's memory of a stack, all in the eigenbasis.

    Attributes:
        momentum: M~, [N, m, n].
        second: V, [N, m, n].
        factors: bases and rotated factors.
    """

    momentum: Array
    second: Array
    factors: Factors

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        values = [
            jnp.diagonal(factor, axis1=1, axis2=2)
            for factor in (self.factors.factor_l, self.factors.factor_r)
            if factor is not None
        ]
        if not values:
            return eigenbasis.numbers(self.factors)
        spectrum = jnp.concatenate(values, axis=1)
        return {
            **eigenbasis.numbers(self.factors),
            "eigenvalue_min": jnp.min(spectrum, axis=1),
            "eigenvalue_max": jnp.max(spectrum, axis=1),
        }


def _step(
    g: Array, one: SoapStack, t: Array, config: SoapConfig
) -> tuple[Array, SoapStack]:
    precision = linalg.PRECISIONS[config.precision]
    h = eigenbasis.project(g, one.factors, precision)
    momentum = config.b1 * one.momentum + (1.0 - config.b1) * h
    second = config.b2 * one.second + (1.0 - config.b2) * h**2
    adam = momentum / (jnp.sqrt(second) + config.eps)
    direction = eigenbasis.back(adam, one.factors, precision)
    direction = linalg.normalize_rms(direction, config.rms_target)
    if config.bias_correction:
        t = t.astype(g.dtype)
        direction *= jnp.sqrt(1.0 - config.b2**t) / (1.0 - config.b1**t)
    average = config.factor_average
    # Q_R Q_R^T = I, so that H H^T = Q_L^T G G^T Q_L; likewise on the right.
    factors = eigenbasis.accumulate(
        one.factors, h, h, average, 1.0 - average, 1.0 - average, precision
    )
    return direction, SoapStack(momentum, second, factors)


def _refresh(stack: SoapStack, decomposition: eigenbasis.Decomposition) -> SoapStack:
    order_l = eigenbasis.descending(stack.factors.factor_l)
    order_r = eigenbasis.descending(stack.factors.factor_r)

    def permute(x: Array) -> Array:
        return eigenbasis.permute_cols(eigenbasis.permute_rows(x, order_l), order_r)

    sorted_factors = eigenbasis.permute(stack.factors, order_l, order_r)
    factors, by = eigenbasis.refresh(sorted_factors, decomposition)
    return SoapStack(
        eigenbasis.rotate(permute(stack.momentum), by), permute(stack.second), factors
    )
