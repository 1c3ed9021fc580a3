"""Which of our arms stands beside which of the paper's: by what it is, not its name."""

import collections
from collections.abc import Mapping

from rfq.report.evidence import Evidence, Facts
from rfq.report.paper import Paper
from rfq.report.view import View

# The paper's base of the attention temperature; its residual arms have none.
BETA = {"residual": 1.0, "residual_free": 1.1}
# Its initializations; which Gaussian one its residual arms have it does not say.
RECIPES = {
    "residual": ("gpt2", "xavier", "kaiming"),
    "residual_free": ("orthogonal",),
}


def ours(shown: View, paper: Paper) -> Mapping[str, str]:
    """The paper's arm -> the one of ours that stands beside it, where one does.

    It has the paper's connection, optimizer, initialization and norm, as far as its
    config tells, and no change that the paper's has not. Of several that do, the first
    of: one with a loss, of the size that most arms have, at the paper's temperature,
    with what else most of them share, of the paper's name, of the lowest loss.
    """
    evidence = Evidence(shown=shown, paper=paper)
    rests = collections.Counter(facts.rest for facts in evidence.facts.values())

    def right(facts: Facts, theirs: str) -> tuple[bool, bool, bool, int, bool, float]:
        loss = shown.full_loss(facts.arm).value
        return (
            loss is not None,
            (facts.num_layers, facts.width) == evidence.size,
            facts.beta == BETA[_skip(theirs)],
            rests[facts.rest],
            facts.arm == theirs,
            0.0 if loss is None else -loss,
        )

    found = {
        theirs: [facts for facts in evidence.facts.values() if _is(facts, theirs)]
        for theirs in paper.arms
    }
    return {
        theirs: max(fit, key=lambda facts: right(facts, theirs)).arm
        for theirs, fit in found.items()
        if fit
    }


def theirs(shown: View, paper: Paper) -> Mapping[str, str]:
    """Our arm -> the paper's arm that stands beside it; the inverse of `ours`."""
    return {arm: printed for printed, arm in ours(shown, paper).items()}


def _skip(theirs: str) -> str:
    return "residual_free" if theirs.startswith("residual_free") else "residual"


def _is(facts: Facts, theirs: str) -> bool:
    skip = _skip(theirs)
    return (
        (facts.skip, facts.optimizer) == (skip, theirs.removeprefix(f"{skip}_"))
        and facts.recipe in (None, *RECIPES[skip])
        and facts.norm in (None, "rms_norm")
        and facts.rival is None
    )
