"""How each of the paper's claims is judged by the rows: one small function a claim.

`claims` names them; what is missing raises `NotTestable`.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rfq.report import curves, load, tables, view
from rfq.report.evidence import (
    RIVALS,
    SIGN_LIKE,
    SPECTRAL,
    Evidence,
    Facts,
    NotTestable,
    Number,
    Part,
    part_label,
    rank_correlation,
    rank_interval,
)
from rfq.report.view import Estimate

Verdict = Literal[
    "holds",
    "holds with a correction",
    "does not hold",
    "not testable from these rows",
]
HOLDS: Verdict = "holds"
CORRECTED: Verdict = "holds with a correction"
FAILS: Verdict = "does not hold"
UNTESTABLE: Verdict = "not testable from these rows"

NEAR_GAUSSIAN = 1.0  # Excess kurtosis within which activations count as near Gaussian.
NEAR_GAUSSIAN_NATS = 0.05  # The same for negentropy.
HEAVY = 10.0  # Excess kurtosis above which tails are heavy.
NEGLIGIBLE = 0.01  # Nats that do not matter to a reader.
LITTLE = 0.1  # Part of what a model gains over word frequencies that is a little.
DEEP = 12  # Layers from which a model is deep: earlier work stopped there (section 1).
EXPLAINS = 0.7  # Rank correlation from which one number explains another.
ENOUGH_ARMS = 8  # For a rank correlation over arms.
NEAR_ISOMETRIC = 1.0  # max |s^2 / alpha - 1| below which no direction has vanished.

RESIDUAL_ADAMW: Part = ("residual", "adamw")
RESIDUAL_KL: Part = ("residual", "kl_shampoo")
FREE_ADAMW: Part = ("residual_free", "adamw")
FREE_KL: Part = ("residual_free", "kl_shampoo")
FREE_SOAP: Part = ("residual_free", "soap")
FREE_MUON: Part = ("residual_free", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the rows say of a claim.

    Attributes:
        why: one line.
        numbers: those that it rests on.
        missing: what would be needed, or was not there beside what decided.
    """

    verdict: Verdict
    why: str
    numbers: Sequence[Number] = ()
    missing: Sequence[str] = ()


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
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def optimizer_lightens(e: Evidence) -> Judgement:
    """C2: kurtosis of residual KL-Shampoo between C1's and NEAR_GAUSSIAN."""
    pair = e.arms(RESIDUAL_ADAMW, RESIDUAL_KL)
    adamw, kl = numbers = [e.kurtosis(arm) for arm in pair]
    if kl.value >= adamw.value:
        verdict, why = FAILS, "The optimizer does not lighten the tails here."
    elif kl.value <= NEAR_GAUSSIAN:
        verdict = FAILS
        why = (
            "The optimizer alone brings a residual model near Gaussian, so an order by "
            "kurtosis must not be credited to the connection."
        )
    else:
        verdict, why = HOLDS, "Lighter than under AdamW, and still not near Gaussian."
    free = e.plays(FREE_KL)
    if free is not None and e.shown.block_kurtosis(free).value is not None:
        numbers = [*numbers, e.kurtosis(free)]
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def stays_gaussian(e: Evidence) -> Judgement:
    """C3: kurtosis and negentropy small at all sites and steps."""
    arms, absent = e.some(FREE_KL, FREE_SOAP, FREE_MUON)
    heaviest = [e.heaviest(arm) for arm in arms]
    if max(number.value for number in heaviest) >= NEAR_GAUSSIAN:
        why = f"A kurtosis is beyond {NEAR_GAUSSIAN:g}."
        return Judgement(verdict=FAILS, why=why, numbers=heaviest, missing=absent)
    nats = [e.negentropy(arm) for arm in arms]
    small = max(number.value for number in nats) < NEAR_GAUSSIAN_NATS
    why = f"Every kurtosis is within {NEAR_GAUSSIAN:g}"
    why += (
        f" and every negentropy below {NEAR_GAUSSIAN_NATS:g}."
        if small
        else f", but a negentropy is not below {NEAR_GAUSSIAN_NATS:g}."
    )
    return Judgement(
        verdict=HOLDS if small else CORRECTED,
        why=why,
        numbers=[*heaviest, *nats],
        missing=absent,
    )


def all_ingredients(e: Evidence) -> Judgement:
    """C4: the 2 x 2 x 2 table of connection, initialization and optimizer."""

    def cell(free: bool, orthogonal: bool, spectral: bool) -> str | None:
        return e.best(
            e.where(
                lambda f: (
                    f.skip == ("residual_free" if free else "residual")
                    and f.recipe is not None
                    and (f.recipe == "orthogonal") == orthogonal
                    and f.optimizer in (SPECTRAL if spectral else SIGN_LIKE)
                )
            )
        )

    names = {
        (True, True, True): "residual-free, orthogonal, spectral",
        (False, True, True): "residual, orthogonal, spectral",
        (True, False, True): "residual-free, Gaussian, spectral",
        (True, True, False): "residual-free, orthogonal, AdamW",
    }
    found = {name: cell(*key) for key, name in names.items()}
    e.require(found)
    (_, base), *others = [(n, arm) for n, arm in found.items() if arm is not None]
    numbers, needless = [e.heaviest(base)], []
    for name, arm in others:
        if e.failed(arm):
            continue
        numbers.append(e.heaviest(arm))
        if numbers[-1].value < NEAR_GAUSSIAN:
            needless.append(name)
    if numbers[0].value >= NEAR_GAUSSIAN or len(needless) == len(others):
        verdict = FAILS
        why = (
            "All three together are not near Gaussian."
            if numbers[0].value >= NEAR_GAUSSIAN
            else "Near Gaussian without any one of them."
        )
    elif needless:
        verdict, why = CORRECTED, f"Near Gaussian also with {'; '.join(needless)}."
    else:
        verdict, why = HOLDS, "Without any one, tails grow or training fails."
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def full_precision_cost(e: Evidence) -> Judgement:
    """C5: the gap of the best arms of each kind in full precision."""
    residual, free = (e.best(arms) or "" for arms in e.sides())
    gap, low, high = e.loss_gap(residual, free), e.loss(residual), e.loss(free)
    numbers = [low, high, gap]
    if gap.lo is not None and gap.hi is not None and gap.lo <= 0.0 <= gap.hi:
        why = "The interval of the gap holds 0."
        return Judgement(verdict=UNTESTABLE, why=why, numbers=numbers)
    if gap.value <= 0:
        why = "The residual-free model has the lower loss."
        return Judgement(verdict=FAILS, why=why, numbers=numbers)
    unigram = e.shown.floor("unigram")
    if unigram is None:
        raise NotTestable("the unigram floor, to say whether the cost is little")
    part = gap.value / (unigram - low.value)
    numbers.append(Number("part of the gain over word frequencies", part, ""))
    little = part <= LITTLE
    return Judgement(
        verdict=HOLDS if little else CORRECTED,
        why=f"It costs {'at most' if little else 'more than'} {LITTLE:g} of what the "
        "residual model gains over word frequencies.",
        numbers=numbers,
    )


class _Cell(NamedTuple):
    """Which of two kinds lost less under a setting: 1 the second, -1 the first."""

    won: int
    numbers: Sequence[Number]


def _compare(
    e: Evidence,
    name: str,
    stream: str,
    sides: Sequence[Sequence[str]],
    lost: Callable[[str, str, str], Estimate],
    unit: str,
    matters: float,
) -> _Cell | None:
    """The arm of least loss on each side, and whether their intervals are apart."""
    best: list[tuple[Number, Estimate]] = []
    for arms in sides:
        known = [(a, x) for a in arms if (x := lost(a, name, stream)).value is not None]
        if not known:
            return None
        arm, found = min(known, key=lambda pair: pair[1].value or 0.0)
        label = f"{e.facts[arm].label}, {name}, {view.STREAMS[stream]}"
        best.append(
            (Number(label, found.value or 0.0, unit, found.lo, found.hi), found)
        )
    (a, first), (b, second) = best
    won = 0
    if max(a.value, b.value) > matters:
        won = int(_apart(second, first)) - int(_apart(first, second))
    return _Cell(won, (a, b))


def _apart(low: Estimate, high: Estimate) -> bool:
    """Whether two intervals do not overlap, low below high."""
    return low.hi is not None and high.lo is not None and low.hi < high.lo


def _lost_accuracy(e: Evidence) -> Callable[[str, str, str], Estimate]:
    def lost(arm: str, name: str, stream: str) -> Estimate:
        found = e.accuracy_change(arm, name, stream)
        if found.value is None or found.lo is None or found.hi is None:
            return found
        return found._replace(value=-found.value, lo=-found.hi, hi=-found.lo)

    return lost


def degrades_least(e: Evidence) -> Judgement:
    """C6: the order at W8A8 and W8A6 in both placements; W8A4 where these cost none."""
    sides = e.sides()
    cells: list[_Cell] = []
    for names in (("W8A8", "W8A6"), ("W8A4",)):
        for name in names:
            for stream in view.STREAMS:
                for lost, unit, matters in (
                    (e.increase, "nats", NEGLIGIBLE),
                    (_lost_accuracy(e), "accuracy lost", 0.0),
                ):
                    cell = _compare(e, name, stream, sides, lost, unit, matters)
                    cells += [cell] if cell else []
        if any(cell.won for cell in cells):
            break
    if not cells:
        raise NotTestable("increases of loss at W8A8, W8A6 or W8A4 of both kinds")
    numbers = [number for cell in cells for number in cell.numbers]
    won, lost = (sum(cell.won == side for cell in cells) for side in (1, -1))
    open_cells = len(cells) - won - lost
    why = (
        f"Residual-free loses least in {won} comparisons, most in {lost}; in "
        f"{open_cells} the intervals overlap or nothing is lost."
    )
    if not won and not lost:
        return Judgement(verdict=UNTESTABLE, why=why, numbers=numbers)
    verdict = HOLDS if not lost else CORRECTED if won else FAILS
    if verdict == CORRECTED:
        why += " It depends on the width or on where the stream's quantizer stands."
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def as_good_at_many_bits(e: Evidence) -> Judgement:
    """C7: residual KL-Shampoo loses no more than residual-free at W8A10 and W8A12."""
    residual, free = e.arms(RESIDUAL_KL, FREE_KL)
    numbers, good = [], []
    for name in ("W8A12", "W8A10"):
        for stream in view.STREAMS:
            found = [e.increase(arm, name, stream) for arm in (residual, free)]
            ours, theirs = (each.value for each in found)
            if ours is None or theirs is None:
                continue
            good.append(ours - theirs <= NEGLIGIBLE or not _apart(found[1], found[0]))
            for arm, each in zip((residual, free), found, strict=True):
                label = f"{e.facts[arm].label}, {name}, {view.STREAMS[stream]}"
                value = each.value or 0.0
                numbers.append(Number(label, value, "nats", each.lo, each.hi))
    if not good:
        raise NotTestable("increases of loss at W8A12 or W8A10 of both arms")
    verdict = HOLDS if all(good) else CORRECTED if any(good) else FAILS
    why = (
        f"As good in {sum(good)} of {len(good)} comparisons, to within {NEGLIGIBLE} "
        "nats or the intervals."
    )
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def weights_matter_little(e: Evidence) -> Judgement:
    """C8: WnAm costs what Am costs, n >= 8."""
    gaps: list[tuple[float, bool, str, str]] = []
    widths = set()
    for precision in e.shown.precisions:
        bits = precision.weight_bits
        alone = e.shown.precision(f"A{precision.act_bits}")
        if bits is None or bits < 8 or alone is None:
            continue
        for arm in e.shown.arms:
            for stream in view.STREAMS:
                a, b = (e.shown.increase(arm, p, stream) for p in (precision, alone))
                if a.value is None or b.value is None:
                    continue
                gap = abs(a.value - b.value)
                clear = gap > NEGLIGIBLE and (_apart(a, b) or _apart(b, a))
                label = f"{e.facts[arm].label}, {precision.name} against {alone.name}"
                gaps.append((gap, clear, label, view.STREAMS[stream]))
                widths.add(bits)
    if not gaps:
        raise NotTestable("increases at the same activation width with and without "
                          "quantized weights")  # fmt: skip
    differing = sum(clear for _, clear, _, _ in gaps)
    verdict = HOLDS if not differing else CORRECTED
    if 2 * differing > len(gaps):
        verdict = FAILS
    gap, _, label, stream = max(gaps)
    why = (
        f"{differing} of {len(gaps)} pairs differ by more than {NEGLIGIBLE} nats with "
        "intervals apart."
    )
    return Judgement(
        verdict=verdict,
        why=why,
        numbers=[Number(f"largest difference: {label}, {stream}", gap)],
        missing=[f"{bits}-bit weights" for bits in (8, 16) if bits not in widths],
    )


def less_noise(e: Evidence) -> Judgement:
    """C9: SQNR (mean and bulk) higher and NMSE lower at every width."""
    residual, free = e.sides()
    wins: dict[str, list[bool]] = {}
    numbers = []
    for field, name, sign, unit in (
        ("sqnr_db", "SQNR", 1, "dB"),
        ("bulk_sqnr_db", "SQNR of the bulk", 1, "dB"),
        ("nmse", "NMSE", -1, ""),
    ):
        gaps = []
        for precision in e.shown.precisions:
            sides = [
                [
                    sign * value
                    for arm in arms
                    if (value := e.shown.distortion(arm, precision, field).value)
                    is not None
                ]
                for arms in (residual, free)
            ]
            if precision.act_bits is not None and all(sides):
                gaps.append((min(sides[1]) - max(sides[0]), precision.name))
        if gaps:
            wins[name] = [gap > 0 for gap, _ in gaps]
            gap, at = min(gaps)
            label = f"{name}, worst residual-free less best residual, least at {at}"
            numbers.append(Number(label, sign * gap, unit))
    if "SQNR" not in wins:
        raise NotTestable("SQNR at a common width of both kinds")
    every = [won for field in wins.values() for won in field]
    verdict = HOLDS if all(every) else CORRECTED if any(every) else FAILS
    counts = ", ".join(
        f"{name} at {sum(won)} of {len(won)} precisions" for name, won in wins.items()
    )
    return Judgement(
        verdict=verdict,
        why=f"The worst residual-free arm beats the best residual arm in {counts}.",
        numbers=numbers,
        missing=[name for name in ("SQNR of the bulk", "NMSE") if name not in wins],
    )


def kurtosis_explains(e: Evidence) -> Judgement:
    """C10: rank correlation with the increase of loss over arms, within settings."""
    arms = [
        arm
        for arm in e.shown.arms
        if e.trained(arm) and e.shown.block_kurtosis(arm).value is not None
    ]
    if len(arms) < ENOUGH_ARMS:
        lacking = ENOUGH_ARMS - len(arms)
        raise NotTestable(f"{lacking} more arms that trained and have a kurtosis")
    found: dict[str, list[tuple[float, int]]] = {}
    for precision in e.shown.precisions:
        for stream in view.STREAMS if precision.act_bits is not None else ():
            lost = {a: e.shown.increase(a, precision, stream).value for a in arms}
            if max((x for x in lost.values() if x is not None), default=0) < NEGLIGIBLE:
                continue
            measured = {arm: _predictors(e, arm, precision, stream) for arm in arms}
            for what in measured[arms[0]]:
                pairs = [
                    (x, y)
                    for arm, y in lost.items()
                    if y is not None and (x := measured[arm][what]) is not None
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
    return Judgement(verdict=verdict, why=why, numbers=numbers, missing=absent)


def _predictors(
    e: Evidence, arm: str, precision: view.Precision, stream: str
) -> dict[str, float | None]:
    """What may explain the degradation of an arm under a setting."""
    rows = e.shown.rows(arm, precision, stream)
    return {
        "kurtosis": e.shown.block_kurtosis(arm).value,
        "SQNR": view.estimate(rows, "sqnr_db").value,
        "R_L": view.estimate(rows, "relative_error").value,
    }


def optimizer_order(e: Evidence) -> Judgement:
    """C11: training loss at equal steps and at equal wall time."""
    parts = (FREE_KL, FREE_SOAP, FREE_MUON)
    arms = e.arms(*parts)
    numbers, right = [], []
    for at, index, unit in (("step", 0, "steps"), ("seconds", 1, "seconds")):
        ends = [
            end
            for arm in arms
            for run in e.shown.runs(arm)
            if (end := curves.ends(run)[index]) is not None
        ]
        limit = min(ends, default=0.0)
        losses = [e.training_loss(arm, at=at, limit=limit) for arm in arms]
        known = [loss for loss in losses if loss is not None]
        if len(known) < len(arms):
            raise NotTestable(f"training losses at equal {unit}")
        right.append(known == sorted(known))
        for arm, loss in zip(arms, known, strict=True):
            label = f"{e.facts[arm].label}, training loss after {limit:,.0f} {unit}"
            numbers.append(Number(label, loss))
    verdict = HOLDS if all(right) else CORRECTED if any(right) else FAILS
    why = {
        HOLDS: "The order is the paper's at equal steps and at equal wall time.",
        CORRECTED: "The order is the paper's at equal "
        + ("steps, not at equal wall time." if right[0] else "wall time, not steps."),
        FAILS: "The order is another at equal steps and at equal wall time.",
    }[verdict]
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def temperature_helps(e: Evidence) -> Judgement:
    """C12: beta > 1 against beta = 1, equal in all else."""
    pairs = e.temperature_pairs()
    if not pairs:
        raise NotTestable("a residual-free arm with beta = 1 and its twin with 1.1")
    gaps = [e.loss_gap(off, on) for off, on in pairs]
    lower = [gap.value < 0 and not (gap.hi or 0) > 0 for gap in gaps]
    higher = [gap.value > 0 and not (gap.lo or 0) < 0 for gap in gaps]
    layers = ", ".join(str(e.facts[on].num_layers) for _, on in pairs)
    why = (
        f"Temperature lowers the loss in {sum(lower)} and raises it in {sum(higher)} "
        f"of {len(pairs)} pairs of arms (layers: {layers})."
    )
    if not any(lower) and not any(higher):
        return Judgement(verdict=UNTESTABLE, why=why, numbers=gaps)
    verdict = HOLDS if all(lower) else CORRECTED if any(lower) else FAILS
    return Judgement(verdict=verdict, why=why, numbers=gaps)


def _by_depth(e: Evidence, test: Callable[[Facts], bool]) -> dict[int, str]:
    """Depth -> the residual-free arm of lowest loss among those that pass a test."""
    groups: dict[int, list[str]] = {}
    for arm, facts in e.facts.items():
        ended = e.trained(arm) or e.failed(arm)
        plain = facts.skip == "residual_free" and facts.norm in (None, "rms_norm")
        if ended and plain and facts.num_layers and test(facts):
            groups.setdefault(facts.num_layers, []).append(arm)
    return {depth: e.best(arms) or "" for depth, arms in sorted(groups.items())}


def _learnt(e: Evidence, arm: str) -> tuple[bool, list[Number]]:
    """Whether an arm beats the bigram floor, and its distance from it."""
    bigram, loss = e.shown.floor("bigram"), e.shown.full_loss(arm).value
    if bigram is None:
        raise NotTestable("the bigram floor")
    if loss is None:
        return False, []
    label = f"{e.facts[arm].label}, {e.facts[arm].num_layers} layers, above bigram"
    return loss < bigram and not e.failed(arm), [Number(label, loss - bigram)]


def adamw_fails_deep(e: Evidence) -> Judgement:
    """C13: residual-free AdamW against the bigram floor, by depth."""
    found = _by_depth(
        e, lambda f: f.optimizer == "adamw" and f.recipe in (None, "orthogonal")
    )
    deep = {depth: arm for depth, arm in found.items() if depth >= DEEP}
    if not deep:
        seen = f" (there is depth {max(found)})" if found else ""
        raise NotTestable(f"residual-free AdamW of {DEEP} layers or more{seen}")
    results = {depth: _learnt(e, arm) for depth, arm in found.items()}
    failed = [depth for depth in deep if not results[depth][0]]
    verdict = HOLDS if len(failed) == len(deep) else CORRECTED if failed else FAILS
    why = f"Above the bigram floor or failed at depth {_list(failed)}"
    learnt = [depth for depth, (beats, _) in results.items() if beats]
    why += f", below it at depth {_list(learnt)}."
    numbers = [number for _, each in results.values() for number in each]
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def updates_keep_isometry(e: Evidence) -> Judgement:
    """C14: deviation of W_V, W_O, W_U, W_D from isometries they started as."""

    def orthogonal(optimizers: Sequence[str]) -> dict[str, float]:
        arms = e.where(lambda f: f.recipe == "orthogonal" and f.optimizer in optimizers)
        found = {arm: e.isometry(arm) for arm in arms if e.trained(arm)}
        return {arm: value for arm, value in found.items() if value is not None}

    kinds = {
        "an orthogonally initialized arm with a spectral optimizer": SPECTRAL,
        "an orthogonally initialized arm with AdamW or sign descent": SIGN_LIKE,
    }
    found = {name: orthogonal(optimizers) for name, optimizers in kinds.items()}
    e.require({name: values or None for name, values in found.items()})
    spectral, sign = found.values()
    both = {**spectral, **sign}
    what = "median deviation from an isometry at the end"
    numbers = [Number(f"{e.facts[a].label}, {what}", v, "") for a, v in both.items()]
    paths = {arm: _path(e, arm) for arm in both}
    per_path = {arm: both[arm] / path for arm, path in paths.items() if path}
    if max(spectral.values()) >= min(sign.values()):
        verdict, why = FAILS, "A spectral arm is as far from an isometry as sign-like."
    elif max(spectral.values()) >= NEAR_ISOMETRIC:
        verdict = CORRECTED
        why = "Nearer than sign-like ones, but no longer near an isometry."
    elif len(per_path) == len(both) and max(per_path[a] for a in spectral) >= min(
        per_path[a] for a in sign
    ):
        verdict = CORRECTED
        why = "Nearer at the end, but not at matched length of the updates."
    else:
        verdict, why = HOLDS, "Spectral arms stay nearer."
    what = "deviation per summed update RMS"
    numbers += [
        Number(f"{e.facts[a].label}, {what}", v, "") for a, v in per_path.items()
    ]
    absent = (
        [] if len(per_path) == len(both) else ["optim/update_rms, to match updates"]
    )
    return Judgement(verdict=verdict, why=why, numbers=numbers, missing=absent)


def _path(e: Evidence, arm: str) -> float | None:
    """Summed RMS of all updates, learning rate times direction, of the first seed."""
    for run in e.shown.runs(arm)[:1]:
        rates = [load.number(record, "learning_rate") for record in run.metrics]
        sizes = [load.number(record, "optim/update_rms") for record in run.metrics]
        steps, _ = curves.ends(run)
        known = [
            rate * size
            for rate, size in zip(rates, sizes, strict=True)
            if rate is not None and size is not None
        ]
        return statistics.fmean(known) * steps if known and steps else None
    return None


def from_theory(*lemmas: str) -> Callable[[Evidence], Judgement]:
    """C15 and C16: the verdicts of `rfq theory` on these lemmas."""

    def judge_rows(e: Evidence) -> Judgement:
        rows = {lemma: e.theory(lemma) for lemma in lemmas}
        e.require(
            {
                f"{lemma} in theory.jsonl (rfq theory --json DIR/theory.jsonl)": (
                    found or None
                )
                for lemma, found in rows.items()
            }
        )
        every = [row for found in rows.values() for row in found]
        verdicts = [load.text(row, "verdict") for row in every]
        if all(verdict == HOLDS for verdict in verdicts):
            verdict = HOLDS
        elif all(verdict == FAILS for verdict in verdicts):
            verdict = FAILS
        else:
            verdict = CORRECTED
        said = next((row for row in every if row.get("verdict") != HOLDS), every[0])
        numbers = [
            Number(_said(row), value, "", *_errors(row, value))
            for row in every
            if (value := load.number(row, "measured")) is not None
        ]
        why = load.text(said, "why") or "As `rfq theory` found."
        return Judgement(verdict=verdict, why=why, numbers=numbers)

    return judge_rows


def _said(row: load.Record) -> str:
    parts = (load.text(row, name) for name in ("claim", "statement"))
    return ": ".join(part for part in parts if part)


def _errors(row: load.Record, value: float) -> tuple[float | None, float | None]:
    error = load.number(row, "standard_error")
    return (None, None) if error is None else (value - 2 * error, value + 2 * error)


def falls_with_depth(e: Evidence) -> Judgement:
    """C17: the stream's kurtosis by layer of residual AdamW at the end."""
    (arm,) = e.arms(RESIDUAL_ADAMW)
    layers = [view.layer_kurtosis(end, "attn_norm_in") for end in e.shown.ends(arm)]
    curve = [
        statistics.fmean(known)
        for at in zip(*layers, strict=True)
        if (known := [k for k in at if k is not None])
    ]
    if len(curve) < 3:
        raise NotTestable(f"the kurtosis of three layers of {view.arm_label(arm)}")
    stated = [
        tables.same_depth(entry.layer, e.paper.num_layers, len(curve))
        for entry in e.paper.kurtosis
        if entry.arm == "_".join(RESIDUAL_ADAMW)
    ]
    values = [curve[layer - 1] for layer in stated]
    numbers = [
        e.at_the_end(arm, f"layer {layer} of {len(curve)}", value)
        for layer, value in zip(stated, values, strict=True)
    ]
    rho = rank_correlation(range(len(curve)), curve)
    if rho is not None:
        numbers.append(Number("rank correlation of kurtosis with layer", rho, ""))
    if max(curve) < NEAR_GAUSSIAN:
        why = f"No layer is beyond {NEAR_GAUSSIAN:g}: there is no tail to fall."
        return Judgement(verdict=UNTESTABLE, why=why, numbers=numbers)
    if values == sorted(values, reverse=True) and values[0] > values[-1]:
        verdict, why = HOLDS, "It falls over the depths that the paper names."
    elif rho is not None and rho < 0:
        verdict, why = CORRECTED, "It falls on the whole, not at the paper's depths."
    else:
        verdict, why = FAILS, "It does not fall with depth."
    return Judgement(verdict=verdict, why=why, numbers=numbers)


def throughput(e: Evidence) -> Judgement:
    """C18: steps/s by optimizer in the paper's order, and memory."""
    arms = {cost.arm: e.plays((_skip(cost.arm), _optimizer(cost.arm)))
            for cost in e.paper.costs}  # fmt: skip
    speeds = {
        name: value
        for name, arm in arms.items()
        if arm is not None and (value := e.shown.speed(arm)) is not None
    }
    base = "_".join(RESIDUAL_ADAMW)
    if base not in speeds or len(speeds) < 2:
        lacking = {view.arm_label(n): speeds.get(n) for n in arms}
        raise NotTestable(*(f"steps/s of {n}" for n, v in lacking.items() if v is None))
    numbers = [
        Number(f"{view.arm_label(name)}, steps/s over those of residual AdamW",
               speed / speeds[base], "")
        for name, speed in speeds.items()
    ]  # fmt: skip
    memory = {
        name: found / 1e9
        for name in speeds
        if (found := e.shown.memory(arms[name] or "", "peak_bytes")) is not None
    }
    numbers += [
        Number(f"{view.arm_label(name)}, peak memory of a device", value, "GB")
        for name, value in memory.items()
    ]
    if any(
        "cpu" in (load.text(row, "device") or "cpu") for row in e.shown.results.rows
    ):
        why = "The paper's are of a GPU, these of a CPU."
        return Judgement(
            verdict=UNTESTABLE, why=why, numbers=numbers, missing=["one accelerator"]
        )
    theirs = {cost.arm: cost for cost in e.paper.costs if cost.arm in speeds}
    order = sorted(theirs, key=lambda name: -theirs[name].steps_per_second)
    right = [a for a, b in itertools.pairwise(order) if speeds[a] > speeds[b]]
    same = len(right) == len(order) - 1
    verdict = HOLDS if same and len(memory) == len(speeds) else CORRECTED
    if not right:
        verdict = FAILS
    why = f"{len(right)} of {len(order) - 1} neighbors in the paper's order of speed "
    why += "stand in the same order here."
    absent = [f"memory of {view.arm_label(n)}" for n in speeds if n not in memory]
    absent += [view.arm_label(name) for name in arms if name not in speeds]
    return Judgement(verdict=verdict, why=why, numbers=numbers, missing=absent)


def _skip(arm: str) -> str:
    return "residual_free" if arm.startswith("residual_free_") else "residual"


def _optimizer(arm: str) -> str:
    return arm.removeprefix(_skip(arm) + "_")


def trains_deep(e: Evidence) -> Judgement:
    """C19: orthogonal residual-free arms against the bigram floor, by depth."""

    def deep(test: Callable[[Facts], bool]) -> dict[int, str]:
        found = _by_depth(e, lambda f: f.optimizer in SPECTRAL and test(f))
        return {depth: arm for depth, arm in found.items() if depth >= DEEP}

    plain = deep(lambda f: f.recipe == "orthogonal" and f.w_down == "plain")
    centered = deep(lambda f: f.recipe == "orthogonal" and f.w_down == "centered")
    if not plain and not centered:
        raise NotTestable(
            f"a residual-free arm of {DEEP} layers or more with an orthogonal "
            "initialization and a spectral optimizer"
        )
    results = {
        kind: {depth: _learnt(e, arm) for depth, arm in arms.items()}
        for kind, arms in (("plain", plain), ("centered", centered))
    }
    learnt = {
        kind: [depth for depth, (beats, _) in each.items() if beats]
        for kind, each in results.items()
    }
    deepest = max([*plain, *centered])
    if deepest in learnt["plain"]:
        verdict = HOLDS
    else:
        verdict = CORRECTED if learnt["plain"] or learnt["centered"] else FAILS
    why = (
        f"Below the bigram floor at depth {_list(learnt['plain'])} as the paper draws "
        f"W_D, at depth {_list(learnt['centered'])} with W_D centered; the deepest is "
        f"{deepest}."
    )
    numbers = [n for each in results.values() for _, ns in each.values() for n in ns]
    control = deep(lambda f: f.recipe != "orthogonal")
    absent = [] if control else [f"a Gaussian control of {DEEP} layers or more"]
    return Judgement(verdict=verdict, why=why, numbers=numbers, missing=absent)


def only_route(e: Evidence) -> Judgement:
    """C20: a residual arm as good at W8A6 and W4A4, at no cost in full precision?"""
    _, free = e.sides()
    best = e.best(free) or ""
    names = ("W8A6", "W4A4")
    rivals = {
        arm: facts
        for arm, facts in e.facts.items()
        if facts.skip == "residual" and e.trained(arm)
    }
    missing = [
        f"{name} rows of {view.arm_label(best)}"
        for name in names
        if e.increase(best, name, "branch").value is None
    ]
    if missing:
        raise NotTestable(*missing)
    base, numbers, as_good = e.loss(best), [e.loss(best)], []
    for arm in rivals:
        losses = []
        for name in names:
            for stream in view.STREAMS:
                ours, theirs = (e.increase(a, name, stream) for a in (arm, best))
                if ours.value is not None and theirs.value is not None:
                    losses.append(ours.value - theirs.value)
        if len(losses) == len(names) * len(view.STREAMS):
            label = (
                f"{e.facts[arm].label} less {e.facts[best].label}, increase, largest"
            )
            numbers += [e.loss(arm), Number(label, max(losses))]
            no_cost = e.loss(arm).value <= base.value + NEGLIGIBLE
            if no_cost and max(losses) <= NEGLIGIBLE:
                as_good.append(view.arm_label(arm))
    if as_good:
        why = f"As good at W8A6 and W4A4 and no worse before: {', '.join(as_good)}."
        return Judgement(verdict=FAILS, why=why, numbers=numbers)
    tried = {facts.rival for facts in rivals.values()}
    absent = [f"residual with {rival}" for rival in RIVALS if rival not in tried]
    if e.plays(RESIDUAL_KL) is None:
        absent.insert(0, part_label(RESIDUAL_KL))
    if absent:
        why = f"No residual arm here is as good; not tried: {', '.join(absent)}."
        return Judgement(verdict=UNTESTABLE, why=why, numbers=numbers, missing=absent)
    why = f"None of {len(rivals)} residual arms is as good."
    return Judgement(verdict=HOLDS, why=why, numbers=numbers)
