"""The paper's baseline at 12 layers: skip paths and the demo's initialization, AdamW.

The best of three rates by the loss of its last 100 steps, 5e-3, 1e-2 and 2e-2.

rfq train configs/deep/residual_adamw.py --out runs/deep/residual_adamw
"""

import dataclasses
import pathlib

from rfq import experiment


def config() -> experiment.Experiment:
    """The deep base as it is."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "deep_base.py")
    return dataclasses.replace(base, arm="residual_adamw")
