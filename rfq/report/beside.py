"""Tables of the paper's own numbers, alone and beside ours."""

import itertools
from collections.abc import Mapping, Sequence

from rfq.report import tables, view
from rfq.report.cells import NOT_PRINTED, Cell, Table, Value, table
from rfq.report.evidence import Evidence
from rfq.report.paper import Paper

# Weight width -> the paper's tables of it, the complete one last.
PAPER_TABLES: Mapping[int | None, Sequence[str]] = {
    8: ("Table 1", "Table 2"),
    16: ("Table 3",),
    None: ("Table 4",),
}


def beside(evidence: Evidence, weight_bits: int | None) -> Table:
    """Make our loss increase and the paper's change of accuracy, row by row."""
    shown, paper = evidence.shown, evidence.paper
    ours = evidence.counterparts()
    printed = {None: "table4", 16: "table3"}.get(weight_bits, "table2")
    quantized = [
        p for p in shown.precisions if p.act_bits and p.weight_bits == weight_bits
    ]
    reference = [shown.reference] if shown.reference else []
    theirs = dict.fromkeys(row.arm for row in paper.tables["table2"])
    lines = []
    for precision, each in itertools.product([*reference, *quantized], theirs):
        arm, full = ours.get(each), precision == shown.reference
        table_of = "table4" if full else printed
        there = paper.scores(each, precision.name, table_of).get("avg")
        first = paper.scores(each, "FP", table_of).get("avg")
        absent = Cell(NOT_PRINTED, {}, "quiet")
        change: Value = absent
        if there is not None and first is not None:
            change = Cell("reference", {}, "quiet") if full else round(there - first, 6)
        lines.append(
            {
                "precision": precision.name,
                "arm": arm,
                "our_loss": shown.loss(arm, precision, "branch") if arm else None,
                **{
                    f"our_loss_increase_{s}": tables.increase(
                        shown, arm, precision, s, "our_"
                    )
                    for s in view.PLACEMENTS
                },
                "paper_arm": view.arm_label(each),
                "paper_accuracy": absent if there is None else there,
                "paper_accuracy_change": change,
            }
        )
    return table(
        "beside_the_paper",
        lines,
        suffix="_a" if weight_bits is None else f"_w{weight_bits}",
        stands_for=PAPER_TABLES.get(weight_bits, ()),
        weights="weights FP" if weight_bits is None else f"{weight_bits}-bit weights",
        params=paper.num_params / 1e6,
    )


def printed(paper: Paper, name: str) -> Table:
    """Make one of the paper's Tables 1 to 4, as printed."""
    rows = paper.tables[name]
    order = list(dict.fromkeys(row.spec for row in rows))
    lines = [
        {
            "precision": "BF16" if row.spec == "FP" else row.spec,
            "arm": row.arm,
            **row.scores,
        }
        for row in sorted(rows, key=lambda row: order.index(row.spec))
    ]
    more = [*([task, task, ".3f"] for task in paper.tasks), ["avg", "average", ".3f"]]
    return table(
        "paper",
        lines,
        more,
        suffix=f"_{name}",
        stands_for=(f"Table {name.removeprefix('table')}",),
        is_printed=True,
        title=paper.titles[name],
        params=paper.num_params / 1e6,
        steps=paper.num_steps,
        source=paper.source,
        license=paper.license,
    )


def paper_kurtosis(evidence: Evidence) -> Table:
    """Make the kurtosis that the paper states, and ours at the same relative depth."""
    shown, paper = evidence.shown, evidence.paper
    ours, lines = evidence.counterparts(), []
    for entry in paper.kurtosis:
        arm = ours.get(entry.arm)
        found = shown.by_layer(arm, view.STREAM, "excess_kurtosis") if arm else []
        layer = (
            view.same_depth(entry.layer, paper.num_layers, len(found))
            if found
            else None
        )
        lines.append(
            {
                "arm": arm,
                "paper_arm": view.arm_label(entry.arm),
                "paper_layer": entry.layer,
                "where": entry.where,
                "paper_excess_kurtosis": entry.excess_kurtosis,
                "our_layer": layer,
                "our_excess_kurtosis": found[layer - 1] if layer else None,
                "our_loss": shown.full_loss(arm) if arm else None,
            }
        )
    return table("paper_kurtosis", lines, steps=paper.num_steps)
