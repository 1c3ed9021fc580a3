"""Figures against bits: loss, accuracy, noise, and how the noise compounds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from rfq.report import figures, load, style, view
from rfq.report.figures import Figure, Panel, Series
from rfq.report.paper import Paper
from rfq.report.view import Estimate, Precision, View

# An axis of increases is linear below this and logarithmic above, in nats: about the
# smallest that matters to a reader.
INCREASE_LINEAR = 0.01

DB_PER_BIT = 20.0 * math.log10(2.0)

# Weight width -> the paper's figures of accuracy and of distortion, and its table.
ACCURACY_FIGURES: Mapping[int | None, Sequence[str]] = {
    8: ("Figure 1 left", "Figure 10"),
    16: ("Figure 12",),
    None: ("Figure 14",),
}
DISTORTION_FIGURES: Mapping[int | None, Sequence[str]] = {
    8: ("Figure 1 middle", "Figure 11 left"),
    16: ("Figure 13 left",),
    None: ("Figure 15 left",),
}
PAPER_TABLES: Mapping[str, int | None] = {"table2": 8, "table3": 16, "table4": None}

# Where quantization begins to cost a small model something.
NARROW_BITS = (6, 4)


def _sweep(found: Sequence[Precision], weight_bits: int | None) -> list[Precision]:
    kept = [
        p
        for p in found
        if p.name != "FP" and p.weight_bits == weight_bits and p.act_bits is not None
    ]
    return sorted(kept, key=lambda p: p.act_bits or 0)


def _weight_widths(found: Sequence[Precision]) -> list[int | None]:
    """Weight widths swept over at least two activation widths, 8 first, none last."""
    widths = {p.weight_bits for p in found if p.name != "FP"}
    kept = [width for width in widths if len(_sweep(found, width)) > 1]
    return sorted(kept, key=lambda w: (w is None, w != 8, -(w or 0)))


def _width_title(weight_bits: int | None) -> str:
    return "weights FP" if weight_bits is None else f"weights {weight_bits} bit"


def _width_name(weight_bits: int | None) -> str:
    return "a" if weight_bits is None else f"w{weight_bits}"


def _stands_for(
    widths: Sequence[int | None], names: Mapping[int | None, Sequence[str]]
) -> list[str]:
    return [name for width in widths for name in names.get(width, ())]


def _against_bits(
    shown: View, sweep: Sequence[Precision], of: Callable[[str, Precision], Estimate]
) -> Series:
    """Arm -> estimates by activation width; only arms that have one."""
    every = {arm: [(p.act_bits or 0, of(arm, p)) for p in sweep] for arm in shown.arms}
    return {
        arm: known
        for arm, points in every.items()
        if (known := [(bits, e) for bits, e in points if e.value is not None])
    }


def _bits_of(found: Series) -> list[int]:
    return sorted({int(bits) for points in found.values() for bits, _ in points})


def _falling_bits(ax: Axes, found: Series) -> None:
    """An x axis on which quantization grows to the right."""
    figures.bits_axis(ax, _bits_of(found))
    ax.invert_xaxis()


def increase_figure(shown: View) -> Figure:
    """Loss increase against activation bits, one panel a weight width and placement."""

    def panel(weight_bits: int | None, stream: str, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found, x="down")
            figures.symlog(ax, INCREASE_LINEAR, [0.0, *figures.heights(found)])
            _falling_bits(ax, found)
            ax.set_ylabel("increase of held-out loss, nats a token")
            figures.label_ends(ax, shown, ends)

        title = f"{_width_title(weight_bits)}, stream {view.STREAMS[stream]}"
        return Panel(f"{_width_name(weight_bits)}_{stream}", title, draw)

    widths = _weight_widths(shown.precisions)
    panels = [
        panel(width, stream, found)
        for width in widths
        for stream in shown.placements
        if (
            found := _against_bits(
                shown,
                _sweep(shown.precisions, width),
                lambda arm, p, stream=stream: shown.increase(arm, p, stream),
            )
        )
    ]
    return Figure(
        name="loss_increase",
        title="What quantization costs in held-out loss",
        guide=(
            "Right is fewer bits, up is worse; the axis is linear below "
            f"{INCREASE_LINEAR} and logarithmic above. Bands are 95 % intervals. "
            "Residual-free arms are the same line in both placements: they have no "
            "skip to carry the error."
        ),
        panels=panels,
        missing="" if panels else "no quantized rows over two activation widths",
        stands_for=_stands_for(widths, ACCURACY_FIGURES) if panels else (),
    )


def _averages(shown: View) -> view.Index:
    """Averages over the eight tasks, of the first set of questions that has them."""
    rows = [
        {**row, "arm": run.arm, "seed": run.seed}
        for run in shown.results.runs
        for row in run.tasks
        if load.number(row, "avg") is not None
    ]
    kept = [row for row in rows if row.get("questions") == rows[0].get("questions")]
    return shown.index({**row, **_standard_errors(row)} for row in kept)


def _standard_errors(row: load.Record) -> load.Record:
    mean, error = load.number(row, "avg"), load.number(row, "avg_se")
    if mean is None or error is None:
        return {}
    return {"avg_lo": mean - error, "avg_hi": mean + error}


def accuracy_figure(shown: View) -> Figure:
    """Mean accuracy on the eight tasks, one panel a weight width and placement."""
    index = _averages(shown)
    known = view.precisions(index)

    def average(arm: str, precision: Precision | None, stream: str | None) -> Estimate:
        rows = shown.find(index, arm, precision, stream)
        return view.estimate(rows, "avg", interval=("avg_lo", "avg_hi"))

    full = {arm: average(arm, view.reference(known), None).value for arm in shown.arms}

    def panel(weight_bits: int | None, stream: str, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found, x="down")
            _baselines(ax, shown, {arm: full[arm] for arm in found})
            _falling_bits(ax, found)
            ax.set_ylabel("average zero-shot accuracy")
            figures.label_ends(ax, shown, ends)

        title = f"{_width_title(weight_bits)}, stream {view.STREAMS[stream]}"
        return Panel(f"{_width_name(weight_bits)}_{stream}", title, draw)

    widths = sorted(
        {p.weight_bits for p in known if p.act_bits is not None},
        key=lambda w: (w is None, w != 8, -(w or 0)),
    )
    panels = [
        panel(width, stream, found)
        for width in widths
        for stream in view.placements(index)
        if (
            found := _against_bits(
                shown,
                _sweep(known, width),
                lambda arm, p, stream=stream: average(arm, p, stream),
            )
        )
    ]
    return Figure(
        name="accuracy",
        title="Our accuracy by activation bits",
        guide=(
            "Average over the eight tasks, mean over seeds; bands are one standard "
            "error over documents, dotted lines full precision. Right is fewer bits, "
            "down is worse."
        ),
        panels=panels,
        missing=""
        if panels
        else "no accuracy on the eight tasks under quantized activations",
        stands_for=_stands_for(widths, ACCURACY_FIGURES) if panels else (),
    )


def _baselines(ax: Axes, shown: View, full: Mapping[str, float | None]) -> None:
    """A dotted line an arm at what it has in full precision."""
    looks = style.looks(shown)
    for arm, value in full.items():
        if value is not None:
            ax.axhline(
                value,
                color=looks[arm].light,
                linestyle=":",
                linewidth=1.0,
                gid=figures.tag(arm),
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
    half_range = gaussian_half_range(calibration_count(shown))
    widths = _weight_widths(shown.precisions)

    def of(width: int | None, field: str) -> Series:
        sweep = _sweep(shown.precisions, width)
        return _against_bits(
            shown, sweep, lambda arm, p: shown.distortion(arm, p, field)
        )

    def ideal(bits: float) -> float:
        return gaussian_sqnr_db(int(bits), half_range)

    def sqnr(width: int | None, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            every = _bits_of(found)
            guide = [ideal(bits) for bits in every]
            ax.plot(
                every, guide, color=style.INK["muted"], linestyle=":", linewidth=1.2
            )
            ax.annotate(
                "dotted: a Gaussian tensor,\n6.02 dB a bit",
                xy=(0.98, 0.03),
                xycoords="axes fraction",
                color=style.INK["muted"],
                fontsize=8,
                ha="right",
                va="bottom",
            )
            ends = figures.series(ax, shown, found)
            figures.bits_axis(ax, every)
            ax.set_ylabel("mean SQNR over sites, dB")
            figures.label_ends(ax, shown, ends)

        return Panel(f"sqnr_{_width_name(width)}", f"SQNR, {_width_title(width)}", draw)

    def gap(width: int | None, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            figures.guide_line(ax, 0.0, "a Gaussian tensor", side="left")
            ends = figures.series(
                ax,
                shown,
                {
                    arm: [(bits, e.less(ideal(bits))) for bits, e in points]
                    for arm, points in found.items()
                },
            )
            figures.bits_axis(ax, _bits_of(found))
            ax.set_ylabel("SQNR minus that of a Gaussian, dB")
            ax.margins(y=0.15)
            figures.label_ends(ax, shown, ends)

        title = f"gap to a Gaussian tensor, {_width_title(width)}"
        return Panel(f"gap_{_width_name(width)}", title, draw)

    def nmse(width: int | None, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found)
            ax.set_yscale("log")
            figures.bits_axis(ax, _bits_of(found))
            ax.set_ylabel("mean NMSE over sites")
            figures.label_ends(ax, shown, ends)

        title = f"normalized squared error, {_width_title(width)}"
        return Panel(f"nmse_{_width_name(width)}", title, draw)

    panels = [
        make(width, found)
        for make, field in ((sqnr, "sqnr_db"), (gap, "sqnr_db"), (nmse, "nmse"))
        for width in widths
        if (found := of(width, field))
    ]
    drawn = [width for width in widths if of(width, "sqnr_db")]
    panels += _site_panels(shown)
    return Figure(
        name="sqnr",
        title="Signal to quantization noise",
        guide=(
            "Up is better. Dotted: a Gaussian tensor of the same size on a min-max "
            f"grid (half-range {half_range:.2f} standard deviations); each bit adds "
            f"{DB_PER_BIT:.2f} dB to every tensor, so the gap to the dotted line is "
            "what the shape of the activations costs or, above it, saves. A line that "
            "falls behind at many bits is cut by the calibrated range. Full-precision "
            "tensors against their own quantization: neither the placement nor the "
            "weights' width play a part. Bands are one standard deviation over seeds."
        ),
        panels=panels,
        missing="" if panels else "no row has sqnr_db",
        stands_for=_stands_for(drawn, DISTORTION_FIGURES),
    )


def _narrow(shown: View) -> list[Precision]:
    """The precisions of NARROW_BITS, else the two narrowest, of the first width."""
    widths = _weight_widths(shown.precisions)
    sweep = _sweep(shown.precisions, widths[0] if widths else None)
    return [p for p in sweep if p.act_bits in NARROW_BITS] or sweep[:2]


def _by_layer(
    shown: View, precision: Precision, site: str, field: str, stream: str | None = None
) -> Series:
    """Arm -> estimates of sites.jsonl by layer, from 1; only arms that have one."""
    every = {
        arm: list(
            enumerate(shown.site_values(arm, precision, site, field, stream), start=1)
        )
        for arm in shown.arms
    }
    return {
        arm: points
        for arm, points in every.items()
        if any(e.value is not None for _, e in points)
    }


def _depth(found: Series) -> int:
    return max(len(points) for points in found.values())


def _site_panels(shown: View) -> list[Panel]:
    """SQNR by layer of the norms' inputs at the narrowest activation width."""

    def panel(precision: Precision, site: str, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found)
            figures.layer_axis(ax, _depth(found))
            ax.set_ylabel(f"SQNR at {precision.name}, dB")
            figures.label_ends(ax, shown, ends)

        title = f"{view.BLOCK_SITES[site]}, {precision.name}"
        return Panel(f"site_{site}", title, draw)

    return [
        panel(precision, site, found)
        for precision in _narrow(shown)[:1]
        for site in view.PAPER_SITES
        if site.endswith("norm_in")
        and (found := _by_layer(shown, precision, site, "sqnr_db"))
    ]


def error_figure(shown: View) -> Figure:
    """How the error grows through the network: by layer, and at the head by bits."""
    field = "relative_error"

    def label(ax: Axes) -> None:
        ax.set_yscale("log")
        ax.set_ylabel("error energy / signal energy")

    def through(precision: Precision, stream: str, found: Series) -> Panel:
        depth = _depth(found)
        heads = _by_layer(shown, precision, "head_in", field, stream)
        every = {
            arm: [*layers, *((depth + 1, e) for _, e in heads.get(arm, ()))]
            for arm, layers in found.items()
        }
        # The first layer's stream is the embedding: without an error as a rule, which
        # a logarithmic axis cannot show.
        points = {
            arm: [(at, e) for at, e in layers if e.value]
            for arm, layers in every.items()
        }

        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, points)
            figures.layer_axis(ax, depth)
            ax.set_xticks([*ax.get_xticks(), depth + 1])
            ax.set_xticklabels([*(f"{x:.0f}" for x in ax.get_xticks()[:-1]), "head"])
            label(ax)
            figures.label_ends(ax, shown, ends)

        title = f"{precision.name}, stream {view.STREAMS[stream]}"
        return Panel(f"{precision.name.lower()}_{stream}", title, draw)

    def at_the_head(width: int | None, stream: str, found: Series) -> Panel:
        def draw(ax: Axes) -> None:
            ends = figures.series(ax, shown, found, x="down")
            _falling_bits(ax, found)
            label(ax)
            figures.label_ends(ax, shown, ends)

        title = f"at the head, {_width_title(width)}, {view.STREAMS[stream]}"
        return Panel(f"head_{_width_name(width)}_{stream}", title, draw)

    streams = view.placements(shown.sites)
    panels = [
        through(precision, stream, found)
        for precision in reversed(_narrow(shown))
        for stream in streams
        if (found := _by_layer(shown, precision, "attn_norm_in", field, stream))
    ]
    panels += [
        at_the_head(width, stream, found)
        for width in _weight_widths(shown.precisions)[:1]
        for stream in streams
        if (
            found := _against_bits(
                shown,
                _sweep(shown.precisions, width),
                lambda arm, p, stream=stream: next(
                    iter(shown.site_values(arm, p, "head_in", field, stream)),
                    Estimate(),
                ),
            )
        )
    ]
    return Figure(
        name="errors",
        title="How the error compounds",
        guide=(
            "The whole quantized model against the clean one: energy of the difference "
            "over energy of the signal, at each layer's stream (the attention norm's "
            "input) and at the head's input. Up is worse; at 1 nothing of the signal "
            "is left. A line that rises is error that later layers inherit and "
            "enlarge."
        ),
        panels=panels,
        missing="" if panels else "no relative_error in any sites.jsonl",
    )


def paper_figure(shown: View, paper: Paper) -> Figure:
    """The paper's accuracy against activation bits, from its Tables 2 to 4."""
    both = view.with_arms(shown, paper.arms)
    every = [row.avg for name in PAPER_TABLES for row in paper.tables[name]]
    margin = 0.05 * (max(every) - min(every))

    def panel(table: str, weight_bits: int | None) -> Panel:
        rows = sorted(paper.tables[table], key=lambda row: row.act_bits or 0)
        found = {
            arm: [
                (row.act_bits, Estimate(row.avg))
                for row in rows
                if row.arm == arm and row.act_bits is not None
            ]
            for arm in dict.fromkeys(row.arm for row in paper.tables[table])
        }

        def draw(ax: Axes) -> None:
            ends = figures.series(ax, both, found, x="down")
            full = {arm: paper.accuracy(table, arm, "FP") for arm in found}
            _baselines(ax, both, full)
            ax.set_ylim(min(every) - margin, max(every) + margin)
            figures.guide_line(
                ax, paper.chance, f"chance {paper.chance:.3f}", side="left"
            )
            _falling_bits(ax, found)
            ax.set_ylabel("average zero-shot accuracy")
            figures.label_ends(ax, both, ends)

        number = table.removeprefix("table")
        title = f"paper: {_width_title(weight_bits)} (its Table {number})"
        return Panel(table, title, draw)

    return Figure(
        name="paper_accuracy",
        title="The paper's accuracy by activation bits",
        guide=(
            f"The paper's numbers ({paper.num_params / 1e6:.0f} M parameters, "
            f"{paper.num_steps:,} steps), not ours. Right is fewer bits, down is "
            "worse; dotted in an arm's color: BF16; at the gray line a model guesses."
        ),
        panels=[panel(*each) for each in PAPER_TABLES.items()],
        stands_for=_stands_for(list(PAPER_TABLES.values()), ACCURACY_FIGURES),
        is_printed=True,
    )
