"""Statistics of a model's weights."""

import math

import jax
import jax.numpy as jnp

from rfq import params as params_lib
from rfq.stats import central, isometry
from rfq.types import Array, Params


def describe(params: Params) -> dict[str, dict[str, Array]]:
    """Measure per matrix and layer how Gaussian it is and how far from an isometry.

    `isometry_deviation` is ||W W^T / alpha - I||_2 on the small side, with alpha the
    mean squared singular value (lemma 4).
    """
    found = {}
    rows = params_lib.matrix_axes(params)["blocks"]
    for name, row in rows.items():
        if row is None:
            continue
        w = params["blocks"][name]
        matrices = w.reshape(w.shape[0], math.prod(w.shape[a] for a in row.in_axes), -1)
        s = isometry.singular_values(matrices)
        alpha = jnp.mean(s**2, axis=-1, keepdims=True)
        found[name] = {
            "excess_kurtosis": central.excess_kurtosis(
                jax.vmap(central.moments)(matrices)
            ),
            "isometry_deviation": isometry.deviation(s, alpha),
            "singular_value_spread": isometry.spread(s),
        }
    return found
