"""The paper's empirical claims, each a query over rows with a computed verdict.

`CLAIMS` is the table: what the paper says and where, what decides, the smallest runs
that can speak, and the function that decides. A verdict speaks of the runs given, at
their size; it is never typed in.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rfq.report import judges, tables
from rfq.report.evidence import Evidence, Facts, NotTestable, Number
from rfq.report.judges import Judgement
from rfq.report.paper import Paper
from rfq.report.tables import Cell, Line, Table
from rfq.report.view import View


class Scale(NamedTuple):
    """The smallest runs that can speak of a claim.

    Attributes:
        name: of the configs, or of what else makes such rows.
        num_params, num_layers, width: at least so many.
        accelerated: whether a CPU's runs do not count.
    """

    name: str
    num_params: int = 0
    num_layers: int = 0
    width: int = 0
    accelerated: bool = False

    @property
    def needs(self) -> str:
        """The bounds in words."""
        params = tables.count_text(self.num_params)
        bounds = (
            (self.num_params, f"{params} parameters or more"),
            (self.num_layers, f"{self.num_layers} layers or more"),
            (self.width, f"width {self.width} or more"),
            (self.accelerated, "an accelerator"),
        )
        return " and ".join(text for least, text in bounds if least)

    def reached_by(self, facts: Facts) -> bool:
        """Whether an arm is large enough, as far as it is known what it is."""
        sizes = (
            (facts.num_params, self.num_params),
            (facts.num_layers, self.num_layers),
            (facts.width, self.width),
        )
        large = all(size is None or size >= least for size, least in sizes)
        return large and not (self.accelerated and facts.accelerated is False)

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


class Claim(NamedTuple):
    """One row of CLAIMS.

    Attributes:
        where: in the paper.
        query: what decides.
        scale: the smallest runs that can speak.
    """

    statement: str
    where: str
    query: str
    scale: Scale
    judge: Callable[[Evidence], Judgement]


class Judged(NamedTuple):
    """A claim with its judgement."""

    id: str
    claim: Claim
    judgement: Judgement


def judge(shown: View, paper: Paper) -> list[Judged]:
    """Judges every claim by the rows of one view."""
    evidence = Evidence(shown=shown, paper=paper)
    return [
        Judged(name, claim, decide(claim, evidence)) for name, claim in CLAIMS.items()
    ]


def decide(claim: Claim, evidence: Evidence) -> Judgement:
    """Judges one claim by the arms that reach its scale.

    What it needs and does not find makes it untestable; where smaller arms would decide
    it, what they point to is said.
    """
    able = evidence.only(claim.scale.reached_by)
    try:
        return _with_unseen(claim.judge(able))
    except NotTestable as error:
        missing = error.missing
    if able is not evidence:
        needs = claim.scale.needs
        missing = [f"{each}, with {needs}" for each in missing]
        with contextlib.suppress(NotTestable):
            here = _with_unseen(claim.judge(evidence))
            why = f"It takes {needs}. Here: {here.verdict}. {here.why}"
            return dataclasses.replace(
                here, verdict=judges.TOO_SMALL, why=why, missing=missing
            )
    why = f"Missing: {'; '.join(missing)}."
    return Judgement(verdict=judges.UNTESTABLE, why=why, missing=missing)


def _with_unseen(found: Judgement) -> Judgement:
    """Says in the reason what of the claim the rows do not show."""
    if not found.missing:
        return found
    unseen = f"Of what it asks, not seen: {'; '.join(found.missing)}."
    return dataclasses.replace(found, why=f"{found.why} {unseen}")


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

CLAIMS: Mapping[str, Claim] = {
    "C1": Claim(
        "Residual models under AdamW grow heavy-tailed activations in training.",
        "Fig. 3 right, 7-9",
        "largest kurtosis of block inputs over steps: slope > 0 and > 10 at the end",
        WIDE,
        judges.heavy_tails,
    ),
    "C2": Claim(
        "KL-Shampoo lightens the tails of residual models but does not remove them.",
        "Fig. 3, 4",
        "kurtosis of residual KL-Shampoo between that of residual AdamW and 1",
        SMALL,
        judges.optimizer_lightens,
    ),
    "C3": Claim(
        "Residual-free models with orthogonal initialization and a spectral optimizer "
        "stay near Gaussian throughout training.",
        "Fig. 1, 3-9",
        "|excess kurtosis| < 1 at all block sites and steps; negentropy < .05",
        DEMO,
        judges.stays_gaussian,
    ),
    "C4": Claim(
        "No skip, orthogonal initialization and spectral updates are all necessary.",
        "Theorem 1",
        "each of the three left out, alone and with others: kurtosis beyond 1, or "
        "training fails",
        DEMO,
        judges.all_ingredients,
    ),
    "C5": Claim(
        "Full precision costs residual-free models a little.",
        "Table 1: -1.7 points",
        "held-out loss of the best residual-free arm less the best residual arm",
        SMALL,
        judges.full_precision_cost,
    ),
    "C6": Claim(
        "Residual-free models lose least at W8A8 and W8A6.",
        "Tables 1-4",
        "increase of loss and loss of accuracy, best of each kind, both placements; "
        "W8A4 where these decide nothing",
        DEMO,
        judges.degrades_least,
    ),
    "C7": Claim(
        "At 10 and 12 activation bits residual KL-Shampoo is as good.",
        "Tables 2-4; not said in the text",
        "increase of loss at W8A10 and W8A12, both placements",
        SMALL,
        judges.as_good_at_many_bits,
    ),
    "C8": Claim(
        "Weights matter little: A8, W8A8 and W16A8 are the same.",
        "Appendix E.5",
        "differences of the increase of loss, against their intervals",
        DEMO,
        judges.weights_matter_little,
    ),
    "C9": Claim(
        "SQNR is higher and NMSE lower for residual-free models at every width.",
        "Fig. 1, 11, 13, 15",
        "mean and bulk SQNR and NMSE, worst residual-free against best residual",
        DEMO,
        judges.less_noise,
    ),
    "C10": Claim(
        "Excess kurtosis explains the degradation.",
        "Section 3",
        "rank correlation over arms of kurtosis, SQNR and R_L with the increase",
        SMALL,
        judges.kurtosis_explains,
    ),
    "C11": Claim(
        "KL-Shampoo trains residual-free models to a lower loss than SOAP, SOAP than "
        "Muon.",
        "Fig. 3 left",
        "training loss at equal steps and at equal wall time",
        DEMO,
        judges.optimizer_order,
    ),
    "C12": Claim(
        "Attention temperature, beta = 1.1, lowers the loss.",
        "Fig. 3 middle",
        "held-out loss of pairs of arms that differ in beta alone; one that collapses "
        "has the higher loss",
        DEEP,
        judges.temperature_helps,
    ),
    "C13": Claim(
        "AdamW fails on deep residual-free models.",
        "Section 5",
        "loss of residual-free AdamW against the bigram floor, by depth; where it "
        "fails, that of spectral optimizers",
        DEEP,
        judges.adamw_fails_deep,
    ),
    "C14": Claim(
        "Spectral updates keep weights near isometries, sign-like updates do not.",
        "Lemma 4",
        "deviation of W_V, W_O, W_U, W_D at the end, and per summed update",
        DEMO,
        judges.updates_keep_isometry,
    ),
    "C15": Claim(
        "Normalization is needed.",
        "Lemma 1",
        "variance by layer without it, both connections: its proof, Lemma 5, measured",
        THEORY,
        judges.from_theory("Lemma 5"),
    ),
    "C16": Claim(
        "Residual addition preserves kurtosis, dense mixing contracts it.",
        "Lemmas 2, 3",
        "the formulas of these lemmas and of their proofs, measured; against them our "
        "correction that additions contract kurtosis too",
        THEORY,
        judges.from_theory(*MIXING_AND_ADDING, corrections=("Additions dilute",)),
    ),
    "C17": Claim(
        "Kurtosis falls with depth in residual models under AdamW.",
        "Appendix E.2: 73,998, 40,527, 553",
        "kurtosis of block inputs by layer at the end",
        SMALL,
        judges.falls_with_depth,
    ),
    "C18": Claim(
        "AdamW and Muon are fast, KL-Shampoo slower, SOAP slowest.",
        "Appendix D",
        "steps/s over those of residual AdamW, and memory",
        ONE_GPU,
        judges.throughput,
    ),
    "C19": Claim(
        "Orthogonal initialization trains deep residual-free models.",
        "Section 4",
        "loss against the bigram floor by depth, for each reading of the "
        "initialization and a Gaussian control",
        DEEP,
        judges.trains_deep,
    ),
    "C20": Claim(
        "Residual-free is the route to models that are easy to quantize.",
        "Title",
        "no residual arm is as good at W8A6 and W4A4 with no loss in full precision",
        SMALL,
        judges.only_route,
    ),
}


def number_text(number: Number) -> str:
    """A number with its unit, its interval, and the loss beside a kurtosis."""
    if not math.isfinite(number.value):
        return tables.NOT_FINITE

    def form(value: float) -> str:
        if number.unit == "kurtosis":
            return tables.kurtosis_text(value)
        if number.unit == "nats":
            return tables.signed(value, 4) if abs(value) < 0.1 else f"{value:.3f}"
        digits = f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.3f}"
        return digits.replace("-", "−")

    text = form(number.value)
    if number.lo is not None and number.hi is not None:
        text += f" [{form(number.lo)}, {form(number.hi)}]"
    if number.unit and number.unit != "kurtosis":
        text += f" {number.unit}"
    if number.unit == "kurtosis":
        beside = tables.MISSING if number.loss is None else f"{number.loss:.3f}"
        text += f" (loss {beside})"
    return text


CAPTION = (
    "Each claim of the paper as a query over these rows; the verdict is computed and "
    "speaks of these runs at their size. Where several arms play one part, at other "
    "learning rates or temperatures, the one of lowest full-precision loss speaks; one "
    "that did not train speaks only where training is the claim. Runs too small for a "
    "claim decide nothing; what they point to stands after Here. A verdict on part of "
    "what is asked names the other part."
)


def claims_table(judged: Sequence[Judged]) -> Table:
    """One line a claim: verdict, reason, and what is missing."""
    lines = [
        Line(
            cells=[
                tables.plain_cell("claim", name),
                tables.plain_cell("statement", claim.statement),
                tables.plain_cell("where", claim.where),
                tables.plain_cell("verdict", found.verdict),
                tables.plain_cell("why", found.why),
                tables.plain_cell("missing", "; ".join(found.missing) or "nothing"),
                Cell(
                    text="; ".join(f"{n.what}: {number_text(n)}" for n in found.numbers)
                    or "none",
                    data={"numbers": len(found.numbers)},
                ),
                tables.plain_cell("scale", str(claim.scale)),
            ]
        )
        for name, claim, found in judged
    ]
    return Table(
        name="claims",
        title="The paper's claims",
        caption=CAPTION,
        header=(
            "Claim",
            "Statement",
            "Where",
            "Verdict",
            "Why",
            "Missing",
            "Numbers",
            "Smallest scale that can speak",
        ),
        lines=lines,
    )


def numbers_table(judged: Sequence[Judged]) -> Table:
    """One line a number that a verdict rests on."""
    lines = [
        Line(
            group=name,
            cells=[
                tables.plain_cell("claim", name),
                tables.plain_cell("number", number.what),
                Cell(
                    text=number_text(number),
                    data={
                        "value": _finite(number.value),
                        "lo": _finite(number.lo),
                        "hi": _finite(number.hi),
                        "unit": number.unit,
                        "loss": number.loss,
                    },
                ),
            ],
        )
        for name, _, found in judged
        for number in found.numbers
    ]
    return Table(
        name="claims_numbers",
        title="The numbers behind the verdicts",
        caption="95 % intervals where there are any; the loss beside every kurtosis.",
        header=("Claim", "What", "Value"),
        lines=lines,
    )


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else tables.NOT_FINITE
