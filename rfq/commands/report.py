"""`rfq report`."""

import dataclasses
import pathlib

from rfq import compare
from rfq.commands import given, parsing
from rfq.errors import InputError


@dataclasses.dataclass(frozen=True)
class Report:
    """Write tables, figures, the paper's claims and one page from what is there.

    Takes any number of directories of `rfq compare`, or runs of `rfq train` that
    `rfq quantize` measured; one that holds theory.jsonl adds the lemmas. A run that
    several hold counts once; an arm whose name another config has takes the fields
    that differ into its own.

    Example: rfq report runs/demo
    Example: rfq report runs/demo runs/mine runs/theory --out runs/all
    """

    # Directories of `rfq compare`, of `rfq train`, or with theory.jsonl.
    directories: parsing.Positional[tuple[pathlib.Path, ...]]
    # Where report.html, tables/ and figures/ go, if not into the one directory given.
    out: pathlib.Path | None = None


def run(args: Report) -> None:
    """Write the report of the directories."""
    # Of a job, all processes must see devices before one can ask for any.
    given.banner()
    if args.out is None and len(args.directories) != 1:
        raise InputError(
            f"{len(args.directories)} directories; give one, or several and --out DIR"
        )
    compare.publish(args.directories, args.out or args.directories[0])
