"""`rfq report`."""

import dataclasses
import pathlib
from typing import Annotated

from rfq import compare
from rfq.commands import given, parsing
from rfq.errors import InputError


@dataclasses.dataclass(frozen=True)
class Report:
    """Write tables, figures, the paper's claims and one page from what is there.

    It takes any number of directories of `rfq compare`, or runs of `rfq train` that
    `rfq quantize` measured; a directory with theory.jsonl adds the lemmas. A run counts
    once, even if several directories hold it. If two configs share an arm's name, the
    fields in which they differ are added to it.

    Example: rfq report runs/demo
    Example: rfq report runs/demo runs/mine runs/theory --out runs/all
    """

    # Give directories of `rfq compare`, of `rfq train`, or with theory.jsonl.
    directories: parsing.Positional[tuple[pathlib.Path, ...]]
    # Write report.html, tables/ and figures/ here. The default is the one directory
    # given.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Report) -> None:
    """Write the report of the directories."""
    # All processes of a job must see devices before one can ask for any.
    given.banner()
    if args.out is None and len(args.directories) != 1:
        raise InputError(
            f"{len(args.directories)} directories; give one, or several and --out DIR"
        )
    compare.publish(args.directories, args.out or args.directories[0])
