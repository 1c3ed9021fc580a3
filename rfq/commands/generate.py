"""`rfq generate`."""

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from rfq import metrics, ptq, runs, settings
from rfq.commands import given, parsing
from rfq.data import tokenize
from rfq.tasks import decode


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a finished run, in full precision or quantized.

    Example: rfq generate runs/demo/arms/residual_adamw/seed-0 "The state of the union"
    """

    # Give a run directory that `rfq train` or `rfq compare` made.
    run: parsing.Positional[pathlib.Path]
    # Give the text to continue; "" begins a document.
    prompt: parsing.Positional[str]
    # Quantize to this WnAm setting, such as W8A8, with the run's first taps and stream.
    spec: str = "FP"
    # Read the prepared data here, if they have moved.
    data_dir: Annotated[str | None, parsing.DIR] = None
    # Draw at most so many tokens. Prompt and new tokens share model.seq_len, and the
    # default is half of that.
    max_new_tokens: Annotated[int | None, parsing.INT] = None
    # Divide the logits by this: 0 takes the likeliest token, and 1 draws from the
    # model's own distribution.
    temperature: float = 0.0
    # Draw only among the likeliest tokens that have this probability together.
    top_p: float = 1.0
    # Seed the draws.
    seed: int = 0


def run(args: Generate) -> None:
    """Print the prompt and what the run makes of it."""
    experiment = given.run(args.run, args.data_dir)
    setting = settings.one(experiment, args.spec, "", "")
    sampling = decode.Sampling(
        temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    runs.check(experiment)
    runs.require_finished(experiment, args.run)
    given.banner()
    tokenizer = tokenize.load(experiment.data.tokenizer)
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    (ids,) = decode.generate(
        ptq.Sweep(experiment, args.run).model(setting),
        [np.concatenate([[tokenizer.bos_id], tokenizer.encode(args.prompt)])],
        max_new_tokens=args.max_new_tokens or experiment.model.seq_len // 2,
        sampling=sampling,
        is_done=lambda number, new: bool(np.isin(new, ends).any()),
    )
    whole = np.concatenate([tokenizer.encode(args.prompt), decode.until(ids, ends)])
    metrics.say(tokenizer.decode(whole))
