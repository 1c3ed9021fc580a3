"""A run that goes from mesh to mesh and strategy to strategy is the same run."""

import dataclasses

import jax
import numpy as np
import pytest

from rfq import checkpoint, metrics, optim, runs, sharding, train
from rfq.optim import matrix
from rfq.sharding import ShardingConfig
from tests import tiny

# As 2 hosts of 4, 1 of 8, one device, 4 of 2; and each strategy once.
STAGES = (
    (8, ShardingConfig(strategy="hybrid", data=2)),
    (8, ShardingConfig(strategy="fsdp_tp")),
    (1, ShardingConfig(strategy="ddp")),
    (8, ShardingConfig(strategy="fsdp", data=4)),
)
EVERY = 3
NUM_STEPS = EVERY * len(STAGES)


def given(data_dir):
    base = tiny.experiment(data_dir, optimizer=optim.MuonConfig(learning_rate=3e-3))
    # The 259 bytes of `tiny` cannot be halved; one more is never seen.
    base = tiny.with_fields(base, "model", vocab_size=260)
    base = tiny.with_fields(base, "train", num_steps=NUM_STEPS)
    return tiny.with_fields(base, "log", log_every=1, checkpoint_every=EVERY)


class Recorded:
    """Batches that note what was taken, by position, and are cut off by a kill."""

    def __init__(self, batches, num_batches, taken):
        self._batches, self._left, self._taken = batches, num_batches, taken

    def set_state(self, position):
        self.position = position
        self._batches.set_state(position)

    def __next__(self):
        if self._left == 0:
            raise tiny.Killed
        batch = next(self._batches)
        self._taken.append((self.position, batch))
        self.position, self._left = self.position + 1, self._left - 1
        return batch


def run(experiment, run_dir, num_devices, num_batches, monkeypatch):
    """Trains until so many batches are taken, and returns them by position."""
    taken = []
    make_mesh, train_batches = sharding.make_mesh, runs.train_batches
    with monkeypatch.context() as patch:
        patch.setattr(
            sharding, "make_mesh", lambda config: make_mesh(num_devices, config)
        )
        patch.setattr(
            runs,
            "train_batches",
            lambda given: Recorded(train_batches(given), num_batches, taken),
        )
        patch.setattr(runs.manifest_lib, "check", lambda *data, **wanted: None)
        patch.setattr(train, "_measure", lambda *given: {})
        try:
            train.run(experiment, run_dir)
        except tiny.Killed:
            assert len(taken) == num_batches
    return taken


@pytest.mark.slow
@pytest.mark.mesh
def test_a_run_goes_on_elsewhere(tmp_path, tmp_path_factory, monkeypatch):
    experiment = given(tiny.data(tmp_path_factory))
    whole = run(experiment, tmp_path / "whole", 1, NUM_STEPS, monkeypatch)
    for stage, (num_devices, config) in enumerate(STAGES):
        there = dataclasses.replace(experiment, sharding=config)
        # Killed a step after the checkpoint, but for the last.
        taken = run(there, tmp_path / "moved", num_devices, EVERY + 1, monkeypatch)
        # It goes on behind the checkpoint, with the batches of the uninterrupted run.
        start = stage * EVERY
        stop = min(start + EVERY + 1, NUM_STEPS)
        assert [position for position, _ in taken] == list(range(start, stop))
        for (_, ours), (_, theirs) in zip(taken, whole[start:], strict=False):
            np.testing.assert_array_equal(ours, theirs)
    assert runs.is_finished(tmp_path / "moved")
    losses = {
        name: [row["loss"] for row in metrics.read(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "moved")
    }
    assert len(losses["whole"]) == NUM_STEPS
    # Ten times what reversing the rows of each batch moves Muon's losses,
    # see `tests/multihost/test_training.py`.
    np.testing.assert_allclose(losses["moved"], losses["whole"], rtol=0, atol=4e-5)


@pytest.mark.parametrize("num_matrices", [3, 5, 8])
def test_stacks_are_restored_cut_short_or_continued_with_padding(
    num_matrices, tmp_path
):
    """Five matrices and three of padding, on so few devices that one has them all."""

    def state(num):
        age = (np.arange(num) < 5).astype(np.int32) * 7
        inner = {"momentum": np.arange(num * 6, dtype=np.float32).reshape(num, 2, 3)}
        stack = matrix.Stack(age, np.zeros(num, np.int32), np.zeros(num), inner)
        return matrix.MatrixState(np.int32(9), {"w": np.ones(5, bool)}, {"2x3": stack})

    saved_state = state(8)
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, {"w": np.zeros(1)}, saved_state, {"step": 1})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        state(num_matrices + 2),
    )
    with checkpoint.Checkpoints(tmp_path) as saved:
        found = saved.opt_state(1, target)
    kept = min(8, num_matrices + 2)
    for ours, theirs in zip(
        jax.tree.leaves(found.stacks), jax.tree.leaves(saved_state.stacks), strict=True
    ):
        np.testing.assert_array_equal(ours[:kept], theirs[:kept])
        assert not np.any(ours[kept:])
    assert found.count == 9
