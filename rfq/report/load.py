"""Reads what `rfq compare` wrote into plain records, and names the bad line.

Nothing here invents a number: a field that is absent, null or not finite is None, and
the tables say "missing" or "not finite" in its place.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

from rfq.errors import InputError

Record = Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory, `arms/<arm>/seed-<s>`.

    Attributes:
        config: config.json, empty if absent; so are `statistics`, `done` (written when
            training ended) and `failed` (written when it diverged).
        metrics: one record a logged step, in the order of the steps.
        measures: one record a measured step, with `sites`, in the order of the steps.
        sites: what quantization does per site and layer, one record a setting.
        losses: of each held-out sequence, one record a setting.
        tasks: accuracies, one record a setting and set of questions.
    """

    arm: str
    seed: int
    config: Record
    metrics: Sequence[Record]
    measures: Sequence[Record]
    sites: Sequence[Record]
    losses: Sequence[Record]
    tasks: Sequence[Record]
    statistics: Record
    done: Record
    failed: Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything in a compare directory.

    Attributes:
        rows: one record an arm, seed and setting.
        runs: the run directories, in the order of their names.
        context: context.json: `floors`, `data`, `arms`; empty if absent.
        theory: theory.jsonl, the rows of `rfq theory --json`; none if absent.
        notes: what was left out while reading, in sentences for the page.
    """

    directory: pathlib.Path
    rows: Sequence[Record]
    runs: Sequence[Run]
    context: Record
    theory: Sequence[Record]
    notes: Sequence[str]


def number(record: Record, field: str) -> float | None:
    """The finite number under `field`, or None for absent, null, NaN and text."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def numbers(record: Record, field: str) -> list[float | None]:
    """The numbers of a list field, with None for those that are not finite."""
    values = record.get(field)
    if not isinstance(values, list):
        return []
    return [number({"value": value}, "value") for value in values]


def text(record: Record, field: str) -> str | None:
    """The text under `field`, or None."""
    value = record.get(field)
    return value if isinstance(value, str) else None


def child(record: Record, *fields: str) -> Record:
    """The object at the end of a path of fields, or an empty one."""
    for field in fields:
        value = record.get(field)
        record = value if isinstance(value, dict) else {}
    return record


def nonfinite(record: Record, field: str) -> bool:
    """Whether the driver recorded that `field` was NaN or infinite."""
    names = record.get("nonfinite")
    value = record.get(field)
    return (isinstance(names, list) and field in names) or (
        isinstance(value, float) and not math.isfinite(value)
    )


def _object(source: str, where: str) -> Record:
    try:
        value = json.loads(source)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON ({error.msg}); delete it or write it again with the "
            "command that made it"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where} holds a {type(value).__name__}, not an object of fields; delete "
            "it or write it again with the command that made it"
        )
    return value


def read_json(path: pathlib.Path) -> Record:
    """Reads one object, empty if there is no such file.

    Raises:
        InputError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    return _object(path.read_text(encoding="utf-8"), str(path))


def read_jsonl(path: pathlib.Path, notes: list[str]) -> list[Record]:
    """Reads one object a line, none if there is no such file.

    A last line without a line feed is still being written, or was cut by a kill: it is
    left out and said in `notes`.

    Raises:
        InputError: another line is not a JSON object; the message names the line.
    """
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_object(line, f"line {index} of {path}"))
        except InputError:
            if index < len(lines):
                raise
            notes.append(
                f"The last line of {path.name} is cut off and was left out; the "
                "command that writes it was stopped or is still running."
            )
    return records


def _by_step(records: Sequence[Record]) -> list[Record]:
    """Orders records by step; of a step written twice (a resume) the last counts."""
    last = {number(record, "step"): record for record in records}
    return [last[step] for step in sorted(step for step in last if step is not None)]


def _home_of(directory: pathlib.Path) -> tuple[str, int] | None:
    """Arm and seed of a run directory; None for any other folder.

    `arms/<arm>/seed-<s>` says it by its path, what `rfq train` wrote by its config.
    """
    prefix, _, seed = directory.name.rpartition("-")
    if directory.parent.parent.name == "arms":
        named = directory.is_dir() and prefix == "seed" and seed.isdigit()
        return (directory.parent.name, int(seed)) if named else None
    experiment = child(read_json(directory / "config.json"), "experiment")
    arm, number_ = text(experiment, "arm"), number(experiment, "seed")
    return None if arm is None or number_ is None else (arm, int(number_))


def _read_run(
    directory: pathlib.Path, arm: str, seed: int, notes: list[str]
) -> tuple[Run, list[Record]]:
    """A run, and its rows."""
    run = Run(
        arm=arm,
        seed=seed,
        config=read_json(directory / "config.json"),
        metrics=_by_step(read_jsonl(directory / "metrics.jsonl", notes)),
        measures=_by_step(read_jsonl(directory / "measures.jsonl", notes)),
        sites=read_jsonl(directory / "quantize" / "sites.jsonl", notes),
        losses=read_jsonl(directory / "quantize" / "losses.jsonl", notes),
        tasks=read_jsonl(directory / "quantize" / "tasks.jsonl", notes),
        statistics=read_json(directory / "quantize" / "statistics.json"),
        done=read_json(directory / "done.json"),
        failed=read_json(directory / "failed.json"),
    )
    rows = read_jsonl(directory / "quantize" / "rows.jsonl", notes)
    return run, [{"arm": arm, "seed": seed, **row} for row in rows]


def load(directory: str | pathlib.Path) -> Results:
    """Reads what one command wrote into a directory; absent files give empty records.

    That of `rfq compare`, or a run of `rfq train` and `rfq quantize`, or one that holds
    theory.jsonl. A run's own rows count, also those that were made after the
    comparison; rows.jsonl stands in where a run has none.

    Raises:
        InputError: there is no such directory, nothing in it to report, or a line that
            is not a JSON object.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{str(directory)!r} is not a directory; give one that `rfq compare` or "
            "`rfq train` wrote"
        )
    notes: list[str] = []
    runs: list[Run] = []
    rows: list[Record] = []
    for home in (directory, *sorted(directory.glob("arms/*/seed-*"))):
        named = _home_of(home)
        if named is not None:
            run, own = _read_run(home, *named, notes)
            runs.append(run)
            rows += own
    covered = {(row["arm"], row["seed"]) for row in rows}
    joined = read_jsonl(directory / "rows.jsonl", notes)
    rows += [row for row in joined if (row.get("arm"), row.get("seed")) not in covered]
    theory = read_jsonl(directory / "theory.jsonl", notes)
    if not rows and not runs and not theory:
        raise InputError(
            f"{str(directory)!r} has neither rows.jsonl nor a run, its own or under "
            "arms/; give a directory that `rfq compare` or `rfq train` wrote"
        )
    unnamed = sum(text(row, "arm") is None for row in rows)
    if unnamed:
        notes.append(f"{unnamed} rows name no arm and were left out.")
    return Results(
        directory=directory,
        rows=tuple(row for row in rows if text(row, "arm") is not None),
        runs=tuple(runs),
        context=read_json(directory / "context.json"),
        theory=theory,
        notes=tuple(dict.fromkeys(notes)),
    )
