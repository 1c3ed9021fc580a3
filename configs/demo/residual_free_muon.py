"""Another spectral optimizer on the residual-free model: Muon.

rfq train configs/demo/residual_free_muon.py --out runs/residual_free_muon
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, with Muon."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(5.0, base.model.head_width), w_down="centered"
        ),
        optimizer=MuonConfig(learning_rate=3e-3),
    )
