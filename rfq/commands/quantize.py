"""`rfq quantize`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq import export, metrics, ptq
from rfq.commands import given, numbers, parsing


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Quantize a finished run over a grid of WnAm settings and score each.

    The settings are the run's own unless you override them, for example with --specs FP
    W8A8 A4, --taps paper norms full, --streams branch in_place, --calibration-tokens or
    --eval-tokens. Existing rows are kept.

    --export writes each setting as a checkpoint of integers instead, and scores its
    files. A setting is then WnAm with n and m from 2 to 8, or Wn alone. Every operand
    of a product with weights is quantized (--taps full), by the first of --calibrators
    and --calibration-seeds, and a residual skip carries the first of --streams.

    Example: rfq quantize runs/demo/arms/residual_adamw/seed-0 --specs "FP W8A8 W4A4"
    """

    # Give a run directory that `rfq train` or `rfq compare` made.
    run: parsing.Positional[pathlib.Path]
    # Read the prepared data here, if they have moved.
    data_dir: Annotated[str | None, parsing.DIR] = None
    # Write quantized checkpoints to this directory, one folder for each setting.
    export: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Quantize, overrides: Sequence[str]) -> None:
    """Quantize the run, into rows or into checkpoints."""
    experiment = given.run(args.run, args.data_dir)
    grid = experiment.quantize
    grid = parsing.parse(f"rfq quantize {args.run}", type(grid), overrides, grid)
    given.banner()
    experiment = dataclasses.replace(experiment, quantize=grid)
    if args.export is not None:
        for row in export.run(experiment, args.run, args.export):
            numbers.say_quantized(row)
        metrics.say(f"quantized: {args.export}")
        return
    rows = ptq.run(experiment, args.run)
    for name, row in zip(numbers.settings(rows), rows, strict=True):
        metrics.say(
            f"{name}  loss {numbers.plain(row['loss'])} "
            f"({numbers.plain(row['loss_increase'], '+')}, "
            f"95 % {numbers.plain(row['loss_increase_lo'], '+')} to "
            f"{numbers.plain(row['loss_increase_hi'], '+')})"
        )
    metrics.say(f"rows: {args.run / 'quantize' / 'rows.jsonl'}")
