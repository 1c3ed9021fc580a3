"""Draws panels: to files for papers, and to SVG whose ink follows the page."""

import html
import io
import json
import pathlib
import re
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from rfq import files
from rfq.report import style
from rfq.report.figures import Figure, Panel

PANEL_INCHES = (4.5, 2.9)
COLUMNS = 2
# Left, right, bottom, top, in inches: ticks and titles, names of arms, ticks, title.
LEFT, LABELS, BOTTOM, TITLE, EDGE = 0.66, 1.2, 0.48, 0.34, 0.1


def _axes(
    canvas: Canvas, panel: Panel, corner: tuple[float, float], top: float
) -> Axes:
    """Axes of one panel whose lower left corner is at `corner` inches."""
    width, height = canvas.get_size_inches()
    right = LABELS if panel.labelled else EDGE
    return canvas.add_axes(
        (
            (corner[0] + LEFT) / width,
            (corner[1] + BOTTOM) / height,
            (PANEL_INCHES[0] - LEFT - right) / width,
            (PANEL_INCHES[1] - BOTTOM - top) / height,
        )
    )


def _svg(canvas: Canvas) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def panel_svg(panel: Panel, prefix: str, looks: Mapping[str, style.Look]) -> str:
    """One panel as an inline SVG element.

    Ids get `prefix`, so that several drawings share a page; an artist marked
    `arm:<name>` becomes `data-arm`; the light colors become CSS variables that a dark
    page redefines; the size is left to the page.
    """
    with matplotlib.rc_context(style.RC):
        canvas = Canvas(figsize=PANEL_INCHES)
        # The page sets the title in its own type, so that it wraps on a phone.
        ax = _axes(canvas, panel, (0.0, 0.0), EDGE)
        panel.draw(ax)
        source = _svg(canvas)
        points = json.dumps(_points(canvas, ax), separators=(",", ":"))
    source = source[source.index("<svg") :]
    source = re.sub(r"<metadata>.*?</metadata>", "", source, flags=re.DOTALL)
    source = re.sub(r'\bid="arm:([^"]*)"', r'data-arm="\1"', source)
    source = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', source)
    source = re.sub(r"url\(#", rf"url(#{prefix}-", source)
    source = re.sub(r'href="#', rf'href="#{prefix}-', source)
    source = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", source, count=1)
    source = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", source, count=1)
    source = re.sub(r' version="1.1"| xmlns(:xlink)?="[^"]*"', "", source)
    source = source.replace("xlink:href", "href")
    for name, color in style.INK.items():
        source = source.replace(color, f"var(--{name})")
    for index, look in enumerate(looks.values()):
        source = source.replace(look.light, f"var(--arm-{index})")
    label = html.escape(panel.title, quote=True)
    attributes = f'role="img" aria-label="{label}" data-points="{html.escape(points)}"'
    return source.replace("<svg ", f"<svg {attributes} ", 1)


# Points of one line that a pointer finds; longer lines are thinned.
MAX_POINTS = 80


def _points(canvas: Canvas, ax: Axes) -> dict[str, list]:
    """What a pointer can read: {arm: [[x, y of the drawing, what to say], ...]}.

    In the SVG's units, points from its upper left corner.
    """
    unit = 72.0 / canvas.dpi
    height = 72.0 * canvas.get_size_inches()[1]
    found: dict[str, list] = {}
    for line in ax.get_lines():
        arm = (line.get_gid() or "").removeprefix("arm:")
        # Thin lines are the raw batches behind a running mean.
        if arm and line.get_transform() == ax.transData and line.get_alpha() is None:
            data = np.asarray(line.get_xydata(), np.float64)
            data = data[:: -(-len(data) // MAX_POINTS)]
            places = unit * ax.transData.transform(data)
            found.setdefault(arm, []).extend(
                [round(px, 1), round(height - py, 1), _say(x, y)]
                for (px, py), (x, y) in zip(places, data, strict=True)
                if np.isfinite([px, py]).all()
            )
    return found


def _say(x: float, y: float) -> str:
    return f"{x:.6g}: {y:.4g}".replace("-", "−")


def write_files(figure: Figure, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes all panels of a figure side by side, as PNG and SVG on white."""
    if not figure.panels:
        return []
    columns = min(COLUMNS, len(figure.panels))
    lines = -(-len(figure.panels) // columns)
    with matplotlib.rc_context({**style.RC, "savefig.facecolor": "white"}):
        canvas = Canvas(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines))
        FigureCanvasAgg(canvas)
        for index, panel in enumerate(figure.panels):
            line, column = divmod(index, columns)
            x, y = PANEL_INCHES[0] * column, PANEL_INCHES[1] * (lines - 1 - line)
            ax = _axes(canvas, panel, (x, y), TITLE)
            panel.draw(ax)
            ax.set_title(panel.title)
        paths = [folder / f"{figure.name}.{kind}" for kind in ("png", "svg")]
        drawn = io.BytesIO()
        canvas.savefig(drawn, dpi=160, format="png")
        files.replace(paths[0], drawn.getvalue())
        files.replace(paths[1], _svg(canvas))
    return paths
