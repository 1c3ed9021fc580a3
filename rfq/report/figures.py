"""Every figure of the report: what its panels draw, and on which axes."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rfq.report import cells, law, paper, style, view
from rfq.report.arms import arm_label
from rfq.report.estimates import Estimate
from rfq.report.evidence import Evidence
from rfq.report.panels import (
    ACCURACY,
    BITS,
    BY_LOSS,
    ENERGY,
    GAMMA,
    INCREASE,
    LAYER,
    NEGENTROPY,
    NMSE,
    REACHES,
    SHOWN_BITS,
    TRAINING,
    Density,
    Reference,
    lines,
    means,
    reach_of,
    stairs,
    standardized,
    weights,
)
from rfq.report.render import Figure, Panel
from rfq.report.view import Cells, Precision, View

STATISTICS = {GAMMA: "excess_kurtosis", NEGENTROPY: "negentropy"}
NARROW_BITS = (6, 4)  # Where quantization begins to cost a small model something.
EVOLUTION_STEPS = 4  # Columns of the figure of histograms over training.


# --- Against bits -------------------------------------------------------------------


def _sweep(found: Sequence[Precision], weight_bits: int | None) -> list[Precision]:
    kept = [p for p in found if p.act_bits and p.weight_bits == weight_bits]
    return sorted(kept, key=lambda p: p.act_bits or 0)


def _widths(found: Sequence[Precision], least: int = 2) -> list[int | None]:
    """Return weight widths with so many activation widths: 8 first, none last."""
    widths = {p.weight_bits for p in found if p.act_bits}
    kept = [width for width in widths if len(_sweep(found, width)) >= least]
    return sorted(kept, key=lambda w: (w is None, w != 8, -(w or 0)))


def _against_bits(
    shown: View,
    found: Sequence[Precision],
    width: int | None,
    stream: str,
    of: Callable[[str, Precision, str], Estimate],
    y: str,
    references: Sequence[Reference] = (),
    title: str = "",
    curve: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Panel | None:
    """Make a panel of a number by activation bits, at one weight width."""
    every = itertools.product(shown.arms, _sweep(found, width))
    points = means((arm, p.act_bits or 0, of(arm, p, stream)) for arm, p in every)
    name = f"{'a' if width is None else f'w{width}'}_{stream}"
    place = view.PLACEMENTS.get(stream, "")
    title = title or f"{weights(width)}, stream {place}"
    return lines(shown, name, title, points, BITS, y, references, curve=curve)


def increase(shown: View) -> Iterator[Panel | None]:
    """Draw the increase of loss against bits, a panel a weight width and placement."""
    places = itertools.product(_widths(shown.precisions), shown.rows.placements)
    sweep, of = shown.precisions, shown.increase
    for width, stream in places:
        yield _against_bits(shown, sweep, width, stream, of, INCREASE)


def _asked(shown: View) -> Cells:
    """Return the accuracies on the first set of questions with an average."""
    asked = shown.results.tasks.filter(pl.col("avg").is_not_null())
    same = pl.col("questions").eq_missing(pl.col("questions").first())
    average, error = pl.col("avg"), pl.col("avg_se")
    return shown.cells(
        asked.filter(same).with_columns(lo=average - error, hi=average + error)
    )


def accuracy(shown: View) -> Iterator[Panel | None]:
    """Draw the mean accuracy on the eight tasks by bits, beside full precision."""
    found, looks = _asked(shown), style.looks(shown)
    full = [
        Reference(
            found.of("avg", a, found.reference, None, ("lo", "hi")).value,
            color=look.color,
        )
        for a, look in looks.items()
    ]
    widths = _widths(found.precisions, least=1)

    def of(arm: str, p: Precision, stream: str) -> Estimate:
        return found.of("avg", arm, p, stream, ("lo", "hi"))

    for width, stream in itertools.product(widths, found.placements):
        yield _against_bits(shown, found.precisions, width, stream, of, ACCURACY, full)


def printed_accuracy(shown: View) -> Iterator[Panel | None]:
    """Draw the paper's accuracy against activation bits, from its Tables 2 to 4."""
    printed, looks = paper.load(), style.looks(shown)
    for name, width in {"table2": 8, "table3": 16, "table4": None}.items():
        rows = [row for row in printed.tables[name] if row["act_bits"] is not None]
        points = means((r["arm"], r["act_bits"], Estimate(r["avg"])) for r in rows)
        full = [
            Reference(printed.scores(arm, "FP", name)["avg"], color=looks[arm].color)
            for arm in points["arm"].unique(maintain_order=True)
        ]
        chance = printed.chance["avg"]
        references = [*full, Reference(chance, f"chance {chance:.3f}")]
        title = f"paper: {weights(width)} (its Table {name.removeprefix('table')})"
        yield lines(shown, name, title, points, BITS, ACCURACY, references)


def gaussian_half_range(count: float) -> float:
    """Return the expected largest of standard normal draws, in standard deviations.

    It is the Gumbel mean, inverse_cdf(1 - exp(-euler_gamma) / count): 5.468 for the
    paper's calibration of 32,768 x 768 numbers, whose exact value is 5.467.
    """
    return statistics.NormalDist().inv_cdf(1.0 - math.exp(-np.euler_gamma) / count)


def gaussian_sqnr_db(bits: int, half_range: float) -> float:
    """Return the SQNR of a Gaussian on a min-max grid.

    10 log10(12 (2^b - 1)^2 / (2 R)^2). It holds at high resolution; from 3 bits on
    it is within 0.01 dB of the exact integral.
    """
    return 10.0 * math.log10(12.0 * (2**bits - 1) ** 2 / (2.0 * half_range) ** 2)


def half_range(shown: View) -> float:
    """Return that of a Gaussian tensor as large as those that were calibrated on."""
    seen = shown.results.rows.select(n=pl.col("calibration_tokens") * pl.col("width"))
    count: Any = seen["n"].min()
    return gaussian_half_range(count or 32768 * 768)


def sqnr(shown: View) -> Iterator[Panel | None]:
    """Draw SQNR and NMSE against bits beside a Gaussian tensor, and the gap to it."""
    ideal = {b: gaussian_sqnr_db(b, half_range(shown)) for b in range(1, 33)}

    def of(arm: str, p: Precision, _: str) -> Estimate:
        return shown.rows.of("sqnr_db", arm, p)

    def gap(arm: str, p: Precision, stream: str) -> Estimate:
        found = of(arm, p, stream)
        level = ideal[p.act_bits or 1]
        return (
            found if found.value is None else found._replace(value=found.value - level)
        )

    def nmse(arm: str, p: Precision, _: str) -> Estimate:
        return shown.rows.of("nmse", arm, p)

    gaussian = (SHOWN_BITS, [ideal[bits] for bits in SHOWN_BITS])
    zero, sweep = [Reference(0.0, "a Gaussian tensor")], shown.precisions
    less, ratio = "SQNR less a Gaussian's, dB", "mean SQNR over sites, dB"
    widths = _widths(sweep)
    for w in widths:
        title = f"SQNR, {weights(w)}"
        yield _against_bits(shown, sweep, w, "", of, ratio, (), title, gaussian)
    for w in widths:
        title = f"gap to a Gaussian tensor, {weights(w)}"
        yield _against_bits(shown, sweep, w, "", gap, less, zero, title)
    for w in widths:
        title = f"normalized squared error, {weights(w)}"
        yield _against_bits(shown, sweep, w, "", nmse, NMSE, (), title)
    for precision, site in itertools.product(_narrow(shown)[:1], view.PAPER_SITES):
        points = means(_site_lines(shown, precision, site, "sqnr_db"))
        title = f"{view.SITES[site]}, {precision.name}"
        yield lines(shown, f"site_{site}", title, points, LAYER, "SQNR, dB")


def _narrow(shown: View) -> list[Precision]:
    """Return the precisions of NARROW_BITS, else the two narrowest."""
    widths = _widths(shown.precisions)
    sweep = _sweep(shown.precisions, widths[0] if widths else None)
    return [p for p in sweep if p.act_bits in NARROW_BITS] or sweep[:2]


def _site_lines(
    shown: View, precision: Precision, site: str, field: str, stream: str | None = None
) -> Iterator[tuple[str, float, Estimate]]:
    for arm in shown.arms:
        found = shown.sites.layers(arm, precision, site, field, stream)
        yield from ((arm, at, each) for at, each in enumerate(found, 1))


def errors(shown: View) -> Iterator[Panel | None]:
    """Draw how the error grows through the network: by layer, and at the head."""
    field, streams = "relative_error", shown.sites.placements
    for precision, stream in itertools.product(reversed(_narrow(shown)), streams):
        stream_at = list(_site_lines(shown, precision, view.STREAM, field, stream))
        heads = _site_lines(shown, precision, "head_in", field, stream)
        depths = {arm: at for arm, at, _ in stream_at}
        after = [(arm, depths.get(arm, 0) + 1, each) for arm, _, each in heads]
        # The first layer's stream is the embedding: without an error as a rule, which
        # a logarithmic axis cannot show.
        points = means(point for point in (*stream_at, *after) if point[2].value)
        title = f"{precision.name}, stream {view.PLACEMENTS[stream]}"
        name = f"{precision.name}_{stream}"
        yield lines(shown, name, title, points, LAYER, ENERGY)

    def head(arm: str, p: Precision, stream: str) -> Estimate:
        found = shown.sites.layers(arm, p, "head_in", field, stream)
        return found[0] if found else Estimate()

    for width, stream in itertools.product(_widths(shown.precisions)[:1], streams):
        title = f"at the head, {weights(width)}, {view.PLACEMENTS[stream]}"
        yield _against_bits(
            shown, shown.precisions, width, stream, head, ENERGY, title=title
        )


# --- Over training ------------------------------------------------------------------


def training(shown: View) -> Iterator[Panel | None]:
    """Draw training and held-out loss against steps and against wall time."""
    known = {name: shown.floor(name) for name in ("unigram", "bigram")}
    floors = [
        Reference(y, f"{name} {y:.2f}") for name, y in known.items() if y is not None
    ]
    for at, title, label in (
        ("step", "loss by step", "step"),
        ("seconds", "loss by wall time", "seconds of training"),
    ):
        points = shown.curves.with_columns(x=at, y="smooth", thin="loss")
        yield lines(shown, at, title, points, label, TRAINING, floors, marker=False)
    measured = shown.results.measures.unique(
        ["arm", "seed", "step"], maintain_order=True
    )
    points, label = (
        measured.with_columns(x="step", y="loss"),
        "held-out loss, nats a token",
    )
    yield lines(
        shown, "heldout", "held-out loss by step", points, "step", label, floors
    )


def kurtosis_training(shown: View) -> Iterator[Panel | None]:
    """Draw kurtosis over training, and against the loss it was reached at."""
    stream = view.SITES[view.STREAM]
    for title, sites, label, x in (
        (f"{stream}, largest over layers", [view.STREAM], GAMMA, "step"),
        (f"{stream}, at equal loss", [view.STREAM], GAMMA, "loss"),
        (f"{stream}, negentropy", [view.STREAM], NEGENTROPY, "step"),
        ("the paper's four sites, largest", view.PAPER_SITES, GAMMA, "step"),
        ("final norm's input, apart", [view.FINAL], GAMMA, "step"),
    ):
        kept = shown.peaks.filter(
            pl.col("site").is_in(sites), statistic=STATISTICS[label]
        )
        by = ["arm", "seed", "step", "loss"]
        points = kept.group_by(by, maintain_order=True).agg(y=pl.col("value").max())
        unit = BY_LOSS if x == "loss" else "step"
        yield lines(shown, title, title, points.with_columns(x=x), unit, label)


def temperature(evidence: Evidence) -> Iterator[Panel | None]:
    """Draw training loss with and without attention temperature (figure 3, middle)."""
    curves = evidence.shown.curves.with_columns(x="step", y="smooth")
    for off, on in evidence.temperature_pairs():
        mine = pl.col("arm").is_in([off.name, on.name])
        first = pl.col("seed") == pl.col("seed").first().over("arm")
        points = curves.filter(mine).filter(first)
        if points["arm"].n_unique() == 2:
            name, title = f"{off.name}_{on.name}", f"{arm_label(off.name)}, and β > 1"
            yield lines(
                evidence.shown, name, title, points, "step", TRAINING, marker=False
            )


def ranges(shown: View) -> Iterator[Panel | None]:
    """Draw how far the stream's values reach, over steps and by layer (E.2)."""
    by = ["arm", "seed", "step", "layer"]
    ends = shown.results.measures.filter(
        pl.col("statistic").is_in(["range_lo", "range_hi"]), site=view.STREAM
    )
    reach = ends.group_by(by, maintain_order=True).agg(y=pl.col("value").abs().max())
    steps = reach.group_by(by[:-1], maintain_order=True).agg(pl.col("y").max())
    last = shown.ends.select(by[:-1]).unique()
    at_end = reach.join(last, by[:-1]).sort("layer").with_columns(x="layer")
    title, points = "largest over layers, by step", steps.with_columns(x="step")
    yield lines(shown, "step", title, points, "step", REACHES)
    yield lines(shown, "layer", "by layer, at the end", at_end, LAYER, REACHES)


def by_layer(shown: View, label: str, sites: Sequence[str]) -> Iterator[Panel | None]:
    """Draw a statistic by layer at the end of training, one panel a site."""
    for site in sites:
        found = {a: shown.by_layer(a, site, STATISTICS[label]) for a in shown.arms}
        points = means(
            (arm, at, each) for arm in found for at, each in enumerate(found[arm], 1)
        )
        title = f"{view.SITES[site]} ({site})"
        yield lines(shown, site, title, points, LAYER, label)


def _densities(
    shown: View, layer: float, step: int | None
) -> Mapping[str, tuple[Density, Any]]:
    """Return the stream's density and kurtosis at the paper's layer, by arm."""
    found = shown.results.histograms.filter(
        pl.col("step").eq_missing(pl.lit(step, pl.Int64)), site=view.STREAM
    )
    densities = {}
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            mine = found.filter(arm=arm, seed=run.seed)
            at = view.same_depth(layer, mine["depth"][0]) if len(mine) else 0
            for line in mine.filter(layer=at).iter_rows(named=True):
                if made := standardized(line):
                    densities[arm] = made, line["excess_kurtosis"]
    return densities


def histograms(shown: View) -> Iterator[Panel | None]:
    """Draw standardized activations of the layer at two thirds, one panel an arm."""
    found = _densities(shown, 16, None)
    reach = reach_of(density for density, _ in found.values())
    for arm, (density, kurtosis) in found.items():
        gamma = cells.cell(kurtosis, "", "kurtosis").text
        loss = cells.cell(shown.full_loss(arm), "", "~.2f").text
        title = f"{arm_label(arm)}: γ = {gamma}, loss {loss}"
        yield Panel(arm, title, stairs(shown, {arm: density}, reach, fill=True))


def histograms_training(shown: View) -> Iterator[Panel | None]:
    """Draw histograms of all arms by layer and step, as the paper's figures 7 to 9."""
    recorded = shown.results.histograms["step"].drop_nulls().unique().sort().to_list()
    last, printed = len(recorded) - 1, paper.load()
    places = np.linspace(0, last, EVOLUTION_STEPS).round().astype(int)
    columns = sorted({recorded[i] for i in places if recorded})
    layers = sorted({entry["layer"] for entry in printed.kurtosis})
    every = {
        (layer, step): {
            a: density for a, (density, _) in _densities(shown, layer, step).items()
        }
        for layer, step in itertools.product(layers, columns)
    }
    reach = reach_of(density for found in every.values() for density in found.values())
    for (layer, step), found in every.items():
        if found:
            title = f"layer {layer} of {printed.setting['num_layers']}, step {step:,}"
            draw = stairs(shown, found, reach, fill=False)
            yield Panel(f"layer{layer}_step{step}", title, draw)


def every(evidence: Evidence, everyone: View) -> dict[str, Figure]:
    """Make every figure, in the order of the page, with the words of texts.toml.

    Args:
        evidence: The results.
        everyone: The view with the paper's arms too, for its own numbers.
    """
    shown = evidence.shown
    drawn = {
        "loss_increase": increase(shown),
        "training": training(shown),
        "temperature": temperature(evidence),
        "kurtosis_training": kurtosis_training(shown),
        "kurtosis_layers": by_layer(shown, GAMMA, view.PAPER_SITES),
        "negentropy_layers": by_layer(shown, NEGENTROPY, view.PAPER_SITES),
        "kurtosis_layers_other": by_layer(shown, GAMMA, view.OTHER_SITES),
        "histograms": histograms(shown),
        "histograms_training": histograms_training(shown),
        "ranges": ranges(shown),
        "sqnr": sqnr(shown),
        "errors": errors(shown),
        "law": law.prediction(shown),
        "depth": law.depth(shown),
        "crossing": law.crossing(shown),
        "accuracy": accuracy(shown),
        "paper_accuracy": printed_accuracy(everyone),
    }
    return {name: _figure(shown, name, panels) for name, panels in drawn.items()}


def _figure(shown: View, name: str, panels: Iterable[Panel | None]) -> Figure:
    said = paper.words()["figures"][name]
    kept = [panel for panel in panels if panel is not None]
    # What it shows of the paper's, which may depend on the panels that there are.
    stands = said.get("stands_for", [])
    if isinstance(stands, Mapping):
        stands = [n for p in kept for n in stands.get(p.name.split("_")[0], ())]
    return Figure(
        name=name,
        title=said["title"],
        guide=said["guide"].format(half_range=half_range(shown)),
        panels=kept,
        missing="" if kept else said["missing"],
        legend={arm_label(arm): look for arm, look in style.looks(shown).items()},
        stands_for=list(dict.fromkeys(stands)) if kept else (),
        is_printed=name.startswith("paper_"),
    )
