"""Uniform affine quantization of any array and any parameter tree.

.. include:: README.md
"""

from rfq.quant.calibrate import CALIBRATORS, LayerSample, finalize, gaussian_clip
from rfq.quant.distortion import Distortion, Usage, nmse, sqnr_db, usage
from rfq.quant.grid import (
    GRANULARITIES,
    SCHEMES,
    Dynamic,
    Grid,
    decode,
    encode,
    fake_quantize,
    grid_for,
    grid_from_range,
    straight_through,
)
from rfq.quant.integer import Codes
from rfq.quant.spec import QuantSpec, parse
from rfq.quant.weights import MatrixAxes, quantize

__all__ = [
    "CALIBRATORS",
    "GRANULARITIES",
    "SCHEMES",
    "Codes",
    "Distortion",
    "Dynamic",
    "Grid",
    "LayerSample",
    "MatrixAxes",
    "QuantSpec",
    "Usage",
    "decode",
    "encode",
    "fake_quantize",
    "finalize",
    "gaussian_clip",
    "grid_for",
    "grid_from_range",
    "nmse",
    "parse",
    "quantize",
    "sqnr_db",
    "straight_through",
    "usage",
]
