"""Figures of the law of rounding: predicted errors beside those that were measured."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from rfq.quant import propagation
from rfq.report import panels, view
from rfq.report.panels import Reference, lines
from rfq.report.render import Panel
from rfq.report.view import View

LAW_BITS = (8, 7, 6, 5)  # Where the activations' rounding is most of the error.


def prediction(shown: View) -> Iterator[Panel | None]:
    """Draw the measured error at the head against the law's prediction (D119)."""
    kept = shown.rows.frame.filter(pl.col("predicted_error") > 0)
    known = kept.sort("act_bits").with_columns(x="predicted_error", y="relative_error")
    ends = [known["x"].min(), known["x"].max()] if len(known) else []
    for (bits, stream), points in known.partition_by(
        "weight_bits", "stream", as_dict=True, maintain_order=True
    ).items():
        name, place = f"{bits}_{stream}", view.PLACEMENTS[str(stream)]
        title = f"{panels.weights(bits)}, stream {place}"
        curve: Any = (ends, ends)
        yield lines(
            shown, name, title, points, panels.PREDICTED, panels.ENERGY, curve=curve
        )


def depth(shown: View) -> Iterator[Panel | None]:
    """Draw how many sites' errors arrive at the head, against the layers (D120)."""
    eight = pl.col("act_bits") == 8, pl.col("nmse") > 0
    kept = shown.rows.frame.filter(*eight, pl.col("num_layers") > 0)
    known = kept.sort("num_layers").with_columns(
        x=pl.col("num_layers").cast(pl.Float64),
        y=pl.col("relative_error") / pl.col("nmse"),
    )
    ends = [0.0, known["x"].max()] if len(known) else []
    curve: Any = (ends, [4.0 * end for end in ends])
    for (bits, stream), points in known.partition_by(
        "weight_bits", "stream", as_dict=True, maintain_order=True
    ).items():
        name, place = f"{bits}_{stream}", view.PLACEMENTS[str(stream)]
        title = f"{panels.weights(bits)}, stream {place}"
        yield lines(shown, name, title, points, panels.DEPTH, panels.SITES, curve=curve)


def crossing(shown: View) -> Iterator[Panel | None]:
    """Draw whether a residual arm loses more than a residual-free one, by the law too.

    A point compares a residual arm with the residual-free arm of its depth that has the
    lowest loss, at one width of LAW_BITS. By the law the ratio of their errors at the
    head is that of the sites' errors times the share of them that arrives (D120).
    """
    numbers = pl.col("loss", "nmse", "relative_error", "loss_increase").mean()
    setting = ["num_layers", "spec", "granularity", "calibrator"]
    kept = shown.rows.frame.filter(
        pl.col("act_bits").is_in(LAW_BITS), pl.col("nmse") > 0, taps="paper"
    )
    by = [*setting, "skip", "stream", "arm"]
    means = kept.group_by(by, maintain_order=True).agg(numbers)
    free = means.filter(skip="residual_free").sort("loss", "arm")
    pairs = means.filter(skip="residual").join(
        free.unique(setting, keep="first"), setting, suffix="_free"
    )
    for (stream,), points in pairs.partition_by(
        "stream", as_dict=True, maintain_order=True
    ).items():
        arrives = [
            propagation.shares("residual", str(stream), layers).mean()
            for layers in points["num_layers"]
        ]
        law = pl.col("nmse") / pl.col("nmse_free") * pl.Series(arrives)
        points = points.with_columns(x=law, seed=0)
        ends: Any = [points["x"].min(), points["x"].max()]
        for of, y in (
            ("relative_error", panels.MORE_ERROR),
            ("loss_increase", panels.MORE_LOSS),
        ):
            yield lines(
                shown,
                f"{of}_{stream}",
                f"residual, {view.PLACEMENTS[str(stream)]}, over residual-free",
                points.with_columns(y=pl.col(of) / pl.col(f"{of}_free")),
                panels.MORE_BY_LAW,
                y,
                [Reference(1.0, "above, the residual arm loses more")],
                curve=(ends, ends),
                joined=False,
            )
