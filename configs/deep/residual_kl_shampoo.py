"""The control at 12 layers: skip paths and the demo's initialization, KL-Shampoo.

The largest of five rates is the best by the loss of its last 100 steps: 1.5e-3 to
2.4e-2, in twos.

rfq train configs/deep/residual_kl_shampoo.py --out runs/deep/residual_kl_shampoo
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import KLShampooConfig


def config() -> experiment.Experiment:
    """The deep base with KL-Shampoo."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "deep_base.py")
    return dataclasses.replace(
        base,
        arm="residual_kl_shampoo",
        optimizer=KLShampooConfig(
            learning_rate=2.4e-2, other_learning_rate=1e-2, init_factor=1e-4
        ),
    )
