"""One look for every figure: colors of the arms, and ink that follows the page."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from rfq.report.view import View


class Look(NamedTuple):
    """How an arm is drawn, everywhere.

    Attributes:
        light, dark: hex colors for a light and for a dark page; the light one goes into
            the files under figures/.
        marker: matplotlib marker, so that color is never the only difference.
        line: matplotlib line style, which tells the connection; see LINES.
    """

    light: str
    dark: str
    marker: str
    line: str


# Line style by connection; where that is unknown, dashes and dots.
LINES: Mapping[str | None, str] = {"residual": "--", "residual_free": "-", None: "-."}
_DASHED, _SOLID = LINES["residual"], LINES["residual_free"]

# After Okabe and Ito (2008), darkened where the original has under 3:1 on white. Warm
# is residual, cool is residual-free.
ARMS: Mapping[str, Look] = {
    "residual_adamw": Look("#d1460b", "#ff8a4c", "o", _DASHED),
    "residual_kl_shampoo": Look("#b0408b", "#ec8bc6", "s", _DASHED),
    "residual_muon": Look("#a07400", "#e6b93c", "^", _DASHED),
    "residual_soap": Look("#7a4a2b", "#c99a78", "v", _DASHED),
    "residual_free_kl_shampoo": Look("#0067a8", "#5bb5f0", "D", _SOLID),
    "residual_free_muon": Look("#00835f", "#3fcfa4", "P", _SOLID),
    "residual_free_soap": Look("#2a8fb8", "#8fd8f5", "X", _SOLID),
    "residual_free_adamw": Look("#5d4db3", "#aa9df0", "*", _SOLID),
}
_SPARE_COLORS = (
    ("#4d4d4d", "#bdbdbd"),
    ("#8a2b2b", "#e08a8a"),
    ("#3f6b2b", "#9fd07f"),
    ("#1f4e79", "#86b4e0"),
    ("#c2185b", "#ff80ab"),
    ("#00757d", "#4fd3dc"),
    ("#7b2fa0", "#d29aec"),
)
_SPARE_MARKERS = ("h", "<", ">", "p", "d", "o", "s", "^", "v")
# Of all other arms, in order. The cycles have coprime lengths, so that no two of the
# 63 have both in common, and no color is one of ARMS.
SPARE = tuple(
    Look(*_SPARE_COLORS[i % 7], _SPARE_MARKERS[i % 9], _SOLID) for i in range(63)
)

# Ink of figures. In the page each becomes the CSS variable of that name.
INK = {"ink": "#1c1d1f", "muted": "#6b6e73", "hairline": "#d7d9dc"}

RC: dict = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK["muted"],
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK["ink"],
    "axes.titlecolor": INK["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["hairline"],
    "grid.linewidth": 0.6,
    "text.color": INK["ink"],
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["ink"],
    "ytick.labelcolor": INK["ink"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "rfq",
}


def looks(shown: View) -> Mapping[str, Look]:
    """The look of each arm: fixed by name or the next spare, dashed by connection."""
    spare = itertools.cycle(SPARE)
    return {
        arm: (ARMS.get(arm) or next(spare))._replace(
            line=LINES.get(shown.skip(arm), LINES[None])
        )
        for arm in shown.arms
    }
