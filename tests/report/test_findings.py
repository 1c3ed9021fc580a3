import dataclasses
import json

import pytest

from rfq.report import findings, load, paper, view


def shown(directory):
    return view.of(load.load(directory))


def verdicts(directory):
    """Verdict by claim, with the precision for C6, which is asked at three."""
    return {
        f.claim + (f.statement[-5:-1] if f.claim == "C6" else ""): f.verdict
        for f in findings.findings(shown(directory))
    }


FREE = ("residual_free_kl_shampoo", "residual_free_muon")

# claim, what the arms are changed to, the verdict then. Rows that say the opposite get
# the opposite verdict.
CASES = [
    ("C1", {"residual_adamw": {"kurtosis": 14.9}}, "holds"),
    ("C1", {"residual_adamw": {"kurtosis": 4.0}}, "holds with a correction"),
    ("C1", {"residual_adamw": {"kurtosis": 0.5}}, "does not hold"),
    ("C1", {"residual_adamw": {"kurtosis": -0.5}}, "does not hold"),
    ("C2", {"residual_kl_shampoo": {"kurtosis": 0.35}}, "does not hold"),
    ("C2", {"residual_kl_shampoo": {"kurtosis": 5.0}}, "holds"),
    ("C2", {"residual_kl_shampoo": {"kurtosis": 50.0}}, "does not hold"),
    ("C3", {}, "holds"),
    ("C3", {"residual_free_muon": {"kurtosis": 2.0}}, "does not hold"),
    ("C3", {"residual_free_muon": {"kurtosis": -2.0}}, "does not hold"),
    ("C5", {}, "holds"),
    ("C5", {"residual_free_muon": {"loss": 2.9}}, "does not hold"),
    ("C6W8A8", {}, "not testable from these rows"),
    ("C6W8A4", {}, "does not hold"),
    (
        "C6W8A4",
        {arm: {"branch": 0.02, "in_place": 0.02} for arm in FREE},
        "holds",
    ),
    (
        "C6W8A4",
        {arm: {"branch": 0.20, "in_place": 0.20} for arm in FREE},
        "holds with a correction",
    ),
    ("C8", {}, "holds"),
    ("C9", {}, "holds"),
    ("C9", {"residual_free_muon": {"sqnr_gap_db": -9.0}}, "does not hold"),
    ("C11", {"residual_free_kl_shampoo": {"loss": 3.1}}, "holds"),
    ("C11", {"residual_free_kl_shampoo": {"loss": 3.65}}, "does not hold"),
]


@pytest.mark.parametrize(("claim", "changes", "verdict"), CASES)
def test_verdicts_follow_the_rows(make, arms, claim, changes, verdict):
    for arm, change in changes.items():
        arms[arm] = dataclasses.replace(arms[arm], **change)
    assert verdicts(make(arms=arms))[claim] == verdict


def test_quantized_weights_that_cost_more_turn_the_verdict_on_weights(make):
    directory = make()
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["weight_bits"] == 8:
            for field in ("loss_increase", "loss_increase_lo", "loss_increase_hi"):
                row[field] += 0.3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdicts(directory)["C8"] == "does not hold"


@pytest.mark.parametrize(
    ("absent", "claims"),
    [
        ("residual_adamw", ["C1", "C2"]),
        ("residual_kl_shampoo", ["C2"]),
    ],
)
def test_a_missing_arm_makes_its_claims_untestable(make, arms, absent, claims):
    del arms[absent]
    found = verdicts(make(arms=arms))
    assert {found[claim] for claim in claims} == {"not testable from these rows"}


def test_a_stuck_arm_wins_nothing(make, arms):
    # Robust because it learnt nothing: without it C6 does not hold.
    arms["residual_free_muon"] = dataclasses.replace(
        arms["residual_free_muon"], loss=5.28, branch=0.0, in_place=0.0
    )
    directory = make(arms=arms)
    assert verdicts(directory)["C6W8A4"] == "does not hold"
    texts = [alert.text for alert in findings.alerts(shown(directory))]
    assert any("collapsed" in text and "Muon" in text for text in texts)


def test_alerts_name_missing_and_broken_arms(make, arms):
    del arms["residual_kl_shampoo"]
    directory = make(arms=arms)
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["arm"] == "residual_adamw":
            row |= {"loss": None, "nonfinite": ["loss"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = " ".join(alert.text for alert in findings.alerts(shown(directory)))
    assert "residual KL-Shampoo: missing" in texts
    assert "residual AdamW: the loss is not finite" in texts


def test_a_diverged_run_gives_its_own_reason(make):
    directory = make()
    home = directory / "arms" / "residual_adamw" / "seed-0"
    (home / "done.json").unlink()
    failed = {"step": 120, "message": "training diverged: loss not finite at step 120"}
    (home / "failed.json").write_text(json.dumps(failed))
    found = shown(directory)
    assert found.status("residual_adamw") == "not finite"
    texts = [alert.text for alert in findings.alerts(found)]
    assert any("not finite at step 120" in text for text in texts)


def test_a_run_that_is_under_way_is_unfinished_not_collapsed(make):
    directory = make()
    path = directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in rows if row["arm"] != "residual_adamw"]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    (directory / "arms" / "residual_adamw" / "seed-0" / "done.json").unlink()
    found = shown(directory)
    assert found.status("residual_adamw") == "unfinished"
    assert found.full_loss("residual_adamw").value is None
    assert verdicts(directory)["C1"] == "not testable from these rows"


def test_healthy_runs_raise_no_alert(make):
    assert findings.alerts(shown(make())) == []


def test_placements_of_a_residual_free_arm_that_differ_are_an_alert(make, arms):
    arms["residual_free_muon"] = dataclasses.replace(
        arms["residual_free_muon"], in_place=0.31
    )
    texts = " ".join(alert.text for alert in findings.alerts(shown(make(arms=arms))))
    assert "have to be equal" in texts


def limit(directory, word):
    found = findings.limits(shown(directory), paper.load())
    return next(text for text in found if word in text)


def test_the_sentence_on_eight_bits_follows_the_rows(make, arms):
    assert "every arm passes" in limit(make(), "Eight activation bits")
    arms["residual_adamw"] = dataclasses.replace(arms["residual_adamw"], in_place=90.0)
    assert "tell arms apart" in limit(make(arms=arms), "Eight activation bits")


def test_the_sentence_on_placement_follows_the_rows(make, arms):
    assert "decides the ranking" in limit(make(), "quantizer stands")
    for arm in ("residual_adamw", "residual_kl_shampoo"):
        branch = arms[arm].branch
        arms[arm] = dataclasses.replace(arms[arm], in_place=branch + 0.001)
    same = limit(make(arms=arms), "quantizer stands")
    assert "does not change the ranking" in same


def test_the_sentence_on_seeds_follows_the_rows(make):
    assert limit(make(), "seed").startswith("One seed an arm")
    assert limit(make(seeds=(0, 1, 2)), "seed").startswith("3 seeds an arm")


def test_sentences_without_rows_say_missing_and_no_number(make):
    directory = make()
    for path in directory.glob("arms/*/seed-*/**/*.json*"):
        path.unlink()
    (directory / "context.json").unlink()
    row = {"arm": "residual_adamw", "seed": 0, "spec": "FP"}
    (directory / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = findings.findings(shown(directory))
    assert {f.verdict for f in found} == {"not testable from these rows"}
    texts = findings.limits(shown(directory), paper.load())
    assert sum("missing" in text for text in texts) == len(texts) - 1
