"""Experiments describe themselves, name themselves, and refuse to be impossible."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from rfq import experiment as experiment_lib
from rfq import optim
from rfq.errors import InputError
from rfq.experiment import (
    DataConfig,
    Experiment,
    LogConfig,
    QuantizeConfig,
    TasksConfig,
    TrainConfig,
    fingerprint,
    from_dict,
    to_dict,
)
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.origins import OriginConfig, StartConfig
from rfq.quant.aware import QatConfig
from rfq.sharding import ShardingConfig

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# tests/test_ablation.py has the families of arms, tests/test_continued.py the others.
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.py")
    if path.parent.name not in ("ablation", "continued")
)
BASE = Experiment(arm="base")


def ids(path):
    return str(path.relative_to(CONFIGS))


# --- Config files ------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_config_survives_json(path):
    experiment = experiment_lib.load(path)
    described = json.loads(json.dumps(to_dict(experiment)))
    assert from_dict(described) == experiment
    assert fingerprint(from_dict(described)) == fingerprint(experiment)


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES if path.parent != CONFIGS}), ids=ids
)
def test_the_arms_of_a_folder_are_named_by_their_files_and_differ(folder):
    arms = {
        path.stem: experiment_lib.load(path) for path in sorted(folder.glob("*.py"))
    }
    assert {name: e.arm for name, e in arms.items()} == {name: name for name in arms}
    assert len({fingerprint(e) for e in arms.values()}) == len(arms)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_survives_json(name):
    experiment = dataclasses.replace(BASE, optimizer=optim.OPTIMIZERS[name]())
    assert to_dict(experiment)["optimizer"]["name"] == name
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    assert TrainConfig(num_steps=np.int64(3), clip_norm=1).num_steps == 3


# --- Fingerprints ------------------------------------------------------------------

# Another value for every section, and whether the trained function depends on it.
CHANGES = {
    "arm": ("other", False),
    "seed": (1, True),
    "model": (ModelConfig(beta=1.2), True),
    "init": (InitConfig(alpha_qk=1.0), True),
    "optimizer": (optim.KLShampooConfig(b1=0.8), True),
    "schedule": (ScheduleConfig(warmup_steps=3), True),
    "data": (DataConfig(dir="elsewhere"), False),
    "train": (TrainConfig(batch_size=8), True),
    "log": (LogConfig(log_every=7), False),
    "quantize": (QuantizeConfig(specs=("FP",)), False),
    "tasks": (TasksConfig(names=("cloze",)), False),
    "sharding": (ShardingConfig(strategy="fsdp"), False),
    "origin": (OriginConfig(digest="0" * 16), True),
    "start": (StartConfig(fingerprint="0" * 12), True),
    "qat": (QatConfig(spec="W8A4"), True),
}


def test_every_section_is_either_free_or_part_of_the_fingerprint():
    fields = {field.name for field in dataclasses.fields(Experiment)}
    assert set(CHANGES) == fields
    free = {name for name, (_, matters) in CHANGES.items() if not matters}
    assert set(experiment_lib.FREE_SECTIONS) == free


@pytest.mark.parametrize("section", sorted(CHANGES))
def test_the_fingerprint_names_what_is_trained(section):
    value, matters = CHANGES[section]
    changed = dataclasses.replace(BASE, **{section: value})
    assert (fingerprint(changed) != fingerprint(BASE)) == matters


def test_recorded_rows_are_those_of_the_configs_beside_them():
    recorded = {}
    for line in (CONFIGS / "results" / "demo.jsonl").read_text().splitlines():
        row = json.loads(line)
        recorded[row["arm"], row["seed"]] = row["config_fingerprint"]
    for path in (CONFIGS / "demo").glob("*.py"):
        experiment = experiment_lib.load(path)
        assert fingerprint(experiment) == recorded[path.stem, 0]


def test_a_younger_field_counts_where_it_changes_anything():
    changes = [
        {"model": ModelConfig(first_layer=0)},
        {"model": ModelConfig(attention_gate="head")},
        {"model": ModelConfig(embedding="projected")},
        {"model": ModelConfig(head="untied")},
        {"model": ModelConfig(biases="qkv")},
        {"model": ModelConfig(norm_eps=1e-5)},
        {"model": ModelConfig(vocab_padding=1)},
        {"model": ModelConfig(mlp="geglu"), "init": InitConfig(recipe="gpt2")},
        {"model": ModelConfig(num_kv_heads=3), "init": InitConfig(recipe="gpt2")},
        {"train": TrainConfig(penalty_weight=0.1)},
        {"model": ModelConfig(attention_kind="shaped")},
        {"init": InitConfig(soft_layers="first")},
        {"init": InitConfig(sharpness=(1.0,) * 12)},
        {"init": InitConfig(skip_weight=0.5)},
        {
            "model": ModelConfig(skip="weighted"),
            "train": TrainConfig(skip_anneal=0.5),
        },
        {"optimizer": optim.KLShampooConfig(rates={"w_q": 10.0})},
        {"schedule": ScheduleConfig(kind="wsd")},
        {"schedule": ScheduleConfig(kind="wsd", decay_share=0.5)},
        {"optimizer": optim.KLShampooConfig(anchors={"w_q": 10.0})},
        {"optimizer": optim.KLShampooConfig(max_precondition_dim=None)},
        {"optimizer": optim.SoapConfig(max_precondition_dim=16_384)},
    ]
    found = {fingerprint(dataclasses.replace(BASE, **change)) for change in changes}
    assert len(found | {fingerprint(BASE)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("name", "former"),
    [("soap", {"max_precond_dim": 512}), ("kl_shampoo", {"mode": "fast"})],
)
def test_a_run_with_former_names_of_fields_still_opens(name, former):
    described = to_dict(BASE) | {"optimizer": {"name": name, **former}}
    opened = from_dict(described)
    if name == "soap":
        assert opened.optimizer == optim.SoapConfig(max_precondition_dim=512)
    else:
        assert opened == BASE
        described["optimizer"]["mode"] = "reference"
        with pytest.raises(
            InputError, match=r"optimizer.mode='reference' is no longer"
        ):
            from_dict(described)


@pytest.mark.parametrize(("old", "new"), [(True, "block"), (False, "none")])
def test_a_run_that_recorded_remat_as_a_flag_still_opens(old, new):
    described = to_dict(BASE)
    described["model"]["remat"] = old
    opened = from_dict(described)
    assert opened.model.remat == new
    # The fingerprints are those that the flag gave, and how a step is computed is free.
    kept = dataclasses.replace(BASE.model, remat="products", attention="auto")
    same = fingerprint(dataclasses.replace(BASE, model=kept)) == fingerprint(opened)
    assert same == (old is True)


def test_another_optimizer_is_another_fingerprint():
    # Two of them, with all the fields that they share equal.
    two = [
        dataclasses.replace(BASE, optimizer=optim.OPTIMIZERS[name]())
        for name in ("adamw", "muon")
    ]
    assert fingerprint(two[0]) != fingerprint(two[1])


def test_equal_experiments_have_equal_fingerprints():
    whole, real = (
        dataclasses.replace(BASE, model=ModelConfig(beta=beta)) for beta in (1, 1.0)
    )
    assert whole == real
    assert fingerprint(whole) == fingerprint(real)


def test_differences_name_the_field_and_both_values():
    other = dataclasses.replace(BASE, seed=3, model=ModelConfig(width=24))
    found = experiment_lib.differences(to_dict(BASE), to_dict(other))
    assert found == [("model.width", 768, 24), ("seed", 0, 3)]
    assert experiment_lib.differences(to_dict(BASE), to_dict(BASE)) == []


# --- Impossible experiments --------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Experiment(arm="a/b"), ["arm='a/b'"]),
        (lambda: Experiment(arm=""), ["arm=''"]),
        (lambda: Experiment(arm="a", seed=-1), ["seed=-1"]),
        (
            lambda: Experiment(arm="a", train=TrainConfig(num_steps=2000)),
            ["schedule.warmup_steps=2000", "train.num_steps=2000"],
        ),
        (
            lambda: Experiment(arm="a", quantize=QuantizeConfig(calibration_tokens=5)),
            ["quantize.calibration_tokens=5", "model.seq_len=512"],
        ),
        (
            lambda: Experiment(
                arm="a",
                model=ModelConfig(mlp_ratio=1),
                init=InitConfig(w_down="centered"),
            ),
            ["init.w_down='centered'", "model.mlp_ratio"],
        ),
        (lambda: TrainConfig(batch_size=0), ["train.batch_size=0"]),
        (lambda: TrainConfig(clip_norm=-1.0), ["train.clip_norm=-1.0"]),
        (lambda: TrainConfig(clip_norm=math.nan), ["train.clip_norm=nan"]),
        (lambda: TrainConfig(penalty_weight=-1.0), ["train.penalty_weight=-1.0"]),
        (lambda: TrainConfig(penalty_threshold=0.0), ["train.penalty_threshold=0.0"]),
        (lambda: TrainConfig(skip_anneal=1.5), ["train.skip_anneal=1.5"]),
        (
            lambda: Experiment(arm="a", train=TrainConfig(skip_anneal=0.5)),
            ["train.skip_anneal=0.5", "model.skip='weighted'", "'residual_free'"],
        ),
        (lambda: LogConfig(keep_checkpoints=0), ["log.keep_checkpoints=0"]),
        (lambda: QuantizeConfig(specs=("W8A1",)), ["act_bits=1"]),
        (lambda: QuantizeConfig(specs=("8x8",)), ["'8x8'", "WnAm"]),
        (lambda: QuantizeConfig(specs=()), ["quantize.specs"]),
        (lambda: QuantizeConfig(taps=("all",)), ["quantize.taps='all'", "paper"]),
        (
            lambda: QuantizeConfig(streams=("skip",)),
            ["quantize.streams='skip'", "in_place"],
        ),
        (
            lambda: QuantizeConfig(calibrators=("kl",)),
            ["quantize.calibrators='kl'", "min_max"],
        ),
        (
            lambda: QuantizeConfig(calibration_seeds=(0, -1)),
            ["quantize.calibration_seeds=(0, -1)"],
        ),
        (
            lambda: QuantizeConfig(granularities=("per_row",)),
            ["quantize.granularities='per_row'", "per_token", "per_group_N"],
        ),
        (
            lambda: QuantizeConfig(granularities=("per_channel",)),
            ["quantize.granularities='per_channel' is for weights alone"],
        ),
        (
            lambda: Experiment(
                arm="a", quantize=QuantizeConfig(granularities=("per_group_7",))
            ),
            ["quantize.granularities='per_group_7'", "'attn_in'", "divisor"],
        ),
        (lambda: QuantizeConfig(schemes=("log",)), ["quantize.schemes='log'"]),
        (lambda: QuantizeConfig(sample_tokens=0), ["quantize.sample_tokens=0"]),
        (
            lambda: LogConfig(statistics=("kurtosis",)),
            ["log.statistics='kurtosis'", "moments"],
        ),
        (
            lambda: ShardingConfig(strategy="zero"),
            ["sharding.strategy='zero'", "fsdp"],
        ),
    ],
)
def test_an_impossible_experiment_names_its_field(make, parts):
    with pytest.raises(InputError) as caught:
        make()
    assert all(part in str(caught.value) for part in parts), caught.value


def described(**changes):
    return {**to_dict(BASE), **changes}


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        (described(steps=3), ["experiment has no field 'steps'", "train"]),
        (
            described(model={"depth": 3}),
            ["model has no field 'depth'", "num_layers"],
        ),
        (
            described(optimizer={"name": "adamw", "momentum": 0.9}),
            ["optimizer has no field 'momentum'", "learning_rate"],
        ),
        (
            described(optimizer={"name": "adam"}),
            ["optimizer='adam'", "adamw", "kl_shampoo"],
        ),
        (described(optimizer={"b1": 0.9}), ["optimizer=''", "adamw"]),
        (described(model=3), ["model=3", "table"]),
        ({"optimizer": {"name": "muon"}}, ["experiment lacks the field 'arm'"]),
        (described(model={"width": 10, "num_heads": 3}), ["model.width=10"]),
    ],
)
def test_a_description_that_fits_no_experiment_is_refused(tree, parts):
    with pytest.raises(InputError) as caught:
        from_dict(tree)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_description_may_leave_defaults_out():
    assert from_dict({"arm": "a", "optimizer": {"name": "kl_shampoo"}}) == (
        Experiment(arm="a")
    )
