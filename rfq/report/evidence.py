"""The rows as claims see them: which arm plays which part, and what it measured.

A claim names parts, as "residual AdamW". Several arms may play one, at other learning
rates or temperatures; the one with the lowest full-precision loss (mean over its seeds)
does. What is not there raises `NotTestable` with its name.
"""

import collections
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rfq.report import curves, load, view
from rfq.report.load import Record, Run
from rfq.report.paper import Paper
from rfq.report.view import Estimate, View
from rfq.stats import bootstrap

# Updates that orthogonalize or whiten a matrix, and those that look at each entry.
SPECTRAL = ("kl_shampoo", "kl_soap", "muon", "shampoo", "soap", "spectral_gd")
SIGN_LIKE = ("adamw", "sign_gd")

# Cures of the heavy tails of residual models at their source: arXiv 2506.19697,
# 2505.06708 and 2511.23225.
RIVALS = (
    "single-scale norm and projected embedding",
    "gated attention",
    "activation penalty",
)

# Seeds from which on the spread between them makes an interval.
ENOUGH_SEEDS = 3


class NotTestable(Exception):
    """What a claim needs and these rows lack, one phrase each."""

    def __init__(self, *missing: str):
        super().__init__("; ".join(missing))
        self.missing = missing


class Number(NamedTuple):
    """A number that a verdict rests on.

    Attributes:
        unit: "nats" | "kurtosis" | "dB" | "steps/s" | "GB" | "" and so on.
        lo, hi: its 95 % interval, None where there is none.
        loss: held-out loss of the same arm; stands beside every kurtosis.
    """

    what: str
    value: float
    unit: str = "nats"
    lo: float | None = None
    hi: float | None = None
    loss: float | None = None


class Facts(NamedTuple):
    """What an arm is; None where neither its config nor its rows tell.

    Attributes:
        recipe: of the initialization, "orthogonal" or a Gaussian one.
        rival: one of RIVALS, or a part of one.
        rest: all else that the config fixes, without the learning rates, the seed and
            the temperature: arms that share it differ in nothing else.
    """

    arm: str
    skip: str | None
    optimizer: str | None
    recipe: str | None
    w_down: str | None
    norm: str | None
    beta: float | None
    num_layers: int | None
    width: int | None
    learning_rate: float | None
    rival: str | None
    rest: str

    @property
    def label(self) -> str:
        """The arm and its learning rate."""
        rate = self.learning_rate
        return view.arm_label(self.arm) + ("" if rate is None else f" at {rate:g}")


Part = tuple[str, str]


def part_label(part: Part) -> str:
    """A part as a reader sees it: "residual-free Muon"."""
    return view.arm_label("_".join(part))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """The view of a compare directory, by parts instead of arms."""

    shown: View
    paper: Paper

    @functools.cached_property
    def facts(self) -> Mapping[str, Facts]:
        """Of every arm."""
        return {arm: _facts(self.shown, arm) for arm in self.shown.arms}

    @functools.cached_property
    def size(self) -> tuple[int | None, int | None]:
        """Layers and width that most arms have: parts are compared at one size."""
        sizes = [(f.num_layers, f.width) for f in self.facts.values()]
        known = [size for size in sizes if None not in size]
        return collections.Counter([*known, (None, None)]).most_common(1)[0][0]

    def trained(self, arm: str) -> bool:
        """Whether the arm ended with a loss that means something."""
        return self.shown.status(arm) in ("ok", "above bigram")

    def failed(self, arm: str) -> bool:
        """Whether the arm ended at word frequencies, or did not end."""
        return self.shown.status(arm) in ("stuck", "not finite")

    def where(self, test: Callable[[Facts], bool]) -> list[str]:
        """Arms of the common size, without another fix or norm, that pass a test."""
        return [
            arm
            for arm, facts in self.facts.items()
            if self.shown.status(arm) not in ("missing", "unfinished")
            and {(facts.num_layers, facts.width), (None, None)} & {self.size}
            and facts.rival is None
            and facts.norm in (None, "rms_norm")
            and test(facts)
        ]

    def best(self, arms: Sequence[str]) -> str | None:
        """The arm of lowest full-precision loss; one that failed if none trained."""
        losses = {a: self.shown.full_loss(a).value for a in arms if self.trained(a)}
        known = {arm: loss for arm, loss in losses.items() if loss is not None}
        if known:
            return min(known, key=lambda arm: known[arm])
        return arms[0] if arms else None

    def plays(self, part: Part) -> str | None:
        """The arm that plays a part: the paper's initialization, the lowest loss."""
        orthogonal = part[0] == "residual_free"
        return self.best(
            self.where(
                lambda f: (
                    (f.skip, f.optimizer) == part
                    and (f.recipe is None or (f.recipe == "orthogonal") == orthogonal)
                )
            )
        )

    def arms(self, *parts: Part) -> list[str]:
        """The arms that play these parts.

        Raises:
            NotTestable: the parts that nobody plays.
        """
        found = {part: self.plays(part) for part in parts}
        self.require({part_label(part): arm for part, arm in found.items()})
        return [arm for arm in found.values() if arm is not None]

    def require(self, found: Mapping[str, object]) -> None:
        """Names all that is None.

        Raises:
            NotTestable: something is.
        """
        absent = [name for name, value in found.items() if value is None]
        if absent:
            raise NotTestable(*absent)

    def some(self, *parts: Part) -> tuple[list[str], list[str]]:
        """The arms that trained of these parts, and the names of the others.

        Raises:
            NotTestable: nobody plays any.
        """
        found = {part: self.plays(part) for part in parts}
        arms = [arm for arm in found.values() if arm is not None and self.trained(arm)]
        absent = [part_label(part) for part, arm in found.items() if arm not in arms]
        if not arms:
            raise NotTestable(*absent)
        return arms, absent

    def sides(self) -> tuple[list[str], list[str]]:
        """The residual and the residual-free arms that trained, one a part.

        Raises:
            NotTestable: a side has none.
        """
        sides: dict[str, list[str]] = {"residual": [], "residual_free": []}
        for facts in self.facts.values():
            arm = self.plays((facts.skip or "", facts.optimizer or ""))
            side = sides.get(facts.skip or "")
            if arm and side is not None and arm not in side and self.trained(arm):
                side.append(arm)
        self.require(
            {
                f"a {skip.replace('_', '-')} arm that trained": arms or None
                for skip, arms in sides.items()
            }
        )
        return sides["residual"], sides["residual_free"]

    def loss(self, arm: str) -> Number:
        """Held-out loss in full precision.

        Raises:
            NotTestable: it is missing.
        """
        found = self.shown.full_loss(arm)
        if found.value is None:
            raise NotTestable(f"the held-out loss of {view.arm_label(arm)}")
        return Number(self.facts[arm].label + ", held-out loss", found.value)

    def kurtosis(self, arm: str) -> Number:
        """Largest excess kurtosis over layers of the stream, at the end.

        Raises:
            NotTestable: it is missing.
        """
        found = self.shown.block_kurtosis(arm)
        if found.value is None:
            raise NotTestable(f"the kurtosis of {view.arm_label(arm)}")
        return self.at_the_end(arm, "largest over layers, at the end", found.value)

    def at_the_end(self, arm: str, what: str, kurtosis: float) -> Number:
        """A kurtosis of a trained arm, with the arm's loss."""
        loss = self.shown.full_loss(arm).value
        return self.beside(arm, what, kurtosis, loss)

    def beside(
        self, arm: str, what: str, kurtosis: float, loss: float | None
    ) -> Number:
        """A kurtosis with the held-out loss of the same parameters."""
        label = f"{self.facts[arm].label}, excess kurtosis, {what}"
        return Number(label, kurtosis, "kurtosis", loss=loss)

    def heaviest(self, arm: str) -> Number:
        """Largest absolute excess kurtosis over the paper's sites, layers and steps.

        Raises:
            NotTestable: nothing is measured.
        """
        values = [
            (abs(value), measure)
            for measure, value in self._measured(arm, "excess_kurtosis")
        ]
        if not values:
            raise NotTestable(f"measures.jsonl of {view.arm_label(arm)}")
        largest, measure = max(values, key=lambda pair: pair[0])
        step, loss = (load.number(measure, name) for name in ("step", "loss"))
        what = f"largest absolute over sites, layers and steps, at {step or 0:,.0f}"
        return self.beside(arm, what, largest, loss)

    def negentropy(self, arm: str) -> Number:
        """Largest negentropy over the paper's sites, layers and steps, nats.

        Raises:
            NotTestable: it is not measured.
        """
        values = [value for _, value in self._measured(arm, "negentropy")]
        if not values:
            raise NotTestable(f"the negentropy of {view.arm_label(arm)}")
        label = f"{self.facts[arm].label}, negentropy, largest"
        return Number(label, max(values), "nats of negentropy")

    def _measured(self, arm: str, field: str) -> list[tuple[Record, float]]:
        return [
            (measure, value)
            for run in self.shown.runs(arm)
            for measure in run.measures
            for site in view.PAPER_SITES
            for value in load.numbers(load.child(measure, "sites", site), field)
            if value is not None
        ]

    def peaks(self, arm: str) -> list[tuple[float, float, float | None]]:
        """Steps, the stream's largest kurtosis and the loss then; means over runs.

        Raises:
            NotTestable: fewer than two steps of finished runs are measured.
        """
        found: dict[float, list[Record]] = {}
        for run in self.shown.runs(arm):
            for measure in run.measures if run.done else ():
                step = load.number(measure, "step")
                peak = view.peak_kurtosis(measure, ("attn_norm_in",))
                if step is not None and peak is not None:
                    row = {"peak": peak, "loss": measure.get("loss")}
                    found.setdefault(step, []).append(row)
        if len(found) < 2:
            raise NotTestable(f"measures of {view.arm_label(arm)} at two steps")
        return [
            (
                step,
                view.estimate(rows, "peak").value or 0.0,
                view.estimate(rows, "loss").value,
            )
            for step, rows in found.items()
        ]

    def increase(self, arm: str, name: str, stream: str) -> Estimate:
        """Increase of held-out loss under a WnAm setting, nats."""
        return self.shown.increase(arm, self.shown.precision(name), stream)

    def accuracy_change(self, arm: str, name: str, stream: str) -> Estimate:
        """Change of the mean accuracy over tasks from full precision, a fraction."""
        rows = [
            row
            for run in self.shown.runs(arm)
            for row in run.tasks
            if load.text(row, "spec") == name and load.text(row, "stream") == stream
        ]
        ends = ("avg_change_lo", "avg_change_hi")
        return view.estimate(rows, "avg_change", interval=ends)

    def loss_gap(self, low: str, high: str) -> Number:
        """Held-out loss of `high` less that of `low`, with its interval.

        Paired bootstrap over the sequences of the seeds that both have, and over the
        seeds from ENOUGH_SEEDS on: the hull of both.

        Raises:
            NotTestable: a loss is missing.
        """
        gap = self.loss(high).value - self.loss(low).value
        label = f"{self.facts[high].label} less {self.facts[low].label}, held-out loss"
        pairs = [
            (a, b)
            for run in self.shown.runs(low)
            for other in self.shown.runs(high)
            if run.seed == other.seed
            and (a := _full_losses(run)) is not None
            and (b := _full_losses(other)) is not None
            and a.shape == b.shape
        ]
        if not pairs:
            return Number(label, gap)
        sides = [np.stack(side) for side in zip(*pairs, strict=True)]
        ends = [bootstrap.paired_interval(*(side.mean(0) for side in sides))]
        if len(pairs) >= ENOUGH_SEEDS:
            ends.append(bootstrap.paired_interval(*(side.mean(1) for side in sides)))
        lo, hi = min(end[0] for end in ends), max(end[1] for end in ends)
        return Number(label, gap, lo=lo, hi=hi)

    def training_loss(self, arm: str, *, at: str, limit: float) -> float | None:
        """Smoothed training loss at a step or a second; mean over seeds."""
        found = [
            curves.loss_at(run, at=at, limit=limit) for run in self.shown.runs(arm)
        ]
        known = [loss for loss in found if loss is not None]
        return statistics.fmean(known) if known else None

    def temperature_pairs(self) -> list[tuple[str, str]]:
        """Residual-free arms without and with a temperature, equal in all else.

        Of several learning rates the one of lowest loss stands on each side.
        """
        groups: dict[str, dict[float, list[str]]] = {}
        for arm, facts in self.facts.items():
            known = self.shown.full_loss(arm).value is not None
            if known and facts.skip == "residual_free" and facts.beta is not None:
                by_beta = groups.setdefault(facts.rest, {})
                by_beta.setdefault(facts.beta, []).append(arm)
        return [
            (off, on)
            for by_beta in groups.values()
            for beta in sorted(by_beta)
            if beta > 1
            and (off := self.best(by_beta.get(1.0, [])))
            and (on := self.best(by_beta[beta]))
        ]

    def isometry(self, arm: str) -> float | None:
        """Median deviation from an isometry of W_V, W_O, W_U and W_D at the end."""
        values = [
            value
            for run in self.shown.runs(arm)
            for name in ("w_v", "w_o", "w_up", "w_down")
            for value in load.numbers(
                load.child(run.statistics, "weights", name), "isometry_deviation"
            )
            if value is not None
        ]
        return statistics.median(values) if values else None

    def theory(self, lemma: str) -> list[Record]:
        """The rows of theory.jsonl about a lemma."""
        rows = self.shown.results.theory
        return [row for row in rows if load.text(row, "claim") == lemma]


def _full_losses(run: Run) -> np.ndarray | None:
    for record in run.losses:
        if record.get("spec") == "FP" and record.get("compute_dtype") == "float32":
            losses = [x for x in load.numbers(record, "losses") if x is not None]
            return np.asarray(losses) if losses else None
    return None


def _facts(shown: View, arm: str) -> Facts:
    configs = [load.child(run.config, "experiment") for run in shown.runs(arm)]
    config = next((found for found in configs if found), {})
    row = next((row for row in shown.results.rows if row.get("arm") == arm), {})
    model, init, optimizer = (
        load.child(config, name) for name in ("model", "init", "optimizer")
    )
    skip = shown.skip(arm)
    named = arm.removeprefix(f"{skip}_")
    layers, width = (
        load.number(model, name) or load.number(row, name)
        for name in ("num_layers", "width")
    )
    return Facts(
        arm=arm,
        skip=skip,
        optimizer=load.text(optimizer, "name")
        or load.text(row, "optimizer")
        or next((name for name in (*SPECTRAL, *SIGN_LIKE) if name in named), None),
        recipe=load.text(init, "recipe"),
        w_down=load.text(init, "w_down"),
        norm=load.text(model, "norm"),
        beta=load.number(model, "beta"),
        num_layers=None if layers is None else int(layers),
        width=None if width is None else int(width),
        learning_rate=load.number(optimizer, "learning_rate"),
        rival=_rival(model, load.child(config, "train")),
        rest=_rest(config),
    )


def _rival(model: Record, train: Record) -> str | None:
    if load.text(model, "attention_gate") not in (None, "none"):
        return "gated attention"
    if load.number(train, "penalty_weight"):
        return "activation penalty"
    found = [
        name
        for name, field, value in (
            ("single-scale norm", "norm", "single_scale_norm"),
            ("projected embedding", "embedding", "projected"),
        )
        if load.text(model, field) == value
    ]
    return " and ".join(found) or None


def _rest(config: Record) -> str:
    """The factors of an experiment but rates, seed, temperature and bookkeeping."""
    free = {"learning_rate", "other_learning_rate", "beta"}
    return str(
        {
            section: {
                key: value
                for key, value in sorted(load.child(config, section).items())
                if key not in free
            }
            for section in ("model", "init", "optimizer", "schedule", "train")
        }
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho, tied values sharing their mean rank; None for a constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    a = np.asarray(values, np.float64)
    return np.mean([(a[:, None] > a), (a[:, None] >= a)], axis=0).sum(axis=1)


def rank_interval(rho: float, count: int) -> tuple[float, float]:
    """95 % interval of Spearman's rho, by Fisher's z with variance 1.06 / (n - 3).

    Fieller, Hartley and Pearson (1957).
    """
    z = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, rho)))
    half = 1.96 * math.sqrt(1.06 / (count - 3))
    return math.tanh(z - half), math.tanh(z + half)
