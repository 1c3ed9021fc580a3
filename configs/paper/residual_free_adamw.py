"""Residual-free + AdamW with beta = 1.1, which the paper finds hard to train.

rfq train configs/paper/residual_free_adamw.py --out runs/paper/residual_free_adamw
The paper gives no rate and no numbers; 1e-3 is its rate of residual + AdamW.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig


def config() -> experiment.Experiment:
    """A control beside the arms of appendix D; names only what differs."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_adamw",
        model=dataclasses.replace(base.model, skip="residual_free", beta=1.1),
        init=InitConfig(recipe="orthogonal"),
        optimizer=AdamWConfig(learning_rate=1e-3),
    )
