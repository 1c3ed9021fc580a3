"""`--dry-run` of the commands that train."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq.commands import given, parsing
from rfq.costs import plan, targets
from rfq.errors import InputError
from rfq.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options for --dry-run, of the commands that train."""

    # Compile a step and print its memory, work, time and placement; train nothing.
    dry_run: bool = False
    # With --dry-run, plan for other devices than those of this machine: v5p:4x4x4,
    # v6e:2x2 or v5e:2x2 (a TPU slice), h100:4x8 (hosts x GPUs a host) or cpu:256 (that
    # many pretended devices). TPUs and GPUs need the package of their compiler,
    # rfq[plan-tpu] or rfq[plan-cuda], and no device.
    target: Annotated[str | None, parsing.WORD] = None
    # With --dry-run, search for the largest batch that fits; it compiles a few times.
    largest_batch: bool = False
    # With --dry-run, estimate hours from these FLOP/s of the model per device. The
    # default is the roofline of the compiled step.
    device_flops: Annotated[float | None, parsing.FLOAT] = None
    # With --dry-run, write a row for each arm to this file, one JSON object a line.
    json: Annotated[pathlib.Path | None, parsing.FILE] = None


def dry_run(args: Options, arms: Sequence[Experiment], num_seeds: int) -> bool:
    """Plan the arms if --dry-run is given, and return whether it is."""
    for name in ("target", "largest_batch", "device_flops", "json"):
        if getattr(args, name) not in (None, False) and not args.dry_run:
            raise InputError(
                f"--{name.replace('_', '-')} goes with --dry-run; a run takes all "
                "devices it has"
            )
    if not args.dry_run:
        return False
    target = targets.find(args.target)
    given.banner()
    plan.run(
        arms,
        target,
        num_seeds=num_seeds,
        device_flops=args.device_flops,
        find_batch=args.largest_batch,
        json_path=args.json,
    )
    return True
