"""A file cut at any byte: the same command ends with the uninterrupted run's rows."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from rfq import ptq, train
from rfq.tasks import ask
from tests import tiny
from tests.tasks.documents import DOCUMENTS

NUM_PLACES = 20
SPECS = ("FP", "A8", "A4")


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    tiny.quick(monkeypatch)


def _places(path: pathlib.Path) -> list[int]:
    """Seeded sizes; one cuts off everything, one a line feed and one nothing."""
    size = path.stat().st_size
    rng = np.random.default_rng(len(path.name))
    return [0, size - 1, size, *rng.integers(1, size, NUM_PLACES - 3).tolist()]


def _cut(path: pathlib.Path, size: int) -> None:
    with path.open("rb+") as file:
        file.truncate(size)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed before it could say that it had come to its end."""
    given = tiny.experiment(tiny.data(tmp_path_factory))
    given = tiny.with_fields(given, "log", keep_checkpoints=9)
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny.quick(patch)
        train.run(given, run_dir)
    (run_dir / "done.json").unlink()
    return given, run_dir


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "measures.jsonl"])
def test_training_goes_on_from_where_its_rows_are_whole(stopped, tmp_path, name):
    given, whole = stopped
    for number, size in enumerate(_places(whole / name)):
        run_dir = shutil.copytree(whole, tmp_path / str(number))
        _cut(run_dir / name, size)
        train.run(given, run_dir)
        for each in ("metrics.jsonl", "measures.jsonl"):
            assert tiny.lines(run_dir / each) == tiny.lines(whole / each), size
        assert (run_dir / "done.json").exists()


def test_a_checkpoint_ahead_of_its_rows_is_not_used(stopped, tmp_path, capsys):
    given, whole = stopped
    run_dir = tiny.copied(whole, tmp_path)
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    # Rows of steps 2 to 8, and a piece of the next: 12 needs rows that are not there.
    _cut(run_dir / "metrics.jsonl", sum(map(len, lines[:4])) + 7)
    train.run(given, run_dir)
    said = capsys.readouterr().out
    assert "(metrics.jsonl has lost its row of step 12)" in said
    assert "resuming at step 8" in said
    assert tiny.lines(run_dir / "metrics.jsonl") == tiny.lines(whole / "metrics.jsonl")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run with all rows of a small grid, and of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in DOCUMENTS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows[:2])
        (folder / f"{name}.jsonl").write_text(text)
    given = tiny.experiment(tiny.data(tmp_path_factory))
    given = tiny.with_fields(given, "quantize", specs=SPECS)
    given = tiny.with_fields(
        given, "tasks", names=("all",), specs=SPECS, dir=str(folder)
    )
    run_dir = tmp_path_factory.mktemp("asked") / "run"
    shutil.copytree(tiny.trained(tmp_path_factory), run_dir)
    with pytest.MonkeyPatch.context() as patch:
        tiny.quick(patch)
        ptq.run(given, run_dir)
        ask.run(given, run_dir)
    return given, run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("rows.jsonl", ptq.run),
        ("sites.jsonl", ptq.run),
        ("losses.jsonl", ptq.run),
        ("tasks.jsonl", ask.run),
    ],
)
def test_a_sweep_fills_in_what_a_file_lost(asked, tmp_path, name, command):
    given, whole = asked
    for number, size in enumerate(_places(whole / "quantize" / name)):
        run_dir = shutil.copytree(whole, tmp_path / str(number))
        _cut(run_dir / "quantize" / name, size)
        command(given, run_dir)
        for path in (whole / "quantize").glob("*.jsonl"):
            again = run_dir / "quantize" / path.name
            assert tiny.lines(again) == tiny.lines(path), size
