"""How sharp attention starts: beta, layer counting and the scale of its logits.

On the residual-free model under KL-Shampoo, tau_l = beta ** -l multiplies q.k over
sqrt(d_h) or sqrt(d). The paper takes beta = 1.1, writes layers from 1 and sqrt(d); D1
and D2 of `rfq/DECISIONS.md` say what is open. beta = 1 / 1.1 sharpens with depth.

launch/sweep.sh configs/ablation/attention.py --scale demo --out runs/attention
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]

# Arm -> what it changes of the model; first_layer is no difference at beta = 1.
CHANGES = {
    "beta_1": {"beta": 1.0},
    "beta_1.1": {"beta": 1.1},
    "beta_1.1_from_0": {"beta": 1.1, "first_layer": 0},
    "beta_0.909": {"beta": 1 / 1.1},
    "beta_1_width": {"beta": 1.0, "attention_scale": "width"},
    "beta_1.1_width": {"beta": 1.1, "attention_scale": "width"},
}


def arms(scale: str) -> list[experiment.Experiment]:
    """The scale's residual-free arm under each change."""
    base = experiment.load(CONFIGS / scale / "residual_free_kl_shampoo.py")
    return [
        dataclasses.replace(
            base, arm=arm, model=dataclasses.replace(base.model, **change)
        )
        for arm, change in CHANGES.items()
    ]
