"""From a direction to an optimizer: clip, partition, weight decay, schedule, sign.

A *direction* is an optax transform that turns gradients into what should be subtracted
at learning rate 1: `scale_by_kl_shampoo`, or any of optax's. Nothing else is required
of it. What all optimizers share is added here, once: leaves are routed to a direction,
gradients that are not finite are thrown away, rates and decay are applied.

A direction may say in its state, field `active` (booleans that broadcast against the
leaves), where a call must change nothing, as the first call of KL-Shampoo does. It then
guards itself against gradients that are not finite; any other is guarded by `guarded`.
"""

import dataclasses
import operator
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.errors import InputError
from rfq.optim import axes as axes_lib
from rfq.optim import decay as decay_lib
from rfq.optim import matrix, schedule
from rfq.optim.axes import Axes, tree_map

Array = jax.Array
Mask = optax.Params | Callable[[optax.Params], optax.Params] | None


class Directions(NamedTuple):
    """The directions of an optimizer for the two kinds of leaves."""

    matrix: optax.GradientTransformation
    other: optax.GradientTransformation


_FRACTION = (lambda x: (x >= 0) & (x < 1), "in [0, 1)")
_POSITIVE = (lambda x: x > 0, "> 0")
_NOT_NEGATIVE = (lambda x: x >= 0, ">= 0")

# The numbers that a field accepts, by its name in any config.
_RANGES: Mapping[str, tuple[Callable, str]] = {
    "adam_b1": _FRACTION,
    "adam_b2": _FRACTION,
    "adam_eps": _POSITIVE,
    "b1": _FRACTION,
    "b2": _FRACTION,
    "damping": _NOT_NEGATIVE,
    "eps": _NOT_NEGATIVE,
    "factor_b2": _FRACTION,
    "graft_eps": _POSITIVE,
    "init_factor": _POSITIVE,
    "learning_rate": _NOT_NEGATIVE,
    "max_clamp": _POSITIVE,
    "max_precondition_dim": _NOT_NEGATIVE,
    "other_learning_rate": _NOT_NEGATIVE,
    "precondition_frequency": (lambda x: x >= 1, ">= 1"),
    "relative_eps": _NOT_NEGATIVE,
    "rms_target": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The fields that every optimizer has.

    Attributes:
        learning_rate: peak rate a.
        weight_decay: decoupled decay, multiplied with the rate.
        decay: "pre" decays before the update, W (1 - a wd) - a U, as optax and
            PyTorch's AdamW do; "post" after it, (W - a U)(1 - a wd), as the authors of
            KL-Shampoo and SOAP do. They differ by a^2 wd U.
        rates: pattern of paths -> factor on the rate a of the leaves that it fits, in
            the update and in the decay: {"w_q": 10.0}. The first pattern that fits
            decides, see `rfq.optim.axes_by_path`; other leaves have the factor 1.
        anchors: pattern of paths -> decay b of the leaves that it fits, towards the
            value W_0 that they have when the optimizer is initialized, in place of
            `weight_decay` towards 0: W (1 - a b) + a b W_0 - a U for "pre". A copy of
            these leaves is kept in the state. {"w_v": 1.0, "w_o": 1.0} holds W_V and
            W_O near where they start.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    decay: decay_lib.Order = "pre"
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    anchors: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field.name, field.type, getattr(self, field.name))
        for name, number in (("rates", "factors"), ("anchors", "decays")):
            value = getattr(self, name)
            fits = isinstance(value, Mapping) and all(
                isinstance(each, int | float) and each >= 0 for each in value.values()
            )
            accepted = f"a mapping from patterns to {number} >= 0, as {{'w_q': 10.0}}"
            require(fits, name, value, accepted)

    @property
    def peaks(self) -> tuple[float, float]:
        """Peak rates of (matrix, other) leaves."""
        return self.learning_rate, self.learning_rate

    def directions(self, axes: Axes, placement: matrix.Placement) -> Directions:
        """Return the two directions; `axes` covers at least the matrix leaves."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixConfig(OptimizerConfig):
    """The fields of every optimizer that treats matrices and other leaves differently.

    Attributes:
        other_learning_rate: peak rate of the other leaves; None is `learning_rate`.
    """

    other_learning_rate: float | None = None

    @property
    def peaks(self) -> tuple[float, float]:
        """Peak rates of (matrix, other) leaves."""
        if self.other_learning_rate is None:
            return self.learning_rate, self.learning_rate
        return self.learning_rate, self.other_learning_rate

    def rule(self) -> matrix.Rule:
        """Return the rule for a stack of matrices."""
        raise NotImplementedError

    def other(self) -> optax.GradientTransformation:
        """Return the direction of the other leaves."""
        raise NotImplementedError

    def directions(self, axes: Axes, placement: matrix.Placement) -> Directions:
        """See `OptimizerConfig.directions`."""
        rule = matrix.scale_by_rule(self.rule(), axes=axes, placement=placement)
        return Directions(rule, self.other())


def require(holds: bool | Array, field: str, value: object, accepted: str) -> None:
    """Raise an InputError that names the field of an optimizer unless `holds`.

    A number that is only known when the program runs is not checked.
    """
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise InputError(f"optimizer.{field}={value!r} must be {accepted}")


def _check(name: str, kind: object, value: object) -> None:
    """Check one field of a config by its type and its name."""
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    options = typing.get_args(kind) if union else (kind,)
    words = [
        word
        for option in options
        if typing.get_origin(option) is Literal
        for word in typing.get_args(option)
    ]
    if type(None) in options:
        words.append(None)
    if isinstance(value, str | None) and value in words:
        return
    if name not in _RANGES:
        require(not words, name, value, f"one of {', '.join(map(repr, words))}")
        return
    holds, accepted = _RANGES[name]
    accepted = f"None or {accepted}" if None in words else accepted
    number = not isinstance(value, str | bool | None)
    require(number, name, value, f"a number {accepted}")
    if int in options and isinstance(value, jax.Array):
        raise InputError(
            f"optimizer.{name} decides what is compiled and must be a plain integer; "
            "name it in the static_args of optax.inject_hyperparams"
        )
    require(holds(value), name, value, accepted)


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
    """Build the optimizer of an experiment.

    Args:
        config: a row of `rfq.optim.OPTIMIZERS`.
        schedule_config: shape of the learning rate; the peaks are the config's.
        num_steps: length of the run.
        axes: which leaves are matrices, see `rfq.optim.axes.resolve`.
        decay_mask: tree of booleans (or a function of the parameters that makes one):
            the leaves that weight decay shrinks; None decays all.
        clip_norm: largest global norm of the gradients, None for no clipping.
        placement: where the parameters live, see `rfq.optim.matrix.scale_by_rule`.
    """
    peak, other_peak = config.peaks
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
    """Chain clip and, by kind of leaf, direction and tail.

    Leaves that are no floating-point numbers are left alone, as holes are (see
    `rfq.optim.axes`).
    """

    def transform(tree: optax.Params) -> optax.GradientTransformation:
        leaves = axes_lib.resolve(axes, tree)
        treedef = jax.tree.structure(tree)

        def spread(values: list) -> optax.Params:
            return jax.tree.unflatten(treedef, values)

        rows = spread([leaf.axes for leaf in leaves])
        labels = spread(["matrix" if leaf.axes else "other" for leaf in leaves])
        names = [leaf.path for leaf in leaves]
        factors = spread(axes_lib.match(config.rates, names, "rates", 1.0))
        pulls = axes_lib.match(config.anchors, names, "anchors", None)
        anchored = [pull is not None for pull in pulls]
        strengths = [config.weight_decay if p is None else p for p in pulls]
        decays = map(operator.or_, _decays(mask, tree), anchored)
        trees = spread(strengths), config.decay, spread(list(decays)), factors
        held = spread(anchored) if config.anchors else None
        directions = config.directions(rows, placement)

        def tail(
            rate: optax.ScalarOrSchedule,
        ) -> optax.GradientTransformationExtraArgs:
            return decay_lib.around_start(
                decay_lib.apply_rate_and_decay(rate, *trees), held
            )

        branches = {
            name: with_tail(direction, tail(rate))
            for name, direction, rate in (
                ("matrix", directions.matrix, learning_rate),
                ("other", directions.other, other_learning_rate),
            )
        }
        return optax.chain(
            optax.identity() if clip_norm is None else clip_finite_norm(clip_norm),
            partition(branches, labels),
        )

    def init(params: optax.Params) -> optax.OptState:
        params = axes_lib.floating(params)
        if axes is None and (said := axes_lib.unspoken(axes_lib.resolve(None, params))):
            warnings.warn(f"rfq.optim: {said}", UserWarning, stacklevel=2)
        return transform(params).init(params)

    def update(updates, state, params=None):
        updates = axes_lib.floating(updates)
        if params is not None:
            params = tree_map(lambda _, p: p, updates, params)
        return transform(updates).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _decays(mask: Mask, tree: optax.Params) -> list[bool]:
    if mask is None:
        return [True] * len(jax.tree.leaves(tree))
    return axes_lib.at_leaves(tree, mask, "mask")


def partition(
    branches: Mapping[str, optax.GradientTransformation], labels: optax.Params
) -> optax.GradientTransformation:
    """Send each leaf to the branch that its label names.

    This is `optax.partition`, with the same state, for trees that can be called too:
    optax takes an Equinox module for a function.
    """

    def masked(tree: optax.Params, name: str) -> optax.Params:
        return tree_map(
            lambda leaf, label: leaf if label == name else optax.MaskedNode(),
            tree,
            labels,
        )

    def init(params: optax.Params) -> optax.OptState:
        return optax.transforms.PartitionState(
            {
                name: optax.MaskedState(branch.init(masked(params, name)))
                for name, branch in branches.items()
            }
        )

    def update(updates, state, params=None):
        out, states = updates, {}
        for name, branch in branches.items():
            directed, inner = branch.update(
                masked(updates, name),
                state.inner_states[name].inner_state,
                None if params is None else masked(params, name),
            )
            states[name] = optax.MaskedState(inner)
            out = tree_map(
                lambda label, new, old, name=name: new if label == name else old,
                labels,
                directed,
                out,
            )
        return out, optax.transforms.PartitionState(states)

    return optax.GradientTransformation(init, update)


def clip_finite_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients so that their global norm is at most `max_norm`.

    This is `optax.clip_by_global_norm` with a norm that leaves out the leaves that hold
    a NaN or an infinity. Otherwise one bad layer would turn every gradient into NaN or
    zero before the directions' own guards can throw away only the bad one.
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


class TailState(NamedTuple):
    """States of a direction and of what turns it into an update."""

    direction: optax.OptState
    tail: decay_lib.DecayState | decay_lib.AroundState


def with_tail(
    direction: optax.GradientTransformation,
    tail: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformation:
    """Chain the two, handing the direction's `active` to the tail."""
    direction = guarded(direction, Guarded)

    def init(params: optax.Params) -> TailState:
        return TailState(direction.init(params), tail.init(params))

    def update(updates, state: TailState, params=None):
        updates, inner = direction.update(updates, state.direction, params)
        updates, outer = tail.update(updates, state.tail, params, active=inner.active)
        return updates, TailState(inner, outer)

    return optax.GradientTransformation(init, update)


class Guarded(NamedTuple):
    """State of a guarded direction.

    Attributes:
        inner: the direction's own state.
        active: bool per leaf, False where the last gradient was not finite.
        nonfinite: int32 per leaf, gradients thrown away.
    """

    inner: optax.OptState
    active: optax.Params
    nonfinite: optax.Params


def guarded(
    direction: optax.GradientTransformation, kind: type
) -> optax.GradientTransformation:
    """Let a leaf sit out where its gradient, or its square, is not finite.

    Such a leaf has the direction 0, and whatever the direction remembers in trees like
    the parameters stays as it is for that leaf; numbers that all leaves share, such as
    a count of steps, go on. Gradients and moments are at least float32. A direction
    that has `active` in its state is left as it is.

    Args:
        direction: any optax transform.
        kind: makes the state of (inner, active, nonfinite); `Guarded` or another
            NamedTuple with these, of which only the first may have another name.
    """

    def init(params: optax.Params) -> optax.OptState:
        inner = direction.init(jax.tree.map(_at_least_float32, params))
        if hasattr(inner, "active"):
            return inner
        return kind(
            inner,
            jax.tree.map(lambda _: jnp.zeros((), bool), params),
            jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
        )

    def update(updates, state, params=None):
        if not isinstance(state, kind):
            return direction.update(updates, state, params)
        old, _, nonfinite = state
        updates = jax.tree.map(_at_least_float32, updates)
        finite = jax.tree.map(lambda g: jnp.isfinite(jnp.sum(g * g)), updates)
        structure = jax.tree.structure(updates)

        def like_updates(node: object) -> bool:
            return jax.tree.structure(node) == structure

        def pick(new: optax.Params, old: optax.Params) -> optax.Params:
            if not like_updates(new):
                return new
            return jax.tree.map(jnp.where, finite, new, old)

        directions, new = direction.update(updates, old, params)
        new = jax.tree.map(pick, new, old, is_leaf=like_updates)
        directions = pick(directions, jax.tree.map(jnp.zeros_like, updates))
        nonfinite = jax.tree.map(lambda n, ok: n + ~ok, nonfinite, finite)
        return directions, kind(new, finite, nonfinite)

    return optax.GradientTransformation(init, update)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
