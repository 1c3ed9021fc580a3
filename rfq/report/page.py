"""Put tables, figures and sentences into one HTML file that needs nothing else."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jinja2
import markupsafe

from rfq import files
from rfq.errors import InputError
from rfq.report import (
    accuracy,
    beside,
    cells,
    claims,
    evidence,
    figures,
    notes,
    paper,
    render,
    style,
    tables,
    view,
)
from rfq.report.arms import arm_label
from rfq.report.cells import Table
from rfq.report.evidence import Evidence
from rfq.report.load import Record, Results
from rfq.report.render import Figure
from rfq.report.view import View


class Part(NamedTuple):
    """What a report says of one data."""

    evidence: Evidence
    tables: dict[str, Table]
    figures: dict[str, Figure]


class Report(NamedTuple):
    """Everything that a report says, before it is written.

    Attributes:
        everyone: The first view with the paper's arms too.
        tables, figures: Of the data with most rows, and of the paper.
        others: The parts on other data, by fingerprint.
    """

    evidence: Evidence
    everyone: View
    judged: list[claims.Judged]
    tables: dict[str, Table]
    figures: dict[str, Figure]
    others: dict[str, Part]

    @property
    def parts(self) -> list[Part]:
        """Every part, the first first."""
        first = Part(self.evidence, self.tables, self.figures)
        return [first, *self.others.values()]


def make(results: Results) -> Report:
    """Judge the claims of results, and make every table and figure."""
    shown, *others = (view.of(each) for each in (results, *results.others))
    printed = paper.load()
    everyone = view.with_arms(shown, printed.arms)
    judged = claims.judge([shown, *others])
    first = _part(shown, everyone)
    of_the_paper = [
        *tables.claims(judged),
        tables.theory(shown),
        *map(beside.as_printed, printed.tables),
    ]
    return Report(
        evidence=first.evidence,
        everyone=everyone,
        judged=judged,
        tables=first.tables | {each.name: each for each in of_the_paper},
        figures=first.figures,
        others={str(each.results.data): _other(each) for each in others},
    )


def _part(shown: View, everyone: View) -> Part:
    """Make the tables and figures of one data."""
    found, results = evidence.of(shown), shown.results
    widths = {p.weight_bits for p in shown.precisions if p.name != "FP"}
    known = sorted(widths & {8, 16, None}, key=lambda w: (w is None, w != 8, w))
    measured = [s for s in view.OTHER_SITES if s in set(shown.ends["site"])]
    others = view.settings(results)[1:]
    written = [
        tables.glance(shown),
        tables.main(shown),
        tables.arms(shown),
        *accuracy.tasks(found),
        *(beside.beside(found, width) for width in known),
        tables.kurtosis(shown, (*view.PAPER_SITES, view.FINAL)),
        tables.kurtosis(shown, measured, "_other"),
        tables.further_statistics(shown),
        tables.structure(shown),
        tables.noise(shown),
        tables.weights_cost(found),
        tables.weights(shown),
        tables.matched_loss(shown),
        tables.equal_cost(shown),
        tables.ranges(shown),
        beside.costs(found),
        tables.calibrators(shown),
        beside.paper_kurtosis(found),
        *(tables.main(view.of(results, setting)) for setting in others),
    ]
    by_name = {each.name: each for each in written}
    return Part(found, by_name, figures.every(found, everyone))


def _other(shown: View) -> Part:
    """Make what there is on further data, under names that say which."""
    everyone = view.with_arms(shown, paper.load().arms)
    found, data = _part(shown, everyone), shown.results.data
    kept = [t for t in found.tables.values() if t.lines]
    drawn = [f for f in found.figures.values() if f.panels and not f.is_printed]
    return Part(
        found.evidence,
        {t.name: dataclasses.replace(t, name=f"{t.name}_{data}") for t in kept},
        {f.name: dataclasses.replace(f, name=f"{f.name}_{data}") for f in drawn},
    )


def index(report: Report) -> list[dict[str, Any]]:
    """List the paper's tables and figures with where they are on the page."""
    parts = [(f"table-{t.name}", t) for t in report.tables.values() if t.lines]
    parts += [(f"figure-{f.name}", f) for f in report.figures.values() if f.panels]
    entries = []
    for name, (shows, needs) in paper.words()["items"].items():
        shown = [(at, part) for at, part in parts if name in part.stands_for]
        places = [(at, part.title) for at, part in shown if not part.is_printed]
        printed = [at for at, part in shown if part.is_printed]
        texts = {"name": name, "shows": shows, "needs": needs}
        entries.append({**texts, "places": places, "printed": printed})
    return entries


def provenance(shown: View) -> list[tuple[str, str]]:
    """Say where the numbers come from: configs, commit, device, versions, time."""
    results = shown.results
    records = [run.described for run in results.runs]

    def distinct(field: str) -> str:
        found = [*results.rows[field], *(record.get(field) for record in records)]
        return ", ".join(dict.fromkeys(str(x) for x in found if x is not None))

    fields = ("arm", "config_fingerprint")
    named = results.rows.select(fields).drop_nulls().unique(maintain_order=True)
    prints: dict[str, list[str]] = {}
    for arm, name in named.rows():
        prints.setdefault(arm, []).append(name)
    for run in results.runs:
        prints.setdefault(run.arm, [run.described.get("fingerprint", cells.MISSING)])
    seconds = [run.done["seconds"] for run in results.runs if "seconds" in run.done]
    total = results.context.get("seconds")
    configs = (f"{arm_label(a)} {', '.join(p)}" for a, p in prints.items())
    lines = {
        "Data": ", ".join(_flat(results.context.get("data", {}))),
        "Config fingerprints": "; ".join(configs),
        "Commit": distinct("commit"),
        "Device": distinct("device"),
        "Versions": distinct("versions").translate(str.maketrans("", "", "{}'\"")),
        "Training, all runs": f"{sum(seconds):,.0f} s" if seconds else "",
        "Whole comparison": "" if total is None else f"{total:,.0f} s",
        "Evaluation tokens": distinct("eval_tokens"),
        "Calibration tokens": distinct("calibration_tokens"),
    }
    return [(name, value or cells.MISSING) for name, value in lines.items()]


def _flat(record: Record, path: str = "") -> Iterable[str]:
    """Return the scalar entries of nested objects under all their names."""
    for key, value in record.items():
        name = f"{path}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        else:
            yield f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"


def html_page(report: Report) -> str:
    """Return the page, complete without JavaScript and without a network."""
    shown = report.evidence.shown
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rfq.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    looks = style.looks(report.everyone)
    for part in report.others.values():
        looks = {**looks, **style.looks(part.evidence.shown)}
    arms = {
        arm: {
            "tag": style.tag(arm),
            "label": arm_label(arm),
            "swatch": markupsafe.Markup(render.swatch(look)),
        }
        for arm, look in looks.items()
    }

    def svg(figure: Figure, number: int) -> markupsafe.Markup:
        """Draw a panel where the page shows it."""
        prefix = f"{figure.name}-{number}-"
        return markupsafe.Markup(render.panel_svg(figure.panels[number], prefix))

    values: dict[str, Any] = {
        "title": shown.results.directory.resolve().name,
        "answer": notes.answer(report.evidence),
        "tally": notes.tally(report.judged),
        "alerts": notes.alerts(shown),
        "limits": notes.limits(shown),
        "arms": arms,
        "ours": shown.arms,
        "boxed": [arm for part in report.parts for arm in part.evidence.shown.arms],
        "others": report.others,
        "claims": report.judged,
        "number_text": tables.number_text,
        "tables": report.tables,
        "figures": report.figures,
        "svg": svg,
        "paper": paper.load(),
        "index": index(report),
        "provenance": provenance(shown),
    }
    return environment.get_template("report.html.j2").render(values)


def run(results: Results) -> pathlib.Path:
    """Write report.html, tables/ and figures/ into the results' directory.

    Returns:
        The path of report.html.

    Raises:
        InputError: files cannot be written.
    """
    report = make(results)
    folders = {name: results.directory / name for name in ("tables", "figures")}
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for made in (t for part in report.parts for t in part.tables.values()):
            for kind, text in (
                ("md", cells.markdown(made)),
                ("csv", cells.comma_separated(made)),
            ):
                path = folders["tables"] / f"{made.name}.{kind}"
                files.replace(path, text)
        for figure in (f for part in report.parts for f in part.figures.values()):
            render.write_files(figure, folders["figures"])
        path = results.directory / "report.html"
        files.replace(path, html_page(report))
    except OSError as error:
        raise InputError(
            f"the report cannot be written into {str(results.directory)!r} "
            f"({error.strerror}); make the directory writable or choose another --out"
        ) from None
    return path


def summary(results: Results) -> str:
    """Return the result in one line an arm, with what a reader must know."""
    views = [view.of(each) for each in (results, *results.others)]
    made = list(map(tables.glance, views))
    warnings = [
        line
        for alert in notes.alerts(views[0])
        for line in textwrap.wrap(f"! {alert}", 88, subsequent_indent="  ")
    ]
    caption = textwrap.wrap(made[0].caption, 88)
    texts = [*map(_plain, made), "\n".join([*caption, *warnings])]
    return "\n\n".join(texts)


def _plain(made: Table) -> str:
    """Write a table in plain text, without its caption."""
    lines = [[title for _, title, _ in made.columns]]
    lines += [[cell.text for cell in made.cells(line)] for line in made.lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    rows = (zip(line, widths, strict=True) for line in lines)
    texts = ("  ".join(cell.ljust(width) for cell, width in row) for row in rows)
    return "\n".join(text.rstrip() for text in texts)
