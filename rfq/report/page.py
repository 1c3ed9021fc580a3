"""Puts tables, figures and sentences into one HTML file that needs nothing else."""

import html
import pathlib
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import jinja2
import markupsafe
import numpy as np
from matplotlib.markers import MarkerStyle

from rfq import files
from rfq.errors import InputError
from rfq.report import (
    accuracy,
    activations,
    claims,
    diagnosis,
    dynamics,
    load,
    notes,
    paper,
    precision,
    render,
    style,
    tables,
    training,
    view,
)
from rfq.report.figures import Figure
from rfq.report.load import Results
from rfq.report.tables import Table
from rfq.report.view import View


def all_tables(
    shown: View, printed: paper.Paper, judged: list[claims.Judged]
) -> list[Table]:
    """Every table of the report; one more main table for each further setting."""
    others = view.settings(shown.results)[1:]
    widths = {p.weight_bits for p in shown.precisions if p.name != "FP"}
    beside = sorted(widths & {8, 16, None}, key=lambda w: (w is None, w != 8, w))
    return [
        tables.glance_table(shown),
        claims.claims_table(judged),
        claims.numbers_table(judged),
        tables.main_table(shown),
        tables.arms_table(shown, printed),
        *accuracy.accuracy_tables(shown, printed),
        *(tables.beside_table(shown, printed, weight_bits=w) for w in beside),
        tables.kurtosis_table(
            shown, sites=(*view.PAPER_SITES, *view.FINAL_SITES), name="kurtosis"
        ),
        tables.kurtosis_table(
            shown, sites=shown.measured(view.OTHER_SITES), name="kurtosis_other"
        ),
        diagnosis.structure_table(shown),
        diagnosis.noise_table(shown),
        diagnosis.weights_cost_table(shown),
        diagnosis.weights_table(shown),
        tables.matched_table(shown),
        dynamics.equal_cost_table(shown, printed),
        dynamics.ranges_table(shown),
        dynamics.costs_table(shown, printed),
        dynamics.calibrators_table(shown),
        tables.paper_kurtosis_table(shown, printed),
        *(tables.paper_table(printed, name) for name in printed.tables),
        *(tables.main_table(view.of(shown.results, other)) for other in others),
    ]


_LAYERWISE = ("Figure 11 right", "Figure 13 right", "Figure 15 right")


def all_figures(shown: View, printed: paper.Paper) -> list[Figure]:
    """Every figure of the report, in the order of the page."""
    return [
        precision.increase_figure(shown),
        precision.accuracy_figure(shown),
        precision.paper_figure(shown, printed),
        precision.sqnr_figure(shown),
        precision.error_figure(shown),
        training.training_figure(shown),
        training.kurtosis_training_figure(shown),
        training.temperature_figure(shown, printed),
        training.ranges_figure(shown),
        activations.layers_figure(
            shown,
            "excess_kurtosis",
            sites=view.PAPER_SITES,
            name="kurtosis_layers",
            title="Kurtosis by layer at the end",
            stands_for=("Figure 1 right", "Figure 5", *_LAYERWISE),
        ),
        activations.layers_figure(
            shown,
            "negentropy",
            sites=view.PAPER_SITES,
            name="negentropy_layers",
            title="Negentropy by layer at the end",
            stands_for=("Figure 5", *_LAYERWISE),
        ),
        activations.layers_figure(
            shown,
            "excess_kurtosis",
            sites=view.OTHER_SITES,
            name="kurtosis_layers_other",
            title="Kurtosis inside the sublayers, which the paper does not quantize",
        ),
        activations.histogram_figure(shown),
        activations.evolution_figure(shown, printed),
    ]


class Entry(NamedTuple):
    """A line of the index: one of `paper.ITEMS`, and where it is on the page.

    Attributes:
        places: anchors and titles of what stands for it; empty where that is missing.
        printed: of the paper's own numbers.
    """

    name: str
    item: paper.Item
    places: list[tuple[str, str]]
    printed: list[tuple[str, str]]


def paper_index(made: list[Figure], written: list[Table]) -> list[Entry]:
    """Where each of the paper's tables and figures is on the page."""
    parts: list[tuple[str, Table | Figure]] = [
        *((f"caption-{table.name}", table) for table in written if table.lines),
        *((f"figure-{figure.name}", figure) for figure in made if figure.panels),
    ]

    def places(name: str, *, printed: bool) -> list[tuple[str, str]]:
        return [
            (anchor, part.title)
            for anchor, part in parts
            if name in part.stands_for and part.is_printed == printed
        ]

    return [
        Entry(name, item, places(name, printed=False), places(name, printed=True))
        for name, item in paper.ITEMS.items()
    ]


def _distinct(results: Results, field: str) -> list[str]:
    """The values of a field over rows and run configs, as text, in order."""
    found = [row.get(field) for row in results.rows]
    found += [run.config.get(field) for run in results.runs]
    return list(dict.fromkeys(str(value) for value in found if value not in (None, {})))


def provenance(shown: View) -> list[tuple[str, str]]:
    """Where the numbers come from: fingerprints, commit, device, versions, time."""
    results = shown.results
    prints = {}
    for row in results.rows:
        name = load.text(row, "config_fingerprint")
        if name is not None:
            prints.setdefault(str(row["arm"]), set()).add(name)
    for run in results.runs:
        name = load.text(run.config, "fingerprint")
        if name is not None:
            prints.setdefault(run.arm, set()).add(name)
    seconds = [
        value
        for run in results.runs
        if (value := load.number(run.done, "seconds")) is not None
    ]
    versions: dict[str, object] = {}
    for record in (*results.rows, *(run.config for run in results.runs)):
        versions |= load.child(record, "versions")
    data = load.child(results.context, "data")
    total = load.number(results.context, "seconds")
    lines = [
        ("Data", ", ".join(f"{name} {value}" for name, value in _flat(data))),
        (
            "Config fingerprints",
            "; ".join(
                f"{view.arm_label(arm)} {', '.join(sorted(names))}"
                for arm, names in prints.items()
            ),
        ),
        ("Commit", ", ".join(_distinct(results, "commit"))),
        ("Device", ", ".join(_distinct(results, "device"))),
        ("Versions", ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))),
        ("Training, all runs", f"{sum(seconds):,.0f} s" if seconds else ""),
        ("Whole comparison", "" if total is None else f"{total:,.0f} s"),
        ("Evaluation tokens", ", ".join(_distinct(results, "eval_tokens"))),
        ("Calibration tokens", ", ".join(_distinct(results, "calibration_tokens"))),
    ]
    return [(name, value or tables.MISSING) for name, value in lines]


def _flat(record: load.Record, path: str = "") -> list[tuple[str, str]]:
    """The scalar entries of a manifest's summary, nested ones under all their names."""
    found = []
    for key, value in record.items():
        name = f"{path}{key}".replace("_", " ")
        if isinstance(value, dict):
            found += _flat(value, f"{name} ")
        elif isinstance(value, str | int | float):
            found.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
    return found


def _css(looks: Mapping[str, style.Look]) -> markupsafe.Markup:
    """The arms' colors as CSS variables, for a light and for a dark page."""
    sides = [
        "".join(
            f"--arm-{i}:{getattr(look, side)};" for i, look in enumerate(looks.values())
        )
        for side in ("light", "dark")
    ]
    return markupsafe.Markup(
        f":root{{{sides[0]}}}@media(prefers-color-scheme:dark){{:root{{{sides[1]}}}}}"
    )


def _swatch(look: style.Look, index: int) -> markupsafe.Markup:
    """A short sample of an arm's line and marker."""
    dash = {"--": "5 2.5", "-.": "5 2 1 2"}.get(look.line, "none")
    marker = MarkerStyle(look.marker)
    outline = marker.get_path().transformed(marker.get_transform())
    shape = "".join(
        "M"
        + "L".join(f"{8 * x:.1f} {-8 * y:.1f}" for x, y in np.asarray(polygon))
        + "Z"
        for polygon in outline.to_polygons()
    )
    color = f"var(--arm-{index})"
    return markupsafe.Markup(
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<line x1="1" x2="33" y1="6" y2="6" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>'
        f'<path d="{shape}" transform="translate(17 6)" fill="{color}"/></svg>'
    )


def html_page(
    shown: View,
    made: list[Figure],
    written: list[Table],
    judged: list[claims.Judged],
) -> str:
    """The page, complete without JavaScript and without a network."""
    printed = paper.load()
    looks = style.looks(view.with_arms(shown, printed.arms))
    drawings = {
        (figure.name, panel.name): markupsafe.Markup(
            render.panel_svg(panel, f"f{i}p{j}", looks)
        )
        for i, figure in enumerate(made)
        for j, panel in enumerate(figure.panels)
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rfq.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    arms = [
        {
            "name": arm,
            "label": view.arm_label(arm),
            "status": shown.status(arm),
            "swatch": _swatch(looks[arm], list(looks).index(arm)),
            "index": list(looks).index(arm),
        }
        for arm in shown.arms
    ]
    by_name = {table.name: table for table in written}
    further = [table for table in written if table.name.startswith("main_")]
    beside = [table for table in written if table.name.startswith("beside_")]
    tasks = [table for table in written if table.name.startswith("tasks")]
    return environment.get_template("report.html.j2").render(
        arms=arms,
        index_of={arm: i for i, arm in enumerate(looks)},
        alerts=notes.alerts(shown),
        claims=judged,
        number_text=claims.number_text,
        claims_caption=claims.CAPTION,
        limits=notes.limits(shown, printed),
        figures={figure.name: figure for figure in made},
        drawings=drawings,
        tables=by_name,
        further=further,
        beside=beside,
        tasks=tasks,
        paper=printed,
        index=paper_index(made, written),
        provenance=provenance(shown),
        colors=_css(looks),
        title=html.escape(shown.results.directory.resolve().name),
    )


def run(results: Results) -> pathlib.Path:
    """Writes report.html, tables/ and figures/ into the results' directory.

    Returns:
        The path of report.html.

    Raises:
        InputError: files cannot be written.
    """
    shown = view.of(results)
    printed = paper.load()
    judged = claims.judge(shown, printed)
    written = all_tables(shown, printed, judged)
    made = all_figures(shown, printed)
    folders = {name: results.directory / name for name in ("tables", "figures")}
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for table in written:
            base = folders["tables"] / table.name
            files.replace(base.with_suffix(".md"), tables.markdown(table))
            files.replace(base.with_suffix(".csv"), tables.comma_separated(table))
        for figure in made:
            render.write_files(figure, folders["figures"])
        path = results.directory / "report.html"
        files.replace(path, html_page(shown, made, written, judged))
    except OSError as error:
        raise InputError(
            f"the report cannot be written into {str(results.directory)!r} "
            f"({error.strerror}); make the directory writable or copy it elsewhere"
        ) from None
    return path


def summary(results: Results) -> str:
    """The result in one line an arm, with what a reader must know, for a terminal."""
    shown = view.of(results)
    table = tables.glance_table(shown)
    lines = [
        list(table.header),
        *([c.text for c in line.cells] for line in table.lines),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    lines.insert(1, ["-" * width for width in widths])
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    caption = textwrap.wrap(table.caption, 88)
    warnings = [
        line
        for alert in notes.alerts(shown)
        for line in textwrap.wrap(f"! {alert.text}", 88, subsequent_indent="  ")
    ]
    return "\n".join(line.rstrip() for line in [*rows, "", *caption, *warnings])
