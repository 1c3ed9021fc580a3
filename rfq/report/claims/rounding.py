"""Claims on quantization: who loses how much, and why."""

import itertools
from collections.abc import Callable, Iterable, Sequence

from rfq.report import evidence, view
from rfq.report.arms import RIVALS, Arm, arm_label
from rfq.report.claims.verdict import (
    ENOUGH_ARMS,
    EXPLAINS,
    FAILS,
    FREE_KL,
    HOLDS,
    NEGLIGIBLE,
    RESIDUAL_KL,
    UNTESTABLE,
    Judgement,
    above,
    graded,
)
from rfq.report.estimates import Estimate, difference, rank_correlation, rank_interval
from rfq.report.evidence import (
    Evidence,
    NotTestable,
    Number,
    lacking,
    number,
    part_label,
)

# What may explain the increase, and its field.
EXPLANATIONS = {
    "kurtosis": "excess_kurtosis",
    "SQNR": "sqnr_db",
    "R_L": "relative_error",
}


def _cells(*names: str) -> Iterable[tuple[str, str, str]]:
    """Give settings with both placements of the stream's quantizer, and in words."""
    for name, (stream, place) in itertools.product(names, view.PLACEMENTS.items()):
        yield name, stream, f"{name}, {place}"


# Arm, setting and placement -> what it lost.
Lost = Callable[[Arm, str, str], Estimate]


def compare_sides(
    e: Evidence, name: str, stream: str, lost: Lost, unit: str, matters: float
) -> tuple[int, list[Number]] | None:
    """Compare the arm of each side that loses least under a setting.

    Returns:
        1 if the residual-free arm loses less, -1 if more, 0 where the intervals meet or
        nothing that matters is lost; and both numbers. None without both.
    """
    numbers, least = [], []
    for arms in e.sides():
        known = [(a, x) for a in arms if (x := lost(a, name, stream)).value is not None]
        if not known:
            return None
        arm, found = min(known, key=lambda pair: pair[1].value or 0.0)
        label = f"{arm.label}, {name}, {view.PLACEMENTS[stream]}"
        numbers.append(number(label, found, unit))
        least.append(found)
    gap, back = difference(*reversed(least)), difference(*least)
    if max(n.value for n in numbers) <= matters:
        return 0, numbers
    return int(above(gap)) - int(above(back)), numbers


def degrades_least(e: Evidence) -> Judgement:
    """C6: the order at W8A8 and W8A6 in both placements; W8A4 where these cost none."""
    kinds: Sequence[tuple[str, Lost, str, float]] = (
        ("increase of loss", e.increase, "nats", NEGLIGIBLE),
        ("loss of accuracy", e.lost_accuracy, "accuracy lost", 0.0),
    )
    cells, absent = [], []
    for names in (("W8A8", "W8A6"), ("W8A4",)):
        for name, (what, lost, unit, least) in itertools.product(names, kinds):
            for _, stream, where in _cells(name):
                cell = compare_sides(e, name, stream, lost, unit, least)
                cells += [cell] if cell else []
                absent += [] if cell else [f"{what} at {where}"]
        if any(won for won, _ in cells):
            break
    if not cells:
        raise NotTestable("increases of loss at W8A8, W8A6 or W8A4 of both kinds")
    numbers = [n for _, pair in cells for n in pair]
    won, behind = (sum(cell[0] == side for cell in cells) for side in (1, -1))
    why = (
        f"Residual-free loses least in {won} comparisons, most in {behind}; in "
        f"{len(cells) - won - behind} the intervals overlap or nothing is lost."
    )
    if not won and not behind:
        return Judgement(UNTESTABLE, why, numbers, absent)
    if won and behind:
        why += " It depends on the width or on where the stream's quantizer stands."
    return Judgement(graded([not behind], but=bool(won)), why, numbers, absent)


def as_good_at_many_bits(e: Evidence) -> Judgement:
    """C7: residual KL-Shampoo loses no more than residual-free at W8A10 and W8A12."""
    pair = e.arms(FREE_KL, RESIDUAL_KL)
    numbers, good, absent = [], [], []
    for name, stream, where in _cells("W8A12", "W8A10"):
        found = [e.increase(arm, name, stream) for arm in pair]
        gap = difference(*found)
        if gap.value is None:
            absent.append(f"{where}, of both arms")
            continue
        good.append(gap.value <= NEGLIGIBLE or (gap.lo is not None and not above(gap)))
        both = zip(pair, found, strict=True)
        numbers += [number(f"{arm.label}, {where}", x) for arm, x in both]
    if not good:
        raise NotTestable("increases of loss at W8A12 or W8A10 of both arms")
    why = (
        f"As good in {sum(good)} of {len(good)} comparisons, to within {NEGLIGIBLE} "
        "nats or the intervals."
    )
    return Judgement(graded(good), why, numbers, absent)


def weights_matter_little(e: Evidence) -> Judgement:
    """C8: WnAm costs what Am costs, n >= 8."""
    gaps: list[Number] = []
    widths = set()
    quantized = [
        p for p in e.shown.precisions if p.act_bits and (p.weight_bits or 0) >= 8
    ]
    trained = [arm for arm in e.facts.values() if arm.trained]
    for precision, arm in itertools.product(quantized, trained):
        for _, stream, where in _cells(f"{precision.name} less A{precision.act_bits}"):
            # Residual-free blocks cannot tell the placements apart.
            if arm.skip == "residual_free" and stream != "branch":
                continue
            gap = e.added(arm, f"A{precision.act_bits}", precision.name, stream)
            if gap.value is not None:
                gaps.append(number(f"{arm.label}, {where}", gap))
                widths.add(precision.weight_bits)
    if not gaps:
        raise NotTestable(
            "increases at the same activation width with and without quantized weights"
        )
    differing = [gap for gap in gaps if abs(gap.value) > NEGLIGIBLE and gap.clear]
    most = 2 * len(differing) > len(gaps)
    why = (
        f"Of {len(gaps)} differences of arms that trained, {len(differing)} are beyond "
        f"{NEGLIGIBLE} nats with an interval without 0."
    )
    largest = max(gaps, key=lambda gap: abs(gap.value))
    absent = [f"{bits}-bit weights" for bits in (8, 16) if bits not in widths]
    verdict = graded([not differing], but=not most)
    return Judgement(verdict, why, differing or [largest], absent)


def less_noise(e: Evidence) -> Judgement:
    """C9: SQNR (mean and bulk) higher and NMSE lower at every width."""
    sides = e.sides()
    wins: dict[str, list[bool]] = {}
    numbers = []
    fields = (
        ("sqnr_db", "SQNR", 1, "dB"),
        ("bulk_sqnr_db", "SQNR of the bulk", 1, "dB"),
        ("nmse", "NMSE", -1, ""),
    )
    for field, name, sign, unit in fields:
        gaps = []
        for precision in e.shown.precisions:
            found = [
                [e.shown.rows.of(field, arm.name, precision).value for arm in arms]
                for arms in sides
            ]
            residual, free = (
                [sign * x for x in side if x is not None] for side in found
            )
            if precision.act_bits is not None and residual and free:
                gaps.append((min(free) - max(residual), precision.name))
        if gaps:
            wins[name] = [gap > 0 for gap, _ in gaps]
            gap, at = min(gaps)
            label = f"{name}, worst residual-free less best residual, least at {at}"
            numbers.append(Number(label, sign * gap, unit))
    if "SQNR" not in wins:
        raise NotTestable("SQNR at a common width of both kinds")
    counts = [
        f"{name} at {sum(won)} of {len(won)} precisions" for name, won in wins.items()
    ]
    why = "The worst residual-free arm that trained beats the best residual arm in "
    why += f"{', '.join(counts)}."
    absent = [name for name in ("SQNR of the bulk", "NMSE") if name not in wins]
    return Judgement(
        graded([w for won in wins.values() for w in won]), why, numbers, absent
    )


def kurtosis_explains(e: Evidence) -> Judgement:
    """C10: rank correlation with the increase of loss over arms, within settings."""
    arms = [a for a in e.facts.values() if a.trained and a.kurtosis.value is not None]
    if len(arms) < ENOUGH_ARMS:
        lack = ENOUGH_ARMS - len(arms)
        raise NotTestable(f"{lack} more arms that trained and have a kurtosis")
    found: dict[str, list[tuple[float, int]]] = {}
    widths = [p for p in e.shown.precisions if p.act_bits is not None]
    for precision, stream in itertools.product(widths, view.PLACEMENTS):
        lost = {arm.name: e.increase(arm, precision.name, stream).value for arm in arms}
        if max((x for x in lost.values() if x is not None), default=0) < NEGLIGIBLE:
            continue
        for what, field in EXPLANATIONS.items():
            at = precision, stream
            found_at = {a.name: e.shown.rows.of(field, a.name, *at) for a in arms}
            if what == "kurtosis":  # Of full precision.
                found_at = {a.name: a.kurtosis for a in arms}
            both = [(found_at[a.name].value, lost[a.name]) for a in arms]
            pairs = [(x, y) for x, y in both if x is not None and y is not None]
            rho = rank_correlation(*zip(*pairs, strict=True)) if pairs else None
            if rho is not None and len(pairs) >= ENOUGH_ARMS:
                found.setdefault(what, []).append((rho, len(pairs)))
    if "kurtosis" not in found:
        raise NotTestable(f"a setting under which {ENOUGH_ARMS} arms lose something")
    numbers = []
    for what, each in found.items():
        rho, count = sorted(each)[len(each) // 2]
        label = f"rank correlation of {what} with the increase, median over settings"
        numbers.append(Number(label, rho, "", *rank_interval(rho, count)))
    first, *others = (abs(n.value) for n in numbers)
    strong, weak = (numbers[0].value >= x for x in (EXPLAINS, EXPLAINS / 2))
    better = max(others, default=0.0) > first
    why = f"Kurtosis {'orders' if strong else 'does not order'} the arms by what they "
    why += f"lose (bound {EXPLAINS:g})"
    why += "; another measure does it better." if better else "."
    why += " Kurtosis near 0 is also what a model that learnt little has."
    absent = [what for what in ("SQNR", "R_L") if what not in found]
    return Judgement(graded([strong and not better], but=weak), why, numbers, absent)


def only_route(e: Evidence) -> Judgement:
    """C20: a residual arm as good at W8A6 and W4A4, at no cost in full precision?"""
    best = min(e.sides()[1], key=lambda arm: arm.loss.value or 0.0)
    for names in (("W8A6", "W4A4"), ("W8A6", "W8A4")):
        base = [(n, e.increase(best, n, stream)) for n, stream, _ in _cells(*names)]
        unmeasured = dict.fromkeys(name for name, found in base if found.value is None)
        if not unmeasured:
            break
    else:
        raise NotTestable(*(f"{n} rows of {arm_label(best.name)}" for n in unmeasured))
    instead = [] if names[1] == "W4A4" else [f"W4A4 rows of {arm_label(best.name)}"]
    numbers, measured, as_good = [e.loss(best)], [], []
    rivals = e.of_one_size(lambda arm: arm.skip == "residual")
    for arm in (arm for arm in rivals if arm.trained):
        found = [e.increase(arm, name, stream) for name, stream, _ in _cells(*names)]
        pairs = zip((x for _, x in base), found, strict=True)
        gaps = [difference(*pair).value for pair in pairs]
        known = [gap for gap in gaps if gap is not None]
        if len(known) < len(gaps):
            continue
        measured.append(arm)
        label = f"{arm.label} less {best.label}, increase, largest"
        numbers += [e.loss(arm), Number(label, max(known))]
        no_cost = e.loss(arm).value <= numbers[0].value + NEGLIGIBLE
        if no_cost and max(known) <= NEGLIGIBLE:
            as_good.append(arm_label(arm.name))
    if as_good:
        at = " and ".join(names)
        why = f"As good at {at} and no worse before: {', '.join(as_good)}."
        return Judgement(FAILS, why, numbers, instead)
    kinds = {part_label(RESIDUAL_KL): e.playing(RESIDUAL_KL)}
    for rival in RIVALS:
        kinds[f"residual with {rival}"] = [arm for arm in rivals if arm.rival == rival]
    absent = instead + [
        f"{' and '.join(names)} rows of {name}"
        if evidence.best(arms)
        else lacking(name, arms)
        for name, arms in kinds.items()
        if not any(arm in measured for arm in arms)
    ]
    why = f"None of {len(measured)} residual arms is as good."
    return Judgement(UNTESTABLE if absent else HOLDS, why, numbers, absent)
