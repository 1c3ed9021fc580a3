"""The places of arrays: one table from logical axes to mesh axes.

The model and the parameter table name logical axes; nothing but this file knows a
mesh. "pjit" is `jax.jit` with shardings today, and `steps` is where that happens.

The traffic between devices in a training step follows from the table. On a mesh of
r x f x t devices ("data", "fsdp", "tensor"), with D = r f t, let W be the elements of
the hidden matrices, E those of the embedding, B T the tokens of a batch, A = B T width
/ (r f) the elements of a device's part of the stream, L the layers, m the
`microbatches`, c the bytes of `compute_dtype`, and k = 2 where blocks are computed
again in the backward pass and 1 where they are not. Bytes of the results of the
collectives on one device, as `hlo.collective_bytes` reads them from the compiled
program:

    all-gather  c (m k W + E) / t + 4 B T / r            if f > 1: weights, token ids
    all-reduce  m c (W + E) / t                          if r f > 1: gradients
                + m c W / (f t)                          if r, f > 1: between copies
                + m 4 E / (f t)                          if r > 1: of the lookup
                + (L (5 + k) c + c + 4) A                if t > 1: the stream
    all-to-all  2 c A                                    if f > 1: the lookup

The stream is summed over "tensor" behind w_o and w_down, behind w_o once more where it
is computed again, before q, k, v and w_up going back, before the head going back, and
behind the lookup. A matrix optimizer deals its stacks, S elements with padding:

    all-to-all  2 * 4 S / D                              if f t > 1: there and back
    all-gather  4 S / (f t)                              if r > 1: directions to copies

Gains and other arrays of one number a column or a token are not counted; together they
are less than 2% at width 32. "ddp" is f = t = 1, "fsdp" is r = t = 1, "fsdp_tp" is r =
1, "hybrid" is t = 1. GPU and TPU backends turn an all-reduce of which each device keeps
its part into a reduce-scatter, whose result is f times smaller; the CPU does not.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rfq import params as params_lib
from rfq.errors import InputError, check_fields
from rfq.model import places
from rfq.optim import matrix
from rfq.types import Array, Params

# Mesh axes, slowest first: neighbours in the order of `jax.devices()`, which goes host
# by host, share a row of "tensor", and hosts differ in "data".
AXES = ("data", "fsdp", "tensor")

# Logical axis -> the mesh axes over which it is cut; a mesh axis of size 1 cuts
# nothing, so that this table serves all strategies.
RULES: Mapping[str, tuple[str, ...]] = {
    # Axes of parameters, gradients and moments.
    "layer": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_width": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # Axes of activations, and "width" of a parameter where it is used.
    "batch": ("data", "fsdp"),
    "copy_batch": ("data",),  # All rows that one copy of the parameters sees.
    "position": (),
    "width": (),
}

# Strategy -> devices along each mesh axis: a number, "hosts" (processes), or "rest",
# what the others leave. "pairs" is 2 where the rest is even and 1 where it is not.
STRATEGIES: Mapping[str, Mapping[str, str | int]] = {
    "ddp": {"data": "rest", "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": "rest", "tensor": 1},
    "fsdp_tp": {"data": 1, "fsdp": "rest", "tensor": "pairs"},
    "hybrid": {"data": "hosts", "fsdp": "rest", "tensor": 1},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """The spread of a step over devices and time; its result stays the same.

    The mesh is a row of `STRATEGIES`; each of its numbers may be replaced here.

    Attributes:
        strategy: "ddp" copies the parameters to every device; "fsdp" cuts each along
            the model's width; "fsdp_tp" cuts heads, MLP and vocabulary besides;
            "hybrid" is fsdp within a host and copies across hosts.
        data: devices along "data", the copies; None is the strategy's.
        fsdp: devices along "fsdp"; likewise.
        tensor: devices along "tensor"; likewise.
        microbatches: parts of a batch that each device takes one after the other,
            summing their gradients, so that the activations of one part fit.
    """

    strategy: Literal["ddp", "fsdp", "fsdp_tp", "hybrid"] = "ddp"
    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None
    microbatches: int = 1

    def __post_init__(self):
        check_fields(self, "sharding")
        for axis in AXES:
            size = getattr(self, axis)
            if size is not None and size < 1:
                raise InputError(f"sharding.{axis}={size} must be >= 1 or None")
        if self.microbatches < 1:
            raise InputError(f"sharding.microbatches={self.microbatches} must be >= 1")


def mesh_shape(
    config: ShardingConfig, num_devices: int, num_hosts: int
) -> tuple[int, int, int]:
    """Return the devices along each of `AXES`.

    Raises:
        InputError: they do not multiply to the number of devices.
    """
    row = STRATEGIES[config.strategy]
    wanted = {axis: getattr(config, axis) or row[axis] for axis in AXES}
    sizes = {axis: size for axis, size in wanted.items() if isinstance(size, int)}
    if "hosts" in wanted.values():
        sizes["data"] = num_hosts
    for axis in AXES:
        if wanted[axis] == "pairs":
            sizes[axis] = math.gcd(2, num_devices // math.prod(sizes.values()))
    taken = math.prod(sizes.values())
    for axis in AXES:
        if axis not in sizes:
            sizes[axis] = max(num_devices // taken, 1)
    shape = (sizes["data"], sizes["fsdp"], sizes["tensor"])
    if math.prod(shape) != num_devices:
        told = " x ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(
            f"sharding.strategy={config.strategy!r} gives the mesh {told}, which is "
            f"not the {num_devices} devices there are; change sharding.data, "
            "sharding.fsdp or sharding.tensor"
        )
    return shape


def make_mesh(
    num_devices: int | None = None,
    config: ShardingConfig | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Make a mesh over the first `num_devices` devices (default: all, as copies).

    Devices are those that jax has, or the given ones, which may be descriptions.

    Raises:
        InputError: as `mesh_shape`; or the devices of a row of "tensor", which read
            the same rows of a batch, are on several hosts.
    """
    devices = (jax.devices() if devices is None else devices)[:num_devices]
    hosts = len({device.process_index for device in devices})
    shape = mesh_shape(config or ShardingConfig(), len(devices), hosts)
    auto = jax.sharding.AxisType.Auto
    mesh = Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(auto,) * 3)
    for row in mesh.devices.reshape(-1, shape[-1]):
        if len({device.process_index for device in row}) > 1:
            raise InputError(
                f"sharding.tensor={shape[-1]} must divide the "
                f"{len(devices) // hosts} devices of a host, because the devices "
                "along it share the rows of a batch"
            )
    return mesh


def num_shares(mesh: Mesh) -> int:
    """Count the parts of a batch that lie on different devices."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check(batch_size: int, what: str, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise InputError unless a global batch divides over those who share it."""
    num_devices = num_shares(mesh)
    if batch_size % (num_devices * microbatches):
        parts = f" times {microbatches} microbatches" if microbatches > 1 else ""
        raise InputError(
            f"{what}={batch_size} must be a multiple of the {num_devices} devices "
            f"that share the batch{parts}"
        )


def spec_for(axes: tuple[str, ...]) -> P:
    """Translate logical axis names to a PartitionSpec; unknown names are errors."""
    unknown = [axis for axis in axes if axis not in RULES]
    if unknown:
        raise InputError(f"no sharding rule for axes {unknown}; rules: {sorted(RULES)}")
    return P(*(RULES[axis] or None for axis in axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """Put the same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Put rows of a batch on the devices that share it."""
    return NamedSharding(mesh, spec_for(("batch",)))


def params_shardings(mesh: Mesh, shapes: Params):
    """Make a `NamedSharding` for each parameter.

    Raises:
        InputError: a sharded axis does not divide over its mesh axis; names both.
    """

    def place(path, leaf, row: params_lib.ParamAxes) -> NamedSharding:
        if row.kind == "gain" and leaf.shape[-1] == 1:
            return replicated(mesh)  # A gain of one number cannot be cut.
        for size, axis in zip(leaf.shape, row.logical, strict=True):
            for mesh_axis in RULES[axis]:
                if size % mesh.shape[mesh_axis]:
                    raise InputError(
                        f"parameter {jax.tree_util.keystr(path)}: axis {axis!r} of "
                        f"size {size} does not divide over the "
                        f"{mesh.shape[mesh_axis]} devices of mesh axis {mesh_axis!r}; "
                        f"change sharding.{mesh_axis}"
                    )
        return NamedSharding(mesh, spec_for(row.logical))

    return jax.tree_util.tree_map_with_path(place, shapes, params_lib.axes(shapes))


def state_shardings(mesh: Mesh, state, shapes: Params):
    """Make shardings for any tree that holds copies of the parameter tree.

    An optimizer keeps moments in trees with the parameters' own paths: a leaf whose
    path ends in a parameter's path and whose shape is that parameter's is placed like
    it. A matrix optimizer's stacks, which it pads to a multiple of the devices, are
    dealt to them matrix by matrix. Every other leaf is replicated.
    """
    placed = {
        tuple(map(str, path)): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree.leaves(params_shardings(mesh, shapes)),
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


def placing(mesh: Mesh) -> places.Placing:
    """Make the functions that hold arrays to the table; on one device, do nothing."""
    if mesh.size == 1:
        return places.ANYWHERE

    def constrain(x: Array, axes: tuple[str, ...]) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_for(axes)))

    def gather(w: Array, axes: tuple[str, ...]) -> Array:
        # It stays cut as it is stored, or the partitioner might gather before a cast.
        whole = tuple("width" if axis == "embed" else axis for axis in axes)
        return constrain(constrain(w, axes), whole)

    def forward(w: Array, axes: tuple[str, ...]):
        return gather(w, axes), None

    def backward(axes: tuple[str, ...], _, g: Array):
        return (constrain(g, axes),)

    # Its transpose would gather the gradient as well.
    weight = jax.custom_vjp(gather, nondiff_argnums=(1,))
    weight.defvjp(forward, backward)
    return places.Placing(constrain, weight, num_shares(mesh))


def bytes_per_device(tree) -> int:
    """Count the bytes that one device holds of placed arrays, abstract or not."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def to_global(local: np.ndarray, mesh: Mesh) -> Array:
    """Turn this process's rows of a batch into the global array over the devices."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local)


def fetched(tree):
    """Copy whole small arrays to the host; all processes must call it."""
    return multihost_utils.process_allgather(tree, tiled=True)
