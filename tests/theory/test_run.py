"""`rfq theory`: every claim has a row, every correction stands, files are whole."""

import json

import numpy as np
import pytest

from rfq import cli
from rfq.theory import activations, mechanisms, mixing, run, updates
from rfq.theory.check import Estimate

LEMMAS = {f"Lemma {number}" for number in range(1, 15)}
CHEAP = {
    "Definition 1": activations.definition_1,
    "Lemma 6": mixing.lemma_6,
    "Sign of the cross term": updates.sign_of_the_cross_term,
}


def test_every_claim_of_the_paper_is_in_its_table_and_no_correction_is():
    others = {"Definition 1", "Corollary 1", "Theorem 1", "Theorem 2", "Section 4"}
    assert set(run.PAPER) == LEMMAS | others | {"Appendix C.3"}
    assert not set(run.PAPER) & set(run.CORRECTIONS)


# Claim -> how many checks hold, hold with a correction, do not hold.
VERDICTS = {
    "Definition 1": (5, 0, 0),
    "Lemma 1": (2, 0, 0),
    "Lemma 2": (0, 2, 0),
    "Lemma 3": (1, 0, 1),
    "Lemma 4": (2, 0, 1),
    "Theorem 1": (1, 0, 1),
    "Section 4": (2, 0, 2),
    "Lemma 5": (3, 2, 0),
    "Lemma 6": (1, 0, 1),
    "Lemma 7": (3, 3, 0),
    "Corollary 1": (1, 0, 0),
    "Appendix C.3": (7, 1, 0),
    "Lemma 8": (3, 0, 1),
    "Lemma 9": (2, 1, 0),
    "Lemma 10": (0, 2, 1),
    "Lemma 11": (3, 0, 1),
    "Theorem 2": (2, 0, 1),
    "Lemma 12": (12, 0, 0),
    "Lemma 13": (3, 2, 0),
    "Lemma 14": (2, 0, 2),
    "Additions dilute": (4, 0, 0),
    "Mixing behind phi": (1, 0, 0),
    "Gaussian rows": (3, 0, 0),
    "Signs of low rank": (3, 0, 0),
    "Drift at equal size": (2, 0, 0),
    "Scores per head": (3, 0, 0),
    "Grams on the small side": (7, 0, 0),
    "Collapse unseen": (2, 0, 0),
    "Softmax's limit": (2, 0, 0),
    "GELU's gain": (5, 0, 0),
    "Scatter of rows": (2, 0, 0),
    "Sign of the cross term": (1, 0, 0),
    "Causal averaging": (2, 0, 0),
    "Errors add up": (18, 0, 0),
    "Ranges of tails": (9, 0, 0),
    "Crossing": (6, 0, 0),
}


@pytest.mark.slow
def test_the_table_says_what_the_notes_say(tmp_path, capsys):
    path = tmp_path / "new" / "theory.jsonl"
    rows = run.run(json_path=path, out=None)
    assert rows == [json.loads(line) for line in path.read_text().splitlines()]
    for source, table in run.TABLES.items():
        assert set(table) == {r["claim"] for r in rows if r["source"] == source}

    def verdicts(claim):
        found = [row["verdict"] for row in rows if row["claim"] == claim]
        names = ("holds", "holds with a correction", "does not hold")
        return tuple(found.count(name) for name in names)

    assert {claim: verdicts(claim) for claim in VERDICTS} == VERDICTS
    assert set(VERDICTS) == {*run.PAPER, *run.CORRECTIONS, *run.ROUNDING}
    for claim in (*run.CORRECTIONS, *run.ROUNDING):
        assert verdicts(claim)[1:] == (0, 0), claim
    for row in rows:
        # An error so large that nothing could fail would be no check.
        assert np.isfinite(row["measured"])
        if row["corrected"] is not None and row["verdict"] != "holds":
            allowed = row["tolerance"] + 4 * row["standard_error"]
            assert abs(row["corrected"] - row["predicted"]) > allowed
    said = capsys.readouterr().out
    # What README.md says.
    assert (
        "80 checks of statements of the paper: 55 hold, 13 hold with a correction, "
        "12 do not hold." in said
    )
    assert (
        "37 checks of our corrections: 37 hold, 0 hold with a correction, 0 do not "
        "hold." in said
    )
    assert "33 checks of our law of rounding: 33 hold" in said


@pytest.fixture
def cheap(monkeypatch):
    paper = {name: CHEAP[name] for name in ("Definition 1", "Lemma 6")}
    others = {name: checks for name, checks in CHEAP.items() if name not in paper}
    monkeypatch.setattr(run, "TABLES", {"paper": paper, "correction": others})


def test_every_claim_has_a_line_with_its_verdicts(cheap, tmp_path, capsys):
    path = tmp_path / "theory.jsonl"
    assert cli.main(["theory", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["claim"] for row in rows].count("Definition 1") == 5
    sources = {row["claim"]: row["source"] for row in rows}
    assert sources == {
        "Definition 1": "paper",
        "Lemma 6": "paper",
        "Sign of the cross term": "correction",
    }
    said = capsys.readouterr().out.splitlines()
    shown = {name: line for name in CHEAP for line in said if line.startswith(name)}
    assert shown["Definition 1"].split()[2:5] == ["5", "0", "0"]
    assert shown["Lemma 6"].split()[2:5] == ["1", "0", "1"]
    assert not any(row["statement"] in line for line in said for row in rows)
    # Ours are not among the paper's.
    assert "7 checks of statements of the paper: 6 hold" in "\n".join(said)
    assert "1 checks of our corrections: 1 hold" in "\n".join(said)


def test_every_check_goes_to_the_terminal_where_that_is_asked_for(
    cheap, tmp_path, capsys
):
    path = tmp_path / "theory.jsonl"
    assert cli.main(["theory", "--json", str(path), "--all"]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    said = capsys.readouterr().out.splitlines()
    shown = [line for line in said if any(r["statement"] in line for r in rows)]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        assert line.startswith(row["claim"])
        assert f"  {row['verdict']}  " in f"{line} "
        assert row["statement"] in line and row["why"] in line


def test_the_figure_and_its_data_are_written(cheap, monkeypatch, tmp_path):
    # Made-up curves: what they hold is the other tests' matter.
    def curves():
        known = [Estimate(0.3, 0.01), Estimate(-0.2, 0.01)]
        return [
            mechanisms.Curve("residual", True, (1, 2), known),
            mechanisms.Curve("residual", False, (1, 2), known),
        ]

    monkeypatch.setattr(
        mechanisms, "PANELS", {name: curves for name in mechanisms.PANELS}
    )
    assert cli.main(["theory", "--out", str(tmp_path / "theory")]) == 0
    for kind in ("png", "svg"):
        assert (tmp_path / "theory" / f"mechanisms.{kind}").stat().st_size > 1000
    lines = (tmp_path / "theory" / "theory.jsonl").read_text().splitlines()
    assert {json.loads(line)["claim"] for line in lines} == set(CHEAP)
    lines = (tmp_path / "theory" / "mechanisms.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 4 * len(mechanisms.PANELS)
    assert {row["panel"] for row in rows} == set(mechanisms.PANELS)
    assert rows[0]["standard_error"] == 0.01
