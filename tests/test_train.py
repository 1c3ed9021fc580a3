import dataclasses
import json
import math
import pathlib
import signal

import chex
import jax
import numpy as np
import pytest

from rfq import checkpoint, experiment, metrics, sharding, steps, train
from rfq.data import pipeline
from rfq.errors import Diverged, InputError, Preempted
from rfq.model.config import BLOCK_SITES, TAP_SETS, num_params
from rfq.optim import schedule
from tests import tiny


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture
def given(tmp_path_factory):
    return tiny.experiment(tiny.data(tmp_path_factory))


@pytest.fixture
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    return tiny.trained(tmp_path_factory)


def _state(run_dir: pathlib.Path, given: experiment.Experiment):
    """The last checkpoint: parameters, optimizer state and what is said of them."""
    compiled = steps.compile_train(given, sharding.make_mesh())
    with checkpoint.Checkpoints(run_dir) as saved:
        step = saved.latest_step()
        meta = {k: v for k, v in saved.meta(step).items() if k not in tiny.TIMES}
        return (
            jax.device_get(saved.params(step, compiled.state.params)),
            jax.device_get(saved.opt_state(step, compiled.state.opt_state)),
            meta,
        )


def _assert_same_run(run_dir, whole, given):
    for name in ("metrics.jsonl", "measures.jsonl"):
        assert tiny.lines(run_dir / name) == tiny.lines(whole / name)
    assert tiny.lines(run_dir / "done.json") == tiny.lines(whole / "done.json")
    ours, theirs = _state(run_dir, given), _state(whole, given)
    chex.assert_trees_all_equal(ours[:2], theirs[:2])
    assert ours[2] == theirs[2]


def test_a_run_writes_its_metrics(whole, given):
    rows = metrics.read(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(2, tiny.NUM_STEPS + 1, 2))
    for row in rows:
        assert set(row) >= {
            "step", "loss", "learning_rate", "grad_norm", "tokens_per_second",
        }  # fmt: skip
        assert all(math.isfinite(value) for value in row.values())
        assert row["tokens_per_second"] > 0
    rate = schedule.make(given.schedule, given.optimizer.learning_rate, tiny.NUM_STEPS)
    # Step n is the optimizer's call n - 1.
    expected = [float(rate(row["step"] - 1)) for row in rows]
    np.testing.assert_allclose([r["learning_rate"] for r in rows], expected, rtol=1e-6)


def test_a_run_writes_what_it_measured_on_held_out_text(whole, given):
    rows = metrics.read(whole / "measures.jsonl")
    assert [row["step"] for row in rows] == [0, 6, 12]
    for row in rows:
        assert row["num_tokens"] == 16 * tiny.SEQ_LEN
        assert set(row["sites"]) == {*BLOCK_SITES, "final_norm_in"}
        for site, numbers in row["sites"].items():
            num_layers = 1 if site == "final_norm_in" else given.model.num_layers
            assert {len(values) for values in numbers.values()} == {num_layers}
            assert set(numbers) >= {"excess_kurtosis", "rms", "mean"}
            ends = [numbers["range_lo"], numbers["range_hi"]]
            # The largest magnitude is at least the root of the mean square.
            assert np.all(np.max(np.abs(ends), axis=0) >= numbers["rms"])
            assert np.all(np.less(*ends))
        for site in TAP_SETS["paper"]:
            numbers = row["sites"][site]
            counts = np.asarray(numbers["counts"])
            assert counts.shape[1] == len(row["edges"]) - 1
            np.testing.assert_array_equal(counts.sum(1), numbers["sampled_values"])


def test_a_run_says_whose_it_is_and_that_it_is_done(whole, given):
    described = json.loads((whole / "config.json").read_text())
    assert experiment.from_dict(described["experiment"]) == given
    done = json.loads((whole / "done.json").read_text())
    last = metrics.read(whole / "metrics.jsonl")[-1]
    assert done["num_steps"] == tiny.NUM_STEPS
    assert done["loss"] == last["loss"]
    assert done["seconds"] > 0
    # Parameters and two moments in float32; the rest are counters and flags.
    floats = 3 * 4 * num_params(given.model)
    assert floats <= done["state_bytes"] < 1.01 * floats + 64
    assert done["peak_bytes"] is None or done["peak_bytes"] >= done["state_bytes"]
    sequences = pipeline.open_split(given.data.dir, "train", given.model.seq_len)
    seen = tiny.NUM_STEPS * given.train.batch_size
    assert done["epochs"] == [pytest.approx(seen / len(sequences))]
    saved = sorted(int(path.name) for path in (whole / "checkpoints").iterdir())
    assert saved == [8, 12]
    assert not (whole / "failed.json").exists()


def test_training_learns(whole):
    logged = [row["loss"] for row in metrics.read(whole / "metrics.jsonl")]
    measured = [row["loss"] for row in metrics.read(whole / "measures.jsonl")]
    # At the start every byte is as likely as any other, ln 259 = 5.56; the text has ten
    # words, so most of that is gone as soon as the bytes that occur are known.
    assert measured[0] == pytest.approx(math.log(259), abs=0.2)
    assert logged == sorted(logged, reverse=True)
    assert logged[-1] < logged[0] - 1.5
    assert measured[-1] < measured[0] - 1.5


def test_a_finished_run_returns_at_once(whole, given, tmp_path, monkeypatch):
    run_dir = tiny.copied(whole, tmp_path)
    tiny.no_work(monkeypatch)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with tiny.compilations() as compiled:
        train.run(given, run_dir)
    assert compiled == []
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_a_run_killed_three_times_is_the_uninterrupted_one(
    whole, given, tmp_path, monkeypatch
):
    # Checkpoints are at 4, 8 and 12; the first kill is before any of them.
    rng = np.random.default_rng(2)
    kills = [int(rng.integers(1, 4)), *sorted(rng.choice(np.arange(5, 12), 2, False))]
    update = metrics.Progress.update
    for kill in kills:

        def killed(self, step, note, kill=kill):
            update(self, step, note)
            if step == kill:
                raise tiny.Killed

        with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
            patch.setattr(metrics.Progress, "update", killed)
            train.run(given, tmp_path)
        assert not (tmp_path / "done.json").exists()
    # A kill can also cut the last line in two.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    train.run(given, tmp_path)
    _assert_same_run(tmp_path, whole, given)


@pytest.mark.slow  # It compiles a step of its own.
@pytest.mark.parametrize("kind", ["round", "noise"])
def test_a_run_killed_while_it_trains_through_rounding_is_the_uninterrupted_one(
    kind, given, tmp_path, monkeypatch
):
    given = tiny.with_fields(given, "qat", spec="W4A4", kind=kind, start=0.25, every=2)
    train.run(given, tmp_path / "whole")

    def killed(self, step, note):
        if step == 7:
            raise tiny.Killed

    run_dir = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
        patch.setattr(metrics.Progress, "update", killed)
        train.run(given, run_dir)
    train.run(given, run_dir)
    _assert_same_run(run_dir, tmp_path / "whole", given)


@pytest.mark.parametrize(
    ("owner", "name", "num_calls"),
    [
        (metrics, "append", 1),  # Before the first logged row.
        (metrics, "append", 5),  # Between a row and what is measured at its step.
        (checkpoint.Checkpoints, "save", 1),  # Before the second checkpoint.
        (checkpoint.Checkpoints, "save", 2),  # Before the last one.
    ],
)
def test_a_run_killed_between_two_writes_is_the_uninterrupted_one(
    whole, given, tmp_path, monkeypatch, owner, name, num_calls
):
    with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
        tiny.kill_after(patch, owner, name, num_calls)
        train.run(given, tmp_path)
    train.run(given, tmp_path)
    _assert_same_run(tmp_path, whole, given)


def test_a_run_killed_after_its_last_checkpoint_only_says_that_it_is_done(
    whole, given, tmp_path, monkeypatch
):
    run_dir = tiny.copied(whole, tmp_path)
    seconds = json.loads((run_dir / "done.json").read_text())["seconds"]
    (run_dir / "done.json").unlink()
    compiled = steps.compile_train(given, sharding.make_mesh())
    lazy = dataclasses.replace(compiled, train=None, init=None)
    monkeypatch.setattr(steps, "compile_train", lambda given, mesh: lazy)
    train.run(given, run_dir)
    _assert_same_run(run_dir, whole, given)
    assert json.loads((run_dir / "done.json").read_text())["seconds"] == seconds


def test_a_damaged_checkpoint_is_named_and_the_one_before_leads_to_the_same_end(
    whole, given, tmp_path, capsys
):
    run_dir = tiny.copied(whole, tmp_path)
    (run_dir / "done.json").unlink()
    last = run_dir / "checkpoints" / "12"
    path = max(last.joinpath("params").rglob("*"), key=lambda path: path.stat().st_size)
    path.write_bytes(b"")
    train.run(given, run_dir)
    said = capsys.readouterr().out
    assert f"warning: checkpoint {last} cannot be used" in said
    assert path.name in said
    assert "goes on from step 8" in said
    _assert_same_run(run_dir, whole, given)
    assert (run_dir / "checkpoints" / "damaged-12").is_dir()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name
)
def test_a_run_told_to_end_saves_its_step_and_goes_on_to_the_same_end(
    whole, given, tmp_path, monkeypatch, number
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
        tiny.signal_at(patch, step=5, number=number)
        train.run(given, tmp_path)
    # The step in flight is the last one, and it is saved when the exception arrives.
    assert "saved at step 5 of 12" in str(caught.value)
    assert (tmp_path / "checkpoints" / "5").is_dir()
    assert not (tmp_path / "done.json").exists()
    now = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    assert now == handlers
    train.run(given, tmp_path)
    _assert_same_run(tmp_path, whole, given)


def test_a_run_told_to_end_in_its_last_step_is_finished_and_ends_all_the_same(
    whole, given, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
        tiny.signal_at(patch, step=tiny.NUM_STEPS, number=signal.SIGTERM)
        train.run(given, tmp_path)
    assert "training is finished" in str(caught.value)
    assert (tmp_path / "done.json").exists()
    train.run(given, tmp_path)  # Nothing is left to do.
    _assert_same_run(tmp_path, whole, given)


def test_a_checkpoint_of_another_experiment_is_refused_by_the_field(
    whole, given, tmp_path
):
    run_dir = tiny.copied(whole, tmp_path)
    (run_dir / "done.json").unlink()
    (run_dir / "config.json").unlink()
    other = tiny.with_fields(given, "optimizer", weight_decay=0.5)
    with pytest.raises(InputError) as caught:
        train.run(other, run_dir)
    assert "the checkpoint of step 12" in str(caught.value)
    assert "optimizer.weight_decay is 0.01 there and 0.5 here" in str(caught.value)


def test_numbers_are_read_only_when_a_later_step_is_under_way(
    given, tmp_path, monkeypatch
):
    given = tiny.with_fields(
        given, "log", log_every=3, measure_every=100, checkpoint_every=100
    )
    compiled = steps.compile_train(given, sharding.make_mesh())
    events: list[int | str] = []
    device_get = jax.device_get

    def step(state, batch):
        events.append(sum(isinstance(event, int) for event in events) + 1)
        return compiled.train(state, batch)

    def get(values):
        events.append("read")
        return device_get(values)

    noted = dataclasses.replace(compiled, train=step)
    monkeypatch.setattr(steps, "compile_train", lambda given, mesh: noted)
    monkeypatch.setattr(jax, "device_get", get)
    train.run(given, tmp_path)
    between = [
        [event for event in events[: events.index(n)] if event == "read"]
        for n in range(1, tiny.NUM_STEPS + 1)
    ]
    # How often the host had waited when step n was dispatched: once for the measurement
    # at step 0, and for steps 1 to 3 not before step 4 was under way.
    waited = [1, 1, 1, 1, 4, 4, 4, 7, 7, 7, 10, 10]
    assert [len(reads) for reads in between] == waited


def test_a_diverging_run_says_where_and_what_to_try(given, tmp_path, monkeypatch):
    tiny.poison(monkeypatch, step=6)
    with pytest.raises(Diverged) as caught:
        train.run(given, tmp_path)
    message = str(caught.value)
    assert "loss and grad_norm not finite at step 7 (step 4 is saved)" in message
    assert "try a lower optimizer.learning_rate" in message
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert failed == {"step": 7, "message": message}
    assert not (tmp_path / "done.json").exists()
    params, opt_state, meta = _state(tmp_path, given)
    chex.assert_tree_all_finite((params, opt_state))
    assert meta["step"] == 4
    # Tried again it ends in the same place, with the same words.
    with pytest.raises(Diverged) as again:
        train.run(given, tmp_path)
    assert str(again.value) == message


def test_a_run_that_diverges_at_once_has_no_checkpoint(given, tmp_path, monkeypatch):
    tiny.poison(monkeypatch, step=1)
    with pytest.raises(Diverged, match=r"at step 2 \(no checkpoint is saved\)"):
        train.run(given, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_state_that_is_not_finite_is_never_saved(whole, given, tmp_path, monkeypatch):
    # The loss of step 8 is that of the parameters before its update, and finite.
    with monkeypatch.context() as patch:
        tiny.poison(patch, step=8)
        with pytest.raises(Diverged, match=r"state not finite at step 8 \(step 4 is"):
            train.run(given, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    # What was at fault being mended, the run ends as if it had never been.
    train.run(given, tmp_path)
    assert not (tmp_path / "failed.json").exists()
    _assert_same_run(tmp_path, whole, given)
