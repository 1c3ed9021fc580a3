"""Readings of the orthogonal initialization: the pair W_V, W_O and centred W_D.

The paper's equation makes W_O the transpose of W_V with W_V W_O = 3 I; its predecessor
(arXiv 2510.00345) draws an independent pair, W_V W_O = c^2 times an orthogonal matrix
with c = 3. Centring is D20, the pair D22 of `rfq/DECISIONS.md`.

launch/sweep.sh configs/ablation/initialization.py --scale demo --out runs/init
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]

# Arm -> what it changes of the initialization.
CHANGES = {
    "transpose_plain": {"vo_pair": "transpose", "w_down": "plain"},
    "transpose_centered": {"vo_pair": "transpose", "w_down": "centered"},
    "independent_plain": {"vo_pair": "independent", "w_down": "plain"},
    "independent_centered": {"vo_pair": "independent", "w_down": "centered"},
    "independent_centered_9": {
        "vo_pair": "independent",
        "w_down": "centered",
        "alpha_vo": 9.0,
    },
}


def arms(scale: str) -> list[experiment.Experiment]:
    """The scale's residual-free KL-Shampoo arm under each change."""
    base = experiment.load(CONFIGS / scale / "residual_free_kl_shampoo.py")
    return [
        dataclasses.replace(
            base, arm=arm, init=dataclasses.replace(base.init, **change)
        )
        for arm, change in CHANGES.items()
    ]
