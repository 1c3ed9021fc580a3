"""`rfq bench optim` and `rfq bench quantize`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from rfq import metrics
from rfq.commands import given, parsing
from rfq.costs import bench


@dataclasses.dataclass(frozen=True)
class BenchOptim:
    """Measure optimizers: training step against AdamW's, memory, FLOPs, talk.

    Takes the model and the batch of a config, with random tokens: no data are needed.
    The config's own optimizer keeps its settings, the others have their defaults.
    Overrides as for `rfq train`. With several devices, on one and on all of them.

    Example: rfq bench optim demo/residual_adamw --optimizers muon soap
    """

    # A config file, or the name of a config that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Names, of those that --optimizer takes; AdamW is always among them.
    optimizers: tuple[str, ...] = ("adamw", "muon", "soap", "kl_shampoo")
    # Timed steps of each, rounded up to whole refresh periods.
    steps: int = 30
    # Write what was measured to this file, a JSON object a line.
    json: pathlib.Path | None = None


def run_optim(args: BenchOptim, overrides: Sequence[str]) -> None:
    """Measure the optimizers on the model of the config."""
    experiment = given.arm("rfq bench optim", args.config, overrides)
    given.banner()
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

    Takes the model of a config at its initialization, with random tokens: no data are
    needed. Overrides as for `rfq train`.

    Example: rfq bench quantize demo/residual_adamw
    """

    # A config file, or the name of a config that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Timed calls of each program.
    rounds: int = 15
    # Write what was measured to this file, a JSON object a line.
    json: pathlib.Path | None = None


def run_quantize(args: BenchQuantize, overrides: Sequence[str]) -> None:
    """Measure quantization of the model of the config."""
    experiment = given.arm("rfq bench quantize", args.config, overrides)
    given.banner()
    bench.run_quantize(experiment, num_rounds=args.rounds, json_path=args.json)
    if args.json is not None:
        metrics.say(f"rows: {args.json}")
