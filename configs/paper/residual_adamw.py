"""Residual + AdamW at 1e-3, the paper's first baseline.

rfq train configs/paper/residual_adamw.py --out runs/paper/residual_adamw
The paper: 4 H100, 4.77 steps/s, 90,328 MB a GPU; average accuracy .449 in BF16.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import AdamWConfig


def config() -> experiment.Experiment:
    """Appendix D's arm; names only what differs from the base."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_adamw",
        optimizer=AdamWConfig(learning_rate=1e-3),
    )
