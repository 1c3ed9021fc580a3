"""`rfq train --from RUN`: the same model goes on, and what does not fit is refused."""

import dataclasses
import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest

from rfq import cli, continued, metrics, runs, train
from rfq import experiment as experiment_lib
from rfq.errors import InputError
from rfq.model import transformer
from rfq.origins import StartConfig
from tests import tiny

CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "continued"
# Kills before the first checkpoint, at 4, and after it.
KILLS = (2, 6)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture
def source(tmp_path_factory):
    return tiny.trained(tmp_path_factory)


@pytest.fixture
def given(tmp_path_factory):
    """What goes on, without its start: another rate and another seed."""
    base = tiny.experiment(tiny.data(tmp_path_factory), arm="more", seed=5)
    return tiny.with_fields(base, "optimizer", learning_rate=1e-3)


def annealed(given):
    """The same with skips that are taken away over half of the run."""
    given = tiny.with_fields(given, "model", skip="weighted")
    return tiny.with_fields(given, "train", skip_anneal=0.5)


def goes_on(given, place, out):
    found = continued.find(place, out)
    train.run(continued.continuing(given, found), out, found)


def final(given, run_dir):
    shapes = transformer.shapes(given.model)
    return jax.device_get(runs.final_params(given, run_dir, shapes))


def measured(run_dir):
    return [row["loss"] for row in metrics.read(run_dir / "measures.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that went on from `tiny.trained` with skips that are taken away."""
    given = annealed(tiny.experiment(tiny.data(tmp_path_factory), arm="more", seed=5))
    given = tiny.with_fields(given, "optimizer", learning_rate=1e-3)
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny.quick(patch)
        goes_on(given, tiny.trained(tmp_path_factory), out)
    return given, out


@pytest.mark.slow
def test_a_run_goes_on_with_the_loss_and_the_parameters_of_its_source(
    source, given, tmp_path, monkeypatch
):
    # A rate of 0 keeps what it starts with.
    given = tiny.with_fields(given, "optimizer", learning_rate=0.0)
    goes_on(given, source, tmp_path / "out")
    assert measured(tmp_path / "out") == [measured(source)[-1]] * 3
    chex.assert_trees_all_equal(final(given, tmp_path / "out"), final(given, source))
    # Another run that draws its own parameters begins elsewhere.
    assert measured(source)[0] > measured(source)[-1] + 1.0


def test_skips_that_become_weighted_start_at_the_source_s_loss_and_end_at_zero(
    source, whole
):
    given, out = whole
    assert measured(out)[0] == measured(source)[-1]
    np.testing.assert_array_equal(final(given, out)["blocks"]["skip_weight"], 0.0)


def test_what_a_run_started_with_is_recorded(source, whole):
    _, out = whole
    described = json.loads((source / "config.json").read_text())
    experiment, _ = runs.load(out)
    assert experiment.start == StartConfig(
        arm="tiny",
        fingerprint=described["fingerprint"],
        data_fingerprint=described["data_fingerprint"],
    )
    told = json.loads((out / "source.json").read_text())
    assert told == {"run": str(source.absolute()), "config": described}
    # A run that drew its own parameters is another experiment.
    alone = dataclasses.replace(experiment, start=StartConfig())
    fingerprints = map(experiment_lib.fingerprint, (experiment, alone))
    assert len(set(fingerprints)) == 2


def test_a_killed_run_ends_as_the_uninterrupted_one_though_its_source_is_gone(
    source, whole, tmp_path, monkeypatch
):
    given, expected = whole
    place = shutil.copytree(source, tmp_path / "source")
    update = metrics.Progress.update
    for kill in KILLS:

        def killed(self, step, note="", kill=kill):
            update(self, step, note)
            if step == kill:
                raise tiny.Killed

        with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
            patch.setattr(metrics.Progress, "update", killed)
            goes_on(given, place, tmp_path / "out")
    shutil.rmtree(place)
    goes_on(given, place, tmp_path / "out")
    for name in ("metrics.jsonl", "measures.jsonl", "done.json"):
        assert tiny.lines(tmp_path / "out" / name) == tiny.lines(expected / name)
    ours, theirs = (final(given, run_dir) for run_dir in (tmp_path / "out", expected))
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.slow
def test_a_source_that_is_gone_too_early_is_missed_by_name(
    source, given, tmp_path, monkeypatch
):
    place = shutil.copytree(source, tmp_path / "source")
    with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
        tiny.kill_after(patch, metrics, "append", 1)
        goes_on(given, place, tmp_path / "out")
    shutil.rmtree(place)
    with pytest.raises(InputError, match=r"'tiny', which is no longer in .*--from"):
        goes_on(given, place, tmp_path / "out")
    found = continued.find(source, tmp_path / "other")
    with pytest.raises(InputError, match="give the directory of that run with --from"):
        train.run(continued.continuing(given, found), tmp_path / "other")


@pytest.mark.slow
def test_weights_of_skips_are_annealed_from_what_they_are(whole, tmp_path):
    given, out = whole
    with pytest.raises(InputError, match=r"skip_weight=1.0, .* from 0 to 0; give"):
        goes_on(given, out, tmp_path / "again")
    # Without annealing they stay at 0.
    kept = tiny.with_fields(given, "train", skip_anneal=0.0)
    goes_on(kept, out, tmp_path / "kept")
    assert measured(tmp_path / "kept")[0] == measured(out)[-1]
    weights = final(kept, tmp_path / "kept")["blocks"]["skip_weight"]
    np.testing.assert_array_equal(weights, 0.0)


# --- The command ---------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    """`rfq train CONFIG --from RUN --out DIR` -> what would be trained."""

    def run(path, place, out, *words):
        seen = []
        monkeypatch.setattr(train, "run", lambda *given: seen.append(given))
        monkeypatch.setattr("rfq.commands.train._say_result", lambda *_: None)
        argv = ["train", str(path), "--from", str(place), "--out", str(out), *words]
        assert cli.main(argv) == 0
        return seen[0][0]

    return run


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_a_config_that_goes_on_takes_model_and_data_from_the_run(
    source, given, tmp_path, command, path
):
    made = command(path, source, tmp_path, "--train.num-steps", "30")
    own, _ = runs.load(source)
    assert made.arm == f"tiny_{path.stem}"
    assert made.data == own.data
    same = {"skip": own.model.skip, "remat": own.model.remat}
    assert dataclasses.replace(made.model, **same) == own.model
    assert made.train.num_steps == 30
    assert (made.model.skip == "weighted") == (path.stem == "without_skips")
    assert experiment_lib.from_dict(experiment_lib.to_dict(made)) == made


def test_a_config_of_one_s_own_may_differ_in_its_skip(source, tmp_path, command):
    path = tmp_path / "mine.py"
    path.write_text(
        "from tests import tiny\n"
        "def config():\n"
        f"    made = tiny.experiment({str(runs.load(source)[0].data.dir)!r})\n"
        "    return tiny.with_fields(made, 'model', num_kv_heads=2)\n"
    )
    words = ["--model.skip", "weighted", "--train.skip-anneal", "0.5"]
    made = command(path, source, tmp_path / "out", *words)
    assert (made.model.skip, made.train.skip_anneal) == ("weighted", 0.5)
    assert made.start.arm == "tiny"


def test_a_run_that_is_gone_is_known_from_what_went_on(whole, tmp_path, command):
    _, out = whole
    made = command(CONFIGS / "adamw.py", tmp_path / "nowhere", out)
    assert made.model.width == tiny.MODEL.width
    assert cli.main(["train", "continued/adamw", "--from", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.num-layers", "3"], "model.num_layers=3 does not agree with 2 of"),
        (["--model.norm", "layer_norm"], "give --model.norm rms_norm, or a config"),
        (["--model.vocab-size", "300"], "model.vocab_size=300 does not agree with 259"),
        (["--model.skip", "residual_free"], "give --model.skip residual, or weighted"),
        (["--data.tokenizer", "embedded"], "ids would stand for other text"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_model_or_tokenizer_that_does_not_agree_is_refused(
    source, tmp_path, monkeypatch, capsys, words, said
):
    tiny.no_work(monkeypatch)
    out = tmp_path / "out"
    argv = ["train", "continued/adamw", "--from", str(source), "--out", str(out)]
    with tiny.compilations() as compiled:
        assert cli.main([*argv, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert compiled == []
    assert not out.exists()


def test_runs_that_cannot_be_gone_on_from_are_refused(source, tmp_path, capsys):
    copy = tiny.copied(source, tmp_path)
    argv = ["train", "continued/adamw", "--from", str(copy)]
    assert cli.main([*argv, "--out", str(copy)]) == 2
    assert "--from and --out are both" in capsys.readouterr().err
    (copy / "done.json").unlink()
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert "is not trained to its last step" in capsys.readouterr().err
    assert cli.main(["train", "continued/adamw", "--out", str(tmp_path / "out")]) == 2
    assert "goes on from another run; say from which" in capsys.readouterr().err


def test_another_tokenizer_is_another_even_with_as_many_ids(
    source, given, tmp_path, monkeypatch
):
    found = continued.find(source, None)
    recipe = dict(found.described["data"]["recipe"], tokenizer_fingerprint="f" * 64)
    described = dict(found.described, data={"recipe": recipe})
    with pytest.raises(InputError, match=r"that of .* ffffffffffff"):
        continued.continuing(given, found._replace(described=described))
    # A run that does not record its tokenizer's fingerprint is asked for the tokenizer.
    older = found._replace(described=dict(found.described, data={}))
    assert continued.continuing(given, older).start.arm == "tiny"
