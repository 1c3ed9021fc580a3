"""The frames as claims see them: which arm plays which part, and what it measured.

A claim names parts, as "residual AdamW". Several arms may play one, at other learning
rates or temperatures; the one with the lowest full-precision loss (mean over its seeds)
does. An arm that did not train plays none: it has light tails and loses nothing because
it has learnt nothing. All of `Evidence` that returns arms or a `Number` raises
`NotTestable` with the name of what is not there.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from rfq.report import estimates, paper, view
from rfq.report.arms import Arm, arm_label
from rfq.report.estimates import Estimate
from rfq.report.view import View

# How a run ended that learnt no more than word frequencies.
FATES: Mapping[str, str] = {"stuck": "collapsed", "not finite": "diverged"}

# The paper's base of the attention temperature; its residual arms have none. Which
# Gaussian initialization its residual arms have it does not say.
PAPER_BETA = {"residual": 1.0, "residual_free": 1.1}
PAPER_RECIPES = {
    "residual": (None, "gpt2", "xavier", "kaiming"),
    "residual_free": (None, "orthogonal"),
}

Part = tuple[str | None, str | None]  # Connection and optimizer.


class NotTestable(Exception):
    """What a claim needs and these rows lack, one phrase each."""

    def __init__(self, *missing: str):
        super().__init__("; ".join(missing))
        self.missing = missing


class Number(NamedTuple):
    """A number that a verdict rests on.

    Attributes:
        unit: "nats", "kurtosis", "dB", "GB", "" and so on.
        lo, hi: The 95 % interval, None where there is none.
        loss: The held-out loss of the same arm; it stands beside every kurtosis.
    """

    what: str
    value: float
    unit: str = "nats"
    lo: float | None = None
    hi: float | None = None
    loss: float | None = None

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and it is without 0."""
        return Estimate(self.value, self.lo, self.hi).clear


def number(
    what: str, found: Estimate, unit: str = "nats", loss: float | None = None
) -> Number:
    """Name an estimate that has a value."""
    return Number(what, found.value or 0.0, unit, found.lo, found.hi, loss)


def part_of(arm: str) -> Part:
    """Return the part that one of the paper's arms plays, by its name."""
    skip = "residual_free" if arm.startswith("residual_free_") else "residual"
    return skip, arm.removeprefix(f"{skip}_")


def part_label(part: Part) -> str:
    """Write a part as a reader sees it: "residual-free Muon"."""
    return arm_label("_".join(map(str, part)))


def best(arms: Iterable[Arm]) -> Arm | None:
    """Return the arm of lowest full-precision loss among those that trained."""
    known = [arm for arm in arms if arm.trained and arm.loss.value is not None]
    return min(known, key=lambda arm: arm.loss.value or 0.0, default=None)


def outcome(arms: Sequence[Arm]) -> Arm | None:
    """Return the best arm, or one that failed if none trained.

    Claims about whether a model trains, or about what a step costs, need it.
    """
    return best(arms) or next((arm for arm in arms if arm.failed), None)


def fates(arms: Iterable[Arm]) -> str:
    """Name the arms that failed and how: "residual AdamW at 0.01 collapsed"."""
    return "; ".join(f"{arm.label} {FATES[arm.status]}" for arm in arms if arm.failed)


def lacking(name: str, arms: Iterable[Arm]) -> str:
    """Say what to ask for when none of the arms of a part trained."""
    failed = fates(arms)
    return f"{name} that trained ({failed})" if failed else name


def need(found: float | None, *missing: str) -> float:
    """Return a number.

    Raises:
        NotTestable: it is missing.
    """
    if found is None:
        raise NotTestable(*missing)
    return found


def _cast(playing: Mapping[Part, Sequence[Arm]]) -> tuple[list[Arm], list[str]]:
    """Return the best arm of each part, and what the other parts lack."""
    cast = {part: best(arms) for part, arms in playing.items()}
    absent = [
        lacking(part_label(part), playing[part]) for part in cast if cast[part] is None
    ]
    return [arm for arm in cast.values() if arm is not None], absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A view, by parts instead of arms.

    Attributes:
        facts: The arms that count.
        size: Layers and width: parts are compared at one size.
    """

    shown: View
    facts: Mapping[str, Arm]
    size: tuple[int | None, int | None]

    @property
    def place(self) -> str:
        """What the arms of this size have in common, in words."""
        layers, width = self.size
        return f"{layers} layers of width {width}"

    def only(self, test: Callable[[Arm], bool]) -> "Evidence":
        """Return the evidence without the arms that fail a test."""
        kept = {name: arm for name, arm in self.facts.items() if test(arm)}
        same = len(kept) == len(self.facts)
        return self if same else dataclasses.replace(self, facts=kept)

    @property
    def of_size(self) -> list[Arm]:
        """The arms of the size."""
        every = self.facts.values()
        if self.size == (None, None):
            return list(every)
        return [arm for arm in every if (arm.num_layers, arm.width) == self.size]

    def of_one_size(self, test: Callable[[Arm], bool]) -> list[Arm]:
        """Return arms of the size with an outcome that pass a test."""
        ended = (a for a in self.of_size if a.status not in ("missing", "unfinished"))
        return [arm for arm in ended if test(arm)]

    def where(self, test: Callable[[Arm], bool]) -> list[Arm]:
        """Return arms of the common size, without another cure, that pass a test."""
        return self.of_one_size(lambda arm: arm.plain and test(arm))

    def playing(self, part: Part) -> list[Arm]:
        """Return the arms that may play a part: those of the paper's initialization."""
        orthogonal = part[0] == "residual_free"
        return self.where(
            lambda arm: (
                arm.part == part
                and (arm.recipe is None or (arm.recipe == "orthogonal") == orthogonal)
            )
        )

    def some(self, *parts: Part) -> tuple[list[Arm], list[str]]:
        """Return the arms that play of these parts, and the names of the others."""
        arms, absent = _cast({part: self.playing(part) for part in parts})
        if not arms:
            raise NotTestable(*absent)
        return arms, absent

    def arms(self, *parts: Part) -> list[Arm]:
        """Return the arms that play these parts."""
        arms, absent = self.some(*parts)
        if absent:
            raise NotTestable(*absent)
        return arms

    def at_one_temperature(self, *parts: Part) -> list[Arm]:
        """Return the arms that play these parts with one beta, of the lowest loss."""
        self.arms(*parts)
        playing = {part: self.playing(part) for part in parts}
        casts = []
        for beta in {arm.beta for arms in playing.values() for arm in arms}:
            arms, absent = _cast(
                {
                    p: [a for a in found if a.beta == beta]
                    for p, found in playing.items()
                }
            )
            casts += [] if absent else [arms]
        lowest = best(arm for arms in casts for arm in arms)
        if lowest is None:
            names = ", ".join(map(part_label, parts))
            raise NotTestable(f"{names} at one attention temperature")
        return next(arms for arms in casts if lowest in arms)

    def sides(self) -> tuple[list[Arm], list[Arm]]:
        """Return the residual and the residual-free arms that trained, one a part."""
        sides: dict[str | None, list[Arm]] = {"residual": [], "residual_free": []}
        for part in dict.fromkeys(arm.part for arm in self.facts.values()):
            arm = best(self.playing(part))
            if arm and part[0] in sides:
                sides[part[0]].append(arm)
        absent = [
            f"a {str(skip).replace('_', '-')} arm that trained"
            for skip, arms in sides.items()
            if not arms
        ]
        if absent:
            raise NotTestable(*absent)
        return sides["residual"], sides["residual_free"]

    def counterparts(self) -> Mapping[str, str]:
        """Return the arm of ours that stands beside each of the paper's, if one does.

        It has the paper's connection, optimizer, initialization and norm, as far as its
        config tells, and no change that the paper's has not. Of several that do, the
        first of: one with a loss, of the size that most arms have, at the paper's
        temperature, with what else most of them share, of the paper's name, of the
        lowest loss.
        """
        rests = collections.Counter(arm.rest for arm in self.facts.values())
        found = {}
        for theirs in paper.load().arms:
            skip = str(part_of(theirs)[0])
            fit = {
                arm.name: (
                    arm.loss.value is not None,
                    (arm.num_layers, arm.width) == self.size,
                    arm.beta == PAPER_BETA[skip],
                    rests[arm.rest],
                    arm.name == theirs,
                    -(arm.loss.value or 0.0),
                )
                for arm in self.facts.values()
                if arm.part == part_of(theirs)
                and arm.recipe in PAPER_RECIPES[skip]
                and arm.plain
            }
            if fit:
                found[theirs] = max(fit, key=lambda name: fit[name])
        return found

    def loss(self, arm: Arm) -> Number:
        """Return the held-out loss in full precision."""
        value = need(arm.loss.value, f"the held-out loss of {arm_label(arm.name)}")
        return Number(f"{arm.label}, held-out loss", value)

    def beside(
        self, arm: Arm, what: str, kurtosis: float, loss: float | None
    ) -> Number:
        """Return a kurtosis with the held-out loss of the same parameters."""
        label = f"{arm.label}, excess kurtosis, {what}"
        return Number(label, kurtosis, "kurtosis", loss=loss)

    def kurtosis(self, arm: Arm) -> Number:
        """Return the stream's largest kurtosis at the end."""
        value = need(arm.kurtosis.value, f"the kurtosis of {arm_label(arm.name)}")
        return self.beside(
            arm, "largest over layers, at the end", value, arm.loss.value
        )

    def _measured(self, arm: Arm, statistic: str, lacks: str) -> pl.DataFrame:
        """Return a statistic at the paper's sites at all layers and steps."""
        found = self.shown.results.measures.filter(
            pl.col("site").is_in(view.PAPER_SITES),
            pl.col("value").is_finite(),
            arm=arm.name,
            statistic=statistic,
        )
        if found.is_empty():
            raise NotTestable(f"{lacks} of {arm_label(arm.name)}")
        return found

    def heaviest(self, arm: Arm) -> Number:
        """Return the largest absolute kurtosis over sites, layers and steps.

        Without measures it is the stream's at the end, which its name says.
        """
        try:
            found = self._measured(arm, "excess_kurtosis", "measures.jsonl")
        except NotTestable:
            if arm.kurtosis.value is None:
                raise
            end = self.kurtosis(arm)
            return end._replace(value=abs(end.value))
        at = found.row(found["value"].abs().arg_max(), named=True)
        step = at["step"] or 0
        what = f"largest absolute over sites, layers and steps, at {step:,.0f}"
        return self.beside(arm, what, abs(at["value"]), at["loss"])

    def negentropy(self, arm: Arm) -> Number:
        """Return the largest negentropy over sites, layers and steps, nats."""
        values = self._measured(arm, "negentropy", "the negentropy")["value"].to_list()
        return Number(
            f"{arm.label}, negentropy, largest", max(values), "nats of negentropy"
        )

    def peaks(self, arm: Arm) -> list[tuple[float, float, float | None]]:
        """Return steps, the stream's largest kurtosis and the loss; means over runs."""
        done = [run.seed for run in self.shown.runs(arm.name) if run.done]
        kept = self.shown.peaks.filter(
            pl.col("seed").is_in(done),
            arm=arm.name,
            site=view.STREAM,
            statistic="excess_kurtosis",
        )
        steps = kept.group_by("step", maintain_order=True).agg(
            pl.col("value").mean(),
            pl.col("loss").filter(pl.col("loss").is_finite()).mean(),
        )
        if len(steps) < 2:
            raise NotTestable(f"measures of {arm_label(arm.name)} at two steps")
        return steps.rows()

    def increase(self, arm: Arm, name: str, stream: str) -> Estimate:
        """Return the increase of held-out loss under a WnAm setting, nats.

        It is infinite where that of a seed is not finite.
        """
        found = self.shown.increase(arm.name, name, stream)
        if found.not_finite:
            return found._replace(value=math.inf, lo=math.inf, hi=math.inf)
        return found

    def lost_accuracy(self, arm: Arm, name: str, stream: str) -> Estimate:
        """Return the loss of the mean accuracy over tasks from full precision."""
        asked = self.shown.of_setting(self.shown.results.tasks).filter(
            arm=arm.name, spec=name, stream=stream
        )
        kept = asked.unique(["seed", "calibration_seed", "questions"])
        lost = kept.with_columns(
            lost=-pl.col("avg_change"),
            lo=-pl.col("avg_change_hi"),
            hi=-pl.col("avg_change_lo"),
        )
        return estimates.of_all(lost, "lost", ("lo", "hi"))

    def losses(
        self, arm: str, name: str, stream: str | None = None
    ) -> dict[tuple, np.ndarray]:
        """Return the losses of held-out sequences, by seed and draw."""
        kept = self.shown.of_setting(self.shown.results.losses.filter(arm=arm))
        lines = kept.filter(
            pl.col("precision") == name, pl.col("stream").eq_missing(pl.lit(stream))
        )
        columns = lines.select("seed", "calibration_seed", "losses").rows()
        return {tuple(key): np.asarray(each) for *key, each in columns if each}

    def loss_gap(self, low: Arm, high: Arm) -> Number:
        """Return the held-out loss of `high` less that of `low`, with its interval."""
        gap = self.loss(high).value - self.loss(low).value
        pair = (self.losses(arm.name, "FP, float32") for arm in (low, high))
        label = f"{high.label} less {low.label}, held-out loss"
        return number(label, estimates.paired(*pair)._replace(value=gap))

    def added(self, arm: Arm, low: str, high: str, stream: str) -> Estimate:
        """Return the loss of an arm under one WnAm setting less that under another.

        It is paired over sequences where losses.jsonl has them, else by intervals.
        """
        names = low, high
        found = estimates.difference(*(self.increase(arm, n, stream) for n in names))
        if found.value is None or math.isinf(found.value):
            return found
        pair = (self.losses(arm.name, name, stream) for name in names)
        paired = estimates.paired(*pair)
        return found if paired.value is None else paired

    def temperature_pairs(self) -> list[tuple[Arm, Arm]]:
        """Return residual-free arms without and with a temperature, else equal.

        Of several learning rates the one of lowest loss stands on each side, or one
        that failed; one of the two trained.
        """
        groups: dict[str, dict[float, list[Arm]]] = {}
        for arm in self.facts.values():
            if arm.skip == "residual_free" and arm.beta is not None:
                by_beta = groups.setdefault(arm.rest, {})
                by_beta.setdefault(arm.beta, []).append(arm)
        return [
            (off, on)
            for by_beta in groups.values()
            for beta in sorted(by_beta)
            if beta > 1
            and (off := outcome(by_beta.get(1.0, [])))
            and (on := outcome(by_beta[beta]))
            and (off.trained or on.trained)
        ]

    def isometry(self, arm: Arm) -> float | None:
        """Return the median deviation from an isometry of W_V, W_O, W_U and W_D."""
        values = [
            value
            for run in self.shown.runs(arm.name)
            for name in ("w_v", "w_o", "w_up", "w_down")
            for value in run.statistics.get("weights", {})
            .get(name, {})
            .get("isometry_deviation", ())
            if value is not None
        ]
        return statistics.median(values) if values else None

    def path(self, arm: Arm) -> float | None:
        """Return the summed RMS of all updates of the first seed."""
        seeds = [run.seed for run in self.shown.runs(arm.name)]
        logged = self.shown.results.metrics.filter(
            pl.col("seed").is_in(seeds[:1]), arm=arm.name
        )
        size = pl.col("learning_rate") * pl.col("optim/update_rms")
        return logged.select(size.mean() * pl.col("step").max()).item()


def every(shown: View) -> list[Evidence]:
    """Return the evidence of a view by size, the size that most arms have first."""
    facts = shown.facts
    sizes = [(arm.num_layers, arm.width) for arm in facts.values()]
    known = collections.Counter(size for size in sizes if None not in size)
    found = [size for size, _ in known.most_common()] or [(None, None)]
    return [Evidence(shown=shown, facts=facts, size=size) for size in found]


def of(shown: View) -> Evidence:
    """Return the evidence of a view at the size that most arms have."""
    return every(shown)[0]
