import json

import pytest

from rfq import errors
from rfq.report import load


def test_every_file_of_a_run_is_read(make):
    results = load.load(make(seeds=(0, 1)))
    assert len(results.runs) == 8
    # FP in two types, two weight widths of six activation widths; two placements.
    assert len(results.rows) == 8 * (2 + 2 * 6) * 2
    run = results.runs[0]
    parts = (run.config, run.metrics, run.measures, run.sites, run.statistics, run.done)
    assert all(parts)


def test_a_malformed_line_is_named(make):
    directory = make()
    path = directory / "rows.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:40]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(errors.InputError, match=r"line 7 of .*rows\.jsonl"):
        load.load(directory)


def test_a_line_that_is_not_an_object_is_named(make):
    directory = make()
    with (directory / "rows.jsonl").open("a") as file:
        file.write("[1, 2]\n")
    with pytest.raises(errors.InputError, match="holds a list, not an object"):
        load.load(directory)


def test_a_last_line_cut_by_a_kill_is_left_out_and_said(make):
    directory = make()
    whole = load.load(directory)
    path = directory / "arms" / "residual_adamw" / "seed-0" / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    results = load.load(directory)
    assert len(results.runs[0].metrics) == len(whole.runs[0].metrics) - 1
    assert "cut off" in " ".join(results.notes)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_nothing_to_report_is_one_clear_sentence(tmp_path, name):
    with pytest.raises(errors.InputError, match="rfq compare"):
        load.load(tmp_path / name)


def test_a_runs_own_rows_count_and_rows_jsonl_stands_in_where_there_are_none(make):
    directory = make()
    before = load.load(directory).rows
    own = directory / "arms" / "residual_adamw" / "seed-0" / "quantize" / "rows.jsonl"
    own.write_text(json.dumps({"spec": "W4A4", "loss": 3.5}) + "\n")
    rows = load.load(directory).rows
    mine = [row for row in rows if row["arm"] == "residual_adamw"]
    assert mine == [
        {"arm": "residual_adamw", "seed": 0, "spec": "W4A4", "loss": 3.5},
    ]
    assert len(rows) == len(before) * 3 // 4 + 1


def test_a_directory_of_rfq_train_is_a_run(make):
    home = make() / "arms" / "residual_adamw" / "seed-0"
    config = json.loads((home / "config.json").read_text())
    config["experiment"] |= {"arm": "mine", "seed": 3}
    (home / "config.json").write_text(json.dumps(config))
    alone = home.rename(home.parents[2] / "mine")
    (run,) = load.load(alone).runs
    assert (run.arm, run.seed) == ("mine", 3)
    assert run.metrics and run.measures


def test_a_step_written_twice_by_a_resume_counts_once_and_the_last_wins(make):
    directory = make()
    path = directory / "arms" / "residual_adamw" / "seed-0" / "metrics.jsonl"
    before = load.load(directory).runs[0].metrics
    with path.open("a") as file:
        file.write(json.dumps({"step": 20, "loss": 1.25}) + "\n")
    after = load.load(directory).runs[0].metrics
    assert [r["step"] for r in after] == [r["step"] for r in before]
    assert after[1]["loss"] == 1.25


@pytest.mark.parametrize(
    ("source", "value", "bad"),
    [
        ('{"loss": 3.5}', 3.5, False),
        ('{"loss": null}', None, False),
        ('{"loss": null, "nonfinite": ["loss"]}', None, True),
        ('{"loss": NaN}', None, True),
        ('{"loss": "3.5"}', None, False),
        ("{}", None, False),
    ],
)
def test_a_number_is_finite_or_none_and_never_zero(source, value, bad):
    record = json.loads(source)
    assert load.number(record, "loss") == value
    assert load.nonfinite(record, "loss") is bad
