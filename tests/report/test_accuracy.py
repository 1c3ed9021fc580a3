"""Accuracies stand beside the paper's, beside chance, and arm against arm."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest

from rfq import report, tasks
from rfq.report import accuracy, load, paper, tables, view
from rfq.tasks import questions, scoring
from rfq.tasks import task as task_lib
from tests.tasks.documents import DOCUMENTS

ARMS = ("residual_adamw", "residual_kl_shampoo", "residual_free_kl_shampoo")


def asked(names: tuple[str, ...]) -> questions.Questions:
    found = {
        name: questions.Asked(
            "validation",
            task_lib.examples(name, tasks.TASKS[name], DOCUMENTS[name]),
            [],
        )
        for name in names
    }
    return questions.Questions(
        tasks=found, plan=scoring.Plan([], []), digest="abc", seq_len=64
    )


def answers(given: questions.Questions, arm: str) -> scoring.Answers:
    """The first arm says the first choice, the second the right one, the third not."""
    scores = []
    for found in given.tasks.values():
        for example in found.examples:
            wrong = (example.gold + 1) % len(example.choices)
            said = dict(zip(ARMS, (0, example.gold, wrong), strict=True))[arm]
            scores += [0.0 if i == said else -1e6 for i in range(len(example.choices))]
    return scoring.Answers(np.array(scores), np.zeros(len(scores), bool))


def compared(folder: pathlib.Path, names: tuple[str, ...]) -> list[tables.Table]:
    """The tables of a compare directory whose arms answered in full precision."""
    given = asked(names)
    for arm in ARMS:
        home = folder / "arms" / arm / "seed-0" / "quantize"
        (home / "items").mkdir(parents=True)
        said = answers(given, arm)
        row = {
            **{"spec": "FP", "compute_dtype": "float32", "stream": "branch"},
            **{"questions": "abc", "items": "FP.jsonl"},
            **questions.summarize(given, said, said),
        }
        items = questions.items(given, said)
        for path, rows in (("tasks.jsonl", [row]), ("items/FP.jsonl", items)):
            text = "".join(json.dumps(each) + "\n" for each in rows)
            (home / path).write_text(text)
    return accuracy.accuracy_tables(view.of(load.load(folder)), paper.load())


def data(line: tables.Line) -> dict:
    return {key: value for cell in line.cells for key, value in cell.data.items()}


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> list[tables.Table]:
    return compared(tmp_path_factory.mktemp("eight"), questions.GROUPS["all"])


def test_each_task_stands_beside_the_papers(eight):
    (adamw, kl, free), header = eight[0].lines[:3], eight[0].header
    # Table 1 of the paper, BF16.
    assert data(adamw)["paper_arc_c"] == 0.257
    assert data(kl)["paper_hellaswag"] == 0.385
    assert data(free)["paper_winogrande"] == 0.511
    assert data(free)["paper_avg"] == 0.435
    cells = dict(zip(header, kl.cells, strict=True))
    assert cells["hellaswag, validation"].text == "1.000 / 0.385"
    assert cells["average"].text == "1.000 ± 0.000 / 0.452"
    for table in eight:
        assert {len(line.cells) for line in table.lines} == {len(table.header)}


def test_what_guessing_reaches_is_marked_and_shown(eight):
    header = eight[0].header
    adamw, kl, free, chance, lo, hi = eight[0].lines
    marked = {
        arm: {t for t, c in zip(header, line.cells, strict=True) if "†" in c.text}
        for arm, line in zip(ARMS, (adamw, kl, free), strict=True)
    }
    assert marked["residual_kl_shampoo"] == set()
    assert "boolq, validation" in marked["residual_adamw"]
    assert "average" in marked["residual_free_kl_shampoo"]
    golds = [document["label"] for document in DOCUMENTS["boolq"]]
    no = golds.count(0) / len(golds)
    assert [data(line)["boolq"] for line in (chance, lo, hi)] == [0.5, no, 1 - no]
    # Seven chances do not change between the levels, so that the eighth is an eighth.
    levels = [data(line)["avg"] for line in (chance, lo, hi)]
    np.testing.assert_allclose(np.diff(levels), [(no - 0.5) / 8, (1 - 2 * no) / 8])


def test_differences_between_arms_are_over_documents(eight):
    table = eight[1]
    found = {(d["arm"], d["against"]): d for d in map(data, table.lines)}
    named = dict(zip(ARMS, map(view.arm_label, ARMS), strict=True))
    assert len(found) == 3
    rows = dict(zip(ARMS, map(data, eight[0].lines), strict=False))
    for (arm, against), line in found.items():
        before = next(a for a in ARMS if named[a] == against)
        for key in (*questions.GROUPS["all"], "avg"):
            expected = rows[arm][key] - rows[before][key]
            np.testing.assert_allclose(line[key], expected, atol=1e-12)
            assert line[f"{key}_lo"] <= line[key] <= line[f"{key}_hi"]
    # One is always right; the first choice is right now and then, and never the third.
    assert found[ARMS[1], named[ARMS[0]]]["avg_lo"] > 0
    worst = found[ARMS[2], named[ARMS[1]]]
    assert worst["avg_lo"] == worst["avg_hi"] == -1


def test_without_the_items_a_difference_is_missing(tmp_path):
    compared(tmp_path, ("arc_c",))
    (tmp_path / "arms" / ARMS[0] / "seed-0/quantize/items/FP.jsonl").unlink()
    again = accuracy.accuracy_tables(view.of(load.load(tmp_path)), paper.load())
    values = [data(line)["arc_c"] for line in again[1].lines]
    assert values[:2] == [tables.MISSING] * 2
    assert isinstance(values[2], float)


def test_some_of_the_tasks_have_no_average(tmp_path):
    found, pairs = compared(tmp_path, ("arc_c", "piqa"))
    assert [found.name, pairs.name] == ["tasks", "tasks_arms"]
    assert found.header[-2:] == ("arc_c, validation", "piqa, validation")
    assert data(found.lines[0])["paper_piqa"] == 0.653
    assert pairs.header[-1] == "piqa"
    assert [line.cells[0].text for line in found.lines][3:] == ["chance"]


def _edited(folder: pathlib.Path, change) -> list[tables.Table]:
    """The tables once `change` has edited the first arm's row."""
    compared(folder, questions.GROUPS["all"])
    path = folder / "arms" / ARMS[0] / "seed-0/quantize/tasks.jsonl"
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row) + "\n")
    return accuracy.accuracy_tables(view.of(load.load(folder)), paper.load())


def test_what_is_not_recorded_is_missing_and_never_zero(tmp_path):
    def forget(row):
        del row["avg_se"], row["avg_collapsed"]
        for name in ("se", "chance", "num_documents"):
            del row["scores"]["arc_c"][name]

    (table, _) = _edited(tmp_path, forget)
    cells = dict(zip(table.header, table.lines[0].cells, strict=True))
    assert "±" not in cells["average"].text
    assert "†" not in cells["average"].text + cells["arc_c, validation"].text
    assert cells["average"].data["avg_se"] is None
    first = next(csv.DictReader(io.StringIO(tables.comma_separated(table))))
    assert (first["avg_se"], first["arc_c_se"]) == (tables.MISSING, tables.MISSING)
    assert "arc_c missing" in table.caption
    chance = data(next(line for line in table.lines if line.group == "levels"))
    assert chance["avg_without_boolq"] == chance["arc_c"] == tables.MISSING


def test_another_calibration_is_named_beside_the_precision(tmp_path):
    def quantized(row):
        row |= {"spec": "W8A8", "taps": "paper", "calibrator": "min_max"}

    _edited(tmp_path, quantized)
    path = tmp_path / "arms" / ARMS[0] / "seed-0/quantize/tasks.jsonl"
    row = json.loads(path.read_text())
    other = {**row, "calibrator": "mse", "calibration_seed": 2}
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    table, *_ = accuracy.accuracy_tables(view.of(load.load(tmp_path)), paper.load())
    labels = [line.cells[0].text for line in table.lines if line.arm == ARMS[0]]
    assert labels == ["W8A8", "W8A8, mse, draw 2"]


@pytest.mark.slow
def test_the_page_has_each_table_once(tmp_path):
    compared(tmp_path, ("arc_c", "piqa"))
    page = report.run(load.load(tmp_path)).read_text()
    assert "missing: no accuracy on tasks" not in page
    for name in ("tasks", "tasks_arms"):
        assert page.count(f'id="table-{name}"') == 1, name
