"""Another spectral optimizer on the residual-free model, on one GPU: Muon.

rfq train configs/small/residual_free_muon.py --out runs/small/residual_free_muon
"""

import dataclasses
import math
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import MuonConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, with Muon."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "small_base.py")
    diagonal_logit = math.log(base.model.seq_len) + 3.0  # D21.
    return dataclasses.replace(
        base,
        arm="residual_free_muon",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(diagonal_logit, base.model.head_width),
            w_down="centered",
        ),
        optimizer=MuonConfig(learning_rate=7e-4),
    )
