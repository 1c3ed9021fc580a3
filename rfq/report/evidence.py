"""The frames as claims see them: which arm plays which part, and what it measured.

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
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import scipy.stats

from rfq.report import view
from rfq.report.load import Record
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
ENOUGH_SEEDS = 3  # From so many on the spread between seeds makes an interval.

# How a run ended that learnt no more than word frequencies.
FATES: Mapping[str, str] = {"stuck": "collapsed", "not finite": "diverged"}

# The paper's base of the attention temperature; its residual arms have none. Which
# Gaussian initialization its residual arms have it does not say.
PAPER_BETA = {"residual": 1.0, "residual_free": 1.1}
PAPER_RECIPES = {
    "residual": (None, "gpt2", "xavier", "kaiming"),
    "residual_free": (None, "orthogonal"),
}

Part = tuple[str, str]  # Connection and optimizer.


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


class Facts(NamedTuple):
    """What an arm is; None where neither its config nor its rows tell.

    Attributes:
        recipe: The initialization, "orthogonal" or a Gaussian one.
        vo_pair: How it draws W_V and W_O: "transpose" as the paper writes it, or
            "independent".
        accelerated: Whether the arm ran on something else than a CPU.
        rival: One of RIVALS, or a part of one.
        rest: All else that the config fixes, without the learning rates, the seed and
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

    @property
    def plain(self) -> bool:
        """Whether the arm has the paper's norm and no other cure."""
        return self.rival is None and self.norm in (None, "rms_norm")


def part_of(arm: str) -> Part:
    """Return the part that one of the paper's arms plays, by its name."""
    skip = "residual_free" if arm.startswith("residual_free_") else "residual"
    return skip, arm.removeprefix(f"{skip}_")


def part_label(part: Part) -> str:
    """Write a part as a reader sees it: "residual-free Muon"."""
    return view.arm_label("_".join(part))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A view, by parts instead of arms."""

    shown: View
    paper: Paper

    @functools.cached_property
    def facts(self) -> Mapping[str, Facts]:
        """Facts of every arm."""
        return {arm: _facts(self.shown, arm) for arm in self.shown.arms}

    @functools.cached_property
    def size(self) -> tuple[int | None, int | None]:
        """Layers and width that most arms have: parts are compared at one size."""
        sizes = [(f.num_layers, f.width) for f in self.facts.values()]
        known = [size for size in sizes if None not in size]
        return collections.Counter([*known, (None, None)]).most_common(1)[0][0]

    def only(self, test: Callable[[Facts], bool]) -> "Evidence":
        """Return the evidence without the arms that fail a test."""
        kept = [arm for arm, facts in self.facts.items() if test(facts)]
        if len(kept) == len(self.facts):
            return self
        return dataclasses.replace(self, shown=view.only(self.shown, kept))

    def failed(self, arm: str) -> bool:
        """Say whether the arm ended at word frequencies, or did not end."""
        return self.shown.status(arm) in FATES

    def fates(self, arms: Sequence[str]) -> str:
        """Name the arms that failed and how: "residual AdamW at 0.01 collapsed"."""
        return "; ".join(
            f"{self.facts[arm].label} {FATES[self.shown.status(arm)]}"
            for arm in arms
            if self.failed(arm)
        )

    def of_one_size(self, test: Callable[[Facts], bool]) -> list[str]:
        """Return arms of the common size with an outcome that pass a test."""
        return [
            arm
            for arm, facts in self.facts.items()
            if self.shown.status(arm) not in ("missing", "unfinished")
            and {(facts.num_layers, facts.width), (None, None)} & {self.size}
            and test(facts)
        ]

    def where(self, test: Callable[[Facts], bool]) -> list[str]:
        """Return arms of the common size, without another cure, that pass a test."""
        return self.of_one_size(lambda f: f.plain and test(f))

    def best(self, arms: Sequence[str]) -> str | None:
        """Return the arm of lowest full-precision loss among those that trained."""
        losses = {
            arm: loss
            for arm in arms
            if self.shown.trained(arm)
            and (loss := self.shown.full_loss(arm).value) is not None
        }
        return min(losses, key=lambda arm: losses[arm], default=None)

    def outcome(self, arms: Sequence[str]) -> str | None:
        """Return the best arm, or one that failed if none trained.

        Claims about whether a model trains, or about what a step costs, need it.
        """
        return self.best(arms) or next((arm for arm in arms if self.failed(arm)), None)

    def lacking(self, name: str, arms: Sequence[str]) -> str:
        """Say what to ask for when none of the arms of a part trained."""
        fates = self.fates(arms)
        return f"{name} that trained ({fates})" if fates else name

    def playing(self, part: Part) -> list[str]:
        """Return the arms that may play a part: those of the paper's initialization."""
        orthogonal = part[0] == "residual_free"
        return self.where(
            lambda f: (
                (f.skip, f.optimizer) == part
                and (f.recipe is None or (f.recipe == "orthogonal") == orthogonal)
            )
        )

    def plays(self, part: Part) -> str | None:
        """Return the arm that plays a part: the lowest loss; None if nobody trained."""
        return self.best(self.playing(part))

    def arms(self, *parts: Part) -> list[str]:
        """Return the arms that play these parts.

        Raises:
            NotTestable: the parts that nobody plays.
        """
        arms, absent = self._cast({part: self.playing(part) for part in parts})
        if absent:
            raise NotTestable(*absent)
        return arms

    def some(self, *parts: Part) -> tuple[list[str], list[str]]:
        """Return the arms that play of these parts, and the names of the other parts.

        Raises:
            NotTestable: nobody plays any.
        """
        arms, absent = self._cast({part: self.playing(part) for part in parts})
        if not arms:
            raise NotTestable(*absent)
        return arms, absent

    def at_one_temperature(self, *parts: Part) -> list[str]:
        """Return the arms that play these parts with one beta, of the lowest loss.

        Raises:
            NotTestable: the parts that nobody plays, or all if no beta has them all.
        """
        self.arms(*parts)
        casts = []
        for beta in {facts.beta for facts in self.facts.values()}:
            playing = {
                part: [a for a in self.playing(part) if self.facts[a].beta == beta]
                for part in parts
            }
            arms, absent = self._cast(playing)
            casts += [] if absent else [arms]
        if not casts:
            names = ", ".join(map(part_label, parts))
            raise NotTestable(f"{names} at one attention temperature")
        best = self.best([arm for arms in casts for arm in arms])
        return next(arms for arms in casts if best in arms)

    def _cast(
        self, playing: Mapping[Part, Sequence[str]]
    ) -> tuple[list[str], list[str]]:
        """Return the best arm of each part, and what the other parts lack."""
        arms = {part: self.best(found) for part, found in playing.items()}
        absent = [
            self.lacking(part_label(part), playing[part])
            for part, arm in arms.items()
            if arm is None
        ]
        return [arm for arm in arms.values() if arm is not None], absent

    def sides(self) -> tuple[list[str], list[str]]:
        """Return the residual and the residual-free arms that trained, one a part.

        Raises:
            NotTestable: a side has none.
        """
        sides: dict[str, list[str]] = {"residual": [], "residual_free": []}
        for facts in self.facts.values():
            arm = self.plays((facts.skip or "", facts.optimizer or ""))
            side = sides.get(facts.skip or "")
            if arm and side is not None and arm not in side:
                side.append(arm)
        absent = [
            f"a {skip.replace('_', '-')} arm that trained"
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
        rests = collections.Counter(facts.rest for facts in self.facts.values())
        found = {}
        for theirs in self.paper.arms:
            skip, optimizer = part_of(theirs)
            fit = {
                facts.arm: (
                    (loss := self.shown.full_loss(facts.arm).value) is not None,
                    (facts.num_layers, facts.width) == self.size,
                    facts.beta == PAPER_BETA[skip],
                    rests[facts.rest],
                    facts.arm == theirs,
                    0.0 if loss is None else -loss,
                )
                for facts in self.facts.values()
                if (facts.skip, facts.optimizer) == (skip, optimizer)
                and facts.recipe in PAPER_RECIPES[skip]
                and facts.plain
            }
            if fit:
                found[theirs] = max(fit, key=lambda arm: fit[arm])
        return found

    def loss(self, arm: str) -> Number:
        """Return the held-out loss in full precision.

        Raises:
            NotTestable: it is missing.
        """
        found = self.shown.full_loss(arm)
        if found.value is None:
            raise NotTestable(f"the held-out loss of {view.arm_label(arm)}")
        return Number(self.facts[arm].label + ", held-out loss", found.value)

    def beside(
        self, arm: str, what: str, kurtosis: float, loss: float | None
    ) -> Number:
        """Return a kurtosis with the held-out loss of the same parameters."""
        label = f"{self.facts[arm].label}, excess kurtosis, {what}"
        return Number(label, kurtosis, "kurtosis", loss=loss)

    def kurtosis(self, arm: str) -> Number:
        """Return the largest excess kurtosis over layers of the stream, at the end.

        Raises:
            NotTestable: it is missing.
        """
        found = self.shown.block_kurtosis(arm).value
        if found is None:
            raise NotTestable(f"the kurtosis of {view.arm_label(arm)}")
        loss = self.shown.full_loss(arm).value
        return self.beside(arm, "largest over layers, at the end", found, loss)

    def _measured(self, arm: str, statistic: str) -> pl.DataFrame:
        """Return a statistic at the paper's sites at all layers and steps."""
        return self.shown.results.measures.filter(
            pl.col("arm") == arm,
            pl.col("statistic") == statistic,
            pl.col("site").is_in(view.PAPER_SITES),
            pl.col("value").is_finite(),
        )

    def heaviest(self, arm: str) -> Number:
        """Return the largest absolute excess kurtosis over sites, layers and steps.

        Raises:
            NotTestable: nothing is measured.
        """
        found = self._measured(arm, "excess_kurtosis")
        if found.is_empty():
            raise NotTestable(f"measures.jsonl of {view.arm_label(arm)}")
        step, loss, value = found.select(
            pl.col("step", "loss", "value").get(pl.col("value").abs().arg_max())
        ).row(0)
        what = f"largest absolute over sites, layers and steps, at {step or 0:,.0f}"
        return self.beside(arm, what, abs(value), loss)

    def negentropy(self, arm: str) -> Number:
        """Return the largest negentropy over sites, layers and steps, nats.

        Raises:
            NotTestable: it is not measured.
        """
        found = self._measured(arm, "negentropy")["value"].to_list()
        if not found:
            raise NotTestable(f"the negentropy of {view.arm_label(arm)}")
        label = f"{self.facts[arm].label}, negentropy, largest"
        return Number(label, max(found), "nats of negentropy")

    def peaks(self, arm: str) -> list[tuple[float, float, float | None]]:
        """Return steps, the stream's largest kurtosis and the loss; means over runs.

        Raises:
            NotTestable: fewer than two steps of finished runs are measured.
        """
        done = [run.seed for run in self.shown.runs(arm) if run.done]
        kept = self.shown.peaks.filter(
            pl.col("seed").is_in(done),
            arm=arm,
            site=view.STREAM,
            statistic="excess_kurtosis",
        )
        peaks, losses = (
            view.estimates(kept, ["step"], field) for field in ("value", "loss")
        )
        if len(peaks) < 2:
            raise NotTestable(f"measures of {view.arm_label(arm)} at two steps")
        return [
            (at[0], found.value or 0.0, losses[at].value) for at, found in peaks.items()
        ]

    def increase(self, arm: str, name: str, stream: str) -> Estimate:
        """Return the increase of held-out loss under a WnAm setting, nats.

        It is infinite where that of a seed is not finite.
        """
        found = self.shown.increase(arm, self.shown.precision(name), stream)
        if found.not_finite:
            return found._replace(value=math.inf, lo=math.inf, hi=math.inf)
        return found

    def lost_accuracy(self, arm: str, name: str, stream: str) -> Estimate:
        """Return the loss of the mean accuracy over tasks from full precision."""
        asked = self.shown.of_setting(self.shown.results.tasks).filter(
            arm=arm, spec=name, stream=stream
        )
        kept = asked.unique(["seed", "calibration_seed", *view.COMMON, "questions"])
        lost = kept.with_columns(
            lost=-pl.col("avg_change"),
            lo=-pl.col("avg_change_hi"),
            hi=-pl.col("avg_change_lo"),
        )
        return view.estimate(lost, "lost", ("lo", "hi"))

    def losses(
        self, arm: str, name: str, stream: str | None
    ) -> dict[tuple, np.ndarray]:
        """Return the losses of held-out sequences, by seed and draw."""
        kept = self.shown.of_setting(self.shown.results.losses.filter(arm=arm))
        lines = kept.filter(
            pl.col("precision") == name, pl.col("stream").eq_missing(pl.lit(stream))
        )
        columns = lines.select("seed", "calibration_seed", "losses").rows()
        return {
            (seed, draw): np.asarray(losses, np.float64)
            for seed, draw, losses in columns
            if losses
        }

    def loss_gap(self, low: str, high: str) -> Number:
        """Return the held-out loss of `high` less that of `low`, with its interval.

        It is a paired bootstrap over the sequences of the seeds that both have, and
        over the seeds from ENOUGH_SEEDS on: the hull of both.

        Raises:
            NotTestable: a loss is missing.
        """
        gap = self.loss(high).value - self.loss(low).value
        label = f"{self.facts[high].label} less {self.facts[low].label}, held-out loss"
        pairs = _pairs(*(self.losses(arm, "FP, float32", None) for arm in (low, high)))
        lo, hi = _paired_interval(pairs) if pairs else (None, None)
        return Number(label, gap, lo=lo, hi=hi)

    def added(self, arm: str, low: str, high: str, stream: str) -> Estimate:
        """Return the loss of an arm under one WnAm setting less that under another.

        It is paired over sequences where losses.jsonl has them, else by intervals.
        """
        found = difference(*(self.increase(arm, name, stream) for name in (low, high)))
        pairs = _pairs(*(self.losses(arm, name, stream) for name in (low, high)))
        if found.value is None or math.isinf(found.value) or not pairs:
            return found
        value = statistics.fmean(float(np.mean(b - a)) for a, b in pairs)
        lo, hi = _paired_interval(pairs)
        return found._replace(value=value, lo=lo, hi=hi)

    def temperature_pairs(self) -> list[tuple[str, str]]:
        """Return residual-free arms without and with a temperature, else equal.

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
            and (self.shown.trained(off) or self.shown.trained(on))
        ]

    def isometry(self, arm: str) -> float | None:
        """Return the median deviation from an isometry of W_V, W_O, W_U and W_D."""
        values = [
            value
            for run in self.shown.runs(arm)
            for name in ("w_v", "w_o", "w_up", "w_down")
            for value in run.weights.get(name, {}).get("isometry_deviation", ())
            if value is not None
        ]
        return statistics.median(values) if values else None

    def path(self, arm: str) -> float | None:
        """Return the summed RMS of all updates of the first seed."""
        for run in self.shown.runs(arm)[:1]:
            logged = self.shown.results.metrics.filter(arm=arm, seed=run.seed)
            pairs = logged.select("learning_rate", "optim/update_rms").rows()
            sizes = [rate * rms for rate, rms in pairs if None not in (rate, rms)]
            last = max(logged["step"], default=0)
            return statistics.fmean(sizes) * last if sizes else None
        return None


def difference(low: Estimate, high: Estimate) -> Estimate:
    """Return high less low; its interval is without 0 where theirs are apart.

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


def _pairs(
    low: Mapping[tuple, np.ndarray], high: Mapping[tuple, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (a, b)
        for key, a in low.items()
        if (b := high.get(key)) is not None
        and a.shape == b.shape
        and np.isfinite(b - a).all()
    ]


def _paired_interval(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
    """Return the hull of bootstraps over sequences and, of enough, over seeds."""
    sides = [np.stack(side) for side in zip(*pairs, strict=True)]
    ends = [bootstrap.paired_interval(*(side.mean(0) for side in sides))]
    if len(pairs) >= ENOUGH_SEEDS:
        ends.append(bootstrap.paired_interval(*(side.mean(1) for side in sides)))
    return min(end[0] for end in ends), max(end[1] for end in ends)


def _facts(shown: View, arm: str) -> Facts:
    runs = shown.runs(arm)
    config = next((run.experiment for run in runs if run.experiment), {})
    row = next(shown.results.rows.filter(arm=arm).head(1).iter_rows(named=True), {})
    devices = [row.get("device"), *(run.described.get("device") for run in runs)]
    device = next((found for found in devices if found is not None), None)
    model, init, optimizer = (config.get(k, {}) for k in ("model", "init", "optimizer"))
    skip = shown.skip(arm)
    named = arm.removeprefix(f"{skip}_")
    guess = next((name for name in (*SPECTRAL, *SIGN_LIKE) if name in named), None)
    return Facts(
        arm=arm,
        skip=skip,
        optimizer=optimizer.get("name") or row.get("optimizer") or guess,
        recipe=init.get("recipe"),
        w_down=init.get("w_down"),
        vo_pair=init.get("vo_pair"),
        norm=model.get("norm"),
        beta=model.get("beta"),
        num_layers=model.get("num_layers") or row.get("num_layers"),
        width=model.get("width") or row.get("width"),
        num_params=row.get("num_params") or _num_params(model),
        accelerated=None if device is None else "cpu" not in device,
        learning_rate=optimizer.get("learning_rate"),
        rival=_rival(model, config.get("train", {})),
        rest=_rest(config),
    )


def _num_params(model: Record) -> float | None:
    """Return the weights of a config, but for the few of norms and cures."""
    fields = ("num_layers", "width", "mlp_ratio", "vocab_size")
    known = [value for name in fields if (value := model.get(name))]
    if len(known) < len(fields):
        return None
    layers, width, ratio, vocab = known
    return layers * (4 + 2 * ratio) * width**2 + vocab * width


def _rival(model: Record, train: Record) -> str | None:
    if model.get("attention_gate") not in (None, "none"):
        return "gated attention"
    if train.get("penalty_weight"):
        return "activation penalty"
    norm = model.get("norm") == "single_scale_norm"
    embedding = model.get("embedding") == "projected"
    found = ["single-scale norm"] * norm + ["projected embedding"] * embedding
    return " and ".join(found) or None


def _rest(config: Record) -> str:
    """Write the factors of an experiment but rates, seed, temperature and logs."""
    free = {"learning_rate", "other_learning_rate", "beta"}
    return str(
        {
            section: {
                key: value
                for key, value in sorted(config.get(section, {}).items())
                if key not in free
            }
            for section in ("model", "init", "optimizer", "schedule", "train")
        }
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rho; None where one side is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    found: Any = scipy.stats.spearmanr(x, y)
    return float(found.statistic)


def rank_interval(rho: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's rho, by Fisher's z.

    Its variance is 1.06 / (n - 3): Fieller, Hartley and Pearson (1957).
    """
    z = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, rho)))
    half = 1.96 * math.sqrt(1.06 / (count - 3))
    return math.tanh(z - half), math.tanh(z + half)
