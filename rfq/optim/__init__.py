"""Optimizers: optax transforms for any pytree, and the configs of the experiment.

`kl_shampoo(learning_rate, ...)` and its siblings are optax optimizers. An experiment
names a row of OPTIMIZERS and hands the config to `rfq.optim.build.build`.
"""

from collections.abc import Mapping

from rfq.optim import public
from rfq.optim.adamw import AdamWConfig
from rfq.optim.axes import by_path as axes_by_path
from rfq.optim.axes import scanned as scanned_axes
from rfq.optim.build import OptimizerConfig
from rfq.optim.describe import Treatment, describe
from rfq.optim.kl_shampoo import KLShampooConfig
from rfq.optim.kl_soap import KLSoapConfig
from rfq.optim.matrix import diagnostics
from rfq.optim.muon import MuonConfig
from rfq.optim.shampoo import ShampooConfig
from rfq.optim.soap import SoapConfig
from rfq.optim.stylized import SignGDConfig, SpectralGDConfig
from rfq.params import MatrixAxes

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

adamw = public.transform(AdamWConfig, "adamw")
kl_shampoo = public.transform(KLShampooConfig, "kl_shampoo")
kl_soap = public.transform(KLSoapConfig, "kl_soap")
muon = public.transform(MuonConfig, "muon")
shampoo = public.transform(ShampooConfig, "shampoo")
sign_gd = public.transform(SignGDConfig, "sign_gd")
soap = public.transform(SoapConfig, "soap")
spectral_gd = public.transform(SpectralGDConfig, "spectral_gd")

scale_by_adam = public.direction(AdamWConfig, "scale_by_adam")
scale_by_kl_shampoo = public.direction(KLShampooConfig, "scale_by_kl_shampoo")
scale_by_kl_soap = public.direction(KLSoapConfig, "scale_by_kl_soap")
scale_by_muon = public.direction(MuonConfig, "scale_by_muon")
scale_by_polar = public.direction(SpectralGDConfig, "scale_by_polar")
scale_by_shampoo = public.direction(ShampooConfig, "scale_by_shampoo")
scale_by_sign = public.direction(SignGDConfig, "scale_by_sign")
scale_by_soap = public.direction(SoapConfig, "scale_by_soap")

__all__ = [
    "OPTIMIZERS",
    "AdamWConfig",
    "KLShampooConfig",
    "KLSoapConfig",
    "MatrixAxes",
    "MuonConfig",
    "OptimizerConfig",
    "ShampooConfig",
    "SignGDConfig",
    "SoapConfig",
    "SpectralGDConfig",
    "Treatment",
    "adamw",
    "axes_by_path",
    "describe",
    "diagnostics",
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
    "scanned_axes",
    "shampoo",
    "sign_gd",
    "soap",
    "spectral_gd",
]
