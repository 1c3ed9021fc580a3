"""The same training on one device, on eight, and by two and four real processes."""

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.multihost import training_worker

ROOT = Path(__file__).parents[2]
# Every optimizer and every strategy; 2 hosts of 4 devices, then 4 of 2.
CASES = {
    (2, 4): (
        "adamw ddp",
        "adamw fsdp",
        "adamw fsdp_tp microbatches=2",
        "muon hybrid",
        "kl_shampoo fsdp_tp",
        "soap fsdp",
    ),
    (4, 2): ("muon hybrid tensor=2",),
}
pytestmark = [pytest.mark.slow, pytest.mark.mesh]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.data(tmp_path_factory)


@functools.cache
def reference(optimizer, data):
    """Losses on one device, how far reversing each batch moves them, and the rows.

    The reversal changes nothing but the order of sums: how far it moves the losses is
    how well float32 defines them. A mesh sums in a third order.
    """
    one, rows = training_worker.trained(f"{optimizer} ddp", data, 1)
    reversed_rows, _ = training_worker.trained(
        f"{optimizer} ddp", data, 1, reverse=True
    )
    noise = np.abs(np.subtract(one, reversed_rows)).max()
    # Otherwise the tolerance, ten times as much, would allow anything.
    assert noise < 1e-4
    assert one[-1] < one[0] - 0.1
    return np.array(one), 10 * noise + 4 * np.spacing(np.float32(one[0])), rows


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(num_processes, num_devices, data, out, cases, env):
    port, flag = str(_free_port()), "--xla_force_host_platform_device_count"
    env = {**env, "XLA_FLAGS": f"{env['XLA_FLAGS']} {flag}={num_devices}"}
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", training_worker.__name__),
                *(str(process), str(num_processes), port, str(data), str(out)),
                *cases,
            ],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(num_processes)
    ]
    said = [worker.communicate(timeout=900)[1][-2000:] for worker in workers]
    assert not any(worker.returncode for worker in workers), said
    return [
        json.loads((out / f"{process}.json").read_text())
        for process in range(num_processes)
    ]


@pytest.mark.parametrize(
    ("num_processes", "num_devices"), list(CASES), ids=["2x4", "4x2"]
)
def test_processes_train_as_one(
    num_processes, num_devices, data, one_device_env, tmp_path
):
    cases = CASES[num_processes, num_devices]
    told = _run(num_processes, num_devices, data, tmp_path, cases, one_device_env)
    for case in cases:
        expected, tolerance, rows = reference(case.split()[0], data)
        for one in told:
            np.testing.assert_allclose(
                one["losses"][case], expected, rtol=0, atol=tolerance, err_msg=case
            )
        # Process p has the rows p, p + n, ... of what one process has: each batch is
        # the same set, and no sequence is lost or seen twice.
        for process, one in enumerate(told):
            np.testing.assert_array_equal(rows[:, process::num_processes], one["rows"])


@pytest.mark.parametrize("case", ["adamw hybrid data=2 tensor=2", "muon fsdp_tp"])
def test_one_process_of_eight_devices_trains_as_one_device(case, data):
    expected, tolerance, _ = reference(case.split()[0], data)
    losses, _ = training_worker.trained(case, data, 8)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=tolerance)
