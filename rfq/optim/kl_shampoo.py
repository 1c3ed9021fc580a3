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
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, linalg, matrix
from rfq.optim.adamw import MatrixConfig

Array = jax.Array
Mode = Literal["reference"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLShampooConfig(MatrixConfig):
    """KL-Shampoo on the matrices.

    Attributes:
        b1: average of the gradients.
        b2: average of the factors and of their eigenvalues.
        eps: added to 1 / D, the root of the eigenvalues of the Kronecker product.
        precondition_frequency: k, steps between two refreshes of the bases.
        init_factor: first eigenvalue estimate. The direction grows to its stationary
            size (RMS near 1) within hundreds of steps when this is far above the RMS of
            the gradients: for short runs set it to about that RMS.
        max_clamp: cap on s, itself capped by the side: max(10, min(side, max_clamp)).
            None leaves s alone. It is not invariant to the scale of the gradients.
        damping: added to the eigenvalue updates, d_L += damping mean(s_R^2), as the
            reference's `using_damping` does with its eps; 0 turns it off.
        rms_target: rescale every direction to this RMS (the reference's
            `normalize_grads` is 1); None does not.
        mode: "reference", the authors' algorithm step by step.
    """

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    precondition_frequency: int = 10
    init_factor: float = 0.1
    max_clamp: float | None = 4000.0
    damping: float = 0.0
    rms_target: float | None = None
    mode: Mode = "reference"

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "b1", "b2")
        build.require(self.eps >= 0, "eps", self.eps, ">= 0")
        build.require(
            self.precondition_frequency >= 1,
            "precondition_frequency",
            self.precondition_frequency,
            ">= 1",
        )
        build.require(self.init_factor > 0, "init_factor", self.init_factor, "> 0")
        clamp, rms = self.max_clamp, self.rms_target
        build.require(clamp is None or clamp > 0, "max_clamp", clamp, "None or > 0")
        build.require(rms is None or rms > 0, "rms_target", rms, "None or > 0")
        build.require(self.damping >= 0, "damping", self.damping, ">= 0")
        build.require(self.mode in ("reference",), "mode", self.mode, "'reference'")

    def directions(
        self, axes: matrix.AxesTree, mesh: jax.sharding.Mesh | None
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_kl_shampoo(self, axes=axes, mesh=mesh), self.other_direction()
        )


class KLShampooStack(NamedTuple):
    """KL-Shampoo's memory of a stack, in the coordinates of the parameters.

    Attributes:
        momentum: M, [N, m, n].
        factor_l: S_L, [N, m, m].
        factor_r: S_R, [N, n, n].
        basis_l: Q_L, [N, m, m], eigenvectors in columns.
        basis_r: Q_R, [N, n, n].
        root_l: s_L, [N, m].
        root_r: s_R, [N, n].
    """

    momentum: Array
    factor_l: Array
    factor_r: Array
    basis_l: Array
    basis_r: Array
    root_l: Array
    root_r: Array

    def basis(self) -> tuple[Array, Array]:
        """Q_L and Q_R."""
        return self.basis_l, self.basis_r

    def with_basis(self, basis_l: Array, basis_r: Array) -> "KLShampooStack":
        """The same state with other bases."""
        return self._replace(
            basis_l=basis_l.astype(self.basis_l.dtype),
            basis_r=basis_r.astype(self.basis_r.dtype),
        )

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return {}


def scale_by_kl_shampoo(
    config: KLShampooConfig,
    *,
    axes: matrix.Axes = None,
    mesh: jax.sharding.Mesh | None = None,
) -> optax.GradientTransformation:
    """KL-Shampoo's direction U; every leaf must have matrix axes."""

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> KLShampooStack:
        return KLShampooStack(
            momentum=jnp.zeros((num, m, n), dtype),
            factor_l=jnp.zeros((num, m, m), dtype),
            factor_r=jnp.zeros((num, n, n), dtype),
            basis_l=jnp.zeros((num, m, m), dtype),
            basis_r=jnp.zeros((num, n, n), dtype),
            root_l=jnp.zeros((num, m), dtype),
            root_r=jnp.zeros((num, n), dtype),
        )

    def first(g: Array) -> KLShampooStack:
        return jax.vmap(lambda g: _first(g, config))(g)

    def step(g: Array, stack: KLShampooStack, t: Array):
        del t
        return jax.vmap(lambda g, one: _step(g, one, config))(g, stack)

    return matrix.scale_by_rule(
        matrix.Rule(
            init=init,
            first=first,
            step=step,
            refresh=jax.vmap(_refresh),
            period=config.precondition_frequency,
        ),
        axes=axes,
        mesh=mesh,
        leaf_scale=matrix.unscaled,
    )


def _first(g: Array, config: KLShampooConfig) -> KLShampooStack:
    m, n = g.shape
    factor_l = (1.0 - config.b2) / n * linalg.dot(g, g.T, linalg.EXACT)
    factor_r = (1.0 - config.b2) / m * linalg.dot(g.T, g, linalg.EXACT)
    return KLShampooStack(
        momentum=jnp.zeros_like(g),
        factor_l=factor_l,
        factor_r=factor_r,
        basis_l=linalg.eigenvectors(factor_l),
        basis_r=linalg.eigenvectors(factor_r),
        root_l=jnp.full((m,), config.init_factor**-0.5, g.dtype),
        root_r=jnp.full((n,), config.init_factor**-0.5, g.dtype),
    )


def _step(
    g: Array, one: KLShampooStack, config: KLShampooConfig
) -> tuple[Array, KLShampooStack]:
    m, n = g.shape
    q_l, q_r, s_l, s_r = one.basis_l, one.basis_r, one.root_l, one.root_r

    momentum = config.b1 * one.momentum + (1.0 - config.b1) * g
    d = s_l[:, None] * s_r[None, :]
    scaled = _rotate(q_l.T, momentum, q_r) * d / (1.0 + config.eps * d)
    direction = _rotate(q_l, scaled, q_r.T)

    def outer(a: Array, scale: Array) -> Array:
        a = a * scale[None, :]
        return linalg.dot(a, a.T, linalg.EXACT)

    g_r = linalg.dot(g, q_r, linalg.EXACT)
    g_l = linalg.dot(g.T, q_l, linalg.EXACT)
    h = linalg.dot(q_l.T, g_r, linalg.EXACT)
    d_l = jnp.mean((h * s_r[None, :]) ** 2, axis=1) + config.damping * jnp.mean(s_r**2)
    d_r = jnp.mean((h * s_l[:, None]) ** 2, axis=0) + config.damping * jnp.mean(s_l**2)
    return normalize(direction, config.rms_target), one._replace(
        momentum=momentum,
        factor_l=config.b2 * one.factor_l + (1.0 - config.b2) / n * outer(g_r, s_r),
        factor_r=config.b2 * one.factor_r + (1.0 - config.b2) / m * outer(g_l, s_l),
        root_l=_update_root(s_l, d_l, config),
        root_r=_update_root(s_r, d_r, config),
    )


def _rotate(left: Array, x: Array, right: Array) -> Array:
    return linalg.dot(linalg.dot(left, x, linalg.EXACT), right, linalg.EXACT)


def _update_root(root: Array, d: Array, config: KLShampooConfig) -> Array:
    """s <- (b2 / s^2 + (1 - b2) d)^(-1/2), 0 where that is not a number, clamped."""
    root = jax.lax.rsqrt(config.b2 / root**2 + (1.0 - config.b2) * d)
    root = jnp.where(jnp.isfinite(root), root, 0.0)
    return jnp.minimum(root, clamp(root.shape[0], config))


def clamp(side: int, config: KLShampooConfig) -> float:
    """The largest s that a side of this size may have."""
    if config.max_clamp is None:
        return float("inf")
    return max(10.0, min(float(side), config.max_clamp))


def normalize(direction: Array, rms_target: float | None) -> Array:
    """Rescales a direction to an RMS, if one is asked for."""
    if rms_target is None:
        return direction
    rms = jnp.sqrt(jnp.mean(direction**2))
    return direction * (rms_target / (rms + 1e-30))


def _refresh(one: KLShampooStack) -> KLShampooStack:
    """One step of orthogonal iteration on each side; the eigenvalues stay in place."""

    def iterate(factor: Array, basis: Array) -> Array:
        new = linalg.householder_q(linalg.dot(factor, basis, linalg.EXACT))
        return jnp.where(jnp.all(jnp.isfinite(new)), new, basis)

    return one._replace(
        basis_l=iterate(one.factor_l, one.basis_l),
        basis_r=iterate(one.factor_r, one.basis_r),
    )


def kl_shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = KLShampooConfig.b1,
    b2: float = KLShampooConfig.b2,
    eps: float = KLShampooConfig.eps,
    precondition_frequency: int = KLShampooConfig.precondition_frequency,
    init_factor: float = KLShampooConfig.init_factor,
    max_clamp: float | None = KLShampooConfig.max_clamp,
    damping: float = KLShampooConfig.damping,
    rms_target: float | None = KLShampooConfig.rms_target,
    mode: Mode = KLShampooConfig.mode,
    weight_decay: float = KLShampooConfig.weight_decay,
    decay: build.Order = KLShampooConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = KLShampooConfig.adam_b1,
    adam_b2: float = KLShampooConfig.adam_b2,
    adam_eps: float = KLShampooConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    mesh: jax.sharding.Mesh | None = None,
) -> optax.GradientTransformation:
    """KL-Shampoo on matrices, AdamW on the others; the fields are `KLShampooConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `mesh` deals the matrices to devices, see
    `rfq.optim.matrix.scale_by_rule`.
    """
    config = KLShampooConfig(
        b1=b1,
        b2=b2,
        eps=eps,
        precondition_frequency=precondition_frequency,
        init_factor=init_factor,
        max_clamp=max_clamp,
        damping=damping,
        rms_target=rms_target,
        mode=mode,
        weight_decay=weight_decay,
        decay=decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
    )
    other = learning_rate if other_learning_rate is None else other_learning_rate
    return build.assemble(
        config,
        learning_rate,
        other,
        axes=axes,
        mask=mask,
        clip_norm=None,
        mesh=mesh,
    )
