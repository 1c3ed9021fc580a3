"""`rfq evaluate`."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

from rfq import export, metrics, ptq
from rfq.commands import given, numbers, parsing
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.tasks import ask, questions


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a run or a quantized checkpoint on held-out text, or on zero-shot tasks.

    --tasks asks the paper's eight tasks (all), those made of held-out text (cloze), or
    some by name. It gives accuracies under every WnAm setting of --specs, compared with
    full precision. How the run is quantized and batched is its own, unless you override
    it as for `rfq quantize`, for example with --streams branch or --granularities
    per_token.

    Example: rfq evaluate runs/demo/arms/residual_adamw/seed-0 --tasks all
    """

    # Give a run directory that `rfq train` or `rfq compare` made, or a checkpoint that
    # `rfq quantize --export` made, which is scored on its integers.
    run: parsing.Positional[pathlib.Path]
    # Read the prepared data here, if they have moved.
    data_dir: Annotated[str | None, parsing.DIR] = None
    # Ask these tasks instead of scoring held-out text: "all", "cloze", or names.
    tasks: tuple[str, ...] = ()
    # Ask under these WnAm settings. The default is the run's tasks.specs.
    specs: tuple[str, ...] = ()
    # Read the tasks' files, which `rfq prepare tasks` makes, here. The default is the
    # run's tasks.dir.
    tasks_dir: Annotated[str | None, parsing.DIR] = None
    # Ask so many documents of each task, evenly spaced in its file. The default is all.
    max_documents: int | None = None


def run(args: Evaluate, overrides: Sequence[str]) -> None:
    """Score the run or the checkpoint, or ask the run the tasks."""
    if export.is_quantized(args.run):
        if args.tasks:
            raise InputError(
                f"--tasks asks a run, and {str(args.run)!r} is a quantized checkpoint; "
                "give the run that it was made of, with --specs"
            )
        if overrides:
            raise InputError(
                f"{overrides[0]} changes how a run is quantized, and "
                f"{str(args.run)!r} is quantized; give the run that it was made of"
            )
        given.banner()
        numbers.say_quantized(export.evaluate(args.run, args.data_dir))
        return
    experiment = given.run(args.run, args.data_dir)
    grid = experiment.quantize
    grid = parsing.parse(f"rfq evaluate {args.run}", type(grid), overrides, grid)
    experiment = dataclasses.replace(experiment, quantize=grid)
    if args.tasks:
        own = experiment.tasks
        asked = dataclasses.replace(
            own,
            names=args.tasks,
            specs=args.specs or own.specs,
            dir=args.tasks_dir or own.dir,
            max_documents=(
                own.max_documents if args.max_documents is None else args.max_documents
            ),
        )
        _evaluate_tasks(dataclasses.replace(experiment, tasks=asked), args.run)
        return
    if args.specs or args.tasks_dir is not None or args.max_documents is not None:
        raise InputError(
            "--specs, --tasks-dir and --max-documents go with --tasks; for held-out "
            "text under WnAm settings use `rfq quantize`"
        )
    given.banner()
    full = dataclasses.replace(
        grid, specs=("FP",), taps=grid.taps[:1], streams=("branch",)
    )
    for row in ptq.run(dataclasses.replace(experiment, quantize=full), args.run):
        metrics.say(
            f"{row['arm']} seed {row['seed']} ({row['compute_dtype']}): held-out loss "
            f"{numbers.plain(row['loss'])} nats per token, "
            f"{numbers.plain(row['bits_per_byte'])} bits per byte, over "
            f"{row['eval_tokens']:,} tokens"
        )


def _evaluate_tasks(experiment: Experiment, run_dir: pathlib.Path) -> None:
    questions.names(experiment.tasks.names)
    given.banner()
    rows = ask.run(experiment, run_dir)
    for setting, row in zip(numbers.settings(rows), rows, strict=True):
        said = [
            f"{name} {numbers.percent(row[name], score['se'])}"
            for name, score in row["scores"].items()
        ]
        if row["avg"] is not None:
            lo, hi = row["avg_collapsed"]
            said.append(
                f"average {numbers.percent(row['avg'], row['avg_se'])}, without boolq "
                f"{numbers.percent(row['avg_without_boolq'])} (constant answers: "
                f"{numbers.percent(lo)} to {numbers.percent(hi)})"
            )
        metrics.say(f"{setting}  {', '.join(said)}")
    for name, score in rows[0]["scores"].items():
        counted = [
            f"{score[field]:,} requests {what}"
            for field, what in _COUNTED.items()
            if score[field]
        ]
        metrics.say(
            f"{name}: {score['primary']} of {score['num_documents']:,} documents, "
            f"split {score['split']}, chance {numbers.percent(score['chance'])}"
            + "".join(f"; {text}" for text in counted)
        )
    metrics.say(f"rows: {run_dir / 'quantize' / 'tasks.jsonl'}")


# Field of a task's score -> what happened to that many requests.
_COUNTED: Mapping[str, str] = {
    "num_truncated": "lost the beginning of their context",
    "num_windowed": "are scored in windows, longer than model.seq_len",
    "num_moved": "are tokenized otherwise across the boundary",
}
