"""Muon: momentum, orthogonalized (Jordan et al. 2024; scale of arXiv 2502.16982).

M = EMA(G; b1), X = (1 - b1) G + b1 M (Nesterov), O = polar factor of X by a few
Newton-Schulz steps, W <- W (1 - a wd) - a scale O.

This is not `optax.contrib.muon`, which bias-corrects M and G by different powers before
it mixes them, so that its Nesterov direction differs from the reference's for the first
steps (`tests/oracles` measures by how much).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rfq.optim import linalg, matrix
from rfq.optim.adamw import WithAdamW

Array = jax.Array

# (fan_in, fan_out) -> factor on the orthogonal direction.
SCALES = {
    "moonshot": lambda fan_in, fan_out: 0.2 * math.sqrt(max(fan_in, fan_out)),
    "keller": lambda fan_in, fan_out: math.sqrt(max(1.0, fan_out / fan_in)),
}

METHODS = {
    "newton_schulz": linalg.KELLER,
    "polar_express": linalg.POLAR_EXPRESS,
}

Scale = Literal["moonshot", "keller"]
Method = Literal["newton_schulz", "polar_express"]
ComputeDtype = Literal["auto", "bfloat16", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(WithAdamW):
    """Muon on the matrices.

    Attributes:
        b1: momentum.
        eps: added to the Frobenius norm that scales X.
        scale: "moonshot", 0.2 sqrt(max(in, out)), gives updates the size of AdamW's, so
            that its rates transfer; "keller", sqrt(max(1, out / in)), wants a ~ 0.02.
        method: "newton_schulz", the quintic of the reference (singular values end in
            about [0.7, 1.2]); "polar_express", closer to the exact polar factor.
        compute_dtype: type of the Newton-Schulz products; "auto" is bfloat16 on
            accelerators and "full", the type of the momentum, on CPU.
        mu_dtype: storage type of the momentum; None keeps it at least float32.
    """

    b1: float = 0.95
    eps: float = 1e-7
    scale: Scale = "moonshot"
    method: Method = "newton_schulz"
    compute_dtype: ComputeDtype = "auto"
    mu_dtype: linalg.StorageDtype = None

    def rule(self) -> matrix.Rule:
        """Return the rule: momentum and its polar factor."""

        def init(num: int, m: int, n: int, dtype: jnp.dtype) -> MuonStack:
            return MuonStack(jnp.zeros((num, m, n), dtype))

        def step(g: Array, stack: MuonStack, t: Array) -> tuple[Array, MuonStack]:
            del t
            momentum = self.b1 * stack.momentum + (1.0 - self.b1) * g
            x = (1.0 - self.b1) * g + self.b1 * momentum
            return orthogonalize(x, self), MuonStack(momentum)

        return matrix.Rule(
            init=init,
            step=step,
            stored={"momentum": self.mu_dtype},
            scale=SCALES[self.scale],
        )


class MuonStack(NamedTuple):
    """Muon's memory of a stack.

    Attributes:
        momentum: M, [N, m, n].
    """

    momentum: Array

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return {}


def orthogonalize(x: Array, config: MuonConfig) -> Array:
    """Approximate the polar factor of each matrix of a stack [N, m, n], m <= n."""
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + config.eps)
    if config.method == "polar_express":
        x = x / 1.02  # The safety margin that its coefficients assume.

    def in_dtype(x: Array, dtype: jnp.dtype) -> Array:
        exact = dtype != jnp.bfloat16
        precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
        iterate = linalg.newton_schulz(
            x.astype(dtype), METHODS[config.method], precision
        )
        return iterate.astype(x.dtype)

    def low(x: Array) -> Array:
        return in_dtype(x, jnp.bfloat16)

    def full(x: Array) -> Array:
        return in_dtype(x, x.dtype)

    if config.compute_dtype == "auto":
        return jax.lax.platform_dependent(x, cpu=full, default=low)
    return low(x) if config.compute_dtype == "bfloat16" else full(x)
