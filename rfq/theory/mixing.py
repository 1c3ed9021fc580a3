"""Dense mixing y = sum_i a_i u_i: what a row does to the kurtosis of its inputs."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.model import init
from rfq.stats import central, channels
from rfq.stats.central import Moments
from rfq.theory import activations, laws
from rfq.theory.activations import ACTIVATIONS
from rfq.theory.check import Check, Estimate, exact
from rfq.theory.laws import LAWS
from rfq.types import Array

# --- One row --------------------------------------------------------------------------


def kurtosis_of_sum(
    a: np.ndarray, gamma: np.ndarray | float, std: np.ndarray | float = 1.0
) -> float:
    """Compute gamma of sum_i a_i u_i for independent u_i, given gammas and deviations.

    sum_i a_i^4 s_i^4 gamma_i / (sum_i a_i^2 s_i^2)^2: lemma 6, which has s_i = 1,
    one gamma and |a| = 1.
    """
    share = (a * std) ** 2
    return float(np.sum(share**2 * gamma) / np.sum(share) ** 2)


def enumerated_kurtosis(a: np.ndarray) -> float:
    """Compute gamma of sum_i a_i u_i over all 2^d random signs u, in float64."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=a.size)))
    weights = np.full(len(signs), 1.0 / len(signs))
    return float(central.excess_kurtosis(laws.weighted(signs @ a, weights)))


class Rows(NamedTuple):
    """A law of mixing rows a.

    Attributes:
        draw: (key, n, d) -> n independent rows [n, d].
        fourth: d -> E sum_i a_i^4.
        scatter: d -> gamma of y for Gaussian u, 3 Var(|a|^2).
    """

    draw: Callable[[Array, int, int], Array]
    fourth: Callable[[int], float]
    scatter: Callable[[int], float]


def _flat(key: Array, n: int, d: int) -> Array:
    del key
    return jnp.full((n, d), 1.0 / math.sqrt(d))


def _sphere(key: Array, n: int, d: int) -> Array:
    """Draw rows uniformly from the sphere, as a Haar matrix has them."""
    a = jax.random.normal(key, (n, d))
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def _gaussian(key: Array, n: int, d: int) -> Array:
    return jax.random.normal(key, (n, d)) / math.sqrt(d)


ROWS: Mapping[str, Rows] = {
    "flat": Rows(_flat, lambda d: 1.0 / d, lambda d: 0.0),
    "haar": Rows(_sphere, lambda d: 3.0 / (d + 2.0), lambda d: 0.0),
    "gaussian": Rows(_gaussian, lambda d: 3.0 / d, lambda d: 6.0 / d),
}


def mixed_kurtosis(rows: str, gamma: float, d: int) -> float:
    """Compute gamma of y over inputs and rows.

    gamma / d for flat rows, 3 gamma / (d + 2) Haar, (3 gamma + 6) / d Gaussian.
    """
    return gamma * ROWS[rows].fourth(d) + ROWS[rows].scatter(d)


def sampled_mixed_kurtosis(
    rows: str, law: str, d: int, *, seed: int, num_batches: int = 32
) -> Estimate:
    """Measure `mixed_kurtosis`: every y has a row and an input of its own."""

    def draw(key: Array) -> Array:
        row_key, u_key = jax.random.split(key)
        a = ROWS[rows].draw(row_key, 1 << 15, d)
        return jnp.sum(a * LAWS[law].draw(u_key, a.shape), axis=-1)

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=num_batches)


def sampled_fourth(rows: str, d: int, *, seed: int) -> np.ndarray:
    """Draw sum_i a_i^4 of 2,048 rows."""
    a = ROWS[rows].draw(jax.random.key(seed), 2048, d)
    return np.asarray(jnp.sum(a**4, axis=-1), np.float64)


def relative_scatter(d: int) -> float:
    """Compute sum_i a_i^4's relative deviation for Gaussian rows, sqrt(96/d)/3.

    Var(g^4) = 105 - 9 = 96 and E g^4 = 3.
    """
    return math.sqrt(96.0 / d) / 3.0


# --- A whole matrix -------------------------------------------------------------------


def widening_kurtosis(d: int, d_f: int) -> float:
    """Compute gamma of x W_U over columns: Gaussian x, W_U [d, d_f], W_U W_U^T = I.

    The squared length of a column is Beta(d/2, (d_f - d)/2), so that
    gamma = 3 (E l^2 / (E l)^2 - 1) = 3 ((d + 2) d_f / (d (d_f + 2)) - 1).
    """
    return 3.0 * ((d + 2.0) * d_f / (d * (d_f + 2.0)) - 1.0)


def column_kurtosis(w: Array) -> Estimate:
    """Compute gamma of x W over columns, Gaussian x: a scale mixture, exact given W.

    Its error is that of the lengths' variance from so many columns.
    """
    power = np.sum(np.asarray(w, np.float64) ** 2, axis=0)
    gamma = 3.0 * (np.mean(power**2) / np.mean(power) ** 2 - 1.0)
    return Estimate(float(gamma), float(gamma * math.sqrt(2.0 / power.size)))


@functools.cache
def haar(d: int, *, seed: int) -> Array:
    """Draw a Haar orthogonal matrix [d, d], float32."""
    return init.orthonormal_columns(d, d, key=jax.random.key(seed))


@functools.cache
def mixed(phi: str, d: int) -> Moments:
    """Measure the moments of y_j = sum_i W_ij phi(x_i), W Haar, 65,536 Gaussian inputs.

    Returns:
        Float64 leaves [16, d], a batch of inputs each.
    """
    w = haar(d, seed=d)

    def draw(key: Array) -> Moments:
        x = jax.random.normal(key, (1 << 12, d))
        return channels.channel_moments(ACTIVATIONS[phi].apply(x) @ w)

    return laws.batches(draw, seed=d, num_batches=16)


def per_coordinate(m: Moments) -> Moments:
    """Merge all batches of `mixed`: leaves [d]."""
    return channels.pooled(Moments(*(leaf.T for leaf in m)))


def mean_kurtosis(m: Moments) -> Estimate:
    """Average each coordinate's gamma over the inputs of `mixed`."""
    spread = laws.over_batches(central.excess_kurtosis(m).mean(-1))
    value = central.excess_kurtosis(per_coordinate(m)).mean()
    return Estimate(float(value), spread.standard_error)


# --- Claims ---------------------------------------------------------------------------

_D = 16
_KNOWN = ("laplace", "uniform", "rademacher")


def lemma_6() -> list[Check]:
    """gamma_y = gamma_u sum a_i^4, on all sign patterns of eight inputs."""
    a = np.random.default_rng(6).standard_normal(8)
    a /= np.linalg.norm(a)
    return [
        Check(
            where="C.2, eq. 13",
            statement="gamma_y = gamma_u sum a^4: random signs, a random unit row, d 8",
            predicted=kurtosis_of_sum(a, -2.0),
            measured=exact(enumerated_kurtosis(a)),
            tolerance=1e-12,
        ),
        Check(
            where="C.2, eq. 12",
            statement="2 sum a_i^2 a_j^2 = 1 - sum a^4, summed over i != j, d 8",
            predicted=1.0 - np.sum(a**4),
            measured=exact(2.0 * (np.sum(a**2) ** 2 - np.sum(a**4))),
            tolerance=1e-12,
            note="the sum is meant over i < j, as in equation 11; the result stands",
        ),
    ]


def lemma_7() -> list[Check]:
    """gamma_y = gamma_u / d, for the rows that are "dense"."""
    flat = [
        Check(
            where="C.2",
            statement=f"gamma_y = gamma_u / d: {law} inputs, |a_i| all equal, d {_D}",
            predicted=LAWS[law].excess_kurtosis / _D,
            measured=sampled_mixed_kurtosis("flat", law, _D, seed=7),
            tolerance=0.0,
        )
        for law in _KNOWN
    ]
    haar_rows = [
        Check(
            where="C.2",
            statement=f"gamma_y = gamma_u / d: {law} inputs, Haar rows, d {_D}",
            predicted=LAWS[law].excess_kurtosis / _D,
            measured=sampled_mixed_kurtosis("haar", law, _D, seed=7),
            tolerance=0.0,
            corrected=mixed_kurtosis("haar", LAWS[law].excess_kurtosis, _D),
            note="E sum a^4 = 3 / (d + 2) for a row on the sphere; 1 / d needs a "
            "Hadamard row",
        )
        for law in _KNOWN
    ]
    return flat + haar_rows


def corollary_1() -> list[Check]:
    """gamma_y -> 0 if gamma_u = o(d), at the rate 1 / d."""
    sizes = (4, 64)
    gammas = tuple(
        sampled_mixed_kurtosis("flat", "laplace", d, seed=70 + d) for d in sizes
    )
    return [
        Check(
            where="C.3",
            statement="gamma_y ~ d^p: Laplace inputs, |a_i| all equal, d 4 and 64",
            predicted=-1.0,
            measured=laws.exponent(sizes, gammas),
            tolerance=0.0,
        )
    ]


def appendix_c3() -> list[Check]:
    """The constants of orthogonal and Gaussian rows."""
    rows = []
    for kind, formula in (("gaussian", "3 / d"), ("haar", "3 / (d + 2)")):
        for d in (64, 768):
            rows.append(
                Check(
                    where="C.3",
                    statement=f"E sum a^4 = {formula}: {kind} rows, d {d}",
                    predicted=ROWS[kind].fourth(d),
                    measured=laws.over_batches(sampled_fourth(kind, d, seed=3)),
                    tolerance=0.0,
                )
            )
    for kind, formula in (("gaussian", "6 / d"), ("haar", "0")):
        rows.append(
            Check(
                where="C.3",
                statement=f"gamma_y = {formula}: Gaussian inputs, {kind} rows, d {_D}",
                predicted=mixed_kurtosis(kind, 0.0, _D),
                measured=sampled_mixed_kurtosis(kind, "gaussian", _D, seed=31),
                tolerance=0.0,
            )
        )
    d, d_f = 192, 768
    w_up = init.orthonormal_columns(d_f, d, key=jax.random.key(3)).T
    rows.append(
        Check(
            where="C.3",
            statement=f"gamma_y = 0: Gaussian inputs, orthonormal rows [{d}, {d_f}]",
            predicted=0.0,
            measured=column_kurtosis(w_up),
            tolerance=0.0,
            corrected=widening_kurtosis(d, d_f),
            note="the columns of a widening W_U are not of one length",
        )
    )
    rows.append(
        Check(
            where="C.3",
            statement=f"gamma_y = 0: Gaussian inputs, orthonormal columns [{d_f}, {d}]",
            predicted=0.0,
            measured=column_kurtosis(w_up.T),
            tolerance=1e-9,
        )
    )
    return rows


_WIDTH = 512


def lemma_2() -> list[Check]:
    """gamma_y = O(gamma_x / d) for y = W phi(x) with orthogonal W."""
    return [
        Check(
            where="3.2",
            statement=f"gamma_y = O(gamma_x / d), so 0 for Gaussian x: {phi}, Haar W, "
            f"d {_WIDTH}, mean over coordinates",
            predicted=0.0,
            measured=mean_kurtosis(mixed(phi, _WIDTH)),
            tolerance=0.0,
            corrected=activations.kurtosis(phi) * ROWS["haar"].fourth(_WIDTH),
            note="W mixes phi(x), whose gamma is not that of x",
        )
        for phi in ("relu", "gelu")
    ]


def theorem_2() -> list[Check]:
    """A residual-free layer: |gamma| <= mu / d |gamma~|, mean and variance of phi."""
    w = haar(_WIDTH, seed=_WIDTH)
    moments = mixed("relu", _WIDTH)
    y = per_coordinate(moments)
    mean, second = (activations.raw_moment("relu", k) for k in (1, 2))
    fourth = float(jnp.mean(jnp.sum(w**4, axis=0)))
    setting = f"relu, one Haar W, d {_WIDTH}"
    return [
        Check(
            where="C.6",
            statement=f"|gamma_y| <= mu / d |gamma~|, mu_j = d sum W_ij^4: {setting}, "
            "mean over coordinates",
            predicted=fourth * activations.kurtosis("relu"),
            measured=mean_kurtosis(moments),
            tolerance=0.0,
            relation="<=",
        ),
        Check(
            where="C.6",
            statement=f"y_j has the variance of phi: {setting}, mean over coordinates",
            predicted=second - mean**2,
            measured=laws.over_batches(central.variance(moments).mean(-1)),
            tolerance=0.0,
        ),
        Check(
            where="C.6",
            statement=f"y_j has the mean of phi: {setting}, largest deviation",
            predicted=0.0,
            measured=exact(np.max(np.abs(y.mean - mean))),
            # Each mean is known to sqrt(.34 / 65,536) = .0023.
            tolerance=0.02,
            note="the mean of y_j is m_1 times the sum of its row",
        ),
    ]


def mixing_behind_phi() -> list[Check]:
    """Lemma 2 is about gamma of phi(x): it falls like 1 / d."""
    sizes = (32, 256)
    gammas = tuple(mean_kurtosis(mixed("relu", d)) for d in sizes)
    return [
        Check(
            where="Lemma 2",
            statement="gamma_y ~ d^p with gamma_phi(x): relu, Haar W, d 32 and 256",
            predicted=-1.0,
            # 3 / (d + 2) is not 3 / d: ln(34 / 32) / ln 8 at the small end.
            measured=laws.exponent(sizes, gammas),
            tolerance=0.03,
        )
    ]


def gaussian_rows() -> list[Check]:
    """Gaussian rows differ from Haar rows by their length alone."""
    return [
        Check(
            where="Lemma 7, C.3",
            statement=f"gamma_y = (3 gamma_u + 6) / d: {law} inputs, Gaussian rows, "
            f"d {_D}",
            predicted=mixed_kurtosis("gaussian", LAWS[law].excess_kurtosis, _D),
            measured=sampled_mixed_kurtosis("gaussian", law, _D, seed=33),
            tolerance=0.0,
        )
        for law in _KNOWN
    ]


def scatter_of_rows() -> list[Check]:
    """sum a^4 = 3 / d is an expectation; single rows scatter about it."""
    return [
        Check(
            where="C.3",
            statement="deviation of sum a^4 over its mean is sqrt(96 / d) / 3: "
            f"Gaussian rows, d {d}",
            predicted=relative_scatter(d),
            measured=exact(np.std(a4) / np.mean(a4)),
            # A deviation of 2,048 rows has the error 1 / sqrt(2 n) if they are
            # Gaussian; their tails make it three times as large.
            tolerance=0.15 * relative_scatter(d),
        )
        for d, a4 in ((d, sampled_fourth("gaussian", d, seed=11)) for d in (64, 768))
    ]
