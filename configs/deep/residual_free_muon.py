"""12 layers without skip paths that train: the paper's ingredients, Muon.

Sharp attention everywhere but in one head of the first layer, which mixes from the
start, and an MLP that begins as a multiple of the identity (D108).

rfq train configs/deep/residual_free_muon.py --out runs/deep/mine
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """The deep base without skip paths, orthogonal, with Muon."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "deep_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(12.0, base.model.head_width),
            soft_layers="first",
            w_down="looks_linear",
        ),
        optimizer=MuonConfig(
            learning_rate=1.5e-3,
            other_learning_rate=1e-2,
            rates={"w_q": 4.0, "w_k": 4.0},
        ),
    )
