"""The factors that KL-Shampoo and KL-SOAP share (Lin et al., arXiv 2509.03378).

Each factor has a rotated matrix S~ (see `rfq.optim.eigenbasis`) and, per eigenvector,
s: the inverse square root of a separate running estimate of the eigenvalue. With
H = Q_L^T G Q_R,

    S~_L  <- b2 S~_L + (1 - b2)/n (H diag(s_R)) (H diag(s_R))^T     (S~_R alike)
    d_L,i  = mean_j (H_ij s_R,j)^2,  the diagonal of that increment
    s_L   <- (b2 / s_L^2 + (1 - b2) d_L)^(-1/2), at most max(10, min(m, max_clamp))

where both sides use the other's old s. Estimating eigenvalues by their own average
keeps them right while the basis is stale between refreshes. A side longer than
`max_precondition_dim` has the identity for its basis and no S~; its s are kept.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import eigenbasis, linalg

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLConfig(eigenbasis.EigenbasisConfig):
    """Fields of the optimizers that estimate their factors by KL.

    Attributes:
        b1: average of the gradients.
        b2: average of the factors and of their eigenvalues (and, in KL-SOAP, of the
            squared gradients).
        eps: added to 1 / D in KL-Shampoo, to the root of the second moment in KL-SOAP.
        init_factor: first eigenvalue estimate. KL-Shampoo's direction grows to its
            stationary size (RMS near 1) within hundreds of steps when this is far above
            the RMS of the gradients: for short runs set it to about that RMS.
        max_clamp: cap on s, itself capped by the side: max(10, min(side, max_clamp)).
            None leaves s alone. It is not invariant to the scale of the gradients.
        damping: added to the eigenvalue updates, d_L += damping mean(s_R^2), as the
            reference's `using_damping` does with its eps; 0 turns it off.
    """

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    init_factor: float = 0.1
    max_clamp: float | None = 4000.0
    damping: float = 0.0

    @property
    def factor_average(self) -> float:
        """The b2 of the factors and eigenvalues."""
        return self.b2


class KLFactors(NamedTuple):
    """Factors with their eigenvalue estimates; arrays [N, ...] in a stack.

    Attributes:
        factors: bases and factor matrices.
        root_l: s_L, [m].
        root_r: s_R, [n].
        clamped: fraction of s_L and s_R at their cap.
    """

    factors: eigenbasis.Factors
    root_l: Array
    root_r: Array
    clamped: Array


def zeros(num: int, m: int, n: int, dtype: jnp.dtype, config: KLConfig) -> KLFactors:
    """Make the state of a stack before the first gradient."""
    side = config.max_precondition_dim
    return KLFactors(
        eigenbasis.zeros(num, m, n, dtype, max_side=side),
        jnp.zeros((num, m), dtype),
        jnp.zeros((num, n), dtype),
        jnp.zeros((num,), jnp.float32),
    )


def first(g: Array, config: KLConfig) -> KLFactors:
    """Make the state of one matrix after its first gradient.

    S_L = (1 - b2)/n G G^T, S_R = (1 - b2)/m G^T G, their eigenvectors, and the same
    s = init_factor^(-1/2) for all of them.
    """
    m, n = g.shape
    new = 1.0 - config.factor_average
    return KLFactors(
        eigenbasis.from_gradient(
            g, new / n, new / m, max_side=config.max_precondition_dim
        ),
        jnp.full((m,), config.init_factor**-0.5, g.dtype),
        jnp.full((n,), config.init_factor**-0.5, g.dtype),
        jnp.zeros((), jnp.float32),
    )


def update(h: Array, kl: KLFactors, config: KLConfig) -> KLFactors:
    """Take one rotated gradient H into the rotated factors and the eigenvalues."""
    m, n = h.shape
    new = 1.0 - config.factor_average
    factors = eigenbasis.accumulate(
        kl.factors,
        h * kl.root_r[None, :],
        h * kl.root_l[:, None],
        config.factor_average,
        new / n,
        new / m,
        linalg.PRECISIONS[config.precision],
    )
    return update_roots(h, kl._replace(factors=factors), config)


def update_roots(h: Array, kl: KLFactors, config: KLConfig) -> KLFactors:
    """Take one rotated gradient H into the eigenvalues, elementwise."""

    def side(s: Array, d: Array, other: Array) -> tuple[Array, Array]:
        d = d + config.damping * jnp.mean(other**2)
        average = config.factor_average
        s = jax.lax.rsqrt(average / s**2 + (1.0 - average) * d)
        s = jnp.where(jnp.isfinite(s), s, 0.0)
        cap = _cap(s.shape[0], config.max_clamp)
        return jnp.minimum(s, cap), jnp.sum(s >= cap)

    s_l, s_r = kl.root_l, kl.root_r
    root_l, over_l = side(s_l, jnp.mean((h * s_r[None, :]) ** 2, axis=1), s_r)
    root_r, over_r = side(s_r, jnp.mean((h * s_l[:, None]) ** 2, axis=0), s_l)
    clamped = (over_l + over_r).astype(jnp.float32) / sum(h.shape)
    return kl._replace(root_l=root_l, root_r=root_r, clamped=clamped)


def whiten(x: Array, kl: KLFactors, eps: float) -> Array:
    """Compute X * D / (1 + eps D) with D_ij = s_L,i s_R,j, in the eigenbasis."""
    d = kl.root_l[:, None] * kl.root_r[None, :]
    return x * d / (1.0 + eps * d)


def numbers(kl: KLFactors) -> dict[str, Array]:
    """Return per-matrix diagnostics of a stack, see `rfq.optim.matrix.diagnostics`."""
    roots = jnp.concatenate([kl.root_l, kl.root_r], axis=1)
    known = roots > 0
    return {
        **eigenbasis.numbers(kl.factors),
        "clamped_fraction": kl.clamped,
        "eigenvalue_min": jnp.max(roots, axis=1, where=known, initial=0.0) ** -2.0,
        "eigenvalue_max": jnp.min(roots, axis=1, where=known, initial=jnp.inf) ** -2.0,
    }


def _cap(side: int, max_clamp: float | Array | None) -> float | Array:
    if isinstance(max_clamp, jax.Array):
        return jnp.maximum(10.0, jnp.minimum(side, max_clamp))
    return float("inf") if max_clamp is None else max(10.0, min(side, max_clamp))
