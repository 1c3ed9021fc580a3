"""One of several processes that train: `... DATA OUT RUNS CASE...`.

Each trains every case for itself; then the run of each optimizer in RUNS, where other
processes on other meshes have left it, goes a stage further.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from rfq import distributed, optim, runs, sharding, steps, train
from rfq.errors import Preempted
from rfq.experiment import DataConfig, Experiment, LogConfig, TrainConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.sharding import ShardingConfig
from tests import tiny

NUM_STEPS, BATCH_SIZE = 20, 16
EVERY = 5  # Steps of a stage.
# The 259 bytes cannot be halved; one more is never seen.
MODEL = dataclasses.replace(tiny.MODEL, vocab_size=260)
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
        log=LogConfig(
            log_every=1, measure_sequences=BATCH_SIZE, checkpoint_every=EVERY
        ),
        sharding=ShardingConfig(
            strategy=strategy, **{axis: int(size) for axis, size in sizes.items()}
        ),
    )


@functools.cache
def compiled(case: str, num_devices: int):
    """The mesh and the functions of a run, without the optimizer's diagnostics."""
    given = experiment(case)
    mesh = sharding.make_mesh(num_devices, given.sharding)
    functions = steps.compile_train(given, mesh)
    return mesh, dataclasses.replace(functions, diagnose=lambda state: {})


def on(case: str, data: pathlib.Path) -> Experiment:
    """The experiment of a case on prepared data."""
    return dataclasses.replace(experiment(case), data=DataConfig(dir=str(data)))


def trained(case: str, data: pathlib.Path, num_devices: int, *, reverse: bool = False):
    """Losses of all steps, and this process's rows of every batch."""
    mesh, functions = compiled(case, num_devices)
    batches = runs.train_batches(on(case, data))
    rows = [next(batches) for _ in range(NUM_STEPS)]
    order = slice(None, None, -1 if reverse else 1)
    state = functions.init(jax.random.key(0))
    losses = []
    for local in rows:
        batch = sharding.to_global(np.ascontiguousarray(local[order]), mesh)
        state, values = functions.train(state, batch)
        losses.append(values["loss"])
    return [float(loss) for loss in jax.device_get(losses)], np.stack(rows)


class Recorded:
    """Batches that note what is taken, where, and end a step after a stage."""

    def __init__(self, batches, taken):
        self._batches, self._taken = batches, taken

    def set_state(self, position):
        self.position = position
        self._batches.set_state(position)

    def __next__(self):
        if len(self._taken) > EVERY:
            raise Preempted("a step behind its checkpoint")
        batch = next(self._batches)
        self._taken.append((self.position, batch.tolist()))
        self.position += 1
        return batch


def gone_further(case: str, data: pathlib.Path, num_devices: int, run_dir):
    """Trains a stage from where the run is; this process's (position, rows) of it."""
    taken = []
    mesh, functions = compiled(case, num_devices)
    train_batches = runs.train_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda config: mesh)
        patch.setattr(steps, "compile_train", lambda *given: functions)
        patch.setattr(
            runs, "train_batches", lambda given: Recorded(train_batches(given), taken)
        )
        # The data's manifest counts 259.
        patch.setattr(runs.manifest_lib, "check", lambda *data, **wanted: None)
        unmeasured = {"loss": 0.0, "num_tokens": 0, "edges": [], "sites": {}}
        patch.setattr(train, "_measure", lambda *given: unmeasured)
        try:
            train.run(on(case, data), run_dir)
        except Preempted:
            assert len(taken) == EVERY + 1
    return taken


def told(cases: Sequence[str], data: pathlib.Path, num_devices: int, out: pathlib.Path):
    """This process's losses and rows of each case, and its part of each stage."""
    found = {"losses": {}, "stages": {}}
    for case in cases:
        found["losses"][case], rows = trained(case, data, num_devices)
        found["rows"] = rows.tolist()
        optimizer = case.split()[0]
        run_dir = out / optimizer
        found["stages"][optimizer] = gone_further(case, data, num_devices, run_dir)
    return found


if __name__ == "__main__":
    data_, out_, runs_, *cases_ = sys.argv[1:]
    distributed.start()
    said = told(cases_, pathlib.Path(data_), jax.device_count(), pathlib.Path(runs_))
    name = f"{os.environ['RFQ_PROCESS_ID']}.json"
    pathlib.Path(out_, name).write_text(json.dumps(said))
    distributed.leave()
