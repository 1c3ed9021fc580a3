import json
import pathlib
import subprocess
import sys

import jax
import pytest

from rfq import cli, compare, experiment, sharding, steps, train
from rfq.costs import plan
from rfq.model.config import num_params
from rfq.optim import MuonConfig
from tests import tiny
from tests.commands import command as command_lib
from tests.data import corpora

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.py")
    # tests/test_ablation.py has the literal arms of configs/small, among the families,
    # and tests/test_continued.py what needs a run to go on from.
    if path.parent.name not in ("ablation", "continued")
    if path.parent.name != "small" or path.stem.endswith("_deep")
)


# --- Overrides ----------------------------------------------------------------------


@pytest.fixture
def trained(config, tmp_path, monkeypatch):
    """`rfq train CONFIG` with some words after it -> the experiment it would train."""

    def parsed(words: str) -> experiment.Experiment:
        seen = []
        monkeypatch.setattr(train, "run", lambda given, *_: seen.append(given))
        argv = ["train", config, "--out", str(tmp_path / "out"), *words.split()]
        assert cli.main(argv) == 0
        return seen[0]

    return parsed


@pytest.mark.parametrize(
    ("words", "section", "fields"),
    [
        ("", "model", {}),
        ("--model.beta 1.1", "model", {"beta": 1.1}),
        ("--train.clip-norm None", "train", {"clip_norm": None}),
        ("--train.clip-norm 0.5", "train", {"clip_norm": 0.5}),
        ("--train.num-steps=10", "train", {"num_steps": 10}),
        ("--train.num_steps 10", "train", {"num_steps": 10}),
        ("--quantize.specs FP W8A8", "quantize", {"specs": ("FP", "W8A8")}),
        ("--quantize.specs=A8", "quantize", {"specs": ("A8",)}),
        ("--optimizer.b1 0.5", "optimizer", {"b1": 0.5}),
        ("--optimizer.learning-rate 3e-3", "optimizer", {"learning_rate": 3e-3}),
        ("--model.remat products", "model", {"remat": "products"}),
        ("--sharding.strategy fsdp", "sharding", {"strategy": "fsdp"}),
    ],
)
def test_a_field_is_overridden_and_no_other(trained, data, words, section, fields):
    expected = tiny.with_fields(tiny.experiment(data), section, **fields)
    assert trained(words) == expected


def test_a_list_may_be_one_quoted_word(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run", lambda given, *_: seen.append(given))
    argv = ["train", config, "--out", str(tmp_path / "out"), "--quantize.specs"]
    assert cli.main([*argv, "FP W8A8", "A4", "--data.also", "a b"]) == 0
    assert seen[0].quantize.specs == ("FP", "W8A8", "A4")
    assert seen[0].data.also == ("a b",)


def test_several_fields_are_overridden_at_once(trained, data):
    words = "--model.beta 1.1 --quantize.specs FP A4 --train.num-steps 9 --seed 5"
    given = trained(words)
    assert (given.model.beta, given.quantize.specs) == (1.1, ("FP", "A4"))
    assert (given.train.num_steps, given.seed) == (9, 5)


@pytest.mark.parametrize("words", ["--optimizer muon", "--optimizer=muon"])
def test_an_optimizer_is_replaced_as_a_whole(trained, data, words):
    assert trained(words).optimizer == MuonConfig()
    rate = trained(f"--optimizer.learning-rate 0.5 {words}").optimizer
    assert rate == MuonConfig(learning_rate=0.5)


@pytest.fixture
def compared(config, tmp_path, monkeypatch):
    """`rfq compare CONFIG OTHER` with words after it -> the arms it would train."""
    other = tmp_path / "other.py"
    other.write_text(
        pathlib.Path(config).read_text().replace(")\n", ", arm='b', seed=7)\n")
    )

    def parsed(words: str) -> list[experiment.Experiment]:
        seen = []
        monkeypatch.setattr(compare, "run", lambda arms, out: seen.extend(arms))
        argv = ["compare", config, str(other), *words.split()]
        assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 0
        return seen

    return parsed


def test_compare_overrides_every_arm(compared):
    arms = compared("--train.num-steps 9 --quantize.specs FP W8A8")
    assert [arm.arm for arm in arms] == ["tiny", "b"]
    assert {arm.train.num_steps for arm in arms} == {9}
    assert {arm.quantize.specs for arm in arms} == {("FP", "W8A8")}


def test_compare_takes_seeds_from_the_configs_or_from_the_command_line(compared):
    def seeds(words: str) -> list[tuple[str, int]]:
        return [(arm.arm, arm.seed) for arm in compared(words)]

    assert seeds("") == [("tiny", 0), ("b", 7)]
    assert seeds("--seed 4") == [("tiny", 4), ("b", 4)]
    both = [("tiny", 1), ("tiny", 2), ("b", 1), ("b", 2)]
    assert seeds("--seeds 1 2") == both
    assert seeds("--seeds 1 2 --train.num-steps 9") == both


# --- Help ---------------------------------------------------------------------------


def _help(capsys, *argv: str) -> str:
    try:
        status = cli.main([*argv, "--help"])
    except SystemExit as stop:
        status = stop.code
    assert not status
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_the_overview_names_every_command_and_where_to_start(capsys):
    text = _help(capsys)
    for name in cli.COMMANDS:
        assert f"\n  {name} " in text
    assert "rfq prepare embedded --out data/embedded" in text
    assert cli.main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_has_an_example_and_explains_its_arguments(
    capsys, command
):
    text = _help(capsys, command)
    assert f"usage: rfq {command}" in text
    assert f"Example: rfq {command} " in text
    # Each argument's line is followed by words of ours.
    for option in ("--out", "--seeds", "--data-dir", "--window-len"):
        for line in text.splitlines():
            if f"{option} " in line and "usage" not in line:
                assert line.strip("│ \n") != option


def test_the_help_of_a_config_lists_its_fields_with_their_values(config, capsys):
    text = " ".join(_help(capsys, "train", config).replace("│", " ").split())
    for option, value in (
        ("--model.width INT", 16),
        ("--model.skip {residual,residual_free", "residual"),
        ("--optimizer.learning-rate FLOAT", 0.02),
        ("--optimizer.b1 FLOAT", 0.9),
        ("--train.num-steps INT", 12),
        ("--quantize.batch-size INT", 32),
    ):
        assert option in text
        assert f"(default: {value})" in text[text.index(option) :][:300]
    assert "Example: rfq train" in text


def test_the_help_of_a_run_lists_its_grid(tmp_path_factory, capsys):
    run_dir = str(tiny.trained(tmp_path_factory))
    text = " ".join(_help(capsys, "quantize", run_dir).replace("│", " ").split())
    assert f"(default: {' '.join(tiny.SPECS)})" in text


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rfq {cli.__version__}\n"


# --- Dry run ------------------------------------------------------------------------


def _live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def test_a_dry_run_says_what_a_run_costs_and_allocates_nothing(
    config, tmp_path, capsys, monkeypatch, data
):
    tiny.quick(monkeypatch)
    before = _live_bytes()
    assert cli.main(["train", config, "--dry-run"]) == 0
    # A model's worth of arrays would be 40 kB; a random key is 8 bytes.
    assert _live_bytes() - before < 100
    out = capsys.readouterr().out
    given = tiny.experiment(data)
    assert f"{num_params(given.model):,}" in out
    assert experiment.fingerprint(given) in out
    for word in ("FLOPs per step", "optimizer state", "working memory", "placement"):
        assert word in out
    assert "w_q" in out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_no_data(config, capsys, monkeypatch):
    monkeypatch.setattr(plan, "run", lambda arms, target, **options: None)
    argv = ["train", config, "--dry-run", "--data.dir", "nowhere"]
    assert cli.main(argv) == 0


def test_the_dry_run_of_a_compare_covers_each_arm_once(
    config, tmp_path, capsys, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        plan,
        "run",
        lambda arms, target, num_seeds, **options: seen.append((arms, num_seeds)),
    )
    argv = ["compare", config, "--seeds", "0", "1", "--dry-run"]
    assert cli.main(argv) == 0
    ((arms, num_seeds),) = seen
    assert [given.arm for given in arms] == ["tiny"] and num_seeds == 2


@pytest.fixture
def family(tmp_path, data):
    """A family of two arms, of which one is `config`'s experiment."""
    path = tmp_path / "family.py"
    path.write_text(
        "import dataclasses\n\nfrom tests import tiny\n\n\n"
        f"def arms(scale):\n    one = tiny.experiment({str(data)!r})\n"
        "    return [one, dataclasses.replace(one, arm=scale, seed=5)]\n"
    )
    return str(path)


def test_a_family_is_compared_as_a_whole_and_trained_arm_by_arm(
    family, capsys, monkeypatch
):
    seen = []
    monkeypatch.setattr(plan, "run", lambda arms, target, **options: seen.extend(arms))
    words = (family, "--scale", "small", "--dry-run", "--train.num-steps", "9")
    command_lib.said(capsys, "compare", *words)
    command_lib.said(capsys, "train", *words, "--arm", "small")
    assert [given.arm for given in seen] == ["tiny", "small", "small"]
    assert {given.train.num_steps for given in seen} == {9}
    said = command_lib.refused(capsys, "train", *words)
    assert "has 2 arms; say which, with --arm tiny, small" in said
    said = command_lib.refused(capsys, "train", *words, "--arm", "large")
    assert "--arm='large' is unknown; choose from ['small', 'tiny']" in said
    said = command_lib.refused(capsys, "compare", family, "--dry-run")
    assert "say how large, with --scale demo, small or paper" in said


def test_the_help_of_a_family_lists_its_arms(family, capsys):
    text = _help(capsys, "compare", family)
    assert "first arm of: tiny, demo" in text
    assert "first arm of: tiny, paper" in _help(
        capsys, "compare", family, "--scale", "paper"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_describes_a_model_that_can_be_placed(path, monkeypatch):
    tiny.quick(monkeypatch)
    given = experiment.load(ROOT / path)
    compiled = steps.compile_train(given, sharding.make_mesh())
    leaves = jax.tree.leaves(compiled.state.params)
    assert sum(leaf.size for leaf in leaves) == num_params(given.model)


@pytest.mark.slow  # A minute or more each: the step of a whole model is compiled.
@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_can_be_dry_run(path, one_device_env):
    done = subprocess.run(
        [sys.executable, "-m", "rfq", "train", str(path), "--dry-run"],
        cwd=ROOT,
        env=one_device_env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    given = experiment.load(ROOT / path)
    assert f"{num_params(given.model):,}" in done.stdout


def test_data_are_prepared_in_shards_verified_and_inspected(tmp_path, capsys):
    source, out = tmp_path / "many", str(tmp_path / "data")
    source.mkdir()
    for number in range(3):
        texts = [f"{number} {text}" for text in corpora.texts(60)]
        corpora.write_jsonl(source / f"{number}.jsonl", texts)
    command = ("prepare", str(source), "--out", out, "--tokenizer", "byte")
    command = (*command, "--window-len", "32", "--heldout-fraction", "0.2")
    command = (*command, "--calibration-fraction", "0.2", "--dedup")
    # The files are of one unit, so shard 1 has nothing to do and shard 0 everything.
    assert "shard 1/2 is done" in command_lib.said(capsys, *command, "--shard", "1/2")
    assert f"data: {out}" in command_lib.said(capsys, *command, "--shard", "0/2")
    assert f"data: {out}" in command_lib.said(capsys, "prepare", "--verify", out)
    path = tmp_path / "data.json"
    said = command_lib.said(capsys, "inspect", out, "--json", str(path))
    assert "documents" in said and str(path) in said
    assert json.loads(path.read_text())["splits"]["train"]["samples"][0]["text"]
    shard = next((tmp_path / "data").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    assert "is corrupt" in command_lib.refused(capsys, "prepare", "--verify", out)
    assert "must be i/n" in command_lib.refused(capsys, *command, "--shard", "2")
    assert "needs SOURCE" in command_lib.refused(capsys, "prepare")
