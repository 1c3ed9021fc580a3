"""`rfq inspect`."""

import dataclasses
import json
import pathlib
from typing import Annotated

from rfq import metrics
from rfq.commands import parsing
from rfq.data import floors, inspect, tokenize


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a prepared set holds: documents, tokens, lengths, samples.

    Example: rfq inspect data/embedded
    """

    # Give the directory that `rfq prepare --out` made.
    directory: parsing.Positional[pathlib.Path]
    # Decode samples with this tokenizer. It is needed if a file prepared the data.
    tokenizer: Annotated[str | None, parsing.WORD] = None
    # Decode so many windows of each split, drawn at random.
    samples: int = 1
    # Write everything to this file, as JSON.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None
    # Compute the n-gram floors of data that lack them, and keep them beside the data.
    floors: bool = False


def run(args: Inspect) -> None:
    """Print what the directory holds, and write it to a file where one is named."""
    if args.floors:
        floors.add(args.directory)
    described = inspect.describe(
        args.directory,
        tokenizer=None if args.tokenizer is None else tokenize.load(args.tokenizer),
        num_samples=args.samples,
    )
    metrics.say(inspect.render(described))
    if args.json is not None:
        text = json.dumps(described, indent=1) + "\n"
        metrics.write_text(args.json, text)
        metrics.say(f"json: {args.json}")
