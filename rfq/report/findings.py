"""Sentences computed from the rows: what the paper says, and whether it shows here.

No number and no verdict is typed in. The words are those of the claims list: `holds`,
`holds with a correction`, `does not hold`, `not testable from these rows`. A verdict
speaks of these runs at this size, not of the paper's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from rfq.report import load, tables, view
from rfq.report.paper import Paper
from rfq.report.view import Estimate, Precision, View

Verdict = Literal[
    "holds",
    "holds with a correction",
    "does not hold",
    "not testable from these rows",
]

# Claim C3's bound: within it activations count as near Gaussian.
NEAR_GAUSSIAN = 1.0
# Claim C1's bound: above it tails are heavy.
HEAVY = 10.0
# Nats below which an increase of loss does not matter to a reader.
NEGLIGIBLE = 0.01

UNTESTABLE: Verdict = "not testable from these rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A statement of the paper, with what these rows say.

    Attributes:
        claim: the claim's id in the list of claims, as C6.
        evidence: one or two sentences with the numbers.
    """

    claim: str
    statement: str
    verdict: Verdict
    evidence: str


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


def _untestable(claim: str, statement: str, why: str) -> Finding:
    return Finding(claim=claim, statement=statement, verdict=UNTESTABLE, evidence=why)


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


def _heavy_tails(shown: View) -> Finding:
    statement = "Residual + AdamW grows heavy-tailed activations during training."
    arm, site = "residual_adamw", ("attn_norm_in",)
    curves = []
    for run in shown.runs(arm):
        if not run.done:
            continue
        peaks = [view.peak_kurtosis(m, site) for m in run.measures]
        curves.append([peak for peak in peaks if peak is not None])
    curves = [curve for curve in curves if len(curve) > 1]
    if not curves:
        why = "Needs measures of residual AdamW at two steps; missing."
        return _untestable("C1", statement, why)
    first = sum(curve[0] for curve in curves) / len(curves)
    last = sum(curve[-1] for curve in curves) / len(curves)
    loss = shown.full_loss(arm).value
    heavy = last > HEAVY
    verdict: Verdict = "does not hold"
    if last > max(first, NEAR_GAUSSIAN):
        verdict = "holds" if heavy else "holds with a correction"
    beside = tables.MISSING if loss is None else f"{loss:.2f}"
    text = (
        "Excess kurtosis at the attention norm's input, largest over layers, goes "
        f"from {_kurt(first)} to {_kurt(last)} (held-out loss {beside})"
    )
    text += "." if heavy else f"; heavy would be above {HEAVY:g}."
    return Finding(claim="C1", statement=statement, verdict=verdict, evidence=text)


def _optimizer_effect(shown: View) -> Finding:
    statement = (
        "KL-Shampoo lightens the tails of residual models but does not remove them; "
        "the connection does."
    )
    adamw = shown.block_kurtosis("residual_adamw").value
    kl = shown.block_kurtosis("residual_kl_shampoo").value
    if adamw is None or kl is None:
        return _untestable(
            "C2",
            statement,
            "Needs residual AdamW and residual KL-Shampoo; without the second, an "
            "effect of the optimizer would be credited to the connection.",
        )
    free = shown.block_kurtosis("residual_free_kl_shampoo").value
    losses = [
        shown.full_loss(arm).value for arm in ("residual_adamw", "residual_kl_shampoo")
    ]
    beside = " and ".join(tables.MISSING if x is None else f"{x:.2f}" for x in losses)
    text = (
        f"Excess kurtosis {_kurt(adamw)} with AdamW and {_kurt(kl)} with KL-Shampoo, "
        f"both residual (losses {beside})"
    )
    if free is not None:
        text += f"; {_kurt(free)} without the skip, same optimizer"
    if kl >= adamw:
        verdict: Verdict = "does not hold"
        text += ". The optimizer does not lighten the tails here."
    elif kl <= NEAR_GAUSSIAN:
        verdict = "does not hold"
        text += (
            ". Here the optimizer alone brings a residual model near Gaussian, so the "
            "ordering by kurtosis is at least partly the optimizer's and must not be "
            "credited to the connection."
        )
    else:
        verdict = "holds"
        text += "."
    return Finding(claim="C2", statement=statement, verdict=verdict, evidence=text)


SPECTRAL = ("kl_shampoo", "soap", "muon", "shampoo")


def _near_gaussian(shown: View) -> Finding:
    statement = (
        "Residual-free models with orthogonal initialization and spectral optimizers "
        "stay near Gaussian throughout training."
    )
    arms = [
        arm
        for arm in _trained(shown, "residual_free")
        if any(name in arm for name in SPECTRAL)
    ]
    peaks = {}
    for arm in arms:
        found = [
            abs(kurtosis)
            for run in shown.runs(arm)
            for m in run.measures
            for site in view.PAPER_SITES
            for kurtosis in view.layer_kurtosis(m, site)
            if kurtosis is not None
        ]
        if found:
            peaks[arm] = max(found)
    if not peaks:
        why = "Needs measures of a residual-free arm with a matrix optimizer; missing."
        return _untestable("C3", statement, why)
    worst = max(peaks, key=lambda arm: peaks[arm])
    holds = peaks[worst] < NEAR_GAUSSIAN
    losses = ", ".join(
        f"{view.arm_label(arm)} {loss:.2f}"
        for arm in peaks
        if (loss := shown.full_loss(arm).value) is not None
    )
    finals = {
        arm: k for arm in peaks if (k := shown.final_kurtosis(arm).value) is not None
    }
    text = (
        "The largest absolute excess kurtosis over the paper's four sites, layers and "
        f"measured steps is {_kurt(peaks[worst])} ({view.arm_label(worst)}); near "
        f"Gaussian means below {NEAR_GAUSSIAN:g}. Held-out losses: "
        f"{losses or tables.MISSING}."
    )
    if finals:
        text += f" The final norm's input, apart: up to {_kurt(max(finals.values()))}."
    return Finding(
        claim="C3",
        statement=statement,
        verdict="holds" if holds else "does not hold",
        evidence=text,
    )


def _full_precision_cost(shown: View) -> Finding:
    statement = "Residual-free models cost a little accuracy in full precision."
    best = {}
    for skip in ("residual", "residual_free"):
        losses = _valued({arm: shown.full_loss(arm) for arm in _trained(shown, skip)})
        if not losses:
            why = f"Needs a {skip.replace('_', '-')} arm that trained; missing."
            return _untestable("C5", statement, why)
        arm = min(losses, key=lambda name: losses[name])
        best[skip] = (arm, losses[arm])
    (arm, ours), (free, theirs) = best["residual"], best["residual_free"]
    gap = theirs - ours
    verdict: Verdict = "holds" if gap > 0 else "does not hold"
    text = (
        f"Best residual-free arm {view.arm_label(free)} {theirs:.3f} nats, best "
        "residual "
        f"arm {view.arm_label(arm)} {ours:.3f}: a gap of {tables.signed(gap)} nats a "
        "token"
    )
    unigram, bigram = shown.floor("unigram"), shown.floor("bigram")
    if gap > 0 and unigram is not None and bigram is not None and unigram > bigram:
        part = gap / (unigram - ours) if unigram > ours else 0.0
        text += (
            f", {part:.2f} of what the residual arm gains over word frequencies"
            f"; the bigram floor is {bigram:.3f}"
        )
    return Finding(
        claim="C5", statement=statement, verdict=verdict, evidence=text + "."
    )


def _apart(low: Estimate, high: Estimate) -> bool:
    """Whether two intervals do not overlap, low below high."""
    return low.hi is not None and high.lo is not None and low.hi < high.lo


def _rank(shown: View, precision: Precision, stream: str) -> list[str]:
    found = _valued(
        {
            arm: shown.increase(arm, precision, stream)
            for arm in (*_trained(shown, "residual"), *_trained(shown, "residual_free"))
        }
    )
    return sorted(found, key=lambda arm: found[arm])


def _degrades_least(shown: View, name: str) -> Finding:
    statement = f"Residual-free models lose least at {name}."
    precision = shown.precision(name)
    groups = [_trained(shown, "residual"), _trained(shown, "residual_free")]
    if precision is None or not all(groups):
        why = f"Needs {name} rows of both connections, of arms that trained; missing."
        return _untestable("C6", statement, why)
    won, parts, largest = [], [], 0.0
    for stream, stream_name in view.STREAMS.items():
        best = []
        for arms in groups:
            found = {arm: shown.increase(arm, precision, stream) for arm in arms}
            values = _valued(found)
            if values:
                arm = min(values, key=lambda a: values[a])
                best.append((arm, found[arm]))
        if len(best) < 2:
            continue
        (arm, ours), (free, theirs) = best
        if theirs.value is None or ours.value is None:
            continue
        clear = _apart(theirs, ours) or _apart(ours, theirs)
        won.append((theirs.value < ours.value, clear))
        largest = max(largest, theirs.value, ours.value)
        parts.append(
            f"{stream_name}: {view.arm_label(free)} {tables.signed(theirs.value)}, "
            f"{view.arm_label(arm)} {tables.signed(ours.value)}"
            + ("" if clear else " (intervals overlap)")
        )
    if not won:
        return _untestable("C6", statement, f"No increases at {name}; missing.")
    text = "Lowest increase of each kind, nats. " + "; ".join(parts) + "."
    if largest <= NEGLIGIBLE:
        text += f" Each loses at most {NEGLIGIBLE}, too little to rank them."
        return _untestable("C6", statement, text)
    if not any(clear for _, clear in won):
        return _untestable(
            "C6", statement, text + " The intervals do not tell them apart."
        )
    if all(better and clear for better, clear in won):
        verdict: Verdict = "holds"
    elif any(better and clear for better, clear in won):
        verdict = "holds with a correction"
    else:
        verdict = "does not hold"
    if len(won) == 2 and won[0][0] != won[1][0]:
        text += (
            " The answer depends on where the quantizer of the stream stands, which "
            "the paper does not say."
        )
    return Finding(claim="C6", statement=statement, verdict=verdict, evidence=text)


def _weights_matter_little(shown: View) -> Finding:
    statement = "Weights matter little: WnAm costs about what Am alone does."
    worst: tuple[float, str, str] | None = None
    agree = True
    for precision in shown.precisions:
        if precision.weight_bits is None or precision.weight_bits < 8:
            continue
        alone = shown.precision(f"A{precision.act_bits}")
        for arm in shown.arms:
            for stream in view.STREAMS:
                a = shown.increase(arm, precision, stream)
                b = shown.increase(arm, alone, stream)
                if a.value is None or b.value is None:
                    continue
                gap = abs(a.value - b.value)
                if worst is None or gap > worst[0]:
                    worst = (gap, arm, precision.name)
                if (_apart(a, b) or _apart(b, a)) and gap > NEGLIGIBLE:
                    agree = False
    if worst is None:
        why = "Needs rows with and without quantized weights; missing."
        return _untestable("C8", statement, why)
    text = (
        "Over all arms, widths and placements the two differ by at most "
        f"{worst[0]:.4f} nats ({view.arm_label(worst[1])}, {worst[2]})"
    )
    text += (
        ", within the intervals or negligible."
        if agree
        else f"; somewhere by more than {NEGLIGIBLE} with intervals apart."
    )
    return Finding(
        claim="C8",
        statement=statement,
        verdict="holds" if agree else "does not hold",
        evidence=text,
    )


def _sqnr_higher(shown: View) -> Finding:
    statement = "SQNR is higher for residual-free models at every width."
    residual, free = _trained(shown, "residual"), _trained(shown, "residual_free")
    wins, losses, gaps = 0, 0, []
    for precision in shown.precisions:
        if precision.name == "FP":
            continue
        ours = _valued({a: shown.distortion(a, precision, "sqnr_db") for a in residual})
        theirs = _valued({a: shown.distortion(a, precision, "sqnr_db") for a in free})
        if not ours or not theirs:
            continue
        gap = min(theirs.values()) - max(ours.values())
        gaps.append(gap)
        wins, losses = wins + (gap > 0), losses + (gap <= 0)
    if not gaps:
        why = "Needs sqnr_db of residual and residual-free arms that trained; missing."
        return _untestable("C9", statement, why)
    verdict: Verdict = "holds" if losses == 0 else "does not hold"
    text = (
        f"The lowest residual-free arm is above the highest residual arm at {wins} of "
        f"{wins + losses} precisions; the difference runs from "
        f"{tables.signed(min(gaps), 1)} to {tables.signed(max(gaps), 1)} dB."
    )
    return Finding(claim="C9", statement=statement, verdict=verdict, evidence=text)


def _optimizer_order(shown: View) -> Finding:
    statement = (
        "Among residual-free models KL-Shampoo reaches the lowest loss, Muon the "
        "highest."
    )
    arms = ("residual_free_kl_shampoo", "residual_free_soap", "residual_free_muon")
    losses = _valued({arm: shown.full_loss(arm) for arm in arms})
    if len(losses) < 2:
        why = "Needs two residual-free arms with matrix optimizers; missing."
        return _untestable("C11", statement, why)
    order = sorted(losses, key=lambda arm: losses[arm])
    verdict: Verdict = (
        "holds" if order == [a for a in arms if a in losses] else "does not hold"
    )
    text = ", ".join(f"{view.arm_label(arm)} {losses[arm]:.3f}" for arm in order)
    absent = [arm for arm in arms if arm not in losses]
    text = f"Held-out loss, nats, at equal steps: {text}."
    if absent:
        text += f" {_names(absent)}: missing."
    return Finding(claim="C11", statement=statement, verdict=verdict, evidence=text)


def findings(shown: View) -> list[Finding]:
    """The paper's statements that these rows can speak about, in the paper's order."""
    return [
        _heavy_tails(shown),
        _optimizer_effect(shown),
        _near_gaussian(shown),
        _full_precision_cost(shown),
        _degrades_least(shown, "W8A8"),
        _degrades_least(shown, "W8A6"),
        _degrades_least(shown, "W8A4"),
        _weights_matter_little(shown),
        _sqnr_higher(shown),
        _optimizer_order(shown),
    ]


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
