"""Choose lines of the frames: one setting, estimates over seeds, what is not there."""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import polars as pl

from rfq.report.load import Results, Run
from rfq.rows import COMMON

# The order of the page; arms that are not listed follow in alphabetical order.
ARM_ORDER = (
    "residual_adamw",
    "residual_muon",
    "residual_soap",
    "residual_kl_shampoo",
    "residual_free_adamw",
    "residual_free_muon",
    "residual_free_soap",
    "residual_free_kl_shampoo",
)

WORDS: Mapping[str, str] = {
    "adamw": "AdamW",
    "kl": "KL",
    "muon": "Muon",
    "soap": "SOAP",
    "shampoo": "Shampoo",
    "fp32": "float32",
    "bf16": "bfloat16",
}

SITES: Mapping[str, str] = {
    "attn_norm_in": "attention norm's input",
    "attn_in": "attention's input",
    "mlp_norm_in": "MLP norm's input",
    "mlp_in": "MLP's input",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "attn_out": "attention mix",
    "mlp_hidden": "MLP hidden",
    "final_norm_in": "final norm's input",
}
# The paper quantizes at the first four sites and we measure the others too. Its GELU
# gives `mlp_hidden` heavy tails whatever the architecture (3.08 for a Gaussian input,
# appendix C.6). The final norm's input occurs once per model and behaves differently.
STREAM, FINAL = "attn_norm_in", "final_norm_in"
PAPER_SITES = (STREAM, "attn_in", "mlp_norm_in", "mlp_in")
OTHER_SITES = tuple(site for site in SITES if site not in (*PAPER_SITES, FINAL))
PLACEMENTS: Mapping[str, str] = {"branch": "branch", "in_place": "in place"}

# The setting that the paper uses stands first.
PREFERRED: Mapping[str, str] = {"taps": "paper", "calibrator": "min_max"}

# A run is stuck when it has covered less than this part of the way from the unigram
# to the bigram cross-entropy; runs that never left the plateau end within 10 % of it.
STUCK_FRACTION = 0.1

Status = Literal["ok", "above bigram", "stuck", "not finite", "unfinished", "missing"]
Setting = tuple[str | None, ...]  # The values of `rows.COMMON`.


class Estimate(NamedTuple):
    """A number over seeds and over draws of calibration tokens.

    Attributes:
        value: The mean over the finite numbers; None without one.
        lo, hi: The 95 % interval: the hull of the intervals of the lines, which holds
            both the sampling error and the spread of seeds.
        spread: The standard deviation over lines, None with one.
        num_seeds: How many seeds are behind `value`.
        not_finite: Whether a line gave NaN or infinity, which is not in `value`.
    """

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    spread: float | None = None
    num_seeds: int = 0
    not_finite: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """From lo to hi; else one standard deviation to both sides; else none."""
        if self.lo is not None and self.hi is not None:
            return self.lo, self.hi
        if self.value is None or self.spread is None:
            return None
        return self.value - self.spread, self.value + self.spread


Estimates = Mapping[tuple, Estimate]


def estimates(
    frame: pl.DataFrame, by: Sequence[str], field: str, ends: Sequence[str] = ()
) -> Estimates:
    """Return the estimate of `field` in each group of lines.

    Args:
        frame: Lines with a column `seed`.
        by: The columns that name a group.
        field: The column that is averaged.
        ends: The columns with the lower and upper ends of its intervals.
    """
    known = pl.col(field).is_finite()
    values = pl.col(field).filter(known)
    lo, hi = (
        pl.col(end).filter(pl.col(end).is_finite()) for end in ends or 2 * [field]
    )
    bounded = (lo.len() == values.len()) & (hi.len() == values.len()) & bool(ends)
    grouped = frame.group_by(by, maintain_order=True).agg(
        value=values.mean(),
        lo=pl.when(bounded).then(lo.min()),
        hi=pl.when(bounded).then(hi.max()),
        spread=values.std(),
        num_seeds=pl.col("seed").filter(known).n_unique(),
        not_finite=(~pl.col(field).is_finite()).any(),
    )
    return {line[: len(by)]: Estimate(*line[len(by) :]) for line in grouped.rows()}


def estimate(frame: pl.DataFrame, field: str, ends: Sequence[str] = ()) -> Estimate:
    """Return the estimate of `field` over all lines of a frame."""
    found = estimates(frame.with_columns(all=pl.lit(0)), ["all"], field, ends)
    return found.get((0,), Estimate())


class Precision(NamedTuple):
    """One precision of the tables: a WnAm name, or FP in one arithmetic type."""

    label: str
    name: str
    weight_bits: int | None
    act_bits: int | None


def _order(precision: Precision) -> tuple[int, int, int, str]:
    """FP, then W8 (the paper's main text), other weights, activations alone."""
    label, name, weight, act = precision
    group = 0 if name == "FP" else 3 if weight is None else 1 if weight == 8 else 2
    return (group, -(weight or 0), -(act or 0), label)


def arm_label(arm: str) -> str:
    """Write `residual_free_kl_shampoo` as "residual-free KL-Shampoo"."""
    connection, rest = "", arm
    for prefix in ("residual_free", "residual"):
        if arm == prefix or arm.startswith(prefix + "_"):
            connection, rest = prefix.replace("_", "-"), arm[len(prefix) + 1 :]
            break
    words = " ".join(WORDS.get(word, word) for word in rest.split("_") if word)
    return f"{connection} {words.replace('KL Shampoo', 'KL-Shampoo')}".strip() or arm


def settings(results: Results) -> list[Setting]:
    """Return the settings of the rows, else of the tasks; the paper's first."""
    for frame in (results.rows, results.tasks):
        found = frame.filter(pl.col("spec") != "FP").select(COMMON).unique().rows()
        if found:
            break

    def far(setting: Setting) -> tuple[list[bool], str]:
        named = dict(zip(COMMON, setting, strict=True))
        return [named[name] != value for name, value in PREFERRED.items()], str(setting)

    return sorted(found, key=far)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
    """Quantized records of one setting, by arm, precision and placement.

    Attributes:
        frame: The records with the columns `precision`, which is a label, and `stream`,
            which is null for FP. What was written twice counts as it was last.
        free: The residual-free arms. Their blocks cannot tell the placements apart, so
            that a placement that was not evaluated for them is the other one.
    """

    frame: pl.DataFrame
    free: frozenset[str]

    @functools.cached_property
    def _places(self) -> frozenset[tuple]:
        return frozenset(
            self.frame.select("arm", "precision", "stream").unique().rows()
        )

    @functools.cached_property
    def _estimates(self) -> dict[str, Estimates]:
        return {}

    def place(
        self, arm: str, precision: Precision | None, stream: str | None
    ) -> tuple | None:
        """Return the key of a cell; without a placement the first that exists."""
        if precision is None:
            return None
        streams = [None] if precision.name == "FP" else [stream]
        if precision.name != "FP" and (stream is None or arm in self.free):
            streams += [*PLACEMENTS, None]
        keys = ((arm, precision.label, each) for each in streams)
        return next((key for key in keys if key in self._places), None)

    def of(
        self,
        field: str,
        arm: str,
        precision: Precision | None,
        stream: str | None = None,
        ends: Sequence[str] = (),
    ) -> Estimate:
        """Return the estimate of a field in one cell."""
        by = ("arm", "precision", "stream")
        if field not in self._estimates:
            self._estimates[field] = estimates(self.frame, by, field, ends)
        key = self.place(arm, precision, stream)
        return self._estimates[field].get(key, Estimate()) if key else Estimate()

    def lines(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> pl.DataFrame:
        """Return the records of one cell, by seed and draw."""
        key = self.place(arm, precision, stream)
        found = self.frame.clear()
        if key is not None:
            found = self._groups.get(key, found)
        return found.sort("seed", "calibration_seed", maintain_order=True)

    @functools.cached_property
    def _groups(self) -> Mapping[tuple, pl.DataFrame]:
        by = ["arm", "precision", "stream"]
        return self.frame.partition_by(by, as_dict=True, include_key=True)

    @functools.cached_property
    def placements(self) -> list[str]:
        """The placements that some record has."""
        return [s for s in PLACEMENTS if s in self.frame["stream"].unique().to_list()]

    @functools.cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision of the records, in the order of the tables."""
        bits = pl.when(pl.col("spec") != "FP").then(pl.col("weight_bits", "act_bits"))
        found = self.frame.select("precision", "spec", bits).unique().rows()
        return tuple(sorted(map(Precision._make, found), key=_order))

    @functools.cached_property
    def reference(self) -> Precision | None:
        """Full precision: float32 where there is one (D17), else the first."""
        full = [p for p in self.precisions if p.name == "FP"]
        return min(full, key=lambda p: not p.label.endswith("float32"), default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The results under one setting, and the arms in the order of the page."""

    results: Results
    setting: Setting

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """Every arm with rows or a run, or that context.json planned."""
        names = {run.arm for run in self.results.runs}
        names |= {*self.results.rows["arm"], *self.results.context.get("arms", ())}
        ranks = {arm: rank for rank, arm in enumerate(ARM_ORDER)}
        return tuple(sorted(names, key=lambda arm: (ranks.get(arm, len(ranks)), arm)))

    @functools.cached_property
    def _skips(self) -> Mapping[str, str | None]:
        """The connection of each arm: of its config or rows, else from its name."""
        found: dict[str, str | None] = {}
        for arm in self.arms:
            named = "residual_free" if arm.startswith("residual_free") else None
            found[arm] = named or ("residual" if arm.startswith("residual") else None)
        recorded = self.results.rows.filter(pl.col("skip").is_not_null())
        found |= dict(recorded.select("arm", "skip").unique("arm").rows())
        for run in self.results.runs:
            if skip := run.experiment.get("model", {}).get("skip"):
                found[run.arm] = skip
        return found

    def skip(self, arm: str) -> str | None:
        """Return the connection of an arm, "residual" or "residual_free"."""
        return self._skips.get(arm)

    def of_setting(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the lines of this setting and of FP, which has no setting."""
        full = pl.col("spec") == "FP"
        same = pl.all_horizontal(
            pl.col(name).eq_missing(pl.lit(value))
            for name, value in zip(COMMON, self.setting, strict=True)
        )
        label = pl.when(full).then("FP, " + pl.col("compute_dtype")).otherwise("spec")
        return frame.filter(full | same).with_columns(
            precision=label,
            stream=pl.when(~full).then("stream"),
            calibration_seed=pl.when(full).then(0).otherwise("calibration_seed"),
        )

    def cells(self, frame: pl.DataFrame, *more: str) -> Cells:
        """Index quantized records; `more` columns tell lines of one record apart."""
        key = ["arm", "precision", "stream", "seed", "calibration_seed", *more]
        kept = self.of_setting(frame).unique(key, keep="last", maintain_order=True)
        free = frozenset(arm for arm in self.arms if self.skip(arm) == "residual_free")
        return Cells(frame=kept, free=free)

    @functools.cached_property
    def rows(self) -> Cells:
        """The rows."""
        return self.cells(self.results.rows)

    @functools.cached_property
    def sites(self) -> Cells:
        """What quantization does at each site and layer."""
        return self.cells(self.results.sites, "site", "statistic", "layer")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision of the rows."""
        return self.rows.precisions

    @property
    def reference(self) -> Precision | None:
        """The FP row that increases are against."""
        return self.rows.reference

    def precision(self, name: str) -> Precision | None:
        """Return the precision of that WnAm name, if any row has it."""
        return next((p for p in self.precisions if p.name == name), None)

    def runs(self, arm: str) -> list[Run]:
        """Return the run directories of an arm, one a seed."""
        return [run for run in self.results.runs if run.arm == arm]

    def increase(self, arm: str, precision: Precision | None, stream: str) -> Estimate:
        """Return the increase of held-out loss against float32 FP, nats a token."""
        if precision is not None and precision == self.reference:
            loss = self.loss(arm, precision)
            if loss.value is not None:
                return Estimate(0.0, 0.0, 0.0, None, loss.num_seeds)
        ends = ("loss_increase_lo", "loss_increase_hi")
        return self.rows.of("loss_increase", arm, precision, stream, ends)

    def loss(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> Estimate:
        """Return the held-out loss, nats a token."""
        return self.rows.of("loss", arm, precision, stream)

    def full_loss(self, arm: str) -> Estimate:
        """Return the loss in full precision; without rows, as measured at the end."""
        found = self.loss(arm, self.reference)
        if found.value is not None or found.not_finite:
            return found
        return self._end_losses.get((arm,), Estimate())

    @functools.cached_property
    def ends(self) -> pl.DataFrame:
        """The last measured step of each run that trained to its end."""
        done = {(run.arm, run.seed) for run in self.results.runs if run.done}
        return self.results.measures.filter(
            pl.col("step") == pl.col("step").max().over("arm", "seed"),
            pl.struct("arm", "seed").map_elements(
                lambda run: (run["arm"], run["seed"]) in done, pl.Boolean
            ),
        )

    @functools.cached_property
    def _end_losses(self) -> Estimates:
        return estimates(self.ends.unique(["arm", "seed"]), ["arm"], "loss")

    @functools.cached_property
    def _layers(self) -> Mapping[tuple, list[Estimate]]:
        found: dict[tuple, list[Estimate]] = {}
        by = ("arm", "site", "statistic", "layer")
        for (arm, site, name, _), each in estimates(self.ends, by, "value").items():
            found.setdefault((arm, site, name), []).append(each)
        return found

    def by_layer(self, arm: str, site: str, statistic: str) -> list[Estimate]:
        """Return a statistic by layer at the end of training."""
        return self._layers.get((arm, site, statistic), [])

    def site_layers(
        self, arm: str, precision: Precision | None, site: str, field: str,
        stream: str | None = None,
    ) -> list[Estimate]:  # fmt: skip
        """Return what quantization does at a site, by layer."""
        key = self.sites.place(arm, precision, stream)
        return self._site_layers(field).get((*key, site), []) if key else []

    @functools.cached_property
    def _by_field(self) -> dict[str, dict[tuple, list[Estimate]]]:
        return {}

    def _site_layers(self, field: str) -> Mapping[tuple, list[Estimate]]:
        if field not in self._by_field:
            kept = self.sites.frame.filter(pl.col("statistic") == field)
            by = ("arm", "precision", "stream", "site", "layer")
            found = self._by_field.setdefault(field, {})
            for key, each in estimates(kept, by, "value").items():
                found.setdefault(key[:-1], []).append(each)
        return self._by_field[field]

    @functools.cached_property
    def peaks(self) -> pl.DataFrame:
        """The largest value over layers, by arm, seed, step, site and statistic."""
        by = ["arm", "seed", "step", "loss", "site", "statistic"]
        known = self.results.measures.filter(pl.col("value").is_finite())
        return known.group_by(by, maintain_order=True).agg(pl.col("value").max())

    @functools.cached_property
    def _end_peaks(self) -> Estimates:
        last = self.ends.select("arm", "seed", "step").unique()
        kept = self.peaks.filter(pl.col("statistic") == "excess_kurtosis")
        return estimates(
            kept.join(last, ["arm", "seed", "step"]), ["arm", "site"], "value"
        )

    def block_kurtosis(self, arm: str) -> Estimate:
        """Return the largest excess kurtosis over layers of the stream, at the end."""
        found = self.rows.of("excess_kurtosis", arm, self.reference)
        at_end = self._end_peaks.get((arm, STREAM), Estimate())
        return at_end if found.value is None else found

    def final_kurtosis(self, arm: str) -> Estimate:
        """Return the excess kurtosis of the final norm's input, at the end."""
        found = self.rows.of("final_norm_excess_kurtosis", arm, self.reference)
        at_end = self._end_peaks.get((arm, FINAL), Estimate())
        return at_end if found.value is None else found

    @functools.cached_property
    def curves(self) -> Mapping[str, list[pl.DataFrame]]:
        """The logged steps of each run by arm, with the running mean `smooth`.

        It is a trailing mean over 4 % of the records.
        """
        found: dict[str, list[pl.DataFrame]] = {}
        logged = self.results.metrics.filter(pl.col("loss").is_finite())
        for (arm, _), frame in logged.partition_by("arm", "seed", as_dict=True).items():
            mean = pl.col("loss").rolling_mean(
                max(1, round(0.04 * len(frame))), min_samples=1
            )
            found.setdefault(arm, []).append(frame.with_columns(smooth=mean))
        return found

    def training_loss(self, arm: str, at: str, limit: float | None) -> Estimate:
        """Return the running mean of the loss at a step or a second, over seeds."""
        if limit is None or arm not in self.curves:
            return Estimate()
        reached = [f.filter(pl.col(at) <= limit).tail(1) for f in self.curves[arm]]
        return estimate(pl.concat(reached), "smooth")

    def last(self, arm: str, at: str) -> float | None:
        """Return the last logged step or second that all runs of an arm reached."""
        logged = self.results.metrics.filter(arm=arm)
        ends = logged.group_by("seed").agg(pl.col(at).last())[at].drop_nulls().to_list()
        return min(ends, default=None)

    def speed(self, arm: str) -> float | None:
        """Return the training steps a second: the median of a run, mean over seeds."""
        found = []
        for run in self.runs(arm):
            logged = self.results.metrics.filter(arm=arm, seed=run.seed)
            median: Any = logged["tokens_per_second"].median()
            train, model = (run.experiment.get(k, {}) for k in ("train", "model"))
            tokens = train.get("batch_size", 0) * model.get("seq_len", 0)
            found += [median / tokens] if median and tokens else []
        return statistics.fmean(found) if found else None

    def memory(self, arm: str, field: str) -> float | None:
        """Return the `state_bytes` or `peak_bytes` of a device, largest of seeds."""
        found = [run.done.get(field) for run in self.runs(arm)]
        return max((value for value in found if value is not None), default=None)

    def floor(self, name: str) -> float | None:
        """Return a cross-entropy of n-grams, nats a token: "unigram" or "bigram"."""
        return self.results.context.get("floors", {}).get(name)

    @functools.cached_property
    def _blown_up(self) -> frozenset[str]:
        last = self.results.metrics.group_by("arm", "seed").last()
        return frozenset(last.filter(~pl.col("loss").is_finite())["arm"])

    @functools.cached_property
    def _statuses(self) -> Mapping[str, Status]:
        return {arm: self._status(arm) for arm in self.arms}

    def status(self, arm: str) -> Status:
        """Say what a reader must know before the arm's numbers."""
        return self._statuses[arm]

    def _status(self, arm: str) -> Status:
        runs, loss = self.runs(arm), self.full_loss(arm)
        if loss.not_finite or any(run.failed for run in runs) or arm in self._blown_up:
            return "not finite"
        if loss.value is None:
            return "unfinished" if runs else "missing"
        unigram, bigram = self.floor("unigram"), self.floor("bigram")
        if unigram is not None and bigram is not None:
            if loss.value > unigram - STUCK_FRACTION * (unigram - bigram):
                return "stuck"
            if loss.value > bigram:
                return "above bigram"
        return "ok"

    def trained(self, arm: str) -> bool:
        """Say whether the arm ended with a loss that means something."""
        return self.status(arm) in ("ok", "above bigram")


def of(results: Results, setting: Setting | None = None) -> View:
    """Return the view of one setting, by default the first of `settings`."""
    default = next(iter(settings(results)), (None,) * len(COMMON))
    return View(results=results, setting=setting or default)


def only(shown: View, arms: Iterable[str]) -> View:
    """Return the view without the other arms."""
    kept, found = list(arms), shown.results
    context = {**found.context, "arms": kept}
    frames = ("rows", "losses", "tasks", "sites", "metrics", "measures", "histograms")
    chosen: dict[str, Any] = {
        name: getattr(found, name).filter(pl.col("arm").is_in(kept))
        for name in (*frames, "statistics")
    }
    runs = [run for run in found.runs if run.arm in kept]
    results = dataclasses.replace(found, **chosen, runs=runs, context=context)
    return dataclasses.replace(shown, results=results)


def same_depth(layer: float, paper_layers: int, num_layers: int) -> int:
    """Return our layer, from 1, at the relative depth of the paper's `layer`."""
    return min(num_layers, max(1, round(layer / paper_layers * num_layers)))


def with_arms(shown: View, arms: Sequence[str]) -> View:
    """Return the view with these arms known too, as if planned."""
    context = {**shown.results.context, "arms": [*shown.arms, *arms]}
    results = dataclasses.replace(shown.results, context=context)
    return dataclasses.replace(shown, results=results)
