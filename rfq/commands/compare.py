"""`rfq compare`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq import compare, config_files
from rfq.commands import given, parsing, planned
from rfq.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(planned.Options):
    """Train several arms, quantize them over the WnAm grid, report them in one page.

    A finished arm is skipped and an interrupted one is resumed. Overrides work as for
    `rfq train` and apply to every arm. A family, such as ablation/theorem1, is compared
    at one --scale; --arm picks one of its arms.

    Example: rfq compare demo --out runs/demo --train.num-steps 300
    """

    # Give config files, one per arm; names of configs that come with rfq, such as
    # demo/residual_adamw; or a folder of configs, such as demo.
    configs: parsing.Positional[tuple[pathlib.Path, ...]]
    # Write runs, rows and the report to this directory. Required, but not by --dry-run.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Choose the size of a family of arms: "demo" takes minutes on two cores, "small"
    # one GPU, and "paper" is the paper's.
    scale: Annotated[config_files.Scale | None, parsing.SCALE] = None
    # Train each arm once per seed. The default is the seed of its config.
    seeds: tuple[int, ...] = ()


def run(args: Compare, overrides: Sequence[str]) -> None:
    """Run every arm of the configs, or plan them."""
    if not args.configs:
        raise InputError(
            "rfq compare needs at least one config, before any override; for example "
            "demo, the four that come with rfq"
        )
    configs = [
        config
        for name in args.configs
        for path in config_files.find(name)
        for config in given.arms("rfq compare", path, overrides, args.scale)
    ]
    arms = [
        dataclasses.replace(config, seed=seed)
        for config in configs
        for seed in args.seeds or (config.seed,)
    ]
    if planned.dry_run(args, configs, len(args.seeds) or 1):
        return
    given.banner()
    if args.out is None:
        raise InputError("rfq compare needs --out DIR, the directory to write")
    compare.run(arms, args.out)
