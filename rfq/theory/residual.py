"""The residual update y_j = x_j + sum_i W_ij phi(x_i), once and over layers."""

import math

import jax
import jax.numpy as jnp

from rfq.stats import central
from rfq.stats.central import Moments
from rfq.theory import laws
from rfq.theory.activations import ACTIVATIONS
from rfq.theory.check import Check, Estimate, exact
from rfq.theory.laws import LAWS
from rfq.types import Array


def added_kurtosis(law: str, phi: str, d: int) -> float:
    """Compute gamma_y of a residual addition, W_ij ~ N(0, 1/d) (lemma 11, equation 19).

    [3 + gamma_x + 6/d (c22 + (d-1) m2) + 3/d^2 (d m4 + d (d-1) m2^2)] / (1 + m2)^2 - 3
    with m_k = E phi^k and c22 = E x^2 phi^2. Holds whatever E phi is.
    """
    f = ACTIVATIONS[phi].exact
    m2, m4 = (laws.expect(law, lambda x, k=k: f(x) ** k) for k in (2, 4))
    c22 = laws.expect(law, lambda x: (x * f(x)) ** 2)
    gamma = LAWS[law].excess_kurtosis
    fourth = (
        3.0
        + gamma
        + 6.0 / d * (c22 + (d - 1) * m2)
        + 3.0 / d**2 * (d * m4 + d * (d - 1) * m2**2)
    )
    return fourth / (1.0 + m2) ** 2 - 3.0


def wide_kurtosis(gamma: float, branch_variance: float) -> float:
    """Compute gamma_x / (1 + m2)^2, the limit of `added_kurtosis` for d -> infinity."""
    return gamma / (1.0 + branch_variance) ** 2


def unrolled_kurtosis(gamma: float, branch_variance: float, layer: int) -> float:
    """Compute gamma_0 / (1 + c l)^2: `layer` additions of branches of variance c.

    c is relative to the variance of the first stream.
    """
    return gamma / (1.0 + branch_variance * layer) ** 2


def sampled_added(
    law: str, phi: str, d: int, *, seed: int, num_batches: int
) -> Estimate:
    """Measure `added_kurtosis` by Monte Carlo."""
    moments = sampled_moments(law, phi, d, seed=seed, num_batches=num_batches)
    return laws.kurtosis_of_batches(moments)


def sampled_moments(
    law: str, phi: str, d: int, *, seed: int, num_batches: int
) -> Moments:
    """Measure moments of y, leaves [num_batches]; every y has its own input and column.

    Its variance is 1 + m2.
    """
    f = ACTIVATIONS[phi].apply

    def draw(key: Array) -> Moments:
        x_key, w_key = jax.random.split(key)
        x = LAWS[law].draw(x_key, (1 << 15, d))
        w = jax.random.normal(w_key, x.shape) / math.sqrt(d)
        return central.moments(x[:, 0] + jnp.sum(f(x) * w, axis=-1))

    return laws.batches(draw, seed=seed, num_batches=num_batches)


# --- Claims ---------------------------------------------------------------------------


def lemma_11() -> list[Check]:
    """Equation 19, and what the lemma's title makes of it."""
    rows = [
        Check(
            where="C.5, eq. 19",
            statement=f"gamma_y = equation 19: {law} x, {phi}, d {d}",
            predicted=added_kurtosis(law, phi, d),
            measured=sampled_added(law, phi, d, seed=11, num_batches=num_batches),
            tolerance=0.0,
        )
        for law, phi, d, num_batches in (
            ("gaussian", "relu", 16, 32),
            ("gaussian", "gelu", 16, 32),
            ("laplace", "relu", 16, 64),
        )
    ]
    ratio = added_kurtosis("laplace", "relu", 10**6) / LAWS["laplace"].excess_kurtosis
    rows.append(
        Check(
            where="C.5",
            statement="an addition preserves gamma: gamma_y / gamma_x by equation 19, "
            "Laplace x, relu, d 1,000,000",
            predicted=1.0,
            measured=exact(ratio),
            tolerance=0.05,
            note="the formula tends to gamma_x / (1 + m2)^2: adding a branch dilutes",
        )
    )
    return rows


def lemma_3() -> list[Check]:
    """gamma_y = O(gamma_x + 1/d): no 1/d contraction, and no more than that."""
    d = 768
    gamma = LAWS["laplace"].excess_kurtosis
    return [
        Check(
            where="3.2",
            statement=f"gamma_y stays above gamma_x / d: Laplace x, relu, d {d}",
            predicted=gamma / d,
            measured=exact(added_kurtosis("laplace", "relu", d)),
            tolerance=0.0,
            relation=">=",
        ),
        Check(
            where="3.2, figure 2",
            statement=f"an addition can amplify gamma: Laplace x, relu, d {d}",
            predicted=gamma,
            measured=exact(added_kurtosis("laplace", "relu", d)),
            tolerance=0.0,
            relation=">=",
            note="O(gamma_x + 1/d) bounds gamma_y from above; the formula contracts",
        ),
    ]
