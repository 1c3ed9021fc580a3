"""`rfq train`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from rfq import experiment as experiment_lib
from rfq import metrics, train
from rfq.commands import given, parsing, planned
from rfq.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(planned.Options):
    """Train one arm from a config file, or go on where it stopped.

    Every field of the config can be overridden after the file's name, for example
    --train.num-steps 100 --optimizer.learning-rate 3e-3, and the optimizer as a whole
    by --optimizer NAME. `rfq train CONFIG --help` lists the fields with their values.
    Of a family of arms, configs/ablation, --scale says how large and --arm which one.

    Example: rfq train configs/demo/residual_adamw.py --out runs/mine
    """

    # A Python file with a function config() -> Experiment.
    config: parsing.Positional[pathlib.Path]
    # The run directory; with --dry-run it may be left out.
    out: pathlib.Path | None = None
    # Size of a family of arms: minutes on two cores, one GPU, the paper's.
    scale: experiment_lib.Scale | None = None


def run(args: Train, overrides: Sequence[str]) -> None:
    """Trains the arm of the config, or plans it."""
    experiment = given.arm("rfq train", args.config, overrides, args.scale)
    if planned.dry_run(args, [experiment], 1):
        return
    given.banner()
    if args.out is None:
        raise InputError("rfq train needs --out DIR, the run directory to write")
    train.run(experiment, args.out)
    metrics.say(f"run: {args.out}")
