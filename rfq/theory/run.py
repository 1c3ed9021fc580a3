"""DRIVER of `rfq theory`: every claim of the paper's theory with a verdict.

PAPER         claim of the paper -> the checks it stands or falls with
CORRECTIONS   our statement where the paper is wrong -> its checks
ROUNDING      our law of what rounding costs -> its checks
OUT/mechanisms.png, .svg, .jsonl    figure 2 of the paper, measured
"""

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes

from rfq import metrics
from rfq.report import render, style
from rfq.theory import (
    activations,
    attention,
    mechanisms,
    mixing,
    residual,
    rounding,
    stack,
    updates,
)
from rfq.theory.check import VERDICTS, Check, Source
from rfq.theory.mechanisms import Curve

Row = dict[str, Any]

Checks = Mapping[str, Callable[[], list[Check]]]

# Every lemma, theorem and constant.
PAPER: Checks = {
    "Definition 1": activations.definition_1,
    "Lemma 1": stack.lemma_1,
    "Lemma 2": mixing.lemma_2,
    "Lemma 3": residual.lemma_3,
    "Lemma 4": updates.lemma_4,
    "Theorem 1": stack.theorem_1,
    "Section 4": attention.section_4,
    "Lemma 5": stack.lemma_5,
    "Lemma 6": mixing.lemma_6,
    "Lemma 7": mixing.lemma_7,
    "Corollary 1": mixing.corollary_1,
    "Appendix C.3": mixing.appendix_c3,
    "Lemma 8": updates.lemma_8,
    "Lemma 9": updates.lemma_9,
    "Lemma 10": updates.lemma_10,
    "Lemma 11": residual.lemma_11,
    "Theorem 2": mixing.theorem_2,
    "Lemma 12": activations.lemma_12,
    "Lemma 13": attention.lemma_13,
    "Lemma 14": attention.lemma_14,
}

# They are named by subject, most important first. None is a statement of the paper.
CORRECTIONS: Checks = {
    "Additions dilute": stack.additions_dilute,
    "Mixing behind phi": mixing.mixing_behind_phi,
    "Gaussian rows": mixing.gaussian_rows,
    "Signs of low rank": updates.signs_of_low_rank,
    "Drift at equal size": updates.drift_at_equal_size,
    "Scores per head": attention.scores_per_head,
    "Grams on the small side": attention.grams_on_the_small_side,
    "Collapse unseen": stack.collapse_unseen,
    "Softmax's limit": attention.softmax_limit,
    "GELU's gain": stack.gelu_gain_falls,
    "Scatter of rows": mixing.scatter_of_rows,
    "Sign of the cross term": updates.sign_of_the_cross_term,
    "Causal averaging": attention.causal_averaging,
}


# The paper says nothing of these, see `rounding`.
ROUNDING: Checks = {
    "Errors add up": rounding.errors_add_up,
    "Ranges of tails": rounding.ranges_of_tails,
    "Crossing": rounding.crossing_of_connections,
}

TABLES: Mapping[Source, Checks] = {
    "paper": PAPER,
    "correction": CORRECTIONS,
    "rounding": ROUNDING,
}


def run(
    *,
    json_path: pathlib.Path | None,
    out: pathlib.Path | None,
    every_check: bool = False,
) -> list[Row]:
    """Make every check of `TABLES` and print the result, a line for each claim.

    Args:
        json_path: a JSON-lines file for the rows that are returned, None for none.
        out: directory for the same rows, theory.jsonl, and for the figure of the two
            mechanisms and its data; None for none.
        every_check: print each check, too, with its numbers.

    Returns:
        `Check.row` of every check, in the order of `TABLES`.
    """
    for directory in (json_path and json_path.parent, out):
        if directory is not None:
            metrics.make_directory(directory)
    rows: list[Row] = []
    claims = [(s, claim) for s, table in TABLES.items() for claim in table]
    with metrics.progress("theory", len(claims)) as shown:
        for number, (source, claim) in enumerate(claims):
            shown.update(number, claim)
            rows += [check.row(claim, source) for check in TABLES[source][claim]()]
        shown.update(len(claims))
    if every_check:
        _say_checks(rows)
    _say_claims(rows)
    for path in (json_path, out and out / "theory.jsonl"):
        if path is not None:
            metrics.rewrite(path, rows)
            metrics.say(f"rows: {path}")
    if out is not None:
        for path in _draw(out):
            metrics.say(f"figure: {path}")
    return rows


_HEADINGS: Mapping[Source, str] = {
    "paper": "statements of the paper",
    "correction": "our corrections",
    "rounding": "our law of rounding",
}


def _say_claims(rows: list[Row]) -> None:
    """Print one line for each claim, and the sum of each source."""
    totals = []
    for source, table in TABLES.items():
        heading = _HEADINGS[source]
        metrics.say(f"{heading:24} {'hold':>5} {'corrected':>9} {'fail':>5}")
        for claim, checks in table.items():
            holds, corrected, fails = _tally(rows, claim=claim)
            about = (checks.__doc__ or "").splitlines()[0]
            metrics.say(f"{claim:24} {holds:5} {corrected:9} {fails:5}  {about}")
        holds, corrected, fails = _tally(rows, source=source)
        totals.append(
            f"{holds + corrected + fails} checks of {heading}: {holds} hold, "
            f"{corrected} hold with a correction, {fails} do not hold."
        )
    for total in totals:
        metrics.say(total)


def _tally(rows: list[Row], **fields: str) -> list[int]:
    """Count how many of the rows with these fields have each verdict."""
    counts = collections.Counter(
        row["verdict"] for row in rows if fields.items() <= row.items()
    )
    return [counts[verdict] for verdict in VERDICTS]


def _say_checks(rows: list[Row]) -> None:
    metrics.say(
        f"{'claim':24} {'predicted':>12} {'measured':>11} {'std. err.':>9}  "
        f"{'verdict':23}  what, and why"
    )
    for row in rows:
        relation = row["relation"] if row["relation"] != "=" else ""
        predicted = f"{relation}{row['predicted']:.5g}"
        metrics.say(
            f"{row['claim']:24} {predicted:>12} {row['measured']:11.5g} "
            f"{row['standard_error']:9.2g}  {row['verdict']:23}  "
            f"{row['where']}: {row['statement']} [{row['why']}]"
        )


# --- The figure of the two mechanisms -------------------------------------------------

_RESIDUAL, _FREE = (
    style.ARMS[arm] for arm in ("residual_adamw", "residual_free_kl_shampoo")
)

# Name of a curve -> its label and look.
_LOOKS: Mapping[str, tuple[str, style.Look]] = {
    "residual": ("residual addition", _RESIDUAL),
    "residual_free": ("dense mixing, residual-free", _FREE),
    "sign": ("sign steps", _RESIDUAL),
    "spectral": ("spectral steps, equal rate", _FREE),
    "spectral_matched": ("spectral steps, equal size", style.SPARE[0]),
}

# Panel -> title, labels of x and y, scales of x and y.
_AXES: Mapping[str, tuple[str, str, str, str, str]] = {
    "kurtosis_by_layer": (
        "Mixing contracts γ at once, adding dilutes it",
        "layer",
        "γ of the stream",
        "linear",
        "symlog",
    ),
    "kurtosis_by_width": (
        "One layer: 1/d for mixing, a limit for adding",
        "width d",
        "γ after the layer",
        "log",
        "log",
    ),
    "drift_by_steps": (
        "Drift from an isometry, width 128",
        "random steps at rate .001",
        "||WWᵀ − I||",
        "log",
        "log",
    ),
    "mean_share_by_layer": (
        "What γ does not see: tokens become alike",
        "layer",
        "share of energy in channel means",
        "linear",
        "linear",
    ),
}


def _panel(name: str, curves: list[Curve]) -> render.Panel:
    title, x_label, y_label, x_scale, y_scale = _AXES[name]

    def draw(ax: Axes) -> None:
        ax.set_xscale(x_scale)
        ax.set_yscale(y_scale, **({"linthresh": 0.1} if y_scale == "symlog" else {}))
        for axis, scale in ((ax.xaxis, x_scale), (ax.yaxis, y_scale)):
            if scale != "linear":
                axis.set_major_formatter("{x:g}")
        measured = {curve.name for curve in curves if not curve.is_predicted}
        for curve in curves:
            label, look = _LOOKS[curve.name]
            y = [estimate.value for estimate in curve.y]
            if curve.is_predicted:
                ax.plot(curve.x, y, color=look.color, linestyle=look.line)
                continue
            ax.errorbar(
                curve.x,
                y,
                yerr=[estimate.standard_error for estimate in curve.y],
                color=look.color,
                linestyle="none" if len(measured) < len(curves) else look.line,
                marker=look.marker,
                markersize=4.0,
                label=label,
            )
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.legend(frameon=False, fontsize=8)

    return render.Panel(name=name, title=title, draw=draw)


def _draw(out: pathlib.Path) -> list[pathlib.Path]:
    drawn = {name: curves() for name, curves in mechanisms.PANELS.items()}
    metrics.rewrite(
        out / "mechanisms.jsonl",
        [
            {
                "panel": panel,
                "curve": curve.name,
                "is_predicted": curve.is_predicted,
                "x": x,
                "y": y.value,
                "standard_error": y.standard_error,
            }
            for panel, curves in drawn.items()
            for curve in curves
            for x, y in zip(curve.x, curve.y, strict=True)
        ],
    )
    figure = render.Figure(
        name="mechanisms",
        title="Mixing against adding",
        guide="Markers are measured, with standard errors; lines are predicted.",
        panels=[_panel(name, curves) for name, curves in drawn.items()],
    )
    return render.write_files(figure, out)
