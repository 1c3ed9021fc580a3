"""`rfq theory`: every claim has a row, every correction stands, files are whole."""

import json

import numpy as np
import pytest

from rfq import cli
from rfq.theory import activations, mechanisms, mixing, run, updates
from rfq.theory.check import Estimate

LEMMAS = {f"Lemma {number}" for number in range(1, 15)}
CORRECTIONS = {f"F{number}" for number in range(1, 14)}
CHEAP = {
    "Definition 1": activations.definition_1,
    "Lemma 6": mixing.lemma_6,
    "F12": updates.f_12,
}


def test_every_claim_and_correction_is_in_the_table():
    others = {"Corollary 1", "Theorem 1", "Theorem 2", "Appendix C.3"}
    assert set(run.CLAIMS) >= LEMMAS | CORRECTIONS | others


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
    "F1": (4, 0, 0),
    "F2": (1, 0, 0),
    "F3": (3, 0, 0),
    "F4": (3, 0, 0),
    "F5": (2, 0, 0),
    "F6": (3, 0, 0),
    "F7": (7, 0, 0),
    "F8": (2, 0, 0),
    "F9": (2, 0, 0),
    "F10": (5, 0, 0),
    "F11": (2, 0, 0),
    "F12": (1, 0, 0),
    "F13": (2, 0, 0),
}


@pytest.mark.slow
def test_the_table_says_what_the_notes_say(tmp_path, capsys):
    path = tmp_path / "new" / "theory.jsonl"
    rows = run.run(json_path=path, out=None)
    assert rows == [json.loads(line) for line in path.read_text().splitlines()]
    assert set(run.CLAIMS) == {row["claim"] for row in rows}

    def verdicts(claim):
        found = [row["verdict"] for row in rows if row["claim"] == claim]
        names = ("holds", "holds with a correction", "does not hold")
        return tuple(found.count(name) for name in names)

    assert {claim: verdicts(claim) for claim in run.CLAIMS} == VERDICTS
    for claim in CORRECTIONS:
        assert verdicts(claim)[1:] == (0, 0), claim
    # What README.md says.
    totals = tuple(sum(counts) for counts in zip(*VERDICTS.values(), strict=True))
    assert totals == (92, 13, 12)
    for row in rows:
        # An error so large that nothing could fail would be no check.
        assert np.isfinite(row["measured"])
        if row["corrected"] is not None and row["verdict"] != "holds":
            allowed = row["tolerance"] + 4 * row["standard_error"]
            assert abs(row["corrected"] - row["predicted"]) > allowed
    said = capsys.readouterr().out
    assert f"{len(rows)} checks of {len(run.CLAIMS)} claims." in said


def test_rows_go_to_the_terminal_and_to_the_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "CLAIMS", CHEAP)
    path = tmp_path / "theory.jsonl"
    assert cli.main(["theory", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["claim"] for row in rows].count("Definition 1") == 5
    said = capsys.readouterr().out.splitlines()
    shown = [line for line in said if line.startswith(tuple(CHEAP))]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        assert f"  {row['verdict']}  " in f"{line} "
        assert row["statement"] in line and row["why"] in line


def test_the_figure_and_its_data_are_written(monkeypatch, tmp_path):
    # Made-up curves: what they hold is the other tests' matter.
    def curves():
        known = [Estimate(0.3, 0.01), Estimate(-0.2, 0.01)]
        return [
            mechanisms.Curve("residual", True, (1, 2), known),
            mechanisms.Curve("residual", False, (1, 2), known),
        ]

    monkeypatch.setattr(run, "CLAIMS", CHEAP)
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
