"""Shampoo (Gupta et al., arXiv 1802.09568) with grafting (arXiv 2002.11803).

As in Distributed Shampoo (arXiv 2309.06497), without its blocking and merging. With
factors L, R (running averages of G G^T and G^T G), at step t = 1, 2, ...:

    M^  = EMA(G; b1) / (1 - b1^t)
    P   = (L / (1 - b2^t) + e I)^(-1/4) M^ (R / (1 - b2^t) + e I)^(-1/4)
    U   = P ||A||_F / ||P||_F,  A = M^ / (sqrt(EMA(G^2; b2) / (1 - b2^t)) + graft_eps)

The roots are recomputed every k steps, before they are used, and until the first time
U = A. A side of length 1 has no factor, and the other side's power is then -1/2.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, linalg, matrix
from rfq.optim.adamw import MatrixConfig

Array = jax.Array
Grafting = Literal["adam", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShampooConfig(MatrixConfig):
    """Shampoo on the matrices.

    Attributes:
        b1: average of the gradients.
        b2: average of the factors and of the squared gradients.
        eps: e, added to the eigenvalues.
        relative_eps: added to e, in units of the factor's mean diagonal.
        precondition_frequency: k, steps between two computations of the roots.
        grafting: "adam" gives each direction the norm of Adam's; "none" uses P, and M^
            until the first root.
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
    mu_dtype: str | None = None

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "b1", "b2")
        build.require(self.eps >= 0, "eps", self.eps, ">= 0")
        build.require(self.relative_eps >= 0, "relative_eps", self.relative_eps, ">= 0")
        frequency = self.precondition_frequency
        build.require(frequency >= 1, "precondition_frequency", frequency, ">= 1")
        build.require(
            self.grafting in ("adam", "none"),
            "grafting",
            self.grafting,
            "'adam' or 'none'",
        )
        build.require(self.graft_eps > 0, "graft_eps", self.graft_eps, "> 0")
        accepted = (None, "float32", "bfloat16")
        build.require(
            self.mu_dtype in accepted, "mu_dtype", self.mu_dtype, f"in {accepted}"
        )

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_shampoo(self, axes=axes, placement=placement),
            self.other_direction(),
        )


class ShampooStack(NamedTuple):
    """Shampoo's memory of a stack.

    Attributes:
        momentum: EMA(G; b1), [N, m, n].
        second: EMA(G^2; b2), [N, m, n].
        factor_l: L, [N, m, m]; None for a side of length 1.
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


def scale_by_shampoo(
    config: ShampooConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Shampoo's direction U; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_shampoo(optim.ShampooConfig()),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> ShampooStack:
        def side(size: int) -> Array | None:
            return None if size == 1 else jnp.zeros((num, size, size), dtype)

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
        return jax.vmap(lambda g, one, t: _observe(g, one, t, config))(g, stack, t)

    def refresh(stack: ShampooStack) -> ShampooStack:
        return jax.vmap(lambda one: _refresh(one, config))(stack)

    def step(g: Array, stack: ShampooStack, t: Array) -> tuple[Array, ShampooStack]:
        del g, t
        return jax.vmap(lambda one: _direction(one, config))(stack), stack

    return matrix.scale_by_rule(
        matrix.Rule(
            init=init,
            observe=observe,
            refresh=refresh,
            step=step,
            period=config.precondition_frequency,
            stored={"momentum": config.mu_dtype},
        ),
        axes=axes,
        placement=placement,
        leaf_scale=matrix.unscaled,
    )


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


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = ShampooConfig.b1,
    b2: float = ShampooConfig.b2,
    eps: float = ShampooConfig.eps,
    relative_eps: float = ShampooConfig.relative_eps,
    precondition_frequency: int = ShampooConfig.precondition_frequency,
    grafting: Grafting = ShampooConfig.grafting,
    graft_eps: float = ShampooConfig.graft_eps,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = ShampooConfig.weight_decay,
    decay: build.Order = ShampooConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = ShampooConfig.adam_b1,
    adam_b2: float = ShampooConfig.adam_b2,
    adam_eps: float = ShampooConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Shampoo on matrices, AdamW on the others; the fields are `ShampooConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `placement` says where the parameters live, see
    `rfq.optim.matrix.scale_by_rule`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.shampoo(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    config = ShampooConfig(
        b1=b1,
        b2=b2,
        eps=eps,
        relative_eps=relative_eps,
        precondition_frequency=precondition_frequency,
        grafting=grafting,
        graft_eps=graft_eps,
        mu_dtype=build.dtype_name(mu_dtype),
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
