"""Figures of activations by layer: moments, histograms, and how they change."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from rfq.report import figures, load, style, tables, view
from rfq.report.figures import Figure, Panel
from rfq.report.load import Record, Run
from rfq.report.view import View


def kurtosis_layers_figure(
    shown: View, *, sites: Sequence[str], name: str, title: str
) -> Figure:
    """Kurtosis by layer at the end of training, one panel a site."""
    looks = style.looks(shown.arms)
    ends = {arm: shown.ends(arm) for arm in shown.arms}

    def curve(arm: str, site: str) -> list[float | None]:
        found = [view.layer_kurtosis(end, site) for end in ends[arm]]
        depth = max(map(len, found), default=0)
        means = []
        for layer in range(depth):
            at = [f[layer] for f in found if len(f) > layer and f[layer] is not None]
            means.append(
                statistics.fmean([k for k in at if k is not None]) if at else None
            )
        return means

    def panel(site: str) -> Panel | None:
        curves = {arm: curve(arm, site) for arm in shown.arms}
        curves = {
            arm: values
            for arm, values in curves.items()
            if any(value is not None for value in values)
        }
        if not curves:
            return None

        def draw(ax: Axes) -> None:
            marks, seen = [], []
            for arm, values in curves.items():
                x, y = figures.finite(range(1, len(values) + 1), values)
                figures.line(ax, looks[arm], arm, x, y)
                loss = shown.full_loss(arm).value
                tail = tables.MISSING if loss is None else f"{loss:.2f}"
                text = f"{style.short_label(arm)}\nloss {tail}"
                marks.append(figures.End(arm, x[-1], y[-1], text))
                seen += y
            figures.symlog(ax, figures.KURTOSIS_LINEAR, seen)
            figures.layer_axis(ax, max(map(len, curves.values())))
            ax.set_ylabel("excess kurtosis")
            figures.label_ends(ax, shown, marks)

        return Panel(site, f"{view.BLOCK_SITES[site]} ({site})", draw)

    panels = [made for site in sites if (made := panel(site)) is not None]
    return Figure(
        name=name,
        title=title,
        guide=(
            "0 is Gaussian; mean over seeds. Each arm's held-out loss stands beside "
            "its name. The final norm's input is in the table below, apart from the "
            "blocks."
        ),
        panels=panels,
        missing="" if panels else "no finished run measured these sites",
    )


def middle_layer(depth: int) -> int:
    """The index of the layer at two thirds: the paper's 16 of 24."""
    return max(0, round(2 * depth / 3) - 1)


class Histogram(NamedTuple):
    """A standardized activation histogram: densities between edges."""

    edges: np.ndarray
    density: np.ndarray
    layer: int
    depth: int
    excess_kurtosis: float | None


def histogram(run: Run, site: str) -> Histogram | None:
    """The middle layer's histogram of a site, or None where the run has none.

    Edges in units of the bins' scale become edges of (x - mean) / standard deviation.
    """
    record = load.child(run.statistics, "sites", site)
    edges, layers = run.statistics.get("edges"), record.get("counts")
    if not isinstance(edges, list) or not isinstance(layers, list) or not layers:
        return None
    index = middle_layer(len(layers))
    counts = np.asarray(layers[index], np.float64)
    fields = ("center", "scale", "mean", "rms")
    center, scale, mean, rms = (_at(record, field, index) for field in fields)
    if center is None or scale is None or mean is None or rms is None:
        return None
    if not rms > abs(mean):
        return None
    bounds = center + scale * np.asarray(edges, np.float64)
    bounds = (bounds - mean) / math.sqrt(rms**2 - mean**2)
    if counts.shape != (bounds.size - 1,) or not counts.sum() > 0:
        return None
    density = counts / counts.sum() / np.diff(bounds)
    kurtosis = _at(record, "excess_kurtosis", index)
    return Histogram(bounds, density, index + 1, len(layers), kurtosis)


def _at(record: Record, field: str, index: int) -> float | None:
    values = load.numbers(record, field)
    return values[index] if len(values) > index else None


def histogram_figure(shown: View) -> Figure:
    """Standardized activations of a middle layer, one panel an arm."""
    looks = style.looks(shown.arms)
    site = "attn_norm_in"
    found = {
        arm: made
        for arm in shown.arms
        for run in shown.runs(arm)[:1]
        if (made := histogram(run, site)) is not None
    }
    reach = 6.0
    for made in found.values():
        hit = np.flatnonzero(made.density)
        far = max(-made.edges[hit[0]], made.edges[hit[-1] + 1])
        if np.isfinite(far):
            reach = max(reach, min(float(far), 40.0))
    floor = min(
        (made.density[made.density > 0].min() for made in found.values()), default=1e-6
    )

    def panel(arm: str, made: Histogram) -> Panel:
        kurtosis = (
            tables.MISSING
            if made.excess_kurtosis is None
            else tables.kurtosis_text(made.excess_kurtosis)
        )
        loss = shown.full_loss(arm).value
        beside = tables.MISSING if loss is None else f"{loss:.2f}"

        def draw(ax: Axes) -> None:
            x = np.linspace(-reach, reach, 400)
            gauss = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
            ax.stairs(
                np.where(made.density > 0, made.density, np.nan),
                made.edges,
                fill=True,
                baseline=floor / 2,
                color=looks[arm].light,
                alpha=0.75,
                gid=figures.tag(arm),
            )
            ax.plot(x, gauss, color=style.INK["ink"], linewidth=1.1, linestyle=":")
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(figures.power))
            ax.set_ylim(floor / 2, 2.0)
            ax.set_xlim(-reach, reach)
            ax.set_xlabel("(activation − mean) / standard deviation")
            ax.set_ylabel("density")
            # In the title's second line: the numbers that the shape is about.
            ax.annotate(
                f"layer {made.layer} of {made.depth}",
                xy=(0.02, 0.98),
                xycoords="axes fraction",
                va="top",
                fontsize=8,
                color=style.INK["muted"],
            )

        title = f"{view.arm_label(arm)}: γ = {kurtosis}, loss {beside}"
        return Panel(arm, title, draw, labelled=False)

    panels = [panel(arm, made) for arm, made in found.items()]
    absent = [arm for arm in shown.arms if arm not in found]
    return Figure(
        name="histograms",
        title="Activations of a middle layer",
        guide=(
            "The attention norm's input, standardized; γ is its excess kurtosis. "
            "Dotted: a Gaussian. The density axis is logarithmic, so color outside the "
            "dotted curve is tail that stretches the min-max grid; axes are the same "
            "for all arms. First seed."
        ),
        panels=panels,
        missing="" if panels else "no statistics.json in any run",
        notes=[
            f"{view.arm_label(arm)}: histogram missing." for arm in absent if panels
        ],
    )
