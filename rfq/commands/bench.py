"""`rfq bench` train, optim, quantize and integers."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq import integer_bench, metrics
from rfq.commands import given, parsing
from rfq.costs import bench, bench_quantize, bench_train


@dataclasses.dataclass(frozen=True)
class BenchOptim:
    """Measure the time, memory, FLOPs and communication of each optimizer.

    It trains the model of a config on random tokens and compares each optimizer with
    AdamW; no data are needed. The config's own optimizer keeps its settings, and the
    others have their defaults. Overrides work as for `rfq train`. With several devices,
    it measures on one and on all of them.

    Example: rfq bench optim demo/residual_adamw --optimizers muon soap
    """

    # A config file, or the name of a config that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Name the optimizers, as --optimizer takes them; AdamW is always among them.
    optimizers: tuple[str, ...] = ("adamw", "muon", "soap", "kl_shampoo")
    # Time so many steps of each, rounded up to whole refresh periods.
    steps: int = 30
    # Write the measurements to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def run_optim(args: BenchOptim, overrides: Sequence[str]) -> None:
    """Measure the optimizers on the model of the config."""
    experiment = given.arm("rfq bench optim", args.config, overrides)
    given.greet()  # Seconds of compilation are measured: no program may be kept.
    bench.run_optim(
        experiment,
        optimizers=args.optimizers,
        num_steps=args.steps,
        json_path=args.json,
    )
    if args.json is not None:
        metrics.say(f"rows: {args.json}")


@dataclasses.dataclass(frozen=True)
class BenchQuantize:
    """Measure quantization and statistics against a plain forward pass.

    It takes the model of a config at its initialization and random tokens; no data are
    needed. Overrides work as for `rfq train`.

    Example: rfq bench quantize demo/residual_adamw
    """

    # A config file, or the name of a config that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Time so many calls of each program.
    rounds: int = 15
    # Write the measurements to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def run_quantize(args: BenchQuantize, overrides: Sequence[str]) -> None:
    """Measure quantization of the model of the config."""
    experiment = given.arm("rfq bench quantize", args.config, overrides)
    given.banner()
    bench_quantize.run_quantize(experiment, num_rounds=args.rounds, json_path=args.json)
    if args.json is not None:
        metrics.say(f"rows: {args.json}")


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Measure where a training step goes, beside its matrix products and PyTorch.

    It trains the model of a config on random tokens; no data are needed. The forward
    pass, the gradients and the whole step take turns with the products of activations
    and weights that they need, so the table says which share of their time is such
    products. With --peer, decoders of the same sizes in PyTorch take turns too, one
    eager and one compiled. Overrides work as for `rfq train`.

    Example: rfq bench train demo/residual_adamw --peer
    """

    # A config file, or the name of a config that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Measure PyTorch too. RFQ_PEER_PYTHON names a Python that has it, if this one has
    # not.
    peer: bool = False
    # Time so many calls of each program.
    rounds: int = 15
    # Write the measurements to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def run_train(args: BenchTrain, overrides: Sequence[str]) -> None:
    """Measure the training step of the model of the config."""
    experiment = given.arm("rfq bench train", args.config, overrides)
    given.banner()
    bench_train.run(
        experiment,
        num_rounds=args.rounds,
        with_peer=args.peer,
        json_path=args.json,
    )
    if args.json is not None:
        metrics.say(f"rows: {args.json}")


@dataclasses.dataclass(frozen=True)
class BenchIntegers:
    """Measure quantized checkpoints on their integers against float32.

    It scores and generates with each checkpoint, with the same weights in float32, and
    with float32 weights and activations that only simulate the integers. It gives the
    tokens a second of each and the bytes of the weights, and times one product alone.

    Example: rfq bench integers exported/W8A8 exported/W4A8
    """

    # Give checkpoints that `rfq quantize --export` made.
    checkpoints: parsing.Positional[tuple[pathlib.Path, ...]]
    # Continue so many prompts at once.
    prompts: int = 8
    # Time so many calls of each program.
    rounds: int = 7
    # Write the measurements to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def run_integers(args: BenchIntegers) -> None:
    """Measure the checkpoints."""
    given.banner()
    integer_bench.run(
        args.checkpoints,
        num_prompts=args.prompts,
        num_rounds=args.rounds,
        json_path=args.json,
    )
    if args.json is not None:
        metrics.say(f"rows: {args.json}")
