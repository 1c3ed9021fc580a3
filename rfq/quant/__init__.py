"""Uniform affine quantization: grids, calibration, distortion and real integers.

The names of `_HOME` are also reachable from here, loaded when first used. Names that
are modules as well (`grid`, `spec`, `calibrate`) are the modules.
"""

import importlib

_HOME = {
    "CALIBRATORS": "calibrate",
    "Evidence": "calibrate",
    "Range": "calibrate",
    "finalize": "calibrate",
    "gaussian_clip": "calibrate",
    "observe": "calibrate",
    "Distortion": "distortion",
    "Usage": "distortion",
    "nmse": "distortion",
    "sqnr_db": "distortion",
    "usage": "distortion",
    "Grid": "grid",
    "decode": "grid",
    "encode": "grid",
    "fake_quantize": "grid",
    "fake_quantize_dynamic": "grid",
    "grid_from_range": "grid",
    "straight_through": "grid",
    "Codes": "integer",
    "QuantSpec": "spec",
    "SCHEMES": "spec",
    "parse": "spec",
    "quantize": "weights",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
