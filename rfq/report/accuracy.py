"""Tables of accuracies on tasks, and of the differences between arms."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rfq import rows as rows_lib
from rfq.report import paper, view
from rfq.report.arms import arm_label
from rfq.report.cells import MISSING, Cell, Line, Table, Value, cell, table
from rfq.report.estimates import Estimate
from rfq.report.evidence import Evidence
from rfq.report.view import View
from rfq.stats import bootstrap

# What records of two arms share where they answer to the same question.
_ASKED = [*rows_lib.Setting._fields, "seed"]


class _Asked(NamedTuple):
    """What one record of tasks.jsonl says, and what it says of each task."""

    row: dict[str, Any]
    scores: dict[str, dict[str, Any]]


def tasks(evidence: Evidence) -> Iterator[Table]:
    """Make for each set of questions a table of the arms, and of their differences."""
    shown = evidence.shown
    ranks = {arm: rank for rank, arm in enumerate(shown.arms)}
    every = shown.results.tasks.sort(
        pl.col("arm").replace_strict(ranks, default=0), maintain_order=True
    )
    asked = every["questions"].unique(maintain_order=True).to_list()
    for number, questions in enumerate(asked, start=1):
        suffix = "" if number == 1 else f"_{number}"
        mine = every.filter(pl.col("questions").eq_missing(pl.lit(questions)))
        records = [
            _Asked(lines.row(0, named=True), {x["task"]: x for x in lines.to_dicts()})
            for lines in mine.partition_by("arm", *_ASKED, maintain_order=True)
        ]
        yield _accuracies(evidence, records, suffix)
        if mine["arm"].n_unique() > 1:
            yield _differences(shown, records, suffix)


def _named(row: Mapping[str, Any], shown: View) -> dict[str, Value]:
    """Name a record: its precision, with what of its setting is not the page's."""
    stream, draw = row["stream"] or "", row["calibration_seed"]
    pairs = zip(rows_lib.COMMON, shown.setting, strict=True)
    parts = [row[name] or MISSING for name, common in pairs if row[name] != common]
    label = ", ".join([row["spec"], *parts, *([f"draw {draw}"] if draw else [])])
    return {
        "precision": f"FP, {row['compute_dtype']}" if row["spec"] == "FP" else label,
        "arm": row["arm"],
        "seed": row["seed"],
        "stream": view.PLACEMENTS.get(stream, stream),
    }


def _by_precision(lines: Sequence[Line]) -> list[Line]:
    """Put lines of one precision together, in the order in which they were asked."""
    order = list(dict.fromkeys(line["precision"] for line in lines))
    return sorted(lines, key=lambda line: order.index(line["precision"]))


def _accuracies(evidence: Evidence, records: Sequence[_Asked], suffix: str) -> Table:
    printed, first = paper.load(), records[0]
    theirs = {arm: each for each, arm in evidence.counterparts().items()}
    averaged = first.row["avg"] is not None
    lines = []
    for row, scores in records:
        beside = printed.scores(theirs.get(row["arm"]), row["spec"])
        line = _named(row, evidence.shown)
        for task, score in scores.items():
            level = score["chance"], score["se"]
            line[task] = _accuracy(task, score["accuracy"], level, beside)
        if averaged:
            collapsed = (row["avg_collapsed"] or [None])[-1], row["avg_se"]
            line["avg"] = _accuracy("avg", row["avg"], collapsed, beside)
            line["avg_without_boolq"] = row["avg_without_boolq"]
            ends = row["avg_change_lo"], row["avg_change_hi"]
            known = None not in ends
            line["avg_change"] = Estimate(row["avg_change"], *ends) if known else None
        lines.append(line)
    more = [[t, f"{t}, {score['split']}", ".3f"] for t, score in first.scores.items()]
    if averaged:
        more += [
            ["avg", "average", ".3f"],
            ["avg_without_boolq", "without boolq", ".3f"],
            ["avg_change", "change from FP", "signed"],
        ]
    counted = [
        f"{task} {cell(score['num_documents'], '', ',.0f').text}"
        for task, score in first.scores.items()
    ]
    bits = [row["weight_bits"] for row, _ in records if row["act_bits"] is not None]
    widths = {"_a" if b is None else f"_w{b}" for b in bits if averaged}
    stands = paper.words()["tables"]["beside_the_paper"]["stands_for"]
    return table(
        "tasks",
        [*_by_precision(lines), *_levels(first)],
        more,
        suffix=suffix,
        stands_for=[n for width in stands if width in widths for n in stands[width]],
        documents=", ".join(counted),
        truncated=sum(score["num_truncated"] or 0 for score in first.scores.values()),
        params=printed.setting["num_params"] / 1e6,
    )


def _accuracy(
    name: str,
    value: float | None,
    guessed: tuple[float | None, float | None],
    theirs: Mapping[str, float],
) -> Value:
    """Return ours, marked where it may be guessed (level, error), and the paper's."""
    if value is None:
        return None
    level, error = guessed
    text, data = f"{value:.3f}", {name: value, f"{name}_se": error}
    if name == "avg" and error is not None:
        text += f" ± {error:.3f}"
    is_guessed = level is not None and error is not None and value < level + 2 * error
    text += " †" if is_guessed else ""
    if name in theirs:
        text += f" / {theirs[name]:.3f}"
        data[f"paper_{name}"] = theirs[name]
    return Cell(text, data, "quiet" if is_guessed else "")


def _levels(asked: _Asked) -> list[Line]:
    """Return what guessing has and, of the eight tasks, what collapsed models have."""
    names = ("arm", "seed", "stream", "avg_change")
    blank: dict[str, Value] = dict.fromkeys(names, Cell("", {}))
    chance = {task: score["chance"] for task, score in asked.scores.items()}
    if asked.row["avg"] is None:
        return [{"precision": "chance", **blank, **chance}]
    others = [value for task, value in chance.items() if task != "boolq"]
    whole = None if None in others else float(np.mean(others))
    averages = {"avg": asked.row["avg_chance"], "avg_without_boolq": whole}
    levels: list[Line] = [{"precision": "chance", **blank, **chance, **averages}]
    ends = [asked.scores["boolq"][f"constant_{end}"] for end in ("lo", "hi")]
    collapsed = asked.row["avg_collapsed"] or (None, None)
    return levels + [
        {**levels[0], "precision": "collapsed", "boolq": boolq, "avg": average}
        for boolq, average in zip(ends, collapsed, strict=True)
    ]


def _differences(shown: View, records: Sequence[_Asked], suffix: str) -> Table:
    names = list(records[0].scores)
    averaged = ["avg"] if records[0].row["avg"] is not None else []
    every = [(asked.row, _right(asked, shown)) for asked in records]
    lines = []
    for (before, theirs), (after, ours) in itertools.combinations(every, 2):
        if before["arm"] == after["arm"] or any(before[f] != after[f] for f in _ASKED):
            continue
        found = {
            task: [ours[task] - theirs[task]]
            for task in names
            if task in ours and task in theirs
        }
        whole = [each for items in found.values() for each in items]
        found |= dict.fromkeys(averaged, whole if len(found) == len(names) else [])
        line = _named(after, shown) | {"against": arm_label(before["arm"])}
        for key in (*names, *averaged):
            if items := found.get(key, []):
                mean = float(np.mean([np.mean(each) for each in items]))
                line[key] = Estimate(mean, *bootstrap.stratified_interval(items))
        lines.append(line)
    more = [[task, task, "signed"] for task in names]
    more += [["avg", "average", "signed"] for _ in averaged]
    made = table("tasks_arms", _by_precision(lines), more)
    return dataclasses.replace(made, name=f"tasks{suffix}_arms")


def _right(asked: _Asked, shown: View) -> dict[str, np.ndarray]:
    """Return by task 1.0 for each document answered rightly; empty without the file."""
    row = asked.row
    found: dict[str, list[float]] = {}
    for run in shown.runs(row["arm"]):
        if run.seed == row["seed"] and row["items"]:
            for item in rows_lib.lines(run.home / "quantize" / "items" / row["items"]):
                right = item.get(asked.scores[item["task"]]["primary"]) is True
                found.setdefault(item["task"], []).append(float(right))
    return {task: np.array(right) for task, right in found.items()}
