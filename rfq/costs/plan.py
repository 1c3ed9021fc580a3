"""DRIVER of `--dry-run`: what a run would cost, without allocating an array."""

import dataclasses
import math
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from rfq import metrics, provenance, sharding, steps
from rfq import params as params_lib
from rfq.costs import hlo, roofline, targets, told
from rfq.costs.roofline import Roofline
from rfq.costs.targets import Target
from rfq.errors import InputError
from rfq.experiment import Experiment, fingerprint, to_dict
from rfq.model import transformer
from rfq.model.config import flops_per_token, num_params
from rfq.optim import matrix

# Steps that `largest_batch` may compile.
MAX_COMPILES = 7


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


class Memory(NamedTuple):
    """Bytes of one device that a compiled program takes.

    Attributes:
        arguments: of parameters, optimizer state and batch.
        working: of what it makes besides.
        code: of its instructions; 0 where the backend does not tell.
        needed: of all that is there at once, results that no argument makes room for
            included; it is all that a compiler tells of a program that it refused.
    """

    arguments: int | None
    working: int | None
    code: int | None
    needed: int


class Plan(NamedTuple):
    """The memory, traffic and time that one training step would take.

    Attributes:
        target: for which devices it was compiled.
        mesh: devices along each mesh axis.
        params: where the parameters are.
        opt_state: where the optimizer's state is.
        collectives: bytes per step of each kind, see `hlo.collective_bytes`.
        memory: what the program takes; None where the backend does not tell.
        largest: the largest array on one device, by its line of the program.
        checkpoint_bytes: most bytes of one checkpoint on disk: parameters and optimizer
            state, the padding of stacks included, before Orbax compresses them.
        compile_seconds: seconds that compiling took.
        roofline: the work of a step; None of a program that the compiler refused.
    """

    target: Target
    mesh: dict[str, int]
    params: list[Group]
    opt_state: list[Group]
    collectives: dict[str, int]
    memory: Memory | None
    largest: hlo.Made
    checkpoint_bytes: int
    compile_seconds: float
    roofline: Roofline | None

    @property
    def fits(self) -> bool | None:
        """Whether a device has the memory, None where one of both is not known."""
        there = targets.memory(self.target)
        if self.memory is None or there is None:
            return None
        return self.roofline is not None and self.memory.needed <= there


def make(experiment: Experiment, target: Target) -> Plan:
    """Compile one training step of abstract arrays and read its costs.

    Raises:
        InputError: the batch or a parameter does not divide over the devices.
    """
    config = experiment.sharding
    mesh = sharding.make_mesh(config=config, devices=target.devices)
    batch_size = experiment.train.batch_size
    sharding.check(batch_size, "train.batch_size", mesh, config.microbatches)
    compiled = steps.compile_train(experiment, mesh)
    batch = jax.ShapeDtypeStruct(
        (batch_size, experiment.model.seq_len + 1),
        "int32",
        sharding=sharding.batch_sharding(mesh),
    )
    start = time.perf_counter()
    text, memory = _compiled(compiled.train.lower(compiled.state, batch))
    seconds = time.perf_counter() - start
    hosts = [device.process_index for device in mesh.devices.flat]
    mesh_shape = dict(mesh.shape)
    return Plan(
        target=target,
        mesh=mesh_shape,
        params=_params(compiled.state.params, transformer.shapes(experiment.model)),
        opt_state=list(_opt_state(compiled.state.opt_state)),
        collectives=hlo.collective_bytes(text or ""),
        memory=memory,
        largest=hlo.largest(text or ""),
        checkpoint_bytes=sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(compiled.state)
        ),
        compile_seconds=seconds,
        roofline=None
        if text is None
        else roofline.read(text, target.chip, mesh_shape, hosts, shares(experiment)),
    )


def shares(experiment: Experiment) -> dict[str, float]:
    """Return how often the branches of an optimizer are taken, by their scopes."""
    optimizer = experiment.optimizer
    period = getattr(optimizer, "precondition_frequency", 1)
    staggered = getattr(optimizer, "stagger", False)
    refresh = 1.0 if staggered else 1.0 / period
    return {matrix.FIRST: 0.0, matrix.REFRESH: refresh, matrix.REPAIR: 0.0}


def _compiled(lowered: jax.stages.Lowered) -> tuple[str | None, Memory | None]:
    """Compile; return the program's text, None if it was refused, and its memory."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", str(error))
        if used is None:
            raise
        needed = float(used[1]) * 1024 ** " KMGT".index(used[2] or " ")
        return None, Memory(None, None, None, int(needed))
    found = program.memory_analysis()
    if found is None:
        return program.as_text() or "", None
    arguments, working = found.argument_size_in_bytes, found.temp_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    code = found.generated_code_size_in_bytes
    needed = arguments + working + max(results, 0) + code
    return program.as_text() or "", Memory(arguments, working, code, needed)


def largest_batch(experiment: Experiment, target: Target, made: Plan) -> int:
    """Search for the most sequences a step that fit in the target's memory.

    Memory is nearly a line in the batch, so that two compiled steps tell where to look;
    bisection narrows it to a sixteenth, in at most `MAX_COMPILES` steps.

    Returns:
        The largest batch that was compiled and fits; 0 if none did.

    Raises:
        InputError: the memory of the target's devices is not known.
    """
    there = targets.memory(target)
    if there is None or made.memory is None:
        raise InputError(
            "--largest-batch needs devices whose memory is known; give --target, for "
            "example h100:1x8"
        )
    unit = experiment.sharding.microbatches * math.prod(
        made.mesh[axis] for axis in sharding.RULES["batch"]
    )
    needed = {experiment.train.batch_size // unit: made.memory.needed}
    fit = {experiment.train.batch_size // unit: bool(made.fits)}

    def tried(parts: int) -> None:
        train = dataclasses.replace(experiment.train, batch_size=parts * unit)
        plan = make(dataclasses.replace(experiment, train=train), target)
        assert plan.memory is not None
        needed[parts], fit[parts] = plan.memory.needed, bool(plan.fits)

    for _ in range(MAX_COMPILES):
        low = max((parts for parts in fit if fit[parts]), default=0)
        high = min((parts for parts in fit if not fit[parts]), default=None)
        if high is not None and high - low <= max(1, low // 16):
            break
        tried(_next(needed, there, low, high))
    return unit * max((parts for parts in fit if fit[parts]), default=0)


def _next(needed: Mapping[int, int], there: int, low: int, high: int | None) -> int:
    """Choose the next batch to try, in units, between one that fits and one not."""
    if len(needed) == 1:
        return 2 * low if high is None else max(high // 2, 1)
    (a, at_a), (b, at_b) = sorted(needed.items())[-2:]
    slope = max((at_b - at_a) / (b - a), 1.0)
    line = int(a + (there - at_a) / slope)
    if high is None:
        return max(line, low + max(1, low // 16))
    if low < line < high:
        return line
    return (low + high) // 2


def run(
    arms: Sequence[Experiment],
    target: Target,
    *,
    num_seeds: int,
    device_flops: float | None,
    find_batch: bool,
    json_path: pathlib.Path | None,
) -> None:
    """Print what each arm costs, where its arrays live, and what all arms cost.

    Args:
        arms: the experiments that would be trained.
        target: the devices to plan for.
        num_seeds: how often each would be trained.
        device_flops: FLOP/s of the model that a device reaches, for the hours; None
            takes the roofline's estimate.
        find_batch: search for the largest batch that fits, which compiles a few times.
        json_path: the file that gets a row for each arm, one JSON object a line.

    Raises:
        InputError: as `make` and `largest_batch`; the FLOP/s are not positive.
    """
    if device_flops is not None and not device_flops > 0:
        raise InputError(f"--device-flops={device_flops} must be > 0")
    rows = []
    for arm in arms:
        plan = make(arm, target)
        batch = largest_batch(arm, target, plan) if find_batch else None
        rows.append(as_row(arm, plan, device_flops, batch))
        told.arm(arm, plan, rows[-1])
    if len(rows) > 1:
        told.together(rows, num_seeds)
    if json_path is not None:
        metrics.rewrite(json_path, rows)
        metrics.say(f"rows: {json_path}")


def as_row(
    experiment: Experiment,
    plan: Plan,
    device_flops: float | None = None,
    largest_batch_size: int | None = None,
) -> dict[str, Any]:
    """Return the numbers of a plan for JSON: bytes are of one device, disk is of all.

    `step_seconds` are the roofline's, or FLOPs of the model / (devices * device_flops)
    where those are given; None where neither is known. `disk_bytes` count the
    checkpoints that are kept and the one that is being written.
    """
    described = to_dict(experiment)
    flops = experiment.tokens_per_step * flops_per_token(experiment.model)
    num_devices = math.prod(plan.mesh.values())
    whole = [group for group in (*plan.params, *plan.opt_state) if group.whole]
    largest_whole = max(whole, key=lambda group: group.num_bytes, default=None)
    work, chip, memory = plan.roofline, plan.target.chip, plan.memory
    seconds = work.seconds if work is not None and chip is not None else None
    if device_flops is not None:
        seconds = flops / (num_devices * device_flops)
    peak = None if chip is None else chip.flops[_unit(experiment)]
    executed = None if work is None else sum(work.flops.values())
    return {
        "arm": experiment.arm,
        "config_fingerprint": fingerprint(experiment),
        "target": plan.target.name,
        "optimizer": described["optimizer"]["name"],
        "attention": experiment.model.attention,
        "remat": experiment.model.remat,
        "sharding": described["sharding"],
        "mesh": plan.mesh,
        "num_devices": num_devices,
        "num_params": num_params(experiment.model),
        "num_steps": experiment.train.num_steps,
        "tokens_per_step": experiment.tokens_per_step,
        "fits": plan.fits,
        "device_bytes": targets.memory(plan.target),
        "needed_bytes": memory and memory.needed,
        "argument_bytes": memory and memory.arguments,
        "working_bytes": memory and memory.working,
        "code_bytes": memory and memory.code,
        "largest_batch_size": largest_batch_size,
        "flops_per_step": flops,
        "executed_flops": work and work.flops,
        "executed_over_model": executed and executed * num_devices / flops,
        "bytes_moved": work and work.bytes_moved,
        "exchanges": work and [one._asdict() for one in work.exchanges],
        "unknown_loops": work and work.unknown_loops,
        "product_seconds": work and work.product_seconds,
        "other_seconds": work and work.other_seconds,
        "compiler_seconds": work and work.compiler_seconds,
        "device_flops": device_flops,
        "step_seconds": seconds,
        "mfu": seconds and peak and flops / (num_devices * seconds * peak),
        "hours": seconds and seconds * experiment.train.num_steps / 3600,
        "params_bytes": sum(group.num_bytes for group in plan.params),
        "opt_state_bytes": sum(group.num_bytes for group in plan.opt_state),
        "largest": plan.largest._asdict(),
        "largest_whole": largest_whole and largest_whole._asdict(),
        "collectives": plan.collectives,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "disk_bytes": plan.checkpoint_bytes * (1 + experiment.log.keep_checkpoints),
        "compile_seconds": plan.compile_seconds,
        **provenance.described(),
    }


def _unit(experiment: Experiment):
    """Name the unit whose peak a step of the model is measured against."""
    model = experiment.model
    return "bfloat16" if model.compute_dtype == "bfloat16" else "float32_highest"


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
