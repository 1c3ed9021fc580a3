"""Figure 3: the optimizers on the residual-free model, with and without temperature.

Four optimizers x beta in {1, 1.1}, beside the two residual arms whose kurtosis the
figure shows. Rates are those of the scale's own arms; SOAP takes KL-Shampoo's, AdamW
the 1e-3 of theorem1.py.

launch/sweep.sh configs/ablation/optimizers.py --scale demo --out runs/optimizers
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.optim import AdamWConfig, SoapConfig

CONFIGS = pathlib.Path(__file__).parents[1]


def arms(scale: str) -> list[experiment.Experiment]:
    """The residual controls, then each optimizer without and with a temperature."""
    adamw, kl_shampoo, free, free_muon = (
        experiment.load(CONFIGS / scale / f"{name}.py")
        for name in (
            "residual_adamw",
            "residual_kl_shampoo",
            "residual_free_kl_shampoo",
            "residual_free_muon",
        )
    )
    spectral = free.optimizer
    optimizers = {
        "adamw": AdamWConfig(learning_rate=1e-3),
        "muon": free_muon.optimizer,
        "soap": SoapConfig(
            learning_rate=spectral.learning_rate,
            other_learning_rate=spectral.other_learning_rate,
        ),
        "kl_shampoo": spectral,
    }
    temperatures = {"": 1.0, "_beta_1.1": 1.1}
    return [adamw, kl_shampoo] + [
        dataclasses.replace(
            free,
            arm=f"residual_free_{name}{suffix}",
            model=dataclasses.replace(free.model, beta=beta),
            optimizer=optimizer,
        )
        for name, optimizer in optimizers.items()
        for suffix, beta in temperatures.items()
    ]
