"""`rfq theory`."""

import dataclasses
import pathlib
from typing import Annotated

from rfq.commands import given, parsing
from rfq.theory import run as theory


@dataclasses.dataclass(frozen=True)
class Theory:
    """Check every lemma and theorem of the paper against a measurement.

    It prints how many checks of each claim hold. --all also prints for each check the
    predicted and the measured number, its standard error, and the verdict. Our
    corrections are counted apart. No data are needed.

    Example: rfq theory --out runs/theory
    Example: rfq theory --all
    """

    # Print every check with its numbers before the claims.
    all: bool = False
    # Write every check to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None
    # Write every check, as theory.jsonl for `rfq report`, and the figure of the two
    # mechanisms with its data to this directory.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Theory) -> None:
    """Check the claims and write the results."""
    given.banner()
    theory.run(json_path=args.json, out=args.out, every_check=args.all)
