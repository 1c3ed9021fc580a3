"""rfq's optimizers behind the protocol of the oracle (README of `data/`).

`build(kind, h, dtype)` maps a case's hyperparameters to a transform whose updates are
final; `set_basis(state, key, [rows, cols])` replaces stored eigenvectors.
"""

import os
from typing import NamedTuple

import jax
import optax

from rfq import optim
from rfq.optim import public
from rfq.params import MatrixAxes
from tests.oracles import basis as basis_lib
from tests.oracles.kl_reference import ReferenceConfig

# How rfq computes: "reference", KL-Shampoo step by step as its authors do, the others
# with their Householder QR; "householder" and "cholesky", rotated coordinates with that
# decomposition. All reproduce every case.
FORM = os.environ.get("RFQ_OPTIM_FORM", "reference")


class AdapterState(NamedTuple):
    """The first parameters, for their shapes, and the optimizer's state."""

    params: optax.Params
    inner: optax.OptState


def build(kind: str, h: dict, dtype) -> optax.GradientTransformation:
    """Builds the transform of a case; `kind` is the first word of its name."""
    del dtype
    inner = KINDS[kind](h)

    def init(params):
        return AdapterState(params, inner.init(params))

    def update(updates, state, params=None):
        updates, new = inner.update(updates, state.inner, params)
        return updates, AdapterState(state.params, new)

    return optax.GradientTransformation(init, update)


def set_basis(state: AdapterState, key: str, basis: list) -> AdapterState:
    """Replaces the eigenvectors of parameter `key`: [of the rows, of the columns]."""
    inner = basis_lib.set_basis(
        state.inner, state.params, key, basis_lib.Basis(*basis), axes=as_matrices
    )
    return state._replace(inner=inner)


def _factor_b2(h: dict) -> float:
    return h["betas"][1] if h["shampoo_beta"] < 0 else h["shampoo_beta"]


def _decomposition() -> str:
    return "cholesky" if FORM == "cholesky" else "householder"


def _adamw(h: dict) -> optax.GradientTransformation:
    b1, b2 = h["betas"]
    return optim.adamw(
        h["lr"], b1=b1, b2=b2, eps=h["eps"], weight_decay=h["weight_decay"]
    )


def _muon(h: dict) -> optax.GradientTransformation:
    # The oracle stores [out, in], so the contracted axis is the second.
    return optim.muon(
        h["lr"],
        b1=h["momentum"],
        eps=h["eps"],
        scale="moonshot" if h["scale"].startswith("0.2") else "keller",
        weight_decay=h["weight_decay"],
        compute_dtype="full",
        axes=lambda params: jax.tree.map(lambda _: MatrixAxes((1,), (0,)), params),
    )


def _kl(h: dict) -> dict:
    """The hyperparameters that KL-Shampoo and KL-SOAP share."""
    return {
        "b1": h["betas"][0],
        "eps": h["eps"],
        "precondition_frequency": h["precondition_frequency"],
        "init_factor": h["init_factor"],
        "max_clamp": h["max_clamp_value"] if h["using_clamping"] else None,
        "damping": h["eps"] if h["using_damping"] else 0.0,
        "rms_target": 1.0 if h["normalize_grads"] else None,
        "weight_decay": h["weight_decay"],
        "decay": "post",
        "decomposition": _decomposition(),
    }


def _klshampoo(h: dict) -> optax.GradientTransformation:
    make = optim.kl_shampoo
    if FORM == "reference":
        make = public.transform(ReferenceConfig, "kl_reference")
    return make(h["lr"], b2=_factor_b2(h), **_kl(h))


def _klsoap(h: dict) -> optax.GradientTransformation:
    return optim.kl_soap(h["lr"], b2=h["betas"][1], factor_b2=_factor_b2(h), **_kl(h))


def _soap(h: dict) -> optax.GradientTransformation:
    def soap(max_precondition_dim: int) -> optax.GradientTransformation:
        return optim.soap(
            h["lr"],
            b1=h["betas"][0],
            b2=h["betas"][1],
            factor_b2=_factor_b2(h),
            eps=h["eps"],
            precondition_frequency=h["precondition_frequency"],
            max_precondition_dim=max_precondition_dim,
            bias_correction=h["correct_bias"],
            rms_target=1.0 if h["normalize_grads"] else None,
            weight_decay=h["weight_decay"],
            decay="post",
            decomposition=_decomposition(),
            axes=as_matrices,
        )

    # A vector is a matrix with one column, rotated only if `precondition_1d`.
    whole = h["max_precond_dim"]
    return optax.partition(
        {"matrix": soap(whole), "vector": soap(whole if h["precondition_1d"] else 0)},
        lambda params: jax.tree.map(
            lambda p: "vector" if p.ndim == 1 else "matrix", params
        ),
    )


def _shampoo(h: dict) -> optax.GradientTransformation:
    graft = h["grafting"]
    return optim.shampoo(
        h["lr"],
        b1=h["betas"][0],
        b2=h["betas"][1],
        eps=h["epsilon"],
        relative_eps=0.0,
        precondition_frequency=h["precondition_frequency"],
        grafting="adam" if graft else "none",
        graft_eps=graft["epsilon"] if graft else 1e-8,
        weight_decay=h["weight_decay"],
        axes=as_matrices,
    )


def as_matrices(params: optax.Params) -> optax.Params:
    """Axes that make every leaf a matrix, a vector becoming one column."""
    return jax.tree.map(lambda p: MatrixAxes((0,), (1,) if p.ndim == 2 else ()), params)


KINDS = {
    "adamw": _adamw,
    "klshampoo": _klshampoo,
    "klsoap": _klsoap,
    "muon": _muon,
    "shampoo": _shampoo,
    "sign_gd": lambda h: optim.sign_gd(h["lr"]),
    "soap": _soap,
    "spectral_gd": lambda h: optim.spectral_gd(h["lr"]),
}
