import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest

from rfq import checkpoint
from rfq.errors import InputError

PARAMS = {
    "w": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "g": np.array([0.1, 1e-42, 3e37], np.float32),
}
OPT_STATE = {"mu": {"w": np.full((3, 5), 1 / 3, np.float32)}, "count": np.int32(7)}
META = {"step": 4, "seconds": 0.1, "experiment": {"arm": "tiny"}}


def _abstract(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        tree,
    )


def _saved(run_dir: pathlib.Path, *steps: int, keep: int = 2) -> pathlib.Path:
    with checkpoint.Checkpoints(run_dir, keep=keep) as saved:
        for step in steps:
            factor = np.float32(step)
            params = jax.tree.map(lambda leaf, f=factor: leaf * f, PARAMS)
            saved.save(step, params, OPT_STATE, {**META, "step": step})
    return run_dir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return _saved(tmp_path_factory.mktemp("two"), 1, 4)


def test_what_is_saved_is_restored_bit_for_bit(two):
    with checkpoint.Checkpoints(two) as saved:
        assert saved.latest_step() == 4
        params = saved.params(1, _abstract(PARAMS))
        opt_state = saved.opt_state(1, _abstract(OPT_STATE))
        assert saved.meta(4) == META
    chex.assert_trees_all_equal(params, PARAMS)
    chex.assert_trees_all_equal(opt_state, OPT_STATE)
    chex.assert_trees_all_equal_dtypes(opt_state, OPT_STATE)


def test_the_newest_are_kept(tmp_path):
    _saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "3",
        "4",
    ]


def test_a_fresh_directory_has_no_step(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as saved:
        assert saved.latest_step() is None


def test_a_save_that_was_cut_off_is_no_checkpoint(two, tmp_path):
    # Orbax writes into a directory of this name until every array has landed.
    run_dir = shutil.copytree(two, tmp_path / "run")
    whole = run_dir / "checkpoints" / "4"
    whole.rename(run_dir / "checkpoints" / "4.orbax-checkpoint-tmp-123")
    with checkpoint.Checkpoints(run_dir) as saved:
        assert saved.latest_step() == 1
        chex.assert_trees_all_equal(saved.params(1, _abstract(PARAMS)), PARAMS)


def _data_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return files


def _truncate(folder: pathlib.Path) -> None:
    for path in _data_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _scribble(folder: pathlib.Path) -> None:
    for path in _data_files(folder):
        path.write_bytes(b"\xff" * path.stat().st_size)


def _remove(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [_truncate, _scribble, _remove])
@pytest.mark.parametrize("item", ["params", "opt_state", "meta"])
def test_a_damaged_checkpoint_is_a_sentence_that_names_it(two, tmp_path, item, damage):
    run_dir = shutil.copytree(two, tmp_path / "run")
    damage(run_dir / "checkpoints" / "4" / item)
    with checkpoint.Checkpoints(run_dir) as saved:
        read = {
            "params": lambda step: saved.params(step, _abstract(PARAMS)),
            "opt_state": lambda step: saved.opt_state(step, _abstract(OPT_STATE)),
            "meta": saved.meta,
        }
        with pytest.raises(InputError) as caught:
            read[item](4)
        assert str(run_dir / "checkpoints" / "4") in str(caught.value)
        assert "delete that directory" in str(caught.value)
        assert "\n" not in str(caught.value)
        # The other items are whole, and so is the checkpoint before.
        for name in read.keys() - {item}:
            read[name](4)
        read[item](1)
    shutil.rmtree(run_dir / "checkpoints" / "4")
    with checkpoint.Checkpoints(run_dir) as saved:
        assert saved.latest_step() == 1


def test_parameters_of_other_shapes_are_refused(two):
    other = {**PARAMS, "w": np.zeros((5, 3), np.float32)}
    with (
        checkpoint.Checkpoints(two) as saved,
        pytest.raises(InputError, match="cannot be read"),
    ):
        saved.params(4, _abstract(other))


def test_parameters_of_other_names_are_refused(two):
    other = {"v": PARAMS["w"], "g": PARAMS["g"]}
    with (
        checkpoint.Checkpoints(two) as saved,
        pytest.raises(InputError, match="cannot be read"),
    ):
        saved.params(4, _abstract(other))
