"""Residual blocks under AdamW, on one GPU.

rfq train configs/small/residual_adamw.py --out runs/small/residual_adamw
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import AdamWConfig


def config() -> experiment.Experiment:
    """The base with AdamW."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "small_base.py")
    return dataclasses.replace(
        base,
        arm="residual_adamw",
        optimizer=AdamWConfig(learning_rate=1e-3),
    )
