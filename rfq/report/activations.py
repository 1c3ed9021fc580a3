"""Figures of activations by layer: moments, histograms, and how they change."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from rfq.report import figures, load, style, tables, view
from rfq.report.figures import Figure, Panel
from rfq.report.load import Record
from rfq.report.paper import Paper
from rfq.report.view import View

# Statistic -> its axis, and the value below which the axis is linear.
LAYER_STATISTICS: Mapping[str, tuple[str, float]] = {
    "excess_kurtosis": ("excess kurtosis", figures.KURTOSIS_LINEAR),
    "negentropy": ("negentropy, nats", 0.05),
}


def layers_figure(
    shown: View,
    field: str,
    *,
    sites: Sequence[str],
    name: str,
    title: str,
    stands_for: Sequence[str] = (),
) -> Figure:
    """A row of LAYER_STATISTICS by layer at the end of training, one panel a site."""
    label, linear = LAYER_STATISTICS[field]

    def named(arm: str) -> str:
        loss = shown.full_loss(arm).value
        beside = tables.MISSING if loss is None else f"{loss:.2f}"
        return f"{view.arm_label(arm)}, loss\u00a0{beside}"

    def panel(site: str) -> Panel | None:
        found = {
            arm: points
            for arm in shown.arms
            if (
                points := [
                    (layer, e)
                    for layer, e in enumerate(
                        view.by_layer(shown.ends(arm), site, field), start=1
                    )
                    if e.value is not None
                ]
            )
        }
        if not found:
            return None

        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found)
            figures.symlog(ax, linear, figures.heights(found))
            figures.layer_axis(ax, int(max(x for at in found.values() for x, _ in at)))
            ax.set_ylabel(label)
            marks = [end._replace(text=named(end.arm)) for end in ends]
            figures.label_ends(ax, shown, marks)

        return Panel(site, f"{view.BLOCK_SITES[site]} ({site})", draw)

    panels = [made for site in sites if (made := panel(site)) is not None]
    return Figure(
        name=name,
        title=title,
        guide=(
            f"0 is Gaussian; linear below {linear:g}; mean over seeds, and a band of "
            "one standard deviation where there are several. Each arm's held-out loss "
            "stands beside its name. The final norm's input is in a table, apart from "
            "the blocks."
        ),
        panels=panels,
        missing="" if panels else "no finished run measured these sites",
        stands_for=stands_for,
    )


def middle_layer(depth: int) -> int:
    """The index of the layer at two thirds: the paper's 16 of 24."""
    return max(0, round(2 * depth / 3) - 1)


# Standard deviations that histograms show at least and at most.
REACH = (6.0, 40.0)


class Histogram(NamedTuple):
    """A standardized activation histogram: densities between edges."""

    edges: np.ndarray
    density: np.ndarray
    layer: int
    depth: int
    excess_kurtosis: float | None


def histogram(
    measured: Record, site: str, layer_of: Callable[[int], int]
) -> Histogram | None:
    """One layer's histogram of a site, or None where there is none.

    Edges in units of the bins' scale become edges of (x - mean) / standard deviation.

    Args:
        measured: statistics.json, or a record of measures.jsonl.
        site: one of its sites.
        layer_of: number of layers -> index of the one that is meant.
    """
    record = load.child(measured, "sites", site)
    edges, layers = measured.get("edges"), record.get("counts")
    if not isinstance(edges, list) or not isinstance(layers, list) or not layers:
        return None
    index = layer_of(len(layers))
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
    looks = style.looks(shown)
    site = "attn_norm_in"
    found = {
        arm: made
        for arm in shown.arms
        for run in shown.runs(arm)[:1]
        if (made := histogram(run.statistics, site, middle_layer)) is not None
    }
    reach = _reach(found.values())
    floor = min(
        (made.density[made.density > 0].min() for made in found.values()), default=1e-6
    )

    def panel(arm: str, made: Histogram) -> Panel:
        kurtosis = _gamma(made)
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
        stands_for=("Figure 4",),
        notes=[
            f"{view.arm_label(arm)}: histogram missing." for arm in absent if panels
        ],
    )


def _gamma(made: Histogram) -> str:
    kurtosis = made.excess_kurtosis
    return tables.MISSING if kurtosis is None else tables.kurtosis_text(kurtosis)


def _reach(histograms: Iterable[Histogram]) -> float:
    """Standard deviations to both sides that show them all, up to a limit."""
    least, most = REACH
    for made in histograms:
        hit = np.flatnonzero(made.density)
        far = max(-made.edges[hit[0]], made.edges[hit[-1] + 1])
        if np.isfinite(far):
            least = max(least, min(float(far), most))
    return least


# Columns of the figure of histograms over training.
EVOLUTION_STEPS = 4


def evolution_figure(shown: View, paper: Paper) -> Figure:
    """Histograms of all arms by layer and step, as the paper's figures 7 to 9."""
    looks = style.looks(shown)
    layers = sorted({entry.layer for entry in paper.kurtosis})
    found: dict[tuple[int, float], dict[str, Histogram]] = {}
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            for measure in run.measures:
                step = load.number(measure, "step")
                for layer in layers:
                    made = histogram(
                        measure,
                        "attn_norm_in",
                        lambda depth, at=layer: (
                            tables.same_depth(at, paper.num_layers, depth) - 1
                        ),
                    )
                    if made is not None and step is not None:
                        found.setdefault((layer, step), {})[arm] = made
    steps = sorted({step for _, step in found})
    last = len(steps) - 1
    reach = _reach(made for arms in found.values() for made in arms.values())
    columns = {steps[round(i * last / 3)] for i in range(EVOLUTION_STEPS) if steps}

    def panel(layer: int, step: float) -> Panel:
        arms = found[layer, step]

        def draw(ax: Axes) -> None:
            ends = []
            for arm, made in arms.items():
                density = np.where(made.density > 0, made.density, np.nan)
                ax.stairs(
                    density,
                    made.edges,
                    baseline=None,
                    color=looks[arm].light,
                    linestyle=looks[arm].line,
                    linewidth=1.3,
                    gid=figures.tag(arm),
                )
                last = np.flatnonzero(made.density)[-1]
                x = min(float(made.edges[last + 1]), reach)
                gamma = _gamma(made)
                text = f"{view.arm_label(arm)} γ\u00a0{gamma}"
                ends.append(figures.End(arm, x, float(made.density[last]), text))
            x = np.linspace(-reach, reach, 400)
            gauss = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
            ax.plot(x, gauss, color=style.INK["ink"], linewidth=1.0, linestyle=":")
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(figures.power))
            ax.set_ylim(1e-6, 3.0)
            ax.set_xlim(-reach, reach)
            ax.set_xlabel("(activation − mean) / standard deviation")
            ax.set_ylabel("density")
            figures.label_ends(ax, shown, ends)

        where = {f"layer {made.layer} of {made.depth}" for made in arms.values()}
        if len(where) > 1:
            where = {f"at {layer}/{paper.num_layers} of each depth"}
        title = f"{where.pop()}, step {step:,.0f}"
        return Panel(f"layer{layer}_step{step:.0f}", title, draw)

    panels = [
        panel(layer, step)
        for layer in layers
        for step in sorted(columns)
        if (layer, step) in found
    ]
    drawn = [found[key] for key in found if key[1] in columns]
    absent = {arm: sum(arm not in arms for arms in drawn) for arm in shown.arms}
    return Figure(
        name="histograms_training",
        title="Activations over training",
        guide=(
            "The attention norm's input, standardized, at the paper's relative depths "
            f"(layers {', '.join(map(str, layers))} of {paper.num_layers}), first "
            "seed; γ is the excess kurtosis. Dotted: a Gaussian. Color beyond it is "
            "tail."
        ),
        panels=panels,
        missing=""
        if panels
        else "no histogram counts in measures.jsonl; runs record them from now on",
        notes=[
            f"{view.arm_label(arm)}: missing in {count} of {len(drawn)} panels."
            for arm, count in absent.items()
            if count and panels
        ],
        stands_for=("Figure 6", "Figure 7", "Figure 8", "Figure 9"),
    )
