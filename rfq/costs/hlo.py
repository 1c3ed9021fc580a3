"""The text of a compiled program, read: what runs how often, and what it exchanges.

XLA prints a program as computations of instructions, for every backend in the same
language. Loops, branches and fusions call computations by name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_DTYPE_BITS = {"pred": 8, "token": 0}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:[a-z][a-z0-9]*)?)\[([0-9,]*)\](\{[^{}]*\})?")
_MADE = re.compile(
    r"^ +(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<result>.*?) (?P<op>[a-z][\w\-]*)\("
)
_HEAD = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(r"(\w+)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAMES = re.compile(r"%([\w.\-]+)")
_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)


class Shape(NamedTuple):
    """An array's type.

    Attributes:
        dtype: for example "bf16".
        dims: lengths of the axes.
        on_chip: a TPU keeps it beside its units, not in its main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return -(-math.prod(self.dims) * _bits(self.dtype) // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: what the others call its result.
        op: for example "fusion".
        result: its result as printed, a tuple of arrays or one.
        operands: names of what it reads.
        line: all of it.
        is_root: its result is the computation's.
    """

    name: str
    op: str
    result: str
    operands: tuple[str, ...]
    line: str
    is_root: bool

    @property
    def shapes(self) -> list[Shape]:
        """The arrays that it makes."""
        return shapes(self.result)

    @property
    def source(self) -> str:
        """The path of named scopes under which jax traced it."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""

    def called(self, *roles: str) -> list[str]:
        """List the computations that it calls, in these roles or in any."""
        return [
            callee
            for role, names in _CALLED.findall(self.line)
            if not roles or role in roles
            for callee in _NAMES.findall(names)
        ]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        entry: the name of the computation that runs.
        computations: name -> its instructions by name, in their order.
    """

    entry: str
    computations: Mapping[str, Mapping[str, Instruction]]


class Run(NamedTuple):
    """An instruction that is executed for itself, not inside a fusion.

    Attributes:
        instruction: the line.
        computation: the name of the computation that it is in.
        times: how often a run of the program executes it, as far as the compiler knows
            the trips of its loops.
    """

    instruction: Instruction
    computation: str
    times: float


class Collective(NamedTuple):
    """One instruction by which devices exchange arrays.

    Attributes:
        op: for example "all-gather".
        num_bytes: bytes of its result on one device. An all-gather sends less, because
            a device already holds its part of the result; a reduce-scatter sends more.
        times: as of `Run`.
        line: the instruction.
    """

    op: str
    num_bytes: int
    times: float
    line: str


class Made(NamedTuple):
    """An array that an instruction makes.

    Attributes:
        num_bytes: its bytes on one device.
        shape: for example "f32[8,128]".
        op: the instruction.
    """

    num_bytes: int
    shape: str
    op: str


def parse(text: str) -> Program:
    """Read what `Compiled.as_text()` prints."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, name = "", ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head is not None:
            name = head["name"]
            computations[name] = {}
            entry = name if head["entry"] else entry
            continue
        made = _MADE.match(line)
        if made is not None and name:
            inside = _until_closed(line, made.end())
            computations[name][made["name"]] = Instruction(
                made["name"],
                made["op"],
                made["result"],
                tuple(_NAMES.findall(inside)) if made["op"] != "constant" else (),
                line,
                made["root"] is not None,
            )
    return Program(entry, computations)


def shapes(text: str) -> list[Shape]:
    """List the arrays of a printed type."""
    return [
        Shape(
            dtype,
            tuple(int(dim) for dim in dims.split(",") if dim),
            "S(1)" in layout,
        )
        for dtype, dims, layout in _SHAPE.findall(text)
    ]


def runs(program: Program, shares: Mapping[str, float] | None = None) -> Iterator[Run]:
    """Yield what a run of the program executes, outermost first.

    Args:
        program: as parsed.
        shares: name of a scope -> how often a branch under it is taken, a number from 0
            to 1. A branch under no such scope counts as if it were always taken.
    """

    def walk(name: str, times: float) -> Iterator[Run]:
        for instruction in program.computations.get(name, {}).values():
            yield Run(instruction, name, times)
            inside = times
            if instruction.op == "while":
                inside = times * trips(program, name, instruction)
                callees = instruction.called("body")
            elif instruction.op == "conditional":
                inside = times * _share(instruction, shares or {})
                callees = instruction.called(
                    "branch_computations", "true_computation", "false_computation"
                )
            elif instruction.op in ("call", "async-start"):
                callees = instruction.called("to_apply", "calls", "called_computations")
            else:
                continue
            if inside:
                for callee in callees:
                    yield from walk(callee, inside)

    yield from walk(program.entry, 1)


def trips(program: Program, computation: str, loop: Instruction) -> int:
    """Return how often a loop's body runs, 1 where that is not written in the program.

    CPU and GPU programs say it. In a TPU's it is the constant that a counter is
    compared with, less the constant at which the counter starts.
    """
    known = _TRIPS.search(loop.line)
    if known is not None:
        return int(known[1])
    for name in loop.called("condition"):
        inside = program.computations.get(name, {})
        root = next((one for one in inside.values() if one.is_root), None)
        if root is None or "direction=LT" not in root.line:
            continue
        if len(root.operands) != 2:
            continue
        bound = _constant(inside, root.operands[1])
        counter = inside.get(root.operands[0])
        if bound is None or counter is None:
            continue
        return max(bound - _start(program, computation, loop, counter), 1)
    return 1


def inside(program: Program, instruction: Instruction) -> Iterator[Run]:
    """Yield an instruction and, of a fusion, those of the computations it calls."""
    seen = [(instruction, "")]
    while seen:
        one, computation = seen.pop()
        yield Run(one, computation, 1)
        if one.op in ("fusion", "custom-call"):
            seen += [
                (inner, callee)
                for callee in one.called("calls", "called_computations")
                for inner in program.computations.get(callee, {}).values()
            ]


def largest(text: str) -> Made:
    """Find the largest array of a program on one device, arguments included.

    An array inside a fusion is not counted, because it is never stored.
    """
    best, fused = Made(0, "", ""), False
    for line in text.splitlines():
        if not line.startswith(" "):
            fused = "fused_computation" in line
        match = _MADE.search(line)
        if match is None or fused:
            continue
        for shape in shapes(match["result"]):
            if shape.num_bytes > best.num_bytes:
                dims = ",".join(map(str, shape.dims))
                best = Made(shape.num_bytes, f"{shape.dtype}[{dims}]", match["op"])
    return best


def collectives(text: str) -> list[Collective]:
    """List the collectives of one device, as a partitioned program describes them.

    A branch counts as if it were taken.

    Args:
        text: `Compiled.as_text()`.
    """
    program = parse(text)
    return [
        Collective(*found, run.times, run.instruction.line)
        for run in runs(program)
        for found in exchanged(program, run.instruction)
    ]


def collective_bytes(text: str) -> dict[str, int]:
    """Sum the bytes of the results of each kind of collective that a program runs.

    Returns:
        Operation, for example "all-gather", to bytes; only those that occur.
    """
    totals: dict[str, int] = {}
    for one in collectives(text):
        totals[one.op] = totals.get(one.op, 0) + int(one.times) * one.num_bytes
    return totals


def exchanged(program: Program, instruction: Instruction) -> list[tuple[str, int]]:
    """List kind and bytes of the collectives of an instruction, fused ones included.

    A TPU fuses an all-reduce with the slice that a device keeps of it, which makes a
    reduce-scatter of it.
    """
    found = []
    for run in inside(program, instruction):
        op = run.instruction.op.removesuffix("-start")
        if op not in _KINDS:
            continue
        num_bytes = _received(run.instruction)
        if run.computation.startswith("all-reduce-scatter"):
            op = "reduce-scatter"
            num_bytes = sum(shape.num_bytes for shape in instruction.shapes)
        found.append((op, num_bytes))
    return found


def groups(line: str) -> list[tuple[int, ...]]:
    """Read which devices exchange with one another; no groups means all of them.

    XLA writes them as lists, {{0,1},{2,3}}, as a reshaped and transposed count,
    [2,2]<=[4]T(0), or as axes of a mesh, mesh['a'=2,'b'=2] {'b'}.
    """
    listed = re.search(r"replica_groups=\{(\{[0-9,{} ]*\})\}", line)
    if listed is None:
        listed = re.search(r"source_target_pairs=\{(\{[0-9,{} ]*\})\}", line)
    if listed is not None:
        return [
            tuple(int(i) for i in group.split(",") if i.strip())
            for group in re.findall(r"\{([0-9, ]*)\}", listed[1])
        ]
    counted = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    )
    if counted is not None:
        dims = [int(dim) for dim in counted[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if counted[4]:
            ids = ids.transpose([int(axis) for axis in counted[4].split(",")])
        ids = ids.reshape(int(counted[1]), int(counted[2]))
        return [tuple(int(i) for i in row) for row in ids]
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, ?\S+)? ?\{([^}]*)\}", line)
    if meshed is not None:
        sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        along = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", meshed[2])]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        ids = np.moveaxis(ids, along, range(-len(along), 0))
        length = math.prod(ids.shape[ids.ndim - len(along) :])
        return [tuple(int(i) for i in row) for row in ids.reshape(-1, length)]
    return []


def _received(instruction: Instruction) -> int:
    made = instruction.shapes
    paired = ("all-gather-start", "collective-permute-start")
    if instruction.op in paired and len(made) > 1:
        # (operands, results, contexts): contexts are scalars, the rest come in pairs.
        made = [one for one in made if (one.dtype, one.dims) != ("u32", ())]
        made = made[len(made) // 2 :]
    return sum(one.num_bytes for one in made)


def _share(branch: Instruction, shares: Mapping[str, float]) -> float:
    scopes = branch.source.split("/")
    return min((shares[scope] for scope in scopes if scope in shares), default=1.0)


def _start(
    program: Program, computation: str, loop: Instruction, counter: Instruction
) -> int:
    """Return the constant at which a loop's counter starts; 0 if it is not one."""
    index = re.search(r"index=(\d+)", counter.line)
    around = program.computations[computation]
    given = around.get(loop.operands[0]) if loop.operands else None
    if index is None or given is None or len(given.operands) <= int(index[1]):
        return 0
    return _constant(around, given.operands[int(index[1])]) or 0


def _constant(around: Mapping[str, Instruction], name: str) -> int | None:
    """Follow copies to an integer constant."""
    while (made := around.get(name)) is not None:
        written = re.search(r" constant\((\d+)\)", made.line)
        if written is not None:
            return int(written[1])
        if made.op not in ("copy", "bitcast", "convert"):
            return None
        (name,) = made.operands
    return None


def _until_closed(line: str, start: int) -> str:
    """Return the text from behind an opening parenthesis to the one that closes it."""
    depth = 1
    for end in range(start, len(line)):
        depth += (line[end] == "(") - (line[end] == ")")
        if depth == 0:
            return line[start:end]
    return line[start:]


def _bits(dtype: str) -> int:
    if dtype not in _DTYPE_BITS:
        digits = re.search(r"[0-9]+", dtype)
        _DTYPE_BITS[dtype] = int(digits[0]) if digits else 0
    return _DTYPE_BITS[dtype]
