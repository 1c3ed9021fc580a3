"""Matrix optimizers over a parameter tree: which leaves, which axes, one stack a shape.

A leaf `[batch..., in..., out...]` (axes in any order, told by `MatrixAxes`) is a batch
of matrices. All matrices of one shape, from all leaves, are stacked into one
`[N, m, n]` array with m <= n (wide ones as they are, tall ones transposed), so that
each shape is compiled once however many layers and leaves there are, and so that whole
matrices can be dealt to devices along N.

An optimizer is a `Rule`: functions of stacks that know nothing of trees, devices, bad
gradients or when to refresh. `scale_by_rule` does all of that once.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfq.errors import InputError
from rfq.params import MatrixAxes

Array = jax.Array
AxesTree = optax.Params  # MatrixAxes | None at every leaf of the parameters.
Axes = AxesTree | Callable[[optax.Params], AxesTree] | None
# Where parameters live: one sharding for all or one at every leaf; None if unknown.
Placement = NamedSharding | optax.Params | None

# A squared gradient norm above max_float / HEADROOM counts as not finite: the factors
# multiply it by squared inverse roots, which are capped near 4000**2.
HEADROOM = 1e8


class Basis(NamedTuple):
    """Eigenvectors (columns) of the two factors of a leaf's matrices.

    Attributes:
        rows: [batch..., m, m], of the side of `in_axes`; None if it is not rotated.
        cols: [batch..., n, n], of the side of `out_axes`; likewise.
    """

    rows: Array | None
    cols: Array | None


class Inner(Protocol):
    """What a rule remembers of a stack: a NamedTuple of arrays [N, ...]."""

    def diagnostics(self) -> Mapping[str, Array]:
        """Per-matrix numbers [N], named as in `AGGREGATES`."""
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
    """

    init: Callable[[int, int, int, jnp.dtype], InnerT]
    step: Callable[[Array, InnerT, Array], tuple[Array, InnerT]]
    first: Callable[[Array], InnerT] | None = None
    observe: Callable[[Array, InnerT, Array], InnerT] | None = None
    refresh: Callable[[InnerT], InnerT] | None = None
    period: int = 1
    stagger: bool = False
    stored: Mapping[str, str | None] = MappingProxyType({})


class _Member(NamedTuple):
    """Where one leaf's matrices stand in their stack, and how to bring them there."""

    index: int
    path: str
    order: tuple[int, ...]
    batch: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.batch)

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.count)

    @property
    def transposed(self) -> bool:
        return math.prod(self.rows) > math.prod(self.cols)


class _Group(NamedTuple):
    """All matrices of one shape."""

    members: tuple[_Member, ...]
    num: int
    m: int
    n: int
    dtype: jnp.dtype


def is_axes(node) -> bool:
    """True for what stands at the leaves of an axes tree."""
    return node is None or isinstance(node, MatrixAxes)


def resolve(axes: Axes, params: optax.Params) -> AxesTree:
    """Turns an `axes` argument into a tree with MatrixAxes | None at every leaf.

    None, for plain trees: a leaf with exactly two axes is a matrix (0,) -> (1,). Never
    rely on this for stacked layers: there a stack of vectors has two axes as well.
    """
    if axes is None:
        return jax.tree.map(
            lambda p: MatrixAxes((0,), (1,)) if p.ndim == 2 else None, params
        )
    return axes(params) if callable(axes) else axes


def scale_by_rule(
    rule: Rule,
    *,
    axes: Axes,
    placement: Placement,
    leaf_scale: Callable[[int, int], float],
) -> optax.GradientTransformation:
    """Lifts a rule to a parameter tree in which every leaf holds matrices.

    Args:
        rule: the optimizer.
        axes: see `resolve`.
        placement: where the parameters live. The stacks are dealt to all devices of
            the mesh along N, padded to a multiple of them: state, step and refresh of
            a matrix live on one device. No device ever holds more than its matrices
            and its parts: where leaves are cut, gradients enter and directions leave
            by one all-to-all each, and only to copies are directions gathered.
        leaf_scale: (fan_in, fan_out) -> factor on the direction of that leaf.

    Raises:
        InputError: a leaf has no matrix axes, or is cut so that they cannot be dealt.
    """

    def init(params: optax.Params) -> MatrixState:
        layout, stacks = _layout(params, axes), {}
        for name, group in layout.items():
            deal = _deal(group, params, placement)
            num = group.num if deal is None else deal.num
            stack = Stack(
                age=(jnp.arange(num) < group.num).astype(jnp.int32),
                nonfinite=jnp.zeros((num,), jnp.int32),
                update_rms=jnp.zeros((num,), jnp.float32),
                inner=_stored_as(
                    rule.init(num, group.m, group.n, group.dtype), rule.stored
                ),
            )
            stacks[name] = stack if deal is None else deal.constrain(stack)
        none = {name: jnp.zeros((g.num,), bool) for name, g in layout.items()}
        active = _flags(params, layout, none)
        return MatrixState(jnp.zeros((), jnp.int32), active, stacks)

    def update(updates, state: MatrixState, params=None):
        del params
        layout = _layout(updates, axes)
        leaves, treedef = jax.tree.flatten(updates)
        stacks, active, directions = {}, {}, list(leaves)
        for name, group in layout.items():
            deal = _deal(group, updates, placement)
            run = _together if deal is None else deal.run
            found, active[name], stacks[name] = run(
                rule,
                group,
                [leaves[member.index] for member in group.members],
                state.stacks[name],
                state.count,
            )
            for member, direction in zip(group.members, found, strict=True):
                scale = leaf_scale(math.prod(member.rows), math.prod(member.cols))
                directions[member.index] = scale * direction
        count = optax.safe_increment(state.count)
        state = MatrixState(count, _flags(updates, layout, active), stacks)
        return jax.tree.unflatten(treedef, directions), state

    return optax.GradientTransformation(init, update)


def unscaled(fan_in: int, fan_out: int) -> float:
    """The `leaf_scale` of an optimizer whose direction needs none."""
    del fan_in, fan_out
    return 1.0


def _together(
    rule: Rule, group: _Group, leaves: list[Array], stack: Stack, count: Array
) -> tuple[list[Array], Array, Stack]:
    """One call of a rule on leaves that are whole: (directions, active, stack)."""
    parts = [
        _stacked(_ordered(leaf.astype(group.dtype), member), member)
        for leaf, member in zip(leaves, group.members, strict=True)
    ]
    g = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    direction, active, stack = _call(rule, g, stack, count)
    directions = [
        _restore(_unstacked(direction[member.slice], member), member)
        for member in group.members
    ]
    return directions, active, stack


def _call(rule: Rule, g: Array, stack: Stack, count: Array):
    """One call of a rule on one stack: (direction, active, stack)."""
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
    """Runs `rule.refresh` when it is due; the cond stays outside any vmap."""
    refresh, phase = rule.refresh, step_index % rule.period
    if refresh is None:
        return inner
    if not rule.stagger:
        due = (step_index > 0) & (phase == 0)
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
    """Casts the named fields of a state."""

    def cast(path, x: Array) -> Array:
        dtype = dtypes.get(path[-1].name)
        return x if dtype is None else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, inner)


def _select(keep: Array, new: Inner, old: Inner) -> Inner:
    """Per matrix, `new` where keep [N] is True, else `old`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(keep.reshape((-1, *(1,) * (a.ndim - 1))), a, b)

    return jax.tree.map(pick, new, old)


def _layout(tree: optax.Params, axes: Axes) -> dict[str, _Group]:
    """Groups the matrices of a tree of arrays (or shapes) by shape."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    rows = treedef.flatten_up_to(resolve(axes, tree))
    found: dict[str, list[_Member]] = {}
    for index, ((path, leaf), row) in enumerate(zip(flat, rows, strict=True)):
        name = _path_name(path)
        if not isinstance(row, MatrixAxes):
            raise InputError(
                f"parameter {name!r} of shape {leaf.shape} has no matrix axes; give "
                "them in `axes`, or use the optimizer (not its scale_by_ direction), "
                "which sends such leaves to AdamW"
            )
        ins = tuple(axis % leaf.ndim for axis in row.in_axes)
        outs = tuple(axis % leaf.ndim for axis in row.out_axes)
        if len({*ins, *outs}) != len(ins) + len(outs):
            raise InputError(f"parameter {name!r}: {row} names one axis twice")
        batch = tuple(a for a in range(leaf.ndim) if a not in (*ins, *outs))
        member = _Member(
            index=index,
            path=name,
            order=(*batch, *ins, *outs),
            batch=tuple(leaf.shape[a] for a in batch),
            rows=tuple(leaf.shape[a] for a in ins),
            cols=tuple(leaf.shape[a] for a in outs),
            start=0,
        )
        m, n = sorted((math.prod(member.rows), math.prod(member.cols)))
        found.setdefault(f"{m}x{n}", []).append(member)
    groups = {}
    for name, members in found.items():
        placed, start = [], 0
        for member in members:
            placed.append(member._replace(start=start))
            start += member.count
        m, n = (int(size) for size in name.split("x"))
        dtype = jnp.result_type(
            jnp.float32, *(flat[member.index][1].dtype for member in members)
        )
        groups[name] = _Group(tuple(placed), start, m, n, dtype)
    return groups


def _ordered(leaf: Array, member: _Member) -> Array:
    """[count, rows..., cols...] of a leaf, or of a part of it that has all matrices."""
    x = leaf.transpose(member.order)
    return x.reshape((member.count, *x.shape[len(member.batch) :]))


def _restore(x: Array, member: _Member) -> Array:
    """The inverse of `_ordered`."""
    x = x.reshape((*member.batch, *x.shape[1:]))
    inverse = sorted(range(len(member.order)), key=lambda i: member.order[i])
    return x.transpose(inverse)


def _stacked(x: Array, member: _Member) -> Array:
    """[n, rows..., cols...] -> [n, m, n] with m <= n."""
    x = x.reshape((x.shape[0], math.prod(member.rows), math.prod(member.cols)))
    return x.mT if member.transposed else x


def _unstacked(stack: Array, member: _Member) -> Array:
    """The inverse of `_stacked`."""
    x = stack.mT if member.transposed else stack
    return x.reshape((x.shape[0], *member.rows, *member.cols))


def _flags(
    tree: optax.Params, layout: dict[str, _Group], flags: Mapping[str, Array]
) -> optax.Params:
    """Spreads one boolean a matrix to leaves of shape [batch..., 1...]."""
    leaves, treedef = jax.tree.flatten(tree)
    for name, group in layout.items():
        for member in group.members:
            ones = (1,) * (len(member.rows) + len(member.cols))
            x = flags[name][member.slice]
            leaves[member.index] = _restore(x.reshape((-1, *ones)), member)
    return jax.tree.unflatten(treedef, leaves)


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# --- Dealing matrices to devices ----------------------------------------------------


class _Deal(NamedTuple):
    """How the matrices of a group travel between the parts of leaves and a stack.

    A device has a part of every matrix of a leaf that is cut along its matrix axes, and
    all of it where it has a copy. Of the stack it has `num` / devices whole matrices.

    Attributes:
        mesh: all devices.
        specs: of each member's leaf.
        cuts: of each member, by axis of [rows..., cols...], the mesh axes that cut it.
        copied: mesh axes along which devices have copies; slower than `cut`.
        cut: mesh axes along which they have parts.
        num: N, padded to a multiple of the devices.
    """

    mesh: jax.sharding.Mesh
    specs: tuple[P, ...]
    cuts: tuple[tuple[tuple[str, ...], ...], ...]
    copied: tuple[str, ...]
    cut: tuple[str, ...]
    num: int

    def constrain(self, stack: Stack) -> Stack:
        """Puts a stack where `run` wants it."""
        dealt = NamedSharding(self.mesh, P(self.mesh.axis_names))
        return jax.lax.with_sharding_constraint(stack, dealt)

    def run(
        self,
        rule: Rule,
        group: _Group,
        leaves: list[Array],
        stack: Stack,
        count: Array,
    ) -> tuple[list[Array], Array, Stack]:
        """`_together` for parts of leaves and a dealt stack."""

        def local(leaves: list[Array], stack: Stack, count: Array):
            parts = [
                _ordered(leaf.astype(group.dtype), member)
                for leaf, member in zip(leaves, group.members, strict=True)
            ]
            g = self._enter(parts, group.members)
            direction, active, stack = _call(rule, g, stack, count)
            parts = self._leave(direction, group.members, parts)
            directions = [
                _restore(part, member)
                for part, member in zip(parts, group.members, strict=True)
            ]
            active = jax.lax.all_gather(active, self.copied + self.cut, tiled=True)
            return directions, active[: group.num], stack

        dealt = P(self.mesh.axis_names)
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(list(self.specs), dealt, P()),
            out_specs=(list(self.specs), P(), dealt),
            check_vma=False,
        )(leaves, stack, count)

    def _enter(self, parts: list[Array], members: tuple[_Member, ...]) -> Array:
        """Parts of all matrices -> this device's whole ones, [num / devices, m, n]."""
        flat = [part.reshape(part.shape[0], -1) for part in parts]
        x = jnp.concatenate(flat)
        x = jnp.pad(x, ((0, self.num - x.shape[0]), (0, 0)))
        if self.copied:
            share = self.num // self._size(self.copied)
            start = jax.lax.axis_index(self.copied) * share
            x = jax.lax.dynamic_slice_in_dim(x, start, share)
        if self.cut:
            x = jax.lax.all_to_all(x, self.cut, 0, 1, tiled=True)
        made = lambda kind: self._joined(x, members[kind], kind, parts[kind])  # noqa: E731
        return self._select(made, members)

    def _leave(
        self, stack: Array, members: tuple[_Member, ...], like: list[Array]
    ) -> list[Array]:
        """The inverse of `_enter`; `like` has the shapes of the parts."""
        made = lambda kind: self._parted(stack, members[kind], kind, like[kind])  # noqa: E731
        x = self._select(made, members)
        if self.cut:
            x = jax.lax.all_to_all(x, self.cut, 1, 0, tiled=True)
        if self.copied:
            x = jax.lax.all_gather(x, self.copied, tiled=True)
        return [
            x[member.slice].reshape(part.shape)
            for member, part in zip(members, like, strict=True)
        ]

    def _joined(self, x: Array, member: _Member, kind: int, part: Array) -> Array:
        """[n, devices of `cut` * part] -> [n, m, n]."""
        sizes = [self.mesh.shape[axis] for axis in self.cut]
        x = x.reshape((x.shape[0], *sizes, *part.shape[1:]))
        return _stacked(x.transpose(self._order(kind)), member)

    def _parted(self, x: Array, member: _Member, kind: int, part: Array) -> Array:
        """The inverse of `_joined`."""
        sizes = []
        for axes, size in zip(self.cuts[kind], part.shape[1:], strict=True):
            sizes += [*(self.mesh.shape[axis] for axis in axes), size]
        x = _unstacked(x, member).reshape((x.shape[0], *sizes))
        return x.transpose(np.argsort(self._order(kind))).reshape(x.shape[0], -1)

    def _order(self, kind: int) -> tuple[int, ...]:
        """From [n, cut..., part...] to [n, (its mesh axes, part) by axis]."""
        order = [0]
        for index, axes in enumerate(self.cuts[kind]):
            order += [1 + self.cut.index(axis) for axis in axes]
            order.append(1 + len(self.cut) + index)
        return tuple(order)

    def _select(
        self, made: Callable[[int], Array], members: tuple[_Member, ...]
    ) -> Array:
        """For each of this device's matrices, what was made of it in its own way.

        `made` is called once for each way in which parts make up a matrix, with the
        first member that has it.
        """
        ways = [
            (m.rows, m.cols, cut) for m, cut in zip(members, self.cuts, strict=True)
        ]
        which = np.zeros(self.num, np.int32)
        for member, way in zip(members, ways, strict=True):
            which[member.slice] = ways.index(way)
        share = self.num // self.mesh.size
        start = jax.lax.axis_index(self.copied + self.cut) * share
        mine = jax.lax.dynamic_slice_in_dim(jnp.asarray(which), start, share)
        x = made(0)
        for kind in sorted({*which.tolist()} - {0}):
            is_kind = (mine == kind).reshape((-1, *(1,) * (x.ndim - 1)))
            x = jnp.where(is_kind, made(kind), x)
        return x

    def _size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)


def _deal(group: _Group, tree: optax.Params, placement: Placement) -> _Deal | None:
    """How a group of a tree that lives there is dealt, None for one program."""
    if placement is None:
        return None
    leaves = jax.tree.leaves(tree)
    if isinstance(placement, NamedSharding):
        placement = jax.tree.map(lambda _: placement, tree)
    shardings = jax.tree.leaves(placement)
    mesh = shardings[0].mesh
    live = tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1)
    specs, cuts = [], []
    for member in group.members:
        spec = shardings[member.index].spec
        by_axis = [
            tuple(a for a in ((by,) if isinstance(by, str) else by or ()) if a in live)
            for by in (*spec, *(None,) * (leaves[member.index].ndim - len(spec)))
        ]
        ordered = [by_axis[axis] for axis in member.order]
        specs.append(spec)
        cuts.append(tuple(ordered[len(member.batch) :]))
        cut = {axis for axes in cuts[-1] for axis in axes}
        if any(ordered[: len(member.batch)]) or cut != set(
            live[len(live) - len(cut) :]
        ):
            raise InputError(
                f"parameter {member.path!r} with sharding {spec} cannot be dealt to "
                f"devices matrix by matrix; cut its matrix axes {member.order} alone, "
                f"over the last of the mesh axes {live}"
            )
    if len({sum(map(len, axes)) for axes in cuts}) > 1:
        raise InputError(
            f"parameters {[member.path for member in group.members]} have matrices of "
            "one shape but are cut over different mesh axes; cut them over the same"
        )
    num_cut = sum(map(len, cuts[0]))
    return _Deal(
        mesh=mesh,
        specs=tuple(specs),
        cuts=tuple(cuts),
        copied=live[: len(live) - num_cut],
        cut=live[len(live) - num_cut :],
        num=-(-group.num // mesh.size) * mesh.size,
    )


def placed(placement: Placement, axes: AxesTree) -> Placement:
    """Masks a placement as `only` masks parameters."""
    if placement is None or isinstance(placement, NamedSharding):
        return placement
    return only(placement, axes)


def is_state(node) -> bool:
    """True at the state of a matrix optimizer, for walks over an optimizer state."""
    return isinstance(node, MatrixState)


def get_basis(
    opt_state: optax.OptState, params: optax.Params, path: str, *, axes: Axes
) -> Basis:
    """Reads the stored eigenbasis of one parameter.

    Args:
        opt_state: of `kl_shampoo`, `soap`, their `scale_by_` directions, or anything
            that contains one.
        params: the parameter tree (arrays or shapes) that the state belongs to.
        path: the parameter, keys joined by "/", for example "blocks/w_q".
        axes: the `axes` argument that the optimizer was made with.

    Raises:
        InputError: no such parameter, or its optimizer stores no basis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.eye(4, 3)}
        >>> optimizer = optim.soap(1e-3)
        >>> state = optimizer.init(params)
        >>> basis = optim.get_basis(state, params, "w", axes=None)
        >>> basis.rows.shape, basis.cols.shape
        ((4, 4), (3, 3))
    """
    name, member = _find(params, path, axes)
    rows = member.slice
    found = [
        state.stacks[name].inner.basis()
        for state in jax.tree.leaves(opt_state, is_leaf=is_state)
        if _has_basis(state, name)
    ]
    if not found:
        raise InputError(f"the optimizer of parameter {path!r} stores no eigenbasis")
    left, right = (
        None if q is None else q[rows].reshape((*member.batch, *q.shape[1:]))
        for q in found[0]
    )
    return Basis(right, left) if member.transposed else Basis(left, right)


def set_basis(
    opt_state: optax.OptState,
    params: optax.Params,
    path: str,
    basis: Basis,
    *,
    axes: Axes,
) -> optax.OptState:
    """Replaces the stored eigenbasis of one parameter; the rest is re-expressed in it.

    Arguments and errors are those of `get_basis`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.eye(4, 3)}
        >>> state = optim.soap(1e-3).init(params)
        >>> turned = optim.Basis(rows=jnp.eye(4)[::-1], cols=jnp.eye(3))
        >>> state = optim.set_basis(state, params, "w", turned, axes=None)
        >>> optim.get_basis(state, params, "w", axes=None).rows[0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    get_basis(opt_state, params, path, axes=axes)
    name, member = _find(params, path, axes)
    rows = member.slice
    left, right = (basis.cols, basis.rows) if member.transposed else basis

    def place(old: Array | None, new: Array | None) -> Array | None:
        if old is None or new is None:
            return old
        return old.at[rows].set(new.reshape((-1, *new.shape[-2:])).astype(old.dtype))

    def replace(node):
        if not _has_basis(node, name):
            return node
        stack = node.stacks[name]
        old_left, old_right = stack.inner.basis()
        inner = stack.inner.with_basis(place(old_left, left), place(old_right, right))
        stacks = {**node.stacks, name: stack._replace(inner=inner)}
        return node._replace(stacks=stacks)

    return jax.tree.map(replace, opt_state, is_leaf=is_state)


def _has_basis(node, name: str) -> bool:
    return (
        is_state(node)
        and name in node.stacks
        and hasattr(node.stacks[name].inner, "basis")
    )


def _find(params: optax.Params, path: str, axes: Axes) -> tuple[str, _Member]:
    resolved = resolve(axes, params)
    for name, group in _layout(
        only(params, resolved), only(resolved, resolved)
    ).items():
        for member in group.members:
            if member.path == path:
                return name, member
    raise InputError(f"parameter {path!r} is not a leaf with matrix axes")


def only(tree: optax.Params, axes: AxesTree) -> optax.Params:
    """Masks, as `optax.partition` does, the leaves that are not matrices."""
    return jax.tree.map(
        lambda row, leaf: optax.MaskedNode() if row is None else leaf,
        axes,
        tree,
        is_leaf=is_axes,
    )


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


def diagnostics(opt_state: optax.OptState) -> dict[str, Array]:
    """Summarises an optimizer state in a few float32 scalars, for logging.

    Over all matrices: `update_rms` (root mean square of the last directions, before the
    learning rate), `nonfinite_skips` (gradients thrown away so far) and, where the
    optimizer has them, `clamped_fraction` (of inverse-root eigenvalues),
    `eigenvalue_min`, `eigenvalue_max`, `basis_error` (max |Q^T Q - I|) and
    `refresh_failures` (so far).

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
        for stack in state.stacks.values():
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
