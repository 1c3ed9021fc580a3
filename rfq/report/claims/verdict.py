"""What a claim may come to, the bounds that decide, and the parts that arms play."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from rfq.report.estimates import Estimate
from rfq.report.evidence import Evidence, Number, Part

Verdict = Literal[
    "holds",
    "holds with a correction",
    "does not hold",
    "not testable from these rows",
    "not testable at this scale",
]
HOLDS: Verdict = "holds"
CORRECTED: Verdict = "holds with a correction"
FAILS: Verdict = "does not hold"
UNTESTABLE: Verdict = "not testable from these rows"
TOO_SMALL: Verdict = "not testable at this scale"
NEAR_GAUSSIAN = 1.0  # Excess kurtosis within which activations count as near Gaussian.
NEAR_GAUSSIAN_NATS = 0.05  # The same for negentropy.
HEAVY = 10.0  # Excess kurtosis above which tails are heavy.
NEGLIGIBLE = 0.01  # Nats that do not matter to a reader.
LITTLE = 0.1  # Part of what a model gains over word frequencies that is a little.
EXPLAINS = 0.7  # Rank correlation from which one number explains another.
ENOUGH_ARMS = 8  # For a rank correlation over arms.
NEAR_ISOMETRIC = 1.0  # max |s^2 / alpha - 1| below which no direction has vanished.
RESIDUAL_ADAMW: Part = ("residual", "adamw")
RESIDUAL_KL: Part = ("residual", "kl_shampoo")
FREE_KL: Part = ("residual_free", "kl_shampoo")
FREE_SOAP: Part = ("residual_free", "soap")
FREE_MUON: Part = ("residual_free", "muon")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the rows say of a claim.

    Attributes:
        why: One line.
        numbers: Those that the verdict rests on.
        missing: What would be needed, or is asked and was not there beside what
            decided.
    """

    verdict: Verdict
    why: str
    numbers: Sequence[Number] = ()
    missing: Sequence[str] = ()

    @property
    def decided(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict not in (UNTESTABLE, TOO_SMALL)


Judge = Callable[[Evidence], Judgement]


def graded(right: Sequence[bool], *, but: bool = False) -> Verdict:
    """Return that it holds, in part, or not; `but` says that a part is enough."""
    return HOLDS if all(right) else CORRECTED if any(right) or but else FAILS


def above(gap: Estimate) -> bool:
    """Say whether a difference is above 0 with its whole interval."""
    return gap.lo is not None and gap.lo > 0.0


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values)) or "none"
