"""What the paper finds hard to train: the residual-free model under AdamW.

rfq train configs/demo_more/residual_free_adamw.py --out runs/residual_free_adamw
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import AdamWConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, still with AdamW."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_adamw",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(5.0, base.model.head_width), w_down="centered"
        ),
        optimizer=AdamWConfig(learning_rate=1e-3),
    )
