"""What one executed instruction costs: its multiplications and the bytes it moves.

Counted as XLA's own `HloCostAnalysis` counts, but over loops: a fusion reads each of
its arguments once, or only the parts that it slices, and writes its results once.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from rfq.costs.hlo import Instruction, Program, Shape, inside, shapes

# How the units multiply: the type of the factors and, for float32, the precision.
Unit = Literal["bfloat16", "int8", "float32", "float32_high", "float32_highest"]

_FREE = frozenset(
    (
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
        "conditional", "call", "after-all", "partition-id", "replica-id", "iota",
        "opt-barrier", "async-start", "async-update", "async-done", "add-dependency",
    )
)  # fmt: skip
_THROUGH = ("bitcast", "reshape", "copy", "convert")
_SLICES = ("dynamic-slice", "slice", "gather")
# Products of cuDNN's fused attention: queries by keys and weights by values, forwards;
# the logits again, and two gradients of each product, backwards. The causal half is
# done, see `_fused_attention`.
_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}


class Product(NamedTuple):
    """A matrix product, or another operation of the units that multiply.

    Attributes:
        flops: multiplications and additions.
        unit: how they are done.
    """

    flops: float
    unit: Unit


def products(
    program: Program, instruction: Instruction, computation: str
) -> list[Product]:
    """List the matrix products of an instruction, those inside a fusion included."""
    found = []
    for run in inside(program, instruction):
        around = program.computations.get(run.computation or computation, {})
        product = _product(run.instruction, around)
        if product is not None:
            found.append(product)
    return found


def moved(program: Program, instruction: Instruction, computation: str) -> int:
    """Count the bytes that an instruction reads from main memory and writes to it."""
    around = program.computations.get(computation, {})
    op = instruction.op
    if op in _FREE or op.endswith("-done"):
        return 0
    if op == "fusion":
        (callee,) = instruction.called("calls")
        read = sum(
            _read(program, callee, index, _whole(around, name))
            for index, name in enumerate(instruction.operands)
        )
        return read + _written(program, callee, instruction)
    made = _stored(instruction.shapes)
    if op in _SLICES or op == "copy-start":
        return 2 * made if op in _SLICES else made
    if op in ("dynamic-update-slice", "scatter"):
        which = 1 if op == "dynamic-update-slice" else -1
        return 2 * _whole(around, instruction.operands[which])
    if op == "custom-call" and "AllocateBuffer" in instruction.line:
        return 0
    return made + sum(_whole(around, name) for name in instruction.operands)


def _product(one: Instruction, around: Mapping[str, Instruction]) -> Product | None:
    if one.op == "dot":
        factors = [_shape(around, name) for name in one.operands[:2]]
        if None in factors:
            return None
        along = _numbers(one.line, r"lhs_contracting_dims=\{([0-9,]*)\}")
        summed = math.prod(factors[0].dims[axis] for axis in along)  # pyright: ignore
        flops = 2.0 * math.prod(one.shapes[0].dims) * summed
        return Product(flops, _unit(factors[0], one.line))
    if one.op == "convolution":
        return _convolution(one, around)
    if one.op == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', one.line)
        if target is not None and target[1] in _ATTENTION:
            return _fused_attention(one, _ATTENTION[target[1]])
        if target is not None and re.search(r"(?i)gemm|matmul", target[1]):
            return _library_product(one, around)
    return None


def _library_product(
    one: Instruction, around: Mapping[str, Instruction]
) -> Product | None:
    """Count a product that a library does, from the sizes of factors and result."""
    a, b = (_shape(around, name) for name in one.operands[:2])
    if a is None or b is None:
        return None
    batch = _numbers(one.line, r'"lhs_batch_dimensions":\[([0-9,"]*)\]')
    shared = math.prod(a.dims[axis] for axis in batch)
    result = math.prod(one.shapes[0].dims)
    # (batch m k) (batch k n) / (batch m n) = batch k^2.
    summed = math.sqrt(math.prod(a.dims) * math.prod(b.dims) / (result * shared))
    return Product(2.0 * result * summed, _unit(a, one.line))


def _fused_attention(one: Instruction, num_products: int) -> Product:
    sizes = re.search(
        r'"intermediate_tensor_shape".*?"dimensions": ?\[([^\]]*)\]', one.line
    )
    dims = [int(n) for n in re.findall(r"\d+", sizes[1])] if sizes else [0]
    width = one.shapes[0].dims[-1]
    half = 0.5 if "CAUSAL" in one.line else 1.0
    return Product(2.0 * math.prod(dims) * width * num_products * half, "bfloat16")


def _convolution(one: Instruction, around: Mapping[str, Instruction]) -> Product | None:
    """Count a convolution's valid positions, as which a TPU writes all products.

    Batches of a product become positions of a window that is dilated or padded so far
    that each meets one partner; only those are multiplied.
    """
    image, kernel = (_shape(around, name) for name in one.operands[:2])
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.line)
    if image is None or kernel is None or names is None:
        return None
    given, weights, made = names[1], names[2], names[3]
    result = one.shapes[0]
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", _found(one.line, r"window=\{([^}]*)\}"))
    )
    groups = int(_found(one.line, r"feature_group_count=(\d+)") or 1)
    batch_groups = int(_found(one.line, r"batch_group_count=(\d+)") or 1)
    num = image.dims[given.index("f")] / groups
    num *= result.dims[made.index("f")]
    num *= image.dims[given.index("b")] / batch_groups
    for axis in range(sum(label.isdigit() for label in given)):

        def of(field: str, default: str, axis: int = axis) -> str:
            return window[field].split("x")[axis] if field in window else default

        low = of("pad", "0_0").partition("_")[0]
        num *= _valid(
            size=image.dims[given.index(str(axis))],
            window=kernel.dims[weights.index(str(axis))],
            made=result.dims[made.index(str(axis))],
            stride=int(of("stride", "1")),
            low=int(low),
            dilate=int(of("lhs_dilate", "1")),
            spread=int(of("rhs_dilate", "1")),
        )
    return Product(2.0 * num, _unit(image, one.line))


@functools.cache
def _valid(
    *,
    size: int,
    window: int,
    made: int,
    stride: int,
    low: int,
    dilate: int,
    spread: int,
) -> int:
    """Count pairs of a window's and a result's position that meet an input's."""
    if (stride, low, dilate, spread) == (1, 0, 1, 1) and made + window - 1 <= size:
        return window * made
    last = (size - 1) * dilate
    count = 0
    for position in range(window):
        start = position * spread - low
        for result in range(made):
            at = start + result * stride
            count += 0 <= at <= last and at % dilate == 0
    return count


def _unit(factor: Shape | None, line: str) -> Unit:
    dtype = "bf16" if factor is None else factor.dtype
    if dtype in ("s8", "u8", "s4", "u4"):
        return "int8"
    if dtype not in ("f32", "f64", "s32"):
        return "bfloat16"
    precision = re.search(r"(?i)operand_precision\"?[=:] ?[\[{]\"?(high\w*)", line)
    if precision is None:
        return "float32"
    high = precision[1].lower() == "high"
    return "float32_high" if high else "float32_highest"


def _read(program: Program, computation: str, index: int, whole: int) -> int:
    """Count the bytes that a fusion reads of one argument."""
    body = program.computations.get(computation, {})
    name = next(
        (
            one.name
            for one in body.values()
            if one.op == "parameter" and f" parameter({index})" in one.line
        ),
        None,
    )
    if name is None or whole == 0:
        return whole
    read, waiting, seen = 0, [name], set()
    while waiting:
        name = waiting.pop()
        for use in body.values():
            if name not in use.operands or use.name in seen:
                continue
            seen.add(use.name)
            if use.op in _THROUGH and not use.is_root:
                waiting.append(use.name)
            elif use.op in _SLICES and use.operands[0] == name:
                read += sum(shape.num_bytes for shape in use.shapes)
            elif use.op == "dynamic-update-slice" and use.operands[0] == name:
                continue  # In place.
            elif use.op == "fusion":
                (callee,) = use.called("calls")
                where = use.operands.index(name)
                read += _read(program, callee, where, whole)
            else:
                return whole
    return min(read, whole)


def _written(program: Program, computation: str, fusion: Instruction) -> int:
    """Count the bytes that a fusion writes: of an update in place, the update."""
    body = program.computations.get(computation, {})
    root = next((one for one in body.values() if one.is_root), None)
    while root is not None and root.op in _THROUGH:
        root = body.get(root.operands[0])
    if root is not None and root.op == "dynamic-update-slice":
        return min(_whole(body, root.operands[1]), _stored(fusion.shapes))
    if root is not None and root.op == "tuple":
        total = 0
        for name, shape in zip(root.operands, fusion.shapes, strict=False):
            part = body.get(name)
            updates = part is not None and part.op == "dynamic-update-slice"
            written = _whole(body, part.operands[1]) if updates else math.inf  # pyright: ignore
            total += min(written, _stored([shape]))
        return int(total)
    return _stored(fusion.shapes)


def _whole(around: Mapping[str, Instruction], name: str) -> int:
    made = around.get(name)
    return 0 if made is None else _stored(made.shapes)


def _stored(made: list[Shape]) -> int:
    return sum(shape.num_bytes for shape in made if not shape.on_chip)


def _shape(around: Mapping[str, Instruction], name: str) -> Shape | None:
    made = around.get(name)
    return None if made is None else next(iter(shapes(made.result)), None)


def _numbers(line: str, pattern: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", _found(line, pattern))]


def _found(line: str, pattern: str) -> str:
    match = re.search(pattern, line)
    return "" if match is None else match[1]
