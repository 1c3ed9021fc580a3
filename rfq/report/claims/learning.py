"""Claims on training: what models learn, at what depth, and how fast."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rfq.report import evidence, paper
from rfq.report.arms import SPECTRAL, Arm, arm_label
from rfq.report.claims.verdict import (
    CORRECTED,
    FAILS,
    FREE_KL,
    FREE_MUON,
    FREE_SOAP,
    HOLDS,
    LITTLE,
    RESIDUAL_ADAMW,
    UNTESTABLE,
    Judgement,
    _list,
    graded,
)
from rfq.report.evidence import Evidence, NotTestable, Number, fates, need, part_label


def full_precision_cost(e: Evidence) -> Judgement:
    """C5: the gap of the best arms of each kind in full precision."""
    residual, free = (
        min(arms, key=lambda a: a.loss.value or 0.0) for arms in e.sides()
    )
    gap, low, high = e.loss_gap(residual, free), e.loss(residual), e.loss(free)
    numbers = [low, high, gap]
    if gap.lo is not None and not gap.clear:
        return Judgement(UNTESTABLE, "The interval of the gap holds 0.", numbers)
    if gap.value <= 0:
        why = "The residual-free model has the lower loss."
        return Judgement(FAILS, why, numbers)
    unigram = need(
        e.shown.floor("unigram"), "the unigram floor, to say whether the cost is little"
    )
    part = gap.value / (unigram - low.value)
    numbers.append(Number("part of the gain over word frequencies", part, ""))
    most = "at most" if part <= LITTLE else "more than"
    why = f"It costs {most} {LITTLE:g} of what the residual model gains over word "
    why += "frequencies."
    return Judgement(HOLDS if part <= LITTLE else CORRECTED, why, numbers)


def optimizer_order(e: Evidence) -> Judgement:
    """C11: training loss at equal steps and at equal wall time."""
    arms = e.at_one_temperature(FREE_KL, FREE_SOAP, FREE_MUON)
    numbers, orders = [], []
    for at, unit in (("step", "steps"), ("seconds", "seconds")):
        ends = [x for arm in arms if (x := e.shown.last(arm.name, at)) is not None]
        limit = min(ends, default=0.0)
        found = [
            (e.shown.training_loss(arm.name, at, limit).value, arm) for arm in arms
        ]
        losses = [
            (need(x, f"training losses at equal {unit}"), arm) for x, arm in found
        ]
        orders.append([arm for _, arm in sorted(losses, key=lambda pair: pair[0])])
        label = f"training loss after {limit:,.0f} {unit}"
        numbers += [Number(f"{arm.label}, {label}", loss) for loss, arm in losses]
    right = [order == arms for order in orders]
    verdict = graded(right, but=all(order[0] == arms[0] for order in orders))
    steps, seconds = (" < ".join(arm.label for arm in order) for order in orders)
    why = f"Losses at equal steps: {steps}; at equal wall time: {seconds}."
    return Judgement(verdict, why, numbers)


def temperature_helps(e: Evidence) -> Judgement:
    """C12: beta > 1 against beta = 1, equal in all else."""
    pairs = e.temperature_pairs()
    if not pairs:
        raise NotTestable("a residual-free arm with beta = 1 and its twin with 1.1")
    signs, numbers = [], []
    for off, on in pairs:
        known = off.loss.value is not None and on.loss.value is not None
        gap = e.loss_gap(off, on) if known else Number("", 0.0)
        numbers += [gap] if known else []
        # A failure has the higher loss.
        sign = int(np.sign(gap.value)) if gap.lo is None or gap.clear else 0
        signs.append(on.failed - off.failed if on.failed or off.failed else sign)
    layers = ", ".join(str(on.num_layers) for _, on in pairs)
    why = (
        f"Temperature lowers the loss in {signs.count(-1)} and raises it in "
        f"{signs.count(1)} of {len(pairs)} pairs of arms (layers: {layers})."
    )
    if failed := fates(arm for pair in pairs for arm in pair):
        why += f" Of these, {failed}."
    verdict = graded([sign == -1 for sign in signs]) if any(signs) else UNTESTABLE
    return Judgement(verdict, why, numbers)


class Depths(NamedTuple):
    """Residual-free arms by depth: whether they beat the bigram floor, and by what."""

    learnt: Mapping[int, bool]
    numbers: Sequence[Number]

    @property
    def below(self) -> list[int]:
        """The depths at which the loss is below the floor."""
        return [depth for depth, learnt in self.learnt.items() if learnt]


def _depths(e: Evidence, test: Callable[[Arm], bool]) -> Depths:
    """Return the outcome by depth of the residual-free arms that pass a test."""
    groups: dict[int, list[Arm]] = {}
    for arm in e.facts.values():
        free = arm.skip == "residual_free" and arm.norm in (None, "rms_norm")
        if free and arm.num_layers and test(arm):
            groups.setdefault(arm.num_layers, []).append(arm)
    learnt, numbers = {}, []
    for depth, arms in sorted(groups.items()):
        if arm := evidence.outcome(arms):
            bigram, loss = (
                need(e.shown.floor("bigram"), "the bigram floor"),
                arm.loss.value,
            )
            learnt[depth] = loss is not None and loss < bigram and not arm.failed
            label = f"{arm.label}, {depth} layers, above bigram"
            numbers += [] if loss is None else [Number(label, loss - bigram)]
    return Depths(learnt, numbers)


def adamw_fails_deep(e: Evidence) -> Judgement:
    """C13: residual-free AdamW against the bigram floor, by depth.

    Where spectral optimizers fail too, with the same reading of the initialization, the
    depth is not too much for AdamW alone.
    """
    ours = [a for a in e.facts.values() if a.part == ("residual_free", "adamw")]
    readings = {(a.num_layers, _reading(a)) for a in ours}

    def tried(optimizers: Sequence[str], depths: Sequence[int] = ()) -> Depths:
        return _depths(
            e,
            lambda arm: (
                arm.optimizer in optimizers
                and arm.recipe in (None, "orthogonal")
                and (not depths or arm.num_layers in depths)
                and (arm.num_layers, _reading(arm)) in readings
            ),
        )

    adamw = tried(["adamw"])
    if not adamw.learnt:
        raise NotTestable(part_label(("residual_free", "adamw")))
    learnt = adamw.below
    failed = [depth for depth in adamw.learnt if depth not in learnt]
    controls = tried(SPECTRAL, failed) if failed else Depths({}, ())
    as_bad = [depth for depth, learnt in controls.learnt.items() if not learnt]
    verdict = graded([not learnt and not as_bad], but=True) if failed else FAILS
    why = f"Above the bigram floor or failed at depth {_list(failed)}"
    why += f", below it at depth {_list(learnt)}."
    if as_bad:
        why += f" At depth {_list(as_bad)} no spectral optimizer that was tried learns."
    alone = [depth for depth in failed if depth not in controls.learnt]
    absent = [f"a spectral optimizer at depth {_list(alone)}"] if alone else []
    return Judgement(verdict, why, [*adamw.numbers, *controls.numbers], absent)


def throughput(e: Evidence) -> Judgement:
    """C18: steps/s by optimizer in the paper's order, and memory."""
    costs = {cost["arm"]: cost["steps_per_second"] for cost in paper.load().costs}
    base = "_".join(map(str, RESIDUAL_ADAMW))
    speeds, memory = {}, {}
    for name in costs:
        arm = evidence.outcome(e.playing(evidence.part_of(name)))
        if arm and (speed := e.shown.speed(arm.name)) is not None:
            speeds[name] = speed
            memory[name] = e.shown.memory(arm.name, "peak_bytes")
    unknown = [arm_label(name) for name in costs if name not in speeds]
    if base not in speeds or len(speeds) < 2:
        raise NotTestable(*(f"steps/s of {name}" for name in unknown))
    what = "steps/s over those of residual AdamW"
    numbers = [
        Number(f"{arm_label(name)}, {what}", speed / speeds[base], "")
        for name, speed in speeds.items()
    ]
    numbers += [
        Number(f"{arm_label(name)}, peak memory of a device", held / 1e9, "GB")
        for name, held in memory.items()
        if held is not None
    ]
    order = sorted(speeds, key=lambda name: -costs[name])
    right = [speeds[a] > speeds[b] for a, b in itertools.pairwise(order)]
    why = f"{sum(right)} of {len(right)} neighbors in the paper's order of speed "
    why += "stand in the same order here."
    lost = ", ".join(arm_label(name) for name, held in memory.items() if held is None)
    absent = [f"memory of {lost}"] if lost else []
    return Judgement(graded(right), why, numbers, [*absent, *unknown])


# How an orthogonal initialization draws W_V, W_O and W_D: (vo_pair, w_down).
_AS_WRITTEN = ("transpose", "plain")


def _reading(arm: Arm) -> tuple[str, str]:
    vo_pair, w_down = _AS_WRITTEN
    return arm.vo_pair or vo_pair, arm.w_down or w_down


def _reading_label(reading: tuple[str, str]) -> str:
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
    spectral = e.only(lambda arm: arm.optimizer in SPECTRAL)
    orthogonal = spectral.only(lambda arm: arm.recipe == "orthogonal")
    control = _depths(spectral, lambda arm: arm.recipe not in (None, "orthogonal"))
    results = {
        reading: found
        for reading in dict.fromkeys(map(_reading, e.facts.values()))
        if (found := _depths(orthogonal, lambda a, r=reading: _reading(a) == r)).learnt
    }
    if not results:
        raise NotTestable(
            "a residual-free arm with an orthogonal initialization and a spectral "
            "optimizer"
        )
    tried = results.get(_AS_WRITTEN, Depths({}, ()))
    deepest = max(tried.learnt, default=0)
    if not tried.learnt:
        verdict = UNTESTABLE
    else:
        learns = deepest in tried.below and deepest not in control.below
        verdict = graded([learns], but=any(found.below for found in results.values()))
    named = {_reading_label(reading): found for reading, found in results.items()}
    named |= {"from a Gaussian initialization": control} if control.learnt else {}
    why = "Below the bigram floor: " + "; ".join(
        f"{name} at depth {_list(found.below)} (tried: {_list(found.learnt)})"
        for name, found in named.items()
    )
    depths = {depth for found in results.values() for depth in found.learnt}
    written = _reading_label(_AS_WRITTEN)
    unseen = depths - set(tried.learnt), set(tried.learnt) - set(control.learnt)
    absent = [f"the initialization {written} at depth {d}" for d in unseen[0]]
    absent += [f"a Gaussian control of depth {d}" for d in unseen[1]]
    numbers = [n for found in named.values() for n in found.numbers]
    return Judgement(verdict, why + ".", numbers, sorted(absent))
