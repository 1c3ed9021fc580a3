"""Every figure of the report: which numbers its panels draw, and on which axes."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
import polars as pl
from matplotlib.axes import Axes

from rfq.report import cells, style, view
from rfq.report.evidence import Evidence
from rfq.report.paper import Paper, words
from rfq.report.render import Figure, Panel
from rfq.report.view import Cells, Estimate, Precision, View

# Below these an axis is linear, above them logarithmic: about the smallest increase
# that matters to a reader, and what counts as near Gaussian.
INCREASE_LINEAR, KURTOSIS_LINEAR, NEGENTROPY_LINEAR = 0.01, 1.0, 0.05

SEED_WIDTH = 0.8  # Line width of the seeds after the first.
REACH = (6.0, 40.0)  # Standard deviations that histograms show at least and at most.
EVOLUTION_STEPS = 4  # Columns of the figure of histograms over training.
NARROW_BITS = (6, 4)  # Where quantization begins to cost a small model something.

# Weight width -> the paper's figures of accuracy and of distortion.
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

# Arm -> (where on the x axis, what was found there).
Series = Mapping[str, Sequence[tuple[float, Estimate]]]
Draw = Callable[[Axes], None]


def figure(
    shown: View,
    name: str,
    panels: Iterable[Panel | None],
    *,
    stands_for: Iterable[str] = (),
    is_printed: bool = False,
    **fill: Any,
) -> Figure:
    """Make a figure of the panels that have data, with the words of texts.toml."""
    said = words()["figures"][name]
    kept = [panel for panel in panels if panel is not None]
    looks = style.looks(shown).items()
    return Figure(
        name=name,
        title=said["title"],
        guide=said["guide"].format(**fill),
        panels=kept,
        missing="" if kept else said["missing"],
        legend={view.arm_label(arm): look for arm, look in looks},
        stands_for=list(stands_for) or said.get("stands_for", ()) if kept else (),
        is_printed=is_printed,
    )


# --- Axes ---------------------------------------------------------------------------


def _plain(value: float, _: int = 0) -> str:
    return f"{value:,g}".replace("-", "−")


def _reference(ax: Axes, y: float, text: str = "", color: str = "") -> None:
    """Draw a dotted horizontal line with its name above the left end."""
    color = color or style.INK["muted"]
    ax.axhline(y, color=color, linewidth=1.0, linestyle=":")
    ax.annotate(
        text,
        (0.01, y),
        (0, 2),
        ("axes fraction", "data"),
        "offset points",
        color=color,
        fontsize=8,
    )


def bits(ax: Axes) -> None:
    """Set an x axis of activation widths: bits fall to the right, in every figure."""
    ax.set_xlabel("activation bits")
    ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator([4, 6, 8, 10, 12, 16]))
    ax.invert_xaxis()


def layers(ax: Axes) -> None:
    """Set an x axis of layers, from 1."""
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))


def symlog(linear: float) -> Draw:
    """Return what makes a y axis linear below a value and logarithmic above."""

    def scale(ax: Axes) -> None:
        ax.set_yscale("symlog", linthresh=linear, linscale=0.6)
        ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
        ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())

    return scale


def log(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
    ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _lines(ax: Axes, shown: View, found: Series) -> None:
    """Draw arms' means and shade their intervals."""
    looks = style.looks(shown)
    for arm, points in found.items():
        look, tag = looks[arm], style.tag(arm)
        x, y = np.array([(at, e.value) for at, e in points], np.float64).T
        ends = np.array([e.interval or (math.nan,) * 2 for _, e in points])
        ax.plot(
            x, y, color=look.color, linestyle=look.line, marker=look.marker, gid=tag
        )
        ax.fill_between(
            x,
            ends[:, 0],
            ends[:, 1],
            color=look.color,
            alpha=0.18,
            linewidth=0,
            gid=tag,
        )


def series(
    shown: View,
    name: str,
    title: str,
    found: Series,
    label: str,
    *settle: Draw,
) -> Panel | None:
    """Make a panel of one line an arm; None without a number.

    Args:
        shown: Whose arms they are.
        name: Names the panel in its figure.
        title: Stands above it.
        found: The points.
        label: Of the y axis.
        settle: What is done to the axes when the lines are drawn.
    """
    known = {
        arm: kept
        for arm, points in found.items()
        if (kept := [(x, e) for x, e in points if e.value is not None])
    }

    def draw(ax: Axes) -> None:
        _lines(ax, shown, known)
        ax.set_ylabel(label)
        for each in settle:
            each(ax)

    return Panel(name, title, draw) if known else None


def trajectories(
    shown: View,
    name: str,
    title: str,
    found: pl.DataFrame,
    labels: tuple[str, str],
    *settle: Draw,
    marker: bool = True,
    thin: str = "",
) -> Panel | None:
    """Make a panel of one line a run through its columns x and y.

    Args:
        shown: Whose arms they are.
        name: Names the panel in its figure.
        title: Stands above it.
        found: Lines with the columns arm, seed, x and y.
        labels: Of the x and the y axis.
        settle: What is done to the axes when the lines are drawn.
        marker: Whether points are marked.
        thin: A column that is drawn thin behind y.
    """
    known = found.filter(pl.col("x").is_finite(), pl.col("y").is_finite())
    runs = known.partition_by("arm", "seed", as_dict=True, maintain_order=True)

    def draw(ax: Axes) -> None:
        looks, seen = style.looks(shown), set()
        for (arm, _), line in runs.items():
            look, tag = looks[arm], style.tag(arm)
            how: dict[str, Any] = {
                "color": look.color,
                "linestyle": look.line,
                "gid": tag,
            }
            if thin:
                ax.plot(line["x"], line[thin], alpha=0.3, linewidth=0.5, **how)
            width = SEED_WIDTH if arm in seen else None
            mark = look.marker if marker else ""
            ax.plot(
                line["x"],
                line["y"],
                marker=mark,
                markersize=3.5,
                linewidth=width,
                **how,
            )
            seen.add(arm)
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        for each in settle:
            each(ax)

    return None if known.is_empty() else Panel(name, title, draw)


# --- Against bits -------------------------------------------------------------------


def _sweep(found: Sequence[Precision], weight_bits: int | None) -> list[Precision]:
    kept = [p for p in found if p.act_bits and p.weight_bits == weight_bits]
    return sorted(kept, key=lambda p: p.act_bits or 0)


def _widths(found: Sequence[Precision], least: int = 2) -> list[int | None]:
    """Return weight widths with so many activation widths: 8 first, none last."""
    widths = {p.weight_bits for p in found if p.act_bits}
    kept = [width for width in widths if len(_sweep(found, width)) >= least]
    return sorted(kept, key=lambda w: (w is None, w != 8, -(w or 0)))


def _title(weight_bits: int | None) -> str:
    return "weights FP" if weight_bits is None else f"weights {weight_bits} bit"


def _against_bits(
    shown: View,
    cells: Cells,
    width: int | None,
    stream: str | None,
    of: Callable[[str, Precision], Estimate],
    label: str,
    *settle: Draw,
    title: str = "{width}, stream {stream}",
) -> Panel | None:
    """Make a panel of a number by activation bits, at one weight width."""
    found = {
        arm: [(p.act_bits or 0, of(arm, p)) for p in _sweep(cells.precisions, width)]
        for arm in shown.arms
    }
    name = f"{'a' if width is None else f'w{width}'}_{stream or ''}"
    place = view.PLACEMENTS.get(stream or "", "")
    text = title.format(width=_title(width), stream=place)
    return series(shown, name, text, found, label, *settle, bits)


def increase(shown: View) -> Figure:
    """Draw the increase of loss against bits, a panel a weight width and placement."""
    widths = _widths(shown.precisions)
    label = "increase of loss, nats a token"
    panels = [
        _against_bits(
            shown,
            shown.rows,
            width,
            stream,
            lambda arm, p, stream=stream: shown.increase(arm, p, stream),
            label,
            symlog(INCREASE_LINEAR),
        )
        for width, stream in itertools.product(widths, shown.rows.placements)
    ]
    stands = [name for width in widths for name in ACCURACY_FIGURES.get(width, ())]
    return figure(shown, "loss_increase", panels, stands_for=stands)


def accuracy(shown: View) -> Figure:
    """Draw the mean accuracy on the eight tasks by bits."""
    asked = shown.results.tasks.filter(pl.col("avg").is_not_null())
    first = asked["questions"][0] if len(asked) else None
    ends = {
        "lo": pl.col("avg") - pl.col("avg_se"),
        "hi": pl.col("avg") + pl.col("avg_se"),
    }
    same = asked.filter(pl.col("questions").eq_missing(pl.lit(first)))
    cells = shown.cells(same.with_columns(**ends))
    full = {
        a: cells.of("avg", a, cells.reference, None, ("lo", "hi")) for a in shown.arms
    }

    def baselines(ax: Axes) -> None:
        for arm, look in style.looks(shown).items():
            if (value := full[arm].value) is not None:
                _reference(ax, value, color=look.color)

    widths = _widths(cells.precisions, least=1)
    panels = [
        _against_bits(
            shown,
            cells,
            width,
            stream,
            lambda arm, p, stream=stream: cells.of("avg", arm, p, stream, ("lo", "hi")),
            "average zero-shot accuracy",
            baselines,
        )
        for width, stream in itertools.product(widths, cells.placements)
    ]
    stands = [name for width in widths for name in ACCURACY_FIGURES.get(width, ())]
    return figure(shown, "accuracy", panels, stands_for=stands)


def printed_accuracy(shown: View, paper: Paper) -> Figure:
    """Draw the paper's accuracy against activation bits, from its Tables 2 to 4."""

    def panel(name: str, weight_bits: int | None) -> Panel | None:
        rows = [row for row in paper.tables[name] if row.act_bits is not None]
        found = {
            arm: [
                (row.act_bits or 0, Estimate(row.scores["avg"]))
                for row in rows
                if row.arm == arm
            ]
            for arm in dict.fromkeys(row.arm for row in rows)
        }

        def baselines(ax: Axes) -> None:
            for arm in found:
                full = paper.scores(arm, "FP", name)["avg"]
                _reference(ax, full, color=style.looks(shown)[arm].color)
            _reference(ax, paper.chance, f"chance {paper.chance:.3f}")

        title = f"paper: {_title(weight_bits)} (its Table {name.removeprefix('table')})"
        label = "average zero-shot accuracy"
        return series(shown, name, title, found, label, baselines, bits)

    wanted = {"table2": 8, "table3": 16, "table4": None}
    panels = [panel(*each) for each in wanted.items()]
    stands = [name for width in wanted.values() for name in ACCURACY_FIGURES[width]]
    return figure(shown, "paper_accuracy", panels, stands_for=stands, is_printed=True)


def gaussian_half_range(count: float) -> float:
    """Return the expected largest of standard normal draws, in standard deviations.

    It is the Gumbel mean, inverse_cdf(1 - exp(-euler_gamma) / count): 5.468 for the
    paper's calibration of 32,768 x 768 numbers, whose exact value is 5.467.

    Args:
        count: How many draws.
    """
    return statistics.NormalDist().inv_cdf(1.0 - math.exp(-np.euler_gamma) / count)


def gaussian_sqnr_db(bits: int, half_range: float) -> float:
    """Return the SQNR of a Gaussian on a min-max grid.

    10 log10(12 (2^b - 1)^2 / (2 R)^2). It holds at high resolution; from 3 bits on
    it is within 0.01 dB of the exact integral.
    """
    return 10.0 * math.log10(12.0 * (2**bits - 1) ** 2 / (2.0 * half_range) ** 2)


def sqnr(shown: View) -> Figure:
    """Draw SQNR and NMSE against bits beside a Gaussian tensor, and the gap to it."""
    seen = shown.results.rows.select(n=pl.col("calibration_tokens") * pl.col("width"))
    count: Any = seen["n"].min() or 32768 * 768
    half_range = gaussian_half_range(count)
    widths = _widths(shown.precisions)

    def ideal(ax: Axes) -> None:
        at = [4, 6, 8, 10, 12, 16]
        every = [gaussian_sqnr_db(b, half_range) for b in at]
        ax.plot(at, every, color=style.INK["muted"], linestyle=":", linewidth=1.2)

    def of(arm: str, p: Precision) -> Estimate:
        return shown.rows.of("sqnr_db", arm, p)

    def gap(arm: str, p: Precision) -> Estimate:
        found, level = of(arm, p), gaussian_sqnr_db(p.act_bits or 0, half_range)
        return (
            found if found.value is None else found._replace(value=found.value - level)
        )

    def nmse(arm: str, p: Precision) -> Estimate:
        return shown.rows.of("nmse", arm, p)

    kinds: Sequence[tuple[Any, str, str, Sequence[Draw]]] = (
        (of, "SQNR, {width}", "mean SQNR over sites, dB", [ideal]),
        (
            gap,
            "gap to a Gaussian tensor, {width}",
            "SQNR less a Gaussian's, dB",
            [lambda ax: _reference(ax, 0.0, "a Gaussian tensor")],
        ),
        (nmse, "normalized squared error, {width}", "mean NMSE over sites", [log]),
    )
    panels = [
        _against_bits(shown, shown.rows, w, None, of, label, *settle, title=title)
        for (of, title, label, settle), w in itertools.product(kinds, widths)
    ]
    for precision, site in itertools.product(_narrow(shown)[:1], view.PAPER_SITES):
        found = _site_lines(shown, precision, site, "sqnr_db")
        title, label = f"{view.SITES[site]}, {precision.name}", "SQNR, dB"
        panels.append(series(shown, f"site_{site}", title, found, label, layers))
    stands = [name for width in widths for name in DISTORTION_FIGURES.get(width, ())]
    return figure(shown, "sqnr", panels, stands_for=stands, half_range=half_range)


def _narrow(shown: View) -> list[Precision]:
    """Return the precisions of NARROW_BITS, else the two narrowest."""
    widths = _widths(shown.precisions)
    sweep = _sweep(shown.precisions, widths[0] if widths else None)
    return [p for p in sweep if p.act_bits in NARROW_BITS] or sweep[:2]


def _site_lines(
    shown: View, precision: Precision, site: str, field: str, stream: str | None = None
) -> dict[str, list[tuple[float, Estimate]]]:
    return {
        arm: list(enumerate(shown.site_layers(arm, precision, site, field, stream), 1))
        for arm in shown.arms
    }


def errors(shown: View) -> Figure:
    """Draw how the error grows through the network: by layer, and at the head."""
    field, label = "relative_error", "error energy / signal energy"
    panels: list[Panel | None] = []
    for precision, stream in itertools.product(
        reversed(_narrow(shown)), shown.sites.placements
    ):
        found = _site_lines(shown, precision, view.STREAM, field, stream)
        heads = _site_lines(shown, precision, "head_in", field, stream)
        # The first layer's stream is the embedding: without an error as a rule, which
        # a logarithmic axis cannot show.
        points = {
            arm: [
                (at, e)
                for at, e in (*line, *((len(line) + 1, e) for _, e in heads[arm]))
                if e.value
            ]
            for arm, line in found.items()
        }
        title = f"{precision.name}, stream {view.PLACEMENTS[stream]}"
        name = f"{precision.name}_{stream}"
        panels.append(series(shown, name, title, points, label, log, layers))
    for width, stream in itertools.product(
        _widths(shown.precisions)[:1], shown.sites.placements
    ):

        def head(arm: str, p: Precision, stream: str = stream) -> Estimate:
            found = shown.site_layers(arm, p, "head_in", field, stream)
            return found[0] if found else Estimate()

        title = "at the head, {width}, {stream}"
        panels.append(
            _against_bits(
                shown, shown.rows, width, stream, head, label, log, title=title
            )
        )
    return figure(shown, "errors", panels)


# --- Over training ------------------------------------------------------------------


def _floors(shown: View) -> Draw:
    def draw(ax: Axes) -> None:
        for name in ("unigram", "bigram"):
            if (value := shown.floor(name)) is not None:
                _reference(ax, value, f"{name} {value:.2f}")

    return draw


def training(shown: View) -> Figure:
    """Draw training and held-out loss against steps and against wall time."""
    frames = [frame for found in shown.curves.values() for frame in found]
    logged = pl.concat(frames) if frames else None
    floors, loss = _floors(shown), "training loss, nats a token"
    panels = [
        trajectories(
            shown,
            at,
            title,
            logged.with_columns(x=at, y="smooth"),
            (unit, loss),
            floors,
            marker=False,
            thin="loss",
        )
        for at, title, unit in (
            ("step", "loss by step", "step"),
            ("seconds", "loss by wall time", "seconds of training"),
        )
        if logged is not None
    ]
    measured = shown.results.measures.unique(
        ["arm", "seed", "step"], maintain_order=True
    )
    heldout = measured.with_columns(x="step", y="loss")
    labels = ("step", "held-out loss, nats a token")
    panels.append(
        trajectories(shown, "heldout", "held-out loss by step", heldout, labels, floors)
    )
    return figure(shown, "training", panels)


def kurtosis_training(shown: View) -> Figure:
    """Draw kurtosis over training, and against the loss it was reached at."""

    def panel(
        name: str, title: str, sites: Sequence[str], statistic: str, x: str
    ) -> Panel | None:
        kept = shown.peaks.filter(pl.col("site").is_in(sites), statistic=statistic)
        by = ["arm", "seed", "step", "loss"]
        found = kept.group_by(by, maintain_order=True).agg(y=pl.col("value").max())
        gamma = statistic == "excess_kurtosis"
        label = "excess kurtosis" if gamma else "negentropy, nats"
        scale = symlog(KURTOSIS_LINEAR if gamma else NEGENTROPY_LINEAR)
        unit = "held-out loss (learning goes right)" if x == "loss" else "step"
        settle = [scale, *([lambda ax: ax.invert_xaxis()] if x == "loss" else [])]
        lines = found.with_columns(x=x)
        return trajectories(shown, name, title, lines, (unit, label), *settle)

    gamma, stream = "excess_kurtosis", "attention norm's input"
    panels = [
        panel("stream", f"{stream}, largest over layers", [view.STREAM], gamma, "step"),
        panel("by_loss", f"{stream}, at equal loss", [view.STREAM], gamma, "loss"),
        panel(
            "negentropy", f"{stream}, negentropy", [view.STREAM], "negentropy", "step"
        ),
        panel(
            "paper_sites",
            "the paper's four sites, largest",
            view.PAPER_SITES,
            gamma,
            "step",
        ),
        panel("final", "final norm's input, apart", [view.FINAL], gamma, "step"),
    ]
    return figure(shown, "kurtosis_training", panels)


def temperature(evidence: Evidence) -> Figure:
    """Draw training loss with and without attention temperature (figure 3, middle)."""
    shown, panels = evidence.shown, []
    for pair in evidence.temperature_pairs():
        frames = [f for arm in pair for f in shown.curves.get(arm, [])[:1]]
        if len(frames) == len(pair):
            lines = pl.concat(frames).with_columns(x="step", y="smooth")
            labels = ("step", "training loss, nats a token")
            title = f"{view.arm_label(pair[0])}, and β > 1"
            name = "_".join(pair)
            panels.append(trajectories(shown, name, title, lines, labels, marker=False))
    return figure(shown, "temperature", panels)


def ranges(shown: View) -> Figure:
    """Draw how far the stream's values reach, over steps and by layer (E.2)."""
    by = ["arm", "seed", "step", "layer"]
    ends = shown.results.measures.filter(
        pl.col("statistic").is_in(["range_lo", "range_hi"]), site=view.STREAM
    )
    reach = ends.group_by(by, maintain_order=True).agg(y=pl.col("value").abs().max())
    steps = reach.group_by(by[:-1], maintain_order=True).agg(pl.col("y").max())
    last = shown.ends.select(by[:-1]).unique()
    at_end = reach.join(last, by[:-1]).sort("layer").with_columns(x="layer")
    label = "largest magnitude"
    panels = [
        trajectories(
            shown,
            "step",
            "largest over layers, by step",
            steps.with_columns(x="step"),
            ("step", label),
            log,
        ),
        trajectories(
            shown,
            "layer",
            "by layer, at the end",
            at_end,
            ("layer", label),
            log,
            layers,
        ),
    ]
    return figure(shown, "ranges", panels)


def by_layer(shown: View, name: str, statistic: str, sites: Sequence[str]) -> Figure:
    """Draw a statistic by layer at the end of training, one panel a site."""
    gamma = statistic == "excess_kurtosis"
    scale = symlog(KURTOSIS_LINEAR if gamma else NEGENTROPY_LINEAR)
    label = "excess kurtosis" if gamma else "negentropy, nats"
    panels = [
        series(
            shown,
            site,
            f"{view.SITES[site]} ({site})",
            {
                arm: list(enumerate(shown.by_layer(arm, site, statistic), 1))
                for arm in shown.arms
            },
            label,
            scale,
            layers,
        )
        for site in sites
    ]
    return figure(shown, name, panels)


# --- Histograms ---------------------------------------------------------------------


def standardized(line: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return edges of (x - mean) / standard deviation and the densities between them.

    Args:
        line: A line of `Results.histograms`.

    Returns:
        None where the line lacks a number or holds no counts.
    """
    numbers = [line[name] for name in ("center", "scale", "mean", "rms")]
    if None in numbers or line["edges"] is None:
        return None
    center, scale, mean, rms = numbers
    counts = np.asarray(line["counts"], np.float64)
    if (
        not rms > abs(mean)
        or len(counts) != len(line["edges"]) - 1
        or not counts.sum() > 0
    ):
        return None
    edges = (center + scale * np.asarray(line["edges"]) - mean) / math.sqrt(
        rms**2 - mean**2
    )
    return edges, counts / counts.sum() / np.diff(edges)


def _stairs(
    shown: View,
    drawn: Mapping[str, tuple[np.ndarray, np.ndarray]],
    reach: float,
    *,
    fill: bool,
) -> Draw:
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
        log(ax)
        ax.set_ylim(1e-6, 3.0)
        ax.set_xlim(-reach, reach)
        ax.set_xlabel("(activation − mean) / standard deviation")
        ax.set_ylabel("density")

    return draw


def _reach(drawn: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the standard deviations to both sides that show them all, to a limit."""
    far = [np.abs(edges[:-1][density > 0]).max() for edges, density in drawn]
    return float(np.clip(max(far, default=0.0), *REACH))


def _layer_of(
    shown: View, arm: str, layer: float, **where: Any
) -> Mapping[str, Any] | None:
    """Return the stream's histogram at a relative depth of an arm's first seed."""
    for run in shown.runs(arm)[:1]:
        found = shown.results.histograms.filter(
            arm=arm, seed=run.seed, site=view.STREAM
        )
        step = where.get("step")
        found = found.filter(pl.col("step").eq_missing(pl.lit(step, pl.Int64)))
        for depth in found["depth"].head(1):
            at = view.same_depth(layer, 1, depth)
            return found.filter(layer=at).row(0, named=True)
    return None


def histograms(shown: View) -> Figure:
    """Draw standardized activations of the layer at two thirds, one panel an arm."""
    lines = {arm: line for arm in shown.arms if (line := _layer_of(shown, arm, 2 / 3))}
    drawn = {arm: made for arm, line in lines.items() if (made := standardized(line))}
    reach, panels = _reach(drawn.values()), []
    for arm, made in drawn.items():
        gamma, loss = lines[arm]["excess_kurtosis"], shown.full_loss(arm).value
        texts = [
            cells.MISSING if gamma is None else cells.write(gamma, "kurtosis"),
            cells.MISSING if loss is None else f"{loss:.2f}",
        ]
        title = f"{view.arm_label(arm)}: γ = {texts[0]}, loss {texts[1]}"
        panels.append(Panel(arm, title, _stairs(shown, {arm: made}, reach, fill=True)))
    return figure(shown, "histograms", panels)


def histograms_training(shown: View, paper: Paper) -> Figure:
    """Draw histograms of all arms by layer and step, as the paper's figures 7 to 9."""
    recorded = shown.results.histograms.filter(pl.col("step").is_not_null())
    steps = recorded["step"].unique().sort().to_list()
    last = len(steps) - 1
    columns = sorted(
        {steps[round(i * last / 3)] for i in range(EVOLUTION_STEPS) if steps}
    )
    depths = sorted({entry.layer for entry in paper.kurtosis})
    cells = {
        (layer, step): {
            arm: made
            for arm in shown.arms
            if (line := _layer_of(shown, arm, layer / paper.num_layers, step=step))
            and (made := standardized(line))
        }
        for layer, step in itertools.product(depths, columns)
    }
    reach = _reach(made for cell in cells.values() for made in cell.values())
    panels = [
        Panel(
            f"layer{layer}_step{step}",
            f"layer {layer} of {paper.num_layers}, step {step:,}",
            _stairs(shown, cell, reach, fill=False),
        )
        for (layer, step), cell in cells.items()
        if cell
    ]
    return figure(shown, "histograms_training", panels)


def every(evidence: Evidence, everyone: View) -> list[Figure]:
    """Make every figure, in the order of the page.

    Args:
        evidence: The results.
        everyone: The view with the paper's arms too, for its own numbers.
    """
    shown, gamma = evidence.shown, "excess_kurtosis"
    return [
        increase(shown),
        training(shown),
        temperature(evidence),
        kurtosis_training(shown),
        by_layer(shown, "kurtosis_layers", gamma, view.PAPER_SITES),
        by_layer(shown, "negentropy_layers", "negentropy", view.PAPER_SITES),
        by_layer(shown, "kurtosis_layers_other", gamma, view.OTHER_SITES),
        histograms(shown),
        histograms_training(shown, evidence.paper),
        ranges(shown),
        sqnr(shown),
        errors(shown),
        accuracy(shown),
        printed_accuracy(everyone, evidence.paper),
    ]
