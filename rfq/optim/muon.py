"""Muon: momentum, orthogonalized (Jordan et al. 2024; scale of arXiv 2502.16982).

M = EMA(G; b1), X = (1 - b1) G + b1 M (Nesterov), O = polar factor of X by a few
Newton-Schulz steps, W <- W (1 - a wd) - a scale O.

Not `optax.contrib.muon`: that one bias-corrects M and G by different powers before it
mixes them, so that its Nesterov direction differs from the reference's for the first
steps (`tests/oracles` measures by how much).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, linalg, matrix
from rfq.optim.adamw import MatrixConfig

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
class MuonConfig(MatrixConfig):
    """Muon on the matrices.

    Attributes:
        b1: momentum.
        eps: added to the Frobenius norm that scales X.
        scale: "moonshot", 0.2 sqrt(max(in, out)), gives updates the size of AdamW's, so
            that its rates transfer; "keller", sqrt(max(1, out / in)), wants a ~ 0.02.
        method: "newton_schulz", the quintic of the reference (singular values end in
            about [0.7, 1.2]); "polar_express", closer to the exact polar factor.
        compute_dtype: of the Newton-Schulz products; "auto" is bfloat16 on accelerators
            and "full", the type of the momentum, on CPU.
        mu_dtype: storage type of the momentum; None keeps it at least float32.
    """

    b1: float = 0.95
    eps: float = 1e-7
    scale: Scale = "moonshot"
    method: Method = "newton_schulz"
    compute_dtype: ComputeDtype = "auto"
    mu_dtype: str | None = None

    def __post_init__(self):
        super().__post_init__()
        build.require_fraction(self, "b1")
        build.require(self.scale in SCALES, "scale", self.scale, f"in {sorted(SCALES)}")
        build.require(
            self.method in METHODS, "method", self.method, f"in {sorted(METHODS)}"
        )
        build.require(
            self.compute_dtype in ("auto", "bfloat16", "full"),
            "compute_dtype",
            self.compute_dtype,
            "'auto', 'bfloat16' or 'full'",
        )
        accepted = (None, "float32", "bfloat16")
        build.require(
            self.mu_dtype in accepted, "mu_dtype", self.mu_dtype, f"in {accepted}"
        )

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_muon(self, axes=axes, placement=placement),
            self.other_direction(),
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


def scale_by_muon(
    config: MuonConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Muon's direction, scale included; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_muon(optim.MuonConfig(scale="keller")),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> MuonStack:
        return MuonStack(jnp.zeros((num, m, n), dtype))

    def step(g: Array, stack: MuonStack, t: Array) -> tuple[Array, MuonStack]:
        del t
        momentum = config.b1 * stack.momentum + (1.0 - config.b1) * g
        x = (1.0 - config.b1) * g + config.b1 * momentum
        return orthogonalize(x, config), MuonStack(momentum)

    return matrix.scale_by_rule(
        matrix.Rule(init=init, step=step, stored={"momentum": config.mu_dtype}),
        axes=axes,
        placement=placement,
        leaf_scale=SCALES[config.scale],
    )


def orthogonalize(x: Array, config: MuonConfig) -> Array:
    """Approximate polar factor of each matrix of a stack [N, m, n], m <= n."""
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


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = MuonConfig.b1,
    eps: float = MuonConfig.eps,
    scale: Scale = MuonConfig.scale,
    method: Method = MuonConfig.method,
    compute_dtype: ComputeDtype = MuonConfig.compute_dtype,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = MuonConfig.weight_decay,
    decay: build.Order = MuonConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = MuonConfig.adam_b1,
    adam_b2: float = MuonConfig.adam_b2,
    adam_eps: float = MuonConfig.adam_eps,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Muon on matrices, AdamW on the other leaves; the fields are `MuonConfig`'s.

    The rates may be schedules; `other_learning_rate` is that of the AdamW leaves, None
    for the same. `axes` says which leaves are matrices and along which axes, see
    `rfq.optim.matrix.resolve`; None is the rule for plain trees. `mask` says which
    leaves decay, as in `optax.adamw`. `placement` says where the parameters live, see
    `rfq.optim.matrix.scale_by_rule`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.muon(1e-3, method="polar_express")
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    config = MuonConfig(
        b1=b1,
        eps=eps,
        scale=scale,
        method=method,
        compute_dtype=compute_dtype,
        mu_dtype=build.dtype_name(mu_dtype),
        weight_decay=weight_decay,
        decay=decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
    )
    other = learning_rate if other_learning_rate is None else other_learning_rate
    return build.assemble(
        config,
        learning_rate,
        other,
        axes=axes,
        mask=mask,
        clip_norm=None,
        placement=placement,
    )
