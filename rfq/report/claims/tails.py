"""Claims on heavy tails: how they grow, and what keeps activations near Gaussian."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rfq.report import evidence, paper, view
from rfq.report.arms import SIGN_LIKE, SPECTRAL, Arm, arm_label
from rfq.report.claims.verdict import (
    CORRECTED,
    FAILS,
    FREE_KL,
    FREE_MUON,
    FREE_SOAP,
    HEAVY,
    HOLDS,
    NEAR_GAUSSIAN,
    NEAR_GAUSSIAN_NATS,
    NEAR_ISOMETRIC,
    RESIDUAL_ADAMW,
    RESIDUAL_KL,
    UNTESTABLE,
    Judge,
    Judgement,
    graded,
)
from rfq.report.estimates import rank_correlation
from rfq.report.evidence import Evidence, NotTestable, Number, fates, lacking
from rfq.report.load import Record


def heavy_tails(e: Evidence) -> Judgement:
    """C1: slope > 0 and more than HEAVY at the end.

    Without the steps before it the end decides alone, since models start near Gaussian.
    """
    (arm,) = e.arms(RESIDUAL_ADAMW)
    try:
        curve = e.peaks(arm)
    except NotTestable as error:
        end = e.kurtosis(arm)
        heavy = end.value > HEAVY
        side = "above" if heavy else "not above"
        why = f"It ends {side} {HEAVY:g}; models start near 0."
        verdict = HOLDS if heavy else UNTESTABLE
        return Judgement(verdict, why, [end], error.missing)
    steps, peaks, losses = zip(*curve, strict=True)
    slope = float(np.polyfit(steps, peaks, 1)[0])
    if not (slope > 0 and peaks[-1] > max(peaks[0], NEAR_GAUSSIAN)):
        verdict, why = FAILS, f"It does not grow beyond {NEAR_GAUSSIAN:g}."
    elif peaks[-1] > HEAVY:
        verdict, why = HOLDS, f"It grows and ends above {HEAVY:g}."
    else:
        verdict = CORRECTED
        why = f"It grows, but ends below {HEAVY:g}, so tails are not heavy here."
    numbers = [
        e.beside(arm, "at the first measured step", peaks[0], losses[0]),
        e.beside(arm, "at the last", peaks[-1], losses[-1]),
        Number("slope of the kurtosis over 1,000 steps", 1000 * slope, "per 1,000"),
    ]
    return Judgement(verdict, why, numbers)


def optimizer_lightens(e: Evidence) -> Judgement:
    """C2: kurtosis of residual KL-Shampoo between C1's and NEAR_GAUSSIAN."""
    adamw, kl = (e.kurtosis(arm) for arm in e.arms(RESIDUAL_ADAMW, RESIDUAL_KL))
    free = evidence.best(e.playing(FREE_KL))
    numbers = [adamw, kl]
    if free is not None and free.kurtosis.value is not None:
        numbers.append(e.kurtosis(free))
    why = "Lighter than under AdamW, and still not near Gaussian."
    if kl.value >= adamw.value:
        why = "The optimizer does not lighten the tails here."
    elif kl.value <= NEAR_GAUSSIAN:
        why = "The optimizer alone brings a residual model near Gaussian, so an "
        why += "order by kurtosis must not be credited to the connection."
    between = NEAR_GAUSSIAN < kl.value < adamw.value
    return Judgement(graded([between]), why, numbers)


def stays_gaussian(e: Evidence) -> Judgement:
    """C3: kurtosis and negentropy small at all sites and steps."""
    arms, absent = e.some(FREE_KL, FREE_SOAP, FREE_MUON)
    heaviest = [e.heaviest(arm) for arm in arms]
    if max(n.value for n in heaviest) >= NEAR_GAUSSIAN:
        why = f"A kurtosis is beyond {NEAR_GAUSSIAN:g}."
        return Judgement(FAILS, why, heaviest, absent)
    nats = [e.negentropy(arm) for arm in arms]
    small = max(n.value for n in nats) < NEAR_GAUSSIAN_NATS
    but = " and every negentropy" if small else ", but a negentropy is not"
    why = (
        f"Every kurtosis is within {NEAR_GAUSSIAN:g}{but} below {NEAR_GAUSSIAN_NATS:g}."
    )
    return Judgement(HOLDS if small else CORRECTED, why, [*heaviest, *nats], absent)


# No skip, orthogonal initialization, spectral updates: in or left out.
Corner = tuple[bool, bool, bool]

_WITH = ("residual-free", "orthogonal", "spectral")

_WITHOUT = ("residual", "Gaussian", "sign-like")

_ALL_THREE, *_OTHERS = itertools.product((True, False), repeat=3)


def _corner(arm: Arm) -> Corner | None:
    known = arm.optimizer in (*SPECTRAL, *SIGN_LIKE)
    if arm.skip is None or arm.recipe is None or not known:
        return None
    free, orthogonal = arm.skip == "residual_free", arm.recipe == "orthogonal"
    return free, orthogonal, arm.optimizer in SPECTRAL


def _corner_name(corner: Sequence[bool]) -> str:
    pairs = zip(corner, _WITH, _WITHOUT, strict=True)
    return ", ".join(name if inside else other for inside, name, other in pairs)


def all_ingredients(e: Evidence) -> Judgement:
    """C4: the 2 x 2 x 2 table of connection, initialization and optimizer."""
    found: dict[Any, list[Arm]] = {at: [] for at in (_ALL_THREE, *_OTHERS)}
    for arm in e.where(lambda arm: _corner(arm) is not None):
        found[_corner(arm)].append(arm)
    base = evidence.best(found[_ALL_THREE])
    arms = {at: arm for at in _OTHERS if (arm := evidence.outcome(found[at]))}
    unseen = [at for at in _OTHERS if at not in arms]
    absent = [_corner_name(at) for at in unseen if sum(at) == 2]
    if base is None:
        absent.insert(0, lacking(_corner_name(_ALL_THREE), found[_ALL_THREE]))
    if base is None or absent:
        raise NotTestable(*absent)
    measured = {at: e.heaviest(arm) for at, arm in arms.items() if arm.trained}
    numbers = [e.heaviest(base), *measured.values()]
    near = [at for at, found in measured.items() if found.value < NEAR_GAUSSIAN]
    verdict, why = HOLDS, "Without any one, tails grow or training fails."
    if numbers[0].value >= NEAR_GAUSSIAN:
        verdict, why = FAILS, "All three together are not near Gaussian."
    elif near:
        needless = [any(not at[i] for at in near) for i in range(len(_WITH))]
        verdict = FAILS if all(needless) else CORRECTED
        why = f"Near Gaussian also: {'; '.join(map(_corner_name, near))}."
    if failed := fates(arms.values()):
        why += f" Of the controls, {failed}."
    return Judgement(verdict, why, numbers, list(map(_corner_name, unseen)))


def updates_keep_isometry(e: Evidence) -> Judgement:
    """C14: deviation of W_V, W_O, W_U, W_D from isometries they started as."""
    kinds = {
        "an orthogonally initialized arm with a spectral optimizer": SPECTRAL,
        "an orthogonally initialized arm with AdamW or sign descent": SIGN_LIKE,
    }
    sides: list[dict[str, float]] = []
    absent, paths = [], {}
    for name, names in kinds.items():
        arms = e.where(
            lambda arm, names=names: (
                arm.recipe == "orthogonal" and arm.optimizer in names
            )
        )
        known = {
            a.label: x for a in arms if a.trained and (x := e.isometry(a)) is not None
        }
        paths |= {a.label: x for a in arms if a.label in known and (x := e.path(a))}
        sides.append(known)
        absent += [] if known else [lacking(name, arms)]
    if absent:
        raise NotTestable(*absent)
    spectral, sign = sides
    both = {**spectral, **sign}
    per_path = {label: both[label] / path for label, path in paths.items()}
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
    what = "median deviation from an isometry at the end"
    numbers = [Number(f"{label}, {what}", x, "") for label, x in both.items()]
    what = "deviation per summed update RMS"
    numbers += [Number(f"{label}, {what}", x, "") for label, x in per_path.items()]
    unmatched = [label for label in both if label not in per_path]
    absent = [f"optim/update_rms of {label}, to match updates" for label in unmatched]
    return Judgement(verdict, why, numbers, absent)


def from_theory(*lemmas: str, corrections: Sequence[str] = ()) -> Judge:
    """C15 and C16: the verdicts of `rfq theory` on these lemmas.

    Corrections are what is the case instead: that they hold is against the lemmas.
    """

    def judge(e: Evidence) -> Judgement:
        named: dict[str, list[Record]] = {name: [] for name in (*lemmas, *corrections)}
        for row in e.shown.results.theory:
            named.get(str(row.get("claim")), []).append(row)
        absent = ", ".join(name for name, found in named.items() if not found)
        if absent:
            raise NotTestable(
                f"{absent} in theory.jsonl: run `rfq theory --out DIR` and "
                "give DIR to `rfq report` beside the runs"
            )
        every = [row for name in lemmas for row in named[name]]
        against = [row for name in corrections for row in named[name]]
        verdicts = [row.get("verdict") for row in every]
        borne_out = [row for row in against if row.get("verdict") == HOLDS]
        holds = set(verdicts) == {HOLDS} and not borne_out
        verdict = graded([holds], but=set(verdicts) != {FAILS})
        counts = {each: verdicts.count(each) for each in (HOLDS, CORRECTED, FAILS)}
        why = "; ".join(
            f"{n} of {len(every)} checks: {each}" for each, n in counts.items() if n
        )
        said = [row for row in every if row.get("verdict") != HOLDS][:1]
        why += "".join(f". {_said(row)} ({row.get('why')})" for row in said)
        why += "".join(f". Against it, {_said(row)}" for row in borne_out[:1])
        return Judgement(verdict, why + ".", list(_measured([*every, *against])))

    return judge


def _said(row: Record) -> str:
    return ": ".join(part for name in ("claim", "statement") if (part := row.get(name)))


def _measured(rows: Iterable[Record]) -> Iterable[Number]:
    for row in rows:
        value, error = row.get("measured"), row.get("standard_error")
        if value is not None:
            ends = () if error is None else (value - 2 * error, value + 2 * error)
            yield Number(_said(row), value, "", *ends)


def falls_with_depth(e: Evidence) -> Judgement:
    """C17: the stream's kurtosis by layer of residual AdamW at the end."""
    (arm,) = e.arms(RESIDUAL_ADAMW)
    layers = e.shown.by_layer(arm.name, view.STREAM, "excess_kurtosis")
    curve = [found.value for found in layers if found.value is not None]
    if len(curve) < 3:
        raise NotTestable(f"the kurtosis of three layers of {arm_label(arm.name)}")
    values, numbers = [], []
    for entry in paper.load().kurtosis:
        if entry["arm"] == "_".join(map(str, RESIDUAL_ADAMW)):
            layer = view.same_depth(entry["layer"], len(curve))
            values.append(curve[layer - 1])
            what = f"layer {layer} of {len(curve)}"
            numbers.append(e.beside(arm, what, values[-1], arm.loss.value))
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
