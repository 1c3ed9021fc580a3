"""Theorem 1: connection x initialization x optimizer, all eight.

The paper says that only residual-free + orthogonal + spectral stays near Gaussian, and
shows no residual-free arm without either of the latter two. Gaussian is GPT-2's
initialization, spectral is KL-Shampoo; connections, initializations and rates are those
of the scale's own arms. Depth is one field away.

launch/sweep.sh configs/ablation/theorem1.py --scale demo --out runs/theorem1
launch/sweep.sh configs/ablation/theorem1.py --scale demo --out runs/depth \
  --over model.num-layers 6,12,24
"""

import dataclasses
import itertools
import pathlib

from rfq import experiment
from rfq.optim import AdamWConfig

CONFIGS = pathlib.Path(__file__).parents[1]


def arms(scale: str) -> list[experiment.Experiment]:
    """The eight corners; three of them are the scale's own arms under other names."""
    adamw, spectral, free = (
        experiment.load(CONFIGS / scale / f"{name}.py")
        for name in (
            "residual_adamw",
            "residual_kl_shampoo",
            "residual_free_kl_shampoo",
        )
    )
    models = {"residual": adamw.model, "residual_free": free.model}
    inits = {"gaussian": adamw.init, "orthogonal": free.init}
    optimizers = {
        ("residual", "adamw"): adamw.optimizer,
        ("residual", "kl_shampoo"): spectral.optimizer,
        ("residual_free", "adamw"): AdamWConfig(learning_rate=1e-3),
        ("residual_free", "kl_shampoo"): free.optimizer,
    }
    return [
        dataclasses.replace(
            adamw,
            arm=f"{skip}_{init}_{optimizer}",
            model=models[skip],
            init=inits[init],
            optimizer=optimizers[skip, optimizer],
        )
        for init, (skip, optimizer) in itertools.product(inits, optimizers)
    ]
