import csv
import io
import json

import pytest

from rfq.report import dynamics, load, paper, tables, view


def shown(directory):
    return view.of(load.load(directory))


def records(table):
    return list(csv.DictReader(io.StringIO(tables.comma_separated(table))))


def by_arm(table):
    return {record["arm"]: record for record in records(table)}


def test_losses_are_compared_at_the_steps_and_seconds_that_all_reached(make):
    directory = make()
    found = shown(directory)
    rows = by_arm(dynamics.equal_cost_table(found, paper.load()))
    # The fastest arm ends at 79 s; another is then not yet at its end.
    slow, fast = rows["residual_free_kl_shampoo"], rows["residual_free_muon"]
    assert fast["loss_at_seconds"] == fast["loss_at_steps"]
    assert float(slow["loss_at_seconds"]) != float(slow["loss_at_steps"])
    assert slow["heldout_at_steps"] != "missing"
    assert slow["beta"] == "missing"


def test_losses_at_equal_cost_have_the_spread_of_their_seeds(make):
    one, two = (
        by_arm(dynamics.equal_cost_table(shown(make(seeds=seeds)), paper.load()))
        for seeds in ((0,), (0, 1))
    )
    found = two["residual_adamw"]
    for name in ("loss_at_steps", "loss_at_seconds", "loss"):
        assert float(found[f"{name}_sd"]) > 0
        assert found[f"{name}_seeds"] == "2"
        assert f"{name}_sd" not in one["residual_adamw"]


def test_ranges_stand_by_layer_and_step_and_old_runs_have_none(make):
    directory = make()
    rows = records(dynamics.ranges_table(shown(directory)))
    assert len(rows) == 4 * 9
    last = [row for row in rows if row["arm"] == "residual_adamw"][-1]
    assert (last["step"], float(last["layer_1_hi"])) == ("800.0", 4.0)
    assert float(last["layer_1_lo"]) == pytest.approx(-18.9)
    for path in directory.glob("arms/*/seed-0/measures.jsonl"):
        path.write_text(path.read_text().replace("range_lo", "other"))
    assert records(dynamics.ranges_table(shown(directory))) == []


def test_costs_stand_beside_the_papers_and_unknown_bytes_are_missing(make):
    table = dynamics.costs_table(shown(make()), paper.load())
    rows = by_arm(table)
    adamw, kl = rows["residual_adamw"], rows["residual_kl_shampoo"]
    # 800 steps in 80 s and in 96 s.
    assert float(adamw["steps_per_second"]) == pytest.approx(10.0)
    assert float(kl["speed_ratio"]) == pytest.approx(80 / 96)
    assert float(kl["paper_speed_ratio"]) == pytest.approx(1.56 / 4.77)
    assert float(adamw["state_mb"]) == pytest.approx(3.942144)
    assert {row["peak_mb"] for row in rows.values()} == {"missing"}
    soap = next(r for r in records(table) if r["paper_arm"] == "residual-free SOAP")
    assert (soap["arm"], soap["steps_per_second"]) == ("missing", "missing")
    assert float(soap["paper_steps_per_second"]) == 0.9


def test_calibrators_stand_side_by_side_where_there_are_several(make):
    directory = make()
    assert dynamics.calibrators_table(shown(directory)).lines == []
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    better = [
        {**row, "calibrator": "mse", "loss_increase": 0.5 * row["loss_increase"]}
        for row in rows
        if row["spec"] == "W8A4"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *better)))
    table = dynamics.calibrators_table(shown(directory))
    assert [line.group for line in table.lines] == ["W8A4"] * 4
    for line in table.lines:
        found = {cell.mark: cell for cell in line.cells[2:]}
        assert found["best"].data["mse"] == pytest.approx(found[""].data["min_max"] / 2)
