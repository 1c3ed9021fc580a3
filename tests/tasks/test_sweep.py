"""The sweep asks tasks: rows as the paper's tables, few programs, nothing twice."""

import json
import shutil
import signal
import statistics

import numpy as np
import pytest

from rfq import cli, metrics, ptq, sharding, tasks
from rfq.errors import Preempted
from rfq.report import accuracy, evidence, load, view
from rfq.tasks import ask, commonsense, questions
from rfq.tasks import task as task_lib
from tests import tiny
from tests.tasks.documents import DOCUMENTS


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in DOCUMENTS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows[:6])
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tasks_dir):
    """A run after the paper's sweep: experiment, directory, rows, what was compiled."""
    given = tiny.experiment(tiny.data(tmp_path_factory))
    given = tiny.with_fields(
        given, "tasks", names=("all",), specs=tiny.PAPER_SPECS, dir=str(tasks_dir)
    )
    given = tiny.with_fields(given, "quantize", streams=("branch",))
    run_dir = shutil.copytree(
        tiny.trained(tmp_path_factory), tmp_path_factory.mktemp("asked") / "run"
    )
    with pytest.MonkeyPatch.context() as patch, tiny.compilations() as compiled:
        tiny.quick(patch)
        rows = ask.run(given, run_dir)
    return given, run_dir, rows, compiled


def test_all_19_settings_share_six_programs(asked):
    *_, rows, compiled = asked
    assert len(rows) == len(tiny.PAPER_SPECS) == 19
    # Three lengths, with and without quantized activations.
    assert sum("answer" in name for name in compiled) <= 6


def test_rows_are_the_papers_with_what_stands_behind_them(asked):
    _, run_dir, rows, _ = asked
    stored = tiny.rows(run_dir / "quantize" / "tasks.jsonl", drop=())
    assert [row["spec"] for row in stored] == list(tiny.PAPER_SPECS)
    for row in rows:
        accuracies = [row[name] for name in commonsense.TASKS]
        assert row["avg"] == pytest.approx(np.mean(accuracies))
        without = [row[n] for n in commonsense.TASKS if n != "boolq"]
        assert row["avg_without_boolq"] == pytest.approx(np.mean(without))
        for name, score in row["scores"].items():
            assert row[name] == score[tasks.TASKS[name].primary]
            assert score["split"] == "other"
            assert score["change_lo"] <= score["change"] <= score["change_hi"]
        assert row["avg_change_lo"] <= row["avg_change"] <= row["avg_change_hi"]
    full = rows[0]
    assert full["avg_change"] == full["avg_change_lo"] == full["avg_change_hi"] == 0
    assert any(row["avg_change"] != 0 for row in rows)
    # Long texts of bytes do not fit in 16 tokens.
    assert full["scores"]["boolq"]["num_truncated"] > 0
    assert full["scores"]["hellaswag"]["num_windowed"] > 0


def test_a_sweep_told_to_end_keeps_its_rows_and_goes_on(asked, tmp_path, monkeypatch):
    given, run_dir, rows, _ = asked
    run_dir = tiny.copied(run_dir, tmp_path)
    (run_dir / "quantize" / "tasks.jsonl").unlink()
    given = tiny.with_fields(given, "tasks", specs=tiny.PAPER_SPECS[:2])
    append = metrics.append

    def told(path, row):
        append(path, row)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
        patch.setattr(metrics, "append", told)
        ask.run(given, run_dir)
    assert "1 of 2 settings are saved" in str(caught.value)
    for ours, theirs in zip(ask.run(given, run_dir), rows, strict=False):
        assert ours["scores"] == theirs["scores"]


def test_dumped_items_give_the_accuracies_again(asked):
    _, run_dir, rows, _ = asked
    folder = run_dir / "quantize" / "items"
    for row in rows[:3]:
        (path,) = folder.glob(f"{row['spec']}-float32-paper-branch-min_max-0-*.jsonl")
        items = tiny.rows(path)
        for name, score in row["scores"].items():
            mine = [item for item in items if item["task"] == name]
            right = [float(item["acc"]) for item in mine]
            assert np.mean(right) == pytest.approx(score["acc"])
            # As lm-eval has it: of the sample's deviation.
            error = statistics.stdev(right) / len(right) ** 0.5
            assert score["acc_se"] == pytest.approx(error)
            examples = task_lib.examples(name, tasks.TASKS[name], DOCUMENTS[name][:6])
            again = task_lib.correct(examples, [i["loglikelihoods"] for i in mine])
            assert (
                again.acc_norm.mean() == [i["acc_norm"] for i in mine].count(True) / 6
            )


def test_asking_again_computes_nothing(asked, monkeypatch):
    given, run_dir, rows, _ = asked
    monkeypatch.setattr(ptq.Sweep, "answer", lambda *_: pytest.fail("asked again"))
    again = ask.run(given, run_dir)
    assert [row["avg"] for row in again] == [row["avg"] for row in rows]


def test_a_share_of_the_documents_is_spread_over_the_file(asked):
    given, *_ = asked
    mesh = sharding.make_mesh(config=given.sharding)
    every = questions.load(given, mesh).tasks
    few = questions.load(tiny.with_fields(given, "tasks", max_documents=3), mesh).tasks
    for name, share in few.items():
        assert share.examples == [every[name].examples[i] for i in (0, 2, 4)]
        assert share.split == every[name].split
    more = questions.load(tiny.with_fields(given, "tasks", max_documents=60), mesh)
    assert more.digest == questions.load(given, mesh).digest


@pytest.mark.slow
def test_the_command_asks_and_generates(asked, tasks_dir, tmp_path, capsys):
    _, run_dir, *_ = asked
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    where = ["--tasks", "all", "--tasks-dir", str(tasks_dir)]
    few = ["--specs", "FP", "--max-documents", "2", "--calibrators", "absmax"]
    assert cli.main(["evaluate", str(run_dir), *where, *few]) == 0
    assert "acc_norm of 2 documents" in capsys.readouterr().out
    assert cli.main(["evaluate", str(run_dir), *where, "--specs", "FP"]) == 0
    said = capsys.readouterr().out
    assert "without boolq" in said
    assert "requests lost the beginning of their context" in said
    argv = ["generate", str(run_dir), "the un", "--max-new-tokens", "4"]
    assert cli.main([*argv, "--spec", "W8A8"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the un")


def test_what_cannot_be_asked_is_refused(asked, tmp_path, capsys):
    _, run_dir, *_ = asked
    for argv, said in (
        (["--tasks", "arc"], "--tasks='arc' is unknown"),
        (["--tasks", "all", "--tasks-dir", str(tmp_path)], "'arc_c' has no file"),
        (["--specs", "W8A8"], "--specs, --tasks-dir and --max-documents go with"),
        (["--tasks", "all", "--max-documents", "0"], "must be >= 1; None is all"),
        (["--streams", "both"], "quantize.streams='both' is unknown"),
        (["--tasks", "cloze", "--specs", "8bit"], "'8bit' is not in WnAm notation"),
    ):
        assert cli.main(["evaluate", str(run_dir), *argv]) == 2
        assert said in capsys.readouterr().err


def test_the_report_sets_accuracies_beside_the_papers(asked, tmp_path):
    _, run_dir, rows, _ = asked
    home = tmp_path / "arms" / "residual_adamw" / "seed-0"
    shutil.copytree(run_dir, home)
    shown = view.of(load.read([tmp_path], tmp_path))
    (table,) = accuracy.tasks(evidence.of(shown))
    # Other tests may have asked the run for settings of their own.
    shown_rows = [line for line in table.lines if isinstance(line["arm"], str)]
    assert len(shown_rows) == len(tiny.lines(home / "quantize" / "tasks.jsonl"))
    first = {}
    for cell in table.cells(table.lines[0]):
        first |= cell.data
    assert first["precision"] == "FP, float32"
    assert first["avg"] == rows[0]["avg"]
    assert first["paper_avg"] == 0.449  # Table 1, residual with AdamW in BF16.
