"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), also for leaves that are no matrix.

m = EMA(g; b1), v = EMA(g^2; b2),
W <- W (1 - a wd) - a (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, matrix

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(build.OptimizerConfig):
    """AdamW on every leaf.

    Attributes:
        b1: average of the gradients.
        b2: average of their squares.
        eps: added to the root of the second moment.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "b1", "b2")
        build.require(self.eps > 0, "eps", self.eps, "> 0")

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        del axes, placement
        return build.Directions(scale_by_adam(self), scale_by_adam(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixConfig(build.OptimizerConfig):
    """What every matrix optimizer has: AdamW for embeddings, gains and other leaves.

    Attributes:
        other_learning_rate: peak rate of those leaves; None is `learning_rate`.
        adam_b1: their b1.
        adam_b2: their b2.
        adam_eps: their eps.
    """

    other_learning_rate: float | None = None
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "adam_b1", "adam_b2")
        build.require(self.adam_eps > 0, "adam_eps", self.adam_eps, "> 0")
        other = self.other_learning_rate
        build.require(
            other is None or other >= 0, "other_learning_rate", other, "None or >= 0"
        )

    @property
    def rates(self) -> tuple[float, float]:
        """Peak rates of (matrix, other) leaves."""
        if self.other_learning_rate is None:
            return self.learning_rate, self.learning_rate
        return self.learning_rate, self.other_learning_rate

    def other_direction(self) -> optax.GradientTransformation:
        """AdamW's direction with this config's `adam_` fields."""
        return scale_by_adam(
            AdamWConfig(b1=self.adam_b1, b2=self.adam_b2, eps=self.adam_eps)
        )


class AdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        adam: optax's state.
        active: bool per leaf, False where the last gradient was not finite.
        nonfinite: int32 per leaf, gradients thrown away.
    """

    adam: optax.ScaleByAdamState
    active: optax.Params
    nonfinite: optax.Params


def scale_by_adam(config: AdamWConfig) -> optax.GradientTransformation:
    """Adam's direction in float32, by optax; a leaf that is not finite sits out.

    Its moments then stay as they are and its state says so; the step count, which all
    leaves share, goes on.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_adam(optim.AdamWConfig(b2=0.95)),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """
    inner = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def init(params: optax.Params) -> AdamState:
        return AdamState(
            adam=inner.init(jax.tree.map(_at_least_float32, params)),
            active=jax.tree.map(lambda _: jnp.zeros((), bool), params),
            nonfinite=jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
        )

    def update(updates, state: AdamState, params=None):
        del params
        updates = jax.tree.map(_at_least_float32, updates)
        finite = jax.tree.map(lambda g: jnp.isfinite(jnp.sum(g * g)), updates)

        def pick(new: optax.Params, old: optax.Params) -> optax.Params:
            return jax.tree.map(jnp.where, finite, new, old)

        directions, adam = inner.update(updates, state.adam)
        adam = adam._replace(
            mu=pick(adam.mu, state.adam.mu), nu=pick(adam.nu, state.adam.nu)
        )
        directions = pick(directions, jax.tree.map(jnp.zeros_like, updates))
        nonfinite = jax.tree.map(lambda n, ok: n + ~ok, state.nonfinite, finite)
        return directions, AdamState(adam, finite, nonfinite)

    return optax.GradientTransformation(init, update)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = AdamWConfig.b1,
    b2: float = AdamWConfig.b2,
    eps: float = AdamWConfig.eps,
    weight_decay: float = AdamWConfig.weight_decay,
    decay: build.Order = AdamWConfig.decay,
    mask: build.Mask = None,
) -> optax.GradientTransformation:
    """AdamW with the conventions of this package: `mask` as in `optax.adamw`.

    Differs from `optax.adamw` in its defaults (b2, weight decay) and in throwing away
    gradients that are not finite.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.adamw(1e-3, weight_decay=0.1)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    config = AdamWConfig(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, decay=decay)
    return build.assemble(
        config,
        learning_rate,
        learning_rate,
        axes=lambda params: jax.tree.map(lambda _: None, params),
        mask=mask,
        clip_norm=None,
        placement=None,
    )
