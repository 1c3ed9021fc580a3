"""Sentences computed from the rows: the answer, what to know, and the limits."""

import collections
import itertools
from collections.abc import Mapping

import polars as pl

from rfq.report import cells, judges, view
from rfq.report.cells import count_text, signed
from rfq.report.claims import Judged
from rfq.report.evidence import Evidence, NotTestable
from rfq.report.tables import GLANCE_SPECS
from rfq.report.view import View


def answer(evidence: Evidence) -> str:
    """Answer the question of the page for these runs, in one sentence."""
    try:
        evidence.sides()
    except NotTestable as error:
        return f"These runs cannot say: they lack {' and '.join(error.missing)}."
    cells = [
        cell
        for name, stream in itertools.product(GLANCE_SPECS, view.PLACEMENTS)
        if (cell := judges.compare_sides(
            evidence, name, stream, evidence.increase, "nats", judges.NEGLIGIBLE
        ))
    ]  # fmt: skip
    if not cells:
        return "These runs cannot say: no arm of either kind was quantized to few bits."
    won, lost = (sum(side == winner for side, _ in cells) for winner in (1, -1))
    verdict = "It depends in these runs" if won and lost else "Yes in these runs"
    if not won:
        verdict = "No in these runs" if lost else "These runs show no difference"
    return (
        f"{verdict}: of {len(cells)} comparisons of the best residual with the best "
        f"residual-free arm ({', '.join(GLANCE_SPECS)}, both placements of the "
        f"stream's quantizer), the residual-free arm loses less in {won}, the residual "
        f"arm in {lost}, and {len(cells) - won - lost} show no clear difference."
    )


TALLY: Mapping[str, str] = {
    judges.HOLDS: "hold",
    judges.CORRECTED: "hold with a correction",
    judges.FAILS: "do not hold",
    judges.TOO_SMALL: "need larger runs",
    judges.UNTESTABLE: "need other arms or numbers",
}


def tally(judged: list[Judged]) -> list[tuple[int, str, str]]:
    """Count the verdicts: how many, in words, and the verdict."""
    counts = collections.Counter(one.judgement.verdict for one in judged)
    return [(counts[v], words, v) for v, words in TALLY.items() if counts[v]]


def alerts(shown: View) -> list[str]:
    """Say what a reader must know before any number: lost arms and lost files."""
    found = []
    unigram = shown.floor("unigram")
    broken = shown.results.rows.filter(pl.col("loss").is_nan())
    for arm in shown.arms:
        label, status = view.arm_label(arm), shown.status(arm)
        loss = shown.full_loss(arm).value
        if status == "missing":
            found.append(f"{label}: missing; no rows and no run.")
        elif status == "unfinished":
            found.append(f"{label}: unfinished; it has no rows yet.")
        elif status == "not finite":
            said = [run.failed.get("message") for run in shown.runs(arm)]
            default = "the loss is not finite; its numbers mean nothing"
            found.append(f"{label}: {next(filter(None, said), default)}.")
        elif status == "stuck" and loss is not None:
            found.append(
                f"{label}: collapsed; its held-out loss {loss:.2f} is near the unigram "
                f"floor {unigram:.2f}, so it learnt little but word frequencies and "
                "its robustness to quantization means nothing."
            )
        if status in ("ok", "above bigram", "stuck"):
            if bad := sorted(set(broken.filter(arm=arm)["spec"])):
                found.append(f"{label}: the loss is not finite at {', '.join(bad)}.")
            if not shown.rows.place(arm, shown.reference, None):
                found.append(f"{label}: quantized rows missing.")
        worst = _unequal(shown, arm)
        if worst > 1e-4:
            found.append(
                f"{label}: the two placements differ by up to {worst:.4f} nats, but "
                "have to be equal; distrust these rows."
            )
    if unigram is None or shown.floor("bigram") is None:
        found.append(
            "The n-gram floors are missing, so a collapsed arm cannot be told."
        )
    return [*found, *shown.results.notes]


def _unequal(shown: View, arm: str) -> float:
    """Return how far the placements of a residual-free arm differ: a bug of ours."""
    if shown.skip(arm) != "residual_free":
        return 0.0
    both = [
        [shown.increase(arm, p, stream).value for stream in view.PLACEMENTS]
        for p in shown.precisions
    ]
    gaps = (abs(a - b) for a, b in both if a is not None and b is not None)
    return max(gaps, default=0.0)


def limits(evidence: Evidence) -> list[str]:
    """Say what runs of this size can and cannot show, computed from them."""
    return [
        _size(evidence),
        _eight_bits(evidence.shown),
        _placement(evidence.shown),
        _seeds(evidence.shown),
        "Held-out loss here and zero-shot accuracy in the paper are different units: "
        "compare orders and where curves bend, not sizes.",
    ]


def _size(evidence: Evidence) -> str:
    shown, paper = evidence.shown, evidence.paper
    fields = ("num_params", "num_steps", "tokens_seen")
    params, steps, tokens = shown.results.rows.select(pl.col(fields).max()).row(0)
    parts = []
    if params:
        share = f"1/{paper.num_params / params:,.0f} of the paper's"
        parts.append(f"{count_text(params)} parameters, {share}")
    if steps:
        parts.append(f"{steps:,.0f} steps, the paper {paper.num_steps:,}")
    if tokens:
        parts.append(f"{count_text(tokens)} tokens seen")
    size = "; ".join(parts) or cells.MISSING
    peaks = {
        a: k for a in shown.arms if (k := shown.block_kurtosis(a).value) is not None
    }
    if not peaks:
        return f"Size: {size}. Kurtosis: {cells.MISSING}."
    arm = max(peaks, key=lambda name: peaks[name])
    theirs = max(entry.excess_kurtosis for entry in paper.kurtosis)
    reach = (
        "nothing here comes near it, so these runs show mechanisms and orders, not its "
        "extremes"
        if peaks[arm] < theirs / 10
        else "the same order of magnitude"
    )
    largest = cells.write(peaks[arm], "kurtosis")
    return (
        f"Size: {size}. The largest block kurtosis here is {largest} "
        f"({view.arm_label(arm)}); the paper states up to {theirs:,.0f}: {reach}."
    )


def _eight_bits(shown: View) -> str:
    found = {
        f"{name}, {view.arm_label(arm)}, {place}": value
        for name in ("A8", "W8A8")
        for arm in shown.arms
        for stream, place in view.PLACEMENTS.items()
        if (value := shown.increase(arm, shown.precision(name), stream).value)
        is not None
    }
    if not found:
        return "Eight activation bits: missing."
    where = max(found, key=lambda key: found[key])
    cost = f"{signed(found[where])} nats here ({where})"
    if found[where] <= judges.NEGLIGIBLE:
        return (
            f"Eight activation bits cost at most {cost}: every arm passes, so read the "
            "rows at 6 and 4 bits."
        )
    return (
        f"Eight activation bits already cost up to {cost}, so the rows at 8 bits tell "
        "arms apart."
    )


def _placement(shown: View) -> str:
    for name in ("W8A4", "A4", "W8A6", "A6"):
        ranks = []
        for stream in view.PLACEMENTS:
            found = {
                arm: value
                for arm in filter(shown.trained, shown.arms)
                if (value := shown.increase(arm, shown.precision(name), stream).value)
                is not None
            }
            ranks.append(sorted(found, key=lambda arm, found=found: found[arm]))
        if len(ranks[0]) > 1 and sorted(ranks[0]) == sorted(ranks[1]):
            branch, in_place = (view.arm_label(rank[0]) for rank in ranks)
            where = f"Where the stream's quantizer stands decides the ranking at {name}"
            if ranks[0] == ranks[1]:
                where = where.replace("decides", "does not change")
                return f"{where}: {branch} loses least either way."
            lead = f"{branch} loses least in both, and the order behind it changes"
            if branch != in_place:
                lead = f"{branch} loses least with branch, {in_place} with in place"
            return f"{where}: {lead}. The paper does not say which it used."
    return "Placement of the stream's quantizer: both are not in the rows; missing."


def _seeds(shown: View) -> str:
    found = {arm: shown.full_loss(arm) for arm in shown.arms}
    counts = {e.num_seeds for e in found.values() if e.value is not None}
    spreads = {arm: e.spread for arm, e in found.items() if e.spread is not None}
    if not spreads:
        return (
            "One seed an arm: intervals cover the choice of held-out sequences, not "
            "the spread between seeds, so a small difference between arms may be "
            "chance."
        )
    arm = max(spreads, key=lambda name: spreads[name])
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    return (
        f"{seeds} seeds an arm; the held-out loss varies by up to {spreads[arm]:.3f} "
        f"nats (standard deviation, {view.arm_label(arm)}), so smaller differences "
        "between arms are not told apart."
    )
