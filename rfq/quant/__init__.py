"""Uniform affine quantization: grids, calibration, distortion and real integers."""
