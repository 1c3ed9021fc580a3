"""`rfq generate`."""

import dataclasses
import pathlib

import numpy as np

from rfq import metrics, ptq, runs
from rfq.commands import given, parsing
from rfq.data import tokenize
from rfq.tasks import decode


@dataclasses.dataclass(frozen=True)
class Generate:
    """Let a finished run go on with a text, in full precision or quantized.

    Example: rfq generate runs/demo/arms/residual_adamw/seed-0 "The state of the union"
    """

    # A run directory, made by `rfq train` or `rfq compare`.
    run: parsing.Positional[pathlib.Path]
    # What to go on with; "" begins a document.
    prompt: parsing.Positional[str]
    # A WnAm setting, such as W8A8, with the run's first taps and stream.
    spec: str = "FP"
    # Where the prepared data are now, if not where they were.
    data_dir: str | None = None
    # At most; prompt and new tokens share model.seq_len. If left out, half of that.
    max_new_tokens: int | None = None
    # 0 takes the likeliest token, 1 draws from the model's distribution.
    temperature: float = 0.0
    # Draw from the likeliest tokens alone that have this probability together.
    top_p: float = 1.0
    # Of the draws.
    seed: int = 0


def run(args: Generate) -> None:
    """Print the prompt and what the run makes of it."""
    experiment = given.run(args.run, args.data_dir)
    setting = ptq.setting(experiment, args.spec, "", "")
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
