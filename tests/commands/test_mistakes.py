"""Every mistake that a person can make is one sentence and a status."""

import errno
import functools
import io
import pathlib
import shutil
import sys

import jax
import pytest

from rfq import cli, files, train
from rfq.errors import Diverged
from tests import tiny
from tests.commands import command

# What follows `rfq train CONFIG --out OUT` -> what the sentence must say.
OVERRIDES = {
    "--model.foo 3": "--model.foo is no field of model, which is ModelConfig with ",
    "--modle.width 32": "--modle.width is unknown",
    "--model.widht 32": "did you mean width?",
    "--optimizer muno": "did you mean muon?",
    "--dry-rnu": "did you mean --dry-run?",
    "--model.width 32 extra": "extra",
    "--model.width sixteen": "--model.width",
    "--model.width": "--model.width",
    "--model.skip both": "'residual', 'residual_free'",
    "--model.num-heads 3": "model.width=16 must be a multiple of model.num_heads=3",
    "--model.seq-len 24": "seq_len=24 does not divide",
    "--model.vocab-size 300": "model.vocab_size=300 differs",
    "--model.beta 0": "model.beta=0.0 must be > 0",
    "--train.batch-size 12": "train.batch_size=12 must be a multiple of the 8 devices",
    "--train.num-steps 2": "for a run this short give --schedule.warmup-steps 0 too",
    "--train.clip-norm -1": "train.clip_norm=-1.0 must be > 0 or None",
    "--quantize.specs FP W8A17": "act_bits=17 must be an integer from 2 to 16",
    "--quantize.specs W1A8": "weight_bits=1 must be an integer from 2 to 16",
    "--quantize.specs W8A8 8bit": "quantization '8bit' is not in WnAm notation",
    "--quantize.specs A8W8": "quantization 'A8W8' is not in WnAm notation",
    "--quantize.taps some": "quantize.taps='some' is unknown",
    "--optimizer sgd": "--optimizer='sgd' is unknown; choose from ['adamw'",
    "--optimizer": "--optimizer",
    "--optimizer.momentum 0.9": "which is AdamWConfig with learning-rate",
    "--optimizer muon --optimizer.b2 .9": "which is MuonConfig with learning-rate",
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
    stderr = command.refused(capsys, "train", config, "--out", str(out), *words.split())
    assert OVERRIDES[words] in stderr
    assert not out.exists()


# Words of a command -> what the sentence must say. Stood in for: CONFIG, a config file;
# TMP, a fresh directory; RUN, a finished run.
COMMANDS = {
    "trian": "command='trian' is unknown",
    "tarin CONFIG": "did you mean train?",
    "bench": "give one of `rfq bench train`, `rfq bench optim`, `rfq bench quan",
    "bench optmi": "did you mean bench optim?",
    "train": "rfq train",
    "compare": "needs at least one config, before any override",
    "quantize": "rfq quantize",
    "evaluate": "rfq evaluate",
    "train CONFIG": "needs --out DIR",
    "compare CONFIG": "needs --out DIR",
    "prepare": "needs SOURCE",
    "prepare embedded": "--out",
    "train CONFIG --out CONFIG/below": "cannot be written",
    "compare CONFIG --out CONFIG/below": "cannot be written",
    "prepare embedded --out CONFIG": "file",
    "train absent.py --out TMP": "'absent.py' is not a file, nor one that comes with",
    "train TMP --out TMP": "is not a file, nor one that comes with rfq",
    "train demo/residual_adam --out TMP": "did you mean demo/residual_adamw?",
    "train demo --out TMP": "is a folder of 4; give one of them, such as",
    "train CONFIG --out TMP --data.dir TMP": "has no manifest.json",
    "prepare absent.txt --out TMP/data": "absent.txt",
    "prepare embedded --out TMP/data --tokenizer none.model": "'none.model'",
    "quantize TMP": "is not a run directory",
    "quantize absent": "is not a run directory",
    "evaluate TMP": "is not a run directory",
    "evaluate absent": "is not a run directory",
    "report TMP": "rfq compare",
    "report TMP/absent": "is not a directory",
    "compare --train.num-steps 9 CONFIG --out x": "before any override",
    "evaluate TMP --taks all": "--taks is unknown; see `rfq evaluate --help`; did you",
    "quantize TMP --spesc FP": "did you mean --specs?",
    "quantize RUN --bits 8": "--bits is unknown",
    "quantize RUN --specs FP W8A1": "act_bits=1 must be an integer from 2 to 16",
    "quantize RUN --streams sideways": "quantize.streams='sideways' is unknown",
    "evaluate RUN --data-dir OTHER": "are not those that RUN was trained on",
    "quantize RUN --data-dir OTHER": "are not those that RUN was trained on",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands for the names in capitals in `COMMANDS`, but for TMP."""
    return {
        "RUN": str(tiny.trained(tmp_path_factory)),
        "OTHER": str(tiny.prepared(tmp_path_factory.mktemp("other"), salt=1)),
    }


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_that_cannot_be_is_one_sentence(
    config, places, tmp_path, capsys, words
):
    (tmp_path / "tmp").mkdir()
    names = {**places, "CONFIG": config, "TMP": str(tmp_path / "tmp")}

    def put_in(text: str) -> str:
        return functools.reduce(
            lambda t, name: t.replace(name, names[name]), names, text
        )

    argv = [put_in(word) for word in words.split()]
    assert put_in(COMMANDS[words]) in command.refused(capsys, *argv)
    assert not (tmp_path / "tmp" / "data").exists()


LOCKED = {
    "train CONFIG --out DIR": "DIR",
    "compare CONFIG --out DIR": "DIR",
    "quantize DIR --specs FP": "DIR",
    "evaluate DIR": "DIR",
    "evaluate DIR --tasks cloze": "DIR",
    "quantize RUN --specs W8 --export DIR": "DIR",
}


@pytest.mark.parametrize("words", LOCKED)
def test_a_directory_in_which_another_process_works_is_left_alone(
    config, places, tmp_path, capsys, words
):
    run_dir = tiny.copied(pathlib.Path(places["RUN"]), tmp_path)
    names = {"DIR": str(run_dir), "CONFIG": config, "RUN": places["RUN"]}
    with files.locked(run_dir):
        said = command.refused(
            capsys, *(names.get(word, word) for word in words.split())
        )
    assert f"{str(run_dir)!r} is in use by another process (pid " in said


def test_a_config_is_refused_by_what_it_holds(tmp_path, capsys):
    def sentence(text: str, name: str = "config.py") -> str:
        (tmp_path / name).write_text(text)
        return command.refused(capsys, "train", str(tmp_path / name), "--out", "x")

    assert "is not a Python file" in sentence("", "config.yaml")
    assert "no function config()" in sentence("experiment = 3\n")
    assert "returned int, not an" in sentence("def config():\n    return 3\n")
    wrong = "from rfq.model.config import ModelConfig\nModelConfig(width=100)\n"
    assert "line 2: model.width=100 must be a multiple" in sentence(wrong)


def test_data_that_are_not_whole_are_one_sentence(config, data, tmp_path, capsys):
    def sentence(directory: pathlib.Path) -> str:
        argv = ("--out", str(tmp_path / "out"), "--data.dir", str(directory))
        return command.refused(capsys, "train", config, *argv)

    damaged = tiny.copied(data, tmp_path)
    shard = next(damaged.glob("heldout-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-64])
    assert f"shard {shard} has" in sentence(damaged)
    shard.unlink()
    assert f"shard {shard} is missing" in sentence(damaged)


def test_text_that_cannot_be_prepared_is_one_sentence(tmp_path, capsys):
    out = ("--out", str(tmp_path / "data"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    assert "UTF-8" in command.refused(
        capsys, "prepare", str(tmp_path / "latin.txt"), *out
    )
    (tmp_path / "empty.txt").write_text("")
    command.refused(capsys, "prepare", str(tmp_path / "empty.txt"), *out)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--model.num-heads 3",
            "model.width=16 must be a multiple of model.num_heads=3",
        ),
        (
            "--model.skip both",
            "error parsing --model.skip: invalid choice 'both'",
        ),
    ],
)
def test_an_error_reads_the_same_where_no_box_can_be_drawn(
    config, capsys, monkeypatch, words, sentence
):
    argv = ("train", config, "--dry-run", *words.split())
    drawn = command.refused(capsys, *argv)
    # A sentence of ours passes the parser as it is, however long.
    assert drawn == f"rfq: {sentence}\n" or "--model.skip" in words
    for encoding in ("latin-1", "utf-8"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert command.refused(capsys, *argv) == drawn


# What stops a run somewhere in its middle -> what the sentence must say.
EXHAUSTED = {
    MemoryError(): "out of memory (for Python objects",
    jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.\n"
        "BufferAssignment OOM Debugging."
    ): "out of memory (Out of memory while trying to allocate 8589934592 bytes",
    OSError(errno.ENOSPC, "No space left on device", "runs/a"): (
        "there is no room on the disk under 'runs/a' (No space left on device); make"
    ),
}


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_a_machine_that_is_too_small_is_one_sentence(
    config, tmp_path, capsys, monkeypatch, error
):
    def run(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(train, "run", run)
    said = command.refused(capsys, "train", config, "--out", str(tmp_path / "out"))
    assert EXHAUSTED[error] in said


@pytest.mark.slow
def test_a_model_larger_than_the_machine_is_one_sentence(config, tmp_path, capsys):
    # 16 TB of parameters: XLA itself refuses to allocate them.
    words = ("--model.width", "1048576", "--log.measure-every", "12")
    assert cli.main(["train", config, "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rfq: out of memory (") and said.count("\n") == 1
    assert "lower train.batch_size" in said


def test_a_disk_without_room_for_a_checkpoint_is_one_sentence_and_no_loss(
    config, tmp_path, capsys, monkeypatch
):
    tiny.quick(monkeypatch)
    argv = ["train", config, "--out", str(tmp_path / "out")]
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        free = iter([usage.free, 3 << 10])  # For the first of three checkpoints.
        patch.setattr(
            shutil, "disk_usage", lambda path: usage._replace(free=next(free))
        )
        assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "the checkpoint of step 8 cannot be written" in said
    assert "MiB, and 0.0 are free); make room" in said and said.count("\n") == 1
    assert "resuming at step 4" in command.said(capsys, *argv)


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
