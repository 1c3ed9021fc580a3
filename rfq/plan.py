"""DRIVER of `--dry-run`: what a run would cost, without allocating an array."""

import math
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from rfq import hlo, metrics, sharding, steps
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.experiment import Experiment, fingerprint
from rfq.model import transformer
from rfq.model.config import flops_per_token, num_params
from rfq.optim import matrix

_GIB, _MIB = 2**30, 2**20


class Group(NamedTuple):
    """One line of the placement.

    Attributes:
        name: a parameter, a moment of the optimizer or a stack of its matrices.
        axes: what its axes are and how long.
        spec: the mesh axes that cut them.
        num_bytes: on one device.
        whole: every device holds all of it.
    """

    name: str
    axes: str
    spec: str
    num_bytes: int
    whole: bool


class Plan(NamedTuple):
    """What one training step would take.

    Attributes:
        mesh: devices along each mesh axis.
        params: where the parameters are.
        opt_state: where the optimizer's state is.
        collectives: bytes per step of each kind, see `hlo.collective_bytes`.
        argument_bytes: of parameters, optimizer state and batch on one device, as the
            compiled program has it; None where the backend does not tell.
        working_bytes: what it needs besides; likewise.
        largest: the largest array on one device, by its line of the program.
        compile_seconds: it took to compile.
    """

    mesh: dict[str, int]
    params: list[Group]
    opt_state: list[Group]
    collectives: dict[str, int]
    argument_bytes: int | None
    working_bytes: int | None
    largest: hlo.Made
    compile_seconds: float


def pretend(num_devices: int) -> None:
    """Makes this process believe in that many devices, all of them on the CPU.

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


def make(experiment: Experiment) -> Plan:
    """Compiles one training step of abstract arrays and looks at it.

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
        compile_seconds=seconds,
    )


def run(experiment: Experiment) -> None:
    """Prints what a run costs and where its arrays live.

    Raises:
        InputError: as `make`.
    """
    plan = make(experiment)
    model, tokens = experiment.model, experiment.tokens_per_step
    flops = tokens * flops_per_token(model)
    params, opt_state = (
        sum(group.num_bytes for group in groups)
        for groups in (plan.params, plan.opt_state)
    )
    shape = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    moved = ", ".join(f"{op} {n / _MIB:.2f}" for op, n in plan.collectives.items())
    moved_mib = sum(plan.collectives.values()) / _MIB
    whole = [group for group in (*plan.params, *plan.opt_state) if group.whole]
    largest_whole = max(whole, key=lambda group: group.num_bytes, default=None)
    metrics.say(
        f"{experiment.arm}: fingerprint {fingerprint(experiment)}, "
        f"{model.num_layers} layers of width {model.width}, {model.skip}, "
        f"{experiment.train.num_steps:,} steps of {tokens:,} tokens\n"
        f"  parameters         {num_params(model):,}\n"
        f"  FLOPs per step     {flops:.3e} (6 N per token and causal attention; the "
        "optimizer comes on top)\n"
        f"  FLOPs of the run   {flops * experiment.train.num_steps:.3e}\n"
        f"  devices            {math.prod(plan.mesh.values())}, "
        f"{experiment.sharding.strategy}: {shape}\n"
        f"  bytes per device\n"
        f"    parameters       {params / _GIB:.3f} GiB\n"
        f"    optimizer state  {opt_state / _GIB:.3f} GiB\n"
        f"    all arguments    {_gib(plan.argument_bytes)} (of the compiled program)\n"
        f"    working memory   {_gib(plan.working_bytes)} (compiled for "
        f"{jax.default_backend()})\n"
        f"    largest array    {plan.largest.num_bytes / _GIB:.3f} GiB, "
        f"{plan.largest.shape} of {plan.largest.op}\n"
        "    largest copy     "
        + (
            "nothing is whole on every device\n"
            if largest_whole is None
            else f"{largest_whole.num_bytes / _GIB:.6f} GiB, {largest_whole.name}, of "
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


def _gib(num_bytes: int | None) -> str:
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
    """A line for each stack, for what AdamW has of each parameter, and for the rest."""
    found: dict[tuple[str, str], list[jax.ShapeDtypeStruct]] = {}
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
        found.setdefault(("optimizer flags", ""), []).extend(small)
        if not small:
            key = (f"optimizer {_owner(path)}", str(node.shape))
            found.setdefault(key, []).append(node)
    for (name, axes), leaves in found.items():
        yield _group(name, axes, *leaves)


def _owner(path: tuple) -> str:
    """The parameter's part of a path in an optimizer's state."""
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return "/".join(key for key in keys if key not in ("matrix", "other"))
