"""How long a compiled step can take at best: the roofline of each of its operations.

An operation that the program executes for itself (a fusion is one) takes the longer of
its multiplications at the peak of their unit and of its bytes at the bandwidth of main
memory (Williams et al., 2009). What crosses devices takes its bytes at the speed of the
slowest link it needs; nothing is hidden behind anything else, because a schedule that
hides it is the compiler's to find. With N bytes of a result and g devices in a group,

    all-gather, all-to-all, broadcast   N (g - 1) / g
    all-reduce                          2 N (g - 1) / g
    reduce-scatter                      N (g - 1)
    collective-permute                  N
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rfq.costs import hlo, work
from rfq.costs.targets import Chip

ASSUMED = (
    "each operation takes the longer of its FLOPs at the peak and its bytes at the "
    "bandwidth; exchanges go at the speed of one axis of links and hide behind nothing"
)

# Where a product of the step comes from, by the path of scopes in which jax traced it.
PARTS: Mapping[str, str] = {
    "rematted_computation": "recomputed",
    "transpose(": "backward",
    "jvp(": "forward",
    "": "optimizer",
}


class Exchange(NamedTuple):
    """Collectives of one kind over the same axes of the mesh, in one step.

    Attributes:
        op: for example "all-gather".
        axes: mesh axes whose devices exchange, joined by "*".
        num_bytes: bytes of their results on one device.
        seconds: what they take at link speed; 0 for a chip that is not known.
    """

    op: str
    axes: str
    num_bytes: float
    seconds: float


class Roofline(NamedTuple):
    """The work of one step on one device.

    Attributes:
        flops: part of the step, as in `PARTS` -> FLOPs of its matrix products.
        bytes_moved: bytes read from main memory and written to it.
        product_seconds: time of operations with products, at the roofline.
        other_seconds: time of the others, all of it moving bytes.
        exchanges: what crosses devices.
        compiler_seconds: the time in which a TPU's compiler believes, of all but
            exchanges; None elsewhere.
        unknown_loops: loops whose trips the program does not say; they count once.
    """

    flops: dict[str, float]
    bytes_moved: float
    product_seconds: float
    other_seconds: float
    exchanges: list[Exchange]
    compiler_seconds: float | None
    unknown_loops: int

    @property
    def seconds(self) -> float:
        """The estimate of a step."""
        exchanged = sum(one.seconds for one in self.exchanges)
        return self.product_seconds + self.other_seconds + exchanged


def read(
    text: str,
    chip: Chip | None,
    mesh_shape: Mapping[str, int],
    hosts: Sequence[int],
    shares: Mapping[str, float],
) -> Roofline:
    """Add up what a step's program does.

    Args:
        text: `Compiled.as_text()`.
        chip: whose peaks count; None leaves all seconds at 0.
        mesh_shape: mesh axis -> devices along it, slowest first.
        hosts: the host of each device of the mesh, in its order.
        shares: how often branches run, see `hlo.runs`.
    """
    program = hlo.parse(text)
    flops = dict.fromkeys(PARTS.values(), 0.0)
    bytes_moved = product_seconds = other_seconds = cycles = 0.0
    exchanges: dict[tuple[str, str], list[float]] = {}
    unknown = 0
    for run in hlo.runs(program, shares):
        one, times = run.instruction, run.times
        crossing = hlo.exchanged(program, one)
        if crossing:
            members = hlo.groups(_grouped(program, one))
            axes = axes_of(members, mesh_shape)
            size = len(members[0]) if members and members[0] else len(hosts)
            across = any(len({hosts[i] for i in group}) > 1 for group in members)
            across |= not members and len(set(hosts)) > 1
            for op, num_bytes in crossing:
                total = exchanges.setdefault((op, axes), [0.0, 0.0])
                total[0] += times * num_bytes
                total[1] += times * _link_seconds(op, num_bytes, size, across, chip)
            continue
        unknown += one.op == "while" and not _counted(program, run)
        found = work.products(program, one, run.computation)
        moved = work.moved(program, one, run.computation)
        bytes_moved += times * moved
        for product in found:
            flops[_part(one, program)] += times * product.flops
        estimated = re.search(r'"estimated_cycles":"(\d+)"', one.line)
        cycles += times * int(estimated[1]) if estimated else 0
        if chip is None:
            continue
        at_peak = sum(product.flops / chip.flops[product.unit] for product in found)
        seconds = times * max(at_peak, moved / chip.bandwidth)
        if found:
            product_seconds += seconds
        else:
            other_seconds += seconds
    clock = chip.clock if chip is not None else None
    return Roofline(
        flops,
        bytes_moved,
        product_seconds,
        other_seconds,
        [Exchange(*key, *total) for key, total in sorted(exchanges.items())],
        cycles / clock if clock and cycles else None,
        unknown,
    )


def axes_of(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> str:
    """Name the mesh axes along which the devices of a group differ."""
    names, sizes = tuple(mesh_shape), tuple(mesh_shape.values())
    if not groups:
        return "*".join(name for name, size in mesh_shape.items() if size > 1) or "none"
    differ = set()
    for group in groups:
        places = np.stack(np.unravel_index(list(group), sizes), axis=-1)
        differ |= {
            names[axis] for axis in range(len(names)) if len(set(places[:, axis])) > 1
        }
    return "*".join(name for name in names if name in differ) or "none"


def _link_seconds(
    op: str, num_bytes: int, size: int, across: bool, chip: Chip | None
) -> float:
    if chip is None or size < 2:
        return 0.0
    speed = chip.network if across and chip.network is not None else chip.link
    rest = (size - 1) / size
    sent = {
        "all-reduce": 2 * num_bytes * rest,
        "reduce-scatter": num_bytes * (size - 1),
        "collective-permute": num_bytes,
    }.get(op, num_bytes * rest)
    return sent / speed


def _part(instruction: hlo.Instruction, program: hlo.Program) -> str:
    """Say which part of the step a product belongs to."""
    for run in hlo.inside(program, instruction):
        source = run.instruction.source
        if source and run.instruction.op in ("dot", "convolution", "custom-call"):
            return next(part for mark, part in PARTS.items() if mark in source)
    source = instruction.source
    return next(part for mark, part in PARTS.items() if mark in source)


def _grouped(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Return the line that says which devices exchange."""
    for run in hlo.inside(program, instruction):
        if "replica_groups" in run.instruction.line:
            return run.instruction.line
    return instruction.line


def _counted(program: hlo.Program, run: hlo.Run) -> bool:
    return hlo.trips(program, run.computation, run.instruction) > 1 or (
        "known_trip_count" in run.instruction.line
    )
