"""Ctrl-C at seeded moments of the first seconds: one line, one status, no traceback."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rfq import interrupt
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
NUM_MOMENTS, SECONDS = 8, 12.0

CONFIG = """
from tests import tiny


def config():
    return tiny.with_fields(
        tiny.experiment({data!r}), "train", num_steps=1_000_000, batch_size=8
    )
"""


@pytest.mark.slow
def test_an_interrupted_command_ends_with_one_line_wherever_it_is(
    tmp_path_factory, tmp_path, one_device_env
):
    config = tmp_path / "long.py"
    config.write_text(CONFIG.format(data=str(tiny.data(tmp_path_factory))))
    # Without the cache of the tests, so that it compiles as long as a user's does.
    env = {k: v for k, v in one_device_env.items() if "COMPILATION_CACHE" not in k}
    env["PYTHONPATH"] = str(ROOT)
    rng = np.random.default_rng(0)
    for number, moment in enumerate(rng.uniform(0, SECONDS, NUM_MOMENTS)):
        out = tmp_path / f"{number}"
        process = subprocess.Popen(
            [sys.executable, "-m", "rfq", "train", str(config), "--out", str(out)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Not what a shell gives its children in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        # Python itself needs some tenths of a second before it is in our hands.
        while not _handles_sigint(process.pid):
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert stderr == f"rfq: {interrupt.SENTENCE}\n", moment
        assert process.returncode == interrupt.STATUS, moment


def _handles_sigint(pid: int) -> bool:
    """True once the process has a thread beside its own, which waits for the signal."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    threads = re.search(r"^Threads:\s+(\d+)", status, re.M)
    caught = re.search(r"^SigCgt:\s+(\w+)", status, re.M)
    assert threads and caught
    return int(threads[1]) > 1 and bool(int(caught[1], 16) & 1 << signal.SIGINT - 1)
