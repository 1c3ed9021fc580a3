"""Residual arms with other cures for outliers, beside the paper's residual-free one.

Outlier-Safe Pre-Training (arXiv 2506.19697) is Muon, one gain a norm and a projected
embedding, here also one by one; gated attention (2505.06708) closes heads by a sigmoid;
the penalty is TWEO's (2511.23225) at its own values; LayerNorm centres what RMSNorm
does not. Rates are those of the scale's own arms, tuned for none of the rivals. Every
arm is quantized with both placements of the stream, branch and in place.

launch/sweep.sh configs/ablation/rivals.py --scale demo --out runs/rivals
"""

import dataclasses
import pathlib

from rfq import experiment

CONFIGS = pathlib.Path(__file__).parents[1]

SINGLE = {"norm": "single_scale_norm"}
PROJECTED = {"embedding": "projected"}

# Arm -> the control that it changes, and what it changes of its model.
CHANGES = {
    "residual_adamw": ("adamw", {}),
    "layer_norm": ("adamw", {"norm": "layer_norm"}),
    "gated_attention": ("adamw", {"attention_gate": "head"}),
    "penalty": ("penalized", {}),
    "muon": ("muon", {}),
    "muon_single_scale_norm": ("muon", SINGLE),
    "muon_projected_embedding": ("muon", PROJECTED),
    "outlier_safe": ("muon", {**SINGLE, **PROJECTED}),
    "residual_free_kl_shampoo": ("free", {}),
    "residual_free_layer_norm": ("free", {"norm": "layer_norm"}),
}


def arms(scale: str) -> list[experiment.Experiment]:
    """The scale's residual AdamW arm, its rivals, and its residual-free arm."""
    adamw, free, free_muon = (
        experiment.load(CONFIGS / scale / f"{name}.py")
        for name in ("residual_adamw", "residual_free_kl_shampoo", "residual_free_muon")
    )
    penalized = dataclasses.replace(adamw.train, penalty_weight=0.01)
    controls = {
        "adamw": adamw,
        "penalized": dataclasses.replace(adamw, train=penalized),
        "muon": dataclasses.replace(adamw, optimizer=free_muon.optimizer),
        "free": free,
    }
    return [
        dataclasses.replace(
            controls[control],
            arm=arm,
            model=dataclasses.replace(controls[control].model, **change),
        )
        for arm, (control, change) in CHANGES.items()
    ]
