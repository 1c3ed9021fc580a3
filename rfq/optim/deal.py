"""Dealing the matrices of a stack to the devices of a mesh, whole matrices to each.

State, step and refresh of a matrix live on one device. No device ever holds more than
its matrices and its parts of leaves. Where leaves are cut, gradients enter and
directions leave by one all-to-all each; directions are gathered only for copies.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfq.errors import InputError
from rfq.optim import axes as axes_lib
from rfq.optim.stacks import (
    Call,
    Group,
    Member,
    ordered,
    restore,
    stacked,
    unstacked,
)

Array = jax.Array
# Where parameters live: one sharding for all or one at every leaf; None if unknown.
Placement = NamedSharding | optax.Params | None


class Deal(NamedTuple):
    """The way of a group's matrices between the parts of leaves and a stack.

    A device has a part of every matrix of a leaf that is cut along its matrix axes, and
    all of it where it has a copy. It has `num` / devices whole matrices of the stack.

    Attributes:
        mesh: all devices.
        specs: the partition of each member's leaf.
        cuts: for each member, by axis of [rows..., cols...], the mesh axes that cut it.
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

    def constrain(self, state: Any) -> Any:
        """Put the state of a stack where `run` wants it."""
        dealt = NamedSharding(self.mesh, P(self.mesh.axis_names))
        return jax.lax.with_sharding_constraint(state, dealt)

    def run(
        self,
        call: Call,
        group: Group,
        leaves: list[Array],
        state: Any,
        count: Array,
    ) -> tuple[list[Array], Array, Any]:
        """Do what `stacks.together` does, for parts of leaves and a dealt stack."""

        def local(leaves: list[Array], state: Any, count: Array):
            parts = [
                ordered(leaf.astype(group.dtype), member)
                for leaf, member in zip(leaves, group.members, strict=True)
            ]
            g = self._enter(parts, group.members)
            direction, active, state = call(g, state, count)
            parts = self._leave(direction, group.members, parts)
            directions = [
                restore(part, member)
                for part, member in zip(parts, group.members, strict=True)
            ]
            active = jax.lax.all_gather(active, self.copied + self.cut, tiled=True)
            return directions, active[: group.num], state

        dealt = P(self.mesh.axis_names)
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(list(self.specs), dealt, P()),
            out_specs=(list(self.specs), P(), dealt),
            check_vma=False,
        )(leaves, state, count)

    def _enter(self, parts: list[Array], members: tuple[Member, ...]) -> Array:
        """Turn parts of all matrices into whole ones here, [num / devices, m, n]."""
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
        self, stack: Array, members: tuple[Member, ...], like: list[Array]
    ) -> list[Array]:
        """Invert `_enter`; `like` has the shapes of the parts."""
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

    def _joined(self, x: Array, member: Member, kind: int, part: Array) -> Array:
        """Join the parts: [n, devices of `cut` * part] -> [n, m, n]."""
        sizes = [self.mesh.shape[axis] for axis in self.cut]
        x = x.reshape((x.shape[0], *sizes, *part.shape[1:]))
        return stacked(x.transpose(self._order(kind)), member)

    def _parted(self, x: Array, member: Member, kind: int, part: Array) -> Array:
        """Invert `_joined`."""
        sizes = []
        for axes, size in zip(self.cuts[kind], part.shape[1:], strict=True):
            sizes += [*(self.mesh.shape[axis] for axis in axes), size]
        x = unstacked(x, member).reshape((x.shape[0], *sizes))
        return x.transpose(np.argsort(self._order(kind))).reshape(x.shape[0], -1)

    def _order(self, kind: int) -> tuple[int, ...]:
        """Reorder [n, cut..., part...] to [n, (its mesh axes, part) by axis]."""
        order = [0]
        for index, axes in enumerate(self.cuts[kind]):
            order += [1 + self.cut.index(axis) for axis in axes]
            order.append(1 + len(self.cut) + index)
        return tuple(order)

    def _select(
        self, made: Callable[[int], Array], members: tuple[Member, ...]
    ) -> Array:
        """Choose for each matrix here what was made of it in its own way.

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


def deal(group: Group, tree: optax.Params, placement: Placement) -> Deal | None:
    """Say how a group of a tree on these devices is dealt; None for one program."""
    if placement is None:
        return None
    leaves = jax.tree.leaves(tree)
    if isinstance(placement, NamedSharding):
        shardings = [placement] * len(leaves)
    else:
        shardings = axes_lib.at_leaves(tree, placement, "placement")
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
    return Deal(
        mesh=mesh,
        specs=tuple(specs),
        cuts=tuple(cuts),
        copied=live[: len(live) - num_cut],
        cut=live[len(live) - num_cut :],
        num=-(-group.num // mesh.size) * mesh.size,
    )
