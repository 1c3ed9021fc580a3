"""Reading and replacing the eigenbases that an optimizer's state holds.

The reference's null space at call 0 is roundoff of its LAPACK: the oracles take it
over.
"""

from typing import NamedTuple

import jax

from rfq.optim import axes as axes_lib
from rfq.optim import eigenbasis, linalg, matrix, stacks
from tests.oracles.kl_reference import ReferenceStack


class Basis(NamedTuple):
    """Eigenvectors in columns, [batch..., side, side]; None for a side without."""

    rows: jax.Array | None
    cols: jax.Array | None


def get_basis(opt_state, params, path: str, *, axes) -> Basis:
    """The stored eigenbasis of parameter `path`; `axes` are the optimizer's."""
    name, member = _find(params, path, axes)
    (state,) = _states(opt_state, name)
    _, factors = _factors(state.stacks[name].inner)
    left, right = (
        None if q is None else q[member.slice].reshape((*member.batch, *q.shape[1:]))
        for q in (factors.basis_l, factors.basis_r)
    )
    return Basis(right, left) if member.transposed else Basis(left, right)


def set_basis(opt_state, params, path: str, basis: Basis, *, axes):
    """Replaces it, and expresses in it what else is kept in the eigenbasis."""
    name, member = _find(params, path, axes)
    left, right = (basis.cols, basis.rows) if member.transposed else basis

    def place(old, new):
        if old is None or new is None:
            return old
        new = new.reshape((-1, *new.shape[-2:])).astype(old.dtype)
        return old.at[member.slice].set(new)

    def replace(node):
        if not (matrix.is_state(node) and name in node.stacks):
            return node
        stack = node.stacks[name]
        where, old = _factors(stack.inner)
        new = old._replace(
            basis_l=place(old.basis_l, left), basis_r=place(old.basis_r, right)
        )
        inner = _with(stack.inner, where, old, new)
        stacks = {**node.stacks, name: stack._replace(inner=inner)}
        return node._replace(stacks=stacks)

    return jax.tree.map(replace, opt_state, is_leaf=matrix.is_state)


def _with(inner, where: str, old, new):
    """The same state in other bases; second moments, as at a refresh, stay."""
    if not isinstance(inner, ReferenceStack):
        turns = []
        for side in ("l", "r"):
            q, q_new = getattr(old, f"basis_{side}"), getattr(new, f"basis_{side}")
            z = None if q is None else linalg.dot(q.mT, q_new, linalg.EXACT)
            turns.append(z)
            factor = getattr(old, f"factor_{side}")
            if z is not None:
                factor = eigenbasis.rotate(factor, eigenbasis.Turn(z, z))
            new = new._replace(**{f"factor_{side}": factor})
        turn = eigenbasis.Turn(*turns)
        inner = inner._replace(momentum=eigenbasis.rotate(inner.momentum, turn))
    if where == "kl":
        return inner._replace(kl=inner.kl._replace(factors=new))
    return inner._replace(factors=new)


def _factors(inner):
    return ("kl", inner.kl.factors) if hasattr(inner, "kl") else ("own", inner.factors)


def _states(opt_state, name: str) -> list[matrix.MatrixState]:
    found = jax.tree.leaves(opt_state, is_leaf=matrix.is_state)
    return [s for s in found if matrix.is_state(s) and name in s.stacks]


def _find(params, path: str, axes) -> tuple[str, stacks.Member]:
    leaves = [leaf for leaf in axes_lib.resolve(axes, params) if leaf.axes is not None]
    return next(
        (name, member)
        for name, group in stacks.layout(leaves).items()
        for member in group.members
        if member.path == path
    )
