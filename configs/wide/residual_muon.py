"""The control: skip paths under Muon, wide.

rfq train configs/wide/residual_muon.py --out runs/wide/residual_muon
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The wide base with the optimizer of the deep arm."""
    base = experiment.load(CONFIGS / "wide_base.py")
    deep = experiment.load(CONFIGS / "deep" / "residual_muon.py")
    return dataclasses.replace(base, arm="residual_muon", optimizer=deep.optimizer)
