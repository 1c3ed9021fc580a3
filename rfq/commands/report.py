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
    `rfq quantize` measured, or files of rows; a directory with theory.jsonl adds the
    lemmas. A run counts once, even if several of them hold it. If two configs share an
    arm's name, the fields in which they differ are added to it. Losses on different
    data are not compared: each data has its own section, and its own claims.

    Example: rfq report runs/demo
    Example: rfq report runs/demo runs/mine runs/theory --out runs/all
    Example: rfq report configs/results/*.jsonl --out runs/recorded
    """

    # Give directories of `rfq compare`, of `rfq train`, or with theory.jsonl, or files
    # of rows.
    sources: parsing.Positional[tuple[pathlib.Path, ...]]
    # Write report.html, tables/ and figures/ here. The default is the one directory
    # given.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Report) -> None:
    """Write the report of the directories."""
    # All processes of a job must see devices before one can ask for any.
    given.banner()
    if args.out is None and len(args.sources) != 1:
        raise InputError(
            f"{len(args.sources)} directories or files; give one directory, or several "
            "and --out DIR"
        )
    if args.out is None and args.sources[0].is_file():
        raise InputError(
            f"{str(args.sources[0])!r} is a file; add --out DIR, where the report goes"
        )
    compare.publish(args.sources, args.out or args.sources[0])
