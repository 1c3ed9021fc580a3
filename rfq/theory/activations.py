"""Pointwise nonlinearities under a Gaussian: their moments and kurtosis."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from rfq.model import init
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.stats import central
from rfq.theory import laws
from rfq.theory.check import Check, Estimate, exact
from rfq.types import Array


class Activation(NamedTuple):
    """phi twice: in float64 for quadrature, and as the model computes it."""

    exact: laws.Function
    apply: Callable[[Array], Array]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + np.tanh(inner))


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(lambda x: np.maximum(x, 0.0), jax.nn.relu),
    "gelu": Activation(
        lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
        functools.partial(jax.nn.gelu, approximate=False),
    ),
    "tanh_gelu": Activation(
        _tanh_gelu, functools.partial(jax.nn.gelu, approximate=True)
    ),
    "silu": Activation(lambda x: x / (1.0 + np.exp(-x)), jax.nn.silu),
}


def raw_moment(phi: str, order: int, variance: float = 1.0) -> float:
    """Compute m_k = E phi(x)^k for x ~ N(0, variance)."""
    f, scale = ACTIVATIONS[phi].exact, math.sqrt(variance)
    return laws.expect("gaussian", lambda z: f(scale * z) ** order)


def kurtosis(phi: str, variance: float = 1.0) -> float:
    """Compute gamma of phi(x) for x ~ N(0, variance)."""
    f, scale = ACTIVATIONS[phi].exact, math.sqrt(variance)
    m = laws.moments_of("gaussian", lambda z: f(scale * z))
    return float(central.excess_kurtosis(m))


def gain(phi: str, variance: float) -> float:
    """Compute c(q) = E phi(x)^2 / q, x ~ N(0, q): a sublayer's factor on the variance.

    A constant for homogeneous phi alone; for GELU it goes from 1/4 to 1/2 with q.
    """
    return raw_moment(phi, 2, variance) / variance


def gelu_gain(variance: float) -> float:
    """Compute `gain` of GELU in closed form.

    1/4 + [asin(q / (1+q)) + 2 q / ((1+q) sqrt(1 + 2 q))] / (2 pi) (Tsuchida et al.,
    2021, at equal inputs).
    """
    q = variance
    angle = math.asin(q / (1.0 + q))
    return 0.25 + (angle + 2.0 * q / ((1.0 + q) * math.sqrt(1.0 + 2.0 * q))) / math.tau


def sampled_kurtosis(phi: str, variance: float, *, seed: int) -> Estimate:
    """Measure `kurtosis` by Monte Carlo, with the phi that the model applies."""
    scale = math.sqrt(variance)

    def draw(key: Array) -> Array:
        z = jax.random.normal(key, (1 << 17,))
        return ACTIVATIONS[phi].apply(scale * z)

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=16)


def preactivation_variance(mlp_scale: str) -> float:
    """Return g_u d / d_f, the mean square of x W_U for |x| = 1, by a reading of D15."""
    model = ModelConfig()
    gram_u, _ = init.mlp_gram(InitConfig(mlp_scale=mlp_scale), model)
    return gram_u * model.width / model.mlp_width


# --- Claims ---------------------------------------------------------------------------

# The digits that the paper prints (proof of lemma 12), moments 1 to 4 and gamma.
PRINTED: Mapping[str, tuple[float, ...]] = {
    "relu": (
        1.0 / math.sqrt(2.0 * math.pi),
        0.5,
        math.sqrt(2.0 / math.pi),
        1.5,
        2.4076,
    ),
    "gelu": (0.2821, 0.4252, 0.6751, 1.3047, 3.0847),
}
_HALF_A_DIGIT = 5e-5


def definition_1() -> list[Check]:
    """The excess kurtosis of laws whose kurtosis is known."""
    known = {name: law.excess_kurtosis for name, law in laws.LAWS.items()}
    return [
        Check(
            where="Definition 1, 2",
            statement=f"gamma of a {name} variable",
            predicted=gamma,
            measured=exact(central.excess_kurtosis(laws.moments_of(name, lambda x: x))),
            tolerance=1e-9,
        )
        for name, gamma in known.items()
    ]


def lemma_12() -> list[Check]:
    """ReLU's and GELU's moments and gamma: O(1), whatever the width."""
    rows = []
    for phi, (*printed, gamma) in PRINTED.items():
        rows += [
            Check(
                where="C.6",
                statement=f"E {phi}(g)^{order}",
                predicted=value,
                measured=exact(raw_moment(phi, order)),
                tolerance=_HALF_A_DIGIT,
            )
            for order, value in enumerate(printed, start=1)
        ]
        rows.append(
            Check(
                where="C.6",
                statement=f"gamma of {phi}(g), by quadrature",
                predicted=gamma,
                measured=exact(kurtosis(phi)),
                tolerance=_HALF_A_DIGIT,
            )
        )
        rows.append(
            Check(
                where="C.6",
                statement=f"gamma of {phi}(g), drawn",
                predicted=gamma,
                measured=sampled_kurtosis(phi, 1.0, seed=12),
                tolerance=_HALF_A_DIGIT,
            )
        )
    return rows
