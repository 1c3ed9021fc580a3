"""One look for every figure: the colors, markers and lines of the arms."""

import itertools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rfq.report.paper import words
from rfq.report.view import View


class Look(NamedTuple):
    """How an arm is drawn, everywhere.

    Attributes:
        color: On white; the page turns lightness around where it is dark.
        marker: A marker of matplotlib, so that color is never the only difference.
        line: A line style of matplotlib, which tells the connection; see LINES.
    """

    color: str
    marker: str
    line: Any


# Line style by connection; where that is unknown, dashes and dots.
LINES: Mapping[str | None, str] = {"residual": "--", "residual_free": "-", None: "-."}

ARMS: Mapping[str, Look] = {
    arm: Look(color, marker, LINES["residual_free" if "free" in arm else "residual"])
    for arm, (color, marker) in words()["looks"].items()
}
_COLORS = ("#4d4d4d", "#8a2b2b", "#3f6b2b", "#1f4e79", "#c2185b", "#00757d", "#7b2fa0")
_MARKERS = ("h", "<", ">", "p", "d", "o", "s", "^", "v")
# Of all other arms, in order. The cycles have coprime lengths, so that no two of the
# 63 have both in common, and no color is one of ARMS.
SPARE = tuple(Look(_COLORS[i % 7], _MARKERS[i % 9], "-") for i in range(63))

INK: Mapping[str, str] = words()["ink"]
RC: Any = words()["matplotlib"]


def looks(shown: View) -> Mapping[str, Look]:
    """Return the look of each arm: fixed by name or the next spare one."""
    spare = itertools.cycle(SPARE)
    return {
        arm: (ARMS.get(arm) or next(spare))._replace(line=LINES.get(skip, LINES[None]))
        for arm, skip in shown.skips.items()
    }


def tag(arm: str) -> str:
    """Return the class of an arm's marks on the page, safe whatever its name is."""
    return f"arm-{zlib.crc32(arm.encode()):08x}"
