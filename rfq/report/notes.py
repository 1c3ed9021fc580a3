"""Sentences computed from the rows: the answer, what to know, and the limits.

Their words are in texts.toml.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from rfq.report import cells, paper, view
from rfq.report.arms import arm_label
from rfq.report.claims import Judged, rounding
from rfq.report.claims.verdict import NEGLIGIBLE
from rfq.report.evidence import Evidence, NotTestable
from rfq.report.tables import GLANCE_SPECS
from rfq.report.view import View


def _say(key: str, **fill: Any) -> str:
    return paper.words()["notes"][key].format(**fill)


def answer(evidence: Evidence) -> str:
    """Answer the question of the page for these runs, in one sentence."""
    try:
        found = [
            rounding.compare_sides(
                evidence, name, stream, evidence.increase, "nats", NEGLIGIBLE
            )
            for name, stream in itertools.product(GLANCE_SPECS, view.PLACEMENTS)
        ]
    except NotTestable as error:
        return _say("no_sides", missing=" and ".join(error.missing))
    sides = [comparison[0] for comparison in found if comparison]
    if not sides:
        return _say("not_quantized")
    won, lost = sides.count(1), sides.count(-1)
    leads = {
        (True, True): "depends",
        (True, False): "yes",
        (False, True): "no",
        (False, False): "no_difference",
    }
    counts = {"of": len(sides), "won": won, "lost": lost, "even": sides.count(0)}
    specs = ", ".join(GLANCE_SPECS)
    if None not in evidence.size:
        specs += f", {evidence.place}"
    return _say(leads[won > 0, lost > 0]) + _say("answer", specs=specs, **counts)


def tally(judged: Iterable[Judged]) -> list[tuple[int, str, str]]:
    """Count the verdicts: how many, in words, and the verdict."""
    counts = collections.Counter(one.judgement.verdict for one in judged)
    tallied = paper.words()["tally"].items()
    return [(counts[v], words, v) for v, words in tallied if counts[v]]


def alerts(shown: View) -> list[str]:
    """Say what a reader must know before any number: lost arms and lost files."""
    found = [
        f"{arm_label(arm)}: {said}."
        for arm in shown.arms
        for said in _alerts(shown, arm)
    ]
    if shown.floor("unigram") is None or shown.floor("bigram") is None:
        found.append(_say("no_floors"))
    return [*found, *shown.results.notes]


def _alerts(shown: View, arm: str) -> Iterator[str]:
    status, loss = shown.facts[arm].status, shown.full_loss(arm).value
    if status == "not finite":
        messages = [run.failed.get("message") for run in shown.runs(arm)]
        yield next(filter(None, messages), _say("not_finite"))
    elif status in ("missing", "unfinished"):
        yield _say(status)
    else:
        if status == "stuck":
            yield _say("stuck", loss=loss, unigram=shown.floor("unigram"))
        broken = shown.results.rows.filter(pl.col("loss").is_nan(), arm=arm)["spec"]
        if len(broken):
            yield _say("broken", specs=", ".join(sorted(set(broken))))
        if not shown.rows.place(arm, shown.reference):
            yield _say("no_rows")
    if shown.skips[arm] == "residual_free":
        both = [
            [shown.increase(arm, p, stream).value for stream in view.PLACEMENTS]
            for p in shown.precisions
        ]
        gaps = [abs(a - b) for a, b in both if a is not None and b is not None]
        if max(gaps, default=0.0) > 1e-4:
            yield _say("unequal", worst=max(gaps))


def limits(shown: View) -> list[str]:
    """Say what runs of this size can and cannot show, computed from them."""
    found = _size(shown), _eight_bits(shown), _placement(shown), _seeds(shown)
    return [*found, _say("units")]


def _size(shown: View) -> str:
    printed = paper.load()
    theirs = printed.setting
    fields = ("num_params", "num_steps", "tokens_seen")
    params, steps, tokens = shown.results.rows.select(pl.col(fields).max()).row(0)
    parts = []
    if params:
        count, share = cells.count_text(params), theirs["num_params"] / params
        parts.append(_say("params", count=count, share=share))
    if steps:
        parts.append(_say("steps", steps=steps, theirs=theirs["num_steps"]))
    if tokens:
        parts.append(_say("tokens", count=cells.count_text(tokens)))
    size = "; ".join(parts) or cells.MISSING
    known = [(arm.kurtosis.value, arm) for arm in shown.facts.values()]
    peaks = [(value, arm) for value, arm in known if value is not None]
    if not peaks:
        return _say("size_alone", size=size)
    value, arm = max(peaks, key=lambda pair: pair[0])
    stated = max(entry["excess_kurtosis"] for entry in printed.kurtosis)
    reach = _say("far" if value < stated / 10 else "near")
    largest, label = cells.write(value, "kurtosis"), arm_label(arm.name)
    fill = {"arm": label, "stated": stated, "reach": reach}
    return _say("size", size=size, largest=largest, **fill)


def _eight_bits(shown: View) -> str:
    found = {
        f"{name}, {arm_label(arm)}, {place}": value
        for name in ("A8", "W8A8")
        for arm in shown.arms
        for stream, place in view.PLACEMENTS.items()
        if (value := shown.increase(arm, name, stream).value) is not None
    }
    if not found:
        return _say("no_eight_bits")
    where = max(found, key=lambda key: found[key])
    name = "eight_bits_pass" if found[where] <= NEGLIGIBLE else "eight_bits_cost"
    return _say(name, cost=cells.signed(found[where]), where=where)


def _placement(shown: View) -> str:
    trained = [name for name, arm in shown.facts.items() if arm.trained]
    for name in ("W8A4", "A4", "W8A6", "A6"):
        ranks = []
        for stream in view.PLACEMENTS:
            every = ((shown.increase(arm, name, stream).value, arm) for arm in trained)
            known = [(value, arm) for value, arm in every if value is not None]
            ranks.append([arm for _, arm in sorted(known, key=lambda pair: pair[0])])
        if len(ranks[0]) > 1 and sorted(ranks[0]) == sorted(ranks[1]):
            first = [arm_label(rank[0]) for rank in ranks]
            said = "one_first" if first[0] == first[1] else "two_first"
            said = "one_ranking" if ranks[0] == ranks[1] else said
            return _say(said, name=name, branch=first[0], in_place=first[1])
    return _say("one_placement")


def _seeds(shown: View) -> str:
    losses = [(arm.loss, name) for name, arm in shown.facts.items()]
    counts = {found.num_seeds for found, _ in losses if found.value is not None}
    spreads = [(e.spread, name) for e, name in losses if e.spread is not None]
    if not spreads:
        return _say("one_seed")
    spread, arm = max(spreads, key=lambda pair: pair[0])
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return _say("seeds", seeds=seeds, spread=spread, arm=arm_label(arm))
