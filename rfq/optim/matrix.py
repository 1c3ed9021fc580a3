"""Matrix optimizers: a rule for one stack of matrices, lifted to a parameter tree.

All matrices of one shape, from all leaves (`rfq.optim.axes` says which those are), make
one stack `[N, m, n]` with m <= n, see `rfq.optim.stacks`. An optimizer is a `Rule`:
functions of stacks that know nothing of trees, devices, bad gradients or when to
refresh. `scale_by_rule` does all of that once.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from rfq.optim import axes as axes_lib
from rfq.optim.axes import Axes
from rfq.optim.deal import Placement, deal
from rfq.optim.stacks import layout, spread, together

Array = jax.Array

# A squared gradient norm above max_float / HEADROOM counts as not finite: the factors
# multiply it by squared inverse roots, which are capped near 4000**2.
HEADROOM = 1e8

# Scopes of branches that few steps take, by which `rfq.costs` knows them: the first
# gradient, a refresh, and in it the repair of what a faster decomposition failed at.
FIRST, REFRESH, REPAIR = "first_gradient", "refresh", "repair"


class Inner(Protocol):
    """The memory of a rule about a stack: a NamedTuple of arrays [N, ...]."""

    def diagnostics(self) -> Mapping[str, Array]:
        """Return per-matrix numbers [N], named as in `AGGREGATES`."""
        ...


InnerT = TypeVar("InnerT", bound=Inner)


class Stack(NamedTuple):
    """State of all matrices of one shape.

    Attributes:
        age: [N] 1 + finite gradients seen so far; 0 marks padding, so that a stack may
            be cut short or continued with zeros for another number of devices.
        nonfinite: [N] gradients thrown away.
        update_rms: [N] root mean square of the last direction.
        inner: the optimizer's own arrays.
    """

    age: Array
    nonfinite: Array
    update_rms: Array
    inner: Inner


class MatrixState(NamedTuple):
    """State of a matrix optimizer.

    Attributes:
        count: int32, calls so far.
        active: per leaf, bool [batch..., 1...]: False where the last call must change
            nothing (first call of KL-Shampoo and SOAP, gradient not finite).
        stacks: "mxn" -> `Stack`.
    """

    count: Array
    active: optax.Params
    stacks: dict[str, Stack]


class Rule(NamedTuple, Generic[InnerT]):
    """A matrix optimizer as functions of one stack; g is [N, m, n] with m <= n.

    One call runs: `first` on matrices that see their first gradient (and nothing else
    on those); then `observe`, `step`, and every `period` steps `refresh`: after `step`,
    or between `observe` and `step` if there is an `observe`.

    Attributes:
        init: (N, m, n, dtype) -> inner.
        step: (g, inner, t) -> (direction, inner); t [N] is the 1-based step.
        first: g -> inner, or None when the first gradient is used like any other.
        observe: (g, inner, t) -> inner, or None.
        refresh: inner -> inner, or None.
        period: steps between refreshes.
        stagger: refresh 1/period of the stack every step instead.
        stored: field of inner (or of a record in it) -> type to keep it in between
            calls; fields that are not named keep the type that `init` gave them.
        scale: (fan_in, fan_out) -> factor on the direction of a leaf.
    """

    init: Callable[[int, int, int, jnp.dtype], InnerT]
    step: Callable[[Array, InnerT, Array], tuple[Array, InnerT]]
    first: Callable[[Array], InnerT] | None = None
    observe: Callable[[Array, InnerT, Array], InnerT] | None = None
    refresh: Callable[[InnerT], InnerT] | None = None
    period: int = 1
    stagger: bool = False
    stored: Mapping[str, str | None] = MappingProxyType({})
    scale: Callable[[int, int], float] = lambda fan_in, fan_out: 1.0


def scale_by_rule(
    rule: Rule,
    *,
    axes: Axes,
    placement: Placement = None,
) -> optax.GradientTransformation:
    """Lift a rule to a parameter tree in which every leaf holds matrices.

    Args:
        rule: the optimizer.
        axes: see `rfq.optim.axes.resolve`.
        placement: where the parameters live, one sharding for all or a tree of them.
            The stacks are then dealt to all devices of the mesh along N, padded to a
            multiple of them, see `rfq.optim.deal`. None is for one device.

    Raises:
        InputError: a leaf has no matrix axes, or is cut so that they cannot be dealt.
    """

    def init(params: optax.Params) -> MatrixState:
        groups, states = layout(axes_lib.resolve(axes, params)), {}
        for name, group in groups.items():
            dealt = deal(group, params, placement)
            num = group.num if dealt is None else dealt.num
            stack = Stack(
                age=(jnp.arange(num) < group.num).astype(jnp.int32),
                nonfinite=jnp.zeros((num,), jnp.int32),
                update_rms=jnp.zeros((num,), jnp.float32),
                inner=_stored_as(
                    rule.init(num, group.m, group.n, group.dtype), rule.stored
                ),
            )
            states[name] = stack if dealt is None else dealt.constrain(stack)
        none = {name: jnp.zeros((g.num,), bool) for name, g in groups.items()}
        active = spread(params, groups, none)
        return MatrixState(jnp.zeros((), jnp.int32), active, states)

    def update(updates, state: MatrixState, params=None):
        del params
        groups = layout(axes_lib.resolve(axes, updates))
        leaves, treedef = jax.tree.flatten(updates)
        states, active, directions = {}, {}, list(leaves)
        for name, group in groups.items():
            dealt = deal(group, updates, placement)
            run = together if dealt is None else dealt.run
            ours, active[name], states[name] = run(
                functools.partial(_call, rule),
                group,
                [leaves[member.index] for member in group.members],
                state.stacks[name],
                state.count,
            )
            for member, direction in zip(group.members, ours, strict=True):
                scale = rule.scale(math.prod(member.rows), math.prod(member.cols))
                directions[member.index] = scale * direction
        count = optax.safe_increment(state.count)
        state = MatrixState(count, spread(updates, groups, active), states)
        return jax.tree.unflatten(treedef, directions), state

    return optax.GradientTransformation(init, update)


def _call(rule: Rule, g: Array, stack: Stack, count: Array):
    """Call a rule once on one stack and return (direction, active, stack)."""
    norm2 = jnp.sum(g * g, axis=(1, 2))
    finite = jnp.isfinite(norm2 * HEADROOM) & (stack.age > 0)
    g = jnp.where(finite[:, None, None], g, 0.0)
    narrow = {field: dtype for field, dtype in rule.stored.items() if dtype}
    inner = _stored_as(stack.inner, dict.fromkeys(narrow, g.dtype))
    first = rule.first
    if first is None:
        active, t = finite, stack.age
        step_index = count + 1
    else:
        fresh = finite & (stack.age == 1)
        with jax.named_scope(FIRST):
            inner = jax.lax.cond(
                jnp.any(fresh),
                lambda inner: _select(fresh, first(g), inner),
                lambda inner: inner,
                inner,
            )
        active, t = finite & (stack.age > 1), stack.age - 1
        step_index = count
    new = inner
    if rule.observe is not None:
        new = rule.observe(g, new, t)
        new = _refresh(rule, new, step_index)
    direction, new = rule.step(g, new, t)
    direction = jnp.where(active[:, None, None], direction, 0.0)
    inner = _select(active, new, inner)
    if rule.observe is None:
        inner = _refresh(rule, inner, step_index)
    rms = jnp.sqrt(jnp.mean(direction**2, axis=(1, 2)))
    return (
        direction,
        active,
        Stack(
            age=stack.age + finite,
            nonfinite=stack.nonfinite + (~finite & (stack.age > 0)),
            update_rms=rms.astype(jnp.float32),
            inner=_stored_as(inner, narrow),
        ),
    )


def _refresh(rule: Rule, inner: Inner, step_index: Array) -> Inner:
    """Run `rule.refresh` when it is due; the cond stays outside any vmap."""
    refresh, phase = rule.refresh, step_index % rule.period
    if refresh is None:
        return inner
    if not rule.stagger:
        due = (step_index > 0) & (phase == 0)
        with jax.named_scope(REFRESH):
            return jax.lax.cond(due, refresh, lambda inner: inner, inner)

    num = jax.tree.leaves(inner)[0].shape[0]
    slice_size = -(-num // rule.period)
    rows = phase * slice_size + jnp.arange(slice_size)

    def refresh_slice(inner: Inner) -> Inner:
        # The last slice may be short: rows past the end are read twice, never written.
        part = refresh(jax.tree.map(lambda x: x.at[rows].get(mode="clip"), inner))
        return jax.tree.map(
            lambda x, new: x.at[rows].set(new, mode="drop"), inner, part
        )

    due = (step_index > 0) & (rows[0] < num)
    return jax.lax.cond(due, refresh_slice, lambda inner: inner, inner)


def _stored_as(inner: Inner, dtypes: Mapping[str, str | jnp.dtype | None]) -> Inner:
    """Cast the named fields of a state."""

    def cast(path, x: Array) -> Array:
        dtype = dtypes.get(path[-1].name)
        return x if dtype is None else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, inner)


def _select(keep: Array, new: Inner, old: Inner) -> Inner:
    """Choose, per matrix, `new` where keep [N] is True, else `old`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(keep.reshape((-1, *(1,) * (a.ndim - 1))), a, b)

    return jax.tree.map(pick, new, old)


def is_state(node) -> bool:
    """Return True at the state of a matrix optimizer, for walks over a state."""
    return isinstance(node, MatrixState)


# How the per-matrix numbers of `diagnostics` are summarized: (values, where) -> scalar.
AGGREGATES: Mapping[str, Callable[[Array, Array], Array]] = {
    "update_rms": lambda x, real: jnp.sqrt(jnp.mean(x**2, where=real)),
    "nonfinite_skips": lambda x, real: jnp.sum(x, where=real),
    "refresh_failures": lambda x, real: jnp.sum(x, where=real),
    "clamped_fraction": lambda x, real: jnp.mean(x, where=real),
    "eigenvalue_min": lambda x, real: jnp.min(x, where=real, initial=jnp.inf),
    "eigenvalue_max": lambda x, real: jnp.max(x, where=real, initial=0.0),
    "basis_error": lambda x, real: jnp.max(x, where=real, initial=0.0),
}


def _bare(tree):
    """Take arrays out of the boxes in which Flax NNX holds an optimizer's state."""
    return jax.tree.map(
        lambda node: jax.tree.leaves(node)[0], tree, is_leaf=axes_lib.is_variable
    )


def diagnostics(opt_state: optax.OptState) -> dict[str, Array]:
    """Summarise an optimizer state in a few float32 scalars, for logging.

    The state may be anything that contains one, a `flax.nnx.Optimizer` for instance.

    The numbers are over all matrices: `update_rms` (root mean square of the last
    directions, before the learning rate), `nonfinite_skips` (gradients thrown away so
    far) and, where the optimizer has them, `clamped_fraction` (of inverse-root
    eigenvalues), `eigenvalue_min`, `eigenvalue_max`, `basis_error` (max |Q^T Q - I|)
    and `refresh_failures` (so far).

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.eye(4, 3)}
        >>> optimizer = optim.muon(1e-3)
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> sorted(optim.diagnostics(state))
        ['nonfinite_skips', 'update_rms']
    """
    collected: dict[str, list[tuple[Array, Array]]] = {}
    for state in jax.tree.leaves(opt_state, is_leaf=is_state):
        if not is_state(state):
            continue
        for stack in _bare(state.stacks).values():
            numbers = {
                "update_rms": stack.update_rms,
                "nonfinite_skips": stack.nonfinite,
                **stack.inner.diagnostics(),
            }
            real = stack.age > 0
            for name, values in numbers.items():
                collected.setdefault(name, []).append(
                    (values.astype(jnp.float32), real)
                )
    return {
        name: AGGREGATES[name](*map(jnp.concatenate, zip(*parts, strict=True)))
        for name, parts in collected.items()
    }
