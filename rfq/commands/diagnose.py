"""`rfq diagnose`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from rfq import config_files, diagnose
from rfq.commands import given, parsing


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say before training whether a config's model collapses or mixes nothing.

    Takes seconds, no data and no training. Prints for each layer at initialization how
    alike tokens become, what attention begins as, how large gradients are and how far
    nudges of the input reach, then a verdict. Overrides as for `rfq train`.

    Example: rfq diagnose configs/deep/residual_free_kl_shampoo.py
    """

    # A Python file with a function config() -> Experiment.
    config: parsing.Positional[pathlib.Path]
    # Directory for the table as diagnose.jsonl, and for its figure.
    out: pathlib.Path | None = None
    # Size of a family of arms, of which --arm names one.
    scale: config_files.Scale | None = None


def run(args: Diagnose, overrides: Sequence[str]) -> None:
    """Diagnose the arm of the config."""
    experiment = given.arm("rfq diagnose", args.config, overrides, args.scale)
    given.banner()
    diagnose.run(experiment, out=args.out)
