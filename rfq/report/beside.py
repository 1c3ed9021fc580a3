"""Tables of the paper's own numbers, alone and beside ours."""

import itertools
from collections.abc import Mapping
from typing import Any

from rfq.report import paper, tables, view
from rfq.report.arms import arm_label
from rfq.report.cells import NOT_PRINTED, Cell, Table, Value, table
from rfq.report.evidence import Evidence

ABSENT = Cell(NOT_PRINTED, {}, "quiet")


def beside(evidence: Evidence, weight_bits: int | None) -> Table:
    """Make our loss increase and the paper's change of accuracy, row by row."""
    shown, printed, ours = evidence.shown, paper.load(), evidence.counterparts()
    name = {None: "table4", 16: "table3"}.get(weight_bits, "table2")
    quantized = [
        p for p in shown.precisions if p.act_bits and p.weight_bits == weight_bits
    ]
    reference = [shown.reference] if shown.reference else []
    theirs = dict.fromkeys(row["arm"] for row in printed.tables["table2"])
    lines = []
    for precision, each in itertools.product([*reference, *quantized], theirs):
        arm, full = ours.get(each), precision == shown.reference
        table_of = "table4" if full else name
        there = printed.scores(each, precision.name, table_of).get("avg")
        first = printed.scores(each, "FP", table_of).get("avg")
        change: Value = ABSENT
        if there is not None and first is not None:
            change = Cell("reference", {}, "quiet") if full else round(there - first, 6)
        line: dict[str, Value] = {
            "precision": precision.name,
            "arm": arm,
            "our_loss": shown.loss(arm, precision, "branch") if arm else None,
            "paper_arm": arm_label(each),
            "paper_accuracy": ABSENT if there is None else there,
            "paper_accuracy_change": change,
        }
        for stream in view.PLACEMENTS:
            found = tables.increase(shown, arm, precision, stream, "our_")
            line[f"our_loss_increase_{stream}"] = found
        lines.append(line)
    return table(
        "beside_the_paper",
        lines,
        suffix="_a" if weight_bits is None else f"_w{weight_bits}",
        weights="weights FP" if weight_bits is None else f"{weight_bits}-bit weights",
        params=printed.setting["num_params"] / 1e6,
    )


def as_printed(name: str) -> Table:
    """Make one of the paper's Tables 1 to 4, as printed."""
    printed = paper.load()
    rows = printed.tables[name]
    order = list(dict.fromkeys(row["spec"] for row in rows))
    lines = [
        {**row, "precision": "BF16" if row["spec"] == "FP" else row["spec"]}
        for row in sorted(rows, key=lambda row: order.index(row["spec"]))
    ]
    more = [[task, task, ".3f"] for task in printed.tasks]
    return table(
        "paper",
        lines,
        [*more, ["avg", "average", ".3f"]],
        suffix=f"_{name}",
        is_printed=True,
        title=printed.table_titles[name],
        params=printed.setting["num_params"] / 1e6,
        steps=printed.setting["num_steps"],
        source=printed.source,
        license=printed.license,
    )


def paper_kurtosis(evidence: Evidence) -> Table:
    """Make the kurtosis that the paper states, and ours at the same relative depth."""
    shown, printed = evidence.shown, paper.load()
    ours, lines = evidence.counterparts(), []
    for entry in printed.kurtosis:
        arm = ours.get(entry["arm"])
        found = shown.by_layer(arm, view.STREAM, "excess_kurtosis") if arm else []
        layer = view.same_depth(entry["layer"], len(found)) if found else None
        lines.append(
            {
                "arm": arm,
                "paper_arm": arm_label(entry["arm"]),
                "paper_layer": entry["layer"],
                "where": entry["where"],
                "paper_excess_kurtosis": entry["excess_kurtosis"],
                "our_layer": layer,
                "our_excess_kurtosis": found[layer - 1] if layer else None,
                "our_loss": shown.full_loss(arm) if arm else None,
            }
        )
    return table("paper_kurtosis", lines, steps=printed.setting["num_steps"])


def costs(evidence: Evidence) -> Table:
    """Make the speed and the memory of each arm, beside the paper's (appendix D)."""
    shown, base = evidence.shown, "residual_adamw"
    printed = {cost["arm"]: cost for cost in paper.load().costs}
    ours = evidence.counterparts()
    theirs = {arm: each for each, arm in ours.items()}
    speeds = {arm: shown.speed(arm) for arm in shown.arms}
    ours_base = speeds.get(ours.get(base, ""))
    paper_base = printed[base]["steps_per_second"]
    pairs: list[tuple[Any, Any]] = [(arm, theirs.get(arm)) for arm in shown.arms]
    pairs += [(None, each) for each in printed if each not in ours]
    lines = []
    for arm, each in pairs:
        speed, cost = speeds.get(arm), printed.get(each)
        line: dict[str, Value] = {
            "arm": arm,
            "steps_per_second": speed,
            "speed_ratio": speed / ours_base if speed and ours_base else None,
        }
        for name in ("state", "peak"):
            held = shown.memory(arm, f"{name}_bytes")
            line[f"{name}_mb"] = None if held is None else held / 1e6
        beside: Mapping[str, Value] = dict.fromkeys(
            ("paper_arm", "paper_steps_per_second", "paper_speed_ratio", "paper_mb"),
            ABSENT,
        )
        if cost:
            paper_speed = cost["steps_per_second"]
            beside = {
                "paper_arm": arm_label(each),
                "paper_steps_per_second": paper_speed,
                "paper_speed_ratio": paper_speed / paper_base,
                "paper_mb": cost["memory_mb"],
            }
        lines.append({**line, **beside})
    return table("costs", lines)
