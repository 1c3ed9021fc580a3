"""Figures over training: loss, kurtosis and ranges against steps and seconds."""

from collections.abc import Callable, Sequence
from typing import Literal

import matplotlib.ticker
from matplotlib.axes import Axes

from rfq.report import activations, curves, figures, load, style, view
from rfq.report.evidence import Evidence
from rfq.report.figures import Figure, Panel
from rfq.report.load import Record, Run
from rfq.report.paper import Paper
from rfq.report.view import View


def training_figure(shown: View) -> Figure:
    """Training and held-out loss against steps and against wall time."""
    looks = style.looks(shown)
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
                    figures.line(
                        ax,
                        looks[arm],
                        arm,
                        x,
                        y,
                        marker=False,
                        linewidth=0.5,
                        alpha=0.3,
                    )
                    width = figures.SEED_WIDTH if end else None
                    figures.line(
                        ax, looks[arm], arm, x, smooth, marker=False, linewidth=width
                    )
                    end = end or figures.End(
                        arm, x[-1], smooth[-1], view.arm_label(arm)
                    )
                if end is not None:
                    ends.append(end)
            _floors(ax, shown)
            ax.set_xlabel(label)
            ax.set_ylabel("training loss, nats a token")
            figures.label_ends(ax, shown, ends)

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
        stands_for=("Figure 3 left",),
        notes=[f"The {name} floor is missing in context.json." for name in absent],
    )


def _floors(ax: Axes, shown: View) -> None:
    """The n-gram floors, named where falling losses leave room."""
    sides: dict[str, Literal["left", "right"]] = {"unigram": "right", "bigram": "left"}
    for name, side in sides.items():
        value = shown.floor(name)
        if value is not None:
            figures.guide_line(ax, value, f"{name} {value:.2f}", side=side)


def _heldout(shown: View, looks) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        ends = _trajectories(
            ax,
            shown,
            looks,
            lambda m: load.number(m, "step"),
            lambda m: load.number(m, "loss"),
        )
        _floors(ax, shown)
        ax.set_xlabel("step")
        ax.set_ylabel("held-out loss, nats a token")
        figures.label_ends(ax, shown, ends)

    return draw


def _trajectories(
    ax: Axes,
    shown: View,
    looks,
    x_of: Callable[[Record], float | None],
    y_of: Callable[[Record], float | None],
) -> list[figures.End]:
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
            width = None if first else figures.SEED_WIDTH
            figures.line(ax, looks[arm], arm, x, y, markersize=3.5, linewidth=width)
            if first:
                ends.append(figures.End(arm, x[-1], y[-1], view.arm_label(arm)))
            first = False
    return ends


def kurtosis_training_figure(shown: View) -> Figure:
    """Kurtosis over training, and against the loss it was reached at."""
    looks = style.looks(shown)
    measured = [m for run in shown.results.runs for m in run.measures]

    def panel(
        name: str,
        title: str,
        sites: Sequence[str],
        *,
        field: str = "excess_kurtosis",
        by_loss: bool = False,
    ) -> Panel | None:
        values = [view.peak(m, sites, field) for m in measured]
        finite = [value for value in values if value is not None]
        if not finite:
            return None
        label, linear = activations.LAYER_STATISTICS[field]

        def draw(ax: Axes) -> None:
            ends = _trajectories(
                ax,
                shown,
                looks,
                lambda m: load.number(m, "loss" if by_loss else "step"),
                lambda m: view.peak(m, sites, field),
            )
            figures.symlog(ax, linear, finite)
            ax.set_ylabel(label)
            if by_loss:
                ax.set_xlabel("held-out loss, nats a token (learning goes right)")
                ax.invert_xaxis()
            else:
                ax.set_xlabel("step")
            figures.label_ends(ax, shown, ends)

        return Panel(name, title, draw)

    stream, title = ("attn_norm_in",), "attention norm's input"
    wanted = [
        panel("stream", f"{title}, largest over layers", stream),
        panel("by_loss", f"{title}, at equal loss", stream, by_loss=True),
        panel("negentropy", f"{title}, negentropy", stream, field="negentropy"),
        panel("paper_sites", "the paper's four sites, largest", view.PAPER_SITES),
        panel("final", "final norm's input, apart", ("final_norm_in",)),
    ]
    panels = [made for made in wanted if made is not None]
    return Figure(
        name="kurtosis_training",
        title="Kurtosis over training",
        guide=(
            "0 is Gaussian, up is heavier tails; linear below "
            f"{figures.KURTOSIS_LINEAR:g}, logarithmic above. Negentropy sees any "
            "other shape too. The panel at equal loss "
            "is the fair comparison: an arm that stays left has learnt less, and less "
            "learnt means lighter tails."
        ),
        panels=panels,
        missing="" if panels else "no measures.jsonl in any run",
        stands_for=("Figure 3 right", "Figure 5"),
    )


def temperature_figure(shown: View, paper: Paper) -> Figure:
    """Training loss with and without attention temperature (figure 3, middle)."""
    pairs = Evidence(shown=shown, paper=paper).temperature_pairs()
    looks = style.looks(shown)

    def panel(off: str, on: str) -> Panel:
        def draw(ax: Axes) -> None:
            ends = []
            for arm in (off, on):
                for run in shown.runs(arm)[:1]:
                    x, y = figures.finite(*_steps_and_losses(run))
                    if not x:
                        continue  # Not finite from the first logged step on.
                    smooth = curves.smooth(y)
                    figures.line(ax, looks[arm], arm, x, smooth, marker=False)
                    label = view.arm_label(arm)
                    ends.append(figures.End(arm, x[-1], smooth[-1], label))
            ax.set_xlabel("step")
            ax.set_ylabel("training loss, nats a token")
            figures.label_ends(ax, shown, ends)

        return Panel(f"{off}_{on}", f"{view.arm_label(off)}, and β > 1", draw)

    panels = [
        panel(off, on)
        for off, on in pairs
        if all(run.metrics for arm in (off, on) for run in shown.runs(arm)[:1])
    ]
    return Figure(
        name="temperature",
        title="Attention temperature",
        guide=(
            "Down is better. Pairs of residual-free arms that differ in β alone; "
            "running mean of the training loss, first seed."
        ),
        panels=panels,
        missing="" if panels else "no pair of arms that differs in β alone",
        stands_for=("Figure 3 middle",),
    )


def _steps_and_losses(run: Run) -> tuple[list[float], list[float | None]]:
    kept = [r for r in run.metrics if load.number(r, "step") is not None]
    steps = [load.number(record, "step") or 0.0 for record in kept]
    return steps, [load.number(record, "loss") for record in kept]


def _log_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    for of in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        of(matplotlib.ticker.FuncFormatter(figures.plain_log))


def ranges_figure(shown: View) -> Figure:
    """How far the stream's values reach, over steps and by layer (appendix E.2)."""
    looks = style.looks(shown)

    def reach(measure: Record) -> list[float]:
        return [
            max(abs(lo), abs(hi))
            for lo, hi in view.layer_ranges(measure, "attn_norm_in")
            if lo is not None and hi is not None
        ]

    def over_steps(ax: Axes) -> None:
        ends = _trajectories(
            ax,
            shown,
            looks,
            lambda m: load.number(m, "step"),
            lambda m: max(reach(m), default=None),
        )
        _log_axis(ax)
        ax.set_xlabel("step")
        ax.set_ylabel("largest magnitude")
        figures.label_ends(ax, shown, ends)

    def by_layer(ax: Axes) -> None:
        ends, depth = [], 1
        for arm in shown.arms:
            for end in shown.ends(arm)[:1]:
                values = reach(end)
                if values:
                    depth, layers = max(depth, len(values)), range(1, len(values) + 1)
                    figures.line(ax, looks[arm], arm, layers, values)
                    label = view.arm_label(arm)
                    ends.append(figures.End(arm, layers[-1], values[-1], label))
        _log_axis(ax)
        figures.layer_axis(ax, depth)
        ax.set_ylabel("largest magnitude")
        figures.label_ends(ax, shown, ends)

    measured = any(reach(m) for run in shown.results.runs for m in run.measures)
    ended = any(reach(end) for arm in shown.arms for end in shown.ends(arm))
    panels = []
    if measured:
        panels.append(Panel("step", "largest over layers, by step", over_steps))
    if ended:
        panels.append(Panel("layer", "by layer, at the end", by_layer))
    return Figure(
        name="ranges",
        title="Value ranges",
        guide=(
            "The largest magnitude of the attention norm's input on held-out tokens: "
            "what a min-max grid has to reach. The scale of a residual stream grows "
            "with depth by itself; read it beside the kurtosis."
        ),
        panels=panels,
        missing=""
        if panels
        else "no value ranges in measures.jsonl; runs record them from now on",
    )
