"""Residual + Muon at 7e-4, a control that the paper does not run.

rfq train configs/paper/residual_muon.py --out runs/paper/residual_muon
The rate is that of its residual-free Muon.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """A control beside the arms of appendix D; names only what differs."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_muon",
        optimizer=MuonConfig(learning_rate=7e-4),
    )
