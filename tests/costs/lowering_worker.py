"""Compile every program for a target, at the paper's widths and two layers.

python -m tests.costs.lowering_worker TARGET [NAME...] prints a JSON object a line: its
name, seconds, and bytes of code.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp

from rfq import experiment as experiment_lib
from rfq import optim, sharding, steps
from rfq.costs import targets
from rfq.model import transformer
from rfq.model.config import TAP_SETS
from rfq.quant.grid import Grid
from rfq.tasks import decode, scoring

PAPER = pathlib.Path(__file__).parents[2] / "configs" / "paper"
OPTIMIZERS = {
    "adamw": ("residual", optim.AdamWConfig()),
    "muon": ("residual_free", optim.MuonConfig()),
    "kl_shampoo": ("residual_free", optim.KLShampooConfig()),
    "soap": ("residual_free", optim.SoapConfig()),
    "shampoo": ("residual", optim.ShampooConfig()),
}
BATCH = 8


def lowered(target: targets.Target):
    """Map each program's name to a function that lowers it."""
    base = experiment_lib.load(PAPER / "residual_adamw.py")
    model = dataclasses.replace(base.model, num_layers=2)
    strategy = sharding.ShardingConfig(strategy="fsdp")
    train = dataclasses.replace(base.train, batch_size=BATCH)
    base = dataclasses.replace(base, model=model, sharding=strategy, train=train)
    mesh = sharding.make_mesh(config=strategy, devices=target.devices)
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def ints(*shape, where=rows):
        return jax.ShapeDtypeStruct(shape, "int32", sharding=where)

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, "float32", sharding=everywhere)

    batch = ints(BATCH, model.seq_len + 1)

    def training(name: str):
        skip, optimizer = OPTIMIZERS[name]
        given = dataclasses.replace(
            base, model=dataclasses.replace(model, skip=skip), optimizer=optimizer
        )
        compiled = steps.compile_train(given, mesh)
        return compiled.train.lower(compiled.state, batch)

    def decoding():
        prefill, _ = decode._compiled(model, transformer.PLAIN)
        key = jax.eval_shape(jax.random.key, 0)
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
        tokens = ints(4, 64, where=everywhere)
        lengths = ints(4, where=everywhere)
        return prefill.lower(quant().params, {}, tokens, lengths, key, *how)

    def quant():
        return steps.compile_quant(base, mesh, "paper")

    shares = sharding.num_shares(mesh)
    asked = scoring.Rows(
        ints(shares, 2, model.seq_len), ints(shares, 128), ints(shares, 128)
    )
    layers = floats(model.num_layers)
    grids = {site: Grid(layers, layers, layers) for site in TAP_SETS["paper"]}
    how = (floats(), floats())
    made = {
        "measure": lambda: quant().measure.lower(quant().params, batch),
        "calibrate": lambda: quant().calibrate.lower(quant().params, batch),
        "quantized": lambda: (
            quant().score.quantized["branch"].lower(quant().params, batch, grids)
        ),
        "answer": lambda: quant().answer.plain.lower(quant().params, asked),
        "quantize": lambda: quant().quantize.lower(
            quant().params, jax.ShapeDtypeStruct((), jnp.int32), "asymmetric"
        ),
        "export": lambda: steps.compile_integer(base, mesh, "branch").encode.lower(
            quant().params, 8
        ),
        "decode": decoding,
    }
    for name in OPTIMIZERS:
        made[f"train {name}"] = lambda name=name: training(name)
    return made


def main(name: str, *wanted: str) -> None:
    """Compile the wanted programs, or all."""
    for program, lower in lowered(targets.find(name)).items():
        if wanted and program not in wanted:
            continue
        start = time.perf_counter()
        compiled = lower().compile()
        memory = compiled.memory_analysis()
        found = {
            "target": name,
            "program": program,
            "seconds": time.perf_counter() - start,
            "code_bytes": memory.generated_code_size_in_bytes,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
