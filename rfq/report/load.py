"""Read what runs left into frames: every run once, every config under one name.

Losses on different data cannot be compared. What was measured on each of several data
makes a result of its own (D161).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from rfq import experiment as experiment_lib
from rfq import rows as rows_lib
from rfq.errors import InputError
from rfq.report import naming
from rfq.report.naming import TOLD, Made

Record = Mapping[str, Any]
_CONTEXT = "context.json"  # It stands beside rows.
_CONFIGS = "configs.json"  # So may this: fingerprint -> the experiment.
# What names a row.
_ROW = ["arm", "seed", *rows_lib.Setting._fields]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory.

    Attributes:
        described: config.json; empty where there is none, as are the next three.
        done: What was written when training ended.
        failed: What was written when training diverged.
        statistics: The full-precision model at the end, and its weights.
    """

    arm: str
    seed: int
    home: pathlib.Path
    described: Record
    done: Record
    failed: Record
    statistics: Record

    @property
    def data(self) -> str | None:
        """The fingerprint of the data."""
        return self.described.get("data_fingerprint")

    @property
    def experiment(self) -> Record:
        """The config of the experiment."""
        return self.described.get("experiment", {})

    @property
    def sites(self) -> Record:
        """The statistics of the sites at the end."""
        return self.statistics.get("sites", {})

    @property
    def weights(self) -> Record:
        """The statistics of the weights at the end."""
        return self.statistics.get("weights", {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that sources hold of one data, as frames with columns arm and seed.

    Attributes:
        directory: Where the report goes.
        data: The fingerprint of the data; None where no file tells.
        rows: The kind of `rfq.rows`, as are losses and tasks.
        tasks: One line a task.
        sites: What quantization does, one line a site, statistic and layer.
        metrics: Logged training steps, by step.
        measures: Measured training steps, one line a site, statistic and layer.
        statistics: The full-precision model at the end, in the same form.
        histograms: Of measured steps, and of the end where `step` is null.
        configs: What fixes an arm, by the fingerprint of its rows.
        context: context.json: the floors, the data and the planned arms.
        theory: The checks of `rfq theory`.
        notes: What was left out while reading, in sentences.
        others: The results on other data.
    """

    directory: pathlib.Path
    data: str | None
    rows: pl.DataFrame
    runs: Sequence[Run]
    losses: pl.DataFrame
    tasks: pl.DataFrame
    sites: pl.DataFrame
    metrics: pl.DataFrame
    measures: pl.DataFrame
    statistics: pl.DataFrame
    histograms: pl.DataFrame
    configs: Mapping[str, Record]
    context: Record
    theory: Sequence[Record]
    notes: Sequence[str]
    others: Sequence["Results"] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """What one source holds, under its own names."""

    path: pathlib.Path
    rows: pl.DataFrame
    notes: Sequence[str]
    runs: Sequence[Run] = ()
    context: Record = dataclasses.field(default_factory=dict)
    known: Mapping[str, Record] = dataclasses.field(default_factory=dict)
    theory: Sequence[Record] = ()

    def configs(self) -> tuple[list[Made], list[int]]:
        """List the configs, of runs first, and say which one each row is of.

        A row is of its run's config, else of the one that it tells itself.
        """
        told = self.rows.select("arm", "seed", "config_fingerprint", *TOLD.values())
        rows = told.rows()
        prints = {row[:2]: row[2] for row in reversed(rows) if row[2] is not None}
        found: dict[tuple, Made] = {}
        for run in self.runs:
            home = (run.arm, run.seed)
            name = run.described.get("fingerprint") or prints.get(home)
            known = {"data": run.data} if run.data else {}
            found[home] = Made(*home, name, _flat(run.experiment) | known)
        keys = [row[:2] if row[:2] in found else row for row in rows]
        for key in keys:
            config = zip(TOLD, key[3:], strict=False)
            known = {path: x for path, x in config if x is not None}
            if key not in found:
                arm, seed, name = key[:3]
                found[key] = Made(
                    arm, seed, name, _flat(self.known.get(name, {})) | known
                )
        places = {key: at for at, key in enumerate(found)}
        return list(found.values()), [places[key] for key in keys]

    def on(self, default: str | None) -> "_Source":
        """Return the source with the data of every row and run, each under one name.

        Args:
            default: The data where no file of the source tells.
        """
        records = (self.context, *(run.described for run in self.runs))
        told = [record.get("data_fingerprint") for record in records]
        told += self.rows["data_fingerprint"].to_list()
        data = next((each for each in told if each is not None), default)
        # Fingerprints that name the same tokens, as it was found out.
        same = dict.fromkeys(self.context.get("same_data", ()), data)
        column = pl.col("data_fingerprint").fill_null(pl.lit(data, pl.String))
        described = [
            {**run.described, "data_fingerprint": same.get(fingerprint, fingerprint)}
            for run in self.runs
            for fingerprint in [run.data or data]
        ]
        return dataclasses.replace(
            self,
            rows=self.rows.with_columns(column.replace(same)),
            runs=[
                dataclasses.replace(run, described=each)
                for run, each in zip(self.runs, described, strict=True)
            ],
            context={**self.context, "data_fingerprint": data},
        )


def read(sources: Sequence[str | pathlib.Path], out: pathlib.Path) -> Results:
    """Read what `rfq compare`, `rfq train` or `rfq theory` wrote into one result.

    A run's own rows count before rows.jsonl of its comparison (D78); `naming` says how
    arms are named.

    Args:
        sources: Directories, and files of rows.
        out: Where the report will be written.

    Returns:
        What was measured on the data that has most rows; `others` has the rest.

    Raises:
        InputError: a source holds nothing to report or a file that cannot be read, or
            nothing was trained.
    """
    opened = [_open(pathlib.Path(source)).on(None) for source in sources]
    whole = pl.concat([found.rows for found in opened])
    if whole.is_empty() and not any(found.runs for found in opened):
        raise InputError(
            f"{', '.join(map(str, sources))}: no rows and no runs to report; give a "
            "file of rows or a directory that `rfq compare` or `rfq train` wrote"
        )
    known = [d for found in opened if (d := found.context["data_fingerprint"])]
    opened = [found.on(next(iter(known), None)) for found in opened]
    taken: list[Made] = []
    rows, runs, notes, again = [], {}, [], []
    planned: list[str] = []
    for found in opened:
        configs, of_row = found.configs()
        before = len(taken)
        names = naming.settle(configs, taken, found.path.stem)
        arms = pl.Series("arm", [names[at] for at in of_row], pl.String)
        own = found.rows.with_columns(arms)
        rows.append(own.unique(_ROW, keep="last", maintain_order=True))
        for run, name in zip(found.runs, names, strict=False):
            runs.setdefault((name, run.seed), dataclasses.replace(run, arm=name))
        mine = {made.arm for made in configs}
        told = found.context.get("arms", ())
        planned += [*names, *(arm for arm in told if arm not in mine)]
        notes += found.notes
        again += [str(found.path)] if len(configs) > len(taken) - before else []
    if again:
        notes.append(
            f"Of {', '.join(again)} some runs stand in a source before it; what both "
            "hold counts once."
        )
    # A field that a record lacks is that of the next one whose loss is the same to the
    # last bit. Of a run that was trained again, what was recorded first counts.
    same = pl.concat(rows).group_by([*_ROW, "loss"], maintain_order=True)
    whole = same.agg(pl.all().drop_nulls().first()).select(rows[0].columns)
    whole = whole.unique(_ROW, keep="first", maintain_order=True)
    counted = whole.group_by("data_fingerprint").len().sort("len", descending=True)
    every = [*counted["data_fingerprint"], *(run.data for run in runs.values())]
    first, *others = (
        _of_data(data, whole, list(runs.values()), opened, out)
        for data in dict.fromkeys(every)
    )
    elsewhere = {arm for each in others for arm in _arms(each)}
    arms = [arm for arm in dict.fromkeys(planned) if arm not in elsewhere]
    return dataclasses.replace(
        first,
        context={**first.context, "arms": arms},
        theory=next((found.theory for found in opened if found.theory), ()),
        notes=list(dict.fromkeys(notes)),
        others=others,
    )


def _arms(results: Results) -> set[str]:
    return {*results.rows["arm"], *(run.arm for run in results.runs)}


def _of_data(
    data: str | None,
    rows: pl.DataFrame,
    runs: Sequence[Run],
    opened: Sequence[_Source],
    out: pathlib.Path,
) -> Results:
    """Put together what was measured on one data."""
    kept = [run for run in runs if run.data == data]
    sources = [s for s in opened if s.context["data_fingerprint"] == data]
    context: dict[str, Any] = {}
    for found in reversed(sources):
        context |= found.context
    seconds = [found.context.get("seconds") for found in sources]
    total = None if None in seconds else sum(s for s in seconds if s is not None)
    return Results(
        directory=out,
        data=data,
        rows=rows.filter(pl.col("data_fingerprint").eq_missing(pl.lit(data))),
        runs=kept,
        configs={name: each for s in opened for name, each in s.known.items()},
        context={**context, "seconds": total, "arms": ()},
        theory=(),
        notes=(),
        **_frames(kept),
    )


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


def _open(path: pathlib.Path) -> _Source:
    if path.is_file():
        records = rows_lib.lines(path)
        of_sites = [r for r in records if "sites" in r and r.get("spec") == "FP"]
        plain = [r for r in records if "spec" in r and "sites" not in r]
        rows = rows_lib.frame("rows", plain, str(path))
        beside = [read_json(path.with_name(name)) for name in (_CONTEXT, _CONFIGS)]
        more = dict(zip(("context", "known"), beside, strict=True))
        runs = [_recorded(path, record) for record in of_sites]
        found = _source(path, rows, [path], runs=runs, **more)
        lost = len(records) - len(rows) - len(runs)
        said = f"{lost} lines of {path} are no rows and were left out."
        return dataclasses.replace(found, notes=[*found.notes, *[said] * bool(lost)])
    if not path.is_dir():
        raise InputError(
            f"{str(path)!r} is not a directory and no file of rows; give one that "
            "`rfq compare`, `rfq train` or `rfq quantize` wrote"
        )
    homes = [path, *sorted(path.glob("arms/*/seed-*"))]
    runs = [run for home in homes if (run := _run(home)) is not None]
    own = _of_runs("rows", runs, "quantize")
    joined = rows_lib.read("rows", path / "rows.jsonl")
    theory = rows_lib.lines(path / "theory.jsonl")
    if joined.is_empty() and not runs and not theory:
        raise InputError(
            f"{str(path)!r} has neither rows.jsonl nor a run, its own or under "
            "arms/; give a directory that `rfq compare` or `rfq train` wrote"
        )
    rows = pl.concat([own, joined.join(own, on=["arm", "seed"], how="anti")])
    files = [file for run in runs for file in sorted(run.home.rglob("*.jsonl"))]
    context = read_json(path / _CONTEXT)
    more = {"runs": runs, "theory": theory, "context": context}
    return _source(path, rows, [path / "rows.jsonl", *files], **more)


def _source(
    path: pathlib.Path, rows: pl.DataFrame, files: Iterable[pathlib.Path], **more: Any
) -> _Source:
    """Keep the rows that name an arm, and note what the files lack."""
    unnamed = rows["arm"].null_count()
    notes = [
        f"The last line of {file.name} is cut off and was left out; the command that "
        "writes it was stopped or is still running."
        for file in files
        if file.is_file() and file.stat().st_size and file.read_bytes()[-1:] != b"\n"
    ]
    notes += [f"{unnamed} rows name no arm and were left out."] if unnamed else []
    return _Source(path=path, rows=rows.drop_nulls("arm"), notes=notes, **more)


def _recorded(path: pathlib.Path, record: Record) -> Run:
    """Make a run of a record of the full-precision model's sites."""
    schema = rows_lib.schema("sites")
    line = rows_lib.frame("sites", [record], str(path)).row(0, named=True)
    prints = {"fingerprint": line["config_fingerprint"]}
    return Run(
        arm=line["arm"],
        seed=line["seed"],
        home=path.with_suffix(""),
        described={name: line[name] for name in schema if name != "sites"} | prints,
        done={},
        failed={},
        statistics={"sites": record["sites"]},
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
        statistics=read_json(home / "quantize" / "statistics.json"),
    )


def _flat(config: Record, path: str = "") -> dict[str, Any]:
    """Return what fixes an arm but its seed, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not path and name in (*experiment_lib.FREE_SECTIONS, "seed"):
            continue
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{path}{name}.") if inner else {f"{path}{name}": value}
    return found


def _of_runs(kind: str, runs: Iterable[Run], folder: str = "") -> pl.DataFrame:
    """Read a kind of records of all runs; a step counts as it was written last."""
    found = [rows_lib.frame(kind, [], arm="", seed=0)]
    for run in runs:
        path = run.home / folder / f"{kind}.jsonl"
        one = rows_lib.read(kind, path, arm=run.arm, seed=run.seed)
        logged = "step" in one.columns  # A resumed run writes steps twice.
        found.append(one.unique("step", keep="last").sort("step") if logged else one)
    columns = found[0].columns
    return pl.concat([one.select(columns) for one in found])


def _frames(runs: Sequence[Run]) -> dict[str, Any]:
    """Read the frames of all runs, under their settled names."""
    measures = _of_runs("measures", runs)
    columns = measures.select("arm", "seed", "step", "edges", "sites").rows()
    recorded: list[Any] = [(*line[:4], json.loads(line[4] or "{}")) for line in columns]
    recorded += [
        (r.arm, r.seed, None, r.statistics.get("edges"), r.sites) for r in runs
    ]
    texts = [(run.arm, run.seed, json.dumps(run.sites)) for run in runs]
    schema = {"arm": pl.String, "seed": pl.Int64, "sites": pl.String}
    at_end = pl.DataFrame(texts, schema=schema, orient="row")
    return {
        "losses": _of_runs("losses", runs, "quantize"),
        "tasks": rows_lib.by_task(_of_runs("tasks", runs, "quantize")),
        "sites": rows_lib.by_layer(_of_runs("sites", runs, "quantize")),
        "metrics": _of_runs("metrics", runs),
        "measures": rows_lib.by_layer(measures.drop("edges")),
        "statistics": rows_lib.by_layer(at_end),
        "histograms": pl.concat(
            [_histograms("", 0, None, None, {}), *(_histograms(*x) for x in recorded)]
        ),
    }


def _histograms(
    arm: str, seed: int, step: int | None, edges: Any, sites: Record
) -> pl.DataFrame:
    return rows_lib.histograms(edges, sites).with_columns(
        arm=pl.lit(arm), seed=pl.lit(seed, pl.Int64), step=pl.lit(step, pl.Int64)
    )
