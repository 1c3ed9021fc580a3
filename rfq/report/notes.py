"""Sentences computed from the rows: what to know before and beside the numbers.

No number is typed in; verdicts on the paper's claims are `claims`'.
"""

import dataclasses
from collections.abc import Sequence

from rfq.report import load, tables, view
from rfq.report.paper import Paper
from rfq.report.view import Estimate, Precision, View

# Nats below which an increase of loss does not matter to a reader.
NEGLIGIBLE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """Something a reader must know before any number."""

    arm: str | None
    text: str


def _names(arms: Sequence[str]) -> str:
    labels = [view.arm_label(arm) for arm in arms]
    if len(labels) < 2:
        return "".join(labels)
    return ", ".join(labels[:-1]) + " and " + labels[-1]


def _trained(shown: View, skip: str) -> list[str]:
    return [
        arm
        for arm in shown.arms
        if shown.skip(arm) == skip and shown.status(arm) in ("ok", "above bigram")
    ]


def _valued(found: dict[str, Estimate]) -> dict[str, float]:
    return {arm: e.value for arm, e in found.items() if e.value is not None}


def _kurt(value: float) -> str:
    return tables.kurtosis_text(value)


def alerts(shown: View) -> list[Alert]:
    """Arms that are missing, not finite, stuck or unfinished, and lost files."""
    found = []
    unigram = shown.floor("unigram")
    for arm in shown.arms:
        label, status = view.arm_label(arm), shown.status(arm)
        loss = shown.full_loss(arm).value
        if status == "missing":
            found.append(Alert(arm=arm, text=f"{label}: missing; no rows and no run."))
        elif status == "unfinished":
            found.append(
                Alert(arm=arm, text=f"{label}: unfinished; it has no rows yet.")
            )
        elif status == "not finite":
            found.append(Alert(arm=arm, text=f"{label}: {_why_broken(shown, arm)}."))
        elif status == "stuck" and loss is not None and unigram is not None:
            text = (
                f"{label}: collapsed; its held-out loss {loss:.2f} is near the unigram "
                f"floor {unigram:.2f}, so it learnt little but word frequencies and "
                "its robustness to quantization means nothing."
            )
            found.append(Alert(arm=arm, text=text))
        if status in ("ok", "above bigram", "stuck"):
            bad = sorted(
                {
                    f"{row.get('spec')}"
                    for row in shown.results.rows
                    if row.get("arm") == arm and load.nonfinite(row, "loss")
                }
            )
            if bad:
                text = f"{label}: the loss is not finite at {', '.join(bad)}."
                found.append(Alert(arm=arm, text=text))
            if not shown.rows(arm, shown.reference):
                found.append(Alert(arm=arm, text=f"{label}: quantized rows missing."))
    found += _unequal_placements(shown)
    if unigram is None or shown.floor("bigram") is None:
        text = "The n-gram floors are missing, so a collapsed arm cannot be told."
        found.append(Alert(arm=None, text=text))
    found += [Alert(arm=None, text=note) for note in shown.results.notes]
    return found


def _why_broken(shown: View, arm: str) -> str:
    """What the run itself said when it diverged, or that its loss is not finite."""
    said = [load.text(run.failed, "message") for run in shown.runs(arm)]
    message = next((text for text in said if text), None)
    return message or "the loss is not finite; its numbers mean nothing"


def _unequal_placements(shown: View) -> list[Alert]:
    """Residual-free arms whose two placements differ, which would be a bug of ours."""
    found = []
    for arm in shown.arms:
        if shown.skip(arm) != "residual_free":
            continue
        worst = 0.0
        for precision in shown.precisions:
            both = [shown.increase(arm, precision, s).value for s in view.STREAMS]
            if both[0] is not None and both[1] is not None:
                worst = max(worst, abs(both[0] - both[1]))
        if worst > 1e-4:
            text = (
                f"{view.arm_label(arm)}: the two placements differ by up to "
                f"{worst:.4f} nats, but have to be equal; distrust these rows."
            )
            found.append(Alert(arm=arm, text=text))
    return found


def _rank(shown: View, precision: Precision, stream: str) -> list[str]:
    found = _valued(
        {
            arm: shown.increase(arm, precision, stream)
            for arm in (*_trained(shown, "residual"), *_trained(shown, "residual_free"))
        }
    )
    return sorted(found, key=lambda arm: found[arm])


def _common(shown: View, field: str) -> float | None:
    values = [
        value
        for row in shown.results.rows
        if (value := load.number(row, field)) is not None
    ]
    return max(values, default=None)


def _size(shown: View, paper: Paper) -> str:
    params, steps = _common(shown, "num_params"), _common(shown, "num_steps")
    tokens = _common(shown, "tokens_seen")
    parts = []
    if params is not None:
        parts.append(
            f"{tables.count_text(params)} parameters, "
            f"1/{paper.num_params / params:,.0f} of the paper's"
        )
    if steps is not None:
        parts.append(f"{steps:,.0f} steps, the paper {paper.num_steps:,}")
    if tokens is not None:
        parts.append(f"{tables.count_text(tokens)} tokens seen")
    size = "; ".join(parts) or f"size {tables.MISSING}"
    peaks = {
        arm: k
        for arm in shown.arms
        if (k := shown.block_kurtosis(arm).value) is not None
    }
    if not peaks:
        return f"Size: {size}. Kurtosis: {tables.MISSING}."
    arm = max(peaks, key=lambda name: peaks[name])
    theirs = max(entry.excess_kurtosis for entry in paper.kurtosis)
    reach = (
        "nothing here comes near it, so these runs show mechanisms and orders, not its "
        "extremes"
        if peaks[arm] < theirs / 10
        else "the same order of magnitude"
    )
    return (
        f"Size: {size}. The largest block kurtosis here is {_kurt(peaks[arm])} "
        f"({view.arm_label(arm)}); the paper states up to {theirs:,.0f}: {reach}."
    )


def _eight_bits(shown: View) -> str:
    found = {}
    for name in ("A8", "W8A8"):
        precision = shown.precision(name)
        for arm in shown.arms:
            for stream in view.STREAMS:
                value = shown.increase(arm, precision, stream).value
                if value is not None:
                    found[(name, arm, stream)] = value
    if not found:
        return "Eight activation bits: missing."
    key = max(found, key=lambda k: found[k])
    worst = found[key]
    where = f"{key[0]}, {view.arm_label(key[1])}, {view.STREAMS[key[2]]}"
    if worst <= NEGLIGIBLE:
        return (
            f"Eight activation bits cost at most {tables.signed(worst)} nats here "
            f"({where}): every arm passes, so read the rows at 6 and 4 bits."
        )
    return (
        f"Eight activation bits already cost up to {tables.signed(worst)} nats here "
        f"({where}), so the rows at 8 bits tell arms apart."
    )


def _placement(shown: View) -> str:
    for name in ("W8A4", "A4", "W8A6", "A6"):
        precision = shown.precision(name)
        if precision is None:
            continue
        ranks = [_rank(shown, precision, stream) for stream in view.STREAMS]
        if all(len(rank) > 1 for rank in ranks) and sorted(ranks[0]) == sorted(
            ranks[1]
        ):
            branch, in_place = (view.arm_label(rank[0]) for rank in ranks)
            if ranks[0] != ranks[1]:
                lead = (
                    f"{branch} loses least with branch, {in_place} with in place"
                    if branch != in_place
                    else f"{branch} loses least in both, the order behind it changes"
                )
                return (
                    "Where the stream's quantizer stands decides the ranking at "
                    f"{name}: {lead}. The paper does not say which it used, so both "
                    "are shown."
                )
            return (
                f"Where the stream's quantizer stands does not change the ranking at "
                f"{name}: {branch} loses least either way."
            )
    return "Placement of the stream's quantizer: both are not in the rows; missing."


def _matched(shown: View) -> str:
    target = tables.matched_loss(shown)
    if target is None:
        return "Matched loss: held-out losses over training are missing."
    parts = []
    for arm in shown.arms:
        point = tables.matched_point(shown, arm, target)
        peak = None if point is None else view.peak_kurtosis(point, ("attn_norm_in",))
        step = None if point is None else load.number(point, "step")
        if peak is not None and step is not None:
            parts.append(f"{view.arm_label(arm)} {_kurt(peak)} (step {step:,.0f})")
    return (
        "Compare at matched loss: an arm that learnt less has lighter tails and less "
        f"to lose. When each first reached {target:.2f} nats, block kurtosis was "
        f"{', '.join(parts) or tables.MISSING}. The increases above are at equal steps."
    )


def _seeds(shown: View) -> str:
    found = {arm: shown.full_loss(arm) for arm in shown.arms}
    counts = {e.num_seeds for e in found.values() if e.value is not None}
    if not counts:
        return "Seeds: missing."
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


def _floors(shown: View) -> str:
    unigram, bigram = shown.floor("unigram"), shown.floor("bigram")
    if unigram is None or bigram is None:
        return "Floors: missing."
    below = [arm for arm in shown.arms if shown.status(arm) == "ok"]
    above = [arm for arm in shown.arms if shown.status(arm) == "above bigram"]
    text = f"Floors: unigram {unigram:.3f} nats, bigram {bigram:.3f}."
    if below:
        text += f" Below the bigram floor, so using context: {_names(below)}."
    if above:
        text += (
            f" Above it: {_names(above)}; a model that does not yet beat the previous "
            "token alone says little about what its architecture costs."
        )
    return text


def _final_norm(shown: View) -> str:
    pairs = {
        arm: (block, final)
        for arm in shown.arms
        if (block := shown.block_kurtosis(arm).value) is not None
        and (final := shown.final_kurtosis(arm).value) is not None
    }
    if not pairs:
        return "Final norm's input: missing."
    parts = [
        f"{view.arm_label(arm)} {_kurt(final)} (blocks {_kurt(block)})"
        for arm, (block, final) in pairs.items()
    ]
    return (
        "The final norm's input is kept apart because it is measured, not quantized, "
        f"and behaves differently: {', '.join(parts)}."
    )


def limits(shown: View, paper: Paper) -> list[str]:
    """What runs of this size can and cannot show, computed from them."""
    return [
        _size(shown, paper),
        _eight_bits(shown),
        _placement(shown),
        _matched(shown),
        _floors(shown),
        _final_norm(shown),
        _seeds(shown),
        (
            "Held-out loss here and zero-shot accuracy in the paper are different "
            "units: compare orders and where curves bend, not sizes."
        ),
    ]
