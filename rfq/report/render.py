"""Draw panels: to files for papers, and to SVG inside the page."""

import base64
import dataclasses
import io
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from rfq import files
from rfq.report import style
from rfq.report.style import Look

PANEL_INCHES = (4.2, 2.7)
COLUMNS = 2
# Around the axes of a panel, in inches: left, bottom, right, and top without a title
# and with one. A layout that measures its texts would draw every panel twice.
LEFT, BOTTOM, EDGE, TITLE = 0.68, 0.46, 0.1, 0.3

_SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class Panel(NamedTuple):
    """One axes: the renderer sets `title`, `draw` does the rest."""

    name: str
    title: str
    draw: Callable[[Axes], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: `name` is its file's name, `guide` one line on how to read it.

    Attributes:
        missing: What a figure without panels lacks.
        legend: Label -> the look that it explains.
        stands_for: What of the paper's it shows.
        is_printed: Whether the numbers are the paper's and not ours.
    """

    name: str
    title: str
    guide: str
    panels: Sequence[Panel]
    missing: str = ""
    legend: Mapping[str, Look] = dataclasses.field(default_factory=dict)
    stands_for: Sequence[str] = ()
    is_printed: bool = False


def _place(canvas: Canvas, lines: int, columns: int, top: float, legend: float) -> None:
    """Set the margins of a grid of panels with a legend below it."""
    width, height = canvas.get_size_inches()
    inside = PANEL_INCHES[0] - LEFT - EDGE, PANEL_INCHES[1] - BOTTOM - top
    canvas.subplots_adjust(
        left=LEFT / width,
        right=1 - EDGE / width,
        bottom=(BOTTOM + legend) / height,
        top=1 - top / height,
        wspace=(LEFT + EDGE) / inside[0],
        hspace=(BOTTOM + top) / inside[1],
    )


def _svg(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def panel_svg(panel: Panel, name: str) -> str:
    """Draw one panel as an SVG element of a page.

    The id of an artist that begins with "arm-" becomes its class, by which the page
    hides an arm. The ids of what the drawing refers to are hashes salted with `name`,
    so that several drawings share a page; others go.
    """
    rc = {**style.RC, "savefig.transparent": True, "svg.hashsalt": name}
    with matplotlib.rc_context(rc):
        canvas = Canvas(figsize=PANEL_INCHES)
        _place(canvas, 1, 1, EDGE, 0.0)
        panel.draw(canvas.add_subplot())
        root = ET.fromstring(_svg(canvas))
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for attribute in ("width", "height", "version"):
        del root.attrib[attribute]
    root.attrib |= {"role": "img", "aria-label": panel.title}
    for group in root.iter(f"{{{_SVG}}}g"):
        label = group.attrib.pop("id", "")
        if label.startswith("arm-"):
            group.set("class", label)
    return ET.tostring(root, encoding="unicode")


def swatch(look: Look) -> str:
    """Draw a short sample of a line and its marker as an address of CSS."""
    with matplotlib.rc_context({**style.RC, "savefig.transparent": True}):
        canvas = Canvas(figsize=(0.45, 0.16))
        line = Line2D([0.05, 0.5, 0.95], [0.5, 0.5, 0.5], markevery=[1])
        line.set(color=look.color, linestyle=look.line, marker=look.marker)
        canvas.add_artist(line)
        return f"data:image/svg+xml;base64,{base64.b64encode(_svg(canvas)).decode()}"


def write_files(figure: Figure, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write all panels of a figure side by side, as PNG and SVG on white."""
    if not figure.panels:
        return []
    columns = min(COLUMNS, len(figure.panels))
    lines = -(-len(figure.panels) // columns)
    legend = 0.2 * -(-len(figure.legend) // columns)
    with matplotlib.rc_context(style.RC):
        size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines + legend)
        canvas = Canvas(figsize=size)
        _place(canvas, lines, columns, TITLE, legend)
        axes = canvas.subplots(lines, columns, squeeze=False).flat
        for ax, panel in zip(axes, figure.panels, strict=False):
            panel.draw(ax)
            # A name may hold a dollar sign, which begins a formula otherwise.
            ax.set_title(panel.title, parse_math=False)
        for ax in list(axes)[len(figure.panels) :]:
            ax.set_axis_off()
        handles = [
            Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker)
            for look in figure.legend.values()
        ]
        if handles:
            made = canvas.legend(
                handles,
                list(figure.legend),
                loc="lower left",
                ncols=columns,
                frameon=False,
            )
            for text in made.get_texts():
                text.set_parse_math(False)
        paths = [folder / f"{figure.name}.{kind}" for kind in ("png", "svg")]
        drawn = io.BytesIO()
        canvas.savefig(drawn, dpi=150, format="png")
        files.replace(paths[0], drawn.getvalue())
        files.replace(paths[1], _svg(canvas))
    return paths
