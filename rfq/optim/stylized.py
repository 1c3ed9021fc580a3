"""The paper's stylized pair: sign descent and spectral descent (equations 3, 4, 9, 10).

    sign:      W <- W - a sign(G)                    on every leaf
    spectral:  W <- W - a U V^T,  G = U S V^T        on matrices; sign on the others

No momentum, no bias correction; decay only if asked for. They are the steepest descents
under the largest entry and the largest singular value, and stand in for Adam and for
KL-Shampoo, Muon and SOAP in lemma 4.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rfq import factorize
from rfq.optim import build, linalg, matrix

Array = jax.Array
Method = Literal["svd", "polar_express"]
METHODS = ("svd", "polar_express")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignGDConfig(build.OptimizerConfig):
    """Sign descent on every leaf."""

    weight_decay: float = 0.0

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        del axes, placement
        return build.Directions(scale_by_sign(), scale_by_sign())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralGDConfig(build.OptimizerConfig):
    """Spectral descent on matrices, sign descent on the other leaves.

    Attributes:
        method: "svd", exact; "polar_express", five products instead.
        other_learning_rate: peak rate of the other leaves; None is `learning_rate`.
    """

    weight_decay: float = 0.0
    method: Method = "svd"
    other_learning_rate: float | None = None

    def __post_init__(self):
        super().__post_init__()
        build.require(self.method in METHODS, "method", self.method, f"in {METHODS}")
        other = self.other_learning_rate
        build.require(
            other is None or other >= 0, "other_learning_rate", other, "None or >= 0"
        )

    @property
    def rates(self) -> tuple[float, float]:
        """Peak rates of (matrix, other) leaves."""
        if self.other_learning_rate is None:
            return self.learning_rate, self.learning_rate
        return self.learning_rate, self.other_learning_rate

    def directions(
        self, axes: matrix.AxesTree, placement: matrix.Placement
    ) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        return build.Directions(
            scale_by_polar(self, axes=axes, placement=placement), scale_by_sign()
        )


class SignState(NamedTuple):
    """State of `scale_by_sign`.

    Attributes:
        active: bool per leaf, False where the last gradient was not finite.
        nonfinite: int32 per leaf, gradients thrown away.
    """

    active: optax.Params
    nonfinite: optax.Params


def scale_by_sign() -> optax.GradientTransformation:
    """sign(G), zero on a leaf that is not finite.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_sign(),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """

    def init(params):
        return SignState(
            active=jax.tree.map(lambda _: jnp.zeros((), bool), params),
            nonfinite=jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
        )

    def update(updates, state, params=None):
        del params
        finite = jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), updates)
        signs = jax.tree.map(
            lambda g, ok: jnp.where(ok, jnp.sign(g), 0.0).astype(
                jnp.promote_types(g.dtype, jnp.float32)
            ),
            updates,
            finite,
        )
        nonfinite = jax.tree.map(lambda n, ok: n + ~ok, state.nonfinite, finite)
        return signs, SignState(finite, nonfinite)

    return optax.GradientTransformation(init, update)


class PolarStack(NamedTuple):
    """Spectral descent remembers nothing."""

    def diagnostics(self) -> dict[str, Array]:
        """See `matrix.Inner`."""
        return {}


def scale_by_polar(
    config: SpectralGDConfig,
    *,
    axes: matrix.Axes = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """The polar factor U V^T of each matrix; every leaf must have matrix axes.

    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.scale_by_polar(optim.SpectralGDConfig()),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
    """
    polar = _svd if config.method == "svd" else _polar_express

    def init(num: int, m: int, n: int, dtype: jnp.dtype) -> PolarStack:
        del num, m, n, dtype
        return PolarStack()

    def step(g: Array, stack: PolarStack, t: Array) -> tuple[Array, PolarStack]:
        del t
        return jax.vmap(polar)(g), stack

    return matrix.scale_by_rule(
        matrix.Rule(init=init, step=step),
        axes=axes,
        placement=placement,
        leaf_scale=matrix.unscaled,
    )


def _svd(g: Array) -> Array:
    """U V^T without the directions that rounding made up, s_i <= 1e-7 n s_1."""
    u, s, vt = factorize.svd(g)
    real = s > 1e-7 * g.shape[1] * s[0]
    return linalg.dot(u * real[None, :], vt, linalg.EXACT)


def _polar_express(g: Array) -> Array:
    # 1.02 is the margin, and 1e-6 the floor, that the coefficients were made for.
    x = g / (1.02 * jnp.linalg.norm(g) + 1e-6)
    return linalg.newton_schulz(x, linalg.POLAR_EXPRESS, linalg.EXACT)


def sign_gd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = SignGDConfig.weight_decay,
    decay: build.Order = SignGDConfig.decay,
    mask: build.Mask = None,
) -> optax.GradientTransformation:
    """Sign descent; `mask` says which leaves decay, as in `optax.adamw`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.sign_gd(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    return build.assemble(
        SignGDConfig(weight_decay=weight_decay, decay=decay),
        learning_rate,
        learning_rate,
        axes=None,
        mask=mask,
        clip_norm=None,
        placement=None,
    )


def spectral_gd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    method: Method = SpectralGDConfig.method,
    weight_decay: float = SpectralGDConfig.weight_decay,
    decay: build.Order = SpectralGDConfig.decay,
    other_learning_rate: optax.ScalarOrSchedule | None = None,
    axes: matrix.Axes = None,
    mask: build.Mask = None,
    placement: matrix.Placement = None,
) -> optax.GradientTransformation:
    """Spectral descent on matrices, sign descent on the others.

    The arguments are those of `SpectralGDConfig` and of `rfq.optim.muon`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
        >>> optimizer = optim.spectral_gd(1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    return build.assemble(
        SpectralGDConfig(method=method, weight_decay=weight_decay, decay=decay),
        learning_rate,
        learning_rate if other_learning_rate is None else other_learning_rate,
        axes=axes,
        mask=mask,
        clip_norm=None,
        placement=placement,
    )
