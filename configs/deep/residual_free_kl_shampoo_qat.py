"""`residual_free_kl_shampoo`, which learns to bear W8A4 in the last third of the run.

From there on one step in four trains through rounding with ranges for each token, and
the steps between keep the full-precision model what it was (D183).

rfq train configs/deep/residual_free_kl_shampoo_qat.py --out runs/deep/mine
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.quant.aware import QatConfig


def config() -> experiment.Experiment:
    """The arm of 12 layers, trained through its rounding."""
    base = experiment.load(
        pathlib.Path(__file__).parent / "residual_free_kl_shampoo.py"
    )
    return dataclasses.replace(
        base,
        arm="residual_free_kl_shampoo_qat",
        qat=QatConfig(spec="W8A4", start=2 / 3, every=4, granularity="per_token"),
    )
