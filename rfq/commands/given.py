"""Load what a person names: configs with overrides, and runs."""

import dataclasses
import pathlib
from collections.abc import Sequence

from rfq import __version__, distributed, metrics, optim, provenance, runs
from rfq import experiment as experiment_lib
from rfq.commands import parsing, program_cache
from rfq.errors import InputError, lookup
from rfq.experiment import Experiment


def arm(
    prog: str,
    path: pathlib.Path,
    overrides: Sequence[str],
    scale: str | None = None,
    source: Experiment | None = None,
) -> Experiment:
    """Load the experiment of a config file, or the arm of a family that --arm names."""
    experiments = arms(prog, path, overrides, scale, source)
    if len(experiments) > 1:
        raise InputError(
            f"config {str(path)!r} has {len(experiments)} arms; say which, with --arm "
            f"{', '.join(experiment.arm for experiment in experiments)}"
        )
    return experiments[0]


def arms(
    prog: str,
    path: pathlib.Path,
    overrides: Sequence[str],
    scale: str | None,
    source: Experiment | None = None,
) -> list[Experiment]:
    """Load a config file; apply `--optimizer NAME`, then `--section.field value`."""
    experiments = experiment_lib.load_arms(path, scale, source)
    words = [part for word in overrides for part in split_equals(word)]
    if scale is not None and "--arm" in words:
        named = {experiment.arm: experiment for experiment in experiments}
        experiments = (lookup(named, _taken(words, "--arm"), f"{path} --arm"),)
    if "--optimizer" in words:
        config = lookup(optim.OPTIMIZERS, _taken(words, "--optimizer"), "--optimizer")
        experiments = [
            dataclasses.replace(experiment, optimizer=config())
            for experiment in experiments
        ]
    if not words:
        return list(experiments)
    return [
        parsing.parse(f"{prog} {path}", Experiment, words, experiment)
        for experiment in experiments
    ]


def _taken(words: list[str], option: str) -> str:
    """Remove an option and return its value; "" where there is none."""
    place = words.index(option)
    _, *value = words[place : place + 2]
    del words[place : place + 2]
    return "".join(value)


def split_equals(word: str) -> list[str]:
    """Split `--option=value` into two words."""
    return word.split("=", 1) if word.startswith("--") else [word]


def run(run_dir: pathlib.Path, data_dir: str | None) -> Experiment:
    """Load the experiment of a run directory, with its data where they are now."""
    experiment, _ = runs.load(run_dir)
    if data_dir is None:
        return experiment
    data = dataclasses.replace(experiment.data, dir=data_dir)
    return dataclasses.replace(experiment, data=data)


def banner() -> None:
    """Keep compiled programs, join the other processes and say which devices work."""
    program_cache.start()
    greet()


def greet() -> None:
    """Join the other processes; print which devices are used and which are left."""
    distributed.start()
    metrics.say(f"rfq {__version__} on {provenance.devices()}")
    warning = provenance.unused_accelerator()
    if warning:
        metrics.say(warning)
