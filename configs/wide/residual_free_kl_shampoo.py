"""No skip paths, the deep recipe (D108), KL-Shampoo, wide.

rfq train configs/wide/residual_free_kl_shampoo.py --out runs/wide/mine
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The wide base with the recipe and the optimizer of the deep arm."""
    base = experiment.load(CONFIGS / "wide_base.py")
    deep = experiment.load(CONFIGS / "deep" / "residual_free_kl_shampoo.py")
    return dataclasses.replace(
        base,
        arm="residual_free_kl_shampoo",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=deep.init,
        optimizer=deep.optimizer,
    )
