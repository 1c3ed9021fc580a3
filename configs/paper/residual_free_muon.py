"""Residual-free + Muon at 7e-4 with beta = 1.1.

rfq train configs/paper/residual_free_muon.py --out runs/paper/residual_free_muon
The paper: 4 H100, 4.6 steps/s, 81,304 MB.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """Appendix D's arm; names only what differs from the base."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon",
        model=dataclasses.replace(base.model, skip="residual_free", beta=1.1),
        init=InitConfig(recipe="orthogonal"),
        optimizer=MuonConfig(learning_rate=7e-4),
    )
