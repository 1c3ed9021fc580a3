"""KL-Shampoo (Lin et al., arXiv 2509.03378): Kronecker factors estimated by KL.

Symbols, for one m x n matrix: gradient G, momentum M, factors S_L (m x m) and S_R
(n x n), their eigenbases Q_L, Q_R, and s_L, s_R, the inverse square roots of the
eigenvalue estimates. Step t = 1, 2, ... uses the bases and roots from before G_t:

    M    <- b1 M + (1 - b1) G
    U     = Q_L [(Q_L^T M Q_R) * D / (1 + eps D)] Q_R^T,   D_ij = s_L,i s_R,j
    S_L  <- b2 S_L + (1 - b2)/n G Q_R diag(s_R^2) Q_R^T G^T      (S_R alike)
    H     = Q_L^T G Q_R;  d_L,i = mean_j (H_ij s_R,j)^2
    s_L  <- (b2 / s_L^2 + (1 - b2) d_L)^(-1/2), at most max(10, min(m, max_clamp))
    every k steps: Q_L <- QR(S_L Q_L).Q,  Q_R <- QR(S_R Q_R).Q

The first call changes no parameter: it sets S to (1 - b2) times the averaged outer
products of G, Q to their eigenvectors and every s to init_factor^(-1/2).

That is the authors' form, line by line (`tests/oracles/kl_reference.py` computes it).
Here M and S are kept in the eigenbasis (`rfq.optim.eigenbasis`), which saves the
products that rotate them and allows a decomposition that batches.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import eigenbasis, kl_factors, linalg, matrix
from rfq.optim.kl_factors import KLConfig, KLFactors

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLShampooConfig(KLConfig):
    """KL-Shampoo on the matrices."""

    def rule(self) -> matrix.Rule:
        """Return the rule: momentum, whitened in the eigenbases of KL's factors."""

        def init(num: int, m: int, n: int, dtype: jnp.dtype) -> KLShampooStack:
            momentum = jnp.zeros((num, m, n), dtype)
            return KLShampooStack(momentum, kl_factors.zeros(num, m, n, dtype, self))

        def first(g: Array) -> KLShampooStack:
            kl = jax.vmap(lambda one: kl_factors.first(one, self))(g)
            return KLShampooStack(jnp.zeros_like(g), kl)

        def step(g: Array, stack: KLShampooStack, t: Array):
            del t
            return jax.vmap(lambda g, one: _step(g, one, self))(g, stack)

        def refresh(stack: KLShampooStack) -> KLShampooStack:
            factors, by = eigenbasis.refresh(stack.kl.factors, self.decomposition)
            return KLShampooStack(
                eigenbasis.rotate(stack.momentum, by),
                stack.kl._replace(factors=factors),
            )

        return matrix.Rule(
            init=init, first=first, step=step, refresh=refresh, **self.lifting
        )


class KLShampooStack(NamedTuple):
    """KL-Shampoo's memory of a stack, in the eigenbasis.

    Attributes:
        momentum: Q_L^T M Q_R, [N, m, n].
        kl: bases, eigenvalues and the rotated factors.
    """

    momentum: Array
    kl: KLFactors

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return kl_factors.numbers(self.kl)


def _step(
    g: Array, one: KLShampooStack, config: KLShampooConfig
) -> tuple[Array, KLShampooStack]:
    precision = linalg.PRECISIONS[config.precision]
    h = eigenbasis.project(g, one.kl.factors, precision)
    momentum = config.b1 * one.momentum + (1.0 - config.b1) * h
    whitened = kl_factors.whiten(momentum, one.kl, config.eps)
    direction = eigenbasis.back(whitened, one.kl.factors, precision)
    kl = kl_factors.update(h, one.kl, config)
    direction = linalg.normalize_rms(direction, config.rms_target)
    return direction, KLShampooStack(momentum, kl)
