"""Residual and residual-free transformers, trained and quantized side by side."""

__version__ = "0.1.0"
