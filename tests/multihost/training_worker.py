"""One of several processes that train: `... PROCESS COUNT PORT DATA OUT CASE...`."""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np

from rfq import optim, runs, sharding, steps
from rfq.experiment import DataConfig, Experiment, TrainConfig
from rfq.model.config import ModelConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.sharding import ShardingConfig

QUICK = {"xla_backend_optimization_level": 0}
NUM_STEPS, BATCH_SIZE = 20, 16
MODEL = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=2,
    vocab_size=260,
    seq_len=16,
    skip="residual",
    beta=1.0,
    compute_dtype="float32",
    remat=False,
    loss_chunks=1,
)
# The decomposition that compiles fastest. In the eigenbasis a coordinate whose gradient
# is rounding noise moves by the sign of that noise, unless eps is above it:
# SOAP's default would move the losses by 1e-3.
OPTIMIZERS = {
    "adamw": optim.AdamWConfig(learning_rate=1e-2),
    "muon": optim.MuonConfig(learning_rate=3e-3),
    "kl_shampoo": optim.KLShampooConfig(
        learning_rate=3e-3, init_factor=1e-3, decomposition="cholesky"
    ),
    "soap": optim.SoapConfig(learning_rate=3e-3, eps=1e-4, decomposition="cholesky"),
}


def experiment(case: str) -> Experiment:
    """The experiment of a case such as "muon fsdp_tp tensor=4"."""
    optimizer, strategy, *more = case.split()
    sizes = dict(word.split("=") for word in more)
    return Experiment(
        arm="worker",
        model=MODEL,
        optimizer=OPTIMIZERS[optimizer],
        schedule=ScheduleConfig(warmup_steps=2),
        train=TrainConfig(num_steps=NUM_STEPS, batch_size=BATCH_SIZE),
        sharding=ShardingConfig(
            strategy=strategy, **{axis: int(size) for axis, size in sizes.items()}
        ),
    )


@functools.cache
def compiled(case: str, num_devices: int):
    """The mesh, the program of the first state, and that of a step."""
    given = experiment(case)
    mesh = sharding.make_mesh(num_devices, given.sharding)
    functions = steps.compile_train(given, mesh)
    batch = jax.ShapeDtypeStruct(
        (BATCH_SIZE, MODEL.seq_len + 1), "int32", sharding=sharding.batch_sharding(mesh)
    )
    step = functions.train.lower(functions.state, batch).compile(QUICK)
    return mesh, functions.init, step


def trained(case: str, data: pathlib.Path, num_devices: int, *, reverse: bool = False):
    """Losses of all steps, and this process's rows of every batch."""
    mesh, init, step = compiled(case, num_devices)
    given = dataclasses.replace(experiment(case), data=DataConfig(dir=str(data)))
    batches = runs.train_batches(given)
    rows = [next(batches) for _ in range(NUM_STEPS)]
    order = slice(None, None, -1 if reverse else 1)
    state = init(jax.random.key(0))
    losses = []
    for local in rows:
        batch = sharding.to_global(np.ascontiguousarray(local[order]), mesh)
        state, values = step(state, batch)
        losses.append(values["loss"])
    return [float(loss) for loss in jax.device_get(losses)], np.stack(rows)


if __name__ == "__main__":
    process, count, port, data, out, *cases = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    found = {}
    for case in cases:
        losses, rows = trained(case, pathlib.Path(data), jax.device_count())
        found[case] = losses
    told = {"losses": found, "rows": rows.tolist()}
    pathlib.Path(out, f"{process}.json").write_text(json.dumps(told))
