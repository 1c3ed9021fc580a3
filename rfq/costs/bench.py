"""DRIVER of `rfq bench optim`: what each optimizer costs, on random tokens."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq import metrics, optim, sharding, steps
from rfq import params as params_lib
from rfq.costs import clock, hlo
from rfq.errors import InputError, lookup
from rfq.experiment import Experiment
from rfq.model import transformer
from rfq.optim.build import OptimizerConfig
from rfq.types import Array, Params

_BASELINE = "adamw"
_MIB = 2**20
# The update alone goes through so many sets of gradients: then no factor stays singular
# on our 4:1 matrices.
_GRADIENT_SETS = 4


class Work(NamedTuple):
    """Floating-point operations of one optimizer on one m x n matrix, m <= n.

    Attributes:
        step: operations of the products that the update of every step needs.
        refresh: operations that every refresh adds.
    """

    step: Callable[[int, int], float]
    refresh: Callable[[int, int], float]


def _rotated_step(m: int, n: int) -> float:
    """Count H = Q_L^T G Q_R, the increments of both factors, and Q_L (.) Q_R^T."""
    return 6.0 * m * n * (m + n)


def _rotated_refresh(m: int, n: int) -> float:
    """Count, per side s, Q and R of S~ (8/3 s^3), R Z, Q Z, Q (3 I - Q^T Q) / 2; M~."""
    return (8 / 3 + 2 + 2 + 4) * (m**3 + n**3) + 2.0 * m * n * (m + n)


_ROTATED = Work(_rotated_step, _rotated_refresh)
# AdamW and sign descent have no products.
WORK: Mapping[str, Work] = {
    "kl_shampoo": _ROTATED,
    "kl_soap": _ROTATED,
    "soap": _ROTATED,
    # X X^T, its square, and their polynomial times X, five times.
    "muon": Work(lambda m, n: 5.0 * (4 * m * m * n + 2 * m**3), lambda m, n: 0.0),
}


def run_optim(
    experiment: Experiment,
    *,
    optimizers: Sequence[str],
    num_steps: int,
    json_path: pathlib.Path | None,
) -> list[clock.Row]:
    """Measure optimizers in the training step of an experiment, and on their own.

    The experiment's own optimizer keeps its settings, the others have their defaults;
    AdamW is always measured, for the ratios. With several devices everything is
    measured on one of them and on all.

    Args:
        experiment: what to train; its data are not read.
        optimizers: rows of `rfq.optim.OPTIMIZERS`.
        num_steps: timed steps of each, rounded up to whole refresh periods.
        json_path: a JSON-lines file for the rows that are returned, None for none.

    Returns:
        A row for each optimizer and number of devices with "what": "step", and one for
        each optimizer in `WORK` with "what": "update". Units are in the names;
        "median" and its like are over steps of "ms"; "flops" and bytes are one
        device's. The compiler counts the operations of a loop's body once and does not
        count LAPACK calls.

    Raises:
        InputError: an optimizer is unknown, or the batch does not divide.
    """
    if num_steps < 1:
        raise InputError(f"--steps={num_steps} must be >= 1")
    names = list(dict.fromkeys((_BASELINE, *optimizers)))
    configs = {name: _config(experiment, name) for name in names}
    longest = max(map(_period, configs.values()))
    num_steps = -(-num_steps // longest) * longest
    counts = sorted({1, jax.device_count()})
    if jax.process_count() > 1:  # One process cannot run a program of its own.
        counts = counts[-1:]
    rows = []
    for num_devices in counts:
        mesh = sharding.make_mesh(num_devices, experiment.sharding)
        sharding.check(experiment.train.batch_size, "train.batch_size", mesh)
        rows += _train_steps(experiment, configs, num_steps, mesh)
    _say_steps(rows)
    updates = _updates(experiment, configs, num_steps)
    _say_updates(updates)
    described = clock.described(experiment, "optim")
    rows = [{**row, **described} for row in (*rows, *updates)]
    if json_path is not None:
        metrics.make_directory(json_path.parent)
        metrics.rewrite(json_path, rows)
    return rows


def _config(experiment: Experiment, name: str) -> OptimizerConfig:
    kind = lookup(optim.OPTIMIZERS, name, "--optimizers")
    own = experiment.optimizer
    return own if type(own) is kind else kind()


def _period(config: OptimizerConfig) -> int:
    return getattr(config, "precondition_frequency", 1)


# --- The training step --------------------------------------------------------------


def _train_steps(
    experiment: Experiment,
    configs: Mapping[str, OptimizerConfig],
    num_steps: int,
    mesh: jax.sharding.Mesh,
) -> list[clock.Row]:
    tokens = clock.random_tokens(experiment, experiment.train.batch_size)
    batch = sharding.to_global(tokens, mesh)
    rows, calls = {}, {}
    for name, config in configs.items():
        compiled = steps.compile_train(
            dataclasses.replace(experiment, optimizer=config), mesh
        )
        start = time.perf_counter()
        program = compiled.train.lower(compiled.state, batch).compile()
        compile_seconds = time.perf_counter() - start
        moved = hlo.collective_bytes(program.as_text() or "")
        rows[name] = {
            "what": "step",
            "optimizer": name,
            "num_devices": mesh.size,
            "num_steps": num_steps,
            "compile_seconds": compile_seconds,
            "state_bytes": sharding.bytes_per_device(compiled.state.opt_state),
            "flops": _flops(program),
            "collective_bytes": sum(moved.values()),
            "collectives": moved,
        }
        state = compiled.init(jax.random.key(experiment.seed))
        calls[name] = clock.repeated(
            lambda state, run=program: run(state, batch)[0], state
        )
    title = f"steps on {mesh.size} device(s)"
    seconds = clock.in_turn(calls, num_steps, title)
    for name, row in rows.items():
        ratios = seconds[name] / seconds[_BASELINE]
        row |= {
            "median_ms": 1e3 * float(np.median(seconds[name])),
            "p99_ms": 1e3 * float(np.quantile(seconds[name], 0.99)),
            "mean_ms": 1e3 * float(np.mean(seconds[name])),
            "median_ratio": float(np.median(ratios)),
            "mean_ratio": float(np.sum(seconds[name]) / np.sum(seconds[_BASELINE])),
        }
    return list(rows.values())


def _flops(program: jax.stages.Compiled) -> float | None:
    analysis = program.cost_analysis()
    return None if analysis is None else float(analysis["flops"])


# --- The update alone ---------------------------------------------------------------


def _updates(
    experiment: Experiment, configs: Mapping[str, OptimizerConfig], num_steps: int
) -> list[clock.Row]:
    """Time the matrices' updates on one device beside the products that they need.

    One turn is a whole refresh period of one optimizer, or the GEMMs of a step: G Q and
    Q^T G of every matrix in float32.
    """
    shapes = _matrices(experiment)
    axes = params_lib.matrix_axes(shapes)
    gradients = _random_gradients(shapes)
    sizes = _sizes(shapes)
    calls: dict[str, Iterator[None]] = {"gemm": _gemms(sizes)}
    worked = {name: config for name, config in configs.items() if name in WORK}
    for name, config in worked.items():
        direction = config.directions(axes, None).matrix
        state = jax.jit(direction.init)(gradients[0])
        period = _whole_period(direction.update, gradients, _period(config))
        calls[name] = clock.repeated(period, state)
    if not worked:
        return []
    longest = max(map(_period, worked.values()))
    seconds = clock.in_turn(calls, max(3, num_steps // longest), "updates alone")
    gemm = sum(num * 2.0 * m * n * (m + n) for (m, n), num in sizes.items())
    gemm_rate = gemm / float(np.median(seconds["gemm"]))
    rows = []
    for name, config in worked.items():
        work, num_calls = WORK[name], _period(config)
        floor = num_calls * sum(num * work.step(*mn) for mn, num in sizes.items())
        refresh = sum(num * work.refresh(*mn) for mn, num in sizes.items())
        period_seconds = float(np.median(seconds[name]))
        rate = (floor + refresh) / period_seconds
        rows.append(
            {
                "what": "update",
                "optimizer": name,
                "num_devices": 1,
                "num_steps": num_calls,
                "mean_ms": 1e3 * period_seconds / num_calls,
                "floor_flops": floor / num_calls,
                "refresh_flops": refresh,
                "gflops_per_second": rate / 1e9,
                "floor_gflops_per_second": floor / period_seconds / 1e9,
                "gemm_gflops_per_second": gemm_rate / 1e9,
                "gemm_fraction": rate / gemm_rate,
            }
        )
    return rows


def _whole_period(
    update: Callable, gradients: Sequence[Params], num_calls: int
) -> Callable[[Any], Any]:
    """Make state -> state after `num_calls` updates, going through the gradients."""
    compiled = jax.jit(update, donate_argnums=1)

    def advance(state: Any) -> Any:
        for call in range(num_calls):
            _, state = compiled(gradients[call % len(gradients)], state)
        return state

    return advance


def _matrices(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the leaves that matrix optimizers treat as matrices."""
    shapes = transformer.shapes(experiment.model)["blocks"]
    return {
        name: leaf
        for name, leaf in shapes.items()
        if params_lib.TABLE[name].kind == "matrix"
    }


def _random_gradients(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> list[Params]:
    rng = np.random.default_rng(0)
    return [
        {
            name: jnp.asarray(1e-3 * rng.standard_normal(leaf.shape, np.float32))
            for name, leaf in shapes.items()
        }
        for _ in range(_GRADIENT_SETS)
    ]


def _sizes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[tuple[int, int], int]:
    """Count the matrices of each shape: (m, n) with m <= n -> how many there are."""
    counts: dict[tuple[int, int], int] = {}
    for name, leaf in shapes.items():
        axes = params_lib.TABLE[name].matrix
        assert axes is not None
        rows = int(np.prod([leaf.shape[axis] for axis in axes.in_axes]))
        cols = int(np.prod([leaf.shape[axis] for axis in axes.out_axes]))
        m, n = sorted((rows, cols))
        counts[m, n] = counts.get((m, n), 0) + leaf.size // (m * n)
    return counts


def _gemms(sizes: Mapping[tuple[int, int], int]) -> Iterator[None]:
    """Make batched products with random matrices of the optimizers' shapes."""
    rng = np.random.default_rng(0)

    def stack(num: int, m: int, n: int) -> Array:
        return jnp.asarray(rng.standard_normal((num, m, n), np.float32))

    operands = [
        (stack(num, m, m), stack(num, m, n), stack(num, n, n))
        for (m, n), num in sizes.items()
    ]

    def products(left: Array, g: Array, right: Array) -> tuple[Array, Array]:
        return left @ g, g @ right

    compiled = jax.jit(products)
    return clock.repeated(lambda _: [compiled(*three) for three in operands], None)


# --- What a person sees -------------------------------------------------------------


def _say_steps(rows: Sequence[clock.Row]) -> None:
    metrics.say(
        "training step, ms, and times AdamW's; per device: state, FLOPs, collectives\n"
        f"{'optimizer':12} {'devices':>7} {'median':>9} {'p99':>9} {'mean':>9} "
        f"{'x median':>8} {'x mean':>8} {'compile s':>9} {'state MiB':>10} "
        f"{'GFLOP':>9} {'coll. MiB':>9}"
    )
    for row in rows:
        flops = "not told" if row["flops"] is None else f"{row['flops'] / 1e9:.3f}"
        metrics.say(
            f"{row['optimizer']:12} {row['num_devices']:7} {row['median_ms']:9.2f} "
            f"{row['p99_ms']:9.2f} {row['mean_ms']:9.2f} {row['median_ratio']:8.3f} "
            f"{row['mean_ratio']:8.3f} {row['compile_seconds']:9.1f} "
            f"{row['state_bytes'] / _MIB:10.2f} {flops:>9} "
            f"{row['collective_bytes'] / _MIB:9.2f}"
        )


def _say_updates(rows: Sequence[clock.Row]) -> None:
    if not rows:
        return
    metrics.say(
        "update of the matrices alone, over whole refresh periods, on one device; GEMM "
        f"runs at {rows[0]['gemm_gflops_per_second']:.1f} GFLOP/s here\n"
        f"{'optimizer':12} {'ms a step':>9} {'GFLOP floor':>11} {'GFLOP/s':>8} "
        f"{'of GEMM':>8} {'floor only':>10}"
    )
    for row in rows:
        metrics.say(
            f"{row['optimizer']:12} {row['mean_ms']:9.2f} "
            f"{row['floor_flops'] / 1e9:11.3f} {row['gflops_per_second']:8.1f} "
            f"{row['gemm_fraction']:8.2f} {row['floor_gflops_per_second']:10.1f}"
        )
