"""Chooses rows: one quantization setting, several seeds, and what is not there."""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from rfq.report import curves, load
from rfq.report.load import Record, Results, Run

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

BLOCK_SITES: Mapping[str, str] = {
    "attn_norm_in": "attention norm's input",
    "attn_in": "attention's input",
    "mlp_norm_in": "MLP norm's input",
    "mlp_in": "MLP's input",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "attn_out": "attention mix",
    "mlp_hidden": "MLP hidden",
}
# Where the paper quantizes; the others are measured. Its GELU gives `mlp_hidden` heavy
# tails whatever the architecture (3.08 for Gaussian input, appendix C.6).
PAPER_SITES = ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in")
OTHER_SITES = tuple(site for site in BLOCK_SITES if site not in PAPER_SITES)
# Once per model: its kurtosis behaves differently, so it stands apart.
FINAL_SITES: Mapping[str, str] = {"final_norm_in": "final norm's input"}
STREAMS: Mapping[str, str] = {"branch": "branch", "in_place": "in place"}

# A run is stuck when it has covered less than this part of the way from the unigram
# to the bigram cross-entropy; runs that never left the plateau end within 10 % of it.
STUCK_FRACTION = 0.1

Status = Literal["ok", "above bigram", "stuck", "not finite", "unfinished", "missing"]


class Estimate(NamedTuple):
    """A number over seeds.

    Attributes:
        value: the mean over the seeds that have a finite number; None without one.
        lo, hi: 95 % interval. One seed: its bootstrap over sequences. Several: the hull
            of theirs, which contains both the sampling error and the spread of seeds.
            Several draws of calibration tokens count as seeds do.
        spread: standard deviation over seeds and draws, None with one.
        num_seeds: seeds behind `value`.
        not_finite: a seed gave NaN or infinity, and is not in `value`.
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

    def less(self, level: float) -> "Estimate":
        """The same above a level."""
        moved = {
            name: None if x is None else x - level
            for name, x in (("value", self.value), ("lo", self.lo), ("hi", self.hi))
        }
        return self._replace(**moved)


def estimate(
    rows: Sequence[Record], field: str, *, interval: tuple[str, str] | None = None
) -> Estimate:
    """The mean of `field` over rows that differ by seed alone."""
    known = {
        i: v for i, row in enumerate(rows) if (v := load.number(row, field)) is not None
    }
    values = list(known.values())
    bad = any(load.nonfinite(row, field) for row in rows)
    if not values:
        return Estimate(not_finite=bad)
    ends: list[list[float]] = [[], []]
    for side, name in enumerate(interval or ()):
        ends[side] = [v for row in rows if (v := load.number(row, name)) is not None]
    bounded = all(len(end) == len(values) for end in ends)
    return Estimate(
        value=statistics.fmean(values),
        lo=min(ends[0]) if bounded else None,
        hi=max(ends[1]) if bounded else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        num_seeds=len({rows[i].get("seed", i) for i in known}),
        not_finite=bad,
    )


class Precision(NamedTuple):
    """One precision of the tables: a WnAm name, or FP in one arithmetic type."""

    name: str
    weight_bits: int | None
    act_bits: int | None
    compute_dtype: str | None = None

    @property
    def label(self) -> str:
        """The name in tables, with the arithmetic type where rows give it."""
        return f"FP, {self.compute_dtype}" if self.compute_dtype else self.name


class Setting(NamedTuple):
    """What rows have in common within one table."""

    taps: str | None
    calibrator: str | None


def arm_label(arm: str) -> str:
    """Writes `residual_free_kl_shampoo` as "residual-free KL-Shampoo"."""
    connection, rest = "", arm
    for prefix in ("residual_free", "residual"):
        if arm == prefix or arm.startswith(prefix + "_"):
            connection, rest = prefix.replace("_", "-"), arm[len(prefix) + 1 :]
            break
    words = " ".join(WORDS.get(word, word) for word in rest.split("_") if word)
    return f"{connection} {words.replace('KL Shampoo', 'KL-Shampoo')}".strip() or arm


def _bits(row: Record, field: str) -> int | None:
    value = load.number(row, field)
    return None if value is None else int(value)


def spec_label(row: Record) -> str | None:
    """What `Precision.label` is of a row's precision."""
    spec = load.text(row, "spec")
    dtype = load.text(row, "compute_dtype")
    return f"FP, {dtype}" if spec == "FP" and dtype else spec


def _precision(row: Record) -> Precision:
    if row.get("spec") == "FP":
        return Precision("FP", None, None, load.text(row, "compute_dtype"))
    bits = (_bits(row, "weight_bits"), _bits(row, "act_bits"))
    return Precision(str(row.get("spec")), *bits)


def _precision_order(precision: Precision) -> tuple[int, int, int, str]:
    """FP, then W8 (the paper's main text), other weights, activations alone."""
    weight, act = precision.weight_bits, precision.act_bits
    if precision.name == "FP":
        return (0, 0, 0, precision.compute_dtype or "")
    group = 3 if weight is None else 1 if weight == 8 else 2
    return (group, -(weight or 0), -(act or 0), precision.name)


def setting_of(row: Record) -> Setting:
    """The setting of a quantized row."""
    return Setting(load.text(row, "taps"), load.text(row, "calibrator"))


def settings(results: Results) -> list[Setting]:
    """The settings of the quantized rows, the paper's (taps, min-max) first.

    Those of the accuracies on tasks where there are no such rows.
    """
    asked = [row for run in results.runs for row in run.tasks]
    found: set[Setting] = set()
    for rows in (results.rows, asked):
        found = found or {setting_of(row) for row in rows if row.get("spec") != "FP"}
    return sorted(
        found,
        key=lambda s: (s.taps != "paper", s.calibrator != "min_max", str(s)),
    )


# (arm, label of a precision, placement) -> (seed, draw of calibration) -> record.
Index = Mapping[tuple[str, str, str | None], Mapping[tuple[int, int], Record]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The rows of one setting, indexed; of a row written twice the last counts."""

    results: Results
    setting: Setting

    def index(self, records: Iterable[Record]) -> Index:
        """The records of this setting and of FP, which has no setting."""
        found: dict[tuple[str, str, str | None], dict[tuple[int, int], Record]] = {}
        for record in records:
            arm, label = load.text(record, "arm"), spec_label(record)
            full = record.get("spec") == "FP"
            if arm and label and (full or setting_of(record) == self.setting):
                stream = None if full else load.text(record, "stream")
                draw = 0 if full else _bits(record, "calibration_seed") or 0
                cell = found.setdefault((arm, label, stream), {})
                cell[_bits(record, "seed") or 0, draw] = record
        return found

    @functools.cached_property
    def _rows(self) -> Index:
        return self.index(self.results.rows)

    @functools.cached_property
    def sites(self) -> Index:
        """The records of sites.jsonl."""
        return self.index(
            {**record, "arm": run.arm, "seed": run.seed}
            for run in self.results.runs
            for record in run.sites
        )

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """Every arm with rows or a run, or that context.json planned."""
        planned = self.results.context.get("arms")
        names = {str(row["arm"]) for row in self.results.rows}
        names |= {run.arm for run in self.results.runs}
        if isinstance(planned, list):
            names |= {arm for arm in planned if isinstance(arm, str)}
        ranks = {arm: rank for rank, arm in enumerate(ARM_ORDER)}
        return tuple(sorted(names, key=lambda arm: (ranks.get(arm, len(ranks)), arm)))

    @functools.cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision of the rows, in the order of the tables."""
        return precisions(self._rows)

    @functools.cached_property
    def placements(self) -> list[str]:
        """The placements of the stream's quantizer that some row has."""
        return placements(self._rows)

    @functools.cached_property
    def reference(self) -> Precision | None:
        """The FP row that increases are against."""
        return reference(self.precisions)

    def precision(self, name: str) -> Precision | None:
        """The precision of that WnAm name, if any row has it."""
        return next((p for p in self.precisions if p.name == name), None)

    def skip(self, arm: str) -> str | None:
        """The connection: from the run's config or its rows, else from its name."""
        for run in self.runs(arm):
            skip = load.text(load.child(run.config, "experiment", "model"), "skip")
            if skip is not None:
                return skip
        for row in self.results.rows:
            skip = load.text(row, "skip")
            if row.get("arm") == arm and skip is not None:
                return skip
        if arm.startswith("residual_free"):
            return "residual_free"
        return "residual" if arm.startswith("residual") else None

    def runs(self, arm: str) -> list[Run]:
        """The run directories of an arm, one a seed."""
        return [run for run in self.results.runs if run.arm == arm]

    def find(
        self,
        index: Index,
        arm: str,
        precision: Precision | None,
        stream: str | None = None,
    ) -> list[Record]:
        """The records of one cell, one a seed and draw of calibration tokens.

        Without a placement those of whichever exists, branch first. Residual-free
        blocks cannot tell the placements apart, so that a placement that was not
        evaluated for them is the other one. FP has no placement.
        """
        if precision is None:
            return []
        placements = [stream]
        if precision.name == "FP":
            placements = [None]
        elif stream is None or self.skip(arm) == "residual_free":
            placements += [*STREAMS, None]
        cells = (index.get((arm, precision.label, each)) for each in placements)
        found = next((cell for cell in cells if cell), {})
        return [found[key] for key in sorted(found)]

    def rows(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> list[Record]:
        """The rows of one cell, as `find`."""
        return self.find(self._rows, arm, precision, stream)

    def increase(self, arm: str, precision: Precision | None, stream: str) -> Estimate:
        """Increase of held-out loss against float32 FP, nats a token."""
        if precision is not None and precision == self.reference:
            rows = self.rows(arm, precision)
            if estimate(rows, "loss").value is not None:
                return Estimate(0.0, 0.0, 0.0, None, len(rows))
        return estimate(
            self.rows(arm, precision, stream),
            "loss_increase",
            interval=("loss_increase_lo", "loss_increase_hi"),
        )

    def loss(
        self, arm: str, precision: Precision | None, stream: str | None = None
    ) -> Estimate:
        """Held-out loss, nats a token."""
        return estimate(self.rows(arm, precision, stream), "loss")

    def full_loss(self, arm: str) -> Estimate:
        """Held-out loss in full precision; without rows, as measured at the end."""
        found = self.loss(arm, self.reference)
        if found.value is not None or found.not_finite:
            return found
        return estimate(self.ends(arm), "loss")

    def ends(self, arm: str) -> list[Record]:
        """The last measured step of each run that trained to its end."""
        return [run.measures[-1] for run in self.runs(arm) if run.done and run.measures]

    def distortion(self, arm: str, precision: Precision | None, field: str) -> Estimate:
        """`sqnr_db` or `nmse`: of the full-precision tensors, so of no placement."""
        return estimate(self.rows(arm, precision), field)

    def site_values(
        self,
        arm: str,
        precision: Precision | None,
        site: str,
        field: str,
        stream: str | None = None,
    ) -> list[Estimate]:
        """A statistic of sites.jsonl by layer; a site of the model is one layer."""
        return by_layer(self.find(self.sites, arm, precision, stream), site, field)

    def speed(self, arm: str) -> float | None:
        """Training steps a second, mean over seeds."""
        found = [curves.steps_per_second(run) for run in self.runs(arm)]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known else None

    def memory(self, arm: str, field: str) -> float | None:
        """Bytes of one device, `state_bytes` or `peak_bytes`; the largest of seeds."""
        found = [load.number(run.done, field) for run in self.runs(arm)]
        return max((value for value in found if value is not None), default=None)

    def measured(self, sites: Sequence[str]) -> list[str]:
        """Those of the sites that some finished run measured."""
        ends = [end for arm in self.arms for end in self.ends(arm)]
        return [s for s in sites if any(layer_kurtosis(end, s) for end in ends)]

    def floor(self, name: str) -> float | None:
        """A cross-entropy of n-grams, nats a token: "unigram" or "bigram"."""
        return load.number(load.child(self.results.context, "floors"), name)

    def status(self, arm: str) -> Status:
        """What a reader must know before the arm's numbers."""
        runs, loss = self.runs(arm), self.full_loss(arm)
        if loss.not_finite or any(run.failed or _blew_up(run) for run in runs):
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

    def block_kurtosis(self, arm: str) -> Estimate:
        """Largest excess kurtosis over layers of attn_norm_in, at the end."""
        rows = estimate(self.rows(arm, self.reference), "excess_kurtosis")
        if rows.value is not None:
            return rows
        found = [{"k": peak_kurtosis(end, ("attn_norm_in",))} for end in self.ends(arm)]
        return estimate(found, "k")

    def final_kurtosis(self, arm: str) -> Estimate:
        """Excess kurtosis of the final norm's input, at the end."""
        rows = estimate(self.rows(arm, self.reference), "final_norm_excess_kurtosis")
        if rows.value is not None:
            return rows
        found = [
            {"k": peak_kurtosis(end, ("final_norm_in",))} for end in self.ends(arm)
        ]
        return estimate(found, "k")


def precisions(index: Index) -> tuple[Precision, ...]:
    """Every precision of the records, in the order of the tables."""
    found = {_precision(row) for cell in index.values() for row in cell.values()}
    return tuple(sorted(found, key=_precision_order))


def reference(found: Sequence[Precision]) -> Precision | None:
    """Full precision: float32 where there is one (D17), else the first."""
    full = [p for p in found if p.name == "FP"]
    return min(full, key=lambda p: p.compute_dtype != "float32", default=None)


def placements(index: Index) -> list[str]:
    """The placements of the stream's quantizer that some record has."""
    return [each for each in STREAMS if any(stream == each for *_, stream in index)]


def of(results: Results, setting: Setting | None = None) -> View:
    """The view of one setting, by default the first of `settings`."""
    found = settings(results)
    default = found[0] if found else Setting(None, None)
    return View(results=results, setting=setting or default)


def with_arms(shown: View, arms: Sequence[str]) -> View:
    """The view with these arms known too, as if planned."""
    context = {**shown.results.context, "arms": [*shown.arms, *arms]}
    results = dataclasses.replace(shown.results, context=context)
    return dataclasses.replace(shown, results=results)


def _blew_up(run: Run) -> bool:
    return bool(run.metrics) and load.nonfinite(run.metrics[-1], "loss")


def layer_values(measure: Record, site: str, field: str) -> list[float | None]:
    """A statistic by layer at one measured step; a site of the model is one layer."""
    record = load.child(measure, "sites", site)
    single = load.number(record, field)
    return [single] if single is not None else load.numbers(record, field)


def by_layer(records: Sequence[Record], site: str, field: str) -> list[Estimate]:
    """A statistic by layer, over records that differ by seed alone."""
    found = [layer_values(record, site, field) for record in records]
    return [
        estimate([{"x": values[i]} for values in found if len(values) > i], "x")
        for i in range(max(map(len, found), default=0))
    ]


def layer_kurtosis(measure: Record, site: str) -> list[float | None]:
    """Excess kurtosis by layer at one measured step."""
    return layer_values(measure, site, "excess_kurtosis")


def layer_ranges(measure: Record, site: str) -> list[tuple[float | None, float | None]]:
    """Smallest and largest value by layer; none of a run that did not record both."""
    lo, hi = (layer_values(measure, site, f"range_{end}") for end in ("lo", "hi"))
    return list(zip(lo, hi, strict=True)) if len(lo) == len(hi) else []


def peak(measure: Record, sites: Sequence[str], field: str) -> float | None:
    """Largest value of a statistic over sites and layers at one measured step."""
    found = [
        x for site in sites for x in layer_values(measure, site, field) if x is not None
    ]
    return max(found, default=None)


def peak_kurtosis(measure: Record, sites: Sequence[str]) -> float | None:
    """Largest excess kurtosis over sites and layers at one measured step."""
    return peak(measure, sites, "excess_kurtosis")


def paper_peak(measure: Record) -> float | None:
    """Largest excess kurtosis over the paper's sites and all layers."""
    return peak_kurtosis(measure, PAPER_SITES)
