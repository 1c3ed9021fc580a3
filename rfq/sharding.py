"""Where arrays live: one table from logical axes to mesh axes.

The model and the parameter table name logical axes; nothing but this file knows a
mesh. "pjit" is `jax.jit` with shardings today, and `steps` is where that happens.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rfq import params as params_lib
from rfq.errors import InputError, check_choices
from rfq.optim import matrix
from rfq.types import Array, Params

# Logical axis -> mesh axis. "ddp" copies the parameters to every device; "fsdp" cuts
# each along the model's width, over the devices that also share the batch.
RULES: Mapping[str, Mapping[str, str | None]] = {
    "ddp": {
        "batch": "data", "layer": None, "embed": None, "heads": None,
        "head_width": None, "mlp": None, "vocab": None,
    },
    "fsdp": {
        "batch": "data", "layer": None, "embed": "data", "heads": None,
        "head_width": None, "mlp": None, "vocab": None,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Which row of `RULES` places the parameters."""

    strategy: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self):
        check_choices(self, "sharding")


def make_mesh(num_devices: int | None = None) -> Mesh:
    """One axis, "data", over the first `num_devices` devices (default: all)."""
    devices = jax.devices()[:num_devices]
    return Mesh(
        np.asarray(devices),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
    )


def check(batch_size: int, what: str, mesh: Mesh) -> None:
    """Raises InputError unless a global batch divides over the mesh's data axis."""
    num_devices = mesh.shape["data"]
    if batch_size % num_devices:
        raise InputError(
            f"{what}={batch_size} must be a multiple of the {num_devices} devices "
            "that share the batch"
        )


def spec_for(axes: tuple[str | None, ...], rules: Mapping[str, str | None]) -> P:
    """Translates logical axis names to a PartitionSpec; unknown names are errors."""
    unknown = [axis for axis in axes if axis is not None and axis not in rules]
    if unknown:
        raise InputError(f"no sharding rule for axes {unknown}; rules: {sorted(rules)}")
    return P(*(rules[axis] if axis else None for axis in axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data axis."""
    return NamedSharding(mesh, P("data"))


def params_shardings(config: ShardingConfig, mesh: Mesh, shapes: Params):
    """A `NamedSharding` for each parameter.

    Raises:
        InputError: a sharded axis does not divide over its mesh axis; names both.
    """
    rules = RULES[config.strategy]

    def place(path, leaf, row: params_lib.ParamAxes) -> NamedSharding:
        spec = spec_for(row.logical, rules)
        for size, axis, mesh_axis in zip(leaf.shape, row.logical, spec, strict=True):
            if mesh_axis is not None and size % mesh.shape[mesh_axis]:
                raise InputError(
                    f"parameter {jax.tree_util.keystr(path)}: axis {axis!r} of size "
                    f"{size} does not divide over the {mesh.shape[mesh_axis]} devices "
                    f"of mesh axis {mesh_axis!r}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, params_lib.axes(shapes))


def state_shardings(config: ShardingConfig, mesh: Mesh, state, shapes: Params):
    """Shardings for any tree that holds copies of the parameter tree.

    An optimizer keeps moments in trees with the parameters' own paths: a leaf whose
    path ends in a parameter's path and whose shape is that parameter's is placed like
    it. A matrix optimizer's stacks, which it pads to a multiple of the devices, are
    dealt to them matrix by matrix. Every other leaf is replicated.
    """
    placed = {
        tuple(map(str, path)): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree.leaves(params_shardings(config, mesh, shapes)),
            strict=True,
        )
    }
    dealt = NamedSharding(mesh, P(mesh.axis_names))

    def place(path, leaf):
        if matrix.is_state(leaf):
            everywhere = jax.tree.map(lambda _: replicated(mesh), leaf)
            return everywhere._replace(
                stacks=jax.tree.map(lambda _: dealt, leaf.stacks)
            )
        names = tuple(map(str, path))
        for start in range(len(names)):
            shape, sharding = placed.get(names[start:], (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state, is_leaf=matrix.is_state)


def bytes_per_device(tree) -> int:
    """Bytes that one device holds of placed arrays, abstract or not."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def to_global(local: np.ndarray, mesh: Mesh) -> Array:
    """This process's rows of a batch -> the global array, rows over the data axis."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local)
