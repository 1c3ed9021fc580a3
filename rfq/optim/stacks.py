"""All matrices of one shape, from all leaves, as one array.

They are stacked into `[N, m, n]` with m <= n (wide ones as they are, tall ones
transposed), so that each shape is compiled once however many layers and leaves there
are, and so that whole matrices can be dealt to devices along N.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.errors import InputError
from rfq.optim.axes import Leaf

Array = jax.Array
# One step on a stack: (g, state, count) -> (direction, active [N], state).
Call = Callable[[Array, Any, Array], tuple[Array, Array, Any]]


class Member(NamedTuple):
    """The place of one leaf's matrices in their stack, and the way there."""

    index: int
    path: str
    order: tuple[int, ...]
    batch: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """The leaf's number of matrices."""
        return math.prod(self.batch)

    @property
    def slice(self) -> slice:
        """Their place in the stack."""
        return slice(self.start, self.start + self.count)

    @property
    def transposed(self) -> bool:
        """Whether they are tall."""
        return math.prod(self.rows) > math.prod(self.cols)


class Group(NamedTuple):
    """All matrices of one shape."""

    members: tuple[Member, ...]
    num: int
    m: int
    n: int
    dtype: jnp.dtype


def layout(leaves: Sequence[Leaf]) -> dict[str, Group]:
    """Group the matrices of leaves, all of which must have some, by shape."""
    by_shape: dict[str, list[Member]] = {}
    for index, leaf in enumerate(leaves):
        shape = leaf.array.shape
        if leaf.axes is None:
            raise InputError(
                f"parameter {leaf.path!r} of shape {shape} has no matrix axes; give "
                "them in `axes`, or use the optimizer (not its scale_by_ direction), "
                "which sends such leaves to AdamW"
            )
        ins, outs = leaf.axes
        batch = tuple(a for a in range(len(shape)) if a not in (*ins, *outs))
        member = Member(
            index=index,
            path=leaf.path,
            order=(*batch, *ins, *outs),
            batch=tuple(shape[a] for a in batch),
            rows=tuple(shape[a] for a in ins),
            cols=tuple(shape[a] for a in outs),
            start=0,
        )
        m, n = sorted((math.prod(member.rows), math.prod(member.cols)))
        by_shape.setdefault(f"{m}x{n}", []).append(member)
    groups = {}
    for name, members in by_shape.items():
        placed, start = [], 0
        for member in members:
            placed.append(member._replace(start=start))
            start += member.count
        m, n = (int(size) for size in name.split("x"))
        dtype = jnp.result_type(
            jnp.float32, *(leaves[member.index].array.dtype for member in members)
        )
        groups[name] = Group(tuple(placed), start, m, n, dtype)
    return groups


def together(
    call: Call, group: Group, leaves: list[Array], state: Any, count: Array
) -> tuple[list[Array], Array, Any]:
    """Call on the stack of leaves that are whole: (directions, active, state)."""
    parts = [
        stacked(ordered(leaf.astype(group.dtype), member), member)
        for leaf, member in zip(leaves, group.members, strict=True)
    ]
    g = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    direction, active, state = call(g, state, count)
    directions = [
        restore(unstacked(direction[member.slice], member), member)
        for member in group.members
    ]
    return directions, active, state


def ordered(leaf: Array, member: Member) -> Array:
    """Reorder a leaf, or a part with all matrices, to [count, rows..., cols...]."""
    x = leaf.transpose(member.order)
    return x.reshape((member.count, *x.shape[len(member.batch) :]))


def restore(x: Array, member: Member) -> Array:
    """Invert `ordered`."""
    x = x.reshape((*member.batch, *x.shape[1:]))
    inverse = sorted(range(len(member.order)), key=lambda i: member.order[i])
    return x.transpose(inverse)


def stacked(x: Array, member: Member) -> Array:
    """Reshape [n, rows..., cols...] to [n, m, n] with m <= n."""
    x = x.reshape((x.shape[0], math.prod(member.rows), math.prod(member.cols)))
    return x.mT if member.transposed else x


def unstacked(stack: Array, member: Member) -> Array:
    """Invert `stacked`."""
    x = stack.mT if member.transposed else stack
    return x.reshape((x.shape[0], *member.rows, *member.cols))


def spread(
    tree: optax.Params, layout: dict[str, Group], flags: Mapping[str, Array]
) -> optax.Params:
    """Spread one boolean a matrix to leaves of shape [batch..., 1...]."""
    leaves, treedef = jax.tree.flatten(tree)
    for name, group in layout.items():
        for member in group.members:
            ones = (1,) * (len(member.rows) + len(member.cols))
            x = flags[name][member.slice]
            leaves[member.index] = restore(x.reshape((-1, *ones)), member)
    return jax.tree.unflatten(treedef, leaves)
