"""Real processes that join, agree, lose one another and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rfq import distributed
from tests.multihost import job_worker

ROOT = Path(__file__).parents[2]
LOST_SECONDS = 10

pytestmark = pytest.mark.slow


class Job:
    """Two processes of one scenario, or fewer."""

    def __init__(self, scenario: str, env: dict[str, str], members=(0, 1)):
        assert scenario in job_worker.SCENARIOS
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.processes = {index: self._start(index, scenario, env) for index in members}

    def _start(self, index: int, scenario: str, env: dict[str, str]):
        job = {
            "RFQ_COORDINATOR": f"127.0.0.1:{self.port}",
            "RFQ_NUM_PROCESSES": "2",
            "RFQ_PROCESS_ID": str(index),
            "RFQ_LOST_SECONDS": str(LOST_SECONDS),
            "RFQ_START_SECONDS": "180",
        }
        return subprocess.Popen(
            [sys.executable, "-m", job_worker.__name__, scenario],
            cwd=ROOT,
            env={**job, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        for process in self.processes.values():
            assert process.stdout.readline() == "ready\n"

    def end(self) -> dict[int, tuple[int, str, str]]:
        said = {i: p.communicate(timeout=300) for i, p in self.processes.items()}
        return {i: (self.processes[i].returncode, *said[i]) for i in said}


def _sentence(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("rfq: ")]
    return line.removeprefix("rfq: ")


def test_processes_agree_and_one_speaks(one_device_env):
    ended = Job("agree", one_device_env).end()
    assert [ended[i][0] for i in (0, 1)] == [0, 0], ended
    assert ended[0][1] == "[0, 'zero']\nspeaks True\n"
    assert ended[1][1] == "[0, 'zero']\nspeaks False\n"


def test_processes_that_differ_end_with_who_and_what(one_device_env):
    ended = Job("differ", one_device_env).end()
    for status, _, said in ended.values():
        assert status == 2, said
        assert f"a.b is 1 on process 1 of 2 ({socket.gethostname()}" in said
        assert "and 0 on process 0 of 2" in said


@pytest.mark.parametrize(
    ("member", "says"),
    [(0, "not all of the 2 processes have come to"), (1, "cannot reach process 0 at")],
)
def test_a_host_that_is_missing_is_a_sentence_in_time(one_device_env, member, says):
    started = time.monotonic()
    job = Job("idle", {**one_device_env, "RFQ_START_SECONDS": "3"}, (member,))
    status, _, said = job.end()[member]
    assert status == 2
    assert says in _sentence(said)
    assert f"127.0.0.1:{job.port}" in said
    # The interpreter and its imports, then three seconds, then a connection's two.
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_stop_in_time_and_say_who_is_gone(one_device_env, victim):
    job = Job("idle", one_device_env)
    job.wait_until_ready()
    pid, started = job.processes[victim].pid, time.monotonic()
    job.processes[victim].send_signal(signal.SIGKILL)
    ended = job.end()
    status, _, said = ended[1 - victim]
    # The silence, a beat before and one behind it, and what a busy machine adds.
    assert time.monotonic() - started < LOST_SECONDS + 30
    if victim == 0 and status == -signal.SIGABRT:
        # Process 0 serves jax's own watch too, which may be first to end the others.
        assert "leader" in said
    else:
        assert status == distributed.REQUEUE, said
        assert f"process {victim} of 2 ({socket.gethostname()}, pid {pid}) is gone" in (
            said
        )


@pytest.mark.parametrize(
    ("scenario", "status", "says"),
    [
        ("refuse", 2, "stopped: there is no data here; bring some"),
        ("fail", 1, "stopped: RuntimeError: an unheard-of bug"),
    ],
)
def test_what_ends_one_process_ends_the_others(one_device_env, scenario, status, says):
    ended = Job(scenario, one_device_env).end()
    for found, _, said in ended.values():
        assert found == status, said
        assert f"process 1 of 2 ({socket.gethostname()}" in said
        assert says in said


@pytest.mark.parametrize("scenario", ["stall", "slow"])
def test_a_slow_host_is_waited_for(one_device_env, scenario):
    ended = Job(scenario, one_device_env).end()
    assert [ended[i][:2] for i in (0, 1)] == [(0, "went on\n")] * 2, ended


def test_a_host_that_stands_still_for_too_long_is_gone(one_device_env):
    job = Job("idle", one_device_env)
    job.wait_until_ready()
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    said = job.processes[0].communicate(timeout=120)[1]
    os.kill(job.processes[1].pid, signal.SIGKILL)
    job.processes[1].communicate(timeout=60)
    assert job.processes[0].returncode == distributed.REQUEUE, said
    assert "process 1 of 2" in _sentence(said)


def test_a_host_that_never_speaks_is_gone(one_device_env):
    """As one that stands still before its first word."""
    job = Job("mute", one_device_env)
    said = job.processes[0].communicate(timeout=120)[1]
    job.processes[1].kill()
    job.processes[1].communicate(timeout=60)
    assert job.processes[0].returncode == distributed.REQUEUE, said
    assert "process 1 of 2" in _sentence(said)


def test_told_to_end_all_stop_after_the_same_step(one_device_env):
    ended = Job("steps", one_device_env).end()
    assert [ended[i][0] for i in (0, 1)] == [distributed.REQUEUE] * 2, ended
    assert ended[0][1] == ended[1][1]
    assert ended[0][1].startswith("saved at step ")
    assert "saved at step" in _sentence(ended[0][2])
