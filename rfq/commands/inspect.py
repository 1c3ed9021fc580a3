"""`rfq inspect`."""

import dataclasses
import json
import pathlib

from rfq import metrics
from rfq.commands import parsing
from rfq.data import floors, inspect, tokenize


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a prepared set holds: documents, tokens, lengths, samples.

    Example: rfq inspect data/embedded
    """

    # The --out of `rfq prepare`.
    directory: parsing.Positional[pathlib.Path]
    # What prepared it, to decode samples; needed where that was a file.
    tokenizer: str | None = None
    # Number of windows of each split to decode, drawn at random.
    samples: int = 1
    # Write everything to this file, as JSON.
    json: pathlib.Path | None = None
    # Compute the n-gram floors of data that lack them, and keep them beside the data.
    floors: bool = False


def run(args: Inspect) -> None:
    """Print what the directory holds, and write it to a file where one is named."""
    if args.floors:
        floors.add(args.directory)
    found = inspect.describe(
        args.directory,
        tokenizer=None if args.tokenizer is None else tokenize.load(args.tokenizer),
        num_samples=args.samples,
    )
    metrics.say(inspect.render(found))
    if args.json is not None:
        text = json.dumps(found, indent=1) + "\n"
        metrics.write_text(args.json, text)
        metrics.say(f"json: {args.json}")
