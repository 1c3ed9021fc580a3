"""What every figure shows: panels that draw on an axes, and a line on how to read them.

A figure without data has no panels and says what is missing. Drawing, files and the
page's SVG are `render`'s.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from rfq.report import curves, load, style, tables, view
from rfq.report.load import Record, Run
from rfq.report.paper import Paper
from rfq.report.view import View

# Below this a kurtosis axis is linear, above it logarithmic: 1 is the bound within
# which activations count as near-Gaussian here.
KURTOSIS_LINEAR = 1.0
# The same for increases of loss, in nats: about the smallest that matters to a reader.
INCREASE_LINEAR = 0.01

DB_PER_BIT = 20.0 * math.log10(2.0)

# Line width of the seeds after the first, which carries the arm's name.
SEED_WIDTH = 0.8

# One line of 8.5 point text as a fraction of the axes' height (`render.PANEL_INCHES`).
LINE_HEIGHT = 0.058


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
    """A figure: `name` is its file's name, `guide` one line on how to read it."""

    name: str
    title: str
    guide: str
    panels: Sequence[Panel]
    missing: str = ""
    notes: Sequence[str] = ()


class _End(NamedTuple):
    """Where a line ends, to be labelled there."""

    arm: str
    x: float
    y: float
    text: str


def tag(arm: str) -> str:
    """The mark on an artist that lets the page hide an arm; see `render`."""
    return f"arm:{arm}"


def _line(
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


def _band(
    ax: Axes,
    look: style.Look,
    arm: str,
    x: Sequence[float],
    lo: Sequence[float],
    hi: Sequence[float],
) -> None:
    ax.fill_between(x, lo, hi, color=look.light, alpha=0.18, linewidth=0, gid=tag(arm))


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


def _label_ends(ax: Axes, shown: View, ends: Sequence[_End]) -> None:
    """Writes each arm's name right of its line, moved apart where they collide."""
    looks = style.looks(shown.arms)
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    tips = [to_axes.transform((end.x, end.y)) for end in ends]
    centers = [float(np.clip(tip[1], 0.0, 1.0)) for tip in tips]
    heights = [LINE_HEIGHT * (1.3 + end.text.count("\n")) for end in ends]
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
            end.text,
            transform=ax.transAxes,
            color=color,
            fontsize=8.5,
            va="center",
            ha="left",
            linespacing=1.05,
            gid=tag(end.arm),
        )


def _guide_line(
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


def _plain_log(value: float, _: int = 0) -> str:
    """Tick labels of (sym)log axes as plain numbers."""
    return f"{value:,g}".replace("-", "−")


def _power(value: float, _: int = 0) -> str:
    """Tick labels of a logarithmic axis over many decades: 10⁻³."""
    exponent = str(round(math.log10(value)))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _symlog(ax: Axes, linear: float, values: Sequence[float]) -> None:
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
    ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain_log))
    ax.set_ylim(min(1.3 * bottom, -0.25 * linear), 1.35 * top)


def _bits_axis(ax: Axes, bits: Sequence[int]) -> None:
    ax.set_xticks(sorted(set(bits)))
    ax.set_xlabel("activation bits")
    ax.grid(axis="x", visible=False)


def _sweep(shown: View, weight_bits: int | None) -> list[view.Precision]:
    found = [
        p
        for p in shown.precisions
        if p.name != "FP" and p.weight_bits == weight_bits and p.act_bits is not None
    ]
    return sorted(found, key=lambda p: p.act_bits or 0)


def _weight_widths(shown: View) -> list[int | None]:
    """Weight widths swept over at least two activation widths, 8 first, none last."""
    widths = {p.weight_bits for p in shown.precisions if p.name != "FP"}
    kept = [width for width in widths if len(_sweep(shown, width)) > 1]
    return sorted(kept, key=lambda w: (w is None, w != 8, -(w or 0)))


def _width_title(weight_bits: int | None) -> str:
    return "weights FP" if weight_bits is None else f"weights {weight_bits} bit"


def increase_figure(shown: View) -> Figure:
    """Loss increase against activation bits, one panel a weight width and placement."""
    looks = style.looks(shown.arms)
    panels = []

    def panel(weight_bits: int | None, stream: str) -> Panel | None:
        sweep = _sweep(shown, weight_bits)
        series = {}
        for arm in shown.arms:
            points = [
                (p.act_bits, shown.increase(arm, p, stream))
                for p in sweep
                if shown.increase(arm, p, stream).value is not None
            ]
            if points:
                series[arm] = points
        if not series:
            return None

        def draw(ax: Axes) -> None:
            seen, ends = [0.0], []
            for arm, points in series.items():
                x = [bits for bits, _ in points]
                y = [found.value for _, found in points]
                _line(ax, looks[arm], arm, x, y)
                lo = [
                    found.value if found.lo is None else found.lo for _, found in points
                ]
                hi = [
                    found.value if found.hi is None else found.hi for _, found in points
                ]
                _band(ax, looks[arm], arm, x, lo, hi)
                seen += [*lo, *hi]
                ends.append(_End(arm, x[0], y[0], style.short_label(arm)))
            _symlog(ax, INCREASE_LINEAR, seen)
            _bits_axis(ax, [p.act_bits for p in sweep if p.act_bits is not None])
            ax.invert_xaxis()
            ax.set_ylabel("increase of held-out loss, nats a token")
            _label_ends(ax, shown, ends)

        title = f"{_width_title(weight_bits)}, stream {view.STREAMS[stream]}"
        name = f"{'a' if weight_bits is None else f'w{weight_bits}'}_{stream}"
        return Panel(name, title, draw)

    for weight_bits in _weight_widths(shown):
        for stream in view.STREAMS:
            made = panel(weight_bits, stream)
            if made is not None:
                panels.append(made)
    return Figure(
        name="loss_increase",
        title="What quantization costs",
        guide=(
            "Right is fewer bits, up is worse; the axis is linear below "
            f"{INCREASE_LINEAR} and logarithmic above. Bands are 95 % intervals. "
            "Residual-free arms are the same line in both placements: they have no "
            "skip to carry the error."
        ),
        panels=panels,
        missing="" if panels else "no quantized rows over two activation widths",
    )


def gaussian_half_range(count: float) -> float:
    """Expected largest of `count` standard normal draws, in standard deviations.

    The Gumbel mean, inverse_cdf(1 - exp(-euler_gamma) / count): 5.468 for the paper's
    calibration of 32,768 x 768 numbers, whose exact value is 5.467.
    """
    return statistics.NormalDist().inv_cdf(1.0 - math.exp(-np.euler_gamma) / count)


def gaussian_sqnr_db(bits: int, half_range: float) -> float:
    """SQNR of a Gaussian on a min-max grid, 10 log10(12 (2^b - 1)^2 / (2 R)^2).

    High resolution; from 3 bits on within 0.01 dB of the exact integral.
    """
    return 10.0 * math.log10(12.0 * (2**bits - 1) ** 2 / (2.0 * half_range) ** 2)


def calibration_count(shown: View) -> float:
    """Numbers a site that calibration saw: tokens times width, the smallest arm's."""
    found = [
        tokens * width
        for row in shown.results.rows
        if (tokens := load.number(row, "calibration_tokens"))
        and (width := load.number(row, "width"))
    ]
    return min(found, default=32768 * 768)


def sqnr_figure(shown: View) -> Figure:
    """SQNR against activation bits beside a Gaussian tensor, and the gap to it."""
    looks = style.looks(shown.arms)
    half_range = gaussian_half_range(calibration_count(shown))
    widths = _weight_widths(shown)
    weight_bits = widths[0] if widths else None
    sweep = _sweep(shown, weight_bits)
    series = {
        arm: points
        for arm in shown.arms
        if (
            points := [
                (p.act_bits, found.value)
                for p in sweep
                if p.act_bits is not None
                and (found := shown.distortion(arm, p, "sqnr_db")).value is not None
            ]
        )
    }

    def ideal(bits: int) -> float:
        return gaussian_sqnr_db(bits, half_range)

    def draw(ax: Axes) -> None:
        ends, every = [], sorted({p.act_bits for p in sweep if p.act_bits is not None})
        guide = [ideal(bits) for bits in every]
        ax.plot(every, guide, color=style.INK["muted"], linestyle=":", linewidth=1.2)
        ax.annotate(
            "a Gaussian tensor\n6.02 dB a bit",
            xy=(every[-2], guide[-2]),
            xytext=(-6, 4),
            textcoords="offset points",
            color=style.INK["muted"],
            fontsize=8,
            ha="right",
            va="bottom",
        )
        for arm, points in series.items():
            x, y = zip(*points, strict=True)
            _line(ax, looks[arm], arm, x, y)
            ends.append(_End(arm, x[-1], y[-1], style.short_label(arm)))
        _bits_axis(ax, every)
        ax.set_ylabel("mean SQNR over sites, dB")
        _label_ends(ax, shown, ends)

    def draw_gap(ax: Axes) -> None:
        ends = []
        _guide_line(ax, 0.0, "a Gaussian tensor")
        for arm, points in series.items():
            x = [bits for bits, _ in points]
            y = [value - ideal(bits) for bits, value in points]
            _line(ax, looks[arm], arm, x, y)
            ends.append(_End(arm, x[-1], y[-1], style.short_label(arm)))
        _bits_axis(ax, [bits for points in series.values() for bits, _ in points])
        ax.set_ylabel("SQNR minus that of a Gaussian, dB")
        ax.margins(y=0.15)
        _label_ends(ax, shown, ends)

    panels = [*_site_panels(shown, looks)]
    if series:
        title = _width_title(weight_bits)
        panels = [
            Panel("sqnr", f"SQNR, {title}", draw),
            Panel("gap", "gap to a Gaussian tensor", draw_gap),
            *panels,
        ]
    return Figure(
        name="sqnr",
        title="Signal to quantization noise",
        guide=(
            "Up is better. Dotted: a Gaussian tensor of the same size on a min-max "
            f"grid (half-range {half_range:.2f} standard deviations); each bit adds "
            f"{DB_PER_BIT:.2f} dB to every tensor, so the gap to the dotted line is "
            "what the shape of the activations costs or, above it, saves. A line that "
            "falls behind at many bits is cut by the calibrated range. Full-precision "
            "tensors against their own quantization: the placement plays no part."
        ),
        panels=panels,
        missing="" if panels else "no row has sqnr_db",
    )


def _site_panels(shown: View, looks) -> list[Panel]:
    """SQNR by layer of each site at the narrowest common activation width."""
    specs = [p.name for p in _sweep(shown, 8) or _sweep(shown, None)]
    spec = next((name for name in specs if name.endswith("A4")), None)
    spec = spec or (specs[0] if specs else None)
    lines: dict[str, dict[str, list[float | None]]] = {}
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            record = next((r for r in run.sites if load.text(r, "spec") == spec), {})
            for site in view.PAPER_SITES:
                values = load.numbers(load.child(record, "sites", site), "sqnr_db")
                if any(value is not None for value in values):
                    lines.setdefault(site, {})[arm] = values

    def draw_site(site: str) -> Callable[[Axes], None]:
        def draw(ax: Axes) -> None:
            ends = []
            for arm, values in lines[site].items():
                x, y = _finite(range(1, len(values) + 1), values)
                _line(ax, looks[arm], arm, x, y)
                ends.append(_End(arm, x[-1], y[-1], style.short_label(arm)))
            _layer_axis(ax, max(map(len, lines[site].values())))
            ax.set_ylabel(f"SQNR at {spec}, dB")
            _label_ends(ax, shown, ends)

        return draw

    return [
        Panel(f"site_{site}", f"{view.BLOCK_SITES[site]}, {spec}", draw_site(site))
        for site in lines
        if site.endswith("norm_in")
    ]


def _finite(x: Sequence[float], y: Sequence[float | None]):
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def _layer_axis(ax: Axes, depth: int) -> None:
    step = max(1, math.ceil(depth / 8))
    ax.set_xticks(
        [1, *range(step, depth + 1, step)] if step > 1 else range(1, depth + 1)
    )
    ax.set_xlabel("layer")
    ax.grid(axis="x", visible=False)


def training_figure(shown: View) -> Figure:
    """Training and held-out loss against steps and against wall time."""
    looks = style.looks(shown.arms)
    floors = {name: shown.floor(name) for name in ("unigram", "bigram")}
    runs = {arm: [r for r in shown.runs(arm) if r.metrics] for arm in shown.arms}
    runs = {arm: found for arm, found in runs.items() if found}

    def draw(times: Callable[[Run], Sequence[float | None]], label: str):
        def on(ax: Axes) -> None:
            ends = []
            for arm, found in runs.items():
                end = None
                for run in found:
                    losses = [load.number(record, "loss") for record in run.metrics]
                    kept = [
                        (t, y)
                        for t, y in zip(times(run), losses, strict=True)
                        if t is not None and y is not None
                    ]
                    if not kept:
                        continue
                    x, y = [t for t, _ in kept], [v for _, v in kept]
                    smooth = curves.smooth(y)
                    _line(
                        ax,
                        looks[arm],
                        arm,
                        x,
                        y,
                        marker=False,
                        linewidth=0.5,
                        alpha=0.3,
                    )
                    width = SEED_WIDTH if end else None
                    _line(ax, looks[arm], arm, x, smooth, marker=False, linewidth=width)
                    end = end or _End(arm, x[-1], smooth[-1], style.short_label(arm))
                if end is not None:
                    ends.append(end)
            for name, value in floors.items():
                if value is not None:
                    _guide_line(ax, value, f"{name} {value:.2f}")
            ax.set_xlabel(label)
            ax.set_ylabel("training loss, nats a token")
            _label_ends(ax, shown, ends)

        return on

    def steps_of(run: Run) -> list[float | None]:
        return [load.number(record, "step") for record in run.metrics]

    panels = []
    if runs:
        panels.append(Panel("step", "loss by step", draw(steps_of, "step")))
        timed = [
            t for found in runs.values() for r in found for t in curves.train_seconds(r)
        ]
        if any(t is not None for t in timed):
            panels.append(
                Panel(
                    "seconds",
                    "loss by wall time",
                    draw(curves.train_seconds, "seconds of training"),
                )
            )
    if any(run.measures for run in shown.results.runs):
        panels.append(Panel("heldout", "held-out loss by step", _heldout(shown, looks)))
    absent = [name for name, value in floors.items() if value is None]
    return Figure(
        name="training",
        title="Training",
        guide=(
            "Down is better. Thin: the logged batches; thick: their running mean. "
            "Dotted: what a model reaches that knows only word frequencies (unigram) "
            "or the previous token (bigram); below the second, context is in use."
        ),
        panels=panels,
        missing="" if panels else "no metrics.jsonl in any run",
        notes=[f"The {name} floor is missing in context.json." for name in absent],
    )


def _heldout(shown: View, looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ends = _trajectories(
            ax,
            shown,
            looks,
            lambda m: load.number(m, "step"),
            lambda m: load.number(m, "loss"),
        )
        for name in ("unigram", "bigram"):
            value = shown.floor(name)
            if value is not None:
                _guide_line(ax, value, f"{name} {value:.2f}")
        ax.set_xlabel("step")
        ax.set_ylabel("held-out loss, nats a token")
        _label_ends(ax, shown, ends)

    return draw


def _trajectories(
    ax: Axes,
    shown: View,
    looks,
    x_of: Callable[[Record], float | None],
    y_of: Callable[[Record], float | None],
) -> list[_End]:
    """One line a run through its measured steps; the ends of the first seeds."""
    ends = []
    for arm in shown.arms:
        first = True
        for run in shown.runs(arm):
            points = [
                (x, y)
                for m in run.measures
                if (x := x_of(m)) is not None and (y := y_of(m)) is not None
            ]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            width = None if first else SEED_WIDTH
            _line(ax, looks[arm], arm, x, y, markersize=3.5, linewidth=width)
            if first:
                ends.append(_End(arm, x[-1], y[-1], style.short_label(arm)))
            first = False
    return ends


def kurtosis_training_figure(shown: View) -> Figure:
    """Kurtosis over training, and against the loss it was reached at."""
    looks = style.looks(shown.arms)
    measured = [m for run in shown.results.runs for m in run.measures]

    def panel(
        name: str,
        title: str,
        sites: Sequence[str],
        *,
        by_loss: bool = False,
    ) -> Panel | None:
        values = [view.peak_kurtosis(m, sites) for m in measured]
        finite = [value for value in values if value is not None]
        if not finite:
            return None

        def draw(ax: Axes) -> None:
            ends = _trajectories(
                ax,
                shown,
                looks,
                lambda m: load.number(m, "loss" if by_loss else "step"),
                lambda m: view.peak_kurtosis(m, sites),
            )
            _symlog(ax, KURTOSIS_LINEAR, finite)
            ax.set_ylabel("excess kurtosis")
            if by_loss:
                ax.set_xlabel("held-out loss, nats a token (learning goes right)")
                ax.invert_xaxis()
            else:
                ax.set_xlabel("step")
            _label_ends(ax, shown, ends)

        return Panel(name, title, draw)

    stream, title = ("attn_norm_in",), "attention norm's input"
    wanted = [
        panel("stream", f"{title}, largest over layers", stream),
        panel("by_loss", f"{title}, at equal loss", stream, by_loss=True),
        panel("paper_sites", "the paper's four sites, largest", view.PAPER_SITES),
        panel("final", "final norm's input, apart", ("final_norm_in",)),
    ]
    panels = [made for made in wanted if made is not None]
    return Figure(
        name="kurtosis_training",
        title="Kurtosis over training",
        guide=(
            "0 is Gaussian, up is heavier tails; linear below "
            f"{KURTOSIS_LINEAR:g}, logarithmic above. The panel at equal loss is the "
            "fair comparison: an arm that stays left has learnt less, and less learnt "
            "means lighter tails."
        ),
        panels=panels,
        missing="" if panels else "no measures.jsonl in any run",
    )


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
                x, y = _finite(range(1, len(values) + 1), values)
                _line(ax, looks[arm], arm, x, y)
                loss = shown.full_loss(arm).value
                tail = tables.MISSING if loss is None else f"{loss:.2f}"
                text = f"{style.short_label(arm)}\nloss {tail}"
                marks.append(_End(arm, x[-1], y[-1], text))
                seen += y
            _symlog(ax, KURTOSIS_LINEAR, seen)
            _layer_axis(ax, max(map(len, curves.values())))
            ax.set_ylabel("excess kurtosis")
            _label_ends(ax, shown, marks)

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
                gid=tag(arm),
            )
            ax.plot(x, gauss, color=style.INK["ink"], linewidth=1.1, linestyle=":")
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_power))
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


def paper_figure(shown: View, paper: Paper) -> Figure:
    """The paper's accuracy against activation bits, from its Tables 2 and 4."""

    def panel(table: str, title: str) -> Panel:
        arms = tuple(dict.fromkeys(row.arm for row in paper.tables[table]))
        looks = style.looks(arms)

        def draw(ax: Axes) -> None:
            ends, every = [], set()
            for arm in arms:
                rows = [r for r in paper.tables[table] if r.arm == arm]
                points = sorted((r.act_bits, r.avg) for r in rows if r.act_bits)
                x, y = zip(*points, strict=True)
                _line(ax, looks[arm], arm, x, y)
                every |= set(x)
                ends.append(_End(arm, x[0], y[0], style.short_label(arm)))
            _bits_axis(ax, sorted(every))
            ax.set_ylim(0.33, 0.47)
            _guide_line(ax, paper.chance, f"chance {paper.chance:.3f}", side="left")
            ax.invert_xaxis()
            ax.set_ylabel("average zero-shot accuracy")
            _label_ends(ax, shown_with(shown, arms), ends)

        return Panel(table, title, draw)

    return Figure(
        name="paper_accuracy",
        title="The paper's accuracy by activation bits",
        guide=(
            f"The paper's numbers ({paper.num_params / 1e6:.0f} M parameters, "
            f"{paper.num_steps:,} steps), not ours. Right is fewer bits, down is "
            "worse; at the dotted line a model guesses."
        ),
        panels=[
            panel("table2", "paper: weights 8 bit (its Table 2)"),
            panel("table4", "paper: activations only (its Table 4)"),
        ],
    )


def shown_with(shown: View, arms: tuple[str, ...]) -> View:
    """The view with these arms known too, for colors."""
    extra = [arm for arm in arms if arm not in shown.arms]
    if not extra:
        return shown
    context = {**shown.results.context, "arms": [*shown.arms, *extra]}
    return dataclasses.replace(
        shown, results=dataclasses.replace(shown.results, context=context)
    )


def all_figures(shown: View, paper: Paper) -> list[Figure]:
    """Every figure of the report, in the order of the page."""
    return [
        increase_figure(shown),
        paper_figure(shown, paper),
        sqnr_figure(shown),
        training_figure(shown),
        kurtosis_training_figure(shown),
        kurtosis_layers_figure(
            shown,
            sites=view.PAPER_SITES,
            name="kurtosis_layers",
            title="Kurtosis by layer at the end",
        ),
        kurtosis_layers_figure(
            shown,
            sites=view.OTHER_SITES,
            name="kurtosis_layers_other",
            title="Kurtosis inside the sublayers, which the paper does not quantize",
        ),
        histogram_figure(shown),
    ]
