"""DRIVER of `rfq bench integers`: the speed and size of quantized checkpoints.

All programs run in turn, by `costs.clock`, so that other work of the machine slows
all of them alike.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import experiment as experiment_lib
from rfq import export, metrics, provenance
from rfq.costs import clock
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import products, transformer
from rfq.quant import integer
from rfq.quant.grid import Grid
from rfq.tasks import decode
from rfq.types import Params

_FLOAT32 = "float32"


def run(
    directories: Sequence[pathlib.Path],
    *,
    num_prompts: int,
    num_rounds: int,
    json_path: pathlib.Path | None,
) -> list[dict[str, Any]]:
    """Measure checkpoints of one model on their integers and in float32.

    Args:
        directories: What `export.save` wrote.
        num_prompts: Sequences that are scored or continued at once.
        num_rounds: Timed calls of each program.
        json_path: A JSON-lines file for the rows that are returned, None for none.

    Returns:
        A row for each program: "work" ("score": all positions of the model's sequence
        length; "generate": half of it, token by token, from random prompts; "product":
        h W_U of one layer, for as many rows as "tokens"), "program" ("float32", or a
        setting "on integers" or "simulated"), "tokens_per_second" (the median),
        "ratio", the median over rounds of float32's time over its own, and
        "num_bytes" of the hidden matrices, two codes of 4 bits in a byte.

    Raises:
        InputError: A number is not positive, or as `export.opened`.
    """
    for name, value in (("prompts", num_prompts), ("rounds", num_rounds)):
        if value < 1:
            raise InputError(f"--{name}={value} must be >= 1")
    opened = {path: export.opened(path) for path in directories}
    experiments = {experiment.model for experiment, _ in opened.values()}
    if len(experiments) != 1:
        raise InputError(
            f"{len(experiments)} different models are given; give one or more "
            "checkpoints of one run, such as exported/W8A8 exported/W4A8"
        )
    models: dict[str, decode.Model] = {}
    for path, (_, model) in opened.items():
        twin = _simulated(model)
        models.setdefault(_FLOAT32, twin._replace(seams=transformer.PLAIN, states={}))
        models[f"{path.name} simulated"] = twin
        models[f"{path.name} on integers"] = model
    experiment, _ = next(iter(opened.values()))
    rows: list[dict[str, Any]] = []
    for work, tokens, calls in _works(experiment, models, num_prompts):
        seconds = clock.in_turn(
            {n: clock.repeated(lambda _, c=c: c(), None) for n, c in calls.items()},
            num_rounds,
            f"{work}, {tokens:,} tokens",
        )
        rows += [
            {
                "work": work,
                "program": name,
                "tokens": tokens,
                "tokens_per_second": tokens / float(np.median(spent)),
                "ratio": float(np.median(seconds[_FLOAT32] / spent)),
                "num_bytes": _num_bytes(models[name].params),
                "bench": "integers",
                "config_fingerprint": experiment_lib.fingerprint(experiment),
                **provenance.described(),
            }
            for name, spent in seconds.items()
        ]
    for row in rows:
        metrics.say(
            f"{row['work']:9} {row['tokens']:7,} {row['program']:20} "
            f"{row['tokens_per_second']:12,.0f} tokens/s {row['ratio']:6.2f} x float32 "
            f"{row['num_bytes']:12,} bytes"
        )
    if json_path is not None:
        metrics.make_directory(json_path.parent)
        metrics.rewrite(json_path, rows)
    return rows


def _works(experiment: Experiment, models: dict[str, decode.Model], num_prompts: int):
    """Give (name, tokens of one call, {program: call}) of each work."""
    c = dataclasses.replace(experiment.model, compute_dtype="float32", attention="xla")
    rng = np.random.default_rng(0)
    batch = rng.integers(0, c.num_tokens, (num_prompts, c.seq_len + 1))
    batch = jnp.asarray(batch, jnp.int32)
    losses = jax.jit(_losses, static_argnums=(2, 3))
    score = {
        name: functools.partial(losses, m.params, batch, c, m.seams, m.states)
        for name, m in models.items()
    }
    yield "score", num_prompts * c.seq_len, score

    new = max(1, c.seq_len // 2)
    prompts = list(np.asarray(batch[:, : c.seq_len - new]))
    generate = {
        name: functools.partial(
            decode.generate,
            m,
            prompts,
            max_new_tokens=new,
            sampling=decode.Sampling(),
            is_done=lambda number, ids: False,
        )
        for name, m in models.items()
    }
    yield "generate", num_prompts * new, generate

    for num_tokens in (1, num_prompts * c.seq_len):
        x = jnp.asarray(rng.standard_normal((num_tokens, c.width)), jnp.float32)
        yield "product", num_tokens, {n: _product(m, x) for n, m in models.items()}


def _losses(params, batch, config, seams, states):
    with jax.default_matmul_precision("highest"):
        return transformer.token_losses(params, batch, config, seams, states)[0]


def _product(model: decode.Model, x: jax.Array) -> Callable[[], jax.Array]:
    """Compile x W_up of the first layer, without taps."""

    def of_layer(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], tree)

    w = of_layer(model.params["blocks"]["w_up"])
    state = of_layer(model.states.get("w_up"))
    if model.seams.dot is products.matmul:
        state = None
    dot = jax.jit(lambda x, w, state: model.seams.dot(x, w, "w_up", state))
    return functools.partial(dot, x, w, state)


def _simulated(model: decode.Model) -> decode.Model:
    """Return the checkpoint with its weights decoded to float32 and its taps."""
    grids = {
        name: state.w if isinstance(state, integer.Operands) else state
        for name, state in model.states.items()
        if name in model.params["blocks"]
    }
    blocks = {
        name: integer.load(integer.Codes(leaf, grids[name])) if name in grids else leaf
        for name, leaf in model.params["blocks"].items()
    }
    seams = dataclasses.replace(model.seams, dot=products.matmul)
    sites = {n: s for n, s in model.states.items() if n not in grids}
    assert all(isinstance(grid, Grid) for grid in grids.values())
    return model._replace(
        params={**model.params, "blocks": blocks}, seams=seams, states=sites
    )


def _num_bytes(params: Params) -> int:
    """Count the bytes of the hidden matrices; a code of 4 bits is half a byte."""
    matrices = [leaf for leaf in params["blocks"].values() if leaf.ndim > 2]
    return sum(math.ceil(leaf.size * _bits(leaf.dtype) / 8) for leaf in matrices)


def _bits(dtype: Any) -> int:
    return 4 if dtype == jnp.int4 else 8 * jnp.dtype(dtype).itemsize
