"""One look for every figure: the colors, markers and lines of the arms."""

import itertools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

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
_DASHED, _SOLID = LINES["residual"], LINES["residual_free"]

# After Okabe and Ito (2008), darkened where the original has under 3:1 on white. Warm
# is residual, cool is residual-free.
ARMS: Mapping[str, Look] = {
    "residual_adamw": Look("#d1460b", "o", _DASHED),
    "residual_kl_shampoo": Look("#b0408b", "s", _DASHED),
    "residual_muon": Look("#a07400", "^", _DASHED),
    "residual_soap": Look("#7a4a2b", "v", _DASHED),
    "residual_free_kl_shampoo": Look("#0067a8", "D", _SOLID),
    "residual_free_muon": Look("#00835f", "P", _SOLID),
    "residual_free_soap": Look("#2a8fb8", "X", _SOLID),
    "residual_free_adamw": Look("#5d4db3", "*", _SOLID),
}
_COLORS = ("#4d4d4d", "#8a2b2b", "#3f6b2b", "#1f4e79", "#c2185b", "#00757d", "#7b2fa0")
_MARKERS = ("h", "<", ">", "p", "d", "o", "s", "^", "v")
# Of all other arms, in order. The cycles have coprime lengths, so that no two of the
# 63 have both in common, and no color is one of ARMS.
SPARE = tuple(Look(_COLORS[i % 7], _MARKERS[i % 9], _SOLID) for i in range(63))

INK = {"ink": "#1c1d1f", "muted": "#6b6e73", "hairline": "#d7d9dc"}

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK["muted"],
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["hairline"],
    "grid.linewidth": 0.6,
    "text.color": INK["ink"],
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["ink"],
    "ytick.labelcolor": INK["ink"],
    "lines.linewidth": 1.7,
    "lines.markersize": 5.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "rfq",
}


def looks(shown: View) -> Mapping[str, Look]:
    """Return the look of each arm: fixed by name or the next spare one."""
    spare = itertools.cycle(SPARE)
    return {
        arm: (ARMS.get(arm) or next(spare))._replace(
            line=LINES.get(shown.skips[arm], LINES[None])
        )
        for arm in shown.arms
    }


def tag(arm: str) -> str:
    """Return the class of an arm's marks on the page, safe whatever its name is."""
    return f"arm-{zlib.crc32(arm.encode()):08x}"
