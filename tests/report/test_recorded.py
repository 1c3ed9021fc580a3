"""The report of the recorded rows: verdicts, numbers and cells as they were noted."""

import json
import pathlib
import statistics

import pytest

from rfq import errors, experiment, metrics
from rfq.commands import report as command
from rfq.report import claims, law, load, render, tables, view

RESULTS = pathlib.Path(__file__).parents[2] / "configs" / "results"
NAMES = (
    *("deep", "demo", "demo_ablation", "demo_calibrators", "demo_seeds"),
    *("demo_weights", "imported", "imported_sites", "norms", "rounding"),
)
FILES = {
    "demo": ["demo.jsonl"],
    "noted": [f"{name}.jsonl" for name in NAMES],
    "every": sorted(path.name for path in RESULTS.glob("*.jsonl")),
}
NOTED = json.loads((pathlib.Path(__file__).parent / "data/recorded.json").read_text())


def views(name: str, home: pathlib.Path) -> list[view.View]:
    """Reads recorded rows as one command does: a view for each data."""
    found = load.read([RESULTS / file for file in FILES[name]], home)
    return [view.of(each) for each in (found, *found.others)]


def said(name: str, home: pathlib.Path) -> tuple[dict, dict]:
    """Verdicts with their numbers, and the numbers of every line of the first table."""
    seen = views(name, home)
    verdicts = {
        one.id: {
            "verdict": one.judgement.verdict,
            "numbers": {n.what: [n.value, n.lo, n.hi] for n in one.judgement.numbers},
        }
        for one in claims.judge(seen)
    }
    lines = {}
    for made in map(tables.glance, seen):
        for line in made.lines:
            cells = {k: v for cell in made.cells(line) for k, v in cell.data.items()}
            lines[cells.pop("arm")] = cells
    return verdicts, lines


def same(ours, noted) -> bool:
    """Says whether nested numbers and words agree, numbers to rounding."""
    if isinstance(noted, dict):
        keys = isinstance(ours, dict) and ours.keys() == noted.keys()
        return keys and all(same(ours[key], noted[key]) for key in noted)
    if isinstance(noted, list):
        return all(same(x, y) for x, y in zip(ours, noted, strict=True))
    if isinstance(noted, float | int) and isinstance(ours, float | int):
        return ours == pytest.approx(noted, rel=1e-9, abs=1e-12)
    return ours == noted


@pytest.mark.parametrize("name", ["demo", "noted"])
def test_verdicts_and_numbers_are_those_that_were_noted(name, tmp_path):
    verdicts, lines = said(name, tmp_path)
    assert verdicts.keys() == set(claims.CLAIMS)
    for ours, noted in ((verdicts, f"{name}"), (lines, f"{name}_glance")):
        assert ours.keys() == NOTED[noted].keys()
        for key, value in ours.items():
            assert same(value, NOTED[noted][key]), (key, value)


def test_every_recorded_row_is_in_one_report(tmp_path):
    seen = views("every", tmp_path)
    counted = {(*row,) for each in seen for row in each.results.rows.select(KEY).rows()}
    lines = [row for file in FILES["every"] for row in metrics.read(RESULTS / file)]
    rows = [row for row in lines if "loss_increase" in row]
    prints = {(row["config_fingerprint"], row["spec"], row["taps"]) for row in rows}
    assert {(key[1], key[2], key[3]) for key in counted} == prints
    homes = {key[:2] for key in counted}
    # One name for each config, whatever the seed, and no run under two names.
    assert len(homes) == len({fingerprint for _, fingerprint in homes})
    assert len({each.results.data for each in seen}) == len(seen) >= 2


KEY = ["arm", "config_fingerprint", "spec", "taps"]


def test_two_fingerprints_of_the_recorded_data_name_the_same_tokens():
    """Runs that were measured under both have the same losses to the last bit."""
    context = json.loads((RESULTS / "context.json").read_text())
    named = context["data_fingerprint"], *context["same_data"]
    losses = [
        {
            tuple(row[name] for name in SAME): row["loss"]
            for file in ("demo.jsonl", "demo_calibrators.jsonl")
            for row in metrics.read(RESULTS / file)
            if row["data_fingerprint"] == data
        }
        for data in named
    ]
    both = losses[0].keys() & losses[1].keys()
    assert len({key[0] for key in both}) == 4
    assert [losses[0][key] for key in both] == [losses[1][key] for key in both]


SAME = ("config_fingerprint", "spec", "stream", "calibrator", "calibration_seed")


def test_configs_beside_the_rows_have_the_fingerprints_that_they_say():
    configs = json.loads((RESULTS / "configs.json").read_text())
    base = experiment.to_dict(experiment.load("demo/residual_adamw"))
    free = {name: base[name] for name in experiment.FREE_SECTIONS}
    for name, described in configs.items():
        made = experiment.from_dict({**free, **described})
        assert experiment.fingerprint(made) == name


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="no rows and no runs"):
        load.read([RESULTS / "bench_optim.jsonl"], tmp_path)


def test_the_report_of_a_file_needs_a_place():
    given = command.Report((RESULTS / "demo.jsonl",))
    with pytest.raises(errors.InputError, match="add --out DIR"):
        command.run(given)


def _drawn(figure, path, out):
    """Points of the arms and of the dotted curves, of all panels."""
    arms, curves = set(), []
    for panel in figure(view.of(load.read([path], out))):
        axes = render.Canvas().add_subplot()
        panel.draw(axes)
        for line in axes.lines:
            points = [*zip(line.get_xdata(), line.get_ydata(), strict=True)]
            if line.get_gid():
                arms |= {(float(x), float(y)) for x, y in points}
            else:
                curves += points
    return arms, curves


def test_the_law_stands_beside_what_was_measured(tmp_path):
    path = RESULTS / "rounding.jsonl"
    drawn, diagonals = _drawn(law.prediction, path, tmp_path)
    rows = [row for row in metrics.read(path) if row.get("predicted_error")]
    assert drawn == {(r["predicted_error"], r["relative_error"]) for r in rows}
    assert len(drawn) > 20
    assert all(x == y for x, y in diagonals) and diagonals


def test_errors_at_the_head_are_counted_in_sites_by_depth(tmp_path):
    path = RESULTS / "deep.jsonl"
    drawn, curve = _drawn(law.depth, path, tmp_path)
    rows = [row for row in metrics.read(path) if row["act_bits"] == 8]
    assert {layers for layers, _ in drawn} == {12.0, 24.0}
    for layers, sites in {
        (row["num_layers"], row["relative_error"] / row["nmse"]) for row in rows
    }:
        assert any(x == layers and y == pytest.approx(sites) for x, y in drawn)
    assert set(curve) == {(0.0, 0.0), (24.0, 96.0)}


def test_a_residual_arm_is_held_against_the_residual_free_one_of_its_depth(tmp_path):
    path = RESULTS / "deep.jsonl"
    drawn, _ = _drawn(law.crossing, path, tmp_path)
    rows = [row for row in metrics.read(path) if row["act_bits"] == 6]
    at = {(row["arm"], row["seed"], row["stream"]): row for row in rows}
    free = [at["residual_free_kl_shampoo", seed, "branch"] for seed in range(3)]
    sites, head, lost = (
        statistics.fmean(row[name] for row in free)
        for name in ("nmse", "relative_error", "loss_increase")
    )
    # In the branch 1/2 + 1/3 + ... + 1/13 of 12 layers' errors arrive.
    arrive = {"branch": sum(1 / n for n in range(2, 14)) / 12, "in_place": 1.0}
    for stream, share in arrive.items():
        row = at["residual_muon", 0, stream]
        x = row["nmse"] / sites * share
        for y in (row["relative_error"] / head, row["loss_increase"] / lost):
            assert any((x, y) == pytest.approx(point) for point in drawn)
    # A model of 24 layers has no residual counterpart there.
    assert len(drawn) == 3 * 2 * 4 * 2
