"""The rows as claims see them: which arm plays which part, and what it measured.

A claim names parts, as "residual AdamW". Several arms may play one, at other learning
rates or temperatures; the one with the lowest full-precision loss (mean over its seeds)
does. An arm that did not train plays none: it has light tails and loses nothing because
it has learnt nothing. What is not there raises `NotTestable` with its name.
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

# How a run ended that learnt no more than word frequencies.
FATES: Mapping[str, str] = {"stuck": "collapsed", "not finite": "diverged"}


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
        vo_pair: how that draws W_V and W_O, "transpose" as the paper writes it or
            "independent".
        accelerated: whether it ran on something else than a CPU.
        rival: one of RIVALS, or a part of one.
        rest: all else that the config fixes, without the learning rates, the seed and
            the temperature: arms that share it differ in nothing else.
    """

    arm: str
    skip: str | None
    optimizer: str | None
    recipe: str | None
    w_down: str | None
    vo_pair: str | None
    norm: str | None
    beta: float | None
    num_layers: int | None
    width: int | None
    num_params: float | None
    accelerated: bool | None
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

    def only(self, test: Callable[[Facts], bool]) -> "Evidence":
        """The same evidence without the arms that fail a test."""
        kept = [arm for arm, facts in self.facts.items() if test(facts)]
        if len(kept) == len(self.facts):
            return self
        found = self.shown.results
        results = dataclasses.replace(
            found,
            rows=[row for row in found.rows if row["arm"] in kept],
            runs=[run for run in found.runs if run.arm in kept],
            context={**found.context, "arms": kept},
        )
        shown = dataclasses.replace(self.shown, results=results)
        return dataclasses.replace(self, shown=shown)

    def trained(self, arm: str) -> bool:
        """Whether the arm ended with a loss that means something."""
        return self.shown.status(arm) in ("ok", "above bigram")

    def failed(self, arm: str) -> bool:
        """Whether the arm ended at word frequencies, or did not end."""
        return self.shown.status(arm) in FATES

    def fates(self, arms: Sequence[str]) -> str:
        """The arms that failed and how: "residual AdamW at 0.01 collapsed"."""
        return "; ".join(
            f"{self.facts[arm].label} {FATES[self.shown.status(arm)]}"
            for arm in arms
            if self.failed(arm)
        )

    def of_one_size(self, test: Callable[[Facts], bool]) -> list[str]:
        """Arms of the common size with an outcome that pass a test."""
        return [
            arm
            for arm, facts in self.facts.items()
            if self.shown.status(arm) not in ("missing", "unfinished")
            and {(facts.num_layers, facts.width), (None, None)} & {self.size}
            and test(facts)
        ]

    def where(self, test: Callable[[Facts], bool]) -> list[str]:
        """Arms of the common size, without another fix or norm, that pass a test."""
        return self.of_one_size(
            lambda f: f.rival is None and f.norm in (None, "rms_norm") and test(f)
        )

    def best(self, arms: Sequence[str]) -> str | None:
        """The arm of lowest full-precision loss among those that trained."""
        losses = {a: self.shown.full_loss(a).value for a in arms if self.trained(a)}
        known = {arm: loss for arm, loss in losses.items() if loss is not None}
        return min(known, key=lambda arm: known[arm], default=None)

    def outcome(self, arms: Sequence[str]) -> str | None:
        """The best arm, or one that failed if none trained.

        For claims whose subject is whether a model trains, or what a step costs.
        """
        return self.best(arms) or next((arm for arm in arms if self.failed(arm)), None)

    def lacking(self, name: str, arms: Sequence[str]) -> str:
        """What to ask for when none of the arms that could play a part trained."""
        fates = self.fates(arms)
        return f"{name} that trained ({fates})" if fates else name

    def playing(self, part: Part) -> list[str]:
        """The arms that may play a part: those of the paper's initialization."""
        orthogonal = part[0] == "residual_free"
        return self.where(
            lambda f: (
                (f.skip, f.optimizer) == part
                and (f.recipe is None or (f.recipe == "orthogonal") == orthogonal)
            )
        )

    def plays(self, part: Part) -> str | None:
        """The arm that plays a part: the lowest loss; None if nobody trained."""
        return self.best(self.playing(part))

    def arms(self, *parts: Part) -> list[str]:
        """The arms that play these parts.

        Raises:
            NotTestable: the parts that nobody plays.
        """
        arms, absent = self._cast({part: self.playing(part) for part in parts})
        if absent:
            raise NotTestable(*absent)
        return arms

    def some(self, *parts: Part) -> tuple[list[str], list[str]]:
        """The arms that play of these parts, and the names of the other parts.

        Raises:
            NotTestable: nobody plays any.
        """
        arms, absent = self._cast({part: self.playing(part) for part in parts})
        if not arms:
            raise NotTestable(*absent)
        return arms, absent

    def at_one_temperature(self, *parts: Part) -> list[str]:
        """The arms that play these parts with one beta, that of the lowest loss.

        Raises:
            NotTestable: the parts that nobody plays, or all if no beta has them all.
        """
        self.arms(*parts)
        playing = {part: self.playing(part) for part in parts}
        casts = []
        for beta in {facts.beta for facts in self.facts.values()}:
            arms, absent = self._cast(
                {
                    part: [arm for arm in found if self.facts[arm].beta == beta]
                    for part, found in playing.items()
                }
            )
            casts += [] if absent else [arms]
        if not casts:
            names = ", ".join(map(part_label, parts))
            raise NotTestable(f"{names} at one attention temperature")
        best = self.best([arm for arms in casts for arm in arms])
        return next(arms for arms in casts if best in arms)

    def _cast(
        self, playing: Mapping[Part, Sequence[str]]
    ) -> tuple[list[str], list[str]]:
        """The best arm of each part, and what is lacking of the parts without one."""
        arms = {part: self.best(found) for part, found in playing.items()}
        absent = [
            self.lacking(part_label(part), playing[part])
            for part, arm in arms.items()
            if arm is None
        ]
        return [arm for arm in arms.values() if arm is not None], absent

    def require(self, found: Mapping[str, object]) -> None:
        """Names all that is None.

        Raises:
            NotTestable: something is.
        """
        absent = [name for name, value in found.items() if value is None]
        if absent:
            raise NotTestable(*absent)

    def sides(self) -> tuple[list[str], list[str]]:
        """The residual and the residual-free arms that trained, one a part.

        Raises:
            NotTestable: a side has none.
        """
        sides: dict[str, list[str]] = {"residual": [], "residual_free": []}
        for facts in self.facts.values():
            arm = self.plays((facts.skip or "", facts.optimizer or ""))
            side = sides.get(facts.skip or "")
            if arm and side is not None and arm not in side:
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
        """Increase of held-out loss under a WnAm setting, nats.

        Infinite where that of a seed is not finite.
        """
        found = self.shown.increase(arm, self.shown.precision(name), stream)
        if found.not_finite:
            return found._replace(value=math.inf, lo=math.inf, hi=math.inf)
        return found

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
        lo, hi = _paired_interval(pairs) if pairs else (None, None)
        return Number(label, gap, lo=lo, hi=hi)

    def added(self, arm: str, low: str, high: str, stream: str) -> Estimate:
        """Held-out loss of an arm under one WnAm setting less that under another.

        Paired over sequences where losses.jsonl has them, else by their intervals.
        """
        found = difference(*(self.increase(arm, name, stream) for name in (low, high)))
        first, second = (self._losses(arm, name, stream) for name in (low, high))
        pairs = [
            (a, b)
            for draw, a in first.items()
            if (b := second.get(draw)) is not None and a.shape == b.shape
        ]
        if found.value is None or math.isinf(found.value) or not pairs:
            return found
        value = statistics.fmean(float(np.mean(b - a)) for a, b in pairs)
        lo, hi = _paired_interval(pairs)
        return found._replace(value=value, lo=lo, hi=hi)

    def _losses(
        self, arm: str, name: str, stream: str
    ) -> dict[tuple[int, object], np.ndarray]:
        """Of the held-out sequences, by seed and draw of calibration tokens."""
        return {
            (run.seed, record.get("calibration_seed")): losses
            for run in self.shown.runs(arm)
            for record in run.losses
            if record.get("spec") == name
            and record.get("stream") == stream
            and view.setting_of(record) == self.shown.setting
            and (losses := _sequence_losses(record)) is not None
        }

    def training_loss(self, arm: str, *, at: str, limit: float) -> float | None:
        """Smoothed training loss at a step or a second; mean over seeds."""
        found = [
            curves.loss_at(run, at=at, limit=limit) for run in self.shown.runs(arm)
        ]
        known = [loss for loss in found if loss is not None]
        return statistics.fmean(known) if known else None

    def temperature_pairs(self) -> list[tuple[str, str]]:
        """Residual-free arms without and with a temperature, equal in all else.

        Of several learning rates the one of lowest loss stands on each side, or one
        that failed; one of the two trained.
        """
        groups: dict[str, dict[float, list[str]]] = {}
        for arm, facts in self.facts.items():
            if facts.skip == "residual_free" and facts.beta is not None:
                by_beta = groups.setdefault(facts.rest, {})
                by_beta.setdefault(facts.beta, []).append(arm)
        return [
            (off, on)
            for by_beta in groups.values()
            for beta in sorted(by_beta)
            if beta > 1
            and (off := self.outcome(by_beta.get(1.0, [])))
            and (on := self.outcome(by_beta[beta]))
            and (self.trained(off) or self.trained(on))
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


def difference(low: Estimate, high: Estimate) -> Estimate:
    """High less low; its interval is without 0 where theirs are apart.

    Two that are not finite do not differ. Without both there is no value.
    """
    if low.value is None or high.value is None:
        return Estimate()
    if math.isinf(low.value) and math.isinf(high.value):
        return Estimate(0.0, 0.0, 0.0)
    value = high.value - low.value
    if low.lo is None or low.hi is None or high.lo is None or high.hi is None:
        return Estimate(value)
    return Estimate(value, high.lo - low.hi, high.hi - low.lo)


def _paired_interval(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
    """The hull of a bootstrap over sequences and, of enough seeds, one over seeds."""
    sides = [np.stack(side) for side in zip(*pairs, strict=True)]
    ends = [bootstrap.paired_interval(*(side.mean(0) for side in sides))]
    if len(pairs) >= ENOUGH_SEEDS:
        ends.append(bootstrap.paired_interval(*(side.mean(1) for side in sides)))
    return min(end[0] for end in ends), max(end[1] for end in ends)


def _full_losses(run: Run) -> np.ndarray | None:
    for record in run.losses:
        if record.get("spec") == "FP" and record.get("compute_dtype") == "float32":
            return _sequence_losses(record)
    return None


def _sequence_losses(record: Record) -> np.ndarray | None:
    """One loss a sequence; None where one is missing or not finite."""
    losses = [x for x in load.numbers(record, "losses") if x is not None]
    whole = losses and len(losses) == len(load.numbers(record, "losses"))
    return np.asarray(losses) if whole else None


def _facts(shown: View, arm: str) -> Facts:
    configs = [load.child(run.config, "experiment") for run in shown.runs(arm)]
    config = next((found for found in configs if found), {})
    row = next((row for row in shown.results.rows if row.get("arm") == arm), {})
    records = (row, *(run.config for run in shown.runs(arm)))
    devices = (load.text(record, "device") for record in records)
    device = next((found for found in devices if found is not None), None)
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
        vo_pair=load.text(init, "vo_pair"),
        norm=load.text(model, "norm"),
        beta=load.number(model, "beta"),
        num_layers=None if layers is None else int(layers),
        width=None if width is None else int(width),
        num_params=load.number(row, "num_params") or _num_params(model),
        accelerated=None if device is None else "cpu" not in device,
        learning_rate=load.number(optimizer, "learning_rate"),
        rival=_rival(model, load.child(config, "train")),
        rest=_rest(config),
    )


def _num_params(model: Record) -> float | None:
    """Weights of a config, but for the few of norms and cures."""
    fields = ("num_layers", "width", "mlp_ratio", "vocab_size")
    known = [value for name in fields if (value := load.number(model, name))]
    if len(known) < len(fields):
        return None
    layers, width, ratio, vocab = known
    return layers * (4 + 2 * ratio) * width**2 + vocab * width


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
