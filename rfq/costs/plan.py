"""DRIVER of `--dry-run`: what a run would cost, without allocating an array."""

import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from rfq import metrics, provenance, sharding, steps
from rfq import params as params_lib
from rfq.costs import hlo
from rfq.errors import InputError
from rfq.experiment import Experiment, fingerprint, to_dict
from rfq.model import transformer
from rfq.model.config import flops_per_token, num_params
from rfq.optim import matrix

_GIB, _MIB = 2**30, 2**20

# FLOP/s of the model that one H100 reaches while this optimizer trains: steps a
# second on four of them (appendix D, "Hardware"; the residual arm where there are two)
# times `flops_per_token` of the paper's model and the 512 x 512 tokens of a step.
H100_FLOPS: Mapping[str, float] = {
    "adamw": 3.8e14,  # 4.77 steps/s
    "kl_shampoo": 1.25e14,  # 1.56
    "muon": 3.7e14,  # 4.6
    "soap": 7.2e13,  # 0.9
}


class Group(NamedTuple):
    """One line of the placement.

    Attributes:
        name: a parameter, a moment of the optimizer or a stack of its matrices.
        axes: the names and lengths of its axes.
        spec: the mesh axes that cut them.
        num_bytes: its bytes on one device.
        whole: every device holds all of it.
    """

    name: str
    axes: str
    spec: str
    num_bytes: int
    whole: bool


class Plan(NamedTuple):
    """The memory, traffic and time that one training step would take.

    Attributes:
        mesh: devices along each mesh axis.
        params: where the parameters are.
        opt_state: where the optimizer's state is.
        collectives: bytes per step of each kind, see `hlo.collective_bytes`.
        argument_bytes: bytes of parameters, optimizer state and batch on one device, as
            the compiled program has it; None where the backend does not tell.
        working_bytes: bytes that it needs besides; likewise.
        largest: the largest array on one device, by its line of the program.
        checkpoint_bytes: most bytes of one checkpoint on disk: parameters and optimizer
            state, the padding of stacks included, before Orbax compresses them.
        compile_seconds: seconds that compiling took.
    """

    mesh: dict[str, int]
    params: list[Group]
    opt_state: list[Group]
    collectives: dict[str, int]
    argument_bytes: int | None
    working_bytes: int | None
    largest: hlo.Made
    checkpoint_bytes: int
    compile_seconds: float


def pretend(num_devices: int) -> None:
    """Make this process believe in that many devices, all of them on the CPU.

    Raises:
        InputError: the number is not positive.
    """
    if num_devices < 1:
        raise InputError(f"--devices={num_devices} must be >= 1")
    flags = os.environ.get("XLA_FLAGS", "")
    forced = r"--xla_force_host_platform_device_count=\d+"
    os.environ["XLA_FLAGS"] = re.sub(forced, "", flags)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def device_bytes() -> int | None:
    """Return the memory of one device; None if it is unknown or devices are pretended.

    Devices of the CPU share the memory of the machine.
    """
    device, *others = jax.local_devices()
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    if others:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make(experiment: Experiment) -> Plan:
    """Compile one training step of abstract arrays and read its costs.

    Raises:
        InputError: the batch or a parameter does not divide over the devices.
    """
    config = experiment.sharding
    mesh = sharding.make_mesh(config=config)
    batch_size = experiment.train.batch_size
    sharding.check(batch_size, "train.batch_size", mesh, config.microbatches)
    compiled = steps.compile_train(experiment, mesh)
    batch = jax.ShapeDtypeStruct(
        (batch_size, experiment.model.seq_len + 1),
        "int32",
        sharding=sharding.batch_sharding(mesh),
    )
    start = time.perf_counter()
    program = compiled.train.lower(compiled.state, batch).compile()
    seconds = time.perf_counter() - start
    text = program.as_text() or ""
    memory = program.memory_analysis()
    return Plan(
        mesh=dict(mesh.shape),
        params=_params(compiled.state.params, transformer.shapes(experiment.model)),
        opt_state=list(_opt_state(compiled.state.opt_state)),
        collectives=hlo.collective_bytes(text),
        argument_bytes=None if memory is None else memory.argument_size_in_bytes,
        working_bytes=None if memory is None else memory.temp_size_in_bytes,
        largest=hlo.largest(text),
        checkpoint_bytes=sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(compiled.state)
        ),
        compile_seconds=seconds,
    )


def run(
    arms: Sequence[Experiment],
    *,
    num_seeds: int,
    device_flops: float | None,
    json_path: pathlib.Path | None,
) -> None:
    """Print what each arm costs, where its arrays live, and what all arms cost.

    Args:
        arms: the experiments that would be trained.
        num_seeds: how often each would be trained.
        device_flops: FLOP/s of the model that a device reaches, for the hours; None
            takes the number of the arm's optimizer in `H100_FLOPS`.
        json_path: the file that gets a row for each arm, one JSON object a line.

    Raises:
        InputError: as `make`; the FLOP/s are not positive.
    """
    if device_flops is not None and not device_flops > 0:
        raise InputError(f"--device-flops={device_flops} must be > 0")
    rows = []
    for arm in arms:
        plan = make(arm)
        rows.append(as_row(arm, plan, device_flops))
        _say_arm(arm, plan, rows[-1])
    if len(rows) > 1:
        _say_all(rows, num_seeds)
    if json_path is not None:
        metrics.rewrite(json_path, rows)
        metrics.say(f"rows: {json_path}")


def as_row(
    experiment: Experiment, plan: Plan, device_flops: float | None
) -> dict[str, Any]:
    """Return the numbers of a plan for JSON: bytes are of one device, disk is of all.

    `hours` are FLOPs of the run / (devices * FLOP/s), or None for an optimizer of
    unknown speed; `disk_bytes` count the checkpoints that are kept and the one that is
    being written.
    """
    described = to_dict(experiment)
    optimizer = described["optimizer"]["name"]
    flops = experiment.tokens_per_step * flops_per_token(experiment.model)
    num_devices = math.prod(plan.mesh.values())
    rate = device_flops or H100_FLOPS.get(optimizer)
    total_flops = flops * experiment.train.num_steps
    whole = [group for group in (*plan.params, *plan.opt_state) if group.whole]
    largest_whole = max(whole, key=lambda group: group.num_bytes, default=None)
    return {
        "arm": experiment.arm,
        "config_fingerprint": fingerprint(experiment),
        "optimizer": optimizer,
        "sharding": described["sharding"],
        "mesh": plan.mesh,
        "num_devices": num_devices,
        "num_params": num_params(experiment.model),
        "num_steps": experiment.train.num_steps,
        "tokens_per_step": experiment.tokens_per_step,
        "flops_per_step": flops,
        "device_flops": rate,
        "hours": rate and total_flops / (num_devices * rate) / 3600,
        "params_bytes": sum(group.num_bytes for group in plan.params),
        "opt_state_bytes": sum(group.num_bytes for group in plan.opt_state),
        "argument_bytes": plan.argument_bytes,
        "working_bytes": plan.working_bytes,
        "largest": plan.largest._asdict(),
        "largest_whole": largest_whole and largest_whole._asdict(),
        "collectives": plan.collectives,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "disk_bytes": plan.checkpoint_bytes * (1 + experiment.log.keep_checkpoints),
        "compile_seconds": plan.compile_seconds,
        **provenance.described(),
    }


def _say_arm(experiment: Experiment, plan: Plan, row: Mapping[str, Any]) -> None:
    model, flops = experiment.model, row["flops_per_step"]
    shape = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    moved = ", ".join(f"{op} {n / _MIB:.2f}" for op, n in plan.collectives.items())
    moved_mib = sum(plan.collectives.values()) / _MIB
    whole = row["largest_whole"]
    metrics.say(
        f"{experiment.arm}: fingerprint {row['config_fingerprint']}, "
        f"{model.num_layers} layers of width {model.width}, {model.skip}, "
        f"{experiment.train.num_steps:,} steps of {row['tokens_per_step']:,} tokens\n"
        f"  parameters         {row['num_params']:,}\n"
        f"  FLOPs per step     {flops:.3e} (6 N per token and causal attention; the "
        "optimizer comes on top)\n"
        f"  FLOPs of the run   {flops * experiment.train.num_steps:.3e}\n"
        f"  devices            {row['num_devices']}, "
        f"{experiment.sharding.strategy}: {shape}\n"
        f"  hours of training  {_hours(row)}\n"
        f"  checkpoints        {row['disk_bytes'] / _GIB:.3f} GiB of disk at most: "
        f"{experiment.log.keep_checkpoints} kept and one being written, "
        f"{row['checkpoint_bytes'] / _GIB:.3f} GiB each\n"
        f"  bytes per device\n"
        f"    parameters       {row['params_bytes'] / _GIB:.3f} GiB\n"
        f"    optimizer state  {row['opt_state_bytes'] / _GIB:.3f} GiB\n"
        f"    all arguments    {gib(plan.argument_bytes)} (of the compiled program)\n"
        f"    working memory   {gib(plan.working_bytes)} (compiled for "
        f"{jax.default_backend()})\n"
        f"    together         {_fit(_memory(row))}\n"
        f"    largest array    {plan.largest.num_bytes / _GIB:.3f} GiB, "
        f"{plan.largest.shape} of {plan.largest.op}\n"
        "    largest copy     "
        + (
            "nothing is whole on every device\n"
            if whole is None
            else f"{whole['num_bytes'] / _GIB:.6f} GiB, {whole['name']}, of "
            "what is whole on every device\n"
        )
        + f"  collectives        {moved_mib:.2f} MiB a step and device "
        f"({moved or 'none'})\n"
        f"  compiled in        {plan.compile_seconds:.1f} s\n"
        "  placement: MiB per device, axes, mesh axes that cut them"
    )
    for group in (*plan.params, *plan.opt_state):
        metrics.say(
            f"    {group.name:32} {group.num_bytes / _MIB:10.3f}  {group.axes:44} "
            f"{group.spec}"
        )


def _hours(row: Mapping[str, Any]) -> str:
    if row["hours"] is None:
        return (
            f"not known: the paper did not time {row['optimizer']}; give --device-flops"
        )
    return (
        f"{row['hours']:.2f}, an estimate: FLOPs of the run / ({row['num_devices']} "
        f"devices x {row['device_flops']:.3g} FLOP/s); if not given by "
        "--device-flops, what the paper's H100 got done with this optimizer"
    )


def _say_all(rows: Sequence[Mapping[str, Any]], num_seeds: int) -> None:
    """Print a line for each arm, and what all take one after the other."""
    lines = [
        (row["arm"], row["hours"], _memory(row), row["disk_bytes"]) for row in rows
    ]
    _, hours, memory, disks = zip(*lines, strict=True)
    every = (
        f"all, {num_seeds} seed{'s' * (num_seeds > 1)}",
        None if None in hours else num_seeds * sum(hours),
        None if None in memory else max(memory),
        num_seeds * sum(disks),
    )
    metrics.say(
        f"{'arm':32} {'hours (estimate)':>16} {'memory per device':>24} "
        f"{'disk of checkpoints':>20}"
    )
    for name, took, num_bytes, disk in (*lines, every):
        told = "not known" if took is None else f"{took:.2f}"
        metrics.say(f"{name:32} {told:>16} {gib(num_bytes):>24} {gib(disk):>20}")


def _memory(row: Mapping[str, Any]) -> Any:
    """Return the bytes that one device needs, None where the backend does not tell."""
    if row["argument_bytes"] is None:
        return None
    return row["argument_bytes"] + row["working_bytes"]


def _fit(needed: int | None) -> str:
    """Say whether a device's memory is enough."""
    there = device_bytes()
    if needed is None or there is None:
        return gib(needed)
    if needed <= there:
        return f"{gib(needed)}, fits in the {gib(there)} of a device"
    return (
        f"{gib(needed)}, does not fit in the {gib(there)} of a device: lower "
        "train.batch_size or the model, raise sharding.microbatches, set model.remat, "
        "or divide it over more devices (sharding.strategy)"
    )


def gib(num_bytes: int | None) -> str:
    """Format bytes as a person reads them."""
    return (
        "not told by this backend"
        if num_bytes is None
        else f"{num_bytes / _GIB:.3f} GiB"
    )


def _group(name: str, axes: str, *leaves: jax.ShapeDtypeStruct) -> Group:
    where = leaves[0].sharding
    assert isinstance(where, jax.sharding.NamedSharding)
    whole = where.mesh.size > 1 and where.is_fully_replicated
    spec = "whole" if where.is_fully_replicated else str(where.spec)
    return Group(name, axes, spec, sharding.bytes_per_device(leaves), whole)


def _params(params, shapes) -> list[Group]:
    rows = jax.tree.leaves(
        params_lib.axes(shapes),
        is_leaf=lambda row: isinstance(row, params_lib.ParamAxes),
    )
    return [
        _group(
            "/".join(str(key.key) for key in path),
            " x ".join(
                f"{axis}={size}"
                for axis, size in zip(row.logical, leaf.shape, strict=True)
            ),
            leaf,
        )
        for (path, leaf), row in zip(
            jax.tree_util.tree_leaves_with_path(params), rows, strict=True
        )
    ]


def _opt_state(opt_state) -> Iterator[Group]:
    """Yield a group for each stack, AdamW's part of each parameter, and the rest."""
    arrays: dict[tuple[str, str], list[jax.ShapeDtypeStruct]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(
        opt_state, is_leaf=matrix.is_state
    ):
        if matrix.is_state(node):
            for name, stack in node.stacks.items():
                axes = f"{stack.age.shape[0]} matrices, padding included"
                yield _group(f"optimizer {name}", axes, *jax.tree.leaves(stack))
            small = [node.count, *jax.tree.leaves(node.active)]
        else:
            small = [node] if node.size == 1 else []
        arrays.setdefault(("optimizer flags", ""), []).extend(small)
        if not small:
            key = (f"optimizer {_owner(path)}", str(node.shape))
            arrays.setdefault(key, []).append(node)
    for (name, axes), leaves in arrays.items():
        yield _group(name, axes, *leaves)


def _owner(path: tuple) -> str:
    """Return the parameter's part of a path in an optimizer's state."""
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return "/".join(key for key in keys if key not in ("matrix", "other"))
