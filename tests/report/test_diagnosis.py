"""The tables of why: read from a real run, and shown false where the run is edited."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from rfq import metrics, report
from rfq.report import diagnosis, load, tables, view
from tests import tiny


@pytest.fixture
def directory(tmp_path_factory, tmp_path) -> pathlib.Path:
    home = tmp_path / "arms" / "tiny" / "seed-0"
    shutil.copytree(tiny.quantized(tmp_path_factory), home)
    return tmp_path


def _texts(table: tables.Table) -> list[list[str]]:
    assert all(len(line.cells) == len(table.header) for line in table.lines)
    return [[cell.text for cell in line.cells] for line in table.lines]


def _home(directory: pathlib.Path) -> pathlib.Path:
    return directory / "arms" / "tiny" / "seed-0" / "quantize"


def test_the_page_shows_them(directory):
    page = report.run(load.load(directory)).read_text(encoding="utf-8")
    shown = view.of(load.load(directory))
    for make in (
        diagnosis.noise_table,
        diagnosis.structure_table,
        diagnosis.weights_table,
        diagnosis.weights_cost_table,
    ):
        assert make(shown).title in page


def test_noise_has_a_line_for_each_quantized_setting(directory):
    table = diagnosis.noise_table(view.of(load.load(directory)))
    lines = _texts(table)
    assert [line[1] for line in lines] == ["W8A8", "W2A3", "A8", "A4"]
    for line in lines:
        # Four sites in two layers, each lost in one way.
        assert sum(map(int, line[2:5])) == 8
        assert tables.MISSING not in line


def _edit_sites(directory, change):
    path = _home(directory) / "sites.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    metrics.rewrite(path, [change(record) for record in records])


def test_without_its_fields_a_cause_is_missing_not_zero(directory):
    def change(record):
        for site in record["sites"].values():
            site.pop("clip_noise_fraction", None)
        return record

    _edit_sites(directory, change)
    for line in _texts(diagnosis.noise_table(view.of(load.load(directory)))):
        assert line[2:5] == [tables.MISSING] * 3


def test_causes_pair_the_fractions_of_one_layer(directory):
    def change(record):
        for site in record["sites"].values():
            if "dead_fraction" in site:
                # The first layer's noise is unknown, the second is dead.
                site["clip_noise_fraction"] = [None, 0.0]
                site["dead_fraction"] = [0.0, 1.0]
        return record

    _edit_sites(directory, change)
    for line in _texts(diagnosis.noise_table(view.of(load.load(directory)))):
        assert line[2:5] == ["0", "4", "0"]


def test_noise_is_shown_of_one_placement_alone(directory):
    full = diagnosis.noise_table(view.of(load.load(directory)))
    path = _home(directory) / "sites.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    metrics.rewrite(path, [r for r in records if r["stream"] == "in_place"])
    shown = view.of(load.load(directory))
    alone = diagnosis.noise_table(shown)
    assert len(alone.lines) == len(full.lines) == 4
    if shown.skip("tiny") == "residual":
        assert {line[-2] for line in _texts(alone)} == {tables.MISSING}


def test_structure_is_that_of_the_stream(directory):
    (line,) = diagnosis.structure_table(view.of(load.load(directory))).lines
    (found,) = metrics.read(_home(directory) / "statistics.json")
    numbers = found["sites"]["attn_norm_in"]
    data = {key: value for cell in line.cells for key, value in cell.data.items()}
    assert data["excess_kurtosis"] == max(numbers["excess_kurtosis"])
    assert data["negentropy"] == pytest.approx(np.mean(numbers["negentropy"]))
    assert set(data) == {"arm", "loss", *diagnosis.STRUCTURE}


def test_weights_are_summarized_over_matrices(directory):
    (line,) = diagnosis.weights_table(view.of(load.load(directory))).lines
    (found,) = metrics.read(_home(directory) / "statistics.json")
    assert len(found["weights"]) == 6
    worst = max(max(w["excess_kurtosis"]) for w in found["weights"].values())
    assert line.cells[1].data["excess_kurtosis"] == worst


def test_what_weights_add_is_paired_over_sequences(directory):
    (branch, in_place) = diagnosis.weights_cost_table(
        view.of(load.load(directory))
    ).lines
    texts = [cell.text for cell in branch.cells]
    assert texts[2:4] == ["W8A8 − A8", "branch"]
    assert in_place.cells[3].text == "in place"
    rows = metrics.read(_home(directory) / "losses.jsonl")
    losses = {(r["spec"], r["stream"]): np.asarray(r["losses"]) for r in rows}
    expected = losses["W8A8", "branch"] - losses["A8", "branch"]
    data = branch.cells[4].data
    assert data["difference"] == pytest.approx(expected.mean())
    assert data["difference_lo"] < data["difference"] < data["difference_hi"]


def test_a_constant_shift_differs_and_a_bad_loss_is_said(directory):
    path = _home(directory) / "losses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["spec"] == "W8A8":
            row["losses"] = [x + 1.0 for x in row["losses"]]
        if row["stream"] == "in_place" and row["spec"] == "A8":
            row["losses"][0] = None
    metrics.rewrite(path, rows)
    branch, in_place = _texts(
        diagnosis.weights_cost_table(view.of(load.load(directory)))
    )
    assert branch[-1] == "yes"
    assert in_place[4:] == [tables.NOT_FINITE] * 2
