"""Skip paths and the demo's initialization under AdamW, wide.

rfq train configs/wide/residual_adamw.py --out runs/wide/residual_adamw
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The wide base as it is."""
    base = experiment.load(CONFIGS / "wide_base.py")
    return dataclasses.replace(base, arm="residual_adamw")
