"""Decompositions of one matrix, written so that `jax.vmap` batches them well.

Every product states its precision: the optimizers never inherit
`jax_default_matmul_precision`.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from rfq import factorize

Array = jax.Array

EXACT = jax.lax.Precision.HIGHEST


def dot(a: Array, b: Array, precision: jax.lax.Precision) -> Array:
    """Multiply matrices at a stated precision."""
    return jnp.matmul(a, b, precision=precision)


def eigenvectors(factor: Array) -> Array:
    """Return the eigenvectors of a symmetric matrix, by descending eigenvalue.

    The reference adds 1e-30 I, which makes the zero matrix legal.
    """
    shifted = factor + 1e-30 * jnp.eye(factor.shape[-1], dtype=factor.dtype)
    _, vectors = factorize.eigh(shifted)
    return jnp.flip(vectors, axis=-1)


def householder_iteration(factor: Array) -> tuple[Array, Array]:
    """Return Z and Z^T S Z of a symmetric S = Z R, by Householder reflections.

    Z^T S Z = R Z costs one product. The rows of R keep small eigenvalues accurate;
    Z^T (S Z) would lose them in the rounding of large ones.
    """
    z, r = factorize.qr(factor)
    turned = dot(r, z, EXACT)
    return z, 0.5 * (turned + turned.T)


def cholesky_iteration(factor: Array) -> tuple[Array, Array, Array]:
    """Return Z and Z^T S Z of a semidefinite S = Z R, and whether they are sound.

    With S = C C^T, C^T is upper triangular with a positive diagonal, hence
    QR(S).Q = QR(C).Q, and C = Z R gives Z^T S Z = R R^T. Taking C of the matrix scaled
    to a unit diagonal makes it insensitive to how far the diagonal of S spreads, which
    is all that is left of the spectrum once S is written in (nearly) its own
    eigenbasis. Two passes of Cholesky QR then orthonormalize C. Every operation batches
    on accelerators, where Householder QR runs matrix after matrix.

    This fails when S is far from diagonal and ill-conditioned: a factor does not exist,
    or the second pass cannot correct the first. The third result says so.
    """
    dtype, eye = factor.dtype, jnp.eye(factor.shape[-1], dtype=factor.dtype)
    # 3e-6 in float32, enough to keep the correlations definite despite rounding.
    jitter = 25.0 * jnp.finfo(dtype).eps
    d = jnp.sqrt(jnp.maximum(jnp.diagonal(factor), jnp.finfo(dtype).tiny))
    correlation = factor / d[:, None] / d[None, :]
    correlation = jnp.where(eye == 1.0, 1.0 + jitter, correlation)
    c = d[:, None] * factorize.cholesky(correlation)
    norms = jnp.linalg.norm(c, axis=0, keepdims=True)
    once, lower = factorize.cholesky_qr(c / norms)
    gram = dot(once.T, once, EXACT)
    twice, lower_again = factorize.cholesky_qr(once)
    r = dot(lower_again.T, lower.T, EXACT) * norms
    # The second pass squares the first one's error. A comparison with NaN is False.
    sound = (jnp.max(jnp.abs(gram - eye)) < 0.01) & jnp.all(jnp.isfinite(twice))
    return twice, dot(r, r.T, EXACT), sound


def reorthonormalize(basis: Array) -> Array:
    """Do one Newton-Schulz step Q (3 I - Q^T Q) / 2 to square the error of Q^T Q."""
    gram = dot(basis.mT, basis, EXACT)
    return 1.5 * basis - 0.5 * dot(basis, gram, EXACT)


def eye_error(basis: Array) -> Array:
    """Measure max |Q^T Q - I| of one basis: how far it is from orthonormal."""
    gram = dot(basis.mT, basis, EXACT)
    return jnp.max(jnp.abs(gram - jnp.eye(basis.shape[-1], dtype=basis.dtype)))


def inverse_root(a: Array, power: float, eps: Array | float) -> Array:
    """Compute (A + eps I)^(-power) of a symmetric A, by eigenvalues.

    Where rounding leaves an eigenvalue of A + eps I below eps, all are shifted up by
    what is missing, as in Distributed Shampoo.
    """
    values, vectors = factorize.eigh(a + eps * jnp.eye(a.shape[-1], dtype=a.dtype))
    values = values + jnp.maximum(eps - jnp.min(values), 0.0)
    return dot(vectors * values[None, :] ** -power, vectors.T, EXACT)


# The type of what is kept between calls; None is the gradients' type, at least float32.
StorageDtype = Literal["float32", "bfloat16"] | None

PrecisionName = Literal["default", "high", "highest"]
PRECISIONS: Mapping[PrecisionName, jax.lax.Precision] = {
    "default": jax.lax.Precision.DEFAULT,
    "high": jax.lax.Precision.HIGH,
    "highest": jax.lax.Precision.HIGHEST,
}


Coefficients = tuple[tuple[float, float, float], ...]

# Keller Jordan's quintic, five times: singular values end near 1, not at 1.
KELLER: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

# Polar Express (Amsel et al., arXiv 2505.16932), five steps.
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7098327682387081, 0.42323551169305323),
)


def normalize_rms(x: Array, target: float | None) -> Array:
    """Rescale a matrix to an RMS, if one is asked for."""
    if target is None:
        return x
    return x * (target / (jnp.sqrt(jnp.mean(x**2)) + 1e-30))


def newton_schulz(
    x: Array, coefficients: Coefficients, precision: jax.lax.Precision
) -> Array:
    """Drive the singular values of a wide matrix (m <= n) towards 1.

    A = X X^T; X <- a X + (b A + c A^2) X, for each (a, b, c). The caller scales X so
    that its singular values start in [0, 1].
    """
    for a, b, c in coefficients:
        gram = dot(x, x.mT, precision)
        x = a * x + dot(b * gram + c * dot(gram, gram, precision), x, precision)
    return x
