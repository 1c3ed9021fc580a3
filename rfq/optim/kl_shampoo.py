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

`mode="reference"` is that, line by line. `mode="fast"` is the same algorithm with M and
S kept in the eigenbasis (`rfq.optim.eigenbasis`), which saves the products that rotate
them, and a decomposition that batches.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, eigenbasis, kl_factors, linalg, matrix
from rfq.optim.kl_factors import KLConfig, KLFactors

Array = jax.Array
Mode = Literal["reference", "fast"]
MODES = ("reference", "fast")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLShampooConfig(KLConfig):
    """KL-Shampoo on the matrices; the other fields are explained in `KLConfig`.

    Attributes:
        mode: "fast", momentum and factors in the eigenbasis; "reference", the authors'
            algorithm step by step, with Householder QR and exact products.
    """

    mode: Mode = "fast"

    def __post_init__(self):
        super().__post_init__()
        build.require(self.mode in MODES, "mode", self.mode, f"in {MODES}")
        build.require(
            self.mode == "fast" or self.decomposition != "cholesky",
            "decomposition",
            self.decomposition,
            "'auto' or 'householder' when optimizer.mode='reference'",
        )

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_kl_shampoo(self, axes=axes, placement=placement),
            self.other_direction(),
        )


class ReferenceStack(NamedTuple):
    """Memory of a stack in "reference" mode: M and S in the parameters' coordinates.

    Attributes:
        momentum: M, [N, m, n].
        kl: bases, eigenvalues and, as factor_l and factor_r, S_L and S_R.
    """

    momentum: Array
    kl: KLFactors

    def basis(self) -> tuple[Array | None, Array | None]:
        """Q_L and Q_R."""
        return self.kl.factors.basis_l, self.kl.factors.basis_r

    def with_basis(self, basis_l: Array, basis_r: Array) -> "ReferenceStack":
        """The same state with other bases."""
        factors = self.kl.factors._replace(basis_l=basis_l, basis_r=basis_r)
        return self._replace(kl=self.kl._replace(factors=factors))

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return kl_factors.numbers(self.kl)


class RotatedStack(NamedTuple):
    """Memory of a stack in "fast" mode: M and S in the eigenbasis.

    Attributes:
        momentum: Q_L^T M Q_R, [N, m, n].
        kl: bases, eigenvalues and the rotated factors.
    """

    momentum: Array
    kl: KLFactors

    def basis(self) -> tuple[Array | None, Array | None]:
        """Q_L and Q_R."""
        return self.kl.factors.basis_l, self.kl.factors.basis_r

    def with_basis(self, basis_l: Array, basis_r: Array) -> "RotatedStack":
        """The same state, re-expressed in other bases."""
        factors, by = eigenbasis.change(self.kl.factors, basis_l, basis_r)
        return RotatedStack(
            eigenbasis.rotate(self.momentum, by), self.kl._replace(factors=factors)
        )

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return kl_factors.numbers(self.kl)


def scale_by_kl_shampoo(
    config: KLShampooConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """KL-Shampoo's direction U; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_kl_shampoo(optim.KLShampooConfig(b1=0.95)),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """
    reference = config.mode == "reference"
    stack_type = ReferenceStack if reference else RotatedStack
    one_first = _reference_first if reference else kl_factors.first
    one_step = _reference_step if reference else _fast_step

    def init(num: int, m: int, n: int, dtype: jnp.dtype):
        momentum = jnp.zeros((num, m, n), dtype)
        return stack_type(momentum, kl_factors.zeros(num, m, n, dtype))

    def first(g: Array):
        kl = jax.vmap(lambda one: one_first(one, config))(g)
        return stack_type(jnp.zeros_like(g), kl)

    def fast_refresh(stack: RotatedStack) -> RotatedStack:
        factors, by = eigenbasis.refresh(stack.kl.factors, config.decomposition)
        return RotatedStack(
            eigenbasis.rotate(stack.momentum, by), stack.kl._replace(factors=factors)
        )

    def step(g: Array, stack, t: Array):
        del t
        return jax.vmap(lambda g, one: one_step(g, one, config))(g, stack)

    return matrix.scale_by_rule(
        matrix.Rule(
            init=init,
            first=first,
            step=step,
            refresh=_reference_refresh if reference else fast_refresh,
            period=config.precondition_frequency,
            stagger=config.stagger,
            stored={
                "momentum": config.mu_dtype,
                "basis_l": config.basis_dtype,
                "basis_r": config.basis_dtype,
            },
        ),
        axes=axes,
        placement=placement,
        leaf_scale=matrix.unscaled,
    )


def _fast_step(
    g: Array, one: RotatedStack, config: KLShampooConfig
) -> tuple[Array, RotatedStack]:
    precision = linalg.PRECISIONS[config.precision]
    h = eigenbasis.project(g, one.kl.factors, precision)
    momentum = config.b1 * one.momentum + (1.0 - config.b1) * h
    whitened = kl_factors.whiten(momentum, one.kl, config.eps)
    direction = eigenbasis.back(whitened, one.kl.factors, precision)
    kl = kl_factors.update(h, one.kl, config)
    direction = linalg.normalize_rms(direction, config.rms_target)
    return direction, RotatedStack(momentum, kl)


def _reference_first(g: Array, config: KLShampooConfig) -> KLFactors:
    m, n = g.shape
    new = 1.0 - config.b2
    kl = kl_factors.first(g, config)
    factors = kl.factors._replace(
        factor_l=new / n * linalg.dot(g, g.T, linalg.EXACT),
        factor_r=new / m * linalg.dot(g.T, g, linalg.EXACT),
    )
    return kl._replace(factors=factors)


def _reference_step(
    g: Array, one: ReferenceStack, config: KLShampooConfig
) -> tuple[Array, ReferenceStack]:
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


def _reference_refresh(stack: ReferenceStack) -> ReferenceStack:
    """Q <- QR(S Q).Q; the eigenvalues are neither permuted nor estimated anew."""

    def iterate(factor: Array, basis: Array) -> Array:
        new = linalg.householder_q(linalg.dot(factor, basis, linalg.EXACT))
        return jnp.where(jnp.all(jnp.isfinite(new)), new, basis)

    factors = stack.kl.factors
    factors = factors._replace(
        basis_l=jax.vmap(iterate)(factors.factor_l, factors.basis_l),
        basis_r=jax.vmap(iterate)(factors.factor_r, factors.basis_r),
    )
    return stack._replace(kl=stack.kl._replace(factors=factors))


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
    decomposition: eigenbasis.Decomposition = KLShampooConfig.decomposition,
    stagger: bool = KLShampooConfig.stagger,
    precision: linalg.PrecisionName = KLShampooConfig.precision,
    mu_dtype: jax.typing.DTypeLike | None = None,
    basis_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = KLShampooConfig.weight_decay,
    decay: build.Order = KLShampooConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = KLShampooConfig.adam_b1,
    adam_b2: float = KLShampooConfig.adam_b2,
    adam_eps: float = KLShampooConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """KL-Shampoo on matrices, AdamW on the others; the fields are `KLConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `placement` says where the parameters live, see
    `rfq.optim.matrix.scale_by_rule`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.kl_shampoo(1e-3, precondition_frequency=10)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
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
        decomposition=decomposition,
        stagger=stagger,
        precision=precision,
        mu_dtype=build.dtype_name(mu_dtype),
        basis_dtype=build.dtype_name(basis_dtype),
        weight_decay=weight_decay,
        decay=decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
    )
    return build.assemble(
        config,
        learning_rate,
        learning_rate if other_learning_rate is None else other_learning_rate,
        axes=axes,
        mask=mask,
        clip_norm=None,
        placement=placement,
    )
