"""The same training on one device, on eight, and by two and four real processes."""

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rfq import metrics, runs
from tests import tiny
from tests.multihost import training_worker
from tests.multihost.training_worker import EVERY, NUM_STEPS

ROOT = Path(__file__).parents[2]
# (Processes, devices of each) -> what is trained there, in this order: on each of eight
# devices' shapes every optimizer and every strategy, each optimizer under three of
# them. Each optimizer's run goes through all shapes.
CASES = {
    (2, 4): ("adamw ddp", "muon hybrid", "kl_shampoo fsdp_tp", "soap fsdp"),
    (1, 8): (
        "adamw fsdp_tp microbatches=2",
        "muon fsdp",
        "kl_shampoo ddp",
        "soap hybrid data=2 tensor=2",
    ),
    (1, 1): ("adamw ddp", "muon ddp", "kl_shampoo ddp", "soap ddp"),
    (4, 2): ("adamw fsdp", "muon fsdp_tp", "kl_shampoo hybrid", "soap ddp"),
}
OPTIMIZERS = tuple(training_worker.OPTIMIZERS)
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


def _run(num_processes, num_devices, data, out, runs_dir, cases, env):
    port, flag = str(_free_port()), "--xla_force_host_platform_device_count"
    job = {
        **env,
        "XLA_FLAGS": f"{env['XLA_FLAGS']} {flag}={num_devices}",
        "RFQ_COORDINATOR": f"127.0.0.1:{port}",
        "RFQ_NUM_PROCESSES": str(num_processes),
        "RFQ_LOST_SECONDS": "120",
    }
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", training_worker.__name__),
                *(str(data), str(out), str(runs_dir), *cases),
            ],
            cwd=ROOT,
            env={**job, "RFQ_PROCESS_ID": str(process)},
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


@pytest.fixture(scope="module")
def journey(data, tmp_path_factory, one_device_env):
    """What the processes of every shape tell, and where the runs are."""
    runs_dir = tmp_path_factory.mktemp("runs")
    told = {}
    for (num_processes, num_devices), cases in CASES.items():
        shape = num_processes, num_devices
        if num_processes == 1:
            told[shape] = [training_worker.told(cases, data, num_devices, runs_dir)]
        else:
            out = tmp_path_factory.mktemp("told")
            told[shape] = _run(*shape, data, out, runs_dir, cases, one_device_env)
    return told, runs_dir


@pytest.mark.parametrize("shape", [(2, 4), (1, 8), (4, 2)], ids=["2x4", "1x8", "4x2"])
def test_processes_train_as_one(shape, data, journey):
    told = journey[0][shape]
    for case in CASES[shape]:
        expected, tolerance, rows = reference(case.split()[0], data)
        for one in told:
            np.testing.assert_allclose(
                one["losses"][case], expected, rtol=0, atol=tolerance, err_msg=case
            )
        # Process p has the rows p, p + n, ... of what one process has: each batch is
        # the same set, and no sequence is lost or seen twice.
        for process, one in enumerate(told):
            np.testing.assert_array_equal(rows[:, process :: shape[0]], one["rows"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_goes_from_mesh_to_mesh_is_the_same_run(optimizer, data, journey):
    """2 x 4, 1 x 8, 1 x 1, 4 x 2; every stage goes a step beyond its checkpoint."""
    told, runs_dir = journey
    expected, tolerance, rows = reference(optimizer, data)
    for stage, shape in enumerate(CASES):
        positions = range(stage * EVERY, min((stage + 1) * EVERY + 1, NUM_STEPS))
        for process, one in enumerate(told[shape]):
            taken = one["stages"][optimizer]
            # It goes on behind the checkpoint, with the uninterrupted run's batches.
            assert [position for position, _ in taken] == list(positions)
            for position, batch in taken:
                np.testing.assert_array_equal(
                    batch, rows[position, process :: shape[0]]
                )
    assert runs.is_finished(runs_dir / optimizer)
    logged = metrics.read(runs_dir / optimizer / "metrics.jsonl")
    assert [row["step"] for row in logged] == list(range(1, NUM_STEPS + 1))
    np.testing.assert_allclose(
        [row["loss"] for row in logged], expected, rtol=0, atol=tolerance
    )
