"""KL-SOAP (Lin et al., arXiv 2509.03378): Adam in the eigenbasis that KL estimates.

Bases, factors and eigenvalues are KL-Shampoo's (`rfq.optim.kl_factors`), but the
eigenvalues only serve to estimate the factors; the update is Adam's, without bias
correction, on the rotated gradient H = Q_L^T G Q_R:

    M~ <- b1 M~ + (1 - b1) H,  V <- b2 V + (1 - b2) H^2
    U   = Q_L [M~ / (sqrt(V) + eps)] Q_R^T

A refresh rotates M~ into the new basis and leaves V as it is. The first call changes no
parameter.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import eigenbasis, kl_factors, linalg, matrix
from rfq.optim.kl_factors import KLConfig, KLFactors

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSoapConfig(KLConfig):
    """KL-SOAP on the matrices; `KLConfig` explains the other fields.

    Attributes:
        factor_b2: average of the factors and eigenvalues; None is b2.
    """

    factor_b2: float | None = None

    @property
    def factor_average(self) -> float:
        """The b2 of the factors and eigenvalues."""
        return self.b2 if self.factor_b2 is None else self.factor_b2

    def rule(self) -> matrix.Rule:
        """Return the rule: Adam in the eigenbases of KL's factors."""

        def init(num: int, m: int, n: int, dtype: jnp.dtype) -> KLSoapStack:
            return KLSoapStack(
                jnp.zeros((num, m, n), dtype),
                jnp.zeros((num, m, n), dtype),
                kl_factors.zeros(num, m, n, dtype, self),
            )

        def first(g: Array) -> KLSoapStack:
            kl = jax.vmap(lambda one: kl_factors.first(one, self))(g)
            return KLSoapStack(jnp.zeros_like(g), jnp.zeros_like(g), kl)

        def step(g: Array, stack: KLSoapStack, t: Array):
            del t
            return jax.vmap(lambda g, one: _step(g, one, self))(g, stack)

        def refresh(stack: KLSoapStack) -> KLSoapStack:
            factors, by = eigenbasis.refresh(stack.kl.factors, self.decomposition)
            return stack._replace(
                momentum=eigenbasis.rotate(stack.momentum, by),
                kl=stack.kl._replace(factors=factors),
            )

        return matrix.Rule(
            init=init, first=first, step=step, refresh=refresh, **self.lifting
        )


class KLSoapStack(NamedTuple):
    """KL-SOAP's memory of a stack, all in the eigenbasis.

    Attributes:
        momentum: M~, [N, m, n].
        second: V, [N, m, n].
        kl: bases, eigenvalues and rotated factors.
    """

    momentum: Array
    second: Array
    kl: KLFactors

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return kl_factors.numbers(self.kl)


def _step(
    g: Array, one: KLSoapStack, config: KLSoapConfig
) -> tuple[Array, KLSoapStack]:
    precision = linalg.PRECISIONS[config.precision]
    h = eigenbasis.project(g, one.kl.factors, precision)
    momentum = config.b1 * one.momentum + (1.0 - config.b1) * h
    second = config.b2 * one.second + (1.0 - config.b2) * h**2
    adam = momentum / (jnp.sqrt(second) + config.eps)
    direction = eigenbasis.back(adam, one.kl.factors, precision)
    kl = kl_factors.update(h, one.kl, config)
    direction = linalg.normalize_rms(direction, config.rms_target)
    return direction, KLSoapStack(momentum, second, kl)
