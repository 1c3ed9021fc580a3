"""Starts the processes of one job on this machine and waits for all of them."""

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    num_processes: int = 2,
    num_devices: int = 1,
) -> None:
    """Runs `python -m MODULE PROCESS COUNT PORT ...` for each process of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *(str(process), str(num_processes), port, *arguments),
            ],
            cwd=ROOT,
            env={**env, "XLA_FLAGS": f"{env['XLA_FLAGS']} {flag}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(num_processes)
    ]
    said = [worker.communicate(timeout=900)[1][-2000:] for worker in workers]
    assert not any(worker.returncode for worker in workers), said
