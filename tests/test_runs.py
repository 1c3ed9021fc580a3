import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from rfq import experiment as experiment_lib
from rfq import provenance, runs
from rfq.data import tokenize
from rfq.errors import InputError
from rfq.sharding import ShardingConfig
from tests import tiny


@pytest.fixture
def data(tmp_path_factory):
    return tiny.data(tmp_path_factory)


@pytest.fixture
def experiment(data):
    return tiny.experiment(data)


def _refused(call, *arguments) -> str:
    """The sentence; nothing may have been compiled on the way to it."""
    with tiny.compilations() as compiled, pytest.raises(InputError) as caught:
        call(*arguments)
    assert compiled == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_compilations_are_noticed():
    # The other tests rest on this count.
    with tiny.compilations() as compiled:
        jax.jit(lambda x: x + 1)(jnp.float32(1.0))
    assert any("lambda" in name for name in compiled)


# (section, fields, what the sentence says), on the eight devices of the tests.
MISFITS = {
    "batch over devices": (
        "train",
        {"batch_size": 12},
        "train.batch_size=12 must be a multiple of the 8 devices",
    ),
    "grid's batch over devices": (
        "quantize",
        {"batch_size": 12},
        "quantize.batch_size=12 must be a multiple of the 8 devices",
    ),
    "measured over devices": (
        "log",
        {"measure_sequences": 12},
        "log.measure_sequences=12 must be a multiple of the 8 devices",
    ),
    "more than an epoch": ("train", {"batch_size": 80_000}, "batch_size=80000 is more"),
    "sequence and window": ("model", {"seq_len": 24}, "seq_len=24 does not divide"),
    "vocabulary": ("model", {"vocab_size": 300}, "model.vocab_size=300 differs"),
    "tokenizer": ("data", {"tokenizer": "embedded"}, "prepared with tokenizer 'byte'"),
    "no tokenizer": ("data", {"tokenizer": "llama.model"}, "'llama.model' is neither"),
    "no data": ("data", {"dir": "nowhere"}, "nowhere has no manifest.json"),
    "too little held out": (
        "log",
        {"measure_sequences": 8_000},
        "fewer than one batch of 8000; prepare the data again with --heldout-fraction",
    ),
    "too little to score": (
        "quantize",
        {"batch_size": 128, "eval_tokens": 64 * tiny.SEQ_LEN},
        "64 are asked for, fewer than one batch of 128; ask for",
    ),
    "too little to calibrate on": (
        "quantize",
        {"batch_size": 64, "calibration_tokens": 32 * tiny.SEQ_LEN},
        "split 'calibration'",
    ),
}


@pytest.mark.mesh
@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_before_anything_compiles(experiment, name):
    section, fields, says = MISFITS[name]
    changed = tiny.with_fields(experiment, section, **fields)
    assert says in _refused(runs.check, changed)


@pytest.mark.mesh
def test_parameters_that_do_not_divide_over_the_devices_are_refused(experiment):
    sharded = dataclasses.replace(experiment, sharding=ShardingConfig(strategy="fsdp"))
    runs.check(sharded)
    odd = tiny.with_fields(sharded, "model", width=20)
    assert "does not divide over the 8 devices" in _refused(runs.check, odd)


def test_a_seed_that_the_shuffle_cannot_take_is_refused(experiment):
    large = dataclasses.replace(experiment, seed=1 << 32)
    assert "seed=4294967296" in _refused(runs.check, large)


def test_a_truncated_shard_is_refused(data, tmp_path):
    damaged = shutil.copytree(data, tmp_path / "data")
    shard = next(damaged.glob("train-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-100])
    message = _refused(runs.check, tiny.experiment(damaged))
    assert str(shard) in message


def test_a_directory_belongs_to_its_experiment(experiment, tmp_path):
    runs.check(experiment)
    described = runs.claim(experiment, tmp_path / "run")
    assert runs.load(tmp_path / "run") == (experiment, described)
    assert described["fingerprint"] == experiment_lib.fingerprint(experiment)
    assert described["commit"] == provenance.commit()
    assert set(described) >= {"data_fingerprint", "versions", "device"}
    runs.claim(experiment, tmp_path / "run")


def test_a_run_from_before_a_field_existed_is_still_its_own(experiment, tmp_path):
    described = runs.claim(experiment, tmp_path)
    del described["experiment"]["model"]["attention_gate"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert runs.claim(experiment, tmp_path)["experiment"]["model"]["attention_gate"]


@pytest.mark.parametrize(
    ("section", "fields", "says"),
    [
        ("optimizer", {"learning_rate": 0.5}, "optimizer.learning_rate is 0.02 there"),
        ("model", {"beta": 1.1}, "model.beta is 1.0 there and 1.1 here"),
        ("train", {"num_steps": 99}, "train.num_steps is 12 there and 99 here"),
    ],
)
def test_another_experiment_is_refused_by_its_first_differing_field(
    experiment, tmp_path, section, fields, says
):
    runs.check(experiment)
    runs.claim(experiment, tmp_path)
    other = tiny.with_fields(experiment, section, **fields)
    message = _refused(runs.claim, other, tmp_path)
    assert says in message
    assert str(tmp_path) in message
    assert runs.load(tmp_path)[0] == experiment


def test_how_a_run_is_logged_quantized_and_placed_may_change(experiment, tmp_path):
    runs.check(experiment)
    runs.claim(experiment, tmp_path)
    changed = tiny.with_fields(experiment, "log", log_every=1)
    changed = tiny.with_fields(changed, "quantize", specs=("FP", "A8"))
    runs.claim(changed, tmp_path)
    assert runs.load(tmp_path)[0] == changed


def test_data_may_move_but_not_change(experiment, data, tmp_path):
    runs.claim(experiment, tmp_path / "run")
    moved = tiny.experiment(shutil.copytree(data, tmp_path / "moved"))
    runs.claim(moved, tmp_path / "run")
    (tmp_path / "more").mkdir()
    other = tiny.experiment(tiny.prepared(tmp_path / "more", salt=1))
    runs.check(other)
    message = _refused(runs.claim, other, tmp_path / "run")
    assert "was trained on other data" in message and "delete" not in message
    assert f"--data.dir {data}" in message or f"--data.dir {moved.data.dir}" in message


def test_a_finished_run_keeps_saying_how_it_was_trained(
    experiment, tmp_path, monkeypatch
):
    runs.check(experiment)
    runs.claim(experiment, tmp_path)
    (tmp_path / "done.json").write_text("{}")
    before = (tmp_path / "config.json").read_bytes()
    monkeypatch.setattr(provenance, "commit", lambda: "another")
    fewer = tiny.with_fields(experiment, "quantize", specs=("FP",))
    assert runs.claim(fewer, tmp_path)["commit"] == "another"
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_directory_that_is_no_run_is_a_sentence(tmp_path):
    assert "is not a run directory" in _refused(runs.load, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in _refused(runs.load, tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": {}}')
    assert "lacks ['data_fingerprint', 'fingerprint']" in _refused(runs.load, tmp_path)


def test_a_config_of_a_newer_program_is_a_sentence(experiment, tmp_path):
    described = runs.claim(experiment, tmp_path)
    described["experiment"]["model"]["gating"] = "silu"
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert "no field 'gating'" in _refused(runs.load, tmp_path)


def test_the_data_fingerprint_follows_the_content(experiment, data, tmp_path):
    again = shutil.copytree(data, tmp_path / "again")
    (tmp_path / "more").mkdir()
    other = tiny.prepared(tmp_path / "more", salt=1)
    sets = [
        *({"dir": str(path)} for path in (data, again, other)),
        {"dir": str(data), "also": (str(other),)},
        {"dir": str(data), "also": (str(other),), "weights": (3.0, 1.0)},
    ]
    prints = [
        runs.data_fingerprint(
            dataclasses.replace(experiment, data=experiment_lib.DataConfig(**fields))
        )
        for fields in sets
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_other_data_than_a_finished_runs_are_said_with_what_to_give(
    tmp_path_factory, tmp_path, data
):
    run_dir = tiny.copied(tiny.trained(tmp_path_factory), tmp_path)
    other = tiny.experiment(tiny.prepared(tmp_path, salt=1))
    said = _refused(runs.reopen, other, run_dir)
    assert f"are not those that {run_dir} was trained on (" in said
    assert "); give --data-dir" in said and "source_fingerprint" in said
    assert said.endswith(f"which was {str(data)!r}")
    assert "delete" not in said


def test_a_run_finds_its_data_from_any_directory(tmp_path, monkeypatch):
    """By the absolute path of when it was made; a path that leads there goes first."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        tiny.prepared(tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    (data,) = (path.name for path in pathlib.Path().iterdir() if path.is_dir())
    shutil.copy(tokenize.EMBEDDED_MODEL, "own.model")
    experiment = tiny.experiment(pathlib.Path(data))
    runs.claim(experiment, tmp_path / "run")
    assert runs.load(tmp_path / "run")[0].data.dir == data
    monkeypatch.chdir(tmp_path / "there")
    assert runs.load(tmp_path / "run")[0].data.dir == data
    monkeypatch.chdir(tmp_path)
    found, _ = runs.load(tmp_path / "run")
    assert found.data.dir == str(tmp_path / "here" / data)
    runs.claim(found, tmp_path / "run")
    # A tokenizer that is a file is found in the same way.
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    own = tiny.with_fields(experiment, "data", tokenizer="own.model")
    config["data"]["tokenizer"] = str(tmp_path / "here" / "own.model")
    found = runs.located(own, config, tmp_path / "run")
    assert found.data.tokenizer == config["data"]["tokenizer"]
    # A directory that holds its data and tokenizer may be moved with them.
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    shutil.copytree(tmp_path / "here" / data, moved / data)
    shutil.copy(tmp_path / "here" / "own.model", moved)
    shutil.move(tmp_path / "here", tmp_path / "gone")
    found = runs.located(own, config, moved)
    assert found.data.dir == str(moved / data)
    assert found.data.tokenizer == str(moved / "own.model")
    shutil.move(tmp_path / "gone", tmp_path / "here")
    # What is nowhere keeps its name, and the sentence says how to give another.
    shutil.rmtree(tmp_path / "here")
    lost, _ = runs.load(tmp_path / "run")
    said = _refused(runs.check, lost)
    assert "has no manifest.json" in said and "--data-dir" in said


def test_a_run_from_before_absolute_paths_still_opens(experiment, tmp_path):
    described = runs.claim(experiment, tmp_path)
    del described["data"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert runs.load(tmp_path)[0] == experiment
    assert "data" in runs.claim(experiment, tmp_path)
