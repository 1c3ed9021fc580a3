"""One claim against one measurement; the verdict follows from the numbers."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Verdict = Literal["holds", "holds with a correction", "does not hold"]
VERDICTS: tuple[Verdict, ...] = typing.get_args(Verdict)
# The paper states it, or we who correct the paper or say what it is silent of.
Source = Literal["paper", "correction", "rounding"]

# A measurement agrees within so many of its standard errors. A run makes some hundred
# checks, and a false alarm comes once in 16,000.
SIGMAS = 4.0


class Estimate(NamedTuple):
    """A measured number; its standard error is 0 where nothing was drawn."""

    value: float
    standard_error: float


def exact(value: float) -> Estimate:
    """Make an estimate from enumeration, quadrature or algebra."""
    return Estimate(float(value), 0.0)


# (measured, predicted, allowed) -> whether they agree.
RELATIONS: Mapping[str, Callable[[float, float, float], bool]] = {
    "=": lambda measured, predicted, allowed: abs(measured - predicted) <= allowed,
    "<=": lambda measured, predicted, allowed: measured <= predicted + allowed,
    ">=": lambda measured, predicted, allowed: measured >= predicted - allowed,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A statement with what it predicts and what was measured.

    Attributes:
        where: section or equation of the paper that states it, or that it corrects.
        statement: what is claimed of which setting; one line.
        predicted: the number that the sentence or formula gives.
        measured: the same number, measured.
        tolerance: the error allowed besides the standard error, from rounding or from
            orders that the statement leaves out.
        relation: how `measured` should compare to `predicted`.
        corrected: the prediction of the corrected statement, if there is one.
        note: the reason why the statement fails, shown where its number fails.
    """

    where: str
    statement: str
    predicted: float
    measured: Estimate
    tolerance: float
    relation: Literal["=", "<=", ">="] = "="
    corrected: float | None = None
    note: str = ""

    @property
    def allowed(self) -> float:
        """How far `measured` may be from a prediction that is right."""
        return self.tolerance + SIGMAS * self.measured.standard_error

    def agrees(self, prediction: float) -> bool:
        """Tell whether the measurement agrees with this prediction; False for NaN."""
        compare = RELATIONS[self.relation]
        return compare(self.measured.value, prediction, self.allowed)

    @property
    def verdict(self) -> Verdict:
        """The predicted number if it agrees, else the corrected one, else neither."""
        if self.agrees(self.predicted):
            return "holds"
        if self.corrected is not None and self.agrees(self.corrected):
            return "holds with a correction"
        return "does not hold"

    @property
    def why(self) -> str:
        """The verdict's reason in one line."""
        gap = abs(self.measured.value - self.predicted)
        off = f"{gap:.2g} off, {self.allowed:.2g} allowed"
        if self.verdict == "holds":
            return off if self.relation == "=" else f"{self.relation} holds"
        if self.verdict == "holds with a correction":
            off = f"{self.relation} {self.corrected:.4g}"
        return f"{off}: {self.note}"

    def row(self, claim: str, source: Source) -> dict[str, Any]:
        """Return the check as a JSON line."""
        return {
            "claim": claim,
            "source": source,
            "where": self.where,
            "statement": self.statement,
            "relation": self.relation,
            "predicted": float(self.predicted),
            "corrected": None if self.corrected is None else float(self.corrected),
            "measured": float(self.measured.value),
            "standard_error": float(self.measured.standard_error),
            "tolerance": float(self.tolerance),
            "verdict": self.verdict,
            "why": self.why,
        }
