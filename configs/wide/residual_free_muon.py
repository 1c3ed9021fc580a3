"""No skip paths, the deep recipe (D108), Muon, wide.

rfq train configs/wide/residual_free_muon.py --out runs/wide/residual_free_muon
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The wide base with the recipe and the optimizer of the deep arm."""
    base = experiment.load(CONFIGS / "wide_base.py")
    deep = experiment.load(CONFIGS / "deep" / "residual_free_muon.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=deep.init,
        optimizer=deep.optimizer,
    )
