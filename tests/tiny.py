"""The smallest experiment that trains, quantizes and reports, for the drivers' tests.

What takes seconds is made once per session: programs, by `quick`, and finished
directories, on copies of which the tests work.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

from rfq import checkpoint, metrics, ptq, runs, sharding, steps, train
from rfq.data import prepare, tokenize
from rfq.experiment import (
    DataConfig,
    Experiment,
    LogConfig,
    QuantizeConfig,
    TrainConfig,
)
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.types import Turns

SEQ_LEN, NUM_STEPS, CHECKPOINT_EVERY = 16, 12, 4
SPECS = ("FP", "W8A8", "W2A3", "A8", "A4", "W2")

MODEL = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=2,
    vocab_size=259,
    seq_len=SEQ_LEN,
    skip="residual",
    beta=1.0,
    compute_dtype="float32",
    remat="none",
    loss_chunks=1,
)

# The paper's 19 settings: tables 2 to 4 and full precision.
PAPER_SPECS = (
    "FP",
    *(f"{w}A{bits}" for w in ("W8", "W16", "") for bits in (16, 12, 10, 8, 6, 4)),
)

# What may differ between two computations of the same numbers.
TIMES = ("seconds", "tokens_per_second")

_WORDS = ["the", "union", "of", "states", "shall", "meet", "in", "congress", "and"]


_make_mesh = sharding.make_mesh
_compile_train = functools.cache(steps.compile_train)
_compile_quant = functools.cache(steps.compile_quant)
_ANY = Experiment(arm="any", init=InitConfig(recipe="gpt2"))


def quick(patch: pytest.MonkeyPatch) -> None:
    """One device, as on a user's CPU, and each program compiled once per session."""

    def compile_train(given: Experiment, mesh: jax.sharding.Mesh) -> steps.TrainSteps:
        free = {name: getattr(_ANY, name) for name in ("data", "log", "quantize")}
        return _compile_train(
            dataclasses.replace(given, arm=_ANY.arm, seed=_ANY.seed, **free), mesh
        )

    def compile_quant(
        given: Experiment, mesh: jax.sharding.Mesh, tap_set: str, turns: Turns = ()
    ) -> steps.QuantSteps:
        only = dataclasses.replace(_ANY, model=given.model, sharding=given.sharding)
        return _compile_quant(only, mesh, tap_set, turns)

    patch.setattr(
        sharding,
        "make_mesh",
        lambda num_devices=1, config=None, devices=None: _make_mesh(
            num_devices, config, devices=devices
        ),
    )
    patch.setattr(steps, "compile_train", compile_train)
    patch.setattr(steps, "compile_quant", compile_quant)
    patch.setattr(jax, "clear_caches", lambda: None)


def no_work(patch: pytest.MonkeyPatch) -> None:
    """Makes every attempt to train or to quantize fail."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"there is nothing left to do, but {arguments[0]} is done")

    patch.setattr(steps, "compile_train", refuse)
    patch.setattr(steps, "compile_quant", refuse)


_compiled: list[str] = []


def _note_compilation(event: str, seconds: float, **names: str) -> None:
    del seconds
    if event.endswith("backend_compile_duration"):  # Also where a cache had it.
        _compiled.append(names.get("fun_name", "?"))


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the names of what is compiled meanwhile."""
    start, found = len(_compiled), []
    yield found
    found += _compiled[start:]


def poison(patch: pytest.MonkeyPatch, *, step: int, arm: str = "tiny") -> None:
    """Makes one parameter of an arm infinite right after a step."""
    inner = steps.compile_train

    def compile_train(given: Experiment, mesh: jax.sharding.Mesh) -> steps.TrainSteps:
        compiled = inner(given, mesh)

        def poisoned(state: steps.TrainState, batch: jax.Array):
            state, values = compiled.train(state, batch)
            if int(state.step) == step:
                gain = state.params["final_norm"].at[3].set(np.inf)
                state = state.replace(params={**state.params, "final_norm": gain})
            return state, values

        spoiled = dataclasses.replace(compiled, train=poisoned)
        return spoiled if given.arm == arm else compiled

    patch.setattr(steps, "compile_train", compile_train)


class Killed(BaseException):
    """Stands for a kill: no `except Exception` may swallow it."""


def kill_after(
    patch: pytest.MonkeyPatch, owner: object, name: str, num_calls: int
) -> None:
    """Lets a function be called `num_calls` times and kills the next call before it."""
    inner, calls = getattr(owner, name), itertools.count()

    def call(*args, **kwargs):
        if next(calls) >= num_calls:
            raise Killed
        return inner(*args, **kwargs)

    patch.setattr(owner, name, call)


def signal_at(patch: pytest.MonkeyPatch, *, step: int, number: int) -> None:
    """Sends this process a signal when a bar reaches a step."""
    update = metrics.Progress.update

    def told(self: metrics.Progress, done: int, note: str = "") -> None:
        update(self, done, note)
        if done == step:
            signal.raise_signal(number)

    patch.setattr(metrics.Progress, "update", told)


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


def _once(make: Callable[[pytest.TempPathFactory], pathlib.Path]):
    """Calls `make` once per session."""
    made: dict[pathlib.Path, pathlib.Path] = {}

    @functools.wraps(make)
    def cached(factory: pytest.TempPathFactory) -> pathlib.Path:
        session = factory.getbasetemp()
        if session not in made:
            made[session] = make(factory)
        return made[session]

    return cached


@_once
def data(factory: pytest.TempPathFactory) -> pathlib.Path:
    """The prepared directory of the session."""
    return prepared(factory.mktemp("tiny"))


def experiment(data_dir: pathlib.Path, **changes) -> Experiment:
    """Two layers of width 16 under AdamW; `changes` are fields of Experiment."""
    base = Experiment(
        arm="tiny",
        model=MODEL,
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
            calibration_tokens=64 * SEQ_LEN,
            eval_tokens=64 * SEQ_LEN,
            batch_size=32,
        ),
    )
    return dataclasses.replace(base, **changes)


def with_fields(base: Experiment, section: str, **fields) -> Experiment:
    """The experiment with some fields of one section replaced."""
    changed = dataclasses.replace(getattr(base, section), **fields)
    return dataclasses.replace(base, **{section: changed})


@_once
def trained(factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run directory of `experiment(data)`; do not write into it."""
    run_dir = factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        train.run(experiment(data(factory)), run_dir)
    return run_dir


@_once
def quantized(factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of `trained` with the whole grid; do not write into it."""
    run_dir = factory.mktemp("quantized") / "run"
    shutil.copytree(trained(factory), run_dir)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        ptq.run(experiment(data(factory)), run_dir)
    return run_dir


def fabricated(
    given: Experiment,
    run_dir: pathlib.Path,
    change: Callable[[dict], dict] = lambda params: params,
) -> pathlib.Path:
    """A finished run directory with changed Gaussian parameters; nothing is trained."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.3, 1.0, leaf.shape).astype(np.float32),
        transformer.shapes(given.model),
    )
    params = change(params)
    described = runs.claim(given, run_dir)
    with checkpoint.Checkpoints(run_dir, keep=2) as saved:
        meta = {"step": given.train.num_steps, "seconds": 0.0, **described}
        saved.save(given.train.num_steps, params, {"count": np.int32(1)}, meta)
    (run_dir / "done.json").write_text('{"num_steps": 1, "loss": 1.0, "seconds": 0.0}')
    return run_dir


def copied(source: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """A copy that a test may change."""
    return shutil.copytree(source, to / "copy", dirs_exist_ok=True)


def rows(path: pathlib.Path, *, drop: tuple[str, ...] = TIMES) -> list[dict]:
    """The rows of a JSON-lines file without what may differ."""
    parsed = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in drop} for row in parsed]


def lines(path: pathlib.Path, *, drop: tuple[str, ...] = TIMES) -> list[str]:
    """`rows` as text: equal only if every number is, bit for bit."""
    return [json.dumps(row) for row in rows(path, drop=drop)]
