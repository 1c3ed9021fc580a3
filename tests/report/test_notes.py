import dataclasses
import json

from rfq.report import load, notes, paper, view


def shown(directory):
    return view.of(load.load(directory))


def test_a_stuck_arm_is_said_to_have_collapsed(make, arms):
    arms["residual_free_muon"] = dataclasses.replace(
        arms["residual_free_muon"], loss=5.28, branch=0.0, in_place=0.0
    )
    texts = [alert.text for alert in notes.alerts(shown(make(arms=arms)))]
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
    texts = " ".join(alert.text for alert in notes.alerts(shown(directory)))
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
    texts = [alert.text for alert in notes.alerts(found)]
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


def test_healthy_runs_raise_no_alert(make):
    assert notes.alerts(shown(make())) == []


def test_placements_of_a_residual_free_arm_that_differ_are_an_alert(make, arms):
    arms["residual_free_muon"] = dataclasses.replace(
        arms["residual_free_muon"], in_place=0.31
    )
    texts = " ".join(alert.text for alert in notes.alerts(shown(make(arms=arms))))
    assert "have to be equal" in texts


def limit(directory, word):
    found = notes.limits(shown(directory), paper.load())
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
    texts = notes.limits(shown(directory), paper.load())
    assert sum("missing" in text for text in texts) == len(texts) - 1
