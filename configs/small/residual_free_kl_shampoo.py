"""The paper's recipe on one GPU: no skip paths, orthogonal, KL-Shampoo.

rfq train configs/small/residual_free_kl_shampoo.py --out runs/small/rf_kl_shampoo
"""

import dataclasses
import math
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig, alpha_qk_for
from rfq.optim import KLShampooConfig


def config() -> experiment.Experiment:
    """The base without skip paths, orthogonal, with KL-Shampoo."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "small_base.py")
    diagonal_logit = math.log(base.model.seq_len) + 3.0  # D21.
    return dataclasses.replace(
        base,
        arm="residual_free_kl_shampoo",
        model=dataclasses.replace(base.model, skip="residual_free"),
        init=InitConfig(
            alpha_qk=alpha_qk_for(diagonal_logit, base.model.head_width),
            w_down="centered",
        ),
        optimizer=KLShampooConfig(learning_rate=5e-4),
    )
