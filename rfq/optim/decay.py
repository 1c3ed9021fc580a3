"""From a direction to an update: learning rate, decoupled decay, minus sign."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim.axes import tree_map

Array = jax.Array
Order = Literal["pre", "post"]


class DecayState(NamedTuple):
    """Calls so far, the argument of the schedule."""

    count: Array


def apply_rate_and_decay(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.Params,
    order: Order,
    mask: optax.Params,
    factors: optax.Params,
) -> optax.GradientTransformationExtraArgs:
    """Turn directions U into updates: learning rate a, decoupled decay, minus sign.

    "pre": -a U - a wd W. "post": -a U (1 - a wd) - a wd W. A leaf's a is the learning
    rate times its factor; its wd is that of the tree `weight_decay`, or 0 where `mask`
    is False. Where the extra argument `active` (booleans that broadcast
    against the leaves) is False the update is zero. The schedule counts every call,
    also those in which nothing is active.

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

        def leaf(
            u: Array, p: Array, decays: bool, decay: float, factor: float, alive: Array
        ) -> Array:
            a = jnp.asarray(rate if factor == 1.0 else factor * rate, u.dtype)
            shrink = jnp.where(decays, a * decay, 0.0).astype(u.dtype)
            kept = 1.0 - shrink if order == "post" else 1.0
            step = -a * kept * u - shrink * p.astype(u.dtype)
            return jnp.where(alive, step, 0.0).astype(p.dtype)

        trees = mask, weight_decay, factors, active
        updates = tree_map(leaf, updates, params, *trees)
        return updates, DecayState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


class AroundState(NamedTuple):
    """State of a tail, and the values that anchored leaves started with."""

    tail: DecayState
    anchors: optax.Params


def around_start(
    tail: optax.GradientTransformationExtraArgs, held: optax.Params | None
) -> optax.GradientTransformationExtraArgs:
    """Let a tail's decay pull the leaves that are held towards their first values.

    The tail sees W - W_0 of these leaves and W of the others. `held` is a tree of
    booleans; with None the tail is returned as it is.
    """
    if held is None:
        return tail

    def init(params: optax.Params) -> AroundState:
        first = tree_map(lambda p, h: jnp.copy(p) if h else None, params, held)
        return AroundState(tail.init(params), first)

    def update(updates, state: AroundState, params=None, *, active):
        moved = tree_map(
            lambda p, first: p if first is None else p - first, params, state.anchors
        )
        updates, inner = tail.update(updates, state.tail, moved, active=active)
        return updates, AroundState(inner, state.anchors)

    return optax.GradientTransformationExtraArgs(init, update)
