"""From a direction to an optimizer: clip, partition, weight decay, schedule, sign.

A *direction* is a `scale_by_*` transform: it turns gradients into what should be
subtracted, at learning rate 1. It may say in its state, field `active`, that (part of)
a call must change nothing. Everything that all optimizers share is added here, once.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from rfq.errors import InputError
from rfq.optim import matrix, schedule
from rfq.optim.matrix import Axes

Array = jax.Array
Order = Literal["pre", "post"]
Mask = optax.Params | Callable[[optax.Params], optax.Params] | None


class Directions(NamedTuple):
    """What an optimizer does to the two kinds of leaves."""

    matrix: optax.GradientTransformation
    other: optax.GradientTransformation


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What every optimizer has.

    Attributes:
        learning_rate: peak rate a.
        weight_decay: decoupled decay, multiplied with the rate.
        decay: "pre" decays before the update, W (1 - a wd) - a U, as optax and
            PyTorch's AdamW do; "post" after it, (W - a U)(1 - a wd), as the authors of
            KL-Shampoo and SOAP do. They differ by a^2 wd U.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    decay: Order = "pre"

    def __post_init__(self):
        require(self.learning_rate >= 0, "learning_rate", self.learning_rate, ">= 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, ">= 0")
        require(self.decay in ("pre", "post"), "decay", self.decay, "'pre' or 'post'")

    @property
    def rates(self) -> tuple[float, float]:
        """Peak rates of (matrix, other) leaves."""
        return self.learning_rate, self.learning_rate

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> Directions:
        """The two directions; `axes` covers exactly the matrix leaves."""
        raise NotImplementedError


def require(holds: bool, field: str, value: object, accepted: str) -> None:
    """Raises an InputError that names the field of an optimizer unless `holds`."""
    if not holds:
        raise InputError(f"optimizer.{field}={value!r} must be {accepted}")


def require_fraction(config: OptimizerConfig, *fields: str) -> None:
    """Requires 0 <= value < 1, the range of an averaging coefficient."""
    for field in fields:
        value = getattr(config, field)
        require(0.0 <= value < 1.0, field, value, "in [0, 1)")


def dtype_name(dtype: jax.typing.DTypeLike | None) -> str | None:
    """The name under which a config stores a type."""
    return None if dtype is None else jnp.dtype(dtype).name


def build(
    config: OptimizerConfig,
    schedule_config: schedule.ScheduleConfig,
    num_steps: int,
    *,
    axes: Axes,
    decay_mask: Mask,
    clip_norm: float | None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of an experiment.

    Args:
        config: a row of `rfq.optim.OPTIMIZERS`.
        schedule_config: shape of the learning rate; the peaks are the config's.
        num_steps: length of the run.
        axes: which leaves are matrices, see `rfq.optim.matrix.resolve`.
        decay_mask: tree of booleans (or a function of the parameters that makes one):
            the leaves that weight decay shrinks; None decays all.
        clip_norm: largest global norm of the gradients, None for no clipping.
        placement: where the parameters live, see `rfq.optim.matrix.scale_by_rule`.
    """
    peak, other_peak = config.rates
    return assemble(
        config,
        schedule.make(schedule_config, peak, num_steps),
        schedule.make(schedule_config, other_peak, num_steps),
        axes=axes,
        mask=decay_mask,
        clip_norm=clip_norm,
        placement=placement,
    )


def assemble(
    config: OptimizerConfig,
    learning_rate: optax.ScalarOrSchedule,
    other_learning_rate: optax.ScalarOrSchedule,
    *,
    axes: Axes,
    mask: Mask,
    clip_norm: float | None,
    placement: matrix.Placement,
) -> optax.GradientTransformation:
    """Chains clip and, by kind of leaf, direction and tail."""

    def transform(tree: optax.Params) -> optax.GradientTransformation:
        rows = matrix.resolve(axes, tree)
        labels = jax.tree.map(
            lambda row: "other" if row is None else "matrix",
            rows,
            is_leaf=matrix.is_axes,
        )
        decays = _resolve_mask(mask, tree)
        directions = config.directions(
            matrix.only(rows, rows), matrix.placed(placement, rows)
        )
        branches = {
            name: with_tail(
                direction,
                apply_rate_and_decay(
                    rate,
                    config.weight_decay,
                    config.decay,
                    _masked(decays, labels, name),
                ),
            )
            for name, direction, rate in (
                ("matrix", directions.matrix, learning_rate),
                ("other", directions.other, other_learning_rate),
            )
        }
        return optax.chain(
            optax.identity() if clip_norm is None else clip_finite_norm(clip_norm),
            optax.partition(branches, labels),
        )

    def init(params: optax.Params) -> optax.OptState:
        return transform(params).init(params)

    def update(updates, state, params=None):
        return transform(updates).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _resolve_mask(mask: Mask, tree: optax.Params) -> optax.Params:
    if mask is None:
        return jax.tree.map(lambda _: True, tree)
    return mask(tree) if callable(mask) else mask


def _masked(decays: optax.Params, labels: optax.Params, name: str) -> optax.Params:
    return jax.tree.map(
        lambda decay, label: decay if label == name else optax.MaskedNode(),
        decays,
        labels,
    )


def clip_finite_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients so that their global norm is at most `max_norm`.

    As `optax.clip_by_global_norm`, but leaves that hold a NaN or an infinity are left
    out of the norm: otherwise one bad layer would turn every gradient into NaN or zero
    before the directions' own guards can throw away only the bad one.
    """

    def update(updates, state, params=None):
        del params
        squares = [
            jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(updates)
        ]
        norm = jnp.sqrt(sum(jnp.where(jnp.isfinite(s), s, 0.0) for s in squares))
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


class DecayState(NamedTuple):
    """Calls so far, the argument of the schedule."""

    count: Array


class UpdateWithActive(Protocol):
    """The update of a tail: optax's, told which parts of the direction count."""

    def __call__(
        self,
        updates: optax.Updates,
        state: DecayState,
        params: optax.Params | None = None,
        *,
        active: optax.Params,
    ) -> tuple[optax.Updates, DecayState]:
        """See `optax.TransformUpdateExtraArgsFn`."""
        ...


def apply_rate_and_decay(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    order: Order,
    mask: optax.Params,
) -> optax.GradientTransformationExtraArgs:
    """Turns directions U into updates: learning rate a, decoupled decay, minus sign.

    "pre": -a U - a wd W. "post": -a U (1 - a wd) - a wd W. Where the extra argument
    `active` (booleans that broadcast against the leaves) is False the update is zero.
    The schedule counts every call, also those in which nothing is active.

    Raises:
        ValueError: decay needs `params` and the caller gave none.
    """

    def init(params: optax.Params) -> DecayState:
        del params
        return DecayState(jnp.zeros((), jnp.int32))

    def update(updates, state: DecayState, params=None, *, active):
        if params is None:
            raise ValueError(
                "weight decay needs the parameters: call update(grads, state, params)"
            )
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def leaf(u: Array, p: Array, decays: bool, alive: Array) -> Array:
            a = jnp.asarray(rate, u.dtype)
            shrink = jnp.where(decays, a * weight_decay, 0.0).astype(u.dtype)
            kept = 1.0 - shrink if order == "post" else 1.0
            step = -a * kept * u - shrink * p.astype(u.dtype)
            return jnp.where(alive, step, 0.0).astype(p.dtype)

        updates = jax.tree.map(leaf, updates, params, mask, active)
        return updates, DecayState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


class TailState(NamedTuple):
    """States of a direction and of what turns it into an update."""

    direction: optax.OptState
    tail: DecayState


def with_tail(
    direction: optax.GradientTransformation,
    tail: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformation:
    """Chains the two, handing the direction's `active` to the tail."""

    def init(params: optax.Params) -> TailState:
        return TailState(direction.init(params), tail.init(params))

    def update(updates, state: TailState, params=None):
        updates, inner = direction.update(updates, state.direction, params)
        updates, outer = tail.update(updates, state.tail, params, active=inner.active)
        return updates, TailState(inner, outer)

    return optax.GradientTransformation(init, update)
