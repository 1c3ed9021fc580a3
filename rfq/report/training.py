"""Tables of what training costs, of ranges and of calibrators."""

import itertools
from collections.abc import Mapping

import polars as pl

from rfq import rows as rows_lib
from rfq.report import tables, view
from rfq.report.cells import (
    MISSING,
    NOT_PRINTED,
    Cell,
    Table,
    Value,
    best,
    table,
    write,
)
from rfq.report.evidence import Evidence
from rfq.report.view import View


def equal_cost(evidence: Evidence) -> Table:
    """Make Figure 3 as data: losses at the steps and seconds that all arms reached."""
    shown = evidence.shown
    trained = [arm for arm in shown.arms if shown.trained(arm)]
    limits = {
        at: min(
            (x for a in trained if (x := shown.last(a, at)) is not None), default=None
        )
        for at in ("step", "seconds")
    }
    measured = shown.results.measures.filter(
        pl.col("step") <= pl.lit(limits["step"], pl.Float64)
    )
    last = measured.unique(["arm", "seed"], keep="last", maintain_order=True)
    heldout = view.estimates(last, ["arm"], "loss")
    lines = [
        {
            "arm": arm,
            "beta": evidence.facts[arm].beta,
            "loss_at_steps": shown.training_loss(arm, "step", limits["step"]),
            "heldout_at_steps": heldout.get((arm,)),
            "loss_at_seconds": shown.training_loss(arm, "seconds", limits["seconds"]),
            "loss": shown.full_loss(arm),
        }
        for arm in shown.arms
    ]
    texts = [MISSING if x is None else f"{x:,.0f}" for x in limits.values()]
    return table("equal_cost", lines, steps=texts[0], seconds=texts[1])


def ranges(shown: View) -> Table:
    """Make the extremes of the stream by layer at every measured step (E.2)."""
    lines = []
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            mine = shown.results.measures.filter(
                pl.col("statistic").is_in(["range_lo", "range_hi"]),
                arm=arm,
                seed=run.seed,
                site=view.STREAM,
            )
            for (step, loss), found in mine.partition_by(
                "step", "loss", as_dict=True
            ).items():
                by = {
                    (name, at): value
                    for name, at, value in found.select(
                        "statistic", "layer", "value"
                    ).rows()
                }
                depth = found["layer"].n_unique()
                cells = [_range(by, layer) for layer in range(1, depth + 1)]
                lines.append(({"arm": arm, "step": step, "loss": loss}, cells))
    return tables.by_layer(shown, "ranges", lines, "")


def _range(by: Mapping[tuple[str, int], float | None], layer: int) -> Value:
    ends = [by.get((name, layer)) for name in ("range_lo", "range_hi")]
    keys = (f"layer_{layer}_lo", f"layer_{layer}_hi")
    if None in ends:
        return Cell(MISSING, dict.fromkeys(keys, MISSING), "missing")
    text = " … ".join(write(end, ".3g") for end in ends if end is not None)
    return Cell(text, dict(zip(keys, ends, strict=True)))


def costs(evidence: Evidence) -> Table:
    """Make the speed and the memory of each arm, beside the paper's (appendix D)."""
    shown, base = evidence.shown, "residual_adamw"
    printed = {cost.arm: cost for cost in evidence.paper.costs}
    ours = evidence.counterparts()
    theirs = {arm: each for each, arm in ours.items()}
    speeds = {arm: shown.speed(arm) for arm in shown.arms}
    ours_base, paper_base = speeds.get(ours.get(base, "")), printed[base]
    pairs: list[tuple[str | None, str | None]] = [
        (a, theirs.get(a)) for a in shown.arms
    ]
    pairs += [(None, each) for each in printed if each not in ours]
    absent = Cell(NOT_PRINTED, {}, "quiet")
    lines = []
    for arm, each in pairs:
        speed, cost = speeds.get(arm or ""), printed.get(each or "")
        line: dict[str, Value] = {
            "arm": arm,
            "steps_per_second": speed,
            "speed_ratio": speed / ours_base if speed and ours_base else None,
        }
        for name in ("state", "peak"):
            held = shown.memory(arm or "", f"{name}_bytes")
            line[f"{name}_mb"] = None if held is None else held / 1e6
        theirs_here: Mapping[str, Value] = (
            {
                "paper_arm": view.arm_label(cost.arm),
                "paper_steps_per_second": cost.steps_per_second,
                "paper_speed_ratio": cost.steps_per_second
                / paper_base.steps_per_second,
                "paper_mb": cost.memory_mb,
            }
            if cost
            else dict.fromkeys(
                (
                    "paper_arm",
                    "paper_steps_per_second",
                    "paper_speed_ratio",
                    "paper_mb",
                ),
                absent,
            )
        )
        lines.append({**line, **theirs_here})
    return table("costs", lines)


def calibrators(shown: View) -> Table:
    """Make the increase of loss by calibrator, where there are several."""
    at = rows_lib.COMMON.index("calibrator")
    views = {
        setting[at] or MISSING: view.of(shown.results, setting)
        for setting in view.settings(shown.results)
        if setting[:at] + setting[at + 1 :]
        == shown.setting[:at] + shown.setting[at + 1 :]
    }
    lines = []
    for precision, arm in itertools.product(shown.precisions, shown.arms):
        if precision.act_bits is None or len(views) < 2:
            continue
        found = {
            name: each.increase(arm, each.precision(precision.name), "branch")
            for name, each in views.items()
        }
        known = [e.value for e in found.values() if e.value is not None]
        if len(known) > 1:
            cells = {
                n: best(e, n) if e.value == min(known) else e for n, e in found.items()
            }
            lines.append({"precision": precision.name, "arm": arm, **cells})
    return table("calibrators", lines, [[name, name, "signed"] for name in views])
