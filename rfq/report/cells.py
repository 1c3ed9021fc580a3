"""A table as data: lines of values, and a format for each column.

texts.toml has titles, captions and columns. The text of a cell is rounded for people;
the CSV holds the numbers in full. What is not there is "missing", never a zero.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rfq.report.arms import arm_label
from rfq.report.estimates import Estimate
from rfq.report.paper import words

MISSING = "missing"
NOT_FINITE = "not finite"
NOT_PRINTED = "not in the paper"


class Cell(NamedTuple):
    """What a reader sees, the named numbers of the CSV, and how the page sets it.

    Attributes:
        mark: "", "best", "missing", "bad" or "quiet".
    """

    text: str
    data: Mapping[str, Any]
    mark: str = ""


BLANK = Cell("", {}, "quiet")  # Where a table has no column for a line.
# A value of a line: None is missing, NaN is not finite.
Value = str | float | Estimate | Cell | None
Line = Mapping[str, Value]
Column = Sequence[str]  # Key, title, format.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `name` is its file's name.

    Attributes:
        stands_for: What of the paper's it shows.
        is_printed: Whether the numbers are the paper's and not ours.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    stands_for: Sequence[str] = ()
    is_printed: bool = False

    def cells(self, line: Line) -> list[Cell]:
        """Return the cells of a line, in the order of the columns."""
        return [cell(line.get(key), key, form) for key, _, form in self.columns]


def table(
    name: str,
    lines: Iterable[Line],
    more: Sequence[Column] = (),
    *,
    suffix: str = "",
    stands_for: Sequence[str] = (),
    is_printed: bool = False,
    **fill: Any,
) -> Table:
    """Make a table of lines, with the words of texts.toml and further columns."""
    said = words()["tables"][name]
    stands = said.get("stands_for", ())
    if isinstance(stands, Mapping):  # By the table's suffix.
        stands = stands.get(suffix, ())
    return Table(
        name=name + suffix,
        title=said["title"].format(**fill),
        caption=said["caption"].format(**fill),
        columns=[*said["columns"], *more],
        lines=list(lines),
        stands_for=stands_for or stands,
        is_printed=is_printed,
    )


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign; a rounded zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def kurtosis_text(value: float) -> str:
    """Write two decimals below 100, none above; a rounded zero has no sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def count_text(value: float) -> str:
    """Write a count for people: 0.82 M, 12.3 k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def nats_text(value: float) -> str:
    """Write a difference of losses in four decimals with its sign, a loss in three."""
    return signed(value, 4) if abs(value) < 0.1 else f"{value:.3f}"


def any_text(value: float) -> str:
    """Write three decimals; what they would show as zero in powers of ten."""
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.3f}"


FORMATS: Mapping[str, Callable[[float], str]] = {
    "signed": signed,
    "signed4": lambda value: signed(value, 4),
    "kurtosis": kurtosis_text,
    "count": count_text,
    "nats": nats_text,
    "any": any_text,
}


def write(value: float, form: str) -> str:
    """Write a number in a format of FORMATS or of Python, with a typographic minus."""
    kind = int if form == "d" else float
    text = FORMATS[form](value) if form in FORMATS else format(kind(value), form)
    return text.replace("-", "−")


def cell(value: Value, key: str, form: str) -> Cell:
    """Return the cell of a value; a format that begins with ~ leaves out intervals."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, Estimate):
        return _estimate_cell(value, key, form)
    if value is None:
        return Cell(MISSING, {key: MISSING}, "missing")
    if form == "arm":
        return Cell(arm_label(str(value)), {key: value})
    if isinstance(value, str):
        bad = value in (NOT_FINITE, "stuck near unigram", "unfinished")
        mark = "bad" if bad else "missing" if value == MISSING else ""
        return Cell(value, {key: value}, mark)
    if not math.isfinite(value):
        return Cell(NOT_FINITE, {key: NOT_FINITE}, "bad")
    return Cell(write(value, form), {key: value})


def _estimate_cell(found: Estimate, key: str, form: str) -> Cell:
    if found.value is None:
        return cell(math.nan if found.not_finite else None, key, form)
    compact, form = form.startswith("~"), form.removeprefix("~")
    text, around = write(found.value, form), ""
    data: dict[str, Any] = {key: found.value}
    if found.spread is not None:
        around = f" ± {write(found.spread, form)}"
        data |= {f"{key}_sd": found.spread, f"{key}_seeds": found.num_seeds}
    if found.lo is not None and found.hi is not None:
        around = f" [{write(found.lo, form)}, {write(found.hi, form)}]"
        data |= {f"{key}_lo": found.lo, f"{key}_hi": found.hi}
    text += "" if compact else around
    if found.not_finite:
        data[f"{key}_left_out"] = f"a seed, {NOT_FINITE}"
        return Cell(f"{text}; a seed {NOT_FINITE}", data, "bad")
    return Cell(text, data)


def best(value: Estimate, key: str, form: str = "signed") -> Cell:
    """Return the cell of an estimate that the page sets in bold."""
    return cell(value, key, form)._replace(mark="best")


def markdown(made: Table) -> str:
    """Write a table in GitHub's markdown, with its title and caption."""

    def safe(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    body = [
        line(
            f"**{safe(c.text)}**" if c.mark == "best" else safe(c.text)
            for c in made.cells(each)
        )
        for each in made.lines
    ]
    head = line(safe(title) for _, title, _ in made.columns)
    rule = "|" + "---|" * len(made.columns)
    title = f"### {safe(made.title)}"
    return "\n".join([title, "", safe(made.caption), "", head, rule, *body, ""])


def comma_separated(made: Table) -> str:
    """Write a table's numbers in full, one named column each.

    A spreadsheet runs a text that begins with one of = + - @ as a formula, so that
    such a text gets an apostrophe before it.
    """
    records = [
        {key: value for found in made.cells(line) for key, value in found.data.items()}
        for line in made.lines
    ]
    columns = list(dict.fromkeys(name for record in records for name in record))

    def safe(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(
            ("=", "+", "-", "@", "\t", "\r")
        ):
            return f"'{value}"
        return MISSING if value is None else value

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe, columns))
    writer.writerows([safe(record.get(name)) for name in columns] for record in records)
    return out.getvalue()
