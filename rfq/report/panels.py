"""Panels: what is drawn on one pair of axes, and how these are scaled."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from rfq.report import style
from rfq.report.estimates import Estimate
from rfq.report.render import Panel
from rfq.report.view import View

# The labels of axes that are not linear, or do not rise to the right. A y axis is
# linear up to the number, which is about the smallest that matters to a reader, and
# logarithmic above.
BITS, LAYER, BY_LOSS = "activation bits", "layer", "held-out loss (learning goes right)"
INCREASE, TRAINING = "increase of loss, nats a token", "training loss, nats a token"
GAMMA, NEGENTROPY = "excess kurtosis", "negentropy, nats"
REACHES, ENERGY = "largest magnitude", "error energy / signal energy"
NMSE, ACCURACY = "mean NMSE over sites", "average zero-shot accuracy"
DENSITY, PREDICTED = "density", "predicted error energy / signal energy"
DEPTH, SITES = "layers", "error at the head / mean error of a site"
MORE_BY_LAW = "error at the head by the law, residual over residual-free"
MORE_ERROR, MORE_LOSS = "measured ratio of errors", "measured ratio of increases"
LINEAR_TO: Mapping[str, float] = {
    INCREASE: 0.01, GAMMA: 1.0, NEGENTROPY: 0.05, REACHES: 0.0, ENERGY: 0.0, NMSE: 0.0,
    DENSITY: 0.0, MORE_ERROR: 0.0, MORE_LOSS: 0.0,
}  # fmt: skip

SHOWN_BITS = (4, 6, 8, 10, 12, 16)
SEED_WIDTH = 0.8  # Line width of the seeds after the first.
REACH = (6.0, 40.0)  # Standard deviations that histograms show at least and at most.


class Reference(NamedTuple):
    """A dotted horizontal line with its name above the left end."""

    y: float | None
    text: str = ""
    color: str = style.INK["muted"]

    def draw(self, ax: Axes) -> None:
        """Draw it, if it is known."""
        if self.y is not None:
            ax.axhline(self.y, color=self.color, linewidth=1.0, linestyle=":")
            where, of = ("axes fraction", "data"), "offset points"
            how: dict[str, Any] = {"color": self.color, "fontsize": 8}
            ax.annotate(self.text, (0.01, self.y), (0, 2), where, of, **how)


def _plain(axis: Axis) -> None:
    """Write the numbers of an axis out, in place of powers of ten."""

    def text(value: float, _: int = 0) -> str:
        return f"{value:,g}".replace("-", "−")

    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(text))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _axes(ax: Axes, x: str, y: str) -> None:
    """Label the axes and scale them as their labels ask."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    linear = LINEAR_TO.get(y)
    if linear is not None:
        how = {"linthresh": linear, "linscale": 0.6} if linear else {}
        ax.set_yscale("symlog" if linear else "log", **how)
        _plain(ax.yaxis)
    if x in (PREDICTED, MORE_BY_LAW):
        ax.set_xscale("log")
        _plain(ax.xaxis)
    if x == BITS:
        ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(SHOWN_BITS))
    if x == MORE_BY_LAW:  # Less than a decade, as a rule.
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    if x in (LAYER, DEPTH):
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
    if x in (BITS, BY_LOSS):
        ax.invert_xaxis()


def lines(
    shown: View,
    name: str,
    title: str,
    points: pl.DataFrame,
    x: str,
    y: str,
    references: Sequence[Reference] = (),
    *,
    curve: tuple[Sequence[float], Sequence[float]] | None = None,
    marker: bool = True,
    joined: bool = True,
) -> Panel | None:
    """Make a panel of lines; None without a point.

    Args:
        shown: Whose arms they are.
        name: Names the panel in its figure.
        title: Stands above it.
        points: Lines with the columns arm, seed, x and y, and maybe lo and hi, which
            are shaded, and thin, which is drawn thin behind y.
        x: The label of the x axis.
        y: The label of the y axis.
        references: Values of y to compare with.
        curve: The x and y of a dotted curve to compare with.
        marker: Whether points are marked.
        joined: Whether a line joins the points of an arm and seed.
    """
    known = points.filter(pl.col("x").is_finite(), pl.col("y").is_finite())
    parts = known.partition_by("arm", "seed", as_dict=True, maintain_order=True)

    def draw(ax: Axes) -> None:
        looks, seen = style.looks(shown), set()
        for (arm, _), line in parts.items():
            look, tag = looks[str(arm)], style.tag(str(arm))
            how: dict[str, Any] = dict(color=look.color, linestyle=look.line, gid=tag)
            if "thin" in line.columns:
                ax.plot(line["x"], line["thin"], alpha=0.3, linewidth=0.5, **how)
            how["linewidth"] = SEED_WIDTH if arm in seen else None
            if not joined:
                how["linestyle"] = ""
            ax.plot(line["x"], line["y"], marker=look.marker if marker else "", **how)
            if "lo" in line.columns:
                ends = line["lo"].to_numpy(), line["hi"].to_numpy()
                shade: dict[str, Any] = dict(color=look.color, alpha=0.18, gid=tag)
                ax.fill_between(line["x"], *ends, linewidth=0, **shade)
            seen.add(arm)
        for reference in references:
            reference.draw(ax)
        if curve:
            ax.plot(*curve, color=style.INK["muted"], linestyle=":", linewidth=1.2)
        _axes(ax, x, y)

    return None if known.is_empty() else Panel(name, title, draw)


def weights(width: int | None) -> str:
    """Name a width of the weights."""
    return "weights FP" if width is None else f"weights {width} bit"


def means(found: Iterable[tuple[str, float, Estimate]]) -> pl.DataFrame:
    """Make points of arms, places and estimates."""
    points = [(arm, 0, x, e.value, *e.interval) for arm, x, e in found]
    numbers = dict.fromkeys(("x", "y", "lo", "hi"), pl.Float64)
    schema = {"arm": pl.String, "seed": pl.Int64, **numbers}
    return pl.DataFrame(points, schema=schema, orient="row")


# Edges of (x - mean) / standard deviation, and the densities between them.
Density = tuple[np.ndarray, np.ndarray]


def standardized(line: Mapping[str, Any]) -> Density | None:
    """Standardize a line of `Results.histograms`; None where it lacks what it takes."""
    numbers = [line[name] for name in ("center", "scale", "mean", "rms")]
    if None in numbers or line["edges"] is None:
        return None
    center, scale, mean, rms = numbers
    counts, edges = (np.asarray(line[name], np.float64) for name in ("counts", "edges"))
    if not rms > abs(mean) or len(counts) != len(edges) - 1 or not counts.sum() > 0:
        return None
    edges = (center + scale * edges - mean) / math.sqrt(rms**2 - mean**2)
    return edges, counts / counts.sum() / np.diff(edges)


def stairs(
    shown: View, drawn: Mapping[str, Density], reach: float, *, fill: bool
) -> Callable[[Axes], None]:
    """Return what draws histograms of arms beside a Gaussian."""

    def draw(ax: Axes) -> None:
        looks = style.looks(shown)
        for arm, (edges, density) in drawn.items():
            ax.stairs(
                np.where(density > 0, density, np.nan),
                edges,
                fill=fill,
                baseline=1e-9 if fill else None,
                color=looks[arm].color,
                linestyle=looks[arm].line,
                alpha=0.75,
                gid=style.tag(arm),
            )
        x = np.linspace(-reach, reach, 400)
        gauss = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        ax.plot(x, gauss, color=style.INK["ink"], linewidth=1.1, linestyle=":")
        _axes(ax, "(activation − mean) / standard deviation", DENSITY)
        ax.set_ylim(1e-6, 3.0)
        ax.set_xlim(-reach, reach)

    return draw


def reach_of(drawn: Iterable[Density]) -> float:
    """Return the standard deviations to both sides that show them all, to a limit."""
    far = [np.abs(edges[:-1][density > 0]).max() for edges, density in drawn]
    return float(np.clip(max(far, default=0.0), *REACH))
