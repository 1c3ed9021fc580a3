"""`rfq diagnose`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

from rfq import config_files, diagnose, runs
from rfq.commands import given, parsing
from rfq.errors import InputError


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say before training whether a config's model collapses or mixes nothing.

    It takes seconds and needs neither data nor training. It prints for each layer at
    initialization how alike tokens become, how attention starts, how large gradients
    are and how far small changes of the input reach, and then a verdict. Overrides work
    as for `rfq train`.

    A run directory can stand in place of a config. If the run is finished, its loss is
    printed beside the verdict, and how often verdict and outcome agree comes last.

    Example: rfq diagnose configs/deep/residual_free_kl_shampoo.py
    """

    # Give config files, names of configs that come with rfq, a folder of configs,
    # families of arms, or run directories.
    configs: parsing.Positional[tuple[pathlib.Path, ...]]
    # Write a row for each model, in diagnose.jsonl, and its figure to this directory.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Choose the size of a family of arms, of which --arm names one.
    scale: Annotated[config_files.Scale | None, parsing.SCALE] = None


def run(args: Diagnose, overrides: Sequence[str]) -> None:
    """Diagnose the arms of the configs, and the models of the runs."""
    if not args.configs:
        raise InputError(
            "rfq diagnose needs a config or a run, before any override; for example "
            "deep/residual_free_kl_shampoo"
        )
    models: list[diagnose.Subject] = []
    for source in args.configs:
        if (source / "config.json").is_file():
            models.append((runs.load(source)[0], source))
            continue
        for path in config_files.find(source):
            arms = given.arms("rfq diagnose", path, overrides, args.scale)
            models += [(arm, None) for arm in arms]
    given.banner()
    diagnose.run(models, out=args.out)
