"""The control at 12 layers: skip paths and the demo's initialization, Muon.

The best of five rates by the loss of its last 100 steps, 1.5e-3 to 2.4e-2 in twos.

rfq train configs/deep/residual_muon.py --out runs/deep/residual_muon
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """The deep base with Muon."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "deep_base.py")
    return dataclasses.replace(
        base,
        arm="residual_muon",
        optimizer=MuonConfig(learning_rate=1.2e-2, other_learning_rate=1e-2),
    )
