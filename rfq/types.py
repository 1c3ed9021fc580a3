"""Names of the types that cross module boundaries. Aliases only, no code."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Array = jax.Array

# A nested dict of arrays, as `model.init.init` makes it.
Params = Mapping[str, Any]

# Token ids, int32 [B, T + 1]: inputs are [:, :-1], targets are [:, 1:].
Batch = Array

# What one batch taught us about one site: a pytree of arrays, or None.
Record = Any

# What calibration learnt about one site: a pytree of arrays, or None.
SiteState = Any

# (activation, site state) -> (activation to use from here on, record).
Tap = Callable[[Array, SiteState], tuple[Array, Record]]

# Sites, and what is applied to their activation before any tap sees it.
Turns = tuple[tuple[str, Callable[[Array], Array]], ...]
