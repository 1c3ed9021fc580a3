"""The common recipe: residual blocks, GPT-2 initialization, AdamW.

rfq train configs/demo/residual_adamw.py --out runs/residual_adamw
"""

import dataclasses
import pathlib

from rfq import experiment


def config() -> experiment.Experiment:
    """The base as it is: residual, GPT-2 initialization, AdamW."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(base, arm="residual_adamw")
