"""`rfq compare` killed by the system, at moments nobody chose, and started again."""

import functools
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from rfq import metrics
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 60
_SECONDS = 900.0  # Longer than a compare of this size takes on a busy machine.

CONFIG = """
from tests import tiny


def config():
    given = tiny.experiment({data!r}, arm={arm!r}, seed={seed})
    given = tiny.with_fields(given, "train", num_steps={num_steps})
    given = tiny.with_fields(
        given, "log", log_every=5, measure_every=20, checkpoint_every=3
    )
    return tiny.with_fields(given, "quantize", specs=("FP", "A8", "A4"))
"""


def _start(configs: list[str], out: pathlib.Path, env) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rfq", "compare", *configs, "--out", str(out)],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, stderr


def _kill_when(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """Kills at the moment; False if the process ended before it came."""
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None:
        if moment() or time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    process.communicate()
    return False


def _size(out: pathlib.Path, name: str) -> int:
    return sum(path.stat().st_size for path in out.glob(f"arms/*/*/{name}"))


@pytest.mark.slow
def test_a_compare_that_the_system_kills_ends_with_the_same_bits(
    tmp_path_factory, tmp_path, one_device_env
):
    configs = []
    for arm, seed in (("first", 0), ("second", 3)):
        path = tmp_path / f"{arm}.py"
        data = str(tiny.data(tmp_path_factory))
        fields = {"data": data, "arm": arm, "seed": seed, "num_steps": NUM_STEPS}
        path.write_text(CONFIG.format(**fields))
        configs.append(str(path))
    whole, out = tmp_path / "whole", tmp_path / "killed"
    _finish(_start(configs, whole, one_device_env))

    def unfinished() -> set[pathlib.Path]:
        # The directories in which orbax collects a checkpoint until it is whole.
        return set(out.glob("arms/*/*/checkpoints/*orbax-checkpoint-tmp*"))

    def saving() -> Callable[[], bool]:
        left_by_the_last_kill = unfinished()
        return lambda: bool(unfinished() - left_by_the_last_kill)

    def grown(name: str) -> Callable[[], bool]:
        # Beyond what is there, to anywhere below what there will be.
        limit = rng.uniform(_size(out, name), _size(whole, name))
        return lambda: _size(out, name) > limit

    rng = np.random.default_rng(0)
    killed = []
    for make_moment in (
        saving,
        functools.partial(grown, "metrics.jsonl"),
        saving,
        functools.partial(grown, "measures.jsonl"),
        functools.partial(grown, "quantize/rows.jsonl"),
    ):
        moment = make_moment()
        killed.append(_kill_when(_start(configs, out, one_device_env), moment))
    # The last row of a file may be written too late for a kill; the others are not.
    assert sum(killed) >= 3
    _finish(_start(configs, out, one_device_env))

    def same(name: str) -> bool:
        # Somebody may commit to the checkout while this takes its minutes.
        drop = (*tiny.TIMES, "commit")
        return tiny.lines(out / name, drop=drop) == tiny.lines(whole / name, drop=drop)

    assert same("rows.jsonl")
    for run in ("first/seed-0", "second/seed-3"):
        for name in ("metrics.jsonl", "measures.jsonl", "quantize/sites.jsonl"):
            assert same(f"arms/{run}/{name}")
        steps = [r["step"] for r in metrics.read(out / "arms" / run / "metrics.jsonl")]
        assert steps == list(range(5, NUM_STEPS + 1, 5))
    assert (out / "report.html").exists()
