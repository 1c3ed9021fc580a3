"""Optimizers: optax transforms for any pytree, and the configs of the experiment.

`kl_shampoo(learning_rate, ...)` and its siblings are optax optimizers. An experiment
names a row of OPTIMIZERS and hands the config to `rfq.optim.build.build`.
"""

from collections.abc import Mapping

from rfq.optim.adamw import AdamWConfig, adamw, scale_by_adam
from rfq.optim.build import OptimizerConfig
from rfq.optim.kl_shampoo import KLShampooConfig, kl_shampoo, scale_by_kl_shampoo
from rfq.optim.kl_soap import KLSoapConfig, kl_soap, scale_by_kl_soap
from rfq.optim.matrix import Basis, diagnostics, get_basis, set_basis
from rfq.optim.muon import MuonConfig, muon, scale_by_muon
from rfq.optim.shampoo import ShampooConfig, scale_by_shampoo, shampoo
from rfq.optim.soap import SoapConfig, scale_by_soap, soap
from rfq.optim.stylized import (
    SignGDConfig,
    SpectralGDConfig,
    scale_by_polar,
    scale_by_sign,
    sign_gd,
    spectral_gd,
)

OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "kl_shampoo": KLShampooConfig,
    "kl_soap": KLSoapConfig,
    "muon": MuonConfig,
    "shampoo": ShampooConfig,
    "sign_gd": SignGDConfig,
    "soap": SoapConfig,
    "spectral_gd": SpectralGDConfig,
}

__all__ = [
    "OPTIMIZERS",
    "AdamWConfig",
    "Basis",
    "KLShampooConfig",
    "KLSoapConfig",
    "MuonConfig",
    "OptimizerConfig",
    "ShampooConfig",
    "SignGDConfig",
    "SoapConfig",
    "SpectralGDConfig",
    "adamw",
    "diagnostics",
    "get_basis",
    "kl_shampoo",
    "kl_soap",
    "matrix",
    "muon",
    "scale_by_adam",
    "scale_by_kl_shampoo",
    "scale_by_kl_soap",
    "scale_by_muon",
    "scale_by_polar",
    "scale_by_shampoo",
    "scale_by_sign",
    "scale_by_soap",
    "set_basis",
    "shampoo",
    "sign_gd",
    "soap",
    "spectral_gd",
]
