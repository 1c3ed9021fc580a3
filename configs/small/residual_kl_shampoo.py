"""The optimizer's share: the residual model under KL-Shampoo, on one GPU.

rfq train configs/small/residual_kl_shampoo.py --out runs/small/residual_kl_shampoo
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import KLShampooConfig


def config() -> experiment.Experiment:
    """The base with KL-Shampoo."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "small_base.py")
    return dataclasses.replace(
        base,
        arm="residual_kl_shampoo",
        optimizer=KLShampooConfig(learning_rate=1e-3),
    )
