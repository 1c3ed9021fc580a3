"""Read what runs left into frames: every run once, every config under one name."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from rfq import experiment as experiment_lib
from rfq import rows as rows_lib
from rfq.errors import InputError

Record = Mapping[str, Any]
# Arm and seed: what tells the runs of a directory apart.
Home = tuple[str, int]
# What fixes an arm but its seed, by dotted path.
Config = Mapping[str, Any]
# What rows tell of their config, and where a config has it.
TOLD = {
    "model.num_layers": "num_layers",
    "model.width": "width",
    "model.skip": "skip",
    "optimizer.name": "optimizer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory.

    Attributes:
        described: config.json; empty where there is none, as are the next two.
        done: What was written when training ended.
        failed: What was written when training diverged.
        weights: The numbers of the weights in statistics.json.
    """

    arm: str
    seed: int
    home: pathlib.Path
    described: Record
    done: Record
    failed: Record
    weights: Record

    @property
    def experiment(self) -> Record:
        """The config of the experiment."""
        return self.described.get("experiment", {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that sources hold, as frames with the columns arm and seed.

    Attributes:
        directory: Where the report goes.
        rows, losses, tasks: The kinds of `rfq.rows`; tasks has one line a task.
        sites: What quantization does, one line a site, statistic and layer.
        metrics: Logged training steps, by step.
        measures: Measured training steps, one line a site, statistic and layer.
        statistics: The full-precision model at the end, in the same form.
        histograms: Of measured steps, and of the end where `step` is null.
        context: context.json: the floors, the data and the planned arms.
        theory: The checks of `rfq theory`.
        notes: What was left out while reading, in sentences.
    """

    directory: pathlib.Path
    rows: pl.DataFrame
    runs: Sequence[Run]
    losses: pl.DataFrame
    tasks: pl.DataFrame
    sites: pl.DataFrame
    metrics: pl.DataFrame
    measures: pl.DataFrame
    statistics: pl.DataFrame
    histograms: pl.DataFrame
    context: Record
    theory: Sequence[Record]
    notes: Sequence[str]


class _Made(NamedTuple):
    """One config of an arm and seed; `fingerprint` is None where no file has it."""

    arm: str
    seed: int
    fingerprint: str | None
    config: Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """What is read before names are settled; an arm and seed in it are one config."""

    source: pathlib.Path
    rows: pl.DataFrame
    runs: Sequence[Run]
    context: Record
    theory: Sequence[Record]
    notes: Sequence[str]

    def row_keys(self) -> list[tuple]:
        """Name the config of each row: by its run, else by what the row tells."""
        homes = {(run.arm, run.seed) for run in self.runs}
        told = self.rows.select("arm", "seed", "config_fingerprint", *TOLD.values())
        return [row[:2] if row[:2] in homes else row for row in told.rows()]

    def made(self) -> dict[tuple, _Made]:
        """Return what was made by key, as far as files tell."""
        named = self.rows.filter(pl.col("config_fingerprint").is_not_null())
        columns = named.select("arm", "seed", "config_fingerprint").rows()
        prints = {(arm, seed): name for arm, seed, name in reversed(columns)}
        found = {}
        for run in self.runs:
            home = (run.arm, run.seed)
            name = run.described.get("fingerprint") or prints.get(home)
            found[home] = _Made(*home, name, _flat(run.experiment))
        for key in self.row_keys():
            if key not in found:
                config = dict(zip(TOLD, key[3:], strict=True))
                known = {path: x for path, x in config.items() if x is not None}
                arm, seed, name = key[:3]
                found[key] = _Made(arm, seed, name, known)
        return found

    def data(self) -> str | None:
        """Return the fingerprint of the data, the first that a file gives."""
        records = (self.context, *(run.described for run in self.runs))
        found = [record.get("data_fingerprint") for record in records]
        found += self.rows["data_fingerprint"].to_list()
        return next((value for value in found if value is not None), None)


def read(sources: Sequence[str | pathlib.Path], out: pathlib.Path) -> Results:
    """Read what `rfq compare`, `rfq train` or `rfq theory` wrote into one result.

    A run that several sources hold counts once, under its first name. An arm whose
    name another config has before it, in another source or in the same, takes what
    differs from that into its own: `residual_adamw_num_layers_12` (D130). The rows of
    a run's own directory count before rows.jsonl of the comparison (D78).

    Args:
        sources: Directories, and files of rows.
        out: Where the report will be written.

    Raises:
        InputError: a source holds nothing to report or a file that cannot be read;
            nothing was trained; data differ; two configs of one name cannot be told
            apart.
    """
    parts = [part for source in sources for part in _split(_open(pathlib.Path(source)))]
    joined = functools.reduce(_merge, parts)
    if joined.rows.is_empty() and not joined.runs:
        raise InputError(
            f"{', '.join(map(str, sources))}: no rows and no runs to report; give "
            "also a directory that `rfq compare` or `rfq train` wrote"
        )
    return _results(joined, out)


def read_json(path: pathlib.Path) -> Record:
    """Read one object; a file that is not there gives an empty one.

    Raises:
        InputError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        value = error.msg
    if not isinstance(value, dict):
        raise InputError(
            f"{path} is not a JSON object ({value!r}); delete it or write it again "
            "with the command that made it"
        )
    return value


def _open(source: pathlib.Path) -> _Part:
    if source.is_file():
        return _file(source)
    if not source.is_dir():
        raise InputError(
            f"{str(source)!r} is not a directory and no file of rows; give one that "
            "`rfq compare`, `rfq train` or `rfq quantize` wrote"
        )
    return _directory(source)


def _file(path: pathlib.Path) -> _Part:
    """Read a file of rows, such as rows.jsonl of a comparison, without its runs."""
    rows = rows_lib.read("rows", path)
    if rows.is_empty() or rows["spec"].null_count():
        raise InputError(
            f"{str(path)!r} is no file of rows, of which each line has the field "
            "'spec'; give rows.jsonl, or a directory that `rfq compare` or "
            "`rfq train` wrote"
        )
    return _part(path, rows, files=[path])


def _directory(directory: pathlib.Path) -> _Part:
    homes = [directory, *sorted(directory.glob("arms/*/seed-*"))]
    runs = [run for home in homes if (run := _run(home)) is not None]
    own = [_rows(run.home, arm=run.arm, seed=run.seed) for run in runs]
    rows = pl.concat([rows_lib.frame("rows", []), *own])
    joined = rows_lib.read("rows", directory / "rows.jsonl")
    rows = pl.concat([rows, joined.join(rows, on=["arm", "seed"], how="anti")])
    theory = rows_lib.lines(directory / "theory.jsonl")
    if joined.is_empty() and not runs and not theory:
        raise InputError(
            f"{str(directory)!r} has neither rows.jsonl nor a run, its own or under "
            "arms/; give a directory that `rfq compare` or `rfq train` wrote"
        )
    files = [directory / "rows.jsonl"]
    files += [path for run in runs for path in sorted(run.home.rglob("*.jsonl"))]
    return dataclasses.replace(
        _part(directory, rows, files),
        runs=runs,
        context=read_json(directory / "context.json"),
        theory=theory,
    )


def _part(
    source: pathlib.Path, rows: pl.DataFrame, files: Sequence[pathlib.Path]
) -> _Part:
    """Keep the rows that name an arm, and note what the files lack."""
    unnamed = rows["arm"].null_count()
    notes = [
        f"The last line of {path.name} is cut off and was left out; the command that "
        "writes it was stopped or is still running."
        for path in files
        if path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
    ]
    notes += [f"{unnamed} rows name no arm and were left out."] if unnamed else []
    return _Part(
        source=source,
        rows=rows.filter(pl.col("arm").is_not_null()),
        runs=[],
        context={},
        theory=[],
        notes=notes,
    )


def _run(home: pathlib.Path) -> Run | None:
    """Read a run's single files; None where the directory is no run.

    `arms/<arm>/seed-<s>` says arm and seed by its path, another one by its config.
    """
    described = read_json(home / "config.json")
    experiment = described.get("experiment", {})
    arm, seed = experiment.get("arm"), experiment.get("seed")
    if home.parent.parent.name == "arms":
        prefix, _, digits = home.name.rpartition("-")
        named = home.is_dir() and prefix == "seed" and digits.isdigit()
        arm, seed = (home.parent.name, int(digits)) if named else (None, None)
    if arm is None or seed is None:
        return None
    return Run(
        arm=arm,
        seed=seed,
        home=home,
        described=described,
        done=read_json(home / "done.json"),
        failed=read_json(home / "failed.json"),
        weights=read_json(home / "quantize" / "statistics.json").get("weights", {}),
    )


def _rows(home: pathlib.Path, **fixed: str | int) -> pl.DataFrame:
    return rows_lib.read("rows", home / "quantize" / "rows.jsonl", **fixed)


def _flat(config: Record, path: str = "") -> dict[str, Any]:
    """Return what fixes an arm but its seed, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not path and name in (*experiment_lib.FREE_SECTIONS, "seed"):
            continue
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{path}{name}.") if inner else {f"{path}{name}": value}
    return found


def _differences(ours: Config, theirs: Config) -> list[str]:
    """Return the fields that both tell and in which they differ."""
    return [path for path in sorted(ours) if ours[path] != theirs.get(path, ours[path])]


def _apart(one: _Made, other: _Made) -> bool:
    """Say whether one name stands for two configs."""
    prints = {one.fingerprint, other.fingerprint} - {None}
    another = one.seed == other.seed and len(prints) > 1
    return one.arm == other.arm and (
        another or bool(_differences(one.config, other.config))
    )


def _split(part: _Part) -> list[_Part]:
    """Give further configs of a name parts of their own, to merge like directories."""
    groups: list[list[_Made]] = []
    places: dict[tuple, int] = {}
    for key, made in part.made().items():
        fits = (not any(_apart(made, other) for other in group) for group in groups)
        places[key] = next((at for at, fit in enumerate(fits) if fit), len(groups))
        groups += [[]] if places[key] == len(groups) else []
        groups[places[key]].append(made)
    of_rows = pl.Series([places[key] for key in part.row_keys()], dtype=pl.Int64)
    first, *others = [
        dataclasses.replace(
            part,
            rows=part.rows.filter(of_rows == at),
            runs=[run for run in part.runs if places[run.arm, run.seed] == at],
        )
        for at in range(max(1, len(groups)))
    ]
    # What a source has once goes with its first part.
    bare = {"context": {"seconds": 0.0}, "theory": (), "notes": ()}
    return [first, *(dataclasses.replace(other, **bare) for other in others)]


def _merge(ours: _Part, theirs: _Part) -> _Part:
    data = [part.data() for part in (ours, theirs)]
    if None not in data and data[0] != data[1]:
        raise InputError(
            f"{theirs.source} was trained on other data than {ours.source}; "
            "losses on them cannot be compared"
        )
    before, found = list(ours.made().values()), list(theirs.made().values())
    held = {(m.fingerprint, m.seed): m.arm for m in before if m.fingerprint is not None}
    named: list[_Made] = []
    names: dict[Home, str] = {}
    again = []
    for made in found:
        home = (made.arm, made.seed)
        twin = held.get((made.fingerprint or "", made.seed))
        if home in names:
            continue
        if twin is None:
            name = _name(made, before, [*named, *found], theirs.source)
            names[home] = name
            named.append(made._replace(arm=name))
        else:
            again.append(f"{made.arm} (seed {made.seed}) is {twin}")
    notes = [*ours.notes, *theirs.notes]
    if again:
        notes.append(
            f"These runs of {theirs.source} were given before and count once: "
            f"{', '.join(again)}."
        )
    renamed = pl.DataFrame(
        [(arm, seed, name) for (arm, seed), name in names.items()],
        schema={"arm": pl.String, "seed": pl.Int64, "name": pl.String},
        orient="row",
    )
    kept = theirs.rows.join(renamed, on=["arm", "seed"], maintain_order="left")
    runs = [
        dataclasses.replace(run, arm=names[run.arm, run.seed])
        for run in theirs.runs
        if (run.arm, run.seed) in names
    ]
    arms = {made.arm for made in found}
    return dataclasses.replace(
        ours,
        rows=pl.concat([ours.rows, kept.with_columns(arm="name").drop("name")]),
        runs=[*ours.runs, *runs],
        context=_context(ours.context, theirs.context, arms, names),
        theory=ours.theory or theirs.theory,
        notes=notes,
    )


def _name(
    made: _Made, taken: Sequence[_Made], beside: Sequence[_Made], where: pathlib.Path
) -> str:
    """Return the arm's name, with what differs if another config has it.

    Args:
        made: What is named.
        taken: What earlier sources hold.
        beside: What this source holds, under its own names and under final ones.
        where: The source.
    """
    rival = next((m for m in taken if m.arm == made.arm and _apart(m, made)), None)
    changed = _differences(rival.config, made.config) if rival else []
    parts = [f"{path.split('.')[-1]}_{made.config[path]}" for path in changed]
    own = made._replace(arm="_".join([made.arm, *parts]))
    before = [m for m in taken if m.arm == own.arm]
    known = [*before, *(m for m in beside if changed and m.arm == own.arm)]
    if any(_apart(m, own) or m.seed == own.seed for m in known) or any(
        not m.config.keys() & own.config.keys() for m in before
    ):
        raise InputError(
            f"arm {made.arm!r} (seed {made.seed}) of {where} has the name of another "
            "config, and what is recorded does not tell them apart; give one another "
            "--arm"
        )
    return own.arm


def _context(
    ours: Record, theirs: Record, arms: Collection[str], names: Mapping[Home, str]
) -> Record:
    planned = [*ours.get("arms", ()), *names.values()]
    planned += [arm for arm in theirs.get("arms", ()) if arm not in arms]
    seconds = [context.get("seconds") for context in (ours, theirs)]
    return {
        **theirs,
        **ours,
        "arms": list(dict.fromkeys(planned)),
        "seconds": sum(x or 0.0 for x in seconds) if None not in seconds else None,
    }


def _results(part: _Part, out: pathlib.Path) -> Results:
    """Read the frames of all runs, under their settled names."""
    frames = {
        kind: [rows_lib.frame(kind, [], arm="", seed=0)]
        for kind in ("losses", "tasks", "sites", "metrics", "measures")
    }
    histograms = [_histograms(None, None, {}, "", 0)]
    statistics = pl.DataFrame(
        schema={"arm": pl.String, "seed": pl.Int64, "sites": pl.String}
    )
    for run in part.runs:
        named = {"arm": run.arm, "seed": run.seed}
        for kind in ("losses", "tasks", "sites"):
            path = run.home / "quantize" / f"{kind}.jsonl"
            frames[kind].append(rows_lib.read(kind, path, **named))
        for kind in ("metrics", "measures"):
            found = rows_lib.read(kind, run.home / f"{kind}.jsonl", **named)
            # A step that is written twice, by a resumed run, counts as it was last.
            frames[kind].append(found.unique("step", keep="last").sort("step"))
        at_end = read_json(run.home / "quantize" / "statistics.json")
        sites = at_end.get("sites", {})
        text = pl.DataFrame({**named, "sites": json.dumps(sites)})
        statistics = statistics.vstack(text.select(statistics.columns))
        measured = frames["measures"][-1].select("step", "edges", "sites").rows()
        histograms += [
            _histograms(step, edges, json.loads(found or "{}"), run.arm, run.seed)
            for step, edges, found in measured
        ]
        histograms.append(
            _histograms(None, at_end.get("edges"), sites, run.arm, run.seed)
        )
    whole = {kind: pl.concat(found) for kind, found in frames.items()}
    return Results(
        directory=out,
        rows=part.rows,
        runs=part.runs,
        losses=whole["losses"],
        tasks=rows_lib.by_task(whole["tasks"]),
        sites=rows_lib.by_layer(whole["sites"]),
        metrics=whole["metrics"],
        measures=rows_lib.by_layer(whole["measures"].drop("edges")),
        statistics=rows_lib.by_layer(statistics),
        histograms=pl.concat(histograms),
        context=part.context,
        theory=part.theory,
        notes=list(dict.fromkeys(part.notes)),
    )


def _histograms(
    step: int | None, edges: Any, sites: Record, arm: str, seed: int
) -> pl.DataFrame:
    return rows_lib.histograms(edges, sites).with_columns(
        arm=pl.lit(arm), seed=pl.lit(seed, pl.Int64), step=pl.lit(step, pl.Int64)
    )
