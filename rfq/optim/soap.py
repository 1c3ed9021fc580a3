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
import optax

from rfq.optim import build, eigenbasis, linalg, matrix
from rfq.optim.adamw import MatrixConfig
from rfq.optim.eigenbasis import Factors

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoapConfig(MatrixConfig):
    """SOAP on the matrices.

    Attributes:
        b1: average of the rotated gradients.
        b2: average of their squares.
        factor_b2: b, the average of the factors; None is b2.
        eps: added to the root of the second moment, before bias correction.
        precondition_frequency: k, steps between two refreshes of the bases.
        max_precond_dim: longer sides are not rotated; None rotates all.
        bias_correction: the factor before Q_L in U; the reference's `correct_bias`.
        rms_target: rescale every direction to this RMS, before bias correction (the
            reference's `normalize_grads` is 1); None does not.
        decomposition: of a refresh, see `rfq.optim.eigenbasis.Decomposition`.
        stagger: refresh 1/k of the matrices every step instead of all every k steps.
        precision: of the large products; refreshes are always exact.
        mu_dtype: storage type of the momentum; None keeps it at least float32.
        basis_dtype: storage type of the bases, likewise.
    """

    b1: float = 0.95
    b2: float = 0.95
    factor_b2: float | None = None
    eps: float = 1e-8
    precondition_frequency: int = 10
    max_precond_dim: int | None = 10_000
    bias_correction: bool = True
    rms_target: float | None = None
    decomposition: eigenbasis.Decomposition = "auto"
    stagger: bool = False
    precision: linalg.PrecisionName = "high"
    mu_dtype: str | None = None
    basis_dtype: str | None = None

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "b1", "b2")
        if self.factor_b2 is not None:
            build.require_fraction(self, "factor_b2")
        build.require(self.eps >= 0, "eps", self.eps, ">= 0")
        side, rms = self.max_precond_dim, self.rms_target
        build.require(
            side is None or side >= 0, "max_precond_dim", side, "None or >= 0"
        )
        build.require(rms is None or rms > 0, "rms_target", rms, "None or > 0")
        eigenbasis.check(
            self.precondition_frequency,
            self.decomposition,
            self.precision,
            self.mu_dtype,
            self.basis_dtype,
        )

    @property
    def factor_average(self) -> float:
        """b, the average of the factors."""
        return self.b2 if self.factor_b2 is None else self.factor_b2

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_soap(self, axes=axes, placement=placement),
            self.other_direction(),
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

    def basis(self) -> tuple[Array | None, Array | None]:
        """Q_L and Q_R; None for a side that is not rotated."""
        return self.factors.basis_l, self.factors.basis_r

    def with_basis(self, basis_l: Array | None, basis_r: Array | None) -> "SoapStack":
        """The same state in other bases; V, as at a refresh, is left as it is."""
        factors, by = eigenbasis.change(self.factors, basis_l, basis_r)
        return self._replace(
            momentum=eigenbasis.rotate(self.momentum, by), factors=factors
        )

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


def scale_by_soap(
    config: SoapConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """SOAP's direction U, bias-corrected; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_soap(optim.SoapConfig()),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """
    side = config.max_precond_dim

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> SoapStack:
        zero = jnp.zeros((num, m, n), dtype)
        return SoapStack(zero, zero, eigenbasis.zeros(num, m, n, dtype, max_side=side))

    def first(g: Array) -> SoapStack:
        new = 1.0 - config.factor_average
        factors = jax.vmap(
            lambda one: eigenbasis.from_gradient(one, new, new, max_side=side)
        )(g)
        return SoapStack(jnp.zeros_like(g), jnp.zeros_like(g), factors)

    def step(g: Array, stack: SoapStack, t: Array) -> tuple[Array, SoapStack]:
        return jax.vmap(lambda g, one, t: _step(g, one, t, config))(g, stack, t)

    def refresh(stack: SoapStack) -> SoapStack:
        return _refresh(stack, config.decomposition)

    return matrix.scale_by_rule(
        matrix.Rule(
            init=init,
            first=first,
            step=step,
            refresh=refresh,
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


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = SoapConfig.b1,
    b2: float = SoapConfig.b2,
    factor_b2: float | None = SoapConfig.factor_b2,
    eps: float = SoapConfig.eps,
    precondition_frequency: int = SoapConfig.precondition_frequency,
    max_precond_dim: int | None = SoapConfig.max_precond_dim,
    bias_correction: bool = SoapConfig.bias_correction,
    rms_target: float | None = SoapConfig.rms_target,
    decomposition: eigenbasis.Decomposition = SoapConfig.decomposition,
    stagger: bool = SoapConfig.stagger,
    precision: linalg.PrecisionName = SoapConfig.precision,
    mu_dtype: jax.typing.DTypeLike | None = None,
    basis_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = SoapConfig.weight_decay,
    decay: build.Order = SoapConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = SoapConfig.adam_b1,
    adam_b2: float = SoapConfig.adam_b2,
    adam_eps: float = SoapConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """SOAP on matrices, AdamW on the others; the fields are `SoapConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `placement` says where the parameters live, see
    `rfq.optim.matrix.scale_by_rule`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.soap(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    config = SoapConfig(
        b1=b1,
        b2=b2,
        factor_b2=factor_b2,
        eps=eps,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        bias_correction=bias_correction,
        rms_target=rms_target,
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
