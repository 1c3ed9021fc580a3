"""Statistics of activations and weights, for any array and any model.

.. include:: README.md
"""

from rfq.stats.activations import Description, Layer, describe
from rfq.stats.bins import Binning, Histogram, histogram, robust_binning
from rfq.stats.central import (
    Moments,
    excess_kurtosis,
    merge,
    moments,
    rms,
    to_float64,
    variance,
)
from rfq.stats.channels import channel_moments, he_kurtosis, mean_share
from rfq.stats.entropy import (
    Contrasts,
    contrasts,
    dither,
    hyvarinen_a,
    hyvarinen_b,
    negentropy,
)
from rfq.stats.extremes import Range, value_range
from rfq.stats.isometry import singular_values
from rfq.stats.per_token import Tokens, max_over_median, token_cosine, tokens

__all__ = [
    "Binning",
    "Contrasts",
    "Description",
    "Histogram",
    "Layer",
    "Moments",
    "Range",
    "Tokens",
    "channel_moments",
    "contrasts",
    "describe",
    "dither",
    "excess_kurtosis",
    "he_kurtosis",
    "histogram",
    "hyvarinen_a",
    "hyvarinen_b",
    "max_over_median",
    "mean_share",
    "merge",
    "moments",
    "negentropy",
    "rms",
    "robust_binning",
    "singular_values",
    "to_float64",
    "token_cosine",
    "tokens",
    "value_range",
    "variance",
]
