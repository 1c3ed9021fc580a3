"""Adam in Shampoo's eigenbasis on the residual-free model: SOAP.

rfq train configs/demo_more/residual_free_soap.py --out runs/residual_free_soap
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import SoapConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, with SOAP."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_soap",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(5.0, base.model.head_width), w_down="centered"
        ),
        optimizer=SoapConfig(learning_rate=1.5e-3, other_learning_rate=3e-3),
    )
