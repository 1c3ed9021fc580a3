"""The optimizer's share: the residual model of `residual_adamw` under KL-Shampoo.

rfq train configs/demo/residual_kl_shampoo.py --out runs/residual_kl_shampoo
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import KLShampooConfig


def config() -> experiment.Experiment:
    """The base with KL-Shampoo."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_kl_shampoo",
        optimizer=KLShampooConfig(learning_rate=3e-3, init_factor=1e-4),
    )
