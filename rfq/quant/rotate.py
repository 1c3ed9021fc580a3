"""Rotations: the same function of the tokens in a basis where no channel stands out.

An orthogonal matrix R turns the stream into x R. An RMS norm without gains commutes
with it, since |x R| = |x|, so that R folds into what writes the stream and R^T into
what reads it. The same holds for the values of a head, which only mix over positions.
The hidden activation of an MLP is behind a nonlinearity: there R is applied to the
activation itself, before any tap sees it, and R^T folds into W_D. These are the
rotations R1, R2 and R4 of QuaRot (Ashkboos et al., arXiv 2404.00456) and of SpinQuant
(Liu et al., arXiv 2405.16406).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rfq.types import Array, Params, Turns


def hadamard(width: int) -> np.ndarray | None:
    """Make a matrix of +1 and -1 with H H^T = width I, or None where none is known.

    It is C (x) S, where S has a power of two for its size (Sylvester) and C is 1 or
    one of Paley's matrices: of size q + 1 for a prime q = 3 mod 4, or 2 (q + 1) for a
    prime q = 1 mod 4.

    Args:
        width: Rows and columns.

    Examples:
        >>> from rfq.quant import rotate
        >>> rotate.hadamard(2).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
        >>> rotate.hadamard(3) is None
        True
    """
    core = _core(width)
    if core is None:
        return None
    sylvester = np.ones((1, 1))
    while len(core) * len(sylvester) < width:
        sylvester = np.kron(sylvester, [[1.0, 1.0], [1.0, -1.0]])
    return np.kron(core, sylvester)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A random orthogonal matrix R; calling it computes x R over the last axis.

    R = diag(s) H / sqrt(width) with random signs s and a Hadamard matrix H, which
    takes width log2(width) additions where H is Sylvester's. A width that has no known
    H gets a matrix from the uniform distribution (Haar).

    Attributes:
        width: Values along the axis.
        seed: Draws the signs or the matrix.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq.quant import rotate
        >>> outlier = jnp.array([0.0, 0.0, 8.0, 0.0])
        >>> abs(rotate.Rotation(4)(outlier)).tolist()
        [4.0, 4.0, 4.0, 4.0]
    """

    width: int
    seed: int = 0

    @property
    def matrix(self) -> np.ndarray:
        """R, float64 [width, width]."""
        found = hadamard(self.width)
        if found is None:
            return _haar(self.width, self.seed)
        return self._signs[:, None] * found / math.sqrt(self.width)

    @property
    def _signs(self) -> np.ndarray:
        return np.random.default_rng(self.seed).choice([-1.0, 1.0], self.width)

    def __call__(self, x: Array) -> Array:
        """Compute x R in float32; the result has the type of x."""
        x32, core = x.astype(jnp.float32), _core(self.width)
        if core is None:
            dense = jnp.asarray(_haar(self.width, self.seed), jnp.float32)
            return jnp.matmul(x32, dense, precision="highest").astype(x.dtype)
        signs = jnp.asarray(self._signs / math.sqrt(self.width), jnp.float32)
        y = x32 * signs.reshape(*(1,) * (x.ndim - 1), -1)
        y = y.reshape(*x.shape[:-1], len(core), -1)
        half = 1
        while half < y.shape[-1]:
            pairs = y.reshape(*y.shape[:-1], -1, 2, half)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
            y = jnp.stack([a + b, a - b], axis=-2).reshape(y.shape)
            half *= 2
        if len(core) > 1:
            mixing = jnp.asarray(core, jnp.float32)
            y = jnp.einsum("...mp,mn->...np", y, mixing, precision="highest")
        return y.reshape(x.shape).astype(x.dtype)


class Rotations(NamedTuple):
    """The rotations of a decoder: of its stream, each head's values and the hidden."""

    stream: Rotation
    values: Rotation
    hidden: Rotation

    @property
    def online(self) -> Turns:
        """The sites whose activation is rotated itself, as `types.Turns`."""
        return (("mlp_hidden", self.hidden),)


def draw(width: int, head_width: int, mlp_width: int, *, seed: int = 0) -> Rotations:
    """Draw the rotations of a decoder of these sizes."""
    sizes = (width, head_width, mlp_width)
    return Rotations(*(Rotation(n, 3 * seed + which) for which, n in enumerate(sizes)))


# The axis of each parameter that lies along the stream, the values or the hidden.
_AXES: Mapping[str, Mapping[str, int]] = {
    "stream": {
        "embedding": 1,
        "unembedding": 1,
        "w_embed": 1,
        "w_unembed": 0,
        "w_q": 1,
        "w_k": 1,
        "w_v": 1,
        "w_gate": 1,
        "w_o": 3,
        "w_up": 1,
        "w_mlp_gate": 1,
        "w_down": 2,
    },
    "values": {"w_v": 3, "b_v": 2, "w_o": 2},
    "hidden": {"w_down": 1},
}

# What reads the stream behind each norm of a block; the axis is that of `_AXES`.
_BEHIND: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("w_q", "w_k", "w_v", "w_gate"),
    "mlp_norm": ("w_up", "w_mlp_gate"),
}


def fold_gains(params: Params) -> dict[str, Any]:
    """Move the gains of the norms into the weights that read what they scale.

    norm(x) * g W = norm(x) (diag(g) W): every gain becomes 1. Without a projection
    before it, a tied head becomes a matrix "unembedding" of its own, because the lookup
    has no gain.

    Args:
        params: A decoder's.

    Returns:
        The parameters of the same function; those of a model with `head="untied"`
        unless the embedding is projected.
    """
    blocks = dict(params["blocks"])
    for gain, readers in _BEHIND.items():
        for name in readers:
            if name in blocks:
                blocks[name] = _scaled(blocks[name], blocks[gain], 1)
        blocks[gain] = jnp.ones_like(blocks[gain])
    folded = {**params, "blocks": blocks}
    gain = folded["final_norm"]
    if "w_unembed" in folded:
        folded["w_unembed"] = _scaled(folded["w_unembed"], gain, 0)
    else:
        head = folded.get("unembedding", folded["embedding"])
        folded["unembedding"] = _scaled(head, gain, 1)
    return {**folded, "final_norm": jnp.ones_like(gain)}


def rotated(params: Params, rotations: Rotations) -> dict[str, Any]:
    """Fold gains and rotations into a decoder's weights.

    The function stays the same where `rotations.online` is applied to the activations.
    It holds with and without skips, since a skip carries x R for x, for gated MLPs, for
    any head, and for shared keys, whose values turn alike in all heads.

    Args:
        params: A decoder's, with norms that do not subtract a mean.
        rotations: Those of its sizes.

    Returns:
        As `fold_gains`.
    """
    folded = fold_gains(params)
    for kind, axes in _AXES.items():
        turn = getattr(rotations, kind)
        for table in (folded, folded["blocks"]):
            # A lookup that is projected is turned behind its projection.
            fixed = ("embedding", "unembedding") if "w_embed" in table else ()
            for name, axis in axes.items():
                if name in table and name not in fixed:
                    table[name] = _along(table[name], axis, turn)
    return folded


def _scaled(w: Array, gain: Array, axis: int) -> Array:
    """Multiply by a gain [L, D], or [D] of one matrix, along the matrix's axis."""
    shape = [1] * w.ndim
    shape[axis] = gain.shape[-1]
    if gain.ndim == 2:
        shape[0] = gain.shape[0]
    return w * gain.reshape(shape)


def _along(w: Array, axis: int, turn: Rotation) -> Array:
    return jnp.moveaxis(turn(jnp.moveaxis(w, axis, -1)), -1, axis)


@functools.cache
def _core(width: int) -> np.ndarray | None:
    """Return the part of `hadamard` that is not Sylvester's."""
    size = width
    while size % 2 == 0:
        size //= 2
    while size <= width:
        found = np.ones((1, 1)) if size == 1 else _paley(size)
        if found is not None:
            return found
        size *= 2
    return None


def _paley(size: int) -> np.ndarray | None:
    """Make Paley's matrix of this size, of the first kind or else of the second."""
    if size % 4:
        return None
    for q, residue in ((size - 1, 3), (size // 2 - 1, 1)):
        is_prime = q > 2 and all(q % p for p in range(2, math.isqrt(q) + 1))
        if not is_prime or q % 4 != residue:
            continue
        numbers = np.arange(q)
        character = np.full(q, -1.0)
        character[numbers**2 % q] = 1.0
        character[0] = 0.0
        c = np.zeros((q + 1, q + 1))
        c[0, 1:], c[1:, 0] = 1.0, 1.0 if residue == 1 else -1.0
        c[1:, 1:] = character[(numbers[:, None] - numbers[None, :]) % q]
        if residue == 3:
            return np.eye(q + 1) + c
        return np.kron(c, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(
            np.eye(q + 1), [[1.0, -1.0], [-1.0, -1.0]]
        )
    return None


@functools.cache
def _haar(width: int, seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return q * np.sign(np.diagonal(r))
