r"""Sixty-four short residual-free trainings, to learn which initializations collapse.

The recipes are drawn at random: depth, mixing of heads, sharpness, soft layers, the
pairs of matrices and the temperature. Rates follow the depth as in `configs/deep`, and
no recipe has rates of its own. The limits of `rfq diagnose` are not chosen from these
runs yet (D110 of `rfq/DECISIONS.md`). The first call of it below says which limit the
runs of even numbers choose, and the second one counts how often verdicts are right on
the others (D169).

launch/sweep.sh configs/ablation/collapse.py --scale demo --out runs/collapse \
  -- --quantize.specs FP
rfq diagnose runs/collapse/arms/recipe_*[02468]/seed-*
rfq diagnose runs/collapse/arms/recipe_*[13579]/seed-*
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from rfq import experiment
from rfq.model.init import alpha_qk_for

CONFIGS = pathlib.Path(__file__).parents[1]
NUM_ARMS, NUM_STEPS, WARMUP_STEPS = 64, 200, 20

# Depth -> learning rate of the matrices, as D108 has it.
RATES = {6: 1.5e-3, 12: 1e-3, 24: 5e-4}

# What is drawn -> the values that it is drawn from, each as often as it stands here.
CHOICES: dict[str, tuple[Any, ...]] = {
    "num_layers": (6, 6, 6, 12, 12, 12, 24),
    "beta": (1.0, 1.0, 1.0, 1.1),
    "logit": (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0),
    "soft_layers": ("none", "first", "thirds", "every_fourth"),
    "w_down": ("plain", "centered", "looks_linear", "looks_linear"),
    "vo_pair": ("transpose", "independent"),
    "qk_pair": ("tied", "tied_haar", "svd"),
}


def _arm(base: experiment.Experiment, number: int) -> experiment.Experiment:
    """Draw the recipe of one arm."""
    rng = np.random.default_rng(number)
    drawn = {
        name: values[rng.integers(len(values))] for name, values in CHOICES.items()
    }
    depth, logit = drawn.pop("num_layers"), drawn.pop("logit")
    model = dataclasses.replace(
        base.model, num_layers=depth, scan_unroll=1, beta=drawn.pop("beta")
    )
    return dataclasses.replace(
        base,
        arm=f"recipe_{number:02}",
        seed=number,
        model=model,
        init=dataclasses.replace(
            base.init, alpha_qk=alpha_qk_for(logit, model.head_width), **drawn
        ),
        optimizer=dataclasses.replace(
            base.optimizer,
            learning_rate=RATES[depth],
            other_learning_rate=1e-2,
            rates={"w_q": 10.0, "w_k": 10.0},
        ),
        schedule=dataclasses.replace(base.schedule, warmup_steps=WARMUP_STEPS),
        train=dataclasses.replace(base.train, num_steps=NUM_STEPS),
        log=dataclasses.replace(
            base.log, measure_every=NUM_STEPS, checkpoint_every=NUM_STEPS
        ),
    )


def arms(scale: str) -> list[experiment.Experiment]:
    """The scale's residual-free KL-Shampoo arm under every recipe that is drawn."""
    base = experiment.load(CONFIGS / scale / "residual_free_kl_shampoo.py")
    return [_arm(base, number) for number in range(NUM_ARMS)]
