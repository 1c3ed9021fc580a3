"""The deep recipe (D108) on one GPU: no skip paths, one soft head, Muon.

`residual_free_muon` beside this file is the paper's own recipe. Heads start with
a diagonal logit of 14, which is that of `configs/deep` and what log T adds from 64 to
512 tokens. Nothing here has been trained yet.

rfq train configs/small/residual_free_muon_deep.py --out runs/small/mine
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import alpha_qk_for

CONFIGS = pathlib.Path(__file__).parents[1]


def config() -> experiment.Experiment:
    """The arm beside it with the initialization and the fast W_Q and W_K of D108."""
    base = experiment.load(CONFIGS / "small" / "residual_free_muon.py")
    deep = experiment.load(CONFIGS / "deep" / "residual_free_muon.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon_deep",
        model=dataclasses.replace(base.model, beta=1.0),
        init=dataclasses.replace(
            deep.init, alpha_qk=alpha_qk_for(14.0, base.model.head_width)
        ),
        optimizer=dataclasses.replace(base.optimizer, rates=deep.optimizer.rates),
    )
