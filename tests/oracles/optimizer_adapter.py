"""rfq's optimizers behind the protocol of the oracle (README of `data/`).

`build(kind, h, dtype)` maps a case's hyperparameters to a transform whose updates are
final; `set_basis(state, key, [rows, cols])` replaces stored eigenvectors.
"""

from typing import NamedTuple

import jax
import optax

from rfq import optim
from rfq.params import MatrixAxes


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
    inner = optim.set_basis(
        state.inner, state.params, key, optim.Basis(*basis), axes=None
    )
    return state._replace(inner=inner)


def _b2(h: dict) -> float:
    return h["betas"][1] if h["shampoo_beta"] < 0 else h["shampoo_beta"]


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


def _klshampoo(h: dict) -> optax.GradientTransformation:
    return optim.kl_shampoo(
        h["lr"],
        b1=h["betas"][0],
        b2=_b2(h),
        eps=h["eps"],
        precondition_frequency=h["precondition_frequency"],
        init_factor=h["init_factor"],
        max_clamp=h["max_clamp_value"] if h["using_clamping"] else None,
        damping=h["eps"] if h["using_damping"] else 0.0,
        rms_target=1.0 if h["normalize_grads"] else None,
        weight_decay=h["weight_decay"],
        decay="post",
        mode="reference",
    )


KINDS = {
    "adamw": _adamw,
    "klshampoo": _klshampoo,
    "muon": _muon,
}
