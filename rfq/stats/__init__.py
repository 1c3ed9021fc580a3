"""Statistics of activations and weights: small records that merge exactly.

The names of `_HOME` are also reachable from here, loaded when first used. Names that
are modules as well (`moments`, `negentropy`, `histogram`, `tokens`) are the modules.
"""

import importlib

_HOME = {
    "Moments": "moments",
    "excess_kurtosis": "moments",
    "merge": "moments",
    "rms": "moments",
    "to_float64": "moments",
    "variance": "moments",
    "Histogram": "histogram",
    "Binning": "histogram",
    "robust_binning": "histogram",
    "Contrasts": "negentropy",
    "contrasts": "negentropy",
    "dither": "negentropy",
    "hyvarinen_a": "negentropy",
    "hyvarinen_b": "negentropy",
    "channel_moments": "channels",
    "he_kurtosis": "channels",
    "mean_share": "channels",
    "Tokens": "tokens",
    "max_over_median": "tokens",
    "token_cosine": "tokens",
    "singular_values": "isometry",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
