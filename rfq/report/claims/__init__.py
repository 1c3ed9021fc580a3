"""The paper's empirical claims, each a query over rows with a computed verdict.

`CLAIMS` is the table: the smallest runs that can speak, and the function that decides;
texts.toml has the words. A verdict speaks of the runs given, at their size.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from rfq.report import cells
from rfq.report.arms import Arm
from rfq.report.claims import learning, rounding, tails
from rfq.report.claims.verdict import TOO_SMALL, UNTESTABLE, Judge, Judgement
from rfq.report.evidence import Evidence, NotTestable
from rfq.report.paper import words


class Scale(NamedTuple):
    """The smallest runs that can speak of a claim.

    Attributes:
        name: Of the configs, or of what else makes such rows.
        num_params, num_layers, width: At least so many.
        accelerated: Whether a CPU's runs do not count.
    """

    name: str
    num_params: int = 0
    num_layers: int = 0
    width: int = 0
    accelerated: bool = False

    @property
    def needs(self) -> str:
        """The bounds in words."""
        params = cells.count_text(self.num_params)
        bounds = (
            (self.num_params, f"{params} parameters or more"),
            (self.num_layers, f"{self.num_layers} layers or more"),
            (self.width, f"width {self.width} or more"),
            (self.accelerated, "an accelerator"),
        )
        return " and ".join(text for least, text in bounds if least)

    def reached_by(self, arm: Arm) -> bool:
        """Say whether an arm is large enough, as far as it is known what it is."""
        sizes = (
            (arm.num_params, self.num_params),
            (arm.num_layers, self.num_layers),
            (arm.width, self.width),
        )
        large = all(size is None or size >= least for size, least in sizes)
        return large and not (self.accelerated and arm.accelerated is False)

    def __str__(self) -> str:
        return f"{self.name} ({self.needs})" if self.needs else self.name


# Of configs/: 0.33 M parameters, 54 M parameters, and 12 layers of the former, which is
# as deep as residual-free models went before (section 1).
DEMO = Scale("demo", num_params=300_000)
WIDE = Scale("demo", width=128)
DEEP = Scale("demo_more", num_layers=12)
SMALL = Scale("small", num_params=50_000_000)
ONE_GPU = Scale("one GPU", accelerated=True)
THEORY = Scale("rfq theory")

# What the paper says of kurtosis in one layer, of either connection.
MIXING_AND_ADDING = (
    "Lemma 2",
    "Lemma 6",
    "Lemma 7",
    "Corollary 1",
    "Appendix C.3",
    "Theorem 2",
    "Lemma 3",
    "Lemma 11",
)

CLAIMS: Mapping[str, tuple[Scale, Judge]] = {
    "C1": (WIDE, tails.heavy_tails),
    "C2": (SMALL, tails.optimizer_lightens),
    "C3": (DEMO, tails.stays_gaussian),
    "C4": (DEMO, tails.all_ingredients),
    "C5": (SMALL, learning.full_precision_cost),
    "C6": (DEMO, rounding.degrades_least),
    "C7": (SMALL, rounding.as_good_at_many_bits),
    "C8": (DEMO, rounding.weights_matter_little),
    "C9": (DEMO, rounding.less_noise),
    "C10": (SMALL, rounding.kurtosis_explains),
    "C11": (DEMO, learning.optimizer_order),
    "C12": (DEEP, learning.temperature_helps),
    "C13": (DEEP, learning.adamw_fails_deep),
    "C14": (DEMO, tails.updates_keep_isometry),
    "C15": (THEORY, tails.from_theory("Lemma 5")),
    "C16": (
        THEORY,
        tails.from_theory(*MIXING_AND_ADDING, corrections=("Additions dilute",)),
    ),
    "C17": (SMALL, tails.falls_with_depth),
    "C18": (ONE_GPU, learning.throughput),
    "C19": (DEEP, learning.trains_deep),
    "C20": (SMALL, rounding.only_route),
}


class Judged(NamedTuple):
    """A claim with its words and its judgement."""

    id: str
    statement: str
    where: str
    query: str
    scale: Scale
    judgement: Judgement

    @property
    def decided(self) -> bool:
        """Whether there is a verdict."""
        return self.judgement.verdict not in (UNTESTABLE, TOO_SMALL)


def judge(evidence: Evidence) -> list[Judged]:
    """Judge every claim."""
    said = words()["claims"]
    return [
        Judged(
            name, **said[name], scale=CLAIMS[name][0], judgement=decide(name, evidence)
        )
        for name in CLAIMS
    ]


def decide(name: str, evidence: Evidence) -> Judgement:
    """Judge one claim by the arms that reach its scale.

    What it needs and does not find makes it untestable; where smaller arms would decide
    it, what they point to is said.
    """
    scale, ask = CLAIMS[name]
    able = evidence.only(scale.reached_by)
    try:
        return _with_unseen(ask(able))
    except NotTestable as error:
        missing = error.missing
    if able is not evidence:
        missing = [f"{each}, with {scale.needs}" for each in missing]
        with contextlib.suppress(NotTestable):
            here = _with_unseen(ask(evidence))
            why = f"It takes {scale.needs}. Here: {here.verdict}. {here.why}"
            return Judgement(TOO_SMALL, why, here.numbers, missing)
    return Judgement(UNTESTABLE, f"Missing: {'; '.join(missing)}.", (), missing)


def _with_unseen(found: Judgement) -> Judgement:
    """Say in the reason what of the claim the rows do not show."""
    if not found.missing:
        return found
    unseen = f"Not seen of what it asks: {'; '.join(found.missing)}."
    return dataclasses.replace(found, why=f"{found.why} {unseen}")
