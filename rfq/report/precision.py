"""Figures against bits: loss, accuracy and noise."""

import math
import statistics
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from rfq.report import figures, load, style, view
from rfq.report.figures import Figure, Panel
from rfq.report.paper import Paper
from rfq.report.view import View

# An axis of increases is linear below this and logarithmic above, in nats: about the
# smallest that matters to a reader.
INCREASE_LINEAR = 0.01

DB_PER_BIT = 20.0 * math.log10(2.0)


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
    looks = style.looks(shown)
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
                figures.line(ax, looks[arm], arm, x, y)
                lo = [
                    found.value if found.lo is None else found.lo for _, found in points
                ]
                hi = [
                    found.value if found.hi is None else found.hi for _, found in points
                ]
                figures.band(ax, looks[arm], arm, x, lo, hi)
                seen += [*lo, *hi]
                ends.append(figures.End(arm, x[0], y[0], style.short_label(arm)))
            figures.symlog(ax, INCREASE_LINEAR, seen)
            figures.bits_axis(ax, [p.act_bits for p in sweep if p.act_bits is not None])
            ax.invert_xaxis()
            ax.set_ylabel("increase of held-out loss, nats a token")
            figures.label_ends(ax, shown, ends)

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


def accuracy_figure(shown: View) -> Figure:
    """Mean accuracy on the eight tasks against activation bits, one panel a width."""
    looks = style.looks(shown)
    found: dict[int | None, dict[str, list[tuple[int, float, float]]]] = {}
    full: dict[str, float] = {}
    for arm in shown.arms:
        for row in (row for run in shown.runs(arm)[:1] for row in run.tasks):
            average, error = load.number(row, "avg"), load.number(row, "avg_se")
            bits, weight = (load.number(row, f"{w}_bits") for w in ("act", "weight"))
            if average is None:
                continue
            if bits is None:
                full.setdefault(arm, average)
            elif load.text(row, "stream") == "branch":
                width = None if weight is None else int(weight)
                points = found.setdefault(width, {}).setdefault(arm, [])
                points.append((int(bits), average, error or 0.0))

    def panel(weight_bits: int | None) -> Panel:
        def draw(ax: Axes) -> None:
            ends, every = [], []
            for arm, points in found[weight_bits].items():
                x, y, error = zip(*sorted(points), strict=True)
                figures.line(ax, looks[arm], arm, x, y)
                lo = [a - half for a, half in zip(y, error, strict=True)]
                hi = [a + half for a, half in zip(y, error, strict=True)]
                figures.band(ax, looks[arm], arm, x, lo, hi)
                if arm in full:
                    ax.axhline(
                        full[arm],
                        color=looks[arm].light,
                        linestyle=":",
                        linewidth=1.0,
                        gid=figures.tag(arm),
                    )
                every += x
                ends.append(figures.End(arm, x[0], y[0], style.short_label(arm)))
            figures.bits_axis(ax, every)
            ax.invert_xaxis()
            ax.set_ylabel("average zero-shot accuracy")
            figures.label_ends(ax, shown, ends)

        kind = "a" if weight_bits is None else f"w{weight_bits}"
        return Panel(kind, _width_title(weight_bits), draw)

    widths = sorted(found, key=lambda w: (w is None, w != 8, -(w or 0)))
    return Figure(
        name="accuracy",
        title="Our accuracy by activation bits",
        guide=(
            "Average over the eight tasks, branch placement, first seed; bands are one "
            "standard error over documents, dotted lines full precision. Right is "
            "fewer bits, down is worse."
        ),
        panels=[panel(width) for width in widths],
        missing=""
        if found
        else "no accuracy on the eight tasks under quantized activations",
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
    looks = style.looks(shown)
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
            figures.line(ax, looks[arm], arm, x, y)
            ends.append(figures.End(arm, x[-1], y[-1], style.short_label(arm)))
        figures.bits_axis(ax, every)
        ax.set_ylabel("mean SQNR over sites, dB")
        figures.label_ends(ax, shown, ends)

    def draw_gap(ax: Axes) -> None:
        ends = []
        figures.guide_line(ax, 0.0, "a Gaussian tensor")
        for arm, points in series.items():
            x = [bits for bits, _ in points]
            y = [value - ideal(bits) for bits, value in points]
            figures.line(ax, looks[arm], arm, x, y)
            ends.append(figures.End(arm, x[-1], y[-1], style.short_label(arm)))
        figures.bits_axis(
            ax, [bits for points in series.values() for bits, _ in points]
        )
        ax.set_ylabel("SQNR minus that of a Gaussian, dB")
        ax.margins(y=0.15)
        figures.label_ends(ax, shown, ends)

    def draw_nmse(ax: Axes) -> None:
        ends = []
        for arm in shown.arms:
            found = [(p.act_bits or 0, shown.distortion(arm, p, "nmse")) for p in sweep]
            points = [(bits, e.value) for bits, e in found if e.value is not None]
            if points:
                x, y = zip(*points, strict=True)
                figures.line(ax, looks[arm], arm, x, y)
                ends.append(figures.End(arm, x[-1], y[-1], style.short_label(arm)))
        ax.set_yscale("log")
        figures.bits_axis(ax, [p.act_bits for p in sweep if p.act_bits is not None])
        ax.set_ylabel("mean NMSE over sites")
        figures.label_ends(ax, shown, ends)

    panels = [*_site_panels(shown, looks)]
    if series:
        title = _width_title(weight_bits)
        panels = [
            Panel("sqnr", f"SQNR, {title}", draw),
            Panel("gap", "gap to a Gaussian tensor", draw_gap),
            Panel("nmse", f"normalized squared error, {title}", draw_nmse),
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
                x, y = figures.finite(range(1, len(values) + 1), values)
                figures.line(ax, looks[arm], arm, x, y)
                ends.append(figures.End(arm, x[-1], y[-1], style.short_label(arm)))
            figures.layer_axis(ax, max(map(len, lines[site].values())))
            ax.set_ylabel(f"SQNR at {spec}, dB")
            figures.label_ends(ax, shown, ends)

        return draw

    return [
        Panel(f"site_{site}", f"{view.BLOCK_SITES[site]}, {spec}", draw_site(site))
        for site in lines
        if site.endswith("norm_in")
    ]


def paper_figure(shown: View, paper: Paper) -> Figure:
    """The paper's accuracy against activation bits, from its Tables 2 and 4."""

    def panel(table: str, title: str) -> Panel:
        arms = tuple(dict.fromkeys(row.arm for row in paper.tables[table]))
        both = view.with_arms(shown, arms)
        looks = style.looks(both)

        def draw(ax: Axes) -> None:
            ends, every = [], set()
            for arm in arms:
                rows = [r for r in paper.tables[table] if r.arm == arm]
                points = sorted((r.act_bits, r.avg) for r in rows if r.act_bits)
                x, y = zip(*points, strict=True)
                figures.line(ax, looks[arm], arm, x, y)
                every |= set(x)
                ends.append(figures.End(arm, x[0], y[0], style.short_label(arm)))
            figures.bits_axis(ax, sorted(every))
            ax.set_ylim(0.33, 0.47)
            figures.guide_line(
                ax, paper.chance, f"chance {paper.chance:.3f}", side="left"
            )
            ax.invert_xaxis()
            ax.set_ylabel("average zero-shot accuracy")
            figures.label_ends(ax, both, ends)

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
