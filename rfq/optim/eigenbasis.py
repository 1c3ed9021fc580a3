"""Kronecker factors kept in the coordinates of their own eigenbases.

KL-Shampoo, KL-SOAP and SOAP track two factors S_L (m x m) and S_R (n x n) of a
gradient's second moments and slowly turning orthonormal bases Q_L, Q_R of their
eigenvectors. The state holds the bases and S~ = Q^T S Q. A gradient enters as
H = Q_L^T G Q_R, from which both the update and the increments of S~ follow, and one
step of orthogonal iteration is a decomposition of S~ alone:

    QR(S Q).Q = Q Z  with  Z = QR(S~).Q;   Q <- Q Z,  S~ <- Z^T S~ Z.

A side whose basis is None is not rotated at all (one-sided preconditioning).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import linalg, matrix
from rfq.optim.adamw import WithAdamW

Array = jax.Array
Precision = jax.lax.Precision
Decomposition = Literal["auto", "cholesky", "householder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EigenbasisConfig(WithAdamW):
    """The fields of every optimizer that works in eigenbases of its factors.

    Attributes:
        precondition_frequency: k, steps between two refreshes of the bases.
        max_precondition_dim: longer sides are not rotated; they have no basis and no
            factor, and the optimizer works on them entry by entry. None rotates all.
        rms_target: rescale every direction to this RMS (the references'
            `normalize_grads` is 1), before SOAP's bias correction; None does not.
        decomposition: how a refresh decomposes. "householder" is exact, but goes matrix
            after matrix; "cholesky" batches on accelerators, with Householder for the
            matrices where it fails; "auto" is Householder on CPU, where LAPACK is
            faster, and Cholesky elsewhere.
        stagger: refresh 1/k of the matrices every step instead of all every k steps:
            the same work without its peak, but other refresh times than the reference.
        precision: precision of the large products; refreshes are always exact.
        mu_dtype: storage type of the momentum; None keeps it at least float32.
        basis_dtype: storage type of the bases, likewise.
    """

    precondition_frequency: int = 10
    max_precondition_dim: int | None = 16_384
    rms_target: float | None = None
    decomposition: Decomposition = "auto"
    stagger: bool = False
    precision: linalg.PrecisionName = "high"
    mu_dtype: linalg.StorageDtype = None
    basis_dtype: linalg.StorageDtype = None

    @property
    def lifting(self) -> dict[str, Any]:
        """The fields of `matrix.Rule` that follow from these."""
        return {
            "period": self.precondition_frequency,
            "stagger": self.stagger,
            "stored": {
                "momentum": self.mu_dtype,
                "basis_l": self.basis_dtype,
                "basis_r": self.basis_dtype,
            },
        }


class Factors(NamedTuple):
    """Bases and rotated factors of one matrix, or of a stack of them.

    Attributes:
        basis_l: Q_L, [..., m, m], eigenvectors in columns; None if not rotated.
        basis_r: Q_R, [..., n, n], likewise.
        factor_l: S~_L = Q_L^T S_L Q_L.
        factor_r: S~_R = Q_R^T S_R Q_R.
        failures: int32 [...], Cholesky refreshes that fell back to Householder.
    """

    basis_l: Array | None
    basis_r: Array | None
    factor_l: Array | None
    factor_r: Array | None
    failures: Array


class Turn(NamedTuple):
    """A change of coordinates x~ <- left^T x~ right, None being the identity."""

    left: Array | None
    right: Array | None


def zeros(num: int, m: int, n: int, dtype: jnp.dtype, max_side: int | None) -> Factors:
    """Make the state before the first gradient; sides beyond `max_side` get none."""

    def side(size: int) -> Array | None:
        rotated = max_side is None or size <= max_side
        return jnp.zeros((num, size, size), dtype) if rotated else None

    failures = jnp.zeros((num,), jnp.int32)
    return Factors(side(m), side(n), side(m), side(n), failures)


def from_gradient(
    g: Array, scale_l: float, scale_r: float, *, max_side: int | None
) -> Factors:
    """Make factors of a first gradient: S_L = scale_l G G^T, S_R = scale_r G^T G.

    The bases are their eigenvectors by descending eigenvalue.
    """
    m, n = g.shape
    f = zeros(1, m, n, g.dtype, max_side)
    f = jax.tree.map(lambda x: x[0], f)
    if f.basis_l is not None:
        gram = linalg.dot(g, g.T, linalg.EXACT)
        f = f._replace(basis_l=linalg.eigenvectors(scale_l * gram))
    if f.basis_r is not None:
        gram = linalg.dot(g.T, g, linalg.EXACT)
        f = f._replace(basis_r=linalg.eigenvectors(scale_r * gram))
    h = project(g, f, linalg.EXACT)
    return accumulate(f, h, h, 1.0, scale_l, scale_r, linalg.EXACT)


def project(x: Array, f: Factors, precision: Precision) -> Array:
    """Compute Q_L^T X Q_R: from the parameters' coordinates to the eigenbasis."""
    if f.basis_l is not None:
        x = linalg.dot(f.basis_l.mT, x, precision)
    return x if f.basis_r is None else linalg.dot(x, f.basis_r, precision)


def back(x: Array, f: Factors, precision: Precision) -> Array:
    """Compute Q_L X Q_R^T: from the eigenbasis to the parameters' coordinates."""
    if f.basis_l is not None:
        x = linalg.dot(f.basis_l, x, precision)
    return x if f.basis_r is None else linalg.dot(x, f.basis_r.mT, precision)


def accumulate(
    f: Factors,
    for_l: Array,
    for_r: Array,
    keep: float,
    scale_l: float,
    scale_r: float,
    precision: Precision,
) -> Factors:
    """Set S~_L to keep S~_L + scale_l A A^T and S~_R to keep S~_R + scale_r B^T B."""
    if f.factor_l is not None:
        gram = linalg.dot(for_l, for_l.mT, precision)
        f = f._replace(factor_l=keep * f.factor_l + scale_l * gram)
    if f.factor_r is not None:
        gram = linalg.dot(for_r.mT, for_r, precision)
        f = f._replace(factor_r=keep * f.factor_r + scale_r * gram)
    return f


def refresh(f: Factors, decomposition: Decomposition) -> tuple[Factors, Turn]:
    """Take one step of orthogonal iteration on both sides of a stack [N, ...].

    Returns the new factors, and the change of basis for whatever else is kept in it.
    """
    basis_l, factor_l, z_l, bad_l = _refresh_side(f.basis_l, f.factor_l, decomposition)
    basis_r, factor_r, z_r, bad_r = _refresh_side(f.basis_r, f.factor_r, decomposition)
    failures = f.failures + bad_l + bad_r
    new = Factors(basis_l, basis_r, factor_l, factor_r, failures)
    return new, Turn(z_l, z_r)


def _refresh_side(
    basis: Array | None, factor: Array | None, decomposition: Decomposition
) -> tuple[Array | None, Array | None, Array | None, Array | int]:
    if basis is None or factor is None:
        return None, None, None, 0
    z, factor, failed = _iterate(factor, decomposition)
    basis = linalg.reorthonormalize(linalg.dot(basis, z, linalg.EXACT))
    return basis, factor, z, failed


def permute(f: Factors, order_l: Array | None, order_r: Array | None) -> Factors:
    """Reorder the eigenvectors of a stack; order_l is [N, m], order_r [N, n]."""

    def side(basis: Array | None, factor: Array | None, order: Array | None):
        if basis is None or factor is None or order is None:
            return basis, factor
        return permute_cols(basis, order), permute_cols(
            permute_rows(factor, order), order
        )

    basis_l, factor_l = side(f.basis_l, f.factor_l, order_l)
    basis_r, factor_r = side(f.basis_r, f.factor_r, order_r)
    return Factors(basis_l, basis_r, factor_l, factor_r, f.failures)


def permute_rows(x: Array, order: Array | None) -> Array:
    """Return x[b, order[b, i], j] of a stack x [N, m, n]; None leaves x alone."""
    if order is None:
        return x
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


def permute_cols(x: Array, order: Array | None) -> Array:
    """Return x[b, i, order[b, j]] of a stack x [N, m, n]; None leaves x alone."""
    if order is None:
        return x
    return jnp.take_along_axis(x, order[:, None, :], axis=2)


def descending(factor: Array | None) -> Array | None:
    """Order a stack of rotated factors by descending diagonal: indices [N, side]."""
    if factor is None:
        return None
    return jnp.argsort(-jnp.diagonal(factor, axis1=1, axis2=2), axis=-1)


def rotate(x: Array, by: Turn) -> Array:
    """Compute Z_L^T X Z_R, so that X in the eigenbasis follows a change of basis."""
    if by.left is not None:
        x = linalg.dot(by.left.mT, x, linalg.EXACT)
    return x if by.right is None else linalg.dot(x, by.right, linalg.EXACT)


def numbers(f: Factors) -> dict[str, Array]:
    """Return per-matrix diagnostics of a stack, see `rfq.optim.matrix.diagnostics`."""
    errors = [
        jax.vmap(linalg.eye_error)(q) for q in (f.basis_l, f.basis_r) if q is not None
    ]
    worst = jnp.max(jnp.stack(errors), axis=0) if errors else 0.0 * f.failures
    return {"basis_error": worst, "refresh_failures": f.failures}


def _iterate(factor: Array, decomposition: Decomposition) -> tuple[Array, Array, Array]:
    """Return Z = QR(S~).Q, Z^T S~ Z, and where Cholesky failed, int32 [N]."""

    def householder(factor: Array) -> tuple[Array, Array, Array]:
        z, turned = jax.vmap(_safe_householder)(factor)
        return z, turned, jnp.zeros(factor.shape[:1], jnp.int32)

    def cholesky(factor: Array) -> tuple[Array, Array, Array]:
        z, turned, sound = jax.vmap(linalg.cholesky_iteration)(factor)

        def repair(z: Array, turned: Array) -> tuple[Array, Array]:
            # A scan, so that only the failing matrices pay for Householder.
            return jax.lax.map(
                lambda one: jax.lax.cond(
                    one[0],
                    lambda: (one[1], one[2]),
                    lambda: _safe_householder(one[3]),
                ),
                (sound, z, turned, factor),
            )

        with jax.named_scope(matrix.REPAIR):
            z, turned = jax.lax.cond(
                jnp.all(sound), lambda z, turned: (z, turned), repair, z, turned
            )
        return z, turned, (~sound).astype(jnp.int32)

    if decomposition == "auto":
        return jax.lax.platform_dependent(factor, cpu=householder, default=cholesky)
    return (householder if decomposition == "householder" else cholesky)(factor)


def _safe_householder(factor: Array) -> tuple[Array, Array]:
    """Do one iteration, or none where its result is not finite."""
    z, turned = linalg.householder_iteration(factor)
    sound = jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(turned))
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return jnp.where(sound, z, eye), jnp.where(sound, turned, factor)
