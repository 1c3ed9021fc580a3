"""DRIVER of `rfq bench quantize`: what a sweep's programs cost, on random tokens."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import metrics, sharding, steps
from rfq import taps as tap_lib
from rfq.costs import clock
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import init as init_lib
from rfq.quant import calibrate
from rfq.types import Array


def run_quantize(
    experiment: Experiment, *, num_rounds: int, json_path: pathlib.Path | None
) -> list[clock.Row]:
    """Measure what quantization and statistics cost beside a plain forward pass.

    Args:
        experiment: the model, at its initialization; its data are not read.
        num_rounds: timed calls of each program.
        json_path: a JSON-lines file for the rows that are returned, None for none.

    Returns:
        A row for each program: "program", "median_ms" of a batch of
        `quantize.batch_size` sequences, and "ratio", the median over rounds of its time
        over the plain pass's. "measure ..." is a measured step of training.
    """
    if num_rounds < 1:
        raise InputError(f"--rounds={num_rounds} must be >= 1")
    mesh = sharding.make_mesh(config=experiment.sharding)
    size = experiment.quantize.batch_size
    sharding.check(size, "quantize.batch_size", mesh)
    tokens = clock.random_tokens(experiment, size)
    batch = sharding.to_global(tokens, mesh)
    calls: dict[str, Callable[[], Any]] = {}
    for taps in experiment.quantize.taps:
        calls |= _quantizing(experiment, taps, mesh, batch)
    every = tuple(name for name, row in tap_lib.STATISTICS.items() if row.numbers)
    for name in (*every, "everything"):
        statistics = every if name == "everything" else (name,)
        log = dataclasses.replace(experiment.log, statistics=statistics)
        compiled = steps.compile_train(dataclasses.replace(experiment, log=log), mesh)
        params = compiled.init(jax.random.key(experiment.seed)).params
        calls[f"measure {name}"] = functools.partial(compiled.measure, params, batch)
    seconds = clock.in_turn(
        {
            name: clock.repeated(lambda _, call=c: call(), None)
            for name, c in calls.items()
        },
        num_rounds,
        "programs",
    )
    described = clock.described(experiment, "quantize")
    rows = [
        {
            "program": name,
            "tokens": size * experiment.model.seq_len,
            "median_ms": 1e3 * float(np.median(spent)),
            "ratio": float(np.median(spent / seconds[_PLAIN])),
            **described,
        }
        for name, spent in seconds.items()
    ]
    metrics.say(f"{'program':32} {'ms':>10} {'x plain':>8}")
    for row in rows:
        metrics.say(f"{row['program']:32} {row['median_ms']:10.2f} {row['ratio']:8.2f}")
    if json_path is not None:
        metrics.make_directory(json_path.parent)
        metrics.rewrite(json_path, rows)
    return rows


_PLAIN = "score"


def _quantizing(
    experiment: Experiment, taps: str, mesh: jax.sharding.Mesh, batch: Array
) -> dict[str, Callable[[], Any]]:
    """Build the programs of a sweep over one tap set; ranges are of their own batch."""
    compiled = steps.compile_quant(experiment, mesh, taps)
    params = init_lib.init(
        experiment.init, experiment.model, key=jax.random.key(experiment.seed)
    )
    params = jax.device_put(params, jax.tree.map(lambda p: p.sharding, compiled.params))
    rounded = compiled.quantize(params, jnp.int32(8))
    seen = jax.device_get(compiled.calibrate(rounded, batch))
    ranges = {site: record["range"] for site, record in seen.items()}
    targets = calibrate.grids({site: (r.lo, r.hi) for site, r in ranges.items()}, 8)
    limits = {site: r.hi for site, r in ranges.items()}
    calls: dict[str, Callable[[], Any]] = {
        _PLAIN: lambda: compiled.score.plain(params, batch),
        f"calibrate {taps}": lambda: compiled.calibrate(rounded, batch),
        f"distort {taps}": lambda: compiled.distort(rounded, batch, targets, limits),
    }
    for stream in experiment.quantize.streams:
        score, diverge = compiled.score.quantized[stream], compiled.diverge[stream]
        calls[f"score {taps} {stream}"] = functools.partial(
            score, rounded, batch, targets
        )
        calls[f"diverge {taps} {stream}"] = functools.partial(
            diverge, params, rounded, batch, targets
        )
    return calls
