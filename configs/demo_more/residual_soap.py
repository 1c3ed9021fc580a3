"""The optimizer's share: the residual model of `residual_adamw` under SOAP.

rfq train configs/demo_more/residual_soap.py --out runs/residual_soap
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import SoapConfig


def config() -> experiment.Experiment:
    """The base with SOAP."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_soap",
        optimizer=SoapConfig(learning_rate=3e-3),
    )
