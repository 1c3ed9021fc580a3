"""Several directories become one comparison: every run once, every config one name."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

from rfq import experiment as experiment_lib
from rfq.errors import InputError
from rfq.report import load
from rfq.report.load import Record, Results

# What tells the runs of a directory apart: arm and seed.
Home = tuple[str, object]


def read(directories: Sequence[pathlib.Path], out: pathlib.Path) -> Results:
    """Reads directories as `load.load` does and joins them, for a report in `out`.

    A run that several of them hold counts once, under its first name. An arm whose name
    another config has before it takes what differs from that into its own:
    `residual_adamw_num_layers_12`.

    Raises:
        InputError: as `load.load`; nothing was trained; data differ; two configs of one
            name cannot be told apart.
    """
    parts = [load.load(directory) for directory in directories]
    joined = functools.reduce(_merge, parts)
    if not joined.rows and not joined.runs:
        raise InputError(
            f"{', '.join(map(str, directories))}: no rows and no runs to report; give "
            "also a directory that `rfq compare` or `rfq train` wrote"
        )
    return dataclasses.replace(joined, directory=out)


def _merge(ours: Results, theirs: Results) -> Results:
    data = [_data(part) for part in (ours, theirs)]
    if None not in data and data[0] != data[1]:
        raise InputError(
            f"{theirs.directory} was trained on other data than {ours.directory}; "
            "losses on them cannot be compared"
        )
    held: dict[tuple[str | None, object], str] = {
        (fingerprint, seed): arm
        for (arm, seed), fingerprint in _fingerprints(ours).items()
        if fingerprint is not None
    }
    taken, configs = _configs(ours), _configs(theirs)
    names: dict[Home, str] = {}
    again = []
    for (arm, seed), fingerprint in _fingerprints(theirs).items():
        twin = held.get((fingerprint, seed))
        if twin is None:
            names[arm, seed] = _name(arm, configs[arm], taken, theirs.directory)
        else:
            again.append(f"{arm} (seed {seed}) is {twin}")
    notes = [*ours.notes, *theirs.notes]
    if again:
        notes.append(
            f"Of {theirs.directory} these were given before and count once: "
            f"{', '.join(again)}."
        )
    return dataclasses.replace(
        ours,
        rows=[
            *ours.rows,
            *(
                {**row, "arm": names[h]}
                for row in theirs.rows
                if (h := _of(row)) in names
            ),
        ],
        runs=[
            *ours.runs,
            *(
                dataclasses.replace(run, arm=names[run.arm, run.seed])
                for run in theirs.runs
                if (run.arm, run.seed) in names
            ),
        ],
        context=_context(ours.context, theirs.context, configs, names),
        theory=ours.theory or theirs.theory,
        notes=list(dict.fromkeys(notes)),
    )


def _of(row: Record) -> Home:
    return str(row["arm"]), row.get("seed")


def _data(part: Results) -> str | None:
    """The fingerprint of the data; the first that a file gives."""
    records = (part.context, *(run.config for run in part.runs), *part.rows)
    found = (load.text(record, "data_fingerprint") for record in records)
    return next((value for value in found if value is not None), None)


def _fingerprints(part: Results) -> dict[Home, str | None]:
    """What names each run's config and seed, as far as its files tell."""
    found = {_of(row): load.text(row, "config_fingerprint") for row in part.rows}
    for run in part.runs:
        own = load.text(run.config, "fingerprint")
        found[run.arm, run.seed] = own or found.get((run.arm, run.seed))
    return found


def _configs(part: Results) -> dict[str, Record]:
    """What fixes each arm but for its seed; empty where only rows are there."""
    free = (*experiment_lib.FREE_SECTIONS, "seed")
    found: dict[str, Record] = {str(row["arm"]): {} for row in part.rows}
    for run in part.runs:
        config = load.child(run.config, "experiment")
        found[run.arm] = {key: config[key] for key in config if key not in free}
    return found


def _name(
    arm: str, config: Record, taken: Mapping[str, Record], where: pathlib.Path
) -> str:
    if arm not in taken or (config and config == taken[arm]):
        return arm
    changed = experiment_lib.differences(dict(taken[arm]), dict(config))
    name = "_".join(
        [arm, *(f"{path.split('.')[-1]}_{new}" for path, _, new in changed)]
    )
    if not config or not taken[arm] or taken.get(name, config) != config:
        raise InputError(
            f"arm {arm!r} in {where} has the name of another config, and config.json "
            "does not tell them apart; give one another --arm"
        )
    return name


def _context(
    ours: Record,
    theirs: Record,
    configs: Mapping[str, Record],
    names: Mapping[Home, str],
) -> Record:
    planned = [*_planned(ours), *names.values()]
    planned += [arm for arm in _planned(theirs) if arm not in configs]
    seconds = [load.number(context, "seconds") for context in (ours, theirs)]
    known = [value for value in seconds if value is not None]
    return {
        **theirs,
        **ours,
        "arms": list(dict.fromkeys(planned)),
        "seconds": sum(known) if len(known) == len(seconds) else None,
    }


def _planned(context: Record) -> list[str]:
    arms = context.get("arms")
    return (
        [arm for arm in arms if isinstance(arm, str)] if isinstance(arms, list) else []
    )
