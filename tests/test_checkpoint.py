import os
import pathlib
import resource
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from rfq import checkpoint
from rfq.errors import InputError
from rfq.optim import matrix

ROOT = pathlib.Path(__file__).parents[1]
ITEMS = ("params", "opt_state", "meta")
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
    with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
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


def _one_byte_less(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _one_bit_flipped(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _one_file_more(path: pathlib.Path) -> None:
    path.with_name("more").write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [_one_byte_less, _one_bit_flipped, pathlib.Path.unlink, _one_file_more]
)
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(
    two, tmp_path, damage, capsys
):
    run_dir = shutil.copytree(two, tmp_path / "run")
    folder = run_dir / "checkpoints" / "4"
    # Orbax writes its own marks last; they say nothing about the numbers.
    marks = {"SHA256SUMS", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert {path.name for path in folder.iterdir()} - marks <= set(ITEMS)
    with checkpoint.Checkpoints(run_dir, keep=2) as saved:
        for path in _data_files(folder):
            if path.parent == folder:
                continue
            content = path.read_bytes()
            damage(path)
            found = saved.damage(4)
            assert found is not None
            more = path.with_name("more")
            assert (more.name if more.exists() else path.name) in found
            assert saved.damage(1) is None
            more.unlink(missing_ok=True)
            path.write_bytes(content)
            assert saved.damage(4) is None
        damage(path)
        assert saved.latest_whole_step() == 1
        saved.save(4, PARAMS, OPT_STATE, {**META, "step": 4})
        saved.wait()
        assert saved.latest_whole_step() == 4
    said = " ".join(capsys.readouterr().out.split())
    assert f"checkpoint {run_dir / 'checkpoints' / '4'} cannot be used" in said
    assert "goes on from step 1" in said
    assert (run_dir / "checkpoints" / "damaged-4").is_dir()


def test_damaged_sums_are_damage(two, tmp_path):
    run_dir = shutil.copytree(two, tmp_path / "run")
    sums = run_dir / "checkpoints" / "4" / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    with checkpoint.Checkpoints(run_dir) as saved:
        assert saved.damage(4) is None
        for text in ("", "".join(lines[:-1]), "x" + "".join(lines)[1:], "\xff" * 9):
            sums.write_text(text, "latin-1")
            assert saved.damage(4) is not None


def test_all_checkpoints_damaged_is_a_fresh_start(two, tmp_path, capsys):
    run_dir = shutil.copytree(two, tmp_path / "run")
    for step in ("1", "4"):
        _truncate(run_dir / "checkpoints" / step / "params")
    with checkpoint.Checkpoints(run_dir, keep=2) as saved:
        assert saved.latest_whole_step() is None
    assert "goes on from the beginning" in " ".join(capsys.readouterr().out.split())


def test_sums_are_those_of_the_usual_tool(two):
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("sha256sum is not installed")
    done = subprocess.run(
        [tool, "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=two / "checkpoints" / "4",
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout


_SAVING = """
import pathlib, sys
import numpy as np
from rfq import checkpoint
from rfq.errors import InputError
try:
    with checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), keep=2) as saved:
        params = {"w": np.random.default_rng(0).normal(size=(64, 64))}
        saved.save(5, params, {"count": np.zeros(3)}, {"step": 5})
except InputError as error:
    sys.exit(f"caught {error}")
"""


def _no_file_above_4_kb():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(two, tmp_path):
    run_dir = shutil.copytree(two, tmp_path / "run")
    run = subprocess.run(
        [sys.executable, "-c", _SAVING, run_dir],
        preexec_fn=_no_file_above_4_kb,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 1
    said = run.stderr[run.stderr.index("caught ") :].strip()
    assert "the checkpoint of step 5 cannot be written" in said
    assert "make room" in said
    assert "\n" not in said
    with checkpoint.Checkpoints(run_dir, keep=2) as saved:
        assert saved.latest_whole_step() == 4


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    # A file in the directory's place: permissions do not stop root.
    with (
        pytest.raises(InputError, match="cannot be written to") as caught,
        checkpoint.Checkpoints(tmp_path, keep=2) as saved,
    ):
        (tmp_path / "checkpoints").rmdir()
        (tmp_path / "checkpoints").write_text("")
        saved.save(4, PARAMS, OPT_STATE, META)
        saved.wait()
    assert "\n" not in str(caught.value)


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
