"""The report of the recorded rows: verdicts, numbers and cells as they were noted."""

import json
import pathlib

import pytest

from rfq import metrics
from rfq.report import claims, load, paper, tables, view

RESULTS = pathlib.Path(__file__).parents[2] / "configs" / "results"
FILES = {
    "demo": ("demo",),
    "all": ("demo", "demo_ablation", "demo_weights", "demo_calibrators"),
}
NOTED = json.loads((pathlib.Path(__file__).parent / "data/recorded.json").read_text())


def recorded(name: str, home: pathlib.Path) -> view.View:
    """Reads recorded rows; arms of 12 layers have the names of others in the files."""
    rows = [
        row for file in FILES[name] for row in metrics.read(RESULTS / f"{file}.jsonl")
    ]
    metrics.rewrite(home / "rows.jsonl", rows)
    floors = {"unigram": 5.068, "bigram": 3.349}
    (home / "context.json").write_text(json.dumps({"floors": floors}))
    return view.of(load.read([home], home))


@pytest.mark.parametrize("name", FILES)
def test_verdicts_and_numbers_are_those_that_were_noted(name, tmp_path):
    judged = claims.judge(recorded(name, tmp_path), paper.load())
    for one in judged:
        noted = NOTED[name][one.id]
        assert one.judgement.verdict == noted["verdict"], one
        found = {n.what: [n.value, n.lo, n.hi] for n in one.judgement.numbers}
        assert found.keys() == noted["numbers"].keys()
        for what, numbers in noted["numbers"].items():
            for ours, theirs in zip(found[what], numbers, strict=True):
                close = pytest.approx(theirs or 0.0, rel=1e-9, abs=1e-12)
                assert (ours is None) == (theirs is None) and (ours or 0.0) == close


@pytest.mark.parametrize("name", FILES)
def test_losses_and_increases_are_those_that_were_noted(name, tmp_path):
    made = tables.glance(recorded(name, tmp_path))
    for line in made.lines:
        cells = {k: v for cell in made.cells(line) for k, v in cell.data.items()}
        for key, value in NOTED[f"{name}_glance"][cells["arm"]].items():
            assert cells[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
