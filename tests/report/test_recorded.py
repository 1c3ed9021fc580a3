"""The report of the recorded rows: verdicts, numbers and cells as they were noted."""

import json
import pathlib
import statistics

import pytest

from rfq import errors, metrics
from rfq.commands import report as command
from rfq.report import claims, evidence, law, load, render, tables, view

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
    judged = claims.judge([recorded(name, tmp_path)])
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


def test_files_of_rows_are_read_as_they_are(tmp_path):
    files = [RESULTS / f"demo{name}.jsonl" for name in ("", "_seeds", "_ablation")]
    found = load.read(files, tmp_path)
    homes = set(found.rows.select("arm", "seed", "num_layers").unique().rows())
    free, adamw = "residual_free_kl_shampoo", "residual_adamw"
    assert {row for row in homes if row[0] == free} == {(free, s, 6) for s in range(3)}
    assert {row for row in homes if row[0] == adamw} == {
        (adamw, s, 6) for s in range(3)
    }
    assert {row for row in homes if row[2] == 12} == {
        ("residual_free_adamw_num_layers_12", 0, 12),
        (f"{free}_num_layers_12", 0, 12),
    }
    assert len(found.rows) == sum(len(metrics.read(file)) for file in files)


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="no file of rows"):
        load.read([RESULTS / "bench_optim.jsonl"], tmp_path)


def test_the_report_of_a_file_needs_a_place():
    given = command.Report((RESULTS / "demo.jsonl",))
    with pytest.raises(errors.InputError, match="add --out DIR"):
        command.run(given)


def _drawn(figure, path, out):
    """Points of the arms and of the dotted curves, of all panels."""
    arms, curves = set(), []
    for panel in figure(view.of(load.read([path], out))):
        axes = render.Canvas().add_subplot()
        panel.draw(axes)
        for line in axes.lines:
            points = [*zip(line.get_xdata(), line.get_ydata(), strict=True)]
            if line.get_gid():
                arms |= {(float(x), float(y)) for x, y in points}
            else:
                curves += points
    return arms, curves


def test_the_law_stands_beside_what_was_measured(tmp_path):
    path = RESULTS / "rounding.jsonl"
    drawn, diagonals = _drawn(law.prediction, path, tmp_path)
    rows = [row for row in metrics.read(path) if row.get("predicted_error")]
    assert drawn == {(r["predicted_error"], r["relative_error"]) for r in rows}
    assert len(drawn) > 20
    assert all(x == y for x, y in diagonals) and diagonals


def test_errors_at_the_head_are_counted_in_sites_by_depth(tmp_path):
    path = RESULTS / "deep.jsonl"
    drawn, curve = _drawn(law.depth, path, tmp_path)
    rows = [row for row in metrics.read(path) if row["act_bits"] == 8]
    assert {layers for layers, _ in drawn} == {12.0, 24.0}
    for layers, sites in {
        (row["num_layers"], row["relative_error"] / row["nmse"]) for row in rows
    }:
        assert any(x == layers and y == pytest.approx(sites) for x, y in drawn)
    assert set(curve) == {(0.0, 0.0), (24.0, 96.0)}


def test_a_residual_arm_is_held_against_the_residual_free_one_of_its_depth(tmp_path):
    path = RESULTS / "deep.jsonl"
    drawn, _ = _drawn(law.crossing, path, tmp_path)
    rows = [row for row in metrics.read(path) if row["act_bits"] == 6]
    at = {(row["arm"], row["seed"], row["stream"]): row for row in rows}
    free = [at["residual_free_kl_shampoo", seed, "branch"] for seed in range(3)]
    sites, head, lost = (
        statistics.fmean(row[name] for row in free)
        for name in ("nmse", "relative_error", "loss_increase")
    )
    # In the branch 1/2 + 1/3 + ... + 1/13 of 12 layers' errors arrive.
    arrive = {"branch": sum(1 / n for n in range(2, 14)) / 12, "in_place": 1.0}
    for stream, share in arrive.items():
        row = at["residual_muon", 0, stream]
        x = row["nmse"] / sites * share
        for y in (row["relative_error"] / head, row["loss_increase"] / lost):
            assert any((x, y) == pytest.approx(point) for point in drawn)
    # A model of 24 layers has no residual counterpart there.
    assert len(drawn) == 3 * 2 * 4 * 2
