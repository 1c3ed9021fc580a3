"""The paper's stylized pair: sign descent and spectral descent (equations 3, 4, 9, 10).

    sign:      W <- W - a sign(G)                    on every leaf
    spectral:  W <- W - a U V^T,  G = U S V^T        on matrices; sign on the others

They have neither momentum nor bias correction, and they decay only if asked to. They
are the steepest descents under the largest entry and the largest singular value, and
stand in for Adam and for KL-Shampoo, Muon and SOAP in lemma 4.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq import factorize
from rfq.optim import build, linalg, matrix
from rfq.optim.axes import Axes

Array = jax.Array
Method = Literal["svd", "polar_express"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignGDConfig(build.OptimizerConfig):
    """Sign descent on every leaf."""

    weight_decay: float = 0.0

    def directions(self, axes: Axes, placement: matrix.Placement) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        del axes, placement
        return build.Directions(sign_direction(), sign_direction())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralGDConfig(build.MatrixConfig):
    """Spectral descent on matrices, sign descent on the other leaves.

    Attributes:
        method: "svd", exact; "polar_express", five products instead.
    """

    weight_decay: float = 0.0
    method: Method = "svd"

    def rule(self) -> matrix.Rule:
        """Return the rule: the polar factor U V^T of each matrix."""
        polar = _svd if self.method == "svd" else _polar_express
        return matrix.Rule(
            init=lambda num, m, n, dtype: PolarStack(),
            step=lambda g, stack, t: (jax.vmap(polar)(g), stack),
        )

    def other(self) -> optax.GradientTransformation:
        """Return the direction of the other leaves: the sign."""
        return sign_direction()


class SignState(NamedTuple):
    """State of `scale_by_sign`: a `Guarded` whose inner state is empty."""

    sign: optax.EmptyState
    active: optax.Params
    nonfinite: optax.Params


def sign_direction() -> optax.GradientTransformation:
    """Compute sign(G), by optax; it is zero on a leaf that is not finite."""
    return build.guarded(optax.scale_by_sign(), SignState)


class PolarStack(NamedTuple):
    """Spectral descent remembers nothing."""

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return {}


def _svd(g: Array) -> Array:
    """Compute U V^T without the directions that rounding made, s_i <= 1e-7 n s_1."""
    u, s, vt = factorize.svd(g)
    real = s > 1e-7 * g.shape[1] * s[0]
    return linalg.dot(u * real[None, :], vt, linalg.EXACT)


def _polar_express(g: Array) -> Array:
    # 1.02 is the margin, and 1e-6 the floor, that the coefficients were made for.
    x = g / (1.02 * jnp.linalg.norm(g) + 1e-6)
    return linalg.newton_schulz(x, linalg.POLAR_EXPRESS, linalg.EXACT)
