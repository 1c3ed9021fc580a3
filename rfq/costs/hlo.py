"""Facts read from a compiled program, such as the bytes that its collectives make."""

import re
from typing import NamedTuple

import numpy as np

_DTYPE_BITS = {"pred": 8, "token": 0}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:[a-z][a-z0-9]*)?)\[([0-9,]*)\]")
_COLLECTIVE = re.compile(
    r"= (?P<result>[^%=]*?) (?P<op>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|ragged-all-to-all|collective-broadcast)(?P<start>-start)?\("
)
_MADE = re.compile(r"^ +(?:ROOT )?%[\w.\-]+ = (?P<result>.*?) (?P<op>[a-z][\w\-]*)\(")
_HEAD = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(r"(\w+)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One instruction by which devices exchange arrays.

    Attributes:
        op: for example "all-gather".
        num_bytes: bytes of its result on one device. An all-gather sends less, because
            a device already holds its part of the result; a reduce-scatter sends more.
        times: how often a run of the program executes it, as far as the compiler knows
            the trips of its loops; a branch counts as if it were taken.
        line: the instruction.
    """

    op: str
    num_bytes: int
    times: int
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
        for dtype, dims in _SHAPE.findall(match["result"]):
            num_bytes = _bytes(dtype, dims)
            if num_bytes > best.num_bytes:
                best = Made(num_bytes, f"{dtype}[{dims}]", match["op"])
    return best


def collectives(text: str) -> list[Collective]:
    """List the collectives of one device, as a partitioned program describes them.

    Args:
        text: `Compiled.as_text()`.
    """
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head is not None:
            name = head["name"]
            bodies[name] = []
            entry = name if head["entry"] else entry
        elif name:
            bodies[name].append(line)
    listed: list[Collective] = []

    def walk(computation: str, times: int) -> None:
        for line in bodies.get(computation, []):
            match = _COLLECTIVE.search(line)
            if match is not None:
                listed.append(Collective(match["op"], _result(match), times, line))
                continue
            trips = _TRIPS.search(line)
            for role, called in _CALLED.findall(line):
                inside = int(trips[1]) if trips is not None and role == "body" else 1
                for callee in re.findall(r"%([\w.\-]+)", called):
                    walk(callee, times * inside)

    walk(entry, 1)
    return listed


def collective_bytes(text: str) -> dict[str, int]:
    """Sum the bytes of the results of each kind of collective that a program runs.

    Returns:
        Operation, for example "all-gather", to bytes; only those that occur.
    """
    totals: dict[str, int] = {}
    for one in collectives(text):
        totals[one.op] = totals.get(one.op, 0) + one.times * one.num_bytes
    return totals


def _result(match: re.Match[str]) -> int:
    shapes = _SHAPE.findall(match["result"])
    if match["start"] and match["op"] in ("all-gather", "collective-permute"):
        # (operands, results, contexts): contexts are scalars, the rest come in pairs.
        shapes = [shape for shape in shapes if shape != ("u32", "")]
        shapes = shapes[len(shapes) // 2 :]
    return sum(_bytes(*shape) for shape in shapes)


def _bytes(dtype: str, dims: str) -> int:
    """Count the bytes of an array such as bf16[8,128]."""
    if dtype not in _DTYPE_BITS:
        digits = re.search(r"[0-9]+", dtype)
        _DTYPE_BITS[dtype] = int(digits[0]) if digits else 0
    size = int(np.prod([int(dim) for dim in dims.split(",") if dim], dtype=np.int64))
    return -(-size * _DTYPE_BITS[dtype] // 8)
