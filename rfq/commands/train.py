"""`rfq train`."""

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence
from typing import Annotated

from rfq import compare, config_files, continued, metrics, train
from rfq.commands import given, numbers, parsing, planned
from rfq.errors import InputError
from rfq.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(planned.Options):
    """Train one arm from a config file, or continue where it stopped.

    Every field of the config can be overridden after the file's name, for example with
    --train.num-steps 100 --optimizer.learning-rate 3e-3. --optimizer NAME replaces the
    whole optimizer. `rfq train CONFIG --help` lists the fields with their values. For a
    family of arms, such as ablation/theorem1, --scale chooses its size and --arm one
    arm.

    With --from RUN training starts with the last parameters of a run that `rfq train`
    or `rfq import` made, instead of drawing them. The model of the config must be that
    of RUN; its skip may be "weighted", which --train.skip-anneal then takes away. The
    configs of the folder continued take model and data from RUN. RUN may be deleted
    once the new run has its first checkpoint, but not the data that both read.

    Example: rfq train demo/residual_adamw --out runs/mine

    Example: rfq train continued/adamw --from runs/smollm2 --out runs/tuned
    """

    # Give a Python file with a function config() -> Experiment, or the name of a config
    # that comes with rfq, such as demo/residual_adamw.
    config: parsing.Positional[pathlib.Path]
    # Write the run to this directory. Required, but not by --dry-run.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Start with the last parameters of this run.
    from_: Annotated[pathlib.Path | None, parsing.FROM] = None
    # Choose the size of a family of arms: "demo" takes minutes on two cores, "small"
    # one GPU, and "paper" is the paper's.
    scale: Annotated[config_files.Scale | None, parsing.SCALE] = None


def run(args: Train, overrides: Sequence[str]) -> None:
    """Train the arm of the config, or plan it."""
    source = None if args.from_ is None else continued.find(args.from_, args.out)
    taken = None if source is None else source.experiment
    experiment = given.arm("rfq train", args.config, overrides, args.scale, taken)
    if source is not None:
        experiment = continued.continuing(experiment, source)
    if planned.dry_run(args, [experiment], 1):
        return
    given.banner()
    if args.out is None:
        raise InputError("rfq train needs --out DIR, the run directory to write")
    train.run(experiment, args.out, source)
    _say_result(experiment, args.out)


def _say_result(experiment: Experiment, run_dir: pathlib.Path) -> None:
    """Print the loss, the floors to compare it with, and the next command."""
    measured = metrics.read(run_dir / "measures.jsonl")
    if measured and metrics.is_writer():
        floors = compare.floors(experiment).items()
        metrics.say(
            f"held-out loss {numbers.plain(measured[-1]['loss'])} nats per token after "
            f"step {measured[-1]['step']:,}; counting "
            + " and ".join(f"{name}s gives {loss:.4f}" for name, loss in floors)
        )
    metrics.say(f"run: {run_dir}")
    metrics.say(
        f'next: rfq quantize {shlex.quote(str(run_dir))} --specs "FP W8A8 W4A4"'
    )
