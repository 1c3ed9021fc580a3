"""Residual + SOAP at 5e-4, a control that the paper does not run.

rfq train configs/paper/residual_soap.py --out runs/paper/residual_soap
The rate is that of its residual-free SOAP.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import SoapConfig


def config() -> experiment.Experiment:
    """A control beside the arms of appendix D; names only what differs."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_soap",
        optimizer=SoapConfig(learning_rate=5e-4),
    )
