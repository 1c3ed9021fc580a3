"""The smallest experiment that trains, quantizes and reports, for the drivers' tests.

Everything runs on one device: eight virtual ones would only be slower. What takes
seconds is made once per session; a test that writes works on a copy.
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import numpy as np
import pytest

from rfq import ptq, sharding, train
from rfq.data import prepare, tokenize
from rfq.experiment import (
    DataConfig,
    Experiment,
    LogConfig,
    QuantizeConfig,
    TrainConfig,
)
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig

SEQ_LEN, NUM_STEPS, CHECKPOINT_EVERY = 16, 12, 4
SPECS = ("FP", "W8A8", "W8A4", "A8", "A4", "W4")

# What may differ between two computations of the same numbers.
TIMES = ("seconds", "tokens_per_second")

_WORDS = ["the", "union", "of", "states", "shall", "meet", "in", "congress", "and"]


def one_device(patch: pytest.MonkeyPatch) -> None:
    """Makes every mesh one of a single device, as on a user's CPU."""
    mesh = sharding.make_mesh(1)
    patch.setattr(sharding, "make_mesh", lambda num_devices=1: mesh)


def write_text(path: pathlib.Path, *, salt: int = 0) -> pathlib.Path:
    """JSON lines of documents that a tiny model can learn something about."""
    rng = np.random.default_rng(salt)
    with path.open("w", encoding="utf-8") as file:
        for index in range(160):
            text = " ".join(rng.choice(_WORDS, size=rng.integers(20, 60)))
            file.write(json.dumps({"id": str(index), "text": text}) + "\n")
    return path


def prepared(folder: pathlib.Path, *, salt: int = 0) -> pathlib.Path:
    """Byte tokens of `write_text`, windows of two sequences."""
    source = write_text(folder / "text.jsonl", salt=salt)
    prepare.prepare(
        str(source),
        folder / "data",
        tokenizer=tokenize.load("byte"),
        window_len=2 * SEQ_LEN,
        calibration_fraction=0.15,
        heldout_fraction=0.15,
    )
    return folder / "data"


@functools.cache
def data(factory: pytest.TempPathFactory) -> pathlib.Path:
    """The prepared directory of the session."""
    return prepared(factory.mktemp("tiny"))


def experiment(data_dir: pathlib.Path, **changes) -> Experiment:
    """Two layers of width 16 under AdamW; `changes` are fields of Experiment."""
    base = Experiment(
        arm="tiny",
        model=ModelConfig(
            num_layers=2,
            width=16,
            num_heads=2,
            vocab_size=259,
            seq_len=SEQ_LEN,
            skip="residual",
            beta=1.0,
            compute_dtype="float32",
            remat=False,
            loss_chunks=1,
        ),
        init=InitConfig(recipe="gpt2"),
        optimizer=AdamWConfig(learning_rate=2e-2),
        schedule=ScheduleConfig(warmup_steps=2),
        data=DataConfig(dir=str(data_dir), tokenizer="byte"),
        train=TrainConfig(num_steps=NUM_STEPS, batch_size=8),
        log=LogConfig(
            log_every=2,
            measure_every=6,
            measure_sequences=16,
            checkpoint_every=CHECKPOINT_EVERY,
        ),
        quantize=QuantizeConfig(
            specs=SPECS,
            calibration_tokens=32 * SEQ_LEN,
            eval_tokens=64 * SEQ_LEN,
            batch_size=32,
        ),
    )
    return dataclasses.replace(base, **changes)


def with_fields(base: Experiment, section: str, **fields) -> Experiment:
    """The experiment with some fields of one section replaced."""
    changed = dataclasses.replace(getattr(base, section), **fields)
    return dataclasses.replace(base, **{section: changed})


@functools.cache
def trained(factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run directory of `experiment(data)`; do not write into it."""
    run_dir = factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        train.run(experiment(data(factory)), run_dir)
    return run_dir


@functools.cache
def quantized(factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of `trained` with the whole grid; do not write into it."""
    run_dir = factory.mktemp("quantized") / "run"
    shutil.copytree(trained(factory), run_dir)
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        ptq.run(experiment(data(factory)), run_dir)
    return run_dir


def copied(source: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """A copy that a test may change."""
    return shutil.copytree(source, to / "copy")


def rows(path: pathlib.Path, *, drop: tuple[str, ...] = TIMES) -> list[dict]:
    """The rows of a JSON-lines file without what may differ."""
    parsed = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in drop} for row in parsed]


def lines(path: pathlib.Path, *, drop: tuple[str, ...] = TIMES) -> list[str]:
    """`rows` as text: equal only if every number is, bit for bit."""
    return [json.dumps(row) for row in rows(path, drop=drop)]
