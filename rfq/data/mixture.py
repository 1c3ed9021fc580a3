"""The prepared sets that are trained on, and their shares."""

import dataclasses
import math
from collections.abc import Sequence

from rfq.errors import InputError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Prepared directories, and the share of the training sequences from each.

    Attributes:
        directories: at least one; each is gone through in epochs of its own.
        weights: shares in any unit; () takes the sizes of the sets.
    """

    directories: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.directories):
            raise InputError(
                f"data.weights={self.weights} must have {len(self.directories)} "
                "numbers, one for data.dir and each of data.also, or none"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"data.weights={self.weights} must be positive numbers")

    def shares(self, sizes: Sequence[int]) -> list[float]:
        """Return shares that sum to 1, for sets of these sizes."""
        weights = self.weights or sizes
        return [weight / sum(weights) for weight in weights]
