"""Accuracies stand beside the paper's, beside chance, and arm against arm."""

import csv
import io
import json
import pathlib
import re

import numpy as np
import pytest

from rfq import tasks as tasks_lib
from rfq.report import accuracy, arms, cells, evidence, load, page, view
from rfq.tasks import questions, scoring
from rfq.tasks import task as task_lib
from tests.tasks.documents import DOCUMENTS

ARMS: tuple[str, ...] = (
    "residual_adamw",
    "residual_kl_shampoo",
    "residual_free_kl_shampoo",
)


def asked(names: tuple[str, ...]) -> questions.Questions:
    found = {
        name: questions.Asked(
            "validation",
            task_lib.examples(name, tasks_lib.TASKS[name], DOCUMENTS[name]),
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


def compared(folder: pathlib.Path, names: tuple[str, ...]) -> list[cells.Table]:
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
    return made(folder, folder)


def made(folder: pathlib.Path, out: pathlib.Path) -> list[cells.Table]:
    shown = view.of(load.read([folder], out))
    return list(accuracy.tasks(evidence.of(shown)))


def data(table: cells.Table) -> list[dict]:
    """The named numbers of each line."""
    return [
        {key: value for cell in table.cells(line) for key, value in cell.data.items()}
        for line in table.lines
    ]


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> list[cells.Table]:
    return compared(tmp_path_factory.mktemp("eight"), questions.GROUPS["all"])


def test_each_task_stands_beside_the_papers(eight):
    adamw, kl, free = data(eight[0])[:3]
    # Table 1 of the paper, BF16.
    assert adamw["paper_arc_c"] == 0.257
    assert kl["paper_hellaswag"] == 0.385
    assert free["paper_winogrande"] == 0.511
    assert free["paper_avg"] == 0.435
    cells = eight[0].cells(eight[0].lines[1])
    texts = dict(zip([c[0] for c in eight[0].columns], cells, strict=True))
    assert texts["hellaswag"].text == "1.000 / 0.385"
    assert texts["avg"].text == "1.000 ± 0.000 / 0.452"


def test_the_page_shows_what_no_arm_reached(tmp_path):
    compared(tmp_path, questions.GROUPS["all"])
    text = page.run(load.read([tmp_path], tmp_path)).read_text(encoding="utf-8")
    (table,) = re.findall(r'id="table-tasks".*?</table>', text, re.S)
    assert table.count("<tr") == 1 + len(ARMS) + 3
    for name in ("chance", "collapsed"):
        assert f">{name}</td>" in table


def test_what_guessing_reaches_is_marked_and_shown(eight):
    marked = [
        {key for cell in eight[0].cells(line) if "†" in cell.text for key in cell.data}
        for line in eight[0].lines
    ]
    assert "boolq" in marked[0]
    assert marked[1] == set()
    assert "avg" in marked[2]
    golds = [document["label"] for document in DOCUMENTS["boolq"]]
    no = golds.count(0) / len(golds)
    levels = data(eight[0])[3:]
    assert [line["boolq"] for line in levels] == [0.5, no, 1 - no]
    # Seven chances do not change between the levels, so that the eighth is an eighth.
    averages = [line["avg"] for line in levels]
    np.testing.assert_allclose(np.diff(averages), [(no - 0.5) / 8, (1 - 2 * no) / 8])


def test_differences_between_arms_are_over_documents(eight):
    found = {(d["arm"], d["against"]): d for d in data(eight[1])}
    named = dict(zip(ARMS, map(arms.arm_label, ARMS), strict=True))
    assert len(found) == 3
    rows = dict(zip(ARMS, data(eight[0]), strict=False))
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


def test_a_report_written_elsewhere_has_the_differences_between_arms(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    pair = compared(here, ("arc_c",))[1]
    assert all(isinstance(line["arc_c"], float) for line in data(pair))
    assert data(made(here, there)[1]) == data(pair)


def test_without_the_items_a_difference_is_missing(tmp_path):
    compared(tmp_path, ("arc_c",))
    (tmp_path / "arms" / ARMS[0] / "seed-0/quantize/items/FP.jsonl").unlink()
    values = [line["arc_c"] for line in data(made(tmp_path, tmp_path)[1])]
    assert values[:2] == [cells.MISSING] * 2
    assert isinstance(values[2], float)


def test_what_is_not_recorded_is_missing_and_never_zero(tmp_path):
    compared(tmp_path, questions.GROUPS["all"])
    path = tmp_path / "arms" / ARMS[0] / "seed-0/quantize/tasks.jsonl"
    row = json.loads(path.read_text())
    del row["avg_se"], row["avg_collapsed"]
    for name in ("se", "chance", "num_documents"):
        del row["scores"]["arc_c"][name]
    path.write_text(json.dumps(row) + "\n")
    table = made(tmp_path, tmp_path)[0]
    first = next(csv.DictReader(io.StringIO(cells.comma_separated(table))))
    assert (first["avg_se"], first["arc_c_se"]) == (cells.MISSING, cells.MISSING)
    assert "arc_c missing" in table.caption
