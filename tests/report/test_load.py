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


def test_rows_of_single_runs_stand_in_for_rows_that_are_not_joined_yet(make):
    directory = make()
    (directory / "rows.jsonl").unlink()
    results = load.load(directory)
    assert len(results.rows) == 4 * 28
    assert "rows.jsonl is absent" in results.notes[0]


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
