"""DRIVER of `rfq bench train`: where a training step goes, on random tokens."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import metrics, sharding, steps
from rfq import params as params_lib
from rfq.costs import clock
from rfq.costs import peer as peer_lib
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import transformer
from rfq.types import Array, Params

_PEERS = {"eager": False, "compiled": True}
# Products of the shape of a forward one in each call: a gradient needs those of the
# input and of the weight as well.
_PRODUCTS = {"forward": 1, "gradients": 3, "step": 3}


def run(
    experiment: Experiment,
    *,
    num_rounds: int,
    with_peer: bool,
    json_path: pathlib.Path | None,
) -> list[clock.Row]:
    """Measure the forward pass, the gradients and the step beside their own products.

    Args:
        experiment: what to train; its data are not read.
        num_rounds: timed calls of each program.
        with_peer: whether PyTorch decoders, eager and compiled, take turns with ours.
        json_path: a JSON-lines file for the rows that are returned, None for none.

    Returns:
        A row for each call and each of "rfq", "torch eager" and "torch compiled":
        "median_ms"; "ratio", the median over rounds of its time over that of rfq;
        "floor_ms", what the call's matrix products take alone in jax, and
        "gemm_fraction", that over the time; "gemm_gflops_per_second", the rate of its
        own library.

    Raises:
        InputError: the batch does not divide, or there is no peer.
    """
    if num_rounds < 1:
        raise InputError(f"--rounds={num_rounds} must be >= 1")
    mesh = sharding.make_mesh(config=experiment.sharding)
    sharding.check(experiment.train.batch_size, "train.batch_size", mesh)
    products, flops = _products(experiment)
    calls: dict[str, Iterator[None]] = {"products": products, **_ours(experiment, mesh)}
    peers = {}
    if with_peer:
        for name, compiled in _PEERS.items():
            peer = peers[f"torch {name}"] = peer_lib.Peer(experiment, compiled=compiled)
            calls |= {f"torch {name}: {c}": peer.calls(c) for c in peer_lib.CALLS}
    seconds = clock.in_turn(calls, num_rounds, "calls")
    for peer in peers.values():
        peer.end()
    floor = float(np.median(seconds["products"]))
    told: dict[str, dict[str, Any]] = {
        "rfq": {"gemm_gflops_per_second": flops / floor / 1e9},
        **{name: peer.told for name, peer in peers.items()},
    }
    rows = []
    for call in peer_lib.CALLS:
        for name, more in told.items():
            spent = seconds[f"{name}: {call}"]
            median = float(np.median(spent))
            rows.append(
                {
                    "call": call,
                    "program": name,
                    "num_rounds": num_rounds,
                    "tokens": experiment.train.batch_size * experiment.model.seq_len,
                    "median_ms": 1e3 * median,
                    "ratio": float(np.median(spent / seconds[f"rfq: {call}"])),
                    "floor_ms": 1e3 * floor * _PRODUCTS[call],
                    "gemm_fraction": floor * _PRODUCTS[call] / median,
                    **more,
                    **clock.described(experiment, "train"),
                }
            )
    _say(rows)
    if json_path is not None:
        metrics.make_directory(json_path.parent)
        metrics.rewrite(json_path, rows)
    return rows


def _ours(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict[str, Iterator[None]]:
    compiled = steps.compile_train(experiment, mesh)
    rows = clock.random_tokens(experiment, experiment.train.batch_size)
    batch = sharding.to_global(rows, mesh)
    state = compiled.init(jax.random.key(experiment.seed))
    config = experiment.model
    seams = transformer.Seams(placing=sharding.placing(mesh))

    def loss(params: Params, batch: Array) -> Array:
        # As `compile_train` has it.
        precision = "highest" if config.compute_dtype == "float32" else "default"
        with jax.default_matmul_precision(precision):
            return jnp.mean(transformer.token_losses(params, batch, config, seams)[0])

    params = jax.tree.map(jnp.copy, state.params)  # The step takes its own away.
    forward, gradients = jax.jit(loss), jax.jit(jax.value_and_grad(loss))

    def step(state: steps.TrainState) -> steps.TrainState:
        return compiled.train(state, batch)[0]

    return {
        "rfq: forward": clock.repeated(lambda _: forward(params, batch), None),
        "rfq: gradients": clock.repeated(lambda _: gradients(params, batch), None),
        "rfq: step": clock.repeated(step, state),
    }


def _products(experiment: Experiment) -> tuple[Iterator[None], float]:
    """Make the products of activations and weights of a forward pass; and their FLOPs.

    All are in the dtype of the model, one after the other, and without attention's.
    """
    config = experiment.model
    num_tokens = experiment.train.batch_size * config.seq_len
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), config.compute_dtype)

    shapes = []
    for name, leaf in transformer.shapes(config)["blocks"].items():
        axes = params_lib.TABLE[name].matrix
        if params_lib.TABLE[name].kind == "matrix" and axes is not None:
            rows = int(np.prod([leaf.shape[axis] for axis in axes.in_axes]))
            shapes += [
                (rows, leaf.size // config.num_layers // rows)
            ] * config.num_layers
    shapes.append((config.width, config.vocab_size))
    inputs = {rows: normal(num_tokens, rows) for rows, _ in shapes}
    weights = [normal(*shape) for shape in shapes]

    def products(inputs: dict[int, Array], weights: list[Array]) -> list[Array]:
        with jax.default_matmul_precision("highest"):
            return [inputs[w.shape[0]] @ w for w in weights]

    compiled: Callable[..., Any] = jax.jit(products)
    flops = sum(2.0 * num_tokens * rows * cols for rows, cols in shapes)
    return clock.repeated(lambda _: compiled(inputs, weights), None), flops


def _say(rows: list[clock.Row]) -> None:
    metrics.say(
        f"{'call':10} {'program':15} {'ms':>10} {'x rfq':>7} {'of products':>11} "
        f"{'GFLOP/s of products':>20}"
    )
    for row in rows:
        metrics.say(
            f"{row['call']:10} {row['program']:15} {row['median_ms']:10.2f} "
            f"{row['ratio']:7.2f} {row['gemm_fraction']:11.2f} "
            f"{row['gemm_gflops_per_second']:20.1f}"
        )
    ours = {row["call"]: row["median_ms"] for row in rows if row["program"] == "rfq"}
    metrics.say(
        f"a step of rfq, ms: forward {ours['forward']:.2f}, backward "
        f"{ours['gradients'] - ours['forward']:.2f}, optimizer "
        f"{ours['step'] - ours['gradients']:.2f}"
    )
