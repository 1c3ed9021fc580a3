"""KL-Shampoo as its authors compute it, line by line (`rfq.optim.kl_shampoo`).

M and S stay in the parameters' coordinates, products are exact and refreshes are by
Householder QR.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq import factorize
from rfq.optim import eigenbasis, kl_factors, linalg, matrix
from rfq.optim.kl_factors import KLFactors
from rfq.optim.kl_shampoo import KLShampooConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig(KLShampooConfig):
    """KL-Shampoo in the reference's form."""

    def rule(self) -> matrix.Rule:
        def init(num, m, n, dtype):
            momentum = jnp.zeros((num, m, n), dtype)
            return ReferenceStack(momentum, kl_factors.zeros(num, m, n, dtype, self))

        def first(g):
            kl = jax.vmap(lambda one: _first(one, self))(g)
            return ReferenceStack(jnp.zeros_like(g), kl)

        def step(g, stack, t):
            del t
            return jax.vmap(lambda g, one: _step(g, one, self))(g, stack)

        return matrix.Rule(
            init=init, first=first, step=step, refresh=_refresh, **self.lifting
        )


class ReferenceStack(NamedTuple):
    """M, and S_L and S_R as the factors of `kl`, in the parameters' coordinates."""

    momentum: jax.Array
    kl: KLFactors

    def diagnostics(self):
        return kl_factors.numbers(self.kl)


def _first(g, config):
    m, n = g.shape
    new = 1.0 - config.b2
    kl = kl_factors.first(g, config)
    factors = kl.factors._replace(
        factor_l=new / n * linalg.dot(g, g.T, linalg.EXACT),
        factor_r=new / m * linalg.dot(g.T, g, linalg.EXACT),
    )
    return kl._replace(factors=factors)


def _step(g, one, config):
    m, n = g.shape
    kl, factors = one.kl, one.kl.factors

    momentum = config.b1 * one.momentum + (1.0 - config.b1) * g
    rotated = eigenbasis.project(momentum, factors, linalg.EXACT)
    whitened = kl_factors.whiten(rotated, kl, config.eps)
    direction = eigenbasis.back(whitened, factors, linalg.EXACT)

    for_l = eigenbasis.project(g, factors._replace(basis_l=None), linalg.EXACT)
    for_r = eigenbasis.project(g, factors._replace(basis_r=None), linalg.EXACT)
    updated = eigenbasis.accumulate(
        factors,
        for_l * kl.root_r[None, :],
        for_r * kl.root_l[:, None],
        config.b2,
        (1.0 - config.b2) / n,
        (1.0 - config.b2) / m,
        linalg.EXACT,
    )
    h = eigenbasis.project(g, factors, linalg.EXACT)
    kl = kl_factors.update_roots(h, kl._replace(factors=updated), config)
    direction = linalg.normalize_rms(direction, config.rms_target)
    return direction, ReferenceStack(momentum, kl)


def _refresh(stack):
    """Q <- QR(S Q).Q; the eigenvalues are neither permuted nor estimated anew."""

    def iterate(factor, basis):
        new = factorize.qr(linalg.dot(factor, basis, linalg.EXACT))[0]
        return jnp.where(jnp.all(jnp.isfinite(new)), new, basis)

    factors = stack.kl.factors
    factors = factors._replace(
        basis_l=jax.vmap(iterate)(factors.factor_l, factors.basis_l),
        basis_r=jax.vmap(iterate)(factors.factor_r, factors.basis_r),
    )
    return stack._replace(kl=stack.kl._replace(factors=factors))
