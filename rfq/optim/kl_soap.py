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
import optax

from rfq.optim import build, eigenbasis, kl_factors, linalg, matrix
from rfq.optim.kl_factors import KLConfig, KLFactors

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSoapConfig(KLConfig):
    """KL-SOAP on the matrices; the other fields are explained in `KLConfig`.

    Attributes:
        factor_b2: average of the factors and eigenvalues; None is b2.
    """

    factor_b2: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.factor_b2 is not None:
            build.require_fraction(self, "factor_b2")

    @property
    def factor_average(self) -> float:
        """The b2 of the factors and eigenvalues."""
        return self.b2 if self.factor_b2 is None else self.factor_b2

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_kl_soap(self, axes=axes, placement=placement),
            self.other_direction(),
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

    def basis(self) -> tuple[Array | None, Array | None]:
        """Q_L and Q_R."""
        return self.kl.factors.basis_l, self.kl.factors.basis_r

    def with_basis(self, basis_l: Array, basis_r: Array) -> "KLSoapStack":
        """The same state in other bases; V, as at a refresh, is left as it is."""
        factors, by = eigenbasis.change(self.kl.factors, basis_l, basis_r)
        return self._replace(
            momentum=eigenbasis.rotate(self.momentum, by),
            kl=self.kl._replace(factors=factors),
        )

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return kl_factors.numbers(self.kl)


def scale_by_kl_soap(
    config: KLSoapConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """KL-SOAP's direction U; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_kl_soap(optim.KLSoapConfig()),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> KLSoapStack:
        zero = jnp.zeros((num, m, n), dtype)
        return KLSoapStack(zero, zero, kl_factors.zeros(num, m, n, dtype))

    def first(g: Array) -> KLSoapStack:
        kl = jax.vmap(lambda one: kl_factors.first(one, config))(g)
        return KLSoapStack(jnp.zeros_like(g), jnp.zeros_like(g), kl)

    def step(g: Array, stack: KLSoapStack, t: Array):
        del t
        return jax.vmap(lambda g, one: _step(g, one, config))(g, stack)

    def refresh(stack: KLSoapStack) -> KLSoapStack:
        factors, by = eigenbasis.refresh(stack.kl.factors, config.decomposition)
        return stack._replace(
            momentum=eigenbasis.rotate(stack.momentum, by),
            kl=stack.kl._replace(factors=factors),
        )

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


def kl_soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = KLSoapConfig.b1,
    b2: float = KLSoapConfig.b2,
    factor_b2: float | None = KLSoapConfig.factor_b2,
    eps: float = KLSoapConfig.eps,
    precondition_frequency: int = KLSoapConfig.precondition_frequency,
    init_factor: float = KLSoapConfig.init_factor,
    max_clamp: float | None = KLSoapConfig.max_clamp,
    damping: float = KLSoapConfig.damping,
    rms_target: float | None = KLSoapConfig.rms_target,
    decomposition: eigenbasis.Decomposition = KLSoapConfig.decomposition,
    stagger: bool = KLSoapConfig.stagger,
    precision: linalg.PrecisionName = KLSoapConfig.precision,
    mu_dtype: jax.typing.DTypeLike | None = None,
    basis_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = KLSoapConfig.weight_decay,
    decay: build.Order = KLSoapConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = KLSoapConfig.adam_b1,
    adam_b2: float = KLSoapConfig.adam_b2,
    adam_eps: float = KLSoapConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """KL-SOAP on matrices, AdamW on the others; the fields are `KLSoapConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `placement` says where the parameters live, see
    `rfq.optim.matrix.scale_by_rule`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.kl_soap(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    config = KLSoapConfig(
        b1=b1,
        b2=b2,
        factor_b2=factor_b2,
        eps=eps,
        precondition_frequency=precondition_frequency,
        init_factor=init_factor,
        max_clamp=max_clamp,
        damping=damping,
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
