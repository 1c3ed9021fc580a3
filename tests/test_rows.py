"""Records are checked when they are written, and read with one strict schema."""

import json
import math
import pathlib

import pytest

from rfq import metrics, rows
from rfq.errors import InputError

RESULTS = pathlib.Path(__file__).parents[1] / "configs" / "results"
RECORDED = ("demo", "demo_ablation", "demo_calibrators", "demo_weights")


def recorded(name: str = "demo") -> list[dict]:
    """The records of a file of results, with what older ones were silent about."""
    lines = metrics.read(RESULTS / f"{name}.jsonl")
    return [{**rows.DEFAULTS, **line} for line in lines]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_rows_are_rows_and_read_back_whole(name):
    frame = rows.read("rows", RESULTS / f"{name}.jsonl")
    assert dict(frame.schema) == rows.schema("rows")
    for record, line in zip(recorded(name), frame.iter_rows(named=True), strict=True):
        assert rows.make("rows", record) == record
        line["versions"] = json.loads(line["versions"])
        assert line == {field: record[field] for field in line}


def test_a_schema_has_every_field_of_a_setting():
    for kind in ("rows", "sites", "losses", "tasks"):
        assert set(rows.Setting._fields) < set(rows.schema(kind))
    assert set(rows.COMMON) < set(rows.Setting._fields)
    assert set(rows.DEFAULTS) < set(rows.schema("rows"))


def test_an_older_line_has_the_documented_values_and_a_newer_one_is_read(tmp_path):
    younger = recorded()[0]
    older = {k: v for k, v in younger.items() if k not in rows.DEFAULTS}
    del older["relative_error"]
    newer = {**younger, "granularity_of_a_later_version": {"tokens": 1}}
    metrics.rewrite(tmp_path / "rows.jsonl", [older, newer])
    first, second = rows.read("rows", tmp_path / "rows.jsonl").to_dicts()
    assert {name: first[name] for name in rows.DEFAULTS} == rows.DEFAULTS
    assert first["relative_error"] is None
    assert second["loss"] == younger["loss"]


def test_a_number_that_is_not_finite_is_no_missing_one(tmp_path):
    given = {**recorded()[0], "loss": math.nan}
    metrics.append(tmp_path / "rows.jsonl", rows.make("rows", given))
    (line,) = rows.read("rows", tmp_path / "rows.jsonl").to_dicts()
    assert math.isnan(line["loss"])
    assert line["sqnr_db"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", "low"), ("seed", 0.5), ("arm", 3), ("loss", True), ("act_bits", "8")],
)
def test_a_field_of_another_type_is_refused(tmp_path, field, value):
    wrong = {**recorded()[0], field: value}
    with pytest.raises(TypeError, match=field):
        rows.make("rows", wrong)
    metrics.append(tmp_path / "rows.jsonl", wrong)
    with pytest.raises(InputError, match=rf"line 1 .*rows.jsonl: the field '{field}'"):
        rows.read("rows", tmp_path / "rows.jsonl")


@pytest.mark.parametrize("field", rows.KINDS["rows"])
def test_a_record_without_a_field_is_not_written(field):
    given = {k: v for k, v in recorded()[0].items() if k != field}
    with pytest.raises(TypeError, match=field):
        rows.make("rows", given)


def test_a_line_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"line 1 of .* holds a list"):
        rows.read("rows", tmp_path / "rows.jsonl")


def test_a_file_that_is_not_there_is_an_empty_frame(tmp_path):
    for kind in rows.KINDS:
        frame = rows.read(kind, tmp_path / "nothing.jsonl")
        assert frame.is_empty()
        assert dict(frame.schema) == rows.schema(kind)


def test_numbers_by_layer_are_those_of_the_record_whatever_their_name():
    sites = {
        "q": {"of_tomorrow": [1.0, None, 3.0], "counts": [[1, 2], [3, 4]]},
        "head_in": {"relative_error": 0.5},
    }
    frame = rows.frame("measures", [{"step": 5, "loss": 2.0, "sites": sites}])
    found = rows.by_layer(frame).select("step", "site", "statistic", "layer", "value")
    assert found.rows() == [
        (5, "q", "of_tomorrow", 1, 1.0),
        (5, "q", "of_tomorrow", 2, None),
        (5, "q", "of_tomorrow", 3, 3.0),
        (5, "head_in", "relative_error", 1, 0.5),
    ]


def test_a_histogram_is_one_line_a_layer():
    site = {"counts": [[1, 2], [3, 4]], "center": [0.0, 0.1], "scale": [1.0, 2.0]}
    found = rows.histograms([-1.0, 0.0, 1.0], {"q": site, "k": {"rms": [1.0]}})
    assert found["counts"].to_list() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.select("layer", "depth", "scale", "rms").rows() == [
        (1, 2, 1.0, None),
        (2, 2, 2.0, None),
    ]


def test_the_accuracy_of_a_task_is_its_primary_metric():
    score = {"split": "test", "primary": "acc_norm", "acc": 0.2, "acc_norm": 0.4}
    frame = rows.frame("tasks", [{"arm": "a", "scores": {"piqa": score}}])
    (line,) = rows.by_task(frame).select("arm", "task", "accuracy", "split").rows()
    assert line == ("a", "piqa", 0.4, "test")


def test_fixed_columns_say_whose_records_they_are():
    ours = {"arm": "mine", "seed": 3}
    for kind in ("rows", "metrics"):
        found = rows.frame(kind, recorded()[:2], **ours)
        assert found.select("arm", "seed").rows() == [("mine", 3)] * 2
        assert rows.frame(kind, [], **ours).schema == found.schema
