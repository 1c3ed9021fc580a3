"""The optimizer's share: the residual model of `residual_adamw` under Muon.

rfq train configs/demo_more/residual_muon.py --out runs/residual_muon
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """The base with Muon."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_muon",
        optimizer=MuonConfig(learning_rate=3e-3),
    )
