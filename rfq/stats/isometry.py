"""The distance of a weight matrix from an isometry, by its singular values.

Lemma 4: spectral optimizers keep a matrix near its orthogonal initialization, steps of
sign do not. The Gram matrix is the one on the small side, since the other is singular.
A weight's kurtosis is `stats.excess_kurtosis(w)`.
"""

import jax
import jax.numpy as jnp

from rfq import factorize
from rfq.types import Array


def singular_values(w: Array) -> Array:
    """Return the singular values of `[..., m, n]`, descending, `[..., min(m, n)]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import stats
        >>> stats.singular_values(jnp.diag(jnp.array([1.0, 3.0, 2.0]))).tolist()
        [3.0, 2.0, 1.0]
    """
    w = jnp.asarray(w, jnp.float32)
    matrices = w.reshape(-1, *w.shape[-2:])
    values = jax.vmap(factorize.singular_values)(matrices)
    return values.reshape(*w.shape[:-2], -1)


def deviation(s: Array, alpha: float | Array) -> Array:
    """Return ||W W^T / alpha - I||_2 = max_i |s_i^2 / alpha - 1| on the small side.

    Args:
        s: singular values of W.
        alpha: the multiple of the identity that W W^T should be; 1 for an isometry.
    """
    return jnp.max(jnp.abs(s**2 / alpha - 1.0), axis=-1)


def spread(s: Array) -> Array:
    """Return the condition number s_max / s_min; inf for a singular matrix."""
    return jnp.max(s, axis=-1) / jnp.min(s, axis=-1)
