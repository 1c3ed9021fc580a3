"""Accuracies on tasks, ours beside the paper's."""

from collections.abc import Sequence

from rfq.report import load, tables, view
from rfq.report.load import Record
from rfq.report.paper import Paper
from rfq.report.tables import Cell, Line, Table
from rfq.report.view import View


def accuracy_tables(shown: View, paper: Paper) -> list[Table]:
    """A table for each set of questions that was asked; none where none was."""
    rows = [
        {**row, "arm": run.arm, "seed": run.seed}
        for arm in shown.arms
        for run in shown.runs(arm)
        for row in run.tasks
    ]
    asked = dict.fromkeys(load.text(row, "questions") for row in rows)
    return [
        _table(
            [row for row in rows if load.text(row, "questions") == questions],
            paper,
            "tasks" if number == 0 else f"tasks_{number + 1}",
        )
        for number, questions in enumerate(asked)
    ]


def _table(rows: Sequence[Record], paper: Paper, name: str) -> Table:
    specs = list(dict.fromkeys(load.text(row, "spec") for row in rows))
    ordered = sorted(rows, key=lambda row: specs.index(load.text(row, "spec")))
    scores = load.child(ordered[0], "scores")
    tasks = tuple(scores)
    counts = ", ".join(
        f"{task} {load.number(load.child(scores, task), 'num_documents') or 0:,.0f} "
        f"({load.text(load.child(scores, task), 'split')}, "
        f"chance {load.number(load.child(scores, task), 'chance') or 0:.3f})"
        for task in tasks
    )
    eight = load.number(ordered[0], "avg") is not None
    header = ["Precision", "Arm", "Seed", "Placement", *tasks]
    caption = (
        "Zero-shot accuracy, a fraction: acc_norm where lm-evaluation-harness has it, "
        f"else acc. Documents: {counts}."
    )
    if eight:
        header += ["average", "without boolq", "change from FP", "paper's average"]
        ends = ordered[0].get("avg_collapsed")
        lo, hi = load.numbers({"ends": ends}, "ends")
        caption += (
            f" Average: ± standard error over documents; a model that always gives the "
            f"same answer to boolq and guesses the rest has {lo:.3f} or {hi:.3f}, and "
            "below that an order means nothing. Change: 95 % interval of a paired "
            "bootstrap over documents. The paper's models have "
            f"{paper.num_params / 1e6:.0f} M parameters."
        )
    return Table(
        name=name,
        title="Accuracy on tasks",
        caption=caption,
        header=tuple(header),
        lines=[_line(row, tasks, paper, eight) for row in ordered],
    )


def _line(row: Record, tasks: Sequence[str], paper: Paper, eight: bool) -> Line:
    arm, spec = str(row["arm"]), load.text(row, "spec") or ""
    dtype = load.text(row, "compute_dtype")
    label = f"FP, {dtype}" if spec == "FP" else spec
    stream = load.text(row, "stream") or ""
    cells = [
        tables.plain_cell("precision", label),
        tables.arm_cell(arm),
        tables.value_cell("seed", load.number(row, "seed")),
        tables.plain_cell("stream", view.STREAMS.get(stream, stream)),
        *(tables.value_cell(task, load.number(row, task), ".3f") for task in tasks),
    ]
    if eight:
        average, error = load.number(row, "avg"), load.number(row, "avg_se")
        theirs = [
            found
            for table in paper.tables
            if (found := paper.accuracy(table, arm, spec)) is not None
        ]
        cells += [
            Cell(
                text=f"{average:.3f} ± {error:.3f}",
                data={"avg": average, "avg_se": error},
            ),
            tables.value_cell(
                "avg_without_boolq", load.number(row, "avg_without_boolq"), ".3f"
            ),
            _change(row),
            tables.value_cell("paper_avg", theirs[0], ".3f")
            if theirs
            else Cell(text="not in the paper", data={}, mark="quiet"),
        ]
    return Line(cells=cells, group=label, arm=arm)


def _change(row: Record) -> Cell:
    fields = ("avg_change", "avg_change_lo", "avg_change_hi")
    change, lo, hi = (load.number(row, field) for field in fields)
    if change is None or lo is None or hi is None:
        return tables.value_cell("avg_change", None)
    return Cell(
        text=f"{tables.signed(change)} [{tables.signed(lo)}, {tables.signed(hi)}]",
        data=dict(zip(fields, (change, lo, hi), strict=True)),
    )
