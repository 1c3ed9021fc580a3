"""A description of an optimizer's work on each leaf of a tree, before it runs."""

import math
import sys
from typing import NamedTuple

import jax
import optax

from rfq.optim import axes as axes_lib
from rfq.optim.axes import Axes, Leaf
from rfq.optim.build import OptimizerConfig
from rfq.optim.kl_shampoo import KLShampooConfig


class Treatment(NamedTuple):
    """One leaf.

    Attributes:
        path: its keys joined by "/".
        shape: its shape.
        treatment: "matrix", or "other" for what goes to AdamW (spectral descent: to
            sign descent).
        num_matrices: how many matrices it holds; 0 for other leaves.
        matrix_shape: their (fan_in, fan_out); None for other leaves.
        state_bytes: what the optimizer remembers of it on one device.
    """

    path: str
    shape: tuple[int, ...]
    treatment: str
    num_matrices: int
    matrix_shape: tuple[int, int] | None
    state_bytes: int


def describe(
    params: optax.Params,
    axes: Axes = None,
    optimizer: OptimizerConfig = KLShampooConfig(),  # noqa: B008, it is frozen.
) -> list[Treatment]:
    """Print and return what an optimizer does with each leaf and what that takes.

    Nothing is computed: `params` may be shapes.

    Args:
        params: the parameters.
        axes: which leaves are matrices, as for the optimizer.
        optimizer: a config, for example `optim.SoapConfig()`.

    Raises:
        InputError: `axes` do not fit the parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"layers": jnp.ones((12, 8, 16)), "bias": jnp.ones(16)}
        >>> leaves = optim.describe(params, optim.scanned_axes("layers"))
        parameter  shape    treatment  matrices      state
        bias       16       other                    137 B
        layers     12x8x16  matrix     12 of 8x16  38.3 kB
        2 parameters, 12 matrices, 38.4 kB of state
    """
    leaves = axes_lib.resolve(axes, axes_lib.floating(params))
    treatments = [_treated(leaf, optimizer) for leaf in leaves]
    sys.stdout.write(_table(treatments))
    said = axes_lib.unspoken(leaves) if axes is None else None
    if said is not None:
        sys.stdout.write(f"note: {said}\n")
    return treatments


def _treated(leaf: Leaf, optimizer: OptimizerConfig) -> Treatment:
    directions = optimizer.directions({"": leaf.axes}, None)
    shape = jax.ShapeDtypeStruct(leaf.array.shape, leaf.array.dtype)
    direction = directions.matrix if leaf.axes else directions.other
    state = jax.eval_shape(direction.init, {"": shape})
    used = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    num, *sides = axes_lib.size(leaf) if leaf.axes else (0,)
    return Treatment(
        leaf.path,
        tuple(shape.shape),
        "matrix" if leaf.axes else "other",
        num,
        (sides[0], sides[1]) if sides else None,
        used,
    )


def _table(treatments: list[Treatment]) -> str:
    rows = [("parameter", "shape", "treatment", "matrices", "state")]
    rows += [
        (
            one.path,
            "x".join(map(str, one.shape)) or "scalar",
            one.treatment,
            f"{one.num_matrices} of {'x'.join(map(str, one.matrix_shape))}"
            if one.matrix_shape
            else "",
            _bytes(one.state_bytes),
        )
        for one in treatments
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if cell is row[-1] else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    ]
    num = sum(one.num_matrices for one in treatments)
    total = _bytes(sum(one.state_bytes for one in treatments))
    lines.append(f"{len(treatments)} parameters, {num} matrices, {total} of state")
    return "\n".join(lines) + "\n"


def _bytes(num: int) -> str:
    power = min(4, int(math.log(max(num, 1), 1000)))
    if power == 0:
        return f"{num} B"
    return f"{num / 1000**power:.1f} {'kMGT'[power - 1]}B"
