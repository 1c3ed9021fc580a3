"""The control: skip paths under KL-Shampoo, wide.

rfq train configs/wide/residual_kl_shampoo.py --out runs/wide/residual_kl_shampoo
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The wide base with the optimizer of the deep arm."""
    base = experiment.load(CONFIGS / "wide_base.py")
    deep = experiment.load(CONFIGS / "deep" / "residual_kl_shampoo.py")
    return dataclasses.replace(
        base, arm="residual_kl_shampoo", optimizer=deep.optimizer
    )
