"""Decompositions of one matrix, written so that `jax.vmap` batches them well.

Every product states its precision: the optimizers never inherit
`jax_default_matmul_precision`.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

EXACT = jax.lax.Precision.HIGHEST


def dot(a: Array, b: Array, precision: jax.lax.Precision) -> Array:
    """Matrix product at a stated precision."""
    return jnp.matmul(a, b, precision=precision)


def eigenvectors(factor: Array) -> Array:
    """Eigenvectors of a symmetric matrix, by descending eigenvalue.

    The reference adds 1e-30 I, which makes the zero matrix legal.
    """
    shifted = factor + 1e-30 * jnp.eye(factor.shape[-1], dtype=factor.dtype)
    _, vectors = jnp.linalg.eigh(shifted, symmetrize_input=False)
    return jnp.flip(vectors, axis=-1)


def householder_q(a: Array) -> Array:
    """The orthogonal factor of A = Q R, by Householder reflections."""
    return jnp.linalg.qr(a)[0]


def eye_error(basis: Array) -> Array:
    """max |Q^T Q - I|: how far a basis is from orthonormal."""
    gram = dot(basis.mT, basis, EXACT)
    return jnp.max(jnp.abs(gram - jnp.eye(basis.shape[-1], dtype=basis.dtype)))


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


def newton_schulz(
    x: Array, coefficients: Coefficients, precision: jax.lax.Precision
) -> Array:
    """Drives the singular values of a wide matrix (m <= n) towards 1.

    A = X X^T; X <- a X + (b A + c A^2) X, for each (a, b, c). The caller scales X so
    that its singular values start in [0, 1].
    """
    for a, b, c in coefficients:
        gram = dot(x, x.mT, precision)
        x = a * x + dot(b * gram + c * dot(gram, gram, precision), x, precision)
    return x
