import io
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from rfq import cli, compare, experiment, plan, sharding, steps, train
from rfq.errors import Diverged
from rfq.model.config import num_params
from rfq.optim import MuonConfig
from tests import tiny
from tests.data import corpora

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.py")
    # tests/test_ablation.py has the arms of configs/small, among the families.
    if path.parent.name not in ("ablation", "small")
)


@pytest.fixture
def data(tmp_path_factory):
    return tiny.data(tmp_path_factory)


@pytest.fixture
def config(tmp_path, data):
    """A config file outside the repository."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests import tiny\n\n\n"
        f"def config():\n    return tiny.experiment({str(data)!r})\n"
    )
    return str(path)


# --- Bad input ----------------------------------------------------------------------


def _said(capsys, *argv: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert cli.main(argv) == 0
    return capsys.readouterr().out


def _refused(capsys, *argv: str) -> str:
    """The sentence on stderr: one line, exit status 2, nothing compiled."""
    capsys.readouterr()
    with tiny.compilations() as compiled:
        status = cli.main(argv)
    stderr = capsys.readouterr().err
    assert status == 2
    assert compiled == []
    assert stderr.startswith("rfq: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    return stderr


# What follows `rfq train CONFIG --out OUT` -> what the sentence must say.
OVERRIDES = {
    "--model.foo 3": "--model.foo",
    "--modle.width 32": "--modle.width",
    "--model.width 32 extra": "extra",
    "--model.width sixteen": "--model.width",
    "--model.width": "--model.width",
    "--model.skip both": "'residual', 'residual_free'",
    "--model.num-heads 3": "model.width=16 must be a multiple of model.num_heads=3",
    "--model.seq-len 24": "seq_len=24 does not divide",
    "--model.vocab-size 300": "model.vocab_size=300 differs",
    "--model.beta 0": "model.beta=0.0 must be > 0",
    "--train.batch-size 12": "train.batch_size=12 must be a multiple of the 8 devices",
    "--train.num-steps 2": "schedule.warmup_steps=2 must be less than train.num_ste",
    "--train.clip-norm -1": "train.clip_norm=-1.0 must be > 0 or None",
    "--quantize.specs FP W8A17": "act_bits=17 must be an integer from 2 to 16",
    "--quantize.specs W1A8": "weight_bits=1 must be an integer from 2 to 16",
    "--quantize.specs W8A8 8bit": "quantization '8bit' is not in WnAm notation",
    "--quantize.specs A8W8": "quantization 'A8W8' is not in WnAm notation",
    "--quantize.taps some": "quantize.taps='some' is unknown",
    "--optimizer sgd": "--optimizer='sgd' is unknown; choose from ['adamw'",
    "--optimizer": "--optimizer",
    "--optimizer.momentum 0.9": "--optimizer.momentum",
    "--optimizer.b1 1.5": "optimizer.b1=1.5 must be in [0, 1)",
    "--data.tokenizer embedded": "prepared with tokenizer 'byte'",
    "--data.dir nowhere": "nowhere has no manifest.json",
    "--seed -1": "seed=-1 must be >= 0",
    "--arm a/b": "arm='a/b' must be a file name",
}


@pytest.mark.mesh
@pytest.mark.parametrize("words", OVERRIDES)
def test_an_override_that_cannot_be_is_one_sentence(config, tmp_path, capsys, words):
    out = tmp_path / "out"
    stderr = _refused(capsys, "train", config, "--out", str(out), *words.split())
    assert OVERRIDES[words] in stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--model.num-heads 3",
            "model.width=16 must be a multiple of model.num_heads=3",
        ),
        (
            "--train.num-steps 2",
            "schedule.warmup_steps=2 must be less than train.num_steps=2",
        ),
        (
            "--quantize.specs W1A8",
            "weight_bits=1 must be an integer from 2 to 16, or absent for full "
            "precision; write for example W8A6, A8 or FP",
        ),
    ],
)
def test_a_sentence_of_ours_passes_the_parser_as_it_is(config, capsys, words, sentence):
    # The parser would say where it was, and break a long line in two.
    stderr = _refused(capsys, "train", config, "--dry-run", *words.split())
    assert stderr == f"rfq: {sentence}\n"


def test_an_unknown_command_is_one_sentence(capsys):
    assert "command='trian' is unknown" in _refused(capsys, "trian")


@pytest.mark.parametrize("command", ["train", "compare", "quantize", "evaluate"])
def test_a_missing_argument_is_one_sentence(capsys, command):
    assert f"rfq {command}" in _refused(capsys, command)


def test_a_missing_out_is_one_sentence(config, capsys):
    assert "needs --out DIR" in _refused(capsys, "train", config)
    assert "needs --out DIR" in _refused(capsys, "compare", config)
    assert "--out" in _refused(capsys, "prepare", "embedded")


def test_an_unwritable_out_is_one_sentence(config, capsys):
    for argv in (("train", config), ("compare", config)):
        stderr = _refused(capsys, *argv, "--out", f"{config}/below")
        assert "cannot be written" in stderr
    assert "file" in _refused(capsys, "prepare", "embedded", "--out", config)


def test_what_is_no_config_is_one_sentence(tmp_path, capsys):
    def sentence(text: str, name: str = "config.py") -> str:
        (tmp_path / name).write_text(text)
        return _refused(capsys, "train", str(tmp_path / name), "--out", "x")

    assert "is not a file" in _refused(capsys, "train", "absent.py", "--out", "x")
    assert "is not a file" in _refused(capsys, "train", str(tmp_path), "--out", "x")
    assert "is not a Python file" in sentence("", "config.yaml")
    assert "no function config()" in sentence("experiment = 3\n")
    assert "returned int, not an" in sentence("def config():\n    return 3\n")
    wrong = "from rfq.model.config import ModelConfig\nModelConfig(width=100)\n"
    assert "model.width=100 must be a multiple" in sentence(wrong)


def test_data_that_are_not_whole_are_one_sentence(config, data, tmp_path, capsys):
    def sentence(directory: pathlib.Path) -> str:
        argv = ("--out", str(tmp_path / "out"), "--data.dir", str(directory))
        return _refused(capsys, "train", config, *argv)

    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in sentence(tmp_path / "empty")
    damaged = tiny.copied(data, tmp_path)
    shard = next(damaged.glob("heldout-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-64])
    assert f"shard {shard} has" in sentence(damaged)
    shard.unlink()
    assert f"shard {shard} is missing" in sentence(damaged)


def test_text_that_cannot_be_prepared_is_one_sentence(tmp_path, capsys):
    out = ("--out", str(tmp_path / "data"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    assert "UTF-8" in _refused(capsys, "prepare", str(tmp_path / "latin.txt"), *out)
    assert "absent.txt" in _refused(capsys, "prepare", "absent.txt", *out)
    (tmp_path / "empty.txt").write_text("")
    _refused(capsys, "prepare", str(tmp_path / "empty.txt"), *out)
    stderr = _refused(capsys, "prepare", "embedded", *out, "--tokenizer", "none.model")
    assert "'none.model'" in stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_what_is_no_run_is_one_sentence(tmp_path, capsys, command):
    assert "is not a run directory" in _refused(capsys, command, str(tmp_path))
    assert "is not a run directory" in _refused(capsys, command, "absent")


@pytest.mark.slow
def test_a_grid_that_cannot_be_is_one_sentence(tmp_path_factory, tmp_path, capsys):
    run_dir = str(tiny.copied(tiny.trained(tmp_path_factory), tmp_path))
    for words, says in (
        (("--bits", "8"), "--bits"),
        (("--specs", "FP W8A1"), "act_bits=1 must be an integer from 2 to 16"),
        (("--streams", "sideways"), "quantize.streams='sideways' is unknown"),
    ):
        assert says in _refused(capsys, "quantize", run_dir, *words)


def test_what_is_no_compare_directory_is_one_sentence(tmp_path, capsys):
    assert "rfq compare" in _refused(capsys, "report", str(tmp_path))
    assert "is not a directory" in _refused(capsys, "report", str(tmp_path / "absent"))


def test_an_override_before_the_configs_is_one_sentence(config, capsys):
    stderr = _refused(capsys, "compare", "--train.num-steps", "9", config, "--out", "x")
    assert "before any override" in stderr


def test_an_error_reads_the_same_where_no_box_can_be_drawn(config, capsys, monkeypatch):
    argv = ("train", config, "--dry-run", "--model.skip", "both")
    drawn = _refused(capsys, *argv)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "latin-1"))
    assert _refused(capsys, *argv) == drawn
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert _refused(capsys, *argv) == drawn


def test_bad_input_ends_the_process_with_2_and_no_traceback(config, one_device_env):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rfq",
            "train",
            config,
            "--out",
            "x",
            "--model.foo",
            "3",
        ],
        cwd=ROOT,
        env=one_device_env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"rfq: unrecognized options: --model.foo, 3; see `rfq train {config} --help`\n"
    )


def test_divergence_and_interruption_have_their_own_status(
    config, tmp_path, capsys, monkeypatch
):
    def raising(error: BaseException) -> int:
        def run(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(train, "run", run)
        return cli.main(["train", config, "--out", str(tmp_path / "out")])

    assert raising(Diverged("training diverged: loss not finite at step 7")) == 1
    assert capsys.readouterr().err == (
        "rfq: training diverged: loss not finite at step 7\n"
    )
    assert raising(KeyboardInterrupt()) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    # Anything else is a bug of ours and keeps its traceback.
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


# --- Overrides ----------------------------------------------------------------------


@pytest.fixture
def trained(config, tmp_path, monkeypatch):
    """`rfq train CONFIG` with some words after it -> the experiment it would train."""

    def parsed(words: str) -> experiment.Experiment:
        seen = []
        monkeypatch.setattr(train, "run", lambda given, out: seen.append(given))
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
        ("--optimizer.b1 0.5", "optimizer", {"b1": 0.5}),
        ("--optimizer.learning-rate 3e-3", "optimizer", {"learning_rate": 3e-3}),
        ("--model.remat", "model", {"remat": True}),
        ("--model.no-remat", "model", {"remat": False}),
        ("--sharding.strategy fsdp", "sharding", {"strategy": "fsdp"}),
    ],
)
def test_a_field_is_overridden_and_no_other(trained, data, words, section, fields):
    expected = tiny.with_fields(tiny.experiment(data), section, **fields)
    assert trained(words) == expected


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
        ("--model.skip {residual,residual_free}", "residual"),
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
    monkeypatch.setattr(plan, "run", lambda arms, **options: None)
    argv = ["train", config, "--dry-run", "--data.dir", "nowhere"]
    assert cli.main(argv) == 0


def test_the_dry_run_of_a_compare_covers_each_arm_once(
    config, tmp_path, capsys, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        plan, "run", lambda arms, num_seeds, **options: seen.append((arms, num_seeds))
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
    monkeypatch.setattr(plan, "run", lambda arms, **options: seen.extend(arms))
    words = (family, "--scale", "small", "--dry-run", "--train.num-steps", "9")
    _said(capsys, "compare", *words)
    _said(capsys, "train", *words, "--arm", "small")
    assert [given.arm for given in seen] == ["tiny", "small", "small"]
    assert {given.train.num_steps for given in seen} == {9}
    said = _refused(capsys, "train", *words)
    assert "has 2 arms; say which, with --arm tiny, small" in said
    said = _refused(capsys, "train", *words, "--arm", "large")
    assert "--arm='large' is unknown; choose from ['small', 'tiny']" in said
    said = _refused(capsys, "compare", family, "--dry-run")
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
    assert "shard 1/2 is done" in _said(capsys, *command, "--shard", "1/2")
    assert f"data: {out}" in _said(capsys, *command, "--shard", "0/2")
    assert f"data: {out}" in _said(capsys, "prepare", "--verify", out)
    path = tmp_path / "data.json"
    said = _said(capsys, "inspect", out, "--json", str(path))
    assert "documents" in said and str(path) in said
    assert json.loads(path.read_text())["splits"]["train"]["samples"][0]["text"]
    shard = next((tmp_path / "data").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    assert "is corrupt" in _refused(capsys, "prepare", "--verify", out)
    assert "must be i/n" in _refused(capsys, *command, "--shard", "2")
    assert "needs SOURCE" in _refused(capsys, "prepare")
