"""Sentences computed from the rows: the answer, what to know, and the limits."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping

import polars as pl

from rfq.report import cells, paper, view
from rfq.report.arms import arm_label
from rfq.report.cells import count_text, signed
from rfq.report.claims import Judged, rounding, verdict
from rfq.report.evidence import Evidence, NotTestable
from rfq.report.tables import GLANCE_SPECS
from rfq.report.view import View


def answer(evidence: Evidence) -> str:
    """Answer the question of the page for these runs, in one sentence."""
    try:
        found = [
            rounding.compare_sides(
                evidence, name, stream, evidence.increase, "nats", verdict.NEGLIGIBLE
            )
            for name, stream in itertools.product(GLANCE_SPECS, view.PLACEMENTS)
        ]
    except NotTestable as error:
        return f"These runs cannot say: they lack {' and '.join(error.missing)}."
    sides = [comparison[0] for comparison in found if comparison]
    if not sides:
        return "These runs cannot say: no arm of either kind was quantized to few bits."
    won, lost = sides.count(1), sides.count(-1)
    said = "It depends in these runs" if won and lost else "Yes in these runs"
    if not won:
        said = "No in these runs" if lost else "These runs show no difference"
    return (
        f"{said}: of {len(sides)} comparisons of the best residual with the best "
        f"residual-free arm ({', '.join(GLANCE_SPECS)}, both placements of the "
        f"stream's quantizer), the residual-free arm loses less in {won}, the residual "
        f"arm in {lost}, and {len(sides) - won - lost} show no clear difference."
    )


TALLY: Mapping[str, str] = {
    verdict.HOLDS: "hold",
    verdict.CORRECTED: "hold with a correction",
    verdict.FAILS: "do not hold",
    verdict.TOO_SMALL: "need larger runs",
    verdict.UNTESTABLE: "need other arms or numbers",
}


def tally(judged: Iterable[Judged]) -> list[tuple[int, str, str]]:
    """Count the verdicts: how many, in words, and the verdict."""
    counts = collections.Counter(one.judgement.verdict for one in judged)
    return [(counts[v], words, v) for v, words in TALLY.items() if counts[v]]


def alerts(shown: View) -> list[str]:
    """Say what a reader must know before any number: lost arms and lost files."""
    found = [
        f"{arm_label(arm)}: {said}."
        for arm in shown.arms
        for said in _alerts(shown, arm)
    ]
    if shown.floor("unigram") is None or shown.floor("bigram") is None:
        found.append(
            "The n-gram floors are missing, so a collapsed arm cannot be told."
        )
    return [*found, *shown.results.notes]


def _alerts(shown: View, arm: str) -> Iterator[str]:
    status, loss = shown.facts[arm].status, shown.full_loss(arm).value
    if status == "missing":
        yield "missing; no rows and no run"
    elif status == "unfinished":
        yield "unfinished; it has no rows yet"
    elif status == "not finite":
        said = [run.failed.get("message") for run in shown.runs(arm)]
        default = "the loss is not finite; its numbers mean nothing"
        yield next(filter(None, said), default)
    else:
        if status == "stuck":
            yield (
                f"collapsed; its held-out loss {loss:.2f} is near the unigram floor "
                f"{shown.floor('unigram'):.2f}, so it learnt little but word "
                "frequencies and its robustness to quantization means nothing"
            )
        broken = shown.results.rows.filter(pl.col("loss").is_nan(), arm=arm)["spec"]
        if len(broken):
            yield f"the loss is not finite at {', '.join(sorted(set(broken)))}"
        if not shown.rows.place(arm, shown.reference):
            yield "quantized rows missing"
    if shown.skips[arm] == "residual_free" and (worst := _unequal(shown, arm)) > 1e-4:
        yield (
            f"the two placements differ by up to {worst:.4f} nats, but "
            "have to be equal; distrust these rows"
        )


def _unequal(shown: View, arm: str) -> float:
    """Return how far the placements of an arm differ."""
    both = [
        [shown.increase(arm, p, stream).value for stream in view.PLACEMENTS]
        for p in shown.precisions
    ]
    gaps = (abs(a - b) for a, b in both if a is not None and b is not None)
    return max(gaps, default=0.0)


def limits(shown: View) -> list[str]:
    """Say what runs of this size can and cannot show, computed from them."""
    return [
        _size(shown),
        _eight_bits(shown),
        _placement(shown),
        _seeds(shown),
        "Held-out loss here and zero-shot accuracy in the paper are different units: "
        "compare orders and where curves bend, not sizes.",
    ]


def _size(shown: View) -> str:
    printed = paper.load()
    fields = ("num_params", "num_steps", "tokens_seen")
    params, steps, tokens = shown.results.rows.select(pl.col(fields).max()).row(0)
    parts = []
    if params:
        share = f"1/{printed.setting['num_params'] / params:,.0f} of the paper's"
        parts.append(f"{count_text(params)} parameters, {share}")
    if steps:
        theirs = printed.setting["num_steps"]
        parts.append(f"{steps:,.0f} steps, the paper {theirs:,}")
    if tokens:
        parts.append(f"{count_text(tokens)} tokens seen")
    size = "; ".join(parts) or cells.MISSING
    arms = [arm for arm in shown.facts.values() if arm.kurtosis.value is not None]
    if not arms:
        return f"Size: {size}. Kurtosis: {cells.MISSING}."
    arm = max(arms, key=lambda arm: arm.kurtosis.value or 0.0)
    largest = cells.cell(arm.kurtosis, "", "~kurtosis").text
    theirs = max(entry["excess_kurtosis"] for entry in printed.kurtosis)
    reach = "the same order of magnitude"
    if (arm.kurtosis.value or 0.0) < theirs / 10:
        reach = (
            "nothing here comes near it, so these runs show mechanisms and orders, "
            "not its extremes"
        )
    return (
        f"Size: {size}. The largest block kurtosis here is {largest} "
        f"({arm_label(arm.name)}); the paper states up to {theirs:,.0f}: {reach}."
    )


def _eight_bits(shown: View) -> str:
    found = {
        f"{name}, {arm_label(arm)}, {place}": value
        for name in ("A8", "W8A8")
        for arm in shown.arms
        for stream, place in view.PLACEMENTS.items()
        if (value := shown.increase(arm, name, stream).value) is not None
    }
    if not found:
        return "Eight activation bits: missing."
    where = max(found, key=lambda key: found[key])
    cost = f"{signed(found[where])} nats here ({where})"
    if found[where] <= verdict.NEGLIGIBLE:
        return (
            f"Eight activation bits cost at most {cost}: every arm passes, so read the "
            "rows at 6 and 4 bits."
        )
    return (
        f"Eight activation bits already cost up to {cost}, so the rows at 8 bits tell "
        "arms apart."
    )


def _placement(shown: View) -> str:
    trained = [name for name, arm in shown.facts.items() if arm.trained]
    for name in ("W8A4", "A4", "W8A6", "A6"):
        ranks = []
        for stream in view.PLACEMENTS:
            every = ((shown.increase(arm, name, stream).value, arm) for arm in trained)
            known = [(value, arm) for value, arm in every if value is not None]
            ranks.append([arm for _, arm in sorted(known, key=lambda pair: pair[0])])
        if len(ranks[0]) > 1 and sorted(ranks[0]) == sorted(ranks[1]):
            branch, in_place = (arm_label(rank[0]) for rank in ranks)
            where = "Where the stream's quantizer stands"
            if ranks[0] == ranks[1]:
                end = f"the ranking at {name}: {branch} loses least either way."
                return f"{where} does not change {end}"
            lead = f"{branch} loses least in both, and the order behind it changes"
            if branch != in_place:
                lead = f"{branch} loses least with branch, {in_place} with in place"
            end = f"{lead}. The paper does not say which it used."
            return f"{where} decides the ranking at {name}: {end}"
    return "Placement of the stream's quantizer: both are not in the rows; missing."


def _seeds(shown: View) -> str:
    losses = [(arm.loss, name) for name, arm in shown.facts.items()]
    counts = {found.num_seeds for found, _ in losses if found.value is not None}
    spreads = [(e.spread, name) for e, name in losses if e.spread is not None]
    if not spreads:
        return (
            "One seed an arm: intervals cover the choice of held-out sequences, not "
            "the spread between seeds, so a small difference between arms may be "
            "chance."
        )
    spread, arm = max(spreads, key=lambda pair: pair[0])
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return (
        f"{seeds} seeds an arm; the held-out loss varies by up to {spread:.3f} "
        f"nats (standard deviation, {arm_label(arm)}), so smaller differences "
        "between arms are not told apart."
    )
