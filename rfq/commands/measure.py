"""`rfq measure`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from rfq import measure, metrics
from rfq.commands import given, numbers, parsing

# Columns of the printed table, all of them excess kurtosis.
_SHOWN = ("excess_kurtosis", "without_first", "without_starts", "without_channels")


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measure the activations of a finished run, and say who holds the outliers.

    It gives the excess kurtosis at every site and layer, of all values, without the
    first token of each sequence, without the tokens that begin a document either, and
    without the largest channels, and where the largest value is. A line at the end says
    who holds the largest one. Nothing is quantized. --eval-tokens and --batch-size say
    on how much.

    Example: rfq measure runs/smollm2 --eval-tokens 8192
    """

    # Give a run directory that `rfq train`, `compare` or `import` made.
    run: parsing.Positional[pathlib.Path]
    # Measure on this text, or on what `rfq prepare` made with the run's tokenizer. The
    # default is the run's own held-out text.
    data: Annotated[str | None, parsing.WORD] = None
    # Write sites.csv and the figure here. The default is RUN/measure.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Measure, overrides: Sequence[str]) -> None:
    """Measure the run, and print the stream's table."""
    experiment = given.run(args.run, None)
    grid = experiment.quantize
    grid = parsing.parse(f"rfq measure {args.run}", type(grid), overrides, grid)
    given.banner()
    out = args.out or args.run / "measure"
    experiment = dataclasses.replace(experiment, quantize=grid)
    rows = measure.run(experiment, args.run, out, args.data)
    shown = [row for row in rows if row["site"] in ("attn_norm_in", "final_norm_in")]
    metrics.say(
        f"{'stream':>14} {'kurtosis':>12} {'no 1st token':>12} {'no starts':>12} "
        f"{'no channels':>12} {'peak':>9} {'channel':>7} {'position':>8}"
    )
    for row in shown:
        where = f"layer {row['layer']}" if row["layer"] != "" else "final norm"
        gamma = [f"{numbers.plain(row[name]):>12}" for name in _SHOWN]
        metrics.say(
            f"{where:>14} {' '.join(gamma)} {row['peak']:9.4g} {row['channel']:7} "
            f"{row['position']:8}"
        )
    worst = max(shown, key=lambda row: np.nan_to_num(row["excess_kurtosis"], nan=-3.0))
    where = f"layer {worst['layer']}" if worst["layer"] != "" else "the final norm"
    metrics.say(
        f"the largest excess kurtosis of the stream enters {where}; it is held by "
        f"{worst['held_by']}"
    )
    metrics.say(f"table: {out / 'sites.csv'}")
    metrics.say(f"figure: {out / 'kurtosis_by_layer.png'}")
