"""Every table of arms, claims and lemmas as data: lines of values.

`cells` says how values become text. Tables on training and its cost are in `training`,
those on tasks in `accuracy`, and those with the paper's numbers in `beside`.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rfq import rows as rows_lib
from rfq.quant import distortion
from rfq.report import view
from rfq.report.cells import (
    MISSING,
    NOT_FINITE,
    Cell,
    Column,
    Table,
    Value,
    best,
    cell,
    table,
    write,
)
from rfq.report.evidence import Evidence, Number
from rfq.report.paper import words
from rfq.report.view import Estimate, Precision, View
from rfq.stats import bootstrap

# Where arms begin to differ at a small size, and where the paper's headline stands.
GLANCE_SPECS = ("W8A8", "W8A6", "W8A4")

STATUS_TEXT: Mapping[str, str] = {"ok": "below bigram", "stuck": "stuck near unigram"}


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


def increase(
    shown: View, arm: str | None, precision: Precision, stream: str, prefix: str = ""
) -> Value:
    """Return the cell or estimate of an increase; full precision is the reference.

    Without an arm the value is empty. `prefix` begins the name of the CSV's column.
    """
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
                found = increase(shown, arm, precision, stream)
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
    # Where nothing was quantized there is no setting, and this table is the first.
    first = shown.setting not in view.settings(shown.results)[1:]
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


def by_layer(
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
    return by_layer(shown, "kurtosis", lines, "~kurtosis", suffix)


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
    return by_layer(shown, "statistics", lines, "~.4g")


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
