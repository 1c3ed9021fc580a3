"""Several directories in one report."""

import json

import pytest

from rfq import errors, report
from rfq.report import load, view


@pytest.fixture
def two(make, tmp_path, arms):
    """Makes two directories: all arms, and some of them, changed."""

    def made(*, keep=("residual_adamw", "residual_free_muon"), seeds=(0,), edit=None):
        first = make().rename(tmp_path / "first")
        second = make(arms={arm: arms[arm] for arm in keep}, seeds=seeds)
        second = second.rename(tmp_path / "second")
        for path in sorted(second.glob("arms/*/seed-*/config.json")):
            config = json.loads(path.read_text())
            if edit is not None:
                edit(config, path.parent)
            path.write_text(json.dumps(config))
        return first, second

    return made


def relabelled(number):
    """Another config, told by its depth and its fingerprint."""

    def edit(config, home):
        config["experiment"]["model"]["num_layers"] = number
        config["fingerprint"] += str(number)
        rows = home.parents[2] / "rows.jsonl"
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        for row in lines:
            if row["arm"] == home.parent.name:
                row["config_fingerprint"] = config["fingerprint"]
        rows.write_text("".join(json.dumps(row) + "\n" for row in lines))

    return edit


def test_a_run_that_two_directories_hold_counts_once(two, tmp_path):
    first, second = two()
    alone, both = load.load(first), report.read([first, second], tmp_path / "out")
    assert both.directory == tmp_path / "out"
    assert (list(both.rows), list(both.runs)) == (list(alone.rows), list(alone.runs))
    (note,) = (note for note in both.notes if "count once" in note)
    assert "residual_adamw (seed 0) is residual_adamw" in note
    assert "residual_free_muon" in note and "soap" not in note


def test_another_seed_is_the_same_arm(two, tmp_path):
    first, second = two(keep=("residual_adamw",), seeds=(1,))
    both = report.read([first, second], tmp_path)
    assert [(r.arm, r.seed) for r in both.runs if r.arm == "residual_adamw"] == [
        ("residual_adamw", 0),
        ("residual_adamw", 1),
    ]
    assert view.of(both).full_loss("residual_adamw").num_seeds == 2


def test_another_config_of_the_name_takes_what_differs_into_its_own(two, tmp_path):
    first, second = two(keep=("residual_adamw",), edit=relabelled(12))
    both = report.read([first, second], tmp_path)
    deep = "residual_adamw_num_layers_12"
    assert {run.arm for run in both.runs} == {
        *(r.arm for r in load.load(first).runs),
        deep,
    }
    ours = [row for row in both.rows if row["arm"] == deep]
    assert len(ours) == len(load.load(second).rows)
    assert deep in both.context["arms"]
    # The order of the directories says who keeps the name.
    turned = report.read([second, first], tmp_path)
    assert "residual_adamw_num_layers_6" in {run.arm for run in turned.runs}
    page = report.run(both)
    assert page == tmp_path / "report.html"
    assert "residual AdamW num layers 12" in page.read_text(encoding="utf-8")


def test_rows_alone_join_where_their_names_are_their_own(two, tmp_path):
    first, second = two(edit=relabelled(12))
    for path in second.glob("arms/*/seed-*/config.json"):
        path.unlink()
    with pytest.raises(errors.InputError, match="give one another --arm"):
        report.read([first, second], tmp_path)
    rows = second / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"residual_', '"other_'))
    (tmp_path / "alone").mkdir()
    rows = rows.rename(tmp_path / "alone" / "rows.jsonl")
    both = report.read([first, rows.parent], tmp_path)
    assert {"other_adamw", "other_free_muon"} < set(view.of(both).arms)


def test_other_data_are_refused(two, tmp_path):
    def edit(config, home):
        config["data_fingerprint"] = "b"

    first, second = two(edit=edit)
    context = json.loads((first / "context.json").read_text())
    (first / "context.json").write_text(
        json.dumps({**context, "data_fingerprint": "a"})
    )
    (second / "context.json").unlink()
    with pytest.raises(errors.InputError, match="trained on other data"):
        report.read([first, second], tmp_path)


def test_lemmas_come_from_whichever_directory_has_them(make, tmp_path):
    lemmas = tmp_path / "theory"
    lemmas.mkdir()
    row = {"claim": "Lemma 1", "verdict": "holds"}
    (lemmas / "theory.jsonl").write_text(json.dumps(row) + "\n")
    assert list(report.read([make(), lemmas], tmp_path).theory) == [row]
    with pytest.raises(errors.InputError, match="no rows and no runs"):
        report.read([lemmas], tmp_path)
