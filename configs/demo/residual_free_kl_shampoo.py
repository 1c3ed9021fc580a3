"""The paper's recipe: no skip paths, orthogonal initialization, KL-Shampoo.

rfq train configs/demo/residual_free_kl_shampoo.py --out runs/residual_free_kl_shampoo
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import KLShampooConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, with KL-Shampoo."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_kl_shampoo",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(5.0, base.model.head_width), w_down="centered"
        ),
        optimizer=KLShampooConfig(
            learning_rate=1.5e-3, other_learning_rate=3e-3, init_factor=1e-4
        ),
    )
