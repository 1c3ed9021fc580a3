"""`rfq generate`."""

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from rfq import export, metrics, ptq, runs, settings
from rfq.commands import given, parsing
from rfq.data import tokenize
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.tasks import decode


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a finished run, in full precision or quantized.

    A checkpoint that `rfq quantize --export` made is continued on its integers.

    Example: rfq generate runs/demo/arms/residual_adamw/seed-0 "The state of the union"
    """

    # Give a run directory that `rfq train` or `rfq compare` made, or a checkpoint of
    # `rfq quantize --export`.
    run: parsing.Positional[pathlib.Path]
    # Give the text to continue; "" begins a document.
    prompt: parsing.Positional[str]
    # Quantize to this WnAm setting, such as W8A8 or W4A8+clip+gptq, with the first taps
    # and stream of the run.
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
    sampling = decode.Sampling(
        temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    experiment, model = _opened(args)
    tokenizer = tokenize.load(experiment.data.tokenizer)
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    (ids,) = decode.generate(
        model,
        [np.concatenate([[tokenizer.bos_id], tokenizer.encode(args.prompt)])],
        max_new_tokens=args.max_new_tokens or experiment.model.seq_len // 2,
        sampling=sampling,
        is_done=lambda number, new: bool(np.isin(new, ends).any()),
    )
    whole = np.concatenate([tokenizer.encode(args.prompt), decode.until(ids, ends)])
    metrics.say(tokenizer.decode(whole))


def _opened(args: Generate) -> tuple[Experiment, decode.Model]:
    """Open a run under a setting, or a checkpoint, which has its own."""
    if export.is_quantized(args.run):
        if args.spec != "FP":
            raise InputError(
                f"--spec {args.spec} quantizes a run, and {str(args.run)!r} is a "
                "quantized checkpoint; leave it out, or give the run"
            )
        given.banner()
        return export.opened(args.run, args.data_dir)
    experiment = given.run(args.run, args.data_dir)
    setting = settings.one(experiment, args.spec, "", "")
    runs.check(experiment)
    runs.require_finished(experiment, args.run)
    given.banner()
    return experiment, ptq.Sweep(experiment, args.run).model(setting)
