"""Every table of the report as data: lines of values, and a format for each column.

texts.toml has titles, captions and columns. The text of a cell is rounded for people;
the CSV holds the numbers in full. What is not there is "missing", never a zero.
"""

import csv
import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rfq import rows as rows_lib
from rfq.quant import distortion
from rfq.report import view
from rfq.report.evidence import Evidence, Number
from rfq.report.paper import Paper, words
from rfq.report.view import Estimate, Precision, View
from rfq.stats import bootstrap

MISSING = "missing"
NOT_FINITE = "not finite"
NOT_PRINTED = "not in the paper"

# Where arms begin to differ at a small size, and where the paper's headline stands.
GLANCE_SPECS = ("W8A8", "W8A6", "W8A4")

# Weight width -> the paper's tables of it, the complete one last.
PAPER_TABLES: Mapping[int | None, Sequence[str]] = {
    8: ("Table 1", "Table 2"),
    16: ("Table 3",),
    None: ("Table 4",),
}

STATUS_TEXT: Mapping[str, str] = {"ok": "below bigram", "stuck": "stuck near unigram"}


class Cell(NamedTuple):
    """What a reader sees, the named numbers of the CSV, and how the page sets it.

    Attributes:
        mark: "", "best", "missing", "bad" or "quiet".
    """

    text: str
    data: Mapping[str, Any]
    mark: str = ""


# A value of a line: None is missing, NaN is not finite.
Value = str | float | Estimate | Cell | None
Line = Mapping[str, Value]
Column = Sequence[str]  # Key, title, format.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `name` is its file's name.

    Attributes:
        stands_for: What of the paper's it shows.
        is_printed: Whether the numbers are the paper's and not ours.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    stands_for: Sequence[str] = ()
    is_printed: bool = False

    def cells(self, line: Line) -> list[Cell]:
        """Return the cells of a line, in the order of the columns."""
        return [cell(line.get(key), key, form) for key, _, form in self.columns]


def table(
    name: str,
    lines: Iterable[Line],
    more: Sequence[Column] = (),
    *,
    suffix: str = "",
    stands_for: Sequence[str] = (),
    is_printed: bool = False,
    **fill: Any,
) -> Table:
    """Make a table of lines, with the words of texts.toml and further columns."""
    said = words()["tables"][name]
    return Table(
        name=name + suffix,
        title=said["title"].format(**fill),
        caption=said["caption"].format(**fill),
        columns=[*said["columns"], *more],
        lines=list(lines),
        stands_for=stands_for or said.get("stands_for", ()),
        is_printed=is_printed,
    )


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign; a rounded zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def kurtosis_text(value: float) -> str:
    """Write two decimals below 100, none above; a rounded zero has no sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def count_text(value: float) -> str:
    """Write a count for people: 0.82 M, 12.3 k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


FORMATS: Mapping[str, Callable[[float], str]] = {
    "signed": signed,
    "signed4": lambda value: signed(value, 4),
    "kurtosis": kurtosis_text,
    "count": count_text,
}


def write(value: float, form: str) -> str:
    """Write a number in a format of FORMATS or of Python, with a typographic minus."""
    kind = int if form == "d" else float
    text = FORMATS[form](value) if form in FORMATS else format(kind(value), form)
    return text.replace("-", "−")


def cell(value: Value, key: str, form: str) -> Cell:
    """Return the cell of a value; a format that begins with ~ leaves out intervals."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, Estimate):
        return _estimate_cell(value, key, form)
    if value is None:
        return Cell(MISSING, {key: MISSING}, "missing")
    if form == "arm":
        return Cell(view.arm_label(str(value)), {key: value})
    if isinstance(value, str):
        bad = value in (NOT_FINITE, "stuck near unigram", "unfinished")
        mark = "bad" if bad else "missing" if value == MISSING else ""
        return Cell(value, {key: value}, mark)
    if not math.isfinite(value):
        return Cell(NOT_FINITE, {key: NOT_FINITE}, "bad")
    return Cell(write(value, form), {key: value})


def _estimate_cell(found: Estimate, key: str, form: str) -> Cell:
    if found.value is None:
        return cell(math.nan if found.not_finite else None, key, form)
    compact, form = form.startswith("~"), form.removeprefix("~")
    text, around = write(found.value, form), ""
    data: dict[str, Any] = {key: found.value}
    if found.spread is not None:
        around = f" ± {write(found.spread, form)}"
        data |= {f"{key}_sd": found.spread, f"{key}_seeds": found.num_seeds}
    if found.lo is not None and found.hi is not None:
        around = f" [{write(found.lo, form)}, {write(found.hi, form)}]"
        data |= {f"{key}_lo": found.lo, f"{key}_hi": found.hi}
    text += "" if compact else around
    if found.not_finite:
        data[f"{key}_left_out"] = f"a seed, {NOT_FINITE}"
        return Cell(f"{text}; a seed {NOT_FINITE}", data, "bad")
    return Cell(text, data)


def best(value: Estimate, key: str, form: str = "signed") -> Cell:
    """Return the cell of an estimate that the page sets in bold."""
    return cell(value, key, form)._replace(mark="best")


def _plain(found: Estimate) -> Estimate:
    """Return an estimate without its spread, for what does not vary by chance."""
    return found._replace(spread=None)


def _number(value: object) -> Value:
    return value if isinstance(value, int | float) else None


# --- Loss and kurtosis --------------------------------------------------------------


def glance(shown: View) -> Table:
    """Make the result in one line an arm: loss, kurtosis, and what few bits cost."""
    specs = [name for name in GLANCE_SPECS if shown.precision(name) is not None]

    def increases(arm: str, name: str) -> Cell:
        """Both placements in one cell, as short as they are clear."""
        found = [
            (shown.increase(arm, shown.precision(name), stream), f"{name}_{stream}")
            for stream in view.PLACEMENTS
        ]
        both = [cell(each, key, "~signed") for each, key in found]
        mark = next((each.mark for each in both if each.mark), "")
        texts = [each.text for each in both]
        same = mark and texts[0] == texts[1]
        data = {key: value for each in both for key, value in each.data.items()}
        return Cell(texts[0] if same else " /\u00a0".join(texts), data, mark)

    floors = {
        name: MISSING if value is None else f"{value:.3f}"
        for name in ("unigram", "bigram")
        for value in [shown.floor(name)]
    }
    lines = [
        {
            "arm": arm,
            "loss": shown.full_loss(arm),
            "excess_kurtosis": shown.block_kurtosis(arm),
            **{name: increases(arm, name) for name in specs},
        }
        for arm in shown.arms
    ]
    return table(
        "glance", lines, [[name, name, ""] for name in specs], **dict[str, Any](floors)
    )


def _lowest(shown: View, precision: Precision, stream: str) -> str | None:
    """Return the arm whose interval lies below that of every other trained arm."""
    found = {
        arm: (increase.lo, increase.hi)
        for arm in filter(shown.trained, shown.arms)
        if (increase := shown.increase(arm, precision, stream)).lo is not None
        and increase.hi is not None
        and not increase.not_finite
    }
    for arm, (_, hi) in found.items():
        others = [lo for other, (lo, _) in found.items() if other != arm]
        if others and hi < min(others):
            return arm
    return None


def _increase(
    shown: View, arm: str | None, precision: Precision, stream: str, prefix: str = ""
) -> Value:
    key = f"{prefix}loss_increase_{stream}"
    found = shown.increase(arm, precision, stream) if arm else Estimate()
    if precision == shown.reference and found.value is not None:
        return Cell("reference", {key: 0.0}, "quiet")
    return found


def main(shown: View) -> Table:
    """Make the shape of the paper's Table 1, with loss in place of accuracy."""
    lines = []
    for precision in shown.precisions:
        full = precision.name == "FP"
        lowest = {
            s: None if full else _lowest(shown, precision, s) for s in view.PLACEMENTS
        }
        for arm in shown.arms:
            line: dict[str, Value] = {"precision": precision.label, "arm": arm}
            for stream in view.PLACEMENTS:
                found = _increase(shown, arm, precision, stream)
                key = f"loss_increase_{stream}"
                line[f"loss_{stream}"] = shown.loss(arm, precision, stream)
                line[key] = found
                if arm == lowest[stream] and isinstance(found, Estimate):
                    line[key] = best(found, key)
            line["sqnr_db"] = shown.rows.of("sqnr_db", arm, precision)
            if full and shown.loss(arm, precision).value is not None:
                line["sqnr_db"] = Cell("exact", {"sqnr_db": "exact"}, "quiet")
            lines.append(line)
    named = [value or MISSING for value in shown.setting]
    first = shown.setting in view.settings(shown.results)[:1]
    setting = zip(rows_lib.COMMON, named, strict=True)
    return table(
        "main",
        lines,
        suffix="" if first else "_" + "_".join(named),
        setting=", ".join(f"{name} {value}" for name, value in setting),
    )


def arms(evidence: Evidence) -> Table:
    """Say what each arm is, how far it got, and its kurtosis beside its loss."""
    shown, lines = evidence.shown, []
    for arm in shown.arms:
        facts, status = evidence.facts[arm], shown.status(arm)
        seconds = [
            run.done["seconds"] for run in shown.runs(arm) if "seconds" in run.done
        ]
        fields = ("num_layers", "width", "num_params", "num_steps", "tokens_seen")
        full = {f: shown.rows.of(f, arm, shown.reference) for f in fields}
        lines.append(
            {
                "arm": arm,
                "loss": shown.full_loss(arm),
                "bits_per_byte": shown.rows.of("bits_per_byte", arm, shown.reference),
                "status": STATUS_TEXT.get(status, status),
                "excess_kurtosis": shown.block_kurtosis(arm),
                "final_norm_excess_kurtosis": shown.final_kurtosis(arm),
                "learning_rate": facts.learning_rate,
                **{name: _plain(found) for name, found in full.items()},
                "skip": facts.skip and facts.skip.replace("_", "-"),
                "optimizer": facts.optimizer and view.arm_label(facts.optimizer),
                "norm": facts.norm and facts.norm.replace("_", " "),
                "train_seconds": statistics.fmean(seconds) if seconds else None,
            }
        )
    return table("arms", lines)


def _layers(
    values: Sequence[Value], form: str
) -> tuple[dict[str, Value], list[Column]]:
    """Return the columns L1, L2 and so on of values by layer."""
    keys = [f"layer_{i}" for i in range(1, len(values) + 1)]
    columns: list[Column] = [[k, f"L{i}", form] for i, k in enumerate(keys, 1)]
    return dict(zip(keys, values, strict=True)), columns


def _by_layer(
    shown: View,
    name: str,
    lines: Iterable[tuple[dict[str, Value], Sequence[Value]]],
    form: str,
    suffix: str = "",
) -> Table:
    """Make a table of values by layer; what is shallower than the rest ends early."""
    found = list(lines)
    depth = max((len(values) for _, values in found), default=0)
    blank = Cell("", {}, "quiet")
    whole, more = [], []
    for line, values in found:
        cells, more = _layers([*values, *[blank] * (depth - len(values))], form)
        whole.append({**line, **cells})
    return table(name, whole, more, suffix=suffix)


def kurtosis(shown: View, sites: Sequence[str], suffix: str = "") -> Table:
    """Make the excess kurtosis by site and layer at the end of training."""
    depth = max(
        (
            len(shown.by_layer(a, s, "excess_kurtosis"))
            for a in shown.arms
            for s in sites
        ),
        default=0,
    )
    lines = []
    for site, arm in itertools.product(sites, shown.arms):
        found: Sequence[Value] = shown.by_layer(arm, site, "excess_kurtosis")
        label = f"{view.SITES[site]} ({site})"
        named = {"site": Cell(label, {"site": site}), "arm": arm}
        lines.append(
            (
                {**named, "loss": shown.full_loss(arm)},
                found or [None] * (1 if site == view.FINAL else depth),
            )
        )
    return _by_layer(shown, "kurtosis", lines, "~kurtosis", suffix)


def further_statistics(shown: View) -> Table:
    """Make a table of the statistics that no other part of the report knows by name."""
    known = {key for key, *_ in words()["tables"]["structure"]["columns"]}
    known |= {"rms", "mean", "range_lo", "range_hi", "center", "scale", "hyvarinen_a"}
    columns = ["arm", "seed", "site", "statistic", "layer", "value"]
    both = [f.select(columns) for f in (shown.ends, shown.results.statistics)]
    found = pl.concat(both).unique(columns[:-1], keep="last", maintain_order=True)
    new = found.filter(
        ~pl.col("statistic").is_in(known),
        ~pl.col("statistic").str.starts_with("sampled_"),
    )
    by: dict[tuple, list[Value]] = {}
    for (*key, _), each in view.estimates(
        new, columns[:1] + columns[2:5], "value"
    ).items():
        by.setdefault(tuple(key), []).append(each)
    lines = [
        (
            {"statistic": name, "site": site, "arm": arm, "loss": shown.full_loss(arm)},
            values,
        )
        for (arm, site, name), values in by.items()
    ]
    return _by_layer(shown, "statistics", lines, "~.4g")


def matched_loss(shown: View) -> Table:
    """Make the kurtosis of each arm when it reached the loss that all arms reached."""
    measures, peaks = shown.results.measures, shown.peaks
    first = {arm: run.seed for arm in shown.arms for run in shown.runs(arm)[:1]}
    ends = [
        loss
        for arm, seed in first.items()
        if shown.trained(arm)
        for loss in shown.ends.filter(arm=arm, seed=seed)["loss"].unique().to_list()
    ]
    target = max(ends) if len(ends) > 1 else None
    lines = []
    for arm in shown.arms:
        mine = pl.col("arm") == arm, pl.col("seed") == pl.lit(first.get(arm), pl.Int64)
        reached = measures.filter(
            *mine, pl.col("loss") <= pl.lit(target, pl.Float64)
        ).head(1)
        step = reached["step"].min()
        at_step = peaks.filter(
            *mine, pl.col("step") == pl.lit(step, pl.Int64), statistic="excess_kurtosis"
        )
        by_site = dict(at_step.select("site", "value").rows())
        sites = [by_site[site] for site in view.PAPER_SITES if site in by_site]
        lines.append(
            {
                "arm": arm,
                "step": _number(step),
                "loss": _number(reached["loss"].min()),
                "attn_norm_in": by_site.get(view.STREAM),
                "paper_sites": max(sites, default=None),
                "final_norm_in": by_site.get(view.FINAL),
            }
        )
    text = MISSING if target is None else f"{target:.3f} nats"
    return table("matched_loss", lines, reached=text)


# --- Noise, structure and weights ---------------------------------------------------


def noise(shown: View) -> Table:
    """Make what loses the sites of each arm: clipped values, dead sites, rounding."""
    lines = [
        {"arm": arm, "spec": precision.name, **_noise(shown, arm, precision)}
        for precision in shown.precisions
        if precision.act_bits is not None
        for arm in shown.arms
        if shown.sites.place(arm, precision, None)
    ]
    return table("noise", lines)


def _noise(shown: View, arm: str, precision: Precision) -> dict[str, Value]:
    found = shown.sites.lines(arm, precision)
    first = found.filter(pl.col("seed") == found["seed"].min())
    first = first.filter(pl.col("calibration_seed") == first["calibration_seed"].min())
    by: dict[str, dict[tuple, float]] = {}
    for name, *at, value in first.select("statistic", "site", "layer", "value").rows():
        if value is not None:
            by.setdefault(name, {})[tuple(at)] = value
    clip, dead = by.get("clip_noise_fraction", {}), by.get("dead_fraction", {})
    causes = [distortion.cause(clip[at], dead[at]) for at in clip if at in dead]
    counts = {
        name: causes.count(name) if causes else None
        for name in ("clipping", "dead", "rounding")
    }
    means = {
        name: statistics.fmean(by[name].values()) if by.get(name) else None
        for name in ("clip_fraction", "dead_fraction", "sqnr_db", "bulk_sqnr_db")
    }
    heads = {
        f"relative_error_{stream}": (
            shown.site_layers(arm, precision, "head_in", "relative_error", stream)
            or [None]
        )[0]
        for stream in view.PLACEMENTS
    }
    codes = min(by.get("levels_used", {}).values(), default=None)
    return {**counts, **means, "levels_used": codes, **heads}


# How the layers of a statistic become one number, where it is not the largest.
SUMMARIES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean_share": statistics.fmean,
    "token_cosine": statistics.fmean,
    "negentropy": statistics.fmean,
    "hyvarinen_b": statistics.fmean,
    "isometry_deviation": statistics.median,
    "singular_value_spread": statistics.median,
}


def _summaries(values: Mapping[str, Sequence[float | None]]) -> dict[str, Value]:
    known = {
        name: [x for x in found if x is not None] for name, found in values.items()
    }
    return {n: SUMMARIES.get(n, max)(found) for n, found in known.items() if found}


def structure(shown: View) -> Table:
    """Say who is heavy-tailed: a channel, a token, or every value."""
    lines = []
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            mine = shown.results.statistics.filter(
                arm=arm, seed=run.seed, site=view.STREAM
            )
            by = mine.group_by("statistic").agg("value").rows()
            line = {"arm": arm, **_summaries(dict(by))}
            lines.append({**line, "loss": shown.full_loss(arm).value})
    return table("structure", lines)


def weights(shown: View) -> Table:
    """Say how Gaussian weights are, and how far from their first isometries."""
    lines = []
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            values: dict[str, list[float | None]] = {}
            for matrix in run.weights.values():
                for name, found in matrix.items():
                    values.setdefault(name, []).extend(found)
            lines.append({"arm": arm, **_summaries(values)})
    return table("weights", lines)


def weights_cost(evidence: Evidence) -> Table:
    """Say whether it matters that weights are quantized too (appendix E.5)."""
    shown, lines = evidence.shown, []
    alone = [p for p in shown.precisions if p.weight_bits is None and p.act_bits]
    for arm, precision, stream, width in itertools.product(
        shown.arms, alone, view.PLACEMENTS, ("W8", "W16")
    ):
        name = precision.name
        both = evidence.losses(arm, f"{width}{name}", stream)
        for (seed, draw), before in evidence.losses(arm, name, stream).items():
            after = both.get((seed, draw))
            if after is None:
                continue
            lo, hi = bootstrap.paired_interval(before, after)
            mean = Estimate(float(np.mean(after - before)), lo, hi)
            finite = math.isfinite(lo)
            differs = "no" if lo <= 0.0 <= hi else "yes"
            lines.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "spec": f"{width}{name} − {name}",
                    "stream": view.PLACEMENTS[stream],
                    "difference": mean if finite else math.nan,
                    "differs": differs if finite else math.nan,
                }
            )
    return table("weights_cost", lines)


# --- Training and cost --------------------------------------------------------------


def equal_cost(evidence: Evidence) -> Table:
    """Make Figure 3 as data: losses at the steps and seconds that all arms reached."""
    shown = evidence.shown
    trained = [arm for arm in shown.arms if shown.trained(arm)]
    limits = {
        at: min(
            (x for a in trained if (x := shown.last(a, at)) is not None), default=None
        )
        for at in ("step", "seconds")
    }
    measured = shown.results.measures.filter(
        pl.col("step") <= pl.lit(limits["step"], pl.Float64)
    )
    last = measured.unique(["arm", "seed"], keep="last", maintain_order=True)
    heldout = view.estimates(last, ["arm"], "loss")
    lines = [
        {
            "arm": arm,
            "beta": evidence.facts[arm].beta,
            "loss_at_steps": shown.training_loss(arm, "step", limits["step"]),
            "heldout_at_steps": heldout.get((arm,)),
            "loss_at_seconds": shown.training_loss(arm, "seconds", limits["seconds"]),
            "loss": shown.full_loss(arm),
        }
        for arm in shown.arms
    ]
    texts = [MISSING if x is None else f"{x:,.0f}" for x in limits.values()]
    return table("equal_cost", lines, steps=texts[0], seconds=texts[1])


def ranges(shown: View) -> Table:
    """Make the extremes of the stream by layer at every measured step (E.2)."""
    lines = []
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            mine = shown.results.measures.filter(
                pl.col("statistic").is_in(["range_lo", "range_hi"]),
                arm=arm,
                seed=run.seed,
                site=view.STREAM,
            )
            for (step, loss), found in mine.partition_by(
                "step", "loss", as_dict=True
            ).items():
                by = {
                    (name, at): value
                    for name, at, value in found.select(
                        "statistic", "layer", "value"
                    ).rows()
                }
                depth = found["layer"].n_unique()
                cells = [_range(by, layer) for layer in range(1, depth + 1)]
                lines.append(({"arm": arm, "step": step, "loss": loss}, cells))
    return _by_layer(shown, "ranges", lines, "")


def _range(by: Mapping[tuple[str, int], float | None], layer: int) -> Value:
    ends = [by.get((name, layer)) for name in ("range_lo", "range_hi")]
    keys = (f"layer_{layer}_lo", f"layer_{layer}_hi")
    if None in ends:
        return Cell(MISSING, dict.fromkeys(keys, MISSING), "missing")
    text = " … ".join(write(end, ".3g") for end in ends if end is not None)
    return Cell(text, dict(zip(keys, ends, strict=True)))


def costs(evidence: Evidence) -> Table:
    """Make the speed and the memory of each arm, beside the paper's (appendix D)."""
    shown, base = evidence.shown, "residual_adamw"
    printed = {cost.arm: cost for cost in evidence.paper.costs}
    ours = evidence.counterparts()
    theirs = {arm: each for each, arm in ours.items()}
    speeds = {arm: shown.speed(arm) for arm in shown.arms}
    ours_base, paper_base = speeds.get(ours.get(base, "")), printed[base]
    pairs: list[tuple[str | None, str | None]] = [
        (a, theirs.get(a)) for a in shown.arms
    ]
    pairs += [(None, each) for each in printed if each not in ours]
    absent = Cell(NOT_PRINTED, {}, "quiet")
    lines = []
    for arm, each in pairs:
        speed, cost = speeds.get(arm or ""), printed.get(each or "")
        line: dict[str, Value] = {
            "arm": arm,
            "steps_per_second": speed,
            "speed_ratio": speed / ours_base if speed and ours_base else None,
        }
        for name in ("state", "peak"):
            held = shown.memory(arm or "", f"{name}_bytes")
            line[f"{name}_mb"] = None if held is None else held / 1e6
        theirs_here: Mapping[str, Value] = (
            {
                "paper_arm": view.arm_label(cost.arm),
                "paper_steps_per_second": cost.steps_per_second,
                "paper_speed_ratio": cost.steps_per_second
                / paper_base.steps_per_second,
                "paper_mb": cost.memory_mb,
            }
            if cost
            else dict.fromkeys(
                (
                    "paper_arm",
                    "paper_steps_per_second",
                    "paper_speed_ratio",
                    "paper_mb",
                ),
                absent,
            )
        )
        lines.append({**line, **theirs_here})
    return table("costs", lines)


def calibrators(shown: View) -> Table:
    """Make the increase of loss by calibrator, where there are several."""
    at = rows_lib.COMMON.index("calibrator")
    views = {
        setting[at] or MISSING: view.of(shown.results, setting)
        for setting in view.settings(shown.results)
        if setting[:at] + setting[at + 1 :]
        == shown.setting[:at] + shown.setting[at + 1 :]
    }
    lines = []
    for precision, arm in itertools.product(shown.precisions, shown.arms):
        if precision.act_bits is None or len(views) < 2:
            continue
        found = {
            name: each.increase(arm, each.precision(precision.name), "branch")
            for name, each in views.items()
        }
        known = [e.value for e in found.values() if e.value is not None]
        if len(known) > 1:
            cells = {
                n: best(e, n) if e.value == min(known) else e for n, e in found.items()
            }
            lines.append({"precision": precision.name, "arm": arm, **cells})
    return table("calibrators", lines, [[name, name, "signed"] for name in views])


# --- Beside the paper ---------------------------------------------------------------


def beside(evidence: Evidence, weight_bits: int | None) -> Table:
    """Make our loss increase and the paper's change of accuracy, row by row."""
    shown, paper = evidence.shown, evidence.paper
    ours = evidence.counterparts()
    printed = {None: "table4", 16: "table3"}.get(weight_bits, "table2")
    quantized = [
        p for p in shown.precisions if p.act_bits and p.weight_bits == weight_bits
    ]
    reference = [shown.reference] if shown.reference else []
    theirs = dict.fromkeys(row.arm for row in paper.tables["table2"])
    lines = []
    for precision, each in itertools.product([*reference, *quantized], theirs):
        arm, full = ours.get(each), precision == shown.reference
        table_of = "table4" if full else printed
        there = paper.scores(each, precision.name, table_of).get("avg")
        first = paper.scores(each, "FP", table_of).get("avg")
        absent = Cell(NOT_PRINTED, {}, "quiet")
        change: Value = absent
        if there is not None and first is not None:
            change = Cell("reference", {}, "quiet") if full else round(there - first, 6)
        lines.append(
            {
                "precision": precision.name,
                "arm": arm,
                "our_loss": shown.loss(arm, precision, "branch") if arm else None,
                **{
                    f"our_loss_increase_{s}": _increase(
                        shown, arm, precision, s, "our_"
                    )
                    for s in view.PLACEMENTS
                },
                "paper_arm": view.arm_label(each),
                "paper_accuracy": absent if there is None else there,
                "paper_accuracy_change": change,
            }
        )
    return table(
        "beside_the_paper",
        lines,
        suffix="_a" if weight_bits is None else f"_w{weight_bits}",
        stands_for=PAPER_TABLES.get(weight_bits, ()),
        weights="weights FP" if weight_bits is None else f"{weight_bits}-bit weights",
        params=paper.num_params / 1e6,
    )


def printed(paper: Paper, name: str) -> Table:
    """Make one of the paper's Tables 1 to 4, as printed."""
    rows = paper.tables[name]
    order = list(dict.fromkeys(row.spec for row in rows))
    lines = [
        {
            "precision": "BF16" if row.spec == "FP" else row.spec,
            "arm": row.arm,
            **row.scores,
        }
        for row in sorted(rows, key=lambda row: order.index(row.spec))
    ]
    more = [*([task, task, ".3f"] for task in paper.tasks), ["avg", "average", ".3f"]]
    return table(
        "paper",
        lines,
        more,
        suffix=f"_{name}",
        stands_for=(f"Table {name.removeprefix('table')}",),
        is_printed=True,
        title=paper.titles[name],
        params=paper.num_params / 1e6,
        steps=paper.num_steps,
        source=paper.source,
        license=paper.license,
    )


def paper_kurtosis(evidence: Evidence) -> Table:
    """Make the kurtosis that the paper states, and ours at the same relative depth."""
    shown, paper = evidence.shown, evidence.paper
    ours, lines = evidence.counterparts(), []
    for entry in paper.kurtosis:
        arm = ours.get(entry.arm)
        found = shown.by_layer(arm, view.STREAM, "excess_kurtosis") if arm else []
        layer = (
            view.same_depth(entry.layer, paper.num_layers, len(found))
            if found
            else None
        )
        lines.append(
            {
                "arm": arm,
                "paper_arm": view.arm_label(entry.arm),
                "paper_layer": entry.layer,
                "where": entry.where,
                "paper_excess_kurtosis": entry.excess_kurtosis,
                "our_layer": layer,
                "our_excess_kurtosis": found[layer - 1] if layer else None,
                "our_loss": shown.full_loss(arm) if arm else None,
            }
        )
    return table("paper_kurtosis", lines, steps=paper.num_steps)


# --- Accuracy on tasks --------------------------------------------------------------

# What records of two arms share where they answer to the same question.
_ASKED = [*rows_lib.Setting._fields, "seed"]


def tasks(evidence: Evidence) -> list[Table]:
    """Make for each set of questions a table of the arms, and of their differences."""
    shown, found = evidence.shown, []
    ranks = {arm: rank for rank, arm in enumerate(shown.arms)}
    every = shown.results.tasks.sort(
        pl.col("arm").replace_strict(ranks, default=0), maintain_order=True
    )
    asked = every["questions"].unique(maintain_order=True).to_list()
    for number, questions in enumerate(asked, start=1):
        suffix = "" if number == 1 else f"_{number}"
        mine = every.filter(pl.col("questions").eq_missing(pl.lit(questions)))
        records = [
            _Asked(lines.row(0, named=True), {x["task"]: x for x in lines.to_dicts()})
            for lines in mine.partition_by("arm", *_ASKED, maintain_order=True)
        ]
        found.append(_accuracies(evidence, records, suffix))
        if mine["arm"].n_unique() > 1:
            found.append(_differences(shown, records, suffix))
    return found


class _Asked(NamedTuple):
    """What one record of tasks.jsonl says, and what it says of each task."""

    row: dict[str, Any]
    scores: dict[str, dict[str, Any]]


def _label(row: Mapping[str, Any], shown: View) -> str:
    """Return the precision, and what of the setting is not the page's."""
    if row["spec"] == "FP":
        return f"FP, {row['compute_dtype']}"
    pairs = zip(rows_lib.COMMON, shown.setting, strict=True)
    parts = [row[name] or MISSING for name, common in pairs if row[name] != common]
    draw = row["calibration_seed"]
    return ", ".join([row["spec"], *parts, *([f"draw {draw}"] if draw else [])])


def _by_precision(lines: Sequence[Line]) -> list[Line]:
    """Put lines of one precision together, in the order in which they were asked."""
    order = list(dict.fromkeys(line["precision"] for line in lines))
    return sorted(lines, key=lambda line: order.index(line["precision"]))


def _named(row: Mapping[str, Any], shown: View) -> dict[str, Value]:
    stream = row["stream"] or ""
    return {
        "precision": _label(row, shown),
        "arm": row["arm"],
        "seed": row["seed"],
        "stream": view.PLACEMENTS.get(stream, stream),
    }


def _accuracies(evidence: Evidence, records: Sequence[_Asked], suffix: str) -> Table:
    shown, paper = evidence.shown, evidence.paper
    theirs = {arm: each for each, arm in evidence.counterparts().items()}
    first = records[0]
    averaged = first.row["avg"] is not None
    lines = []
    for row, scores in records:
        print_of = paper.scores(theirs.get(row["arm"]), row["spec"])
        line = _named(row, shown)
        for task, score in scores.items():
            level = score["chance"], score["se"]
            line[task] = _accuracy(task, score["accuracy"], level, print_of)
        if averaged:
            collapsed = (row["avg_collapsed"] or [None])[-1], row["avg_se"]
            line["avg"] = _accuracy("avg", row["avg"], collapsed, print_of)
            line["avg_without_boolq"] = row["avg_without_boolq"]
            ends = row["avg_change_lo"], row["avg_change_hi"]
            known = None not in ends
            line["avg_change"] = Estimate(row["avg_change"], *ends) if known else None
        lines.append(line)
    more = [[t, f"{t}, {score['split']}", ".3f"] for t, score in first.scores.items()]
    if averaged:
        more += [
            ["avg", "average", ".3f"],
            ["avg_without_boolq", "without boolq", ".3f"],
            ["avg_change", "change from FP", "signed"],
        ]
    counted = {
        task: MISSING if (n := score["num_documents"]) is None else f"{n:,.0f}"
        for task, score in first.scores.items()
    }
    widths = {
        row["weight_bits"]
        for row, _ in records
        if averaged and row["act_bits"] is not None
    }
    return table(
        "tasks",
        [*_by_precision(lines), *_levels(first)],
        more,
        suffix=suffix,
        stands_for=[
            n for w, names in PAPER_TABLES.items() if w in widths for n in names
        ],
        documents=", ".join(f"{task} {count}" for task, count in counted.items()),
        truncated=sum(score["num_truncated"] or 0 for score in first.scores.values()),
        params=paper.num_params / 1e6,
    )


def _accuracy(
    name: str,
    value: float | None,
    guessed: tuple[float | None, float | None],
    theirs: Mapping[str, float],
) -> Value:
    """Return ours, marked where it may be guessed (level, error), and the paper's."""
    if value is None:
        return None
    level, error = guessed
    text, data = f"{value:.3f}", {name: value, f"{name}_se": error}
    if name == "avg" and error is not None:
        text += f" ± {error:.3f}"
    is_guessed = level is not None and error is not None and value < level + 2 * error
    text += " †" if is_guessed else ""
    if name in theirs:
        text += f" / {theirs[name]:.3f}"
        data[f"paper_{name}"] = theirs[name]
    return Cell(text, data, "quiet" if is_guessed else "")


def _levels(asked: _Asked) -> list[Line]:
    """Return what guessing has and, of the eight tasks, what collapsed models have."""
    names = ("arm", "seed", "stream", "avg_change")
    blank: dict[str, Value] = dict.fromkeys(names, Cell("", {}))
    chance = {task: score["chance"] for task, score in asked.scores.items()}
    if asked.row["avg"] is None:
        return [{"precision": "chance", **blank, **chance}]
    others = [value for task, value in chance.items() if task != "boolq"]
    whole = None if None in others else float(np.mean(others))
    averages = {"avg": asked.row["avg_chance"], "avg_without_boolq": whole}
    levels: list[Line] = [{"precision": "chance", **blank, **chance, **averages}]
    ends = [asked.scores["boolq"][f"constant_{end}"] for end in ("lo", "hi")]
    collapsed = asked.row["avg_collapsed"] or (None, None)
    return levels + [
        {**levels[0], "precision": "collapsed", "boolq": boolq, "avg": average}
        for boolq, average in zip(ends, collapsed, strict=True)
    ]


def _differences(shown: View, records: Sequence[_Asked], suffix: str) -> Table:
    names = list(records[0].scores)
    averaged = ["avg"] if records[0].row["avg"] is not None else []
    right = [_right(asked, shown) for asked in records]
    lines = []
    for one, other in itertools.combinations(range(len(records)), 2):
        before, after = records[one].row, records[other].row
        if before["arm"] == after["arm"] or any(before[f] != after[f] for f in _ASKED):
            continue
        found = {
            task: right[other][task] - right[one][task]
            for task in names
            if task in right[one] and task in right[other]
        }
        strata = {task: [found[task]] if task in found else [] for task in names}
        whole = list(found.values()) if len(found) == len(names) else []
        strata |= dict.fromkeys(averaged, whole)
        line = _named(after, shown) | {"against": view.arm_label(before["arm"])}
        for key, items in strata.items():
            mean = float(np.mean([np.mean(each) for each in items])) if items else None
            ends = bootstrap.stratified_interval(items) if items else (None, None)
            line[key] = Estimate(mean, *ends)
        lines.append(line)
    more = [[task, task, "signed"] for task in names]
    more += [["avg", "average", "signed"] for _ in averaged]
    return (
        table("tasks_arms", _by_precision(lines), more, suffix="")
        if not suffix
        else (
            dataclasses.replace(
                table("tasks_arms", _by_precision(lines), more),
                name=f"tasks{suffix}_arms",
            )
        )
    )


def _right(asked: _Asked, shown: View) -> dict[str, np.ndarray]:
    """Return by task 1.0 for each document answered rightly; empty without the file."""
    row = asked.row
    found: dict[str, list[float]] = {}
    for run in shown.runs(row["arm"]):
        if run.seed == row["seed"] and row["items"]:
            for item in rows_lib.lines(run.home / "quantize" / "items" / row["items"]):
                primary = asked.scores[item["task"]]["primary"]
                found.setdefault(item["task"], []).append(
                    float(item.get(primary) is True)
                )
    return {task: np.array(right) for task, right in found.items()}


# --- Claims and theory --------------------------------------------------------------


def claims(judged: Sequence[Any]) -> list[Table]:
    """Make one line a claim, and one line a number that a verdict rests on."""
    lines = [
        {
            "claim": one.id,
            "statement": one.statement,
            "where": one.where,
            "verdict": one.judgement.verdict,
            "why": one.judgement.why,
            "missing": Cell(
                text := "; ".join(one.judgement.missing) or "nothing", {"missing": text}
            ),
            "numbers": Cell(
                "; ".join(f"{n.what}: {number_text(n)}" for n in one.judgement.numbers)
                or "none",
                {"numbers": len(one.judgement.numbers)},
            ),
            "scale": str(one.scale),
        }
        for one in judged
    ]
    numbers = [
        {
            "claim": one.id,
            "number": n.what,
            "value": Cell(number_text(n), _number_data(n)),
        }
        for one in judged
        for n in one.judgement.numbers
    ]
    return [table("claims", lines), table("claims_numbers", numbers)]


def _number_data(number: Number) -> dict[str, Any]:
    ends = {"value": number.value, "lo": number.lo, "hi": number.hi}
    finite = {
        key: NOT_FINITE if x is not None and not math.isfinite(x) else x
        for key, x in ends.items()
    }
    return {**finite, "unit": number.unit, "loss": number.loss}


def number_text(number: Number) -> str:
    """Write a number with its unit, its interval, and the loss beside a kurtosis."""
    if not math.isfinite(number.value):
        return NOT_FINITE

    def form(value: float) -> str:
        if number.unit == "kurtosis":
            return write(value, "kurtosis")
        if number.unit == "nats":
            return write(value, "signed4" if abs(value) < 0.1 else ".3f")
        return write(value, ".2e" if 0 < abs(value) < 1e-3 else ",.3f")

    text = form(number.value)
    if number.lo is not None and number.hi is not None:
        text += f" [{form(number.lo)}, {form(number.hi)}]"
    if number.unit == "kurtosis":
        beside = MISSING if number.loss is None else f"{number.loss:.3f}"
        return f"{text} (loss {beside})"
    return f"{text} {number.unit}".rstrip()


def theory(shown: View) -> Table:
    """Count the checks of `rfq theory` by verdict, the paper's own and ours apart.

    A row says by `source` whether it checks the paper or a correction.
    """
    counted: dict[str, list[str]] = {}
    for row in shown.results.theory:
        ours = row.get("source") == "correction"
        label = "our corrections" if ours else "the paper's statements"
        counted.setdefault(label, []).append(str(row.get("verdict")))
    lines = [
        {
            "source": label,
            "checks": len(found),
            "holds": found.count("holds"),
            "corrected": found.count("holds with a correction"),
            "fails": found.count("does not hold"),
        }
        for label, found in sorted(counted.items(), reverse=True)
    ]
    return table("theory", lines)


# --- Files --------------------------------------------------------------------------


def markdown(made: Table) -> str:
    """Write a table in GitHub's markdown, with its title and caption."""

    def safe(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    body = [
        line(
            f"**{safe(c.text)}**" if c.mark == "best" else safe(c.text)
            for c in made.cells(each)
        )
        for each in made.lines
    ]
    head = line(safe(title) for _, title, _ in made.columns)
    rule = "|" + "---|" * len(made.columns)
    title = f"### {safe(made.title)}"
    return "\n".join([title, "", safe(made.caption), "", head, rule, *body, ""])


def comma_separated(made: Table) -> str:
    """Write a table's numbers in full, one named column each.

    A spreadsheet runs a text that begins with one of = + - @ as a formula, so that
    such a text gets an apostrophe before it.
    """
    records = [
        {key: value for found in made.cells(line) for key, value in found.data.items()}
        for line in made.lines
    ]
    columns = list(dict.fromkeys(name for record in records for name in record))

    def safe(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(
            ("=", "+", "-", "@", "\t", "\r")
        ):
            return f"'{value}"
        return MISSING if value is None else value

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe, columns))
    writer.writerows([safe(record.get(name)) for name in columns] for record in records)
    return out.getvalue()
