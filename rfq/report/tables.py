"""Every table of arms and claims as data: lines of values.

`cells` says how values become text. Tables on tasks are in `accuracy`, and those with
the paper's numbers in `beside`.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from rfq.quant import distortion
from rfq.report import estimates, view
from rfq.report.arms import arm_label
from rfq.report.cells import (
    BLANK,
    MISSING,
    Cell,
    Table,
    Value,
    best,
    cell,
    table,
    write,
)
from rfq.report.estimates import Estimate
from rfq.report.evidence import Evidence, Number
from rfq.report.paper import words
from rfq.report.view import Precision, View
from rfq.rows import COMMON

# Where arms begin to differ at a small size, and where the paper's headline stands.
GLANCE_SPECS = ("W8A8", "W8A6", "W8A4")

STATUS_TEXT: Mapping[str, str] = {"ok": "below bigram", "stuck": "stuck near unigram"}
GAMMA = "excess_kurtosis"

# How the layers of a statistic become one number, where it is not the largest.
SUMMARIES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean_share": statistics.fmean,
    "token_cosine": statistics.fmean,
    "negentropy": statistics.fmean,
    "hyvarinen_b": statistics.fmean,
    "isometry_deviation": statistics.median,
    "singular_value_spread": statistics.median,
}


# --- Loss and what quantization costs -----------------------------------------------


def glance(shown: View) -> Table:
    """Make the result in one line an arm: loss, kurtosis, and what few bits cost."""
    specs = [name for name in GLANCE_SPECS if shown.precision(name) is not None]

    def increases(arm: str, name: str) -> Cell:
        """Both placements in one cell, as short as they are clear."""
        both = [
            cell(shown.increase(arm, name, stream), f"{name}_{stream}", "~signed")
            for stream in view.PLACEMENTS
        ]
        mark = next((each.mark for each in both if each.mark), "")
        texts = [each.text for each in both]
        same = mark and texts[0] == texts[1]
        data = {key: value for each in both for key, value in each.data.items()}
        return Cell(texts[0] if same else " /\u00a0".join(texts), data, mark)

    floors = {name: shown.floor(name) for name in ("unigram", "bigram")}
    lines = [
        {
            "arm": arm.name,
            "loss": arm.loss,
            GAMMA: arm.kurtosis,
            **{name: increases(arm.name, name) for name in specs},
        }
        for arm in shown.facts.values()
    ]
    fill: dict[str, Any] = {n: cell(x, "", ".3f").text for n, x in floors.items()}
    return table("glance", lines, [[name, name, ""] for name in specs], **fill)


def _lowest(shown: View, precision: Precision, stream: str) -> str | None:
    """Return the arm whose interval lies below that of every other trained arm."""
    trained = [name for name, arm in shown.facts.items() if arm.trained]
    every = {name: shown.increase(name, precision, stream) for name in trained}
    known = {n: e for n, e in every.items() if e.hi is not None and not e.not_finite}
    for name, found in known.items():
        others = [e.lo or 0.0 for other, e in known.items() if other != name]
        if others and (found.hi or 0.0) < min(others):
            return name
    return None


def increase(
    shown: View, arm: str | None, precision: Precision, stream: str, prefix: str = ""
) -> Value:
    """Return the cell or estimate of an increase; full precision is the reference.

    Without an arm the value is empty. `prefix` begins the name of the CSV's column.
    """
    if (
        arm
        and precision == shown.reference
        and shown.loss(arm, precision).value is not None
    ):
        return Cell("reference", {f"{prefix}loss_increase_{stream}": 0.0}, "quiet")
    return shown.increase(arm, precision, stream) if arm else None


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
                key = f"loss_increase_{stream}"
                found = increase(shown, arm, precision, stream)
                if arm == lowest[stream] and isinstance(found, Estimate):
                    found = best(found, key)
                line[key] = found
                line[f"loss_{stream}"] = shown.loss(arm, precision, stream)
            line["sqnr_db"] = shown.rows.of("sqnr_db", arm, precision)
            if full and shown.loss(arm, precision).value is not None:
                line["sqnr_db"] = Cell("exact", {"sqnr_db": "exact"}, "quiet")
            lines.append(line)
    named = [value or MISSING for value in shown.setting]
    # Where nothing was quantized there is no setting, and this table is the first.
    first = shown.setting not in view.settings(shown.results)[1:]
    setting = [f"{name} {value}" for name, value in zip(COMMON, named, strict=True)]
    suffix = "" if first else "_" + "_".join(named)
    return table("main", lines, suffix=suffix, setting=", ".join(setting))


def weights_cost(evidence: Evidence) -> Table:
    """Say whether it matters that weights are quantized too (appendix E.5)."""
    shown, lines = evidence.shown, []
    alone = [p.name for p in shown.precisions if p.weight_bits is None and p.act_bits]
    for arm, name, (stream, place), width in itertools.product(
        shown.arms, alone, view.PLACEMENTS.items(), ("W8", "W16")
    ):
        both = evidence.losses(arm, f"{width}{name}", stream)
        for key, before in evidence.losses(arm, name, stream).items():
            if key not in both:
                continue
            gap = estimates.paired({key: before}, {key: both[key]})
            known = {"difference": gap, "differs": "yes" if gap.clear else "no"}
            lost = dict.fromkeys(known, float("nan"))
            line = {"arm": arm, "seed": key[0], "spec": f"{width}{name} − {name}"}
            values = known if gap.value is not None else lost
            lines.append({**line, "stream": place, **values})
    return table("weights_cost", lines)


def calibrators(shown: View) -> Table:
    """Make the increase of loss by calibrator and methods, where there are several."""

    def split(setting: view.Setting) -> tuple[str, dict[str, str | None]]:
        rest = dict(zip(COMMON, setting, strict=True))
        names = rest.pop("calibrator") or MISSING, rest.pop("methods")
        return " + ".join(n for n in names if n and n != "none"), rest

    rest = split(shown.setting)[1]
    alike = [s for s in view.settings(shown.results) if split(s)[1] == rest]
    views = {split(s)[0]: view.of(shown.results, s) for s in alike}
    lines = []
    for precision, arm in itertools.product(shown.precisions, shown.arms):
        if precision.act_bits is None or len(views) < 2:
            continue
        found = {n: v.increase(arm, precision.name, "branch") for n, v in views.items()}
        known = [e.value for e in found.values() if e.value is not None]
        if len(known) > 1:
            least = {n: best(e, n) for n, e in found.items() if e.value == min(known)}
            lines.append({"precision": precision.name, "arm": arm, **found, **least})
    return table("calibrators", lines, [[name, name, "signed"] for name in views])


# --- Training -----------------------------------------------------------------------


def arms(shown: View) -> Table:
    """Say what each arm is, how far it got, and its kurtosis beside its loss."""
    lines = []
    for name, arm in shown.facts.items():
        seconds = [r.done["seconds"] for r in shown.runs(name) if "seconds" in r.done]
        fields = ("num_layers", "width", "num_params", "num_steps", "tokens_seen")
        full = {f: shown.rows.of(f, name, shown.reference) for f in fields}
        lines.append(
            {
                "arm": name,
                "loss": arm.loss,
                "bits_per_byte": shown.rows.of("bits_per_byte", name, shown.reference),
                "status": STATUS_TEXT.get(arm.status, arm.status),
                GAMMA: arm.kurtosis,
                "final_norm_excess_kurtosis": shown.kurtosis(name, view.FINAL),
                "learning_rate": arm.learning_rate,
                # These do not vary by chance.
                **{field: found._replace(spread=None) for field, found in full.items()},
                "skip": arm.skip and arm.skip.replace("_", "-"),
                "optimizer": arm.optimizer and arm_label(arm.optimizer),
                "norm": arm.norm and arm.norm.replace("_", " "),
                "train_seconds": statistics.fmean(seconds) if seconds else None,
            }
        )
    return table("arms", lines)


def equal_cost(shown: View) -> Table:
    """Make Figure 3 as data: losses at the steps and seconds that all arms reached."""
    trained = [name for name, arm in shown.facts.items() if arm.trained]
    limits = {}
    for at in ("step", "seconds"):
        ends = [x for name in trained if (x := shown.last(name, at)) is not None]
        limits[at] = min(ends, default=None)
    within = pl.col("step") <= pl.lit(limits["step"], pl.Float64)
    last = shown.results.measures.filter(within).unique(
        ["arm", "seed"], keep="last", maintain_order=True
    )
    heldout = estimates.of_groups(last, ["arm"], "loss")
    lines = [
        {
            "arm": name,
            "beta": arm.beta,
            "loss_at_steps": shown.training_loss(name, "step", limits["step"]),
            "heldout_at_steps": heldout.get((name,)),
            "loss_at_seconds": shown.training_loss(name, "seconds", limits["seconds"]),
            "loss": arm.loss,
        }
        for name, arm in shown.facts.items()
    ]
    texts = [cell(x, "", ",.0f").text for x in limits.values()]
    return table("equal_cost", lines, steps=texts[0], seconds=texts[1])


def matched_loss(shown: View) -> Table:
    """Make the kurtosis of each arm when it reached the loss that all arms reached."""
    first = pl.DataFrame(
        [(arm, run.seed) for arm in shown.arms for run in shown.runs(arm)[:1]],
        schema={"arm": pl.String, "seed": pl.Int64},
        orient="row",
    )
    trained = [name for name, arm in shown.facts.items() if arm.trained]
    ends = shown.ends.join(first, ["arm", "seed"], how="semi")
    ends = ends.filter(pl.col("arm").is_in(trained)).unique("arm")["loss"].to_list()
    target = max(ends) if len(ends) > 1 else None
    reached = (
        shown.results.measures.join(first, ["arm", "seed"], how="semi")
        .filter(pl.col("loss") <= pl.lit(target, pl.Float64))
        .group_by("arm")
        .agg(pl.col("seed", "step", "loss").get(pl.col("step").arg_min()))
    )
    peaks = shown.peaks.filter(statistic=GAMMA)
    lines = []
    for arm in shown.arms:
        line: dict[str, Value] = {"arm": arm}
        for found in reached.filter(arm=arm).iter_rows(named=True):
            at = peaks.filter(arm=arm, seed=found["seed"], step=found["step"])
            by = dict(at.select("site", "value").rows())
            sites = [by[site] for site in view.PAPER_SITES if site in by]
            line |= {"step": found["step"], "loss": found["loss"], **by}
            line["paper_sites"] = max(sites, default=None)
        lines.append(line)
    text = MISSING if target is None else f"{target:.3f} nats"
    return table("matched_loss", lines, reached=text)


# --- By layer -----------------------------------------------------------------------


def by_layer(
    name: str,
    lines: Iterable[tuple[dict[str, Value], Sequence[Value]]],
    form: str,
    suffix: str = "",
) -> Table:
    """Make a table of values by layer; what is shallower than the rest ends early."""
    found = list(lines)
    depth = max((len(values) for _, values in found), default=0)
    keys = [f"layer_{i}" for i in range(1, depth + 1)]
    whole = [
        {**line, **dict(itertools.zip_longest(keys, values, fillvalue=BLANK))}
        for line, values in found
    ]
    more = [[key, f"L{i}", form] for i, key in enumerate(keys, 1)]
    return table(name, whole, more, suffix=suffix)


def kurtosis(shown: View, sites: Sequence[str], suffix: str = "") -> Table:
    """Make the excess kurtosis by site and layer at the end of training."""
    every = list(itertools.product(sites, shown.facts.values()))
    found = [shown.by_layer(arm.name, site, GAMMA) for site, arm in every]
    depth = max(map(len, found), default=0)
    lines = []
    for (site, arm), values in zip(every, found, strict=True):
        label = Cell(f"{view.SITES[site]} ({site})", {"site": site})
        line = {"site": label, "arm": arm.name, "loss": arm.loss}
        lines.append((line, values or [None] * (1 if site == view.FINAL else depth)))
    return by_layer("kurtosis", lines, "~kurtosis", suffix)


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
    by = estimates.of_groups(new, ["arm", "site", "statistic", "layer"], "value")
    lines = []
    for (arm, site, name), values in estimates.by_layer(by).items():
        loss = shown.facts[arm].loss
        lines.append(
            ({"statistic": name, "site": site, "arm": arm, "loss": loss}, values)
        )
    return by_layer("statistics", lines, "~.4g")


def ranges(shown: View) -> Table:
    """Make the extremes of the stream by layer at every measured step (E.2)."""
    lines = []
    kept = shown.results.measures.filter(
        pl.col("statistic").is_in(["range_lo", "range_hi"]), site=view.STREAM
    )
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            mine = kept.filter(arm=arm, seed=run.seed)
            steps = mine.partition_by("step", "loss", as_dict=True, maintain_order=True)
            for (step, loss), found in steps.items():
                by = found.pivot("statistic", index="layer", values="value")
                ends = by.select("layer", "range_lo", "range_hi").rows()
                line: dict[str, Any] = {"arm": arm, "step": step, "loss": loss}
                lines.append((line, [_range(*each) for each in ends]))
    return by_layer("ranges", lines, "")


def _range(layer: int, lo: float | None, hi: float | None) -> Value:
    keys = (f"layer_{layer}_lo", f"layer_{layer}_hi")
    if lo is None or hi is None:
        return Cell(MISSING, dict.fromkeys(keys, MISSING), "missing")
    text = " … ".join(write(end, ".3g") for end in (lo, hi))
    return Cell(text, dict(zip(keys, (lo, hi), strict=True)))


# --- Noise, structure and weights ---------------------------------------------------


def noise(shown: View) -> Table:
    """Make what loses the sites of each arm: clipped values, dead sites, rounding."""
    lines = [
        {"arm": arm, "spec": precision.name, **_noise(shown, arm, precision)}
        for precision in shown.precisions
        if precision.act_bits is not None
        for arm in shown.arms
        if shown.sites.place(arm, precision)
    ]
    return table("noise", lines)


def _noise(shown: View, arm: str, precision: Precision) -> dict[str, Value]:
    found = shown.sites.lines(arm, precision)
    draw = pl.struct("seed", "calibration_seed")
    first = found.filter(draw == draw.first()).drop_nulls("value")
    at = first.pivot("statistic", index=["site", "layer"], values="value")

    def of(name: str) -> pl.Series:
        return at[name] if name in at.columns else pl.Series([], dtype=pl.Float64)

    pairs = zip(of("clip_noise_fraction"), of("dead_fraction"), strict=False)
    causes = [distortion.cause(*pair) for pair in pairs if None not in pair]
    kinds = ("clipping", "dead", "rounding")
    counts = {name: causes.count(name) if causes else None for name in kinds}
    fields = ("clip_fraction", "dead_fraction", "sqnr_db", "bulk_sqnr_db")
    averages: dict[str, Any] = {name: of(name).mean() for name in fields}
    heads = {}
    for stream in view.PLACEMENTS:
        head = shown.sites.layers(arm, precision, "head_in", "relative_error", stream)
        heads[f"relative_error_{stream}"] = head[0] if head else None
    codes: Any = of("levels_used").min()
    return {**counts, **averages, "levels_used": codes, **heads}


def _summaries(values: Mapping[str, Sequence[float | None]]) -> dict[str, Value]:
    known = {name: [x for x in each if x is not None] for name, each in values.items()}
    return {n: SUMMARIES.get(n, max)(found) for n, found in known.items() if found}


def structure(shown: View) -> Table:
    """Say who is heavy-tailed: a channel, a token, or every value."""
    lines = []
    for arm in shown.facts.values():
        for run in shown.runs(arm.name)[:1]:
            mine = shown.results.statistics.filter(
                arm=arm.name, seed=run.seed, site=view.STREAM
            )
            by = _summaries(dict(mine.group_by("statistic").agg("value").rows()))
            lines.append({"arm": arm.name, **by, "loss": arm.loss.value})
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


# --- Claims and theory --------------------------------------------------------------


def claims(judged: Sequence[Any]) -> list[Table]:
    """Make one line a claim, and one line a number that a verdict rests on."""
    lines, numbers = [], []
    for one in judged:
        found = one.judgement
        texts = [(n, number_text(n)) for n in found.numbers]
        said = "; ".join(f"{n.what}: {text}" for n, text in texts) or "none"
        lines.append(
            {
                "claim": one.id,
                "statement": one.statement,
                "where": one.where,
                "verdict": found.verdict,
                "why": found.why,
                "missing": "; ".join(found.missing) or "nothing",
                "numbers": Cell(said, {"numbers": len(texts)}),
                "scale": str(one.scale),
            }
        )
        numbers += [
            {"claim": one.id, "number": n.what, "value": Cell(text, _number_data(n))}
            for n, text in texts
        ]
    return [table("claims", lines), table("claims_numbers", numbers)]


def _number_data(number: Number) -> dict[str, Any]:
    ends = {"value": number.value, "lo": number.lo, "hi": number.hi}
    finite = {
        key: cell(x, key, "g").data[key] if x is not None else None
        for key, x in ends.items()
    }
    return {**finite, "unit": number.unit, "loss": number.loss}


def number_text(number: Number) -> str:
    """Write a number with its unit, its interval, and the loss beside a kurtosis."""
    form = number.unit if number.unit in ("kurtosis", "nats") else "any"
    found = Estimate(number.value, number.lo, number.hi)
    finite = math.isfinite(number.value)
    text = cell(found if finite else number.value, "", form).text
    if not finite:
        return text
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
    verdicts = {
        "holds": "holds",
        "corrected": "holds with a correction",
        "fails": "does not hold",
    }
    lines = [
        {
            "source": label,
            "checks": len(found),
            **{name: found.count(verdict) for name, verdict in verdicts.items()},
        }
        for label, found in sorted(counted.items(), reverse=True)
    ]
    return table("theory", lines)
