"""`rfq diagnose`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq import config_files, diagnose
from rfq.commands import given, parsing


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say before training whether a config's model collapses or mixes nothing.

    It takes seconds and needs neither data nor training. It prints for each layer at
    initialization how alike tokens become, how attention starts, how large gradients
    are and how far small changes of the input reach, and then a verdict. Overrides work
    as for `rfq train`.

    Example: rfq diagnose configs/deep/residual_free_kl_shampoo.py
    """

    # Give a Python file with a function config() -> Experiment, or the name of a config
    # that comes with rfq.
    config: parsing.Positional[pathlib.Path]
    # Write the table, as diagnose.jsonl, and its figure to this directory.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Choose the size of a family of arms, of which --arm names one.
    scale: Annotated[config_files.Scale | None, parsing.SCALE] = None


def run(args: Diagnose, overrides: Sequence[str]) -> None:
    """Diagnose the arm of the config."""
    experiment = given.arm("rfq diagnose", args.config, overrides, args.scale)
    given.banner()
    diagnose.run(experiment, out=args.out)
