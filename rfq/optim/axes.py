"""The leaves of a parameter tree that are matrices, and the axes of these.

A leaf `[batch..., in..., out...]`, its axes in any order, is a batch of matrices; a
`MatrixAxes` says which axes are which. Every other leaf is left to AdamW (in spectral
descent, to sign descent).

Trees may have holes: `None` where Equinox keeps what is no array, and
`optax.MaskedNode` where `optax.masked` or `optax.multi_transform` hides a leaf from an
optimizer. A hole has no state and stays as it is.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from rfq.errors import InputError
from rfq.params import MatrixAxes

Array = jax.Array
AxesTree = optax.Params  # MatrixAxes | None at every leaf of the parameters.
Axes = AxesTree | Callable[[optax.Params], AxesTree] | None
Value = TypeVar("Value")


class Leaf(NamedTuple):
    """One parameter.

    Attributes:
        path: its keys joined by "/".
        array: the parameter, or anything else with its shape and dtype.
        axes: its matrix axes, None if it is no matrix.
    """

    path: str
    array: Array
    axes: MatrixAxes | None


def is_hole(node: object) -> bool:
    """Say whether a node stands where an optimizer has nothing to do."""
    return node is None or isinstance(node, optax.MaskedNode)


def tree_map(function: Callable, tree: Any, *rest: Any) -> Any:
    """Map as `jax.tree.map`; holes of the first tree stay, whatever the others have.

    The others may hold whole subtrees, or None, where the first has a leaf.
    """
    return jax.tree.map(
        lambda leaf, *others: leaf if is_hole(leaf) else function(leaf, *others),
        tree,
        *rest,
        is_leaf=is_hole,
    )


def is_variable(node: object) -> bool:
    """Say whether a node is a Flax NNX Variable: a box around one array."""
    return hasattr(node, "get_value") and not isinstance(node, jax.Array)


def paths(tree: Any) -> list[str]:
    """Name the leaves of a tree: keys joined by "/", without the boxes of Flax NNX."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, node in flat
        for _ in jax.tree.leaves(node)
    ]


def at_leaves(tree: Any, given: Any, what: str) -> list:
    """List what `given` has at each leaf of `tree`; it need not have the same holes.

    It may be a function of `tree`. An Equinox module can be called too, but is a tree.

    Raises:
        InputError: `given` has another structure; `what` is its name.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_hole)
    if callable(given) and type(given) is not type(tree):
        given = given(tree)
    try:
        values = treedef.flatten_up_to(given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{what}` must have the structure of the parameters, with one value at "
            f"each leaf, or be a function of the parameters that makes it; got {error}"
        ) from error
    return [v for leaf, v in zip(leaves, values, strict=True) if not is_hole(leaf)]


def resolve(axes: Axes, params: optax.Params) -> list[Leaf]:
    """Read an `axes` argument: the leaves of `params`, in order, with their axes.

    Args:
        axes: a tree like `params` with a `MatrixAxes` or None at every leaf, a function
            of `params` that makes one (`by_path`, `scanned`), or None for the rule of
            plain trees: a leaf with exactly two axes is a matrix (0,) -> (1,). That
            rule is wrong for stacked layers, where a stack of vectors has two axes.
        params: the parameters (arrays or shapes).

    Raises:
        InputError: the tree has another structure, or an entry is no axes of its leaf.
    """
    if axes is None:
        axes = two_axes
    rows = at_leaves(params, axes, "axes")
    leaves = [
        Leaf(path, leaf, row)
        for path, leaf, row in zip(
            paths(params), jax.tree.leaves(params), rows, strict=True
        )
    ]
    for leaf in leaves:
        _check(leaf)
    return leaves


def two_axes(params: optax.Params) -> AxesTree:
    """Take exactly the leaves with two axes for matrices, (0,) -> (1,)."""
    return jax.tree.map(lambda p: _plain(range(p.ndim)), params)


def by_path(patterns: Mapping[str, MatrixAxes | None]) -> Axes:
    """Make an `axes` argument from patterns of paths.

    Args:
        patterns: pattern -> axes of the leaves that it names, None for leaves that are
            no matrices. A pattern is a shell pattern of a leaf's path or of the path's
            end: "w_q" is every leaf of that name, "blocks/*" all that is under blocks.
            The first pattern that fits decides; a leaf that none fits is no matrix.

    Raises:
        InputError: when the optimizer is initialized, if a pattern fits no leaf or the
            axes are not axes of its leaves.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"conv": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}
        >>> axes = optim.axes_by_path({"conv": optim.MatrixAxes((0, 1, 2), (3,))})
        >>> optimizer = optim.muon(1e-3, axes=axes)
        >>> sorted(optimizer.init(params)[1].inner_states["matrix"][0].direction.stacks)
        ['16x72']
    """

    def axes(params: optax.Params) -> AxesTree:
        rows = match(patterns, paths(params), "axes", None)
        return jax.tree.unflatten(jax.tree.structure(params), rows)

    return axes


def scanned(*patterns: str, axis: int | Sequence[int] = 0) -> Axes:
    """Make an `axes` argument for layers that `flax.linen.scan` or `nnx.scan` stacked.

    Where a pattern fits (see `axes_by_path`), the axes `axis` count layers, and what is
    left of the shape follows the rule of plain trees: [L, m, n] is L matrices and
    [L, n] none. Other leaves follow that rule as they are.

    Raises:
        InputError: when the optimizer is initialized, if a pattern fits no leaf or a
            leaf that it fits has no such axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> layers = {"kernel": jnp.ones((12, 8, 16)), "bias": jnp.ones((12, 16))}
        >>> optimizer = optim.soap(1e-3, axes=optim.scanned_axes("layers/*"))
        >>> state = optimizer.init({"layers": layers, "head": jnp.ones((16, 8))})
        >>> stacks = state[1].inner_states["matrix"][0].direction.stacks
        >>> {size: len(stack.age) for size, stack in stacks.items()}
        {'8x16': 13}
    """
    layers = {axis} if isinstance(axis, int) else set(axis)

    def row(path: str, leaf: Array, stacked: bool) -> MatrixAxes | None:
        if stacked and not layers <= set(range(leaf.ndim)):
            raise InputError(
                f"parameter {path!r} of shape {leaf.shape} is said to be stacked along "
                f"{sorted(layers)}, which it does not have; give `axis` between 0 and "
                f"{leaf.ndim - 1}, or a pattern that leaves this parameter out"
            )
        return _plain(a for a in range(leaf.ndim) if not (stacked and a in layers))

    def axes(params: optax.Params) -> AxesTree:
        names, leaves = paths(params), jax.tree.leaves(params)
        fits = match(dict.fromkeys(patterns, True), names, "scanned_axes", False)
        rows = map(row, names, leaves, fits)
        return jax.tree.unflatten(jax.tree.structure(params), list(rows))

    return axes


def match(
    patterns: Mapping[str, Value], names: Sequence[str], what: str, otherwise: Value
) -> list[Value]:
    """Find for each path the value of the first pattern that fits it.

    Raises:
        InputError: a pattern fits no path; `what` is the argument that has it.
    """

    def fits(name: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase("/" + name, "*/" + pattern)

    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise InputError(
                f"`{what}` has the pattern {pattern!r}, which fits no parameter; the "
                f"parameters are {_some(names)}"
            )
    return [
        next((value for p, value in patterns.items() if fits(name, p)), otherwise)
        for name in names
    ]


def size(leaf: Leaf) -> tuple[int, int, int]:
    """Count a leaf's matrices and measures them: (number, rows, columns)."""
    assert leaf.axes is not None
    shape = leaf.array.shape
    rows = math.prod(shape[axis] for axis in leaf.axes.in_axes)
    cols = math.prod(shape[axis] for axis in leaf.axes.out_axes)
    used = {*leaf.axes.in_axes, *leaf.axes.out_axes}
    return math.prod(n for a, n in enumerate(shape) if a not in used), rows, cols


def unspoken(leaves: Sequence[Leaf]) -> str | None:
    """Say, if it is so, that the rule of plain trees may have misread a tree.

    Leaves with more than two axes are left to AdamW, and leaves with two axes that
    stand beside one with the same first axis look like stacked vectors.
    """
    large = [leaf for leaf in leaves if leaf.array.ndim > 2]
    if not large:
        return None
    stacks = {(_parent(leaf.path), leaf.array.shape[0]) for leaf in large}
    vectors = [
        leaf
        for leaf in leaves
        if leaf.array.ndim == 2 and (_parent(leaf.path), leaf.array.shape[0]) in stacks
    ]
    taken = (
        f", and {len(vectors)} that look like stacked vectors, such as "
        f"{vectors[0].path!r} {vectors[0].array.shape}, are taken for matrices"
        if vectors
        else ""
    )
    return (
        f"without `axes` only leaves with two axes are matrices: {len(large)} with "
        f"more, such as {large[0].path!r} {large[0].array.shape}, get no matrix "
        f"optimizer{taken}; say what they are with axes=optim.scanned_axes('layers/*') "
        "or optim.axes_by_path({...}), and see it with optim.describe(params, axes)"
    )


def _plain(axes: Iterable[int]) -> MatrixAxes | None:
    axes = tuple(axes)
    return MatrixAxes(axes[:1], axes[1:]) if len(axes) == 2 else None


def _check(leaf: Leaf) -> None:
    path, array, row = leaf
    if row is None:
        return
    if not isinstance(row, MatrixAxes):
        raise InputError(
            f"`axes` has {row!r} at parameter {path!r}; give an optim.MatrixAxes or "
            "None"
        )
    sides = (row.in_axes, row.out_axes)
    if not all(
        isinstance(side, tuple) and all(isinstance(a, int) for a in side)
        for side in sides
    ):
        raise InputError(
            f"parameter {path!r} has {row}, which must hold two tuples of axis "
            "numbers; write, for example, MatrixAxes((0,), (1,))"
        )
    named = [*row.in_axes, *row.out_axes]
    wrong = [axis for axis in named if not 0 <= axis < array.ndim]
    if wrong:
        raise InputError(
            f"parameter {path!r} of shape {array.shape} has no axis {wrong[0]}, which "
            f"{row} names; count its axes from 0 to {array.ndim - 1}"
        )
    if len(set(named)) < len(named):
        raise InputError(
            f"parameter {path!r}: {row} names one axis twice; name each axis of its "
            "matrices once"
        )


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _some(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def floating(tree: Any) -> Any:
    """Make holes of leaves that have no gradient: integers and booleans."""
    return tree_map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree)
