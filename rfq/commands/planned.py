"""`--dry-run` of the commands that train."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq.commands import given, parsing
from rfq.costs import plan
from rfq.errors import InputError
from rfq.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options for --dry-run, of the commands that train."""

    # Print parameters, FLOPs, hours, memory, disk and placement; train nothing.
    dry_run: bool = False
    # With --dry-run, plan for so many devices instead of those of this machine.
    devices: Annotated[int | None, parsing.INT] = None
    # With --dry-run, estimate hours from these FLOP/s per device. The default is what
    # the paper's H100 reached with the optimizer.
    device_flops: Annotated[float | None, parsing.FLOAT] = None
    # With --dry-run, write a row for each arm to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def dry_run(args: Options, arms: Sequence[Experiment], num_seeds: int) -> bool:
    """Plan the arms if --dry-run is given, and return whether it is."""
    for name in ("devices", "device_flops", "json"):
        if getattr(args, name) is not None and not args.dry_run:
            raise InputError(
                f"--{name.replace('_', '-')} goes with --dry-run; a run takes all "
                "devices it has"
            )
    if not args.dry_run:
        return False
    if args.devices is not None:
        plan.pretend(args.devices)
    given.banner()
    plan.run(
        arms,
        num_seeds=num_seeds,
        device_flops=args.device_flops,
        json_path=args.json,
    )
    return True
