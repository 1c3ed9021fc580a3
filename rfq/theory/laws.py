"""Laws of unit variance, expectations under them, and Monte Carlo with its error."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.stats import central, channels
from rfq.stats.central import AnyRecord, Moments
from rfq.theory.check import Estimate
from rfq.types import Array

# --- Laws -----------------------------------------------------------------------------


class Law(NamedTuple):
    """A centered law of unit variance.

    Attributes:
        excess_kurtosis: gamma, from its moments.
        nodes: quadrature points and weights, float64; exact to rounding for functions
            that are smooth on either side of 0.
        draw: (key, shape) -> float32 sample.
    """

    excess_kurtosis: float
    nodes: Callable[[], tuple[np.ndarray, np.ndarray]]
    draw: Callable[[Array, tuple[int, ...]], Array]


def _panels(
    end: float,
    density: Callable[[np.ndarray], np.ndarray],
    to_x: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Put Gauss-Legendre nodes on [-end, 0] and [0, end] for an even density of t."""
    t, w = np.polynomial.legendre.leggauss(200)
    t, w = (t + 1.0) * end / 2.0, w * end / 2.0
    w = w * density(t)
    w = np.concatenate([w[::-1], w])
    return to_x(np.concatenate([-t[::-1], t])), w / w.sum()


def _same(t: np.ndarray) -> np.ndarray:
    return t


_ROOT_2, _ROOT_3 = math.sqrt(2.0), math.sqrt(3.0)

LAWS: Mapping[str, Law] = {
    "gaussian": Law(
        0.0,
        functools.partial(_panels, 12.0, lambda t: np.exp(-(t**2) / 2.0), _same),
        jax.random.normal,
    ),
    "laplace": Law(
        3.0,
        functools.partial(_panels, 40.0, lambda t: np.exp(-_ROOT_2 * t), _same),
        lambda key, shape: jax.random.laplace(key, shape) / _ROOT_2,
    ),
    "uniform": Law(
        -1.2,
        functools.partial(_panels, _ROOT_3, np.ones_like, _same),
        lambda key, shape: jax.random.uniform(
            key, shape, minval=-_ROOT_3, maxval=_ROOT_3
        ),
    ),
    "rademacher": Law(
        -2.0,
        lambda: (np.array([-1.0, 1.0]), np.array([0.5, 0.5])),
        jax.random.rademacher,
    ),
    # x = sqrt(3) tan t turns Student's density with 5 degrees of freedom into cos^4 t.
    "student_5": Law(
        6.0,
        functools.partial(
            _panels,
            math.pi / 2.0,
            lambda t: np.cos(t) ** 4,
            lambda t: 3**0.5 * np.tan(t),
        ),
        lambda key, shape: jax.random.t(key, 5.0, shape) * math.sqrt(0.6),
    ),
}

# The largest gamma that the paper itself calls near-Gaussian (figure 4).
PAPERS_LARGEST_GAMMA = 0.259

Function = Callable[[np.ndarray], np.ndarray]


def expect(law: str, f: Function) -> float:
    """Compute E f(x), by quadrature in float64."""
    x, w = LAWS[law].nodes()
    return float(w @ f(x))


def moments_of(law: str, f: Function) -> Moments:
    """Compute central moments of f(x), as of a sample of size 1, by quadrature."""
    x, w = LAWS[law].nodes()
    return weighted(f(x), w)


def weighted(values: np.ndarray, weights: np.ndarray) -> Moments:
    """Compute central moments of a discrete law, float64; the weights sum to 1."""
    mean = weights @ values
    d = values - mean
    return Moments(np.float64(1.0), mean, *(weights @ d**k for k in (2, 3, 4)))


def bernoulli_kurtosis(p: float) -> float:
    """Compute gamma = (1 - 6 p q) / (p q), q = 1 - p (proof of lemma 13)."""
    return (1.0 - 6.0 * p * (1.0 - p)) / (p * (1.0 - p))


# --- Monte Carlo ----------------------------------------------------------------------


def batches(
    measure: Callable[[Array], AnyRecord], *, seed: int, num_batches: int
) -> AnyRecord:
    """Call measure(key) for independent keys, compiled, one batch after the other.

    Returns:
        The records of all batches with a leading axis of `num_batches`, as float64 on
        the host.
    """
    keys = jax.random.split(jax.random.key(seed), num_batches)
    run = jax.jit(lambda keys: jax.lax.map(measure, keys))
    return central.to_float64(run(keys))


def averaged(
    measure: Callable[[Array], Array], *, seed: int, num_batches: int
) -> Estimate:
    """Average a scalar over independent batches."""
    return over_batches(batches(measure, seed=seed, num_batches=num_batches))


def over_batches(values: Array) -> Estimate:
    """Return the mean and standard error of [num_batches] independent numbers."""
    numbers = np.asarray(values, np.float64)
    error = numbers.std(ddof=1) / math.sqrt(numbers.size)
    return Estimate(float(numbers.mean()), float(error))


def pooled_kurtosis(
    draw: Callable[[Array], Array], *, seed: int, num_batches: int
) -> Estimate:
    """Measure gamma of all values that draw(key) returns over independent batches."""
    return kurtosis_of_batches(
        batches(
            lambda key: central.moments(draw(key)),
            seed=seed,
            num_batches=num_batches,
        )
    )


def kurtosis_of_batches(moments: Moments) -> Estimate:
    """Compute gamma of the union of batches, leaves [num_batches].

    The standard error is that of the mean of the batches' own kurtosis.
    """
    spread = over_batches(central.excess_kurtosis(moments)).standard_error
    return Estimate(float(central.excess_kurtosis(channels.pooled(moments))), spread)


def exponent(sizes: tuple[int, ...], estimates: tuple[Estimate, ...]) -> Estimate:
    """Return p of value ~ size^p between the first and the last size."""
    first, last = estimates[0], estimates[-1]
    length = math.log(sizes[-1] / sizes[0])
    error = math.hypot(*(e.standard_error / e.value for e in (first, last))) / length
    return Estimate(math.log(last.value / first.value) / length, error)


def gaussian(key: Array, shape: tuple[int, int]) -> Array:
    """Draw W [m, n], entries N(0, 1 / m) and independent: y = u W has u's variance."""
    return jax.random.normal(key, shape) / jnp.sqrt(jnp.float32(shape[0]))
