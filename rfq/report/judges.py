"""How the rows judge each of the paper's claims: one small function a claim.

`claims` names them. A function that lacks something raises `NotTestable`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from rfq.report import view
from rfq.report.evidence import (
    RIVALS,
    SIGN_LIKE,
    SPECTRAL,
    Evidence,
    Facts,
    NotTestable,
    Number,
    Part,
    difference,
    part_label,
    part_of,
    rank_correlation,
    rank_interval,
)
from rfq.report.load import Record
from rfq.report.view import Estimate

Verdict = Literal[
    "holds",
    "holds with a correction",
    "does not hold",
    "not testable from these rows",
    "not testable at this scale",
]
HOLDS: Verdict = "holds"
CORRECTED: Verdict = "holds with a correction"
FAILS: Verdict = "does not hold"
UNTESTABLE: Verdict = "not testable from these rows"
TOO_SMALL: Verdict = "not testable at this scale"

NEAR_GAUSSIAN = 1.0  # Excess kurtosis within which activations count as near Gaussian.
NEAR_GAUSSIAN_NATS = 0.05  # The same for negentropy.
HEAVY = 10.0  # Excess kurtosis above which tails are heavy.
NEGLIGIBLE = 0.01  # Nats that do not matter to a reader.
LITTLE = 0.1  # Part of what a model gains over word frequencies that is a little.
EXPLAINS = 0.7  # Rank correlation from which one number explains another.
ENOUGH_ARMS = 8  # For a rank correlation over arms.
NEAR_ISOMETRIC = 1.0  # max |s^2 / alpha - 1| below which no direction has vanished.

RESIDUAL_ADAMW: Part = ("residual", "adamw")
RESIDUAL_KL: Part = ("residual", "kl_shampoo")
FREE_ADAMW: Part = ("residual_free", "adamw")
FREE_KL: Part = ("residual_free", "kl_shampoo")
FREE_SOAP: Part = ("residual_free", "soap")
FREE_MUON: Part = ("residual_free", "muon")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the rows say of a claim.

    Attributes:
        why: One line.
        numbers: Those that the verdict rests on.
        missing: What would be needed, or is asked and was not there beside what
            decided.
    """

    verdict: Verdict
    why: str
    numbers: Sequence[Number] = ()
    missing: Sequence[str] = ()


Judge = Callable[[Evidence], Judgement]


def graded(right: Sequence[bool], *, but: bool = False) -> Verdict:
    """Return that it holds, in part, or not; `but` says that a part is enough."""
    return HOLDS if all(right) else CORRECTED if any(right) or but else FAILS


def clear(gap: Number | Estimate) -> bool:
    """Say whether the interval of a difference is without 0."""
    return gap.lo is not None and gap.hi is not None and not gap.lo <= 0.0 <= gap.hi


def above(gap: Estimate) -> bool:
    """Say whether a difference is above 0 with its whole interval."""
    return gap.lo is not None and gap.lo > 0.0


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def heavy_tails(e: Evidence) -> Judgement:
    """C1: slope > 0 and more than HEAVY at the end."""
    (arm,) = e.arms(RESIDUAL_ADAMW)
    curve = e.peaks(arm)
    (_, start, first_loss), (_, end, last_loss) = curve[0], curve[-1]
    steps, peaks, _ = zip(*curve, strict=True)
    slope = float(np.polyfit(steps, peaks, 1)[0])
    grows = slope > 0 and end > max(start, NEAR_GAUSSIAN)
    verdict = FAILS if not grows else HOLDS if end > HEAVY else CORRECTED
    why = {
        HOLDS: f"It grows and ends above {HEAVY:g}.",
        CORRECTED: f"It grows, but ends below {HEAVY:g}, so tails are not heavy here.",
        FAILS: f"It does not grow beyond {NEAR_GAUSSIAN:g}.",
    }[verdict]
    numbers = [
        e.beside(arm, "at the first measured step", start, first_loss),
        e.beside(arm, "at the last", end, last_loss),
        Number("slope of the kurtosis over 1,000 steps", 1000 * slope, "per 1,000"),
    ]
    return Judgement(verdict, why, numbers)


def optimizer_lightens(e: Evidence) -> Judgement:
    """C2: kurtosis of residual KL-Shampoo between C1's and NEAR_GAUSSIAN."""
    numbers = [e.kurtosis(arm) for arm in e.arms(RESIDUAL_ADAMW, RESIDUAL_KL)]
    adamw, kl = numbers
    free = e.plays(FREE_KL)
    if free is not None and e.shown.block_kurtosis(free).value is not None:
        numbers.append(e.kurtosis(free))
    if kl.value >= adamw.value:
        why = "The optimizer does not lighten the tails here."
        return Judgement(FAILS, why, numbers)
    if kl.value <= NEAR_GAUSSIAN:
        why = (
            "The optimizer alone brings a residual model near Gaussian, so an order by "
            "kurtosis must not be credited to the connection."
        )
        return Judgement(FAILS, why, numbers)
    why = "Lighter than under AdamW, and still not near Gaussian."
    return Judgement(HOLDS, why, numbers)


def stays_gaussian(e: Evidence) -> Judgement:
    """C3: kurtosis and negentropy small at all sites and steps."""
    arms, absent = e.some(FREE_KL, FREE_SOAP, FREE_MUON)
    heaviest = [e.heaviest(arm) for arm in arms]
    if max(number.value for number in heaviest) >= NEAR_GAUSSIAN:
        why = f"A kurtosis is beyond {NEAR_GAUSSIAN:g}."
        return Judgement(FAILS, why, heaviest, absent)
    nats = [e.negentropy(arm) for arm in arms]
    small = max(number.value for number in nats) < NEAR_GAUSSIAN_NATS
    limit = f"below {NEAR_GAUSSIAN_NATS:g}."
    why = f"Every kurtosis is within {NEAR_GAUSSIAN:g}"
    why += (
        f" and every negentropy {limit}"
        if small
        else f", but a negentropy is not {limit}"
    )
    return Judgement(HOLDS if small else CORRECTED, why, [*heaviest, *nats], absent)


# No skip, orthogonal initialization, spectral updates: in or left out.
Corner = tuple[bool, bool, bool]

_WITH = ("residual-free", "orthogonal", "spectral")
_WITHOUT = ("residual", "Gaussian", "sign-like")
_ALL_THREE, *_OTHERS = itertools.product((True, False), repeat=3)


def _corner(facts: Facts) -> Corner | None:
    known = facts.optimizer in (*SPECTRAL, *SIGN_LIKE)
    if facts.skip is None or facts.recipe is None or not known:
        return None
    free, orthogonal = facts.skip == "residual_free", facts.recipe == "orthogonal"
    return free, orthogonal, facts.optimizer in SPECTRAL


def _corner_name(corner: Sequence[bool]) -> str:
    pairs = zip(corner, _WITH, _WITHOUT, strict=True)
    return ", ".join(name if inside else other for inside, name, other in pairs)


def all_ingredients(e: Evidence) -> Judgement:
    """C4: the 2 x 2 x 2 table of connection, initialization and optimizer."""
    found = {
        corner: e.where(lambda f, corner=corner: _corner(f) == corner)
        for corner in (_ALL_THREE, *_OTHERS)
    }
    base = e.best(found[_ALL_THREE])
    arms = {at: arm for at in _OTHERS if (arm := e.outcome(found[at])) is not None}
    named = e.lacking(_corner_name(_ALL_THREE), found[_ALL_THREE])
    absent = [named] if base is None else []
    absent += [_corner_name(at) for at in _OTHERS if sum(at) == 2 and at not in arms]
    if base is None or absent:
        raise NotTestable(*absent)
    measured = {at: e.heaviest(arm) for at, arm in arms.items() if e.shown.trained(arm)}
    numbers = [e.heaviest(base), *measured.values()]
    near = [at for at, found in measured.items() if found.value < NEAR_GAUSSIAN]
    needless = [
        name for i, name in enumerate(_WITH) if any(not corner[i] for corner in near)
    ]
    verdict, why = HOLDS, "Without any one, tails grow or training fails."
    if numbers[0].value >= NEAR_GAUSSIAN:
        verdict, why = FAILS, "All three together are not near Gaussian."
    elif near:
        verdict = FAILS if len(needless) == len(_WITH) else CORRECTED
        why = f"Near Gaussian also: {'; '.join(map(_corner_name, near))}."
    if fates := e.fates(list(arms.values())):
        why += f" Of the controls, {fates}."
    missing = [_corner_name(at) for at in _OTHERS if at not in arms]
    return Judgement(verdict, why, numbers, missing)


def full_precision_cost(e: Evidence) -> Judgement:
    """C5: the gap of the best arms of each kind in full precision."""
    residual, free = (e.best(arms) or "" for arms in e.sides())
    gap, low, high = e.loss_gap(residual, free), e.loss(residual), e.loss(free)
    numbers = [low, high, gap]
    if gap.lo is not None and not clear(gap):
        return Judgement(UNTESTABLE, "The interval of the gap holds 0.", numbers)
    if gap.value <= 0:
        why = "The residual-free model has the lower loss."
        return Judgement(FAILS, why, numbers)
    unigram = e.shown.floor("unigram")
    if unigram is None:
        raise NotTestable("the unigram floor, to say whether the cost is little")
    part = gap.value / (unigram - low.value)
    numbers.append(Number("part of the gain over word frequencies", part, ""))
    most = "at most" if part <= LITTLE else "more than"
    why = f"It costs {most} {LITTLE:g} of what the residual model gains over word "
    why += "frequencies."
    return Judgement(HOLDS if part <= LITTLE else CORRECTED, why, numbers)


Lost = Callable[
    [str, str, str], Estimate
]  # Arm, setting and placement -> what it lost.


def compare_sides(
    e: Evidence, name: str, stream: str, lost: Lost, unit: str, matters: float
) -> tuple[int, list[Number]] | None:
    """Compare the arm of each side that loses least under a setting.

    Returns:
        1 if the residual-free arm loses less, -1 if more, 0 where the intervals meet or
        nothing that matters is lost; and both numbers. None without both.
    """
    best: list[tuple[Number, Estimate]] = []
    for arms in e.sides():
        known = [(a, x) for a in arms if (x := lost(a, name, stream)).value is not None]
        if not known:
            return None
        arm, found = min(known, key=lambda pair: pair[1].value or 0.0)
        label = f"{e.facts[arm].label}, {name}, {view.PLACEMENTS[stream]}"
        number = Number(label, found.value or 0.0, unit, found.lo, found.hi)
        best.append((number, found))
    (a, first), (b, second) = best
    won = int(above(difference(second, first))) - int(above(difference(first, second)))
    return (won if max(a.value, b.value) > matters else 0), [a, b]


def degrades_least(e: Evidence) -> Judgement:
    """C6: the order at W8A8 and W8A6 in both placements; W8A4 where these cost none."""
    kinds: Sequence[tuple[str, Lost, str, float]] = (
        ("increase of loss", e.increase, "nats", NEGLIGIBLE),
        ("loss of accuracy", e.lost_accuracy, "accuracy lost", 0.0),
    )
    cells, absent = [], []
    for names in (("W8A8", "W8A6"), ("W8A4",)):
        for name, (what, lost, unit, least) in itertools.product(names, kinds):
            for stream, place in view.PLACEMENTS.items():
                cell = compare_sides(e, name, stream, lost, unit, least)
                cells += [] if cell is None else [cell]
                absent += [f"{what} at {name}, {place}"] if cell is None else []
        if any(won for won, _ in cells):
            break
    if not cells:
        raise NotTestable("increases of loss at W8A8, W8A6 or W8A4 of both kinds")
    numbers = [number for _, pair in cells for number in pair]
    won, behind = (sum(cell[0] == side for cell in cells) for side in (1, -1))
    why = (
        f"Residual-free loses least in {won} comparisons, most in {behind}; in "
        f"{len(cells) - won - behind} the intervals overlap or nothing is lost."
    )
    if not won and not behind:
        return Judgement(UNTESTABLE, why, numbers, absent)
    verdict = HOLDS if not behind else CORRECTED if won else FAILS
    if verdict == CORRECTED:
        why += " It depends on the width or on where the stream's quantizer stands."
    return Judgement(verdict, why, numbers, absent)


def as_good_at_many_bits(e: Evidence) -> Judgement:
    """C7: residual KL-Shampoo loses no more than residual-free at W8A10 and W8A12."""
    pair = e.arms(FREE_KL, RESIDUAL_KL)
    numbers, good, absent = [], [], []
    for name, stream in itertools.product(("W8A12", "W8A10"), view.PLACEMENTS):
        place = view.PLACEMENTS[stream]
        found = [e.increase(arm, name, stream) for arm in pair]
        gap = difference(*found)
        if gap.value is None:
            absent.append(f"{name}, {place}, of both arms")
            continue
        good.append(gap.value <= NEGLIGIBLE or (gap.lo is not None and gap.lo <= 0.0))
        numbers += [
            Number(f"{e.facts[arm].label}, {name}, {place}", x.value or 0.0, "nats",
                   x.lo, x.hi)
            for arm, x in zip(pair, found, strict=True)
        ]  # fmt: skip
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
    for precision, arm in itertools.product(quantized, e.shown.arms):
        if not e.shown.trained(arm):
            continue
        # Residual-free blocks cannot tell the placements apart.
        free = e.facts[arm].skip == "residual_free"
        for stream in ("branch",) if free else view.PLACEMENTS:
            alone = f"A{precision.act_bits}"
            gap = e.added(arm, alone, precision.name, stream)
            if gap.value is not None:
                label = f"{e.facts[arm].label}, {precision.name} less {alone}"
                label += f", {view.PLACEMENTS[stream]}"
                gaps.append(Number(label, gap.value, "nats", gap.lo, gap.hi))
                widths.add(precision.weight_bits)
    if not gaps:
        raise NotTestable(
            "increases at the same activation width with and without quantized weights"
        )
    differing = [gap for gap in gaps if abs(gap.value) > NEGLIGIBLE and clear(gap)]
    verdict = HOLDS if not differing else CORRECTED
    if 2 * len(differing) > len(gaps):
        verdict = FAILS
    why = (
        f"Of {len(gaps)} differences of arms that trained, {len(differing)} are beyond "
        f"{NEGLIGIBLE} nats with an interval without 0."
    )
    largest = max(gaps, key=lambda gap: abs(gap.value))
    absent = [f"{bits}-bit weights" for bits in (8, 16) if bits not in widths]
    return Judgement(verdict, why, differing or [largest], absent)


def less_noise(e: Evidence) -> Judgement:
    """C9: SQNR (mean and bulk) higher and NMSE lower at every width."""
    sides = e.sides()
    wins: dict[str, list[bool]] = {}
    numbers = []
    for field, name, sign, unit in (
        ("sqnr_db", "SQNR", 1, "dB"),
        ("bulk_sqnr_db", "SQNR of the bulk", 1, "dB"),
        ("nmse", "NMSE", -1, ""),
    ):
        gaps = []
        for precision in e.shown.precisions:
            residual, free = (
                [
                    sign * value
                    for arm in arms
                    if (value := e.shown.rows.of(field, arm, precision).value)
                    is not None
                ]
                for arms in sides
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
    counts = ", ".join(
        f"{name} at {sum(won)} of {len(won)} precisions" for name, won in wins.items()
    )
    why = "The worst residual-free arm that trained beats the best residual arm in "
    why += f"{counts}."
    absent = [name for name in ("SQNR of the bulk", "NMSE") if name not in wins]
    every = [won for field in wins.values() for won in field]
    return Judgement(graded(every), why, numbers, absent)


def kurtosis_explains(e: Evidence) -> Judgement:
    """C10: rank correlation with the increase of loss over arms, within settings."""
    shown = e.shown
    kurtoses = {
        arm: kurtosis
        for arm in shown.arms
        if shown.trained(arm)
        and (kurtosis := shown.block_kurtosis(arm).value) is not None
    }
    if len(kurtoses) < ENOUGH_ARMS:
        lacking = ENOUGH_ARMS - len(kurtoses)
        raise NotTestable(f"{lacking} more arms that trained and have a kurtosis")
    found: dict[str, list[tuple[float, int]]] = {}
    for precision in shown.precisions:
        for stream in view.PLACEMENTS if precision.act_bits is not None else ():
            lost = {a: e.increase(a, precision.name, stream).value for a in kurtoses}
            if max((x for x in lost.values() if x is not None), default=0) < NEGLIGIBLE:
                continue
            for what, field in {
                "kurtosis": "",
                "SQNR": "sqnr_db",
                "R_L": "relative_error",
            }.items():
                values = {
                    arm: shown.rows.of(field, arm, precision, stream).value
                    if field
                    else own
                    for arm, own in kurtoses.items()
                }
                pairs = [
                    (x, y)
                    for arm, y in lost.items()
                    if y is not None and (x := values[arm]) is not None
                ]
                if len(pairs) >= ENOUGH_ARMS:
                    rho = rank_correlation(*zip(*pairs, strict=True))
                    if rho is not None:
                        found.setdefault(what, []).append((rho, len(pairs)))
    if "kurtosis" not in found:
        raise NotTestable(f"a setting under which {ENOUGH_ARMS} arms lose something")
    numbers = []
    for what, each in found.items():
        rho, count = sorted(each)[len(each) // 2]
        label = f"rank correlation of {what} with the increase, median over settings"
        numbers.append(Number(label, rho, "", *rank_interval(rho, count)))
    kurtosis, *others = (abs(number.value) for number in numbers)
    strong = numbers[0].value >= EXPLAINS
    better = max(others, default=0.0) > kurtosis
    verdict = HOLDS if strong and not better else CORRECTED
    if numbers[0].value < EXPLAINS / 2:
        verdict = FAILS
    why = f"Kurtosis {'orders' if strong else 'does not order'} the arms by what they "
    why += f"lose (bound {EXPLAINS:g})"
    why += "; another measure does it better." if better else "."
    why += " Kurtosis near 0 is also what a model that learnt little has."
    absent = [what for what in ("SQNR", "R_L") if what not in found]
    return Judgement(verdict, why, numbers, absent)


def optimizer_order(e: Evidence) -> Judgement:
    """C11: training loss at equal steps and at equal wall time."""
    arms = e.at_one_temperature(FREE_KL, FREE_SOAP, FREE_MUON)
    numbers, orders = [], []
    for at, unit in (("step", "steps"), ("seconds", "seconds")):
        ends = [x for a in arms if (x := e.shown.last(a, at)) is not None]
        limit = min(ends, default=0.0)
        found = {arm: e.shown.training_loss(arm, at, limit).value for arm in arms}
        losses = {arm: loss for arm, loss in found.items() if loss is not None}
        if len(losses) < len(arms):
            raise NotTestable(f"training losses at equal {unit}")
        orders.append(sorted(arms, key=lambda arm, losses=losses: losses[arm]))
        numbers += [
            Number(
                f"{e.facts[arm].label}, training loss after {limit:,.0f} {unit}", loss
            )
            for arm, loss in losses.items()
        ]
    right = [order == arms for order in orders]
    verdict = graded(right, but=all(order[0] == arms[0] for order in orders))
    steps, seconds = (" < ".join(e.facts[a].label for a in order) for order in orders)
    why = f"Losses at equal steps: {steps}; at equal wall time: {seconds}."
    return Judgement(verdict, why, numbers)


def temperature_helps(e: Evidence) -> Judgement:
    """C12: beta > 1 against beta = 1, equal in all else."""
    pairs = e.temperature_pairs()
    if not pairs:
        raise NotTestable("a residual-free arm with beta = 1 and its twin with 1.1")
    signs = [_raised(e, off, on) for off, on in pairs]
    numbers = [
        e.loss_gap(*pair)
        for pair in pairs
        if all(e.shown.full_loss(arm).value is not None for arm in pair)
    ]
    layers = ", ".join(str(e.facts[on].num_layers) for _, on in pairs)
    why = (
        f"Temperature lowers the loss in {signs.count(-1)} and raises it in "
        f"{signs.count(1)} of {len(pairs)} pairs of arms (layers: {layers})."
    )
    if fates := e.fates([arm for pair in pairs for arm in pair]):
        why += f" Of these, {fates}."
    verdict = graded([sign == -1 for sign in signs]) if any(signs) else UNTESTABLE
    return Judgement(verdict, why, numbers)


def _raised(e: Evidence, low: str, high: str) -> int:
    """Return the sign of the loss of `high` less that of `low`; a failure has more."""
    if e.failed(low) or e.failed(high):
        return int(e.failed(high)) - int(e.failed(low))
    gap = e.loss_gap(low, high)
    return int(np.sign(gap.value)) if gap.lo is None or clear(gap) else 0


# Depth -> whether an arm beats the bigram floor there, and its distance from it.
ByDepth = Mapping[int, tuple[bool, list[Number]]]


def _by_depth(e: Evidence, test: Callable[[Facts], bool]) -> ByDepth:
    """Return the outcome by depth of the residual-free arms that pass a test."""
    groups: dict[int, list[str]] = {}
    for arm, facts in e.facts.items():
        free = facts.skip == "residual_free" and facts.norm in (None, "rms_norm")
        if free and facts.num_layers and test(facts):
            groups.setdefault(facts.num_layers, []).append(arm)
    outcomes = {depth: e.outcome(arms) for depth, arms in sorted(groups.items())}
    return {
        depth: _learnt(e, arm) for depth, arm in outcomes.items() if arm is not None
    }


def _learnt(e: Evidence, arm: str) -> tuple[bool, list[Number]]:
    bigram, loss = e.shown.floor("bigram"), e.shown.full_loss(arm).value
    if bigram is None:
        raise NotTestable("the bigram floor")
    if loss is None:
        return False, []
    label = f"{e.facts[arm].label}, {e.facts[arm].num_layers} layers, above bigram"
    return loss < bigram and not e.failed(arm), [Number(label, loss - bigram)]


def _below(found: ByDepth) -> list[int]:
    return [depth for depth, (beats, _) in found.items() if beats]


def _numbers(*found: ByDepth) -> list[Number]:
    return [n for each in found for _, numbers in each.values() for n in numbers]


def adamw_fails_deep(e: Evidence) -> Judgement:
    """C13: residual-free AdamW against the bigram floor, by depth.

    Where spectral optimizers fail too, the depth is not too much for AdamW alone.
    """

    def results(optimizers: Sequence[str]) -> ByDepth:
        plain = (None, "orthogonal")
        return _by_depth(e, lambda f: f.optimizer in optimizers and f.recipe in plain)

    adamw, spectral = results(["adamw"]), results(SPECTRAL)
    if not adamw:
        raise NotTestable(part_label(FREE_ADAMW))
    learnt = _below(adamw)
    failed = [depth for depth in adamw if depth not in learnt]
    controls = {depth: spectral[depth] for depth in failed if depth in spectral}
    as_bad = [depth for depth in controls if depth not in _below(controls)]
    verdict = FAILS if not failed else CORRECTED if learnt or as_bad else HOLDS
    why = f"Above the bigram floor or failed at depth {_list(failed)}"
    why += f", below it at depth {_list(learnt)}."
    if as_bad:
        why += f" At depth {_list(as_bad)} no spectral optimizer that was tried learns."
    alone = [depth for depth in failed if depth not in controls]
    absent = [f"a spectral optimizer at depth {_list(alone)}"] if alone else []
    return Judgement(verdict, why, _numbers(adamw, controls), absent)


def updates_keep_isometry(e: Evidence) -> Judgement:
    """C14: deviation of W_V, W_O, W_U, W_D from isometries they started as."""
    kinds = {
        "an orthogonally initialized arm with a spectral optimizer": SPECTRAL,
        "an orthogonally initialized arm with AdamW or sign descent": SIGN_LIKE,
    }
    found: list[dict[str, float]] = []
    absent = []
    for name, names in kinds.items():
        arms = e.where(
            lambda f, names=names: f.recipe == "orthogonal" and f.optimizer in names
        )
        measured = {arm: e.isometry(arm) for arm in filter(e.shown.trained, arms)}
        found.append({arm: x for arm, x in measured.items() if x is not None})
        absent += [] if found[-1] else [e.lacking(name, arms)]
    if absent:
        raise NotTestable(*absent)
    spectral, sign = found
    both = {**spectral, **sign}
    paths = {arm: e.path(arm) for arm in both}
    per_path = {arm: both[arm] / path for arm, path in paths.items() if path}
    at_the_end = max(spectral.values()) < min(sign.values())
    matched = None
    if len(per_path) == len(both):
        matched = max(per_path[a] for a in spectral) < min(per_path[a] for a in sign)
    if not at_the_end and matched is None:
        verdict = UNTESTABLE
        why = "A spectral arm is as far at the end, at unknown lengths of the updates."
    elif not at_the_end:
        verdict = CORRECTED if matched else FAILS
        why = f"A spectral arm is as far at the end{' only' if matched else ''}."
    elif max(spectral.values()) >= NEAR_ISOMETRIC:
        verdict = CORRECTED
        why = "Nearer than sign-like ones, but no longer near an isometry."
    elif matched is False:
        verdict = CORRECTED
        why = "Nearer at the end, but not at matched length of the updates."
    else:
        verdict, why = HOLDS, "Spectral arms stay nearer."
    numbers = [
        Number(f"{e.facts[arm].label}, {what}", value, "")
        for what, values in (
            ("median deviation from an isometry at the end", both),
            ("deviation per summed update RMS", per_path),
        )
        for arm, value in values.items()
    ]
    unmatched = [e.facts[arm].label for arm in both if arm not in per_path]
    absent = [f"optim/update_rms of {name}, to match updates" for name in unmatched]
    return Judgement(verdict, why, numbers, absent)


def from_theory(*lemmas: str, corrections: Sequence[str] = ()) -> Judge:
    """C15 and C16: the verdicts of `rfq theory` on these lemmas.

    Corrections are what is the case instead: that they hold is against the lemmas.
    """

    def judge_rows(e: Evidence) -> Judgement:
        rows = e.shown.results.theory
        named = {name: [r for r in rows if r.get("claim") == name]
                 for name in (*lemmas, *corrections)}  # fmt: skip
        absent = [name for name, found in named.items() if not found]
        if absent:
            raise NotTestable(
                f"{', '.join(absent)} in theory.jsonl: run `rfq theory --out DIR` and "
                "give DIR to `rfq report` beside the runs"
            )
        every = [row for name in lemmas for row in named[name]]
        against = [row for name in corrections for row in named[name]]
        verdicts = [row.get("verdict") for row in every]
        borne_out = [row for row in against if row.get("verdict") == HOLDS]
        verdict = CORRECTED
        if set(verdicts) == {HOLDS} and not borne_out:
            verdict = HOLDS
        elif set(verdicts) == {FAILS}:
            verdict = FAILS
        why = "; ".join(
            f"{count} of {len(every)} checks: {each}"
            for each in (HOLDS, CORRECTED, FAILS)
            if (count := verdicts.count(each))
        )
        said = [row for row in every if row.get("verdict") != HOLDS][:1]
        why += "".join(f". {_said(row)} ({row.get('why')})" for row in said)
        why += "".join(f". Against it, {_said(row)}" for row in borne_out[:1])
        numbers = [
            Number(_said(row), value, "", *_errors(row.get("standard_error"), value))
            for row in (*every, *against)
            if (value := row.get("measured")) is not None
        ]
        return Judgement(verdict, why + ".", numbers)

    return judge_rows


def _said(row: Record) -> str:
    return ": ".join(part for name in ("claim", "statement") if (part := row.get(name)))


def _errors(error: float | None, value: float) -> tuple[float | None, float | None]:
    return (None, None) if error is None else (value - 2 * error, value + 2 * error)


def falls_with_depth(e: Evidence) -> Judgement:
    """C17: the stream's kurtosis by layer of residual AdamW at the end."""
    (arm,) = e.arms(RESIDUAL_ADAMW)
    layers = e.shown.by_layer(arm, view.STREAM, "excess_kurtosis")
    curve = [found.value for found in layers if found.value is not None]
    if len(curve) < 3:
        raise NotTestable(f"the kurtosis of three layers of {view.arm_label(arm)}")
    stated = [
        view.same_depth(entry.layer, e.paper.num_layers, len(curve))
        for entry in e.paper.kurtosis
        if entry.arm == "_".join(RESIDUAL_ADAMW)
    ]
    values = [curve[layer - 1] for layer in stated]
    loss = e.shown.full_loss(arm).value
    numbers = [
        e.beside(arm, f"layer {layer} of {len(curve)}", value, loss)
        for layer, value in zip(stated, values, strict=True)
    ]
    rho = rank_correlation(range(len(curve)), curve)
    if rho is not None:
        numbers.append(Number("rank correlation of kurtosis with layer", rho, ""))
    if max(curve) < NEAR_GAUSSIAN:
        why = f"No layer is beyond {NEAR_GAUSSIAN:g}: there is no tail to fall."
        return Judgement(UNTESTABLE, why, numbers)
    if values == sorted(values, reverse=True) and values[0] > values[-1]:
        verdict, why = HOLDS, "It falls over the depths that the paper names."
    elif rho is not None and rho < 0:
        verdict, why = CORRECTED, "It falls on the whole, not at the paper's depths."
    else:
        verdict, why = FAILS, "It does not fall with depth."
    return Judgement(verdict, why, numbers)


def throughput(e: Evidence) -> Judgement:
    """C18: steps/s by optimizer in the paper's order, and memory."""
    costs = {cost.arm: cost.steps_per_second for cost in e.paper.costs}
    arms = {name: e.outcome(e.playing(part_of(name))) for name in costs}
    speeds = {
        name: value
        for name, arm in arms.items()
        if arm is not None and (value := e.shown.speed(arm)) is not None
    }
    base = "_".join(RESIDUAL_ADAMW)
    unknown = [view.arm_label(name) for name in arms if name not in speeds]
    if base not in speeds or len(speeds) < 2:
        raise NotTestable(*(f"steps/s of {name}" for name in unknown))
    memory = {
        name: found / 1e9
        for name in speeds
        if (found := e.shown.memory(arms[name] or "", "peak_bytes")) is not None
    }
    what = "steps/s over those of residual AdamW"
    numbers = [
        Number(f"{view.arm_label(name)}, {what}", speed / speeds[base], "")
        for name, speed in speeds.items()
    ]
    numbers += [
        Number(f"{view.arm_label(name)}, peak memory of a device", value, "GB")
        for name, value in memory.items()
    ]
    order = sorted(speeds, key=lambda name: -costs[name])
    right = [speeds[a] > speeds[b] for a, b in itertools.pairwise(order)]
    why = f"{sum(right)} of {len(right)} neighbors in the paper's order of speed "
    why += "stand in the same order here."
    unmeasured = [view.arm_label(name) for name in speeds if name not in memory]
    absent = [f"memory of {', '.join(unmeasured)}"] if unmeasured else []
    return Judgement(graded(right), why, numbers, [*absent, *unknown])


# How an orthogonal initialization draws W_V, W_O and W_D: (vo_pair, w_down).
Reading = tuple[str, str]

_AS_WRITTEN: Reading = ("transpose", "plain")


def _reading(facts: Facts) -> Reading:
    vo_pair, w_down = _AS_WRITTEN
    return facts.vo_pair or vo_pair, facts.w_down or w_down


def _reading_label(reading: Reading) -> str:
    if reading == _AS_WRITTEN:
        return "as the paper writes it"
    vo_pair, w_down = reading
    changes = [f"W_D {w_down}"] if w_down != _AS_WRITTEN[1] else []
    changes += [f"W_V and W_O {vo_pair}"] if vo_pair != _AS_WRITTEN[0] else []
    return "with " + ", ".join(changes)


def trains_deep(e: Evidence) -> Judgement:
    """C19: orthogonal residual-free arms against the bigram floor, by depth.

    The paper's own reading decides; others and a Gaussian control correct it.
    """

    def learnt(test: Callable[[Facts], bool]) -> ByDepth:
        return _by_depth(e, lambda f: f.optimizer in SPECTRAL and test(f))

    def reads(facts: Facts, reading: Reading) -> bool:
        return facts.recipe == "orthogonal" and _reading(facts) == reading

    results = {
        reading: found
        for reading in dict.fromkeys(map(_reading, e.facts.values()))
        if (found := learnt(lambda f, reading=reading: reads(f, reading)))
    }
    if not results:
        raise NotTestable(
            "a residual-free arm with an orthogonal initialization and a spectral "
            "optimizer"
        )
    control = learnt(lambda f: f.recipe not in (None, "orthogonal"))
    tried = results.get(_AS_WRITTEN, {})
    if not tried:
        verdict = UNTESTABLE
    elif max(tried) in _below(tried) and max(tried) not in _below(control):
        verdict = HOLDS
    else:
        verdict = CORRECTED if any(map(_below, results.values())) else FAILS
    named = {_reading_label(reading): found for reading, found in results.items()}
    named |= {"from a Gaussian initialization": control} if control else {}
    why = "Below the bigram floor: " + "; ".join(
        f"{name} at depth {_list(_below(found))} (tried: {_list(list(found))})"
        for name, found in named.items()
    )
    depths = {depth for found in results.values() for depth in found}
    written = _reading_label(_AS_WRITTEN)
    absent = [f"the initialization {written} at depth {d}" for d in depths - set(tried)]
    absent += [f"a Gaussian control of depth {d}" for d in set(tried) - set(control)]
    return Judgement(verdict, why + ".", _numbers(*named.values()), sorted(absent))


def only_route(e: Evidence) -> Judgement:
    """C20: a residual arm as good at W8A6 and W4A4, at no cost in full precision?"""
    _, free = e.sides()
    best = e.best(free) or ""
    names = ("W8A6", "W4A4")
    cells = list(itertools.product(names, view.PLACEMENTS))
    unmeasured = [n for n, s in cells if e.increase(best, n, s).value is None]
    if unmeasured:
        label = view.arm_label(best)
        raise NotTestable(*(f"{n} rows of {label}" for n in dict.fromkeys(unmeasured)))
    base = e.loss(best)
    numbers, measured, as_good = [base], [], []
    rivals = e.of_one_size(lambda f: f.skip == "residual")
    for arm in filter(e.shown.trained, rivals):
        gaps = [
            difference(e.increase(best, *cell), e.increase(arm, *cell)).value
            for cell in cells
        ]
        known = [gap for gap in gaps if gap is not None]
        if len(known) < len(cells):
            continue
        measured.append(arm)
        label = f"{e.facts[arm].label} less {e.facts[best].label}, increase, largest"
        numbers += [e.loss(arm), Number(label, max(known))]
        no_cost = e.loss(arm).value <= base.value + NEGLIGIBLE
        if no_cost and max(known) <= NEGLIGIBLE:
            as_good.append(view.arm_label(arm))
    if as_good:
        why = f"As good at W8A6 and W4A4 and no worse before: {', '.join(as_good)}."
        return Judgement(FAILS, why, numbers)
    kinds = {part_label(RESIDUAL_KL): e.playing(RESIDUAL_KL)}
    kinds |= {
        f"residual with {rival}": [a for a in rivals if e.facts[a].rival == rival]
        for rival in RIVALS
    }
    absent = [
        f"{' and '.join(names)} rows of {name}"
        if e.best(arms)
        else e.lacking(name, arms)
        for name, arms in kinds.items()
        if not set(arms) & set(measured)
    ]
    why = f"None of {len(measured)} residual arms is as good."
    return Judgement(UNTESTABLE if absent else HOLDS, why, numbers, absent)
