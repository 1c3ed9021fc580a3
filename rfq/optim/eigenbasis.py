"""Kronecker factors kept in the coordinates of their own eigenbases.

KL-Shampoo, KL-SOAP and SOAP track two factors S_L (m x m) and S_R (n x n) of a
gradient's second moments and slowly turning orthonormal bases Q_L, Q_R of their
eigenvectors. Stored are the bases and S~ = Q^T S Q. A gradient enters as
H = Q_L^T G Q_R, from which both the update and the increments of S~ follow, and one
step of orthogonal iteration is a decomposition of S~ alone:

    QR(S Q).Q = Q Z  with  Z = QR(S~).Q;   Q <- Q Z,  S~ <- Z^T S~ Z.

A side whose basis is None is not rotated at all (one-sided preconditioning).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import build, linalg

Array = jax.Array
Precision = jax.lax.Precision
Mode = Literal["reference", "fast"]
MODES = ("reference", "fast")


def check(
    frequency: int,
    mode: str,
    precision: str,
    mu_dtype: str | None,
    basis_dtype: str | None,
) -> None:
    """Checks the fields that every optimizer with an eigenbasis has."""
    build.require(frequency >= 1, "precondition_frequency", frequency, ">= 1")
    build.require(mode in MODES, "mode", mode, f"in {MODES}")
    names = sorted(linalg.PRECISIONS)
    build.require(precision in names, "precision", precision, f"in {names}")
    for field, name in (("mu_dtype", mu_dtype), ("basis_dtype", basis_dtype)):
        accepted = "None, 'float32' or 'bfloat16'"
        build.require(name in (None, "float32", "bfloat16"), field, name, accepted)


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
    """The state before the first gradient; sides longer than `max_side` get none."""

    def side(size: int) -> Array | None:
        rotated = max_side is None or size <= max_side
        return jnp.zeros((num, size, size), dtype) if rotated else None

    failures = jnp.zeros((num,), jnp.int32)
    return Factors(side(m), side(n), side(m), side(n), failures)


def from_gradient(
    g: Array, scale_l: float, scale_r: float, *, max_side: int | None
) -> Factors:
    """Factors of one first gradient: S_L = scale_l G G^T, S_R = scale_r G^T G.

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
    """Q_L^T X Q_R: from the parameters' coordinates to the eigenbasis."""
    if f.basis_l is not None:
        x = linalg.dot(f.basis_l.mT, x, precision)
    return x if f.basis_r is None else linalg.dot(x, f.basis_r, precision)


def back(x: Array, f: Factors, precision: Precision) -> Array:
    """Q_L X Q_R^T: from the eigenbasis to the parameters' coordinates."""
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
    """S~_L <- keep S~_L + scale_l A A^T, S~_R <- keep S~_R + scale_r B^T B."""
    if f.factor_l is not None:
        gram = linalg.dot(for_l, for_l.mT, precision)
        f = f._replace(factor_l=keep * f.factor_l + scale_l * gram)
    if f.factor_r is not None:
        gram = linalg.dot(for_r.mT, for_r, precision)
        f = f._replace(factor_r=keep * f.factor_r + scale_r * gram)
    return f


def refresh(f: Factors, mode: Mode) -> tuple[Factors, Turn]:
    """One step of orthogonal iteration on both sides of a stack [N, ...].

    "reference" decomposes by Householder QR, "fast" by batched Cholesky factors with a
    Householder fallback for the matrices where that failed.
    """
    left, failed_l = _iterate(f.factor_l, mode)
    right, failed_r = _iterate(f.factor_r, mode)
    turned = turn(f, Turn(left, right))
    return turned._replace(failures=f.failures + failed_l + failed_r), Turn(left, right)


def turn(f: Factors, by: Turn) -> Factors:
    """Q <- Q Z, re-orthonormalized, and S~ <- Z^T S~ Z, on each side."""

    def side(basis: Array | None, factor: Array | None, z: Array | None):
        if basis is None or factor is None or z is None:
            return basis, factor
        basis = linalg.reorthonormalize(linalg.dot(basis, z, linalg.EXACT))
        return basis, rotate(factor, Turn(z, z))

    basis_l, factor_l = side(f.basis_l, f.factor_l, by.left)
    basis_r, factor_r = side(f.basis_r, f.factor_r, by.right)
    return Factors(basis_l, basis_r, factor_l, factor_r, f.failures)


def permute(f: Factors, order_l: Array | None, order_r: Array | None) -> Factors:
    """Reorders the eigenvectors of a stack; order_l is [N, m], order_r [N, n]."""

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
    """x[b, order[b, i], j] of a stack x [N, m, n]; None leaves x alone."""
    if order is None:
        return x
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


def permute_cols(x: Array, order: Array | None) -> Array:
    """x[b, i, order[b, j]] of a stack x [N, m, n]; None leaves x alone."""
    if order is None:
        return x
    return jnp.take_along_axis(x, order[:, None, :], axis=2)


def descending(factor: Array | None) -> Array | None:
    """The order [N, side] of a stack of rotated factors by descending diagonal."""
    if factor is None:
        return None
    return jnp.argsort(-jnp.diagonal(factor, axis1=1, axis2=2), axis=-1)


def rotate(x: Array, by: Turn) -> Array:
    """Z_L^T X Z_R: what is kept in the eigenbasis follows a change of basis."""
    if by.left is not None:
        x = linalg.dot(by.left.mT, x, linalg.EXACT)
    return x if by.right is None else linalg.dot(x, by.right, linalg.EXACT)


def between(f: Factors, basis_l: Array | None, basis_r: Array | None) -> Turn:
    """The turn from the stored bases to given ones, Z = Q^T Q_new."""

    def side(old: Array | None, new: Array | None) -> Array | None:
        if old is None or new is None:
            return None
        return linalg.dot(old.mT, new, linalg.EXACT)

    return Turn(side(f.basis_l, basis_l), side(f.basis_r, basis_r))


def numbers(f: Factors) -> dict[str, Array]:
    """Per-matrix diagnostics of a stack, see `rfq.optim.matrix.diagnostics`."""
    errors = [
        jax.vmap(linalg.eye_error)(q) for q in (f.basis_l, f.basis_r) if q is not None
    ]
    worst = jnp.max(jnp.stack(errors), axis=0) if errors else 0.0 * f.failures
    return {"basis_error": worst, "refresh_failures": f.failures}


def _iterate(factor: Array | None, mode: Mode) -> tuple[Array | None, Array | int]:
    """Z = QR(S~).Q for a stack [N, side, side], and where Cholesky failed, [N]."""
    if factor is None:
        return None, 0
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    # 1e-3 in float32: an error that the following re-orthonormalization squares away.
    tolerance = 1e4 * jnp.finfo(factor.dtype).eps

    def sound(z: Array) -> Array:
        # A comparison with NaN is False.
        return linalg.eye_error(z) < tolerance

    def safe_householder(one: Array) -> Array:
        z = linalg.householder_q(one)
        return jnp.where(sound(z), z, eye)

    if mode == "reference":
        return jax.vmap(safe_householder)(factor), 0

    z = jax.vmap(linalg.cholesky_q)(factor)
    failed = ~jax.vmap(sound)(z)

    def repair(z: Array) -> Array:
        # A scan, so that only the failing matrices pay for Householder.
        def one(args: tuple[Array, Array, Array]) -> Array:
            bad, z, factor = args
            return jax.lax.cond(bad, lambda: safe_householder(factor), lambda: z)

        return jax.lax.map(one, (failed, z, factor))

    z = jax.lax.cond(jnp.any(failed), repair, lambda z: z, z)
    return z, failed.astype(jnp.int32)
