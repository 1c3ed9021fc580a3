"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), also for leaves that are no matrix.

m = EMA(g; b1), v = EMA(g^2; b2),
W <- W (1 - a wd) - a (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
"""

import dataclasses
from typing import NamedTuple

import jax
import optax

from rfq.optim import build, matrix
from rfq.optim.axes import Axes

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(build.OptimizerConfig):
    """AdamW on every leaf.

    Attributes:
        b1: average of the gradients.
        b2: average of their squares.
        eps: added to the root of the second moment.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        build.require(self.eps > 0, "eps", self.eps, "> 0")

    def directions(self, axes: Axes, placement: matrix.Placement) -> build.Directions:
        """See `OptimizerConfig.directions`."""
        del axes, placement
        adam = adam_direction(self.b1, self.b2, self.eps)
        return build.Directions(adam, adam)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithAdamW(build.MatrixConfig):
    """The fields of a matrix optimizer that leaves embeddings, gains etc. to AdamW.

    Attributes:
        adam_b1: b1 of AdamW on the other leaves.
        adam_b2: b2 of AdamW on the other leaves.
        adam_eps: eps of AdamW on the other leaves.
    """

    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8

    def other(self) -> optax.GradientTransformation:
        """Return AdamW's direction."""
        return adam_direction(self.adam_b1, self.adam_b2, self.adam_eps)


class AdamState(NamedTuple):
    """State of `scale_by_adam`: a `Guarded` whose inner state is optax's."""

    adam: optax.ScaleByAdamState
    active: optax.Params
    nonfinite: optax.Params


def adam_direction(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Give Adam's direction in float32, by optax; skip a leaf that is not finite."""
    return build.guarded(optax.scale_by_adam(b1, b2, eps), AdamState)
