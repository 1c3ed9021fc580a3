import dataclasses
import json
import statistics

import pytest

from rfq.report import load, view


def shown(directory):
    return view.of(load.load(directory))


def rewrite(directory, keep=lambda row: True, change=lambda row: row):
    """Writes rows.jsonl again, without some rows or with others changed."""
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [change(dict(row)) for row in rows if keep(row)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def test_seeds_give_mean_spread_and_the_hull_of_their_intervals():
    rows = [
        {"x": 1.0, "lo": 0.5, "hi": 1.5},
        {"x": 2.0, "lo": 1.9, "hi": 2.1},
        {"x": 4.0, "lo": 3.0, "hi": 6.0},
    ]
    found = view.estimate(rows, "x", interval=("lo", "hi"))
    assert found.value == pytest.approx(7 / 3)
    assert (found.lo, found.hi) == (0.5, 6.0)
    assert found.spread == pytest.approx(statistics.stdev([1, 2, 4]))
    assert found.num_seeds == 3


def test_one_seed_has_no_spread_and_an_absent_end_no_interval():
    found = view.estimate([{"x": 1.0, "lo": 0.5}], "x", interval=("lo", "hi"))
    assert found.spread is None
    assert found.hi is None


def test_a_seed_that_is_not_finite_is_said_beside_the_mean_of_the_others():
    found = view.estimate([{"x": 1.0}, {"x": None, "nonfinite": ["x"]}], "x")
    assert (found.value, found.not_finite) == (1.0, True)


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        ("residual_free_kl_shampoo", "residual-free KL-Shampoo"),
        ("residual_adamw", "residual AdamW"),
        ("residual_free_muon_no_temperature", "residual-free Muon no temperature"),
        ("gated", "gated"),
    ],
)
def test_labels_of_arms(arm, label):
    assert view.arm_label(arm) == label


def test_increases_are_against_float32_not_against_the_trained_type(make):
    directory = make()
    reference = shown(directory).reference
    assert reference is not None
    assert reference.compute_dtype == "float32"


def test_a_placement_not_evaluated_is_the_other_one_only_without_a_skip(make):
    directory = make()
    rewrite(directory, keep=lambda row: row["stream"] != "in_place")
    found = shown(directory)
    precision = found.precision("W8A4")
    free = [
        found.increase("residual_free_muon", precision, s).value for s in view.STREAMS
    ]
    assert free[0] == free[1] is not None
    assert found.increase("residual_adamw", precision, "in_place").value is None


def test_of_a_row_written_twice_the_last_counts(make):
    directory = make()
    found = shown(directory)
    rows = found.rows("residual_adamw", found.precision("W8A4"), "branch")
    with (directory / "rows.jsonl").open("a") as file:
        file.write(json.dumps({**rows[0], "loss_increase": 0.125}) + "\n")
    found = shown(directory)
    precision = found.precision("W8A4")
    assert found.increase("residual_adamw", precision, "branch").value == 0.125


@pytest.mark.parametrize(
    ("loss", "status"),
    [(3.4, "ok"), (3.9, "above bigram"), (5.29, "stuck"), (6.2, "stuck")],
)
def test_status_against_the_floors(make, arms, loss, status):
    # Floors of the synthetic data: unigram 5.301, bigram 3.702.
    arms["residual_adamw"] = dataclasses.replace(arms["residual_adamw"], loss=loss)
    assert shown(make(arms=arms)).status("residual_adamw") == status


def test_status_of_an_arm_that_is_not_there_or_blew_up(make, arms):
    del arms["residual_free_muon"]
    directory = make(arms=arms)
    rewrite(
        directory,
        keep=lambda row: row["arm"] != "residual_kl_shampoo",
        change=lambda row: (
            {**row, "loss": None, "nonfinite": ["loss"]}
            if row["arm"] == "residual_adamw"
            else row
        ),
    )
    run = directory / "arms" / "residual_kl_shampoo" / "seed-0"
    (run / "done.json").unlink()
    found = shown(directory)
    assert found.status("residual_free_muon") == "missing"
    assert found.status("residual_adamw") == "not finite"
    assert found.status("residual_kl_shampoo") == "unfinished"


def test_settings_are_never_mixed_and_the_papers_comes_first(make):
    directory = make()
    with (directory / "rows.jsonl").open("a") as file:
        row = {"arm": "residual_adamw", "seed": 0, "spec": "W8A4", "stream": "branch"}
        row |= {"weight_bits": 8, "act_bits": 4, "loss_increase": 9.0}
        for taps, calibrator in (("full", "min_max"), ("paper", "mse")):
            other = {**row, "taps": taps, "calibrator": calibrator}
            file.write(json.dumps(other) + "\n")
    results = load.load(directory)
    found = view.settings(results)
    assert found[0] == ("paper", "min_max")
    assert len(found) == 3
    first = view.View(results=results, setting=found[0])
    precision = first.precision("W8A4")
    assert first.increase("residual_adamw", precision, "branch").value != 9.0
