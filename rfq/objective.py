"""What a training step minimizes: the loss, and what an experiment adds to it.

A penalty reads what blocks put out; quantization-aware training rounds what enters the
sites, and the weights. An experiment without them has a program without a trace of
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rfq import params as params_lib
from rfq import taps
from rfq.experiment import Experiment
from rfq.model import layers, transformer
from rfq.model.config import BLOCK_SITES, TAP_SETS
from rfq.quant import aware, weights
from rfq.types import Array, Batch, Params

# Where the outputs of all blocks but the last, and that of the last, are seen.
BLOCK_OUTPUTS = ("attn_norm_in", "final_norm_in")

# (params, batch, number of the step from 0) -> (what is minimized, what is reported).
Objective = Callable[[Params, Batch, Array], tuple[Array, dict[str, Array]]]


def make(experiment: Experiment, plain: transformer.Seams) -> Objective:
    """Return the objective of an experiment; `plain` says where arrays are."""
    config, train, qat = experiment.model, experiment.train, experiment.qat
    weight = train.penalty_weight
    excess = taps.Taps(taps.Excess(train.penalty_threshold), BLOCK_OUTPUTS)
    penalizing = excess if weight > 0 else taps.NO_TAPS
    rounding = _rounding(qat)
    seams = dataclasses.replace(
        plain,
        taps=taps.Both(penalizing, rounding) if rounding.sites else penalizing,
        stream=layers.STREAMS[qat.stream],
    )

    def objective(params: Params, batch: Batch, step: Array):
        states = None
        if qat.spec != "FP":
            params, states = through_rounding(params, step, experiment)
        losses_BT, records = transformer.token_losses(
            params, batch, config, seams, states
        )
        loss = jnp.mean(losses_BT)
        if not records:
            return loss, {"loss": loss}
        # The input of the first block is no block's output.
        into_L, last = (records[site] for site in BLOCK_OUTPUTS)
        penalty = jnp.mean(jnp.append(into_L[1:], last))
        return loss + weight * penalty, {"loss": loss, "penalty": penalty}

    return objective


def _rounding(qat: aware.QatConfig) -> taps.Taps:
    """Return the taps that round the activations of a training program, if any."""
    if qat.widths.act_bits is None:
        return taps.NO_TAPS
    return taps.Taps(aware.Train(qat.kind), TAP_SETS[qat.taps])


def through_rounding(
    params: Params, step: Array, experiment: Experiment
) -> tuple[Params, dict[str, aware.Rounding]]:
    """Round the weights, and say what each site is rounded to in this step.

    Everything is a function of the experiment and the number of the step, which is
    all that a resumed run needs to go on as before.

    Args:
        params: Of the model, in full precision.
        step: From 0.
        experiment: Whose `qat` says what is rounded, and from when on.

    Returns:
        The weights as this step uses them, and {site: `Rounding`}, leaves [L] or
        scalars.
    """
    qat = experiment.qat
    is_on = (step >= first_step(experiment)) & (step % qat.every == 0)
    key = jax.random.fold_in(jax.random.key(experiment.seed), step)
    weight_key, site_key = jax.random.split(key)
    if qat.widths.weight_bits is not None:
        leaves, treedef = jax.tree.flatten(params)
        grids = weights.grids(
            jax.lax.stop_gradient(params),
            qat.widths.weight_bits,
            axes=params_lib.quantized_axes,
            scheme=qat.scheme,
        )
        keys = jax.random.split(weight_key, len(leaves))
        rounded = [
            leaf
            if target is None
            else aware.rounded(leaf, aware.Rounding(target, is_on, key), qat.kind)
            for leaf, target, key in zip(
                leaves, treedef.flatten_up_to(grids), keys, strict=True
            )
        ]
        params = treedef.unflatten(rounded)

    act_bits = qat.widths.act_bits
    if act_bits is None:
        return params, {}

    def of_site(number: int, site: str) -> aware.Rounding:
        shape = (experiment.model.num_layers,) if site in BLOCK_SITES else ()
        bits = jnp.full(shape, act_bits, jnp.int32)
        return aware.Rounding(
            aware.RANGES[qat.range](qat, bits),
            jnp.broadcast_to(is_on, shape),
            jax.random.split(jax.random.fold_in(site_key, number), shape),
        )

    sites = enumerate(TAP_SETS[qat.taps])
    return params, {site: of_site(number, site) for number, site in sites}


def first_step(experiment: Experiment) -> int:
    """Return the number, from 0, of the first step that trains through rounding."""
    return round(experiment.qat.start * experiment.train.num_steps)
