"""Accuracies on tasks: beside the paper's, beside chance, and of arms against arms."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from rfq.report import counterparts, load, tables, view
from rfq.report.load import Record
from rfq.report.paper import Paper
from rfq.report.tables import Cell, Line, Table
from rfq.report.view import Estimate, View
from rfq.stats import bootstrap

# What rows of two arms share where they answer to the same question.
_SETTING = (
    "spec",
    "compute_dtype",
    "taps",
    "stream",
    "calibrator",
    "calibration_seed",
    "seed",
)

# Stands behind an accuracy that cannot be told from guessing.
_GUESSED = "†"


def accuracy_tables(shown: View, paper: Paper) -> list[Table]:
    """For each set of questions a table of the arms, and one of their differences."""
    rows = [
        {**row, "arm": run.arm, "seed": run.seed}
        for arm in shown.arms
        for run in shown.runs(arm)
        for row in run.tasks
    ]
    found = []
    asked = dict.fromkeys(load.text(row, "questions") for row in rows)
    for number, questions in enumerate(asked, start=1):
        mine = [row for row in rows if load.text(row, "questions") == questions]
        name = "tasks" if number == 1 else f"tasks_{number}"
        found.append(_table(mine, shown, paper, name))
        if len({row["arm"] for row in mine}) > 1:
            found.append(_differences(mine, shown, f"{name}_arms"))
    return found


def _has_average(row: Record) -> bool:
    """Whether all eight tasks of the paper were asked."""
    return load.number(row, "avg") is not None


def _scores(row: Record) -> dict[str, Record]:
    """What was found of each task."""
    return {task: load.child(row, "scores", task) for task in load.child(row, "scores")}


def _label(row: Record, shown: View) -> str:
    """The precision, and what of the setting is not the page's."""
    parts = [view.spec_label(row) or tables.MISSING]
    if row.get("spec") != "FP":
        setting = zip(view.setting_of(row), shown.setting, strict=True)
        parts += [ours or tables.MISSING for ours, common in setting if ours != common]
        draw = load.number(row, "calibration_seed")
        parts += [f"draw {draw:g}"] if draw else []
    return ", ".join(parts)


def _stream_cell(row: Record) -> Cell:
    stream = load.text(row, "stream") or ""
    return tables.plain_cell("stream", view.STREAMS.get(stream, stream))


def _by_precision(lines: Sequence[Line]) -> list[Line]:
    """Lines of one precision together, in the order in which they were asked."""
    order = list(dict.fromkeys(line.group for line in lines))
    return sorted(lines, key=lambda line: order.index(line.group))


# --- Arms ---------------------------------------------------------------------------


def _table(rows: Sequence[Record], shown: View, paper: Paper, name: str) -> Table:
    scores = _scores(rows[0])
    counts = ", ".join(
        f"{task} {tables.value_cell('', load.number(score, 'num_documents'), ',').text}"
        for task, score in scores.items()
    )
    header = [
        *("Precision", "Arm", "Seed", "Placement"),
        *(f"{task}, {load.text(score, 'split')}" for task, score in scores.items()),
    ]
    caption = (
        "Zero-shot accuracy, a fraction: acc_norm where lm-evaluation-harness has it, "
        f"else acc. Documents: {counts}. {_GUESSED}: less than two standard errors "
        "above chance."
    )
    if cut := sum(load.number(s, "num_truncated") or 0 for s in scores.values()):
        caption += f" {cut:,.0f} requests lost the beginning of their context."
    if set(paper.tasks) & set(scores):
        caption += (
            " After a slash: the paper's, of models with "
            f"{paper.num_params / 1e6:.0f} M parameters, on the test splits of arc and "
            "openbookqa."
        )
    if _has_average(rows[0]):
        header += ["average", "without boolq", "change from FP"]
        caption += (
            f" Average: ± standard error over documents; {_GUESSED}: less than two of "
            "them above a collapsed model, which gives one answer to boolq and guesses "
            "the rest; there an order means nothing. Change: 95 % interval of a paired "
            "bootstrap over documents."
        )
    return Table(
        name=name,
        title="Accuracy on tasks",
        caption=caption,
        header=tuple(header),
        lines=[
            *_by_precision([_line(row, shown, paper) for row in rows]),
            *_levels(rows[0]),
        ],
        stands_for=_stands_for(rows),
    )


def _stands_for(rows: Sequence[Record]) -> list[str]:
    """The paper's tables of the weight widths that all eight tasks were asked at."""
    widths = {
        load.number(row, "weight_bits")
        for row in rows
        if _has_average(row) and load.number(row, "act_bits") is not None
    }
    every = tables.PAPER_TABLES.items()
    return [name for width, names in every if width in widths for name in names]


def _line(row: Record, shown: View, paper: Paper) -> Line:
    arm, label = str(row["arm"]), _label(row, shown)
    printed = counterparts.theirs(shown, paper).get(arm)
    theirs = _printed(paper, printed, load.text(row, "spec"))
    cells = [
        tables.plain_cell("precision", label),
        tables.arm_cell(arm),
        tables.value_cell("seed", load.number(row, "seed")),
        _stream_cell(row),
    ]
    for task, score in _scores(row).items():
        chance, error = load.number(score, "chance"), load.number(score, "se")
        cells.append(_accuracy(row, task, (chance, error), theirs))
    if _has_average(row):
        collapsed = (load.numbers(row, "avg_collapsed") or [None])[-1]
        error = load.number(row, "avg_se")
        cells += [
            _accuracy(row, "avg", (collapsed, error), theirs),
            tables.value_cell(
                "avg_without_boolq", load.number(row, "avg_without_boolq"), ".3f"
            ),
            _interval(
                "avg_change",
                load.number(row, "avg_change"),
                load.number(row, "avg_change_lo"),
                load.number(row, "avg_change_hi"),
            ),
        ]
    return Line(cells=cells, group=label, arm=arm)


def _printed(paper: Paper, arm: str | None, spec: str | None) -> Mapping[str, float]:
    """The paper's accuracies of an arm and setting; empty where it has no such row."""
    for row in itertools.chain(*paper.tables.values()):
        if (row.arm, row.spec) == (arm, spec):
            scores = dict(zip(paper.tasks, row.scores, strict=True))
            return {**scores, "avg": row.avg}
    return {}


def _accuracy(
    row: Record,
    name: str,
    guessed: tuple[float | None, float | None],
    theirs: Mapping[str, float],
) -> Cell:
    """Ours, marked where it may be guessed (level, standard error), and the paper's."""
    value = load.number(row, name)
    if value is None:
        return tables.value_cell(name, None)
    level, error = guessed
    text, data = f"{value:.3f}", {name: value, f"{name}_se": error}
    if name == "avg" and error is not None:
        text += f" ± {error:.3f}"
    is_guessed = level is not None and error is not None and value < level + 2 * error
    if is_guessed:
        text += f" {_GUESSED}"
    if name in theirs:
        text += f" / {theirs[name]:.3f}"
        data[f"paper_{name}"] = theirs[name]
    return Cell(text=text, data=data, mark="quiet" if is_guessed else "")


def _interval(
    name: str, value: float | None, lo: float | None, hi: float | None
) -> Cell:
    """A difference and its interval."""
    if lo is None or hi is None:
        return tables.value_cell(name, None)
    return tables.increase_cell(name, Estimate(value, lo, hi))


def _levels(row: Record) -> list[Line]:
    """What guessing has and, of the paper's tasks, what a collapsed model has."""
    scores = _scores(row)
    chance = {task: load.number(score, "chance") for task, score in scores.items()}
    if not _has_average(row):
        return [_level("chance", chance)]
    others = [value for task, value in chance.items() if task != "boolq"]
    known = [value for value in others if value is not None]
    averages = {
        "avg": load.number(row, "avg_chance"),
        "avg_without_boolq": (
            float(np.mean(known)) if len(known) == len(others) else None
        ),
    }
    ends = zip(
        (load.number(scores["boolq"], f"constant_{end}") for end in ("lo", "hi")),
        load.numbers(row, "avg_collapsed") or (None, None),
        strict=True,
    )
    return [
        _level("chance", {**chance, **averages}),
        *(
            _level("collapsed", {**chance, **averages, "boolq": boolq, "avg": average})
            for boolq, average in ends
        ),
    ]


def _level(name: str, values: Mapping[str, float | None]) -> Line:
    blank = [tables.plain_cell(key, "") for key in ("arm", "seed", "stream")]
    cells = [tables.value_cell(key, value, ".3f") for key, value in values.items()]
    if "avg" in values:
        cells.append(tables.plain_cell("avg_change", ""))
    return Line(
        cells=[tables.plain_cell("precision", name), *blank, *cells], group="levels"
    )


# --- Differences between arms -------------------------------------------------------


def _differences(rows: Sequence[Record], shown: View, name: str) -> Table:
    tasks = tuple(_scores(rows[0]))
    header = ["Precision", "Arm", "against", "Seed", "Placement", *tasks]
    averaged = ["average"] if _has_average(rows[0]) else []
    right = [_right(row, shown) for row in rows]
    lines = []
    for one, other in itertools.combinations(range(len(rows)), 2):
        before, after = rows[one], rows[other]
        if before["arm"] == after["arm"] or any(
            before.get(field) != after.get(field) for field in _SETTING
        ):
            continue
        arm = str(after["arm"])
        cells = [
            tables.plain_cell("precision", _label(after, shown)),
            tables.arm_cell(arm),
            tables.plain_cell("against", view.arm_label(str(before["arm"]))),
            tables.value_cell("seed", load.number(after, "seed")),
            _stream_cell(after),
        ]
        found = {
            task: right[other][task] - right[one][task]
            for task in tasks
            if task in right[one] and task in right[other]
        }
        strata = {task: [found[task]] if task in found else [] for task in tasks}
        if averaged:
            whole = len(found) == len(tasks)
            strata["avg"] = list(found.values()) if whole else []
        for key, items in strata.items():
            mean = float(np.mean([np.mean(each) for each in items])) if items else None
            ends = bootstrap.stratified_interval(items) if items else (None, None)
            cells.append(_interval(key, mean, *ends))
        lines.append(Line(cells=cells, group=_label(after, shown), arm=arm))
    return Table(
        name=name,
        title="Differences between arms on tasks",
        caption=(
            "Accuracy of an arm less that of the arm that it stands against, under the "
            "same setting and seed, with the 95 % interval of a paired bootstrap over "
            "documents: an interval with 0 in it tells no difference."
        ),
        header=(*header, *averaged),
        lines=_by_precision(lines),
    )


def _right(row: Record, shown: View) -> dict[str, np.ndarray]:
    """By task, 1.0 for each document that is answered rightly; empty without items."""
    folder = f"arms/{row['arm']}/seed-{row['seed']}/quantize/items"
    path = shown.results.directory / folder / (load.text(row, "items") or "")
    found: dict[str, list[float]] = {}
    scores = _scores(row)
    for item in load.read_jsonl(path, []):
        task = load.text(item, "task") or ""
        metric = load.text(scores[task], "primary") or ""
        found.setdefault(task, []).append(float(item.get(metric) is True))
    return {task: np.array(right) for task, right in found.items()}
