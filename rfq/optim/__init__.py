"""Optimizers: optax transforms for any pytree, and the configs of the experiment.

`kl_shampoo(learning_rate, ...)` and its siblings are optax optimizers. An experiment
names a row of OPTIMIZERS and hands the config to `rfq.optim.build.build`.
"""

from collections.abc import Mapping

from rfq.optim.adamw import AdamWConfig, adamw, scale_by_adam
from rfq.optim.build import OptimizerConfig
from rfq.optim.kl_shampoo import KLShampooConfig, kl_shampoo, scale_by_kl_shampoo
from rfq.optim.matrix import Basis, diagnostics, get_basis, set_basis
from rfq.optim.muon import MuonConfig, muon, scale_by_muon

OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "kl_shampoo": KLShampooConfig,
    "muon": MuonConfig,
}

__all__ = [
    "OPTIMIZERS",
    "AdamWConfig",
    "Basis",
    "KLShampooConfig",
    "MuonConfig",
    "OptimizerConfig",
    "adamw",
    "diagnostics",
    "get_basis",
    "kl_shampoo",
    "muon",
    "scale_by_adam",
    "scale_by_kl_shampoo",
    "scale_by_muon",
    "set_basis",
]
