"""The spread of the model's arrays over devices, as the model sees it.

`rfq.sharding` makes such a value for a mesh; on one device `ANYWHERE` does nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from rfq.types import Array


class Placing(NamedTuple):
    """Functions that spread arrays over devices by the names of their axes.

    Attributes:
        activation: (x, its logical axes) -> x.
        weight: (w, its logical axes as in `params.TABLE`) -> w where it is used.
        num_shares: parts of the batch that lie on different devices.
    """

    activation: Callable[[Array, tuple[str, ...]], Array]
    weight: Callable[[Array, tuple[str, ...]], Array]
    num_shares: int


def _as_it_is(x: Array, axes: tuple[str, ...]) -> Array:
    del axes
    return x


ANYWHERE = Placing(_as_it_is, _as_it_is, 1)
