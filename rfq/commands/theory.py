"""`rfq theory`."""

import dataclasses
import pathlib

from rfq.commands import given
from rfq.theory import run as theory


@dataclasses.dataclass(frozen=True)
class Theory:
    """Check every lemma and theorem of the paper against a measurement.

    Prints how many checks of each claim hold; --all prints for each check what
    is predicted, what was measured, with its standard error, and the verdict that
    follows. Our corrections are counted apart. No data are needed.

    Example: rfq theory --out runs/theory
    Example: rfq theory --all
    """

    # Print every check with its numbers before the claims.
    all: bool = False
    # Write every check to this file, a JSON object a line.
    json: pathlib.Path | None = None
    # Directory for every check as theory.jsonl, which `rfq report` takes, and for the
    # figure of the two mechanisms and its data.
    out: pathlib.Path | None = None


def run(args: Theory) -> None:
    """Check the claims and write the results."""
    given.banner()
    theory.run(json_path=args.json, out=args.out, every_check=args.all)
