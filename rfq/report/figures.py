"""What every figure shows: panels that draw on an axes, and a line on how to read them.

A figure without data has no panels and says what is missing. Drawing, files and the
page's SVG are `render`'s.
"""

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from rfq.report import style, view
from rfq.report.view import Estimate, View

# Below this a kurtosis axis is linear, above it logarithmic: 1 is the bound within
# which activations count as near-Gaussian here.
KURTOSIS_LINEAR = 1.0
# Line width of the seeds after the first, which carries the arm's name.
SEED_WIDTH = 0.8

# Sizes of the names beside lines, in points: the first at which all of them fit.
LABEL_SIZES = (8.5, 7.5, 6.5, 5.5, 4.5, 3.0)
# At one point, as `render.PANEL_INCHES` has it: the height of a line of text as a
# fraction of the axes', and the letters that stand right of them.
LINE_HEIGHT = 0.0068
LETTERS = 110.0


class Panel(NamedTuple):
    """One axes: `title` is set by the renderer, `draw` does the rest.

    Attributes:
        labelled: names of arms stand right of the axes and need room there.
    """

    name: str
    title: str
    draw: Callable[[Axes], None]
    labelled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: `name` is its file's name, `guide` one line on how to read it.

    Attributes:
        stands_for: what of the paper's it shows, as in `paper.ITEMS`.
        is_printed: whether the numbers are the paper's and not ours.
    """

    name: str
    title: str
    guide: str
    panels: Sequence[Panel]
    missing: str = ""
    notes: Sequence[str] = ()
    stands_for: Sequence[str] = ()
    is_printed: bool = False


# Arm -> (where on the x axis, what was found there), from left to right or back.
Series = Mapping[str, Sequence[tuple[float, Estimate]]]


class End(NamedTuple):
    """Where a line ends, to be labelled there."""

    arm: str
    x: float
    y: float
    text: str


def tag(arm: str) -> str:
    """The mark on an artist that lets the page hide an arm; see `render`."""
    return f"arm:{arm}"


def line(
    ax: Axes,
    look: style.Look,
    arm: str,
    x: Sequence[float],
    y: Sequence[float],
    *,
    marker: bool = True,
    markersize: float | None = None,
    linewidth: float | None = None,
    alpha: float | None = None,
) -> None:
    """Draws an arm's line, marked so that the page can hide it."""
    ax.plot(
        x,
        y,
        color=look.light,
        linestyle=look.line,
        marker=look.marker if marker else "",
        markersize=markersize,
        linewidth=linewidth,
        alpha=alpha,
        gid=tag(arm),
    )


def series(
    ax: Axes, shown: View, found: Series, *, x: Literal["up", "down"] = "up"
) -> list[End]:
    """Draws arms' means, shades their intervals, and gives the right ends of the lines.

    A point without an interval has no band; `x` is the direction of the axis.
    """
    looks, ends = style.looks(shown), []
    for arm, points in found.items():
        known = [(at, e.value, e.interval) for at, e in points if e.value is not None]
        if not known:
            continue
        at, means = [a for a, _, _ in known], [mean for _, mean, _ in known]
        line(ax, looks[arm], arm, at, means)
        lo, hi = (
            [math.nan if interval is None else interval[end] for *_, interval in known]
            for end in (0, 1)
        )
        ax.fill_between(
            at,
            lo,
            hi,
            color=looks[arm].light,
            alpha=0.18,
            linewidth=0,
            gid=tag(arm),
        )
        last = at.index(max(at) if x == "up" else min(at))
        ends.append(End(arm, at[last], means[last], view.arm_label(arm)))
    return ends


def heights(found: Series) -> list[float]:
    """Every mean and every end of an interval."""
    every = [e for points in found.values() for _, e in points if e.value is not None]
    return [x for e in every for x in (e.value, *(e.interval or ())) if x is not None]


def spread(centers: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Moves labels apart as little as possible; the order of `centers` is kept.

    Labels that touch become one block, centered on the mean of what its members
    wanted, until no blocks touch; then blocks slide into [0, 1] where they fit.
    """
    order = sorted(range(len(centers)), key=lambda i: centers[i])
    blocks: list[list[int]] = [[i] for i in order]

    def extent(block: Sequence[int]) -> tuple[float, float]:
        size = sum(heights[i] for i in block)
        middle = statistics.fmean(centers[i] for i in block)
        bottom = max(0.0, min(middle - size / 2, 1.0 - size))
        return bottom, bottom + size

    index = 0
    while index + 1 < len(blocks):
        if extent(blocks[index])[1] > extent(blocks[index + 1])[0]:
            blocks[index : index + 2] = [blocks[index] + blocks[index + 1]]
            index = max(0, index - 1)
        else:
            index += 1
    placed = list(centers)
    for block in blocks:
        bottom = extent(block)[0]
        for i in block:
            placed[i] = bottom + heights[i] / 2
            bottom += heights[i]
    return placed


def wrap(text: str, size: float) -> str:
    """A name on lines that fit right of the axes at a size in points."""
    return textwrap.fill(
        text, int(LETTERS / size), break_long_words=False, break_on_hyphens=False
    )


def label_sizes(texts: Sequence[str]) -> tuple[float, list[float]]:
    """The largest size at which names fit one above the other, and their heights."""

    def at(size: float) -> list[float]:
        lines = [wrap(text, size).count("\n") + 1 for text in texts]
        return [LINE_HEIGHT * size * (count + 0.2) for count in lines]

    fit = (size for size in LABEL_SIZES if sum(at(size)) <= 1.0)
    size = next(fit, LABEL_SIZES[-1])
    return size, at(size)


def label_ends(ax: Axes, shown: View, ends: Sequence[End]) -> None:
    """Writes each arm's name right of its line, moved apart where they collide."""
    looks = style.looks(shown)
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    tips = [to_axes.transform((end.x, end.y)) for end in ends]
    centers = [float(np.clip(tip[1], 0.0, 1.0)) for tip in tips]
    size, heights = label_sizes([end.text for end in ends])
    for end, tip, y in zip(ends, tips, spread(centers, heights), strict=True):
        color = looks[end.arm].light
        ax.plot(
            [min(1.01, tip[0] + 0.02), 1.06, 1.08],
            [tip[1], y, y],
            transform=ax.transAxes,
            clip_on=False,
            color=color,
            linewidth=0.6,
            alpha=0.7,
            gid=tag(end.arm),
        )
        ax.text(
            1.09,
            y,
            wrap(end.text, size),
            transform=ax.transAxes,
            color=color,
            fontsize=size,
            va="center",
            ha="left",
            linespacing=1.05,
            gid=tag(end.arm),
        )


def guide_line(
    ax: Axes, y: float, text: str, *, side: Literal["left", "right"] = "right"
) -> None:
    """A horizontal reference with its name above one end."""
    ax.axhline(y, color=style.INK["muted"], linewidth=0.9, linestyle=":")
    ax.annotate(
        text,
        xy=(0.99 if side == "right" else 0.01, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        color=style.INK["muted"],
        fontsize=8,
        va="bottom",
        ha=side,
    )


def plain_log(value: float, _: int = 0) -> str:
    """Tick labels of (sym)log axes as plain numbers."""
    return f"{value:,g}".replace("-", "−")


def power(value: float, _: int = 0) -> str:
    """Tick labels of a logarithmic axis over many decades: 10⁻³."""
    exponent = str(round(math.log10(value)))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def symlog(ax: Axes, linear: float, values: Sequence[float]) -> None:
    """A y axis that is linear near 0, with ticks that say what they are."""
    ax.set_yscale("symlog", linthresh=linear, linscale=0.6)
    top = max([*values, linear])
    bottom = min([*values, 0.0])
    ticks = [0.0, 0.5 * linear]
    power = linear
    while power <= top * 1.001:
        ticks += [power, 3 * power] if top / linear < 300 else [power]
        power *= 10
    ticks = [tick for tick in ticks if tick <= top * 1.6]
    if bottom < 0:
        power = linear
        ticks.insert(0, -power)
        while power * 10 <= -bottom:
            power *= 10
            ticks.insert(0, -power)
    ax.set_yticks(ticks)
    ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(plain_log))
    ax.set_ylim(min(1.3 * bottom, -0.25 * linear), 1.35 * top)


def bits_axis(ax: Axes, bits: Sequence[int]) -> None:
    """An x axis of activation widths."""
    ax.set_xticks(sorted(set(bits)))
    ax.set_xlabel("activation bits")
    ax.grid(axis="x", visible=False)


def finite(x: Sequence[float], y: Sequence[float | None]):
    """The points that have a value."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def layer_axis(ax: Axes, depth: int) -> None:
    """An x axis of layers, from 1."""
    step = max(1, math.ceil(depth / 8))
    ax.set_xticks(
        [1, *range(step, depth + 1, step)] if step > 1 else range(1, depth + 1)
    )
    ax.set_xlabel("layer")
    ax.grid(axis="x", visible=False)
