"""The paper's numbers attach to what an arm is, not to what it is called."""

import json
import pathlib

import pytest

from rfq.report import (
    accuracy,
    counterparts,
    dynamics,
    load,
    paper,
    tables,
    view,
)

ADAMW, KL, FREE = "residual_adamw", "residual_kl_shampoo", "residual_free_kl_shampoo"

ORTHOGONAL = {"init": {"recipe": "orthogonal"}}
GAUSSIAN = {"init": {"recipe": "gpt2"}}


def shown(directory: pathlib.Path) -> view.View:
    return view.of(load.load(directory))


def configure(directory: pathlib.Path, arm: str, **changes: dict) -> None:
    """Changes sections of an arm's config."""
    path = directory / "arms" / arm / "seed-0" / "config.json"
    config = json.loads(path.read_text())
    for section, fields in changes.items():
        config["experiment"].setdefault(section, {}).update(fields)
    path.write_text(json.dumps(config))


@pytest.fixture
def family(make, arms):
    """Makes a directory of arms of one outcome: name -> changes of its config."""

    def made(**changes: dict) -> view.View:
        directory = make(arms=dict.fromkeys(changes, arms[ADAMW]))
        (directory / "context.json").unlink()
        for arm, sections in changes.items():
            configure(directory, arm, **sections)
        return shown(directory)

    return made


def of(optimizer: str, skip: str = "residual_free", /, **changes: dict) -> dict:
    """A config of an optimizer and a connection, with the recipe that goes with it."""
    recipe = ORTHOGONAL if skip == "residual_free" else GAUSSIAN
    return {
        **recipe,
        "optimizer": {"name": optimizer},
        **changes,
        "model": {"skip": skip, "norm": "rms_norm", **changes.get("model", {})},
    }


def test_arms_of_the_papers_names_stand_beside_them(make):
    found = counterparts.ours(shown(make()), paper.load())
    assert {theirs for theirs, arm in found.items() if theirs == arm} == {
        *(ADAMW, KL, FREE),
        "residual_free_muon",
    }


def test_an_arm_of_another_name_stands_beside_what_it_is(family):
    found = family(
        mine=of("kl_shampoo"), theirs=of("adamw", "residual"), other=of("adamw")
    )
    assert counterparts.ours(found, paper.load()) == {FREE: "mine", ADAMW: "theirs"}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"norm": "layer_norm"}},
        {"model": {"attention_gate": "head"}},
        {"model": {"embedding": "projected"}},
        {"model": {"skip": "residual"}},
        {"init": {"recipe": "gpt2"}},
        {"optimizer": {"name": "muon"}},
        {"train": {"penalty_weight": 0.01}},
    ],
)
def test_the_name_alone_is_not_enough(family, change):
    found = family(**{FREE: of("kl_shampoo", **change)})
    assert FREE not in counterparts.ours(found, paper.load())


def test_of_two_temperatures_the_papers_has_the_numbers_and_only_it(family):
    plain, warm = FREE, f"{FREE}_beta_1.1"
    found = family(
        **{
            plain: of("kl_shampoo", model={"beta": 1.0}),
            warm: of("kl_shampoo", model={"beta": 1.1}),
        }
    )
    printed = paper.load()
    assert counterparts.ours(found, printed) == {FREE: warm}
    assert counterparts.theirs(found, printed) == {warm: FREE}
    for table in (
        tables.beside_table(found, printed, weight_bits=8),
        tables.paper_kurtosis_table(found, printed),
        dynamics.costs_table(found, printed),
    ):
        beside = {
            line.arm
            for line in table.lines
            for cell in line.cells
            if cell.data.get("paper_arm") == view.arm_label(FREE)
        }
        assert beside == {warm}, table.name


def test_of_equals_the_papers_name_has_the_numbers(family):
    config = of("kl_shampoo", model={"beta": 1.1})
    found = family(**{"a_twin": config, FREE: config, "twin": config})
    assert counterparts.ours(found, paper.load())[FREE] == FREE


def test_an_arm_with_one_more_change_yields_whatever_its_loss(family):
    first, other = {"beta": 1.1}, {"beta": 1.1, "first_layer": 0}
    found = family(
        a_changed=of("kl_shampoo", model=other),
        plain=of("kl_shampoo", model={"beta": 1.0}),
        warm=of("kl_shampoo", model=first),
    )
    rows = found.results.directory / "rows.jsonl"
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    for record in records:
        if record["arm"] == "a_changed":
            record["loss"] = 1.0
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = shown(found.results.directory)
    assert counterparts.ours(again, paper.load()) == {FREE: "warm"}


def test_accuracies_stand_beside_the_counterparts(family):
    found = family(mine=of("adamw", "residual"))
    row = {"spec": "FP", "questions": "abc", "arc_c": 0.3, "scores": {"arc_c": {}}}
    home = found.results.directory / "arms/mine/seed-0/quantize/tasks.jsonl"
    home.write_text(json.dumps(row) + "\n")
    again = shown(found.results.directory)
    (table,) = accuracy.accuracy_tables(again, paper.load())
    # Table 1 of the paper, BF16.
    assert table.lines[0].cells[-1].data["paper_arc_c"] == 0.257


def test_without_a_counterpart_ours_is_missing(family):
    found = family(**{ADAMW: of("adamw", "residual", model={"norm": "layer_norm"})})
    table = tables.beside_table(found, paper.load(), weight_bits=8)
    for line in table.lines:
        assert [cell.text for cell in line.cells[1:5]] == [tables.MISSING] * 4
        assert line.cells[-2].data["paper_accuracy"] > 0
