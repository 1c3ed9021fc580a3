"""The paper's empirical claims, each a query over rows with a computed verdict.

`CLAIMS` is the table: the smallest runs that can speak, and the function that decides;
texts.toml has the words. A verdict speaks of the runs given, at their size.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rfq.report import cells, evidence
from rfq.report.arms import Arm
from rfq.report.claims import learning, rounding, tails
from rfq.report.claims.verdict import (
    CORRECTED,
    TOO_SMALL,
    UNTESTABLE,
    Judge,
    Judgement,
)
from rfq.report.evidence import Evidence, NotTestable
from rfq.report.paper import words
from rfq.report.view import View


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

# The smallest runs that can speak, what decides, and whether that is asked at each
# size: parts are compared at one size, and other claims look across sizes.
CLAIMS: Mapping[str, tuple[Scale, Judge, bool]] = {
    "C1": (WIDE, tails.heavy_tails, True),
    "C2": (SMALL, tails.optimizer_lightens, True),
    "C3": (DEMO, tails.stays_gaussian, True),
    "C4": (DEMO, tails.all_ingredients, True),
    "C5": (SMALL, learning.full_precision_cost, True),
    "C6": (DEMO, rounding.degrades_least, True),
    "C7": (SMALL, rounding.as_good_at_many_bits, True),
    "C8": (DEMO, rounding.weights_matter_little, False),
    "C9": (DEMO, rounding.less_noise, True),
    "C10": (SMALL, rounding.kurtosis_explains, False),
    "C11": (DEMO, learning.optimizer_order, True),
    "C12": (DEEP, learning.temperature_helps, False),
    "C13": (DEEP, learning.adamw_fails_deep, False),
    "C14": (DEMO, tails.updates_keep_isometry, True),
    "C15": (THEORY, tails.from_theory("Lemma 5"), False),
    "C16": (
        THEORY,
        tails.from_theory(*MIXING_AND_ADDING, corrections=("Additions dilute",)),
        False,
    ),
    "C17": (SMALL, tails.falls_with_depth, True),
    "C18": (ONE_GPU, learning.throughput, True),
    "C19": (DEEP, learning.trains_deep, False),
    "C20": (SMALL, rounding.only_route, True),
}


class Judged(NamedTuple):
    """A claim with its words and its judgement."""

    id: str
    statement: str
    where: str
    query: str
    scale: Scale
    judgement: Judgement


def judge(views: Sequence[View]) -> list[Judged]:
    """Judge every claim by what was measured on each data, at each size."""
    said, every = words()["claims"], [evidence.every(shown) for shown in views]
    return [
        Judged(name, **said[name], scale=CLAIMS[name][0], judgement=decide(name, every))
        for name in CLAIMS
    ]


def decide(name: str, every: Sequence[Sequence[Evidence]]) -> Judgement:
    """Judge one claim, by data and by size.

    Where several places decide and differ, the claim holds with a correction.
    """
    scale, ask, at_each_size = CLAIMS[name]
    places = [e for sizes in every for e in (sizes if at_each_size else sizes[:1])]
    found = [(e, _at_one(scale, ask, e)) for e in places]
    decided = [(e, said) for e, said in found if said.decided]
    if not decided:
        # Where some arm is large enough, what is missing is of more use.
        small = [said for _, said in found if said.verdict == TOO_SMALL]
        seen = [(e.of_size if at_each_size else e.facts.values()) for e in places]
        able = [any(map(scale.reached_by, arms)) for arms in seen]
        both = zip(found, able, strict=True)
        large = [said for (_, said), is_able in both if is_able]
        return [*small, *large, found[0][1]][0]
    if len(decided) == 1:
        (e, said), where = decided[0], at_each_size and len(places) > 1
        why = f"Of {e.place}: {said.why}" if where else said.why
        return dataclasses.replace(said, why=why)
    agree = len({said.verdict for _, said in decided}) == 1
    numbers = [(e.place, n) for e, said in decided for n in said.numbers]
    return Judgement(
        decided[0][1].verdict if agree else CORRECTED,
        " ".join(f"Of {e.place} it {said.verdict}. {said.why}" for e, said in decided),
        [n._replace(what=f"{place}: {n.what}") for place, n in numbers],
        list(dict.fromkeys(each for _, said in decided for each in said.missing)),
    )


def _at_one(scale: Scale, ask: Judge, seen: Evidence) -> Judgement:
    """Judge by the arms of one place that reach the claim's scale.

    What it needs and does not find makes it untestable; where smaller arms would decide
    it, what they point to is said.
    """
    able = seen.only(scale.reached_by)
    try:
        return _with_unseen(ask(able))
    except NotTestable as error:
        missing = error.missing
    if able is not seen:
        missing = [f"{each}, with {scale.needs}" for each in missing]
        with contextlib.suppress(NotTestable):
            here = _with_unseen(ask(seen))
            why = f"It takes {scale.needs}. Here: {here.verdict}. {here.why}"
            return Judgement(TOO_SMALL, why, here.numbers, missing)
    return Judgement(UNTESTABLE, f"Missing: {'; '.join(missing)}.", (), missing)


def _with_unseen(found: Judgement) -> Judgement:
    """Say in the reason what of the claim the rows do not show."""
    if not found.missing:
        return found
    unseen = f"Not seen of what it asks: {'; '.join(found.missing)}."
    return dataclasses.replace(found, why=f"{found.why} {unseen}")
