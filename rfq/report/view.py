"""The numbers of one setting by arm, precision and placement, and what each arm is."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from rfq.report import arms, estimates, paper
from rfq.report.arms import Arm
from rfq.report.estimates import Estimate, Estimates
from rfq.report.load import Record, Results, Run
from rfq.report.paper import words
from rfq.rows import COMMON

# Site -> what a reader calls it. The paper quantizes at four of them and we measure
# the others too. Its GELU gives `mlp_hidden` heavy tails whatever the architecture
# (3.08 for a Gaussian input, appendix C.6). The final norm's input occurs once.
SITES: Mapping[str, str] = words()["sites"]
STREAM, FINAL = "attn_norm_in", "final_norm_in"
PAPER_SITES = (STREAM, "attn_in", "mlp_norm_in", "mlp_in")
OTHER_SITES = tuple(site for site in SITES if site not in (*PAPER_SITES, FINAL))
PLACEMENTS: Mapping[str, str] = {"branch": "branch", "in_place": "in place"}

# The setting that the paper uses stands first.
PREFERRED: Mapping[str, str] = {
    "taps": "paper",
    "calibrator": "min_max",
    "methods": "none",
}

Setting = tuple[str | None, ...]  # The values of `rows.COMMON`.


class Precision(NamedTuple):
    """One precision of the tables: a WnAm name, or FP in one arithmetic type."""

    label: str
    name: str
    weight_bits: int | None
    act_bits: int | None

    @property
    def order(self) -> tuple[int, int, int, str]:
        """FP, then W8 (the paper's main text), other weights, activations alone."""
        weight = self.weight_bits
        group = 3 if weight is None else 1 if weight == 8 else 2
        group = 0 if self.name == "FP" else group
        return group, -(weight or 0), -(self.act_bits or 0), self.label


def settings(results: Results) -> list[Setting]:
    """List the settings of the rows, else of the tasks; the paper's first."""

    def far(setting: Setting) -> tuple[list[bool], str]:
        named = dict(zip(COMMON, setting, strict=True))
        return [named[name] != value for name, value in PREFERRED.items()], str(setting)

    frames = results.rows, results.tasks
    quantized = (frame.filter(pl.col("spec") != "FP") for frame in frames)
    found = (frame.select(COMMON).unique().rows() for frame in quantized)
    return sorted(next(filter(None, found), []), key=far)


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
    def _groups(self) -> Mapping[tuple, pl.DataFrame]:
        by = ["arm", "precision", "stream"]
        return self.frame.partition_by(by, as_dict=True, include_key=True)

    @functools.cached_property
    def _estimates(self) -> dict[str, Estimates]:
        return {}

    @functools.cached_property
    def _by_layer(self) -> dict[str, Mapping[tuple, list[Estimate]]]:
        return {}

    def place(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> tuple | None:
        """Return the key of a cell; without a placement the first that exists."""
        if precision is None:
            return None
        streams = [None] if precision.name == "FP" else [stream]
        if precision.name != "FP" and (stream is None or arm in self.free):
            streams += [*PLACEMENTS, None]
        keys = ((arm, precision.label, each) for each in streams)
        return next((key for key in keys if key in self._groups), None)

    def of(
        self,
        field: str,
        arm: str,
        precision: Precision | None,
        stream: str | None = None,
        ends: Sequence[str] = (),
    ) -> Estimate:
        """Return the estimate of a field in one cell."""
        if field not in self._estimates:
            by = ("arm", "precision", "stream")
            self._estimates[field] = estimates.of_groups(self.frame, by, field, ends)
        key = self.place(arm, precision, stream)
        return self._estimates[field].get(key or (), Estimate())

    def lines(self, arm: str, precision: Precision) -> pl.DataFrame:
        """Return the records of one cell, by seed and draw."""
        found = self._groups.get(self.place(arm, precision) or (), self.frame.clear())
        return found.sort("seed", "calibration_seed", maintain_order=True)

    def layers(
        self,
        arm: str,
        precision: Precision,
        site: str,
        field: str,
        stream: str | None = None,
    ) -> list[Estimate]:
        """Return a statistic of a site by layer, of records by site."""
        if field not in self._by_layer:
            kept = self.frame.filter(statistic=field)
            by = ("arm", "precision", "stream", "site", "layer")
            self._by_layer[field] = estimates.by_layer(
                estimates.of_groups(kept, by, "value")
            )
        key = self.place(arm, precision, stream)
        return self._by_layer[field].get((*(key or ()), site), [])

    @functools.cached_property
    def placements(self) -> list[str]:
        """The placements that some record has."""
        return [s for s in PLACEMENTS if s in self.frame["stream"].unique().to_list()]

    @functools.cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision of the records, in the order of the tables."""
        bits = pl.when(pl.col("spec") != "FP").then(pl.col("weight_bits", "act_bits"))
        found = self.frame.select("precision", "spec", bits).unique().rows()
        return tuple(sorted(map(Precision._make, found), key=lambda p: p.order))

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
        ranks = {arm: rank for rank, arm in enumerate(words()["looks"])}
        return tuple(sorted(names, key=lambda arm: (ranks.get(arm, len(ranks)), arm)))

    def runs(self, arm: str) -> list[Run]:
        """Return the run directories of an arm, one a seed."""
        return [run for run in self.results.runs if run.arm == arm]

    @functools.cached_property
    def _told(self) -> Mapping[str, Record]:
        """What the rows say of an arm, the first that says it."""
        fields = ("skip", "optimizer", "num_layers", "width", "num_params", "device")
        fields = (*fields, "config_fingerprint")
        first = pl.col(fields).drop_nulls().first()
        told = self.results.rows.group_by("arm").agg(first)
        return {line["arm"]: line for line in told.iter_rows(named=True)}

    def config(self, arm: str) -> Record:
        """Return the config of an arm: that of its first run with one, or its rows'."""
        found = (run.experiment for run in self.runs(arm) if run.experiment)
        name = self._told.get(arm, {}).get("config_fingerprint")
        return next(found, self.results.configs.get(name or "", {}))

    @functools.cached_property
    def skips(self) -> Mapping[str, str | None]:
        """The connection of each arm: of its config or rows, else from its name."""
        found = {}
        for arm in self.arms:
            named = [s for s in ("residual_free", "residual") if arm.startswith(s)]
            model = self.config(arm).get("model", {})
            told = model.get("skip"), self._told.get(arm, {}).get("skip"), *named
            found[arm] = next((skip for skip in told if skip), None)
        return found

    @functools.cached_property
    def facts(self) -> Mapping[str, Arm]:
        """What every arm is, and what became of it."""
        last = self.results.metrics.group_by("arm", "seed").last()
        diverged = set(last.filter(~pl.col("loss").is_finite())["arm"])
        floors = {name: self.floor(name) for name in ("unigram", "bigram")}
        found = {}
        for arm in self.arms:
            runs, loss = self.runs(arm), self.full_loss(arm)
            found[arm] = arms.told(
                arm,
                self.skips[arm],
                self.config(arm),
                [run.described for run in runs],
                self._told.get(arm, {}),
                loss=loss,
                kurtosis=self.kurtosis(arm),
                status=arms.status(loss, runs, diverged=arm in diverged, floors=floors),
            )
        return found

    def floor(self, name: str) -> float | None:
        """Return a cross-entropy of n-grams, nats a token: "unigram" or "bigram"."""
        return self.results.context.get("floors", {}).get(name)

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
        free = (arm for arm, skip in self.skips.items() if skip == "residual_free")
        return Cells(frame=kept, free=frozenset(free))

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

    def increase(
        self, arm: str, precision: Precision | str | None, stream: str
    ) -> Estimate:
        """Return the increase of held-out loss against float32 FP, nats a token."""
        ends = ("loss_increase_lo", "loss_increase_hi")
        if isinstance(precision, str):
            precision = self.precision(precision)
        return self.rows.of("loss_increase", arm, precision, stream, ends)

    def loss(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> Estimate:
        """Return the held-out loss, nats a token."""
        return self.rows.of("loss", arm, precision, stream)

    def full_loss(self, arm: str) -> Estimate:
        """Return the loss in full precision; without rows, as measured at the end."""
        found = self.loss(arm, self.reference)
        known = found.value is not None or found.not_finite
        return found if known else self._end_losses.get((arm,), Estimate())

    @functools.cached_property
    def ends(self) -> pl.DataFrame:
        """The last measured step of each run that trained to its end."""
        done = pl.DataFrame(
            [(run.arm, run.seed) for run in self.results.runs if run.done],
            schema={"arm": pl.String, "seed": pl.Int64},
            orient="row",
        )
        last = pl.col("step") == pl.col("step").max().over("arm", "seed")
        kept = self.results.measures.filter(last)
        return kept.join(done, ["arm", "seed"], how="semi", maintain_order="left")

    @functools.cached_property
    def _end_losses(self) -> Estimates:
        return estimates.of_groups(self.ends.unique(["arm", "seed"]), ["arm"], "loss")

    @functools.cached_property
    def _end_layers(self) -> Mapping[tuple, list[Estimate]]:
        by = ("arm", "site", "statistic", "layer")
        columns, told = [*by, "seed", "value"], self.results.statistics
        # What was not measured in training was when training had ended.
        rest = told.join(self.ends, on="arm", how="anti", maintain_order="left")
        both = pl.concat([self.ends.select(columns), rest.select(columns)])
        return estimates.by_layer(estimates.of_groups(both, by, "value"))

    def by_layer(self, arm: str, site: str, statistic: str) -> list[Estimate]:
        """Return a statistic by layer at the end of training."""
        return self._end_layers.get((arm, site, statistic), [])

    @functools.cached_property
    def peaks(self) -> pl.DataFrame:
        """The largest value over layers, by arm, seed, step, site and statistic."""
        by = ["arm", "seed", "step", "loss", "site", "statistic"]
        known = self.results.measures.filter(pl.col("value").is_finite())
        return known.group_by(by, maintain_order=True).agg(pl.col("value").max())

    @functools.cached_property
    def _end_peaks(self) -> Estimates:
        last = self.ends.select("arm", "seed", "step").unique()
        kept = self.peaks.filter(statistic="excess_kurtosis")
        both = kept.join(last, ["arm", "seed", "step"])
        return estimates.of_groups(both, ["arm", "site"], "value")

    def kurtosis(self, arm: str, site: str = STREAM) -> Estimate:
        """Return the largest excess kurtosis over layers of a site, at the end."""
        field = "final_norm_excess_kurtosis" if site == FINAL else "excess_kurtosis"
        found = self.rows.of(field, arm, self.reference)
        at_end = self._end_peaks.get((arm, site), Estimate())
        return at_end if found.value is None else found

    @functools.cached_property
    def curves(self) -> pl.DataFrame:
        """The logged steps with `smooth`, the running mean over 4 % of a run's."""
        logged = self.results.metrics.filter(pl.col("loss").is_finite())
        runs = logged.partition_by("arm", "seed", maintain_order=True)
        lengths = [max(1, round(0.04 * len(run))) for run in runs]
        means = [
            run.with_columns(smooth=pl.col("loss").rolling_mean(length, min_samples=1))
            for run, length in zip(runs, lengths, strict=True)
        ]
        empty = logged.clear().with_columns(smooth=pl.lit(None, pl.Float64))
        return pl.concat([empty, *means])

    def training_loss(self, arm: str, at: str, limit: float | None) -> Estimate:
        """Return the running mean of the loss at a step or a second, over seeds."""
        reached = self.curves.filter(pl.col(at) <= pl.lit(limit, pl.Float64), arm=arm)
        return estimates.of_all(
            reached.group_by("seed", maintain_order=True).last(), "smooth"
        )

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


def of(results: Results, setting: Setting | None = None) -> View:
    """Return the view of one setting, by default the first of `settings`."""
    default = next(iter(settings(results)), (None,) * len(COMMON))
    return View(results=results, setting=setting or default)


def with_arms(shown: View, arms: Sequence[str]) -> View:
    """Return the view with these arms known too, as if planned."""
    context = {**shown.results.context, "arms": [*shown.arms, *arms]}
    results = dataclasses.replace(shown.results, context=context)
    return dataclasses.replace(shown, results=results)


def same_depth(layer: float, num_layers: int) -> int:
    """Return our layer, from 1, at the relative depth of the paper's `layer`."""
    depth = layer / paper.load().setting["num_layers"]
    return min(num_layers, max(1, round(depth * num_layers)))
