"""The processes of one job: how they join, agree, and notice a loss.

One process needs none of this. Where a launcher started several, `start` joins them
before any backend exists, a thread ends this process when another is gone, and
`preemption` lets all of them stop after the same step.

The processes talk through the key-value store of jax's coordination service, which
process 0 hosts. The store works from the first moment, whatever the devices do.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from rfq import experiment as experiment_lib
from rfq import launcher, metrics
from rfq.errors import InputError

# EX_TEMPFAIL of sysexits.h: the work is saved, and the same command continues it.
# Launch scripts start again, and batch systems requeue.
REQUEUE = 75

_LEFT = "left"
_AGAIN = "stopping; the same command goes on from the last checkpoint"


class _Job:
    """This process's membership of a job of several processes."""

    def __init__(self, lost_seconds: int, start_seconds: int):
        state = jax_distributed.global_state
        assert state.client is not None
        self.client = state.client
        self.process_id: int = state.process_id
        self.num_processes: int = state.num_processes
        self.lost_seconds, self.start_seconds = lost_seconds, start_seconds
        self.beat_seconds = max(0.2, lost_seconds / 10)
        self.leaving = threading.Event()
        self.watching = threading.Thread(target=self._watch, daemon=True)
        self.hosts: dict[int, str] = {}
        self._calls = itertools.count()

    def write(self, key: str, value: str) -> None:
        """Write this process's value under a key."""
        path = f"{key}/{self.process_id}"
        self.client.key_value_set(path, value, allow_overwrite=True)

    def read(self, key: str) -> dict[int, str]:
        """Return what every process wrote under a key so far, by process."""
        pairs = self.client.key_value_dir_get(f"{key}/")
        return {int(path.rsplit("/", 1)[1]): value for path, value in pairs}

    def wait_for(self, key: str, seconds: float) -> Any:
        """Return the JSON that somebody puts under a key, or None if nobody does."""
        milliseconds = int(seconds * 1000)
        try:
            return json.loads(self.client.blocking_key_value_get(key, milliseconds))
        except Exception as error:  # XlaRuntimeError or JaxRuntimeError, by version.
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def new_key(self, name: str) -> str:
        """Return a fresh key: all processes make the same ones in the same order."""
        return f"rfq/{next(self._calls)}/{name}"

    def name(self, process_id: int) -> str:
        """Name a process by number and place: "process 1 of 4 (node2, pid 77)"."""
        place = self.hosts.get(process_id, "host unknown")
        return f"process {process_id} of {self.num_processes} ({place})"

    def end(self, process_id: int, code: int, reason: str) -> None:
        """Tell all processes why the job ends; the first reason is believed."""
        with contextlib.suppress(Exception):  # One was given, or process 0 is gone.
            verdict = json.dumps([process_id, code, reason])
            self.client.key_value_set("rfq/end", verdict)

    def _watch(self) -> None:
        """Report this process alive at every beat; end it when another has ended.

        Only process 0 reads, by its own clock, when each process last reported. The
        others read its verdict, so a job of n processes costs n messages a beat.
        """
        heard: dict[int, tuple[str, float]] = {}
        for beat in itertools.count():
            try:
                self.write("rfq/alive", str(beat))
                if self.process_id == 0:
                    self._end_if_silent(heard)
                verdict = self.wait_for("rfq/end", self.beat_seconds)
            except Exception as error:
                what = f"its coordination service does not answer: {_first_line(error)}"
                verdict = 0, REQUEUE, f"is gone ({what}); {_AGAIN}"
            if self.leaving.is_set():
                return
            if verdict is not None:
                process_id, code, reason = verdict
                _exit(code, f"{self.name(process_id)} {reason}")

    def _end_if_silent(self, heard: dict[int, tuple[str, float]]) -> None:
        now = time.monotonic()
        for process_id, word in self.read("rfq/alive").items():
            if process_id not in heard or heard[process_id][0] != word:
                heard[process_id] = word, now
            silent_seconds = now - heard[process_id][1]
            if word != _LEFT and silent_seconds > self.lost_seconds:
                reason = f"is gone (silent for {silent_seconds:.0f} s); {_AGAIN}"
                self.end(process_id, REQUEUE, reason)


_job: _Job | None = None


# --- Joining and leaving --------------------------------------------------------------


def start() -> None:
    """Join the job if a launcher started several processes; before any backend.

    RFQ_START_SECONDS (300) bounds the wait for the others, RFQ_LOST_SECONDS (30) the
    silence after which a process counts as gone.

    Raises:
        InputError: the launcher's variables do not fit; see `launcher.launched`.
    """
    global _job
    launch = launcher.launched(os.environ)
    if launch is None or _job is not None:
        return
    start_seconds = launcher.seconds("RFQ_START_SECONDS", 300)
    lost_seconds = launcher.seconds("RFQ_LOST_SECONDS", 30)
    method, _ = launcher.LAUNCHERS.get(launch.launcher, ("deactivate", None))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        # Gloo waits 30 s for the last process; a cache, which only process 0 writes,
        # would let it run ahead of the others by all that they compile.
        jax.config.update("jax_enable_compilation_cache", False)
    # After its own limit jax aborts with a stack trace instead of a sentence.
    impatient = threading.Timer(start_seconds, _give_up, (launch, start_seconds))
    impatient.daemon = True
    impatient.start()
    try:
        jax.distributed.initialize(
            coordinator_address=launch.coordinator,
            num_processes=launch.num_processes,
            process_id=launch.process_id,
            cluster_detection_method=method,
            initialization_timeout=start_seconds + 60,
            # A process speaks to jax twice in this time, so that jax, which aborts with
            # a stack trace, may miss it after half of it: well behind our own watch,
            # which needs `lost_seconds` and two beats.
            heartbeat_timeout_seconds=4 * lost_seconds + 60,
            # Process 0 may write a long report after the others are done.
            shutdown_timeout_seconds=1800,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{launch.launcher} could not join the processes ({_first_line(error)}); "
            f"set {', '.join(launcher.VARIABLES)} on every process instead"
        ) from error
    finally:
        impatient.cancel()
    _job = _Job(lost_seconds, start_seconds)
    _job.write("rfq/host", f"{socket.gethostname()}, pid {os.getpid()}")
    # From here on process 0 knows this one, even if it never reports again.
    _job.write("rfq/alive", "joined")
    barrier("start")
    _job.hosts = _job.read("rfq/host")
    _job.watching.start()


def _give_up(launch: launcher.Launch, seconds: int) -> None:
    place = launch.coordinator or f"the address that {launch.launcher} names"
    if launch.coordinator and launch.process_id != 0 and not _reaches(place):
        what = (
            f"cannot reach process 0 at {place} from {socket.gethostname()}; start it, "
            "or give RFQ_COORDINATOR an address that this host reaches"
        )
    else:
        count = "" if launch.num_processes is None else f"{launch.num_processes} "
        what = (
            f"not all of the {count}processes have come to {place}; look for one that "
            "failed or was not started"
        )
    text = f"this process waited {seconds} s: {what}"
    _exit(2, f"{text} (RFQ_START_SECONDS sets how long)")


def _reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except OSError:
        return False


def leave() -> None:
    """Leave the job when all is done; wait until the others are done too."""
    global _job
    if _job is not None:
        _job.leaving.set()
        # An interpreter that ends while a thread is inside a call of jax aborts.
        _job.watching.join()
        _job.write("rfq/alive", _LEFT)
        jax.distributed.shutdown()
        _job = None


def abandon(code: int, error: BaseException) -> None:
    """End a process of a job for good, and through the watch all others.

    With one process it returns. A collective that fails because another process died
    raises here before anyone knows which one. So for an error that is no `InputError`
    it first gives the watch time to find out and to end this process.
    """
    if _job is None:
        return
    reason = f"stopped: {_first_line(error)}"
    if not isinstance(error, InputError | KeyboardInterrupt):
        time.sleep(_job.lost_seconds + 2 * _job.beat_seconds)
        sys.excepthook(type(error), error, error.__traceback__)
        reason = f"stopped: {type(error).__name__}: {_first_line(error)}"
    _job.leaving.set()
    _job.end(_job.process_id, code, reason)
    _exit(code, f"{_job.name(_job.process_id)} {reason}")


def _exit(code: int, text: str) -> NoReturn:
    """End at once: what is left of the job may hang in a barrier."""
    if _job is not None and _job.process_id == 0:
        # The store lives here. jax aborts, with a stack trace, whoever still runs when
        # it is gone, so let the others read first why the job ends.
        time.sleep(2.0)
    metrics.alarm(text)
    sys.stdout.flush()
    os._exit(code)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


# --- Agreeing -------------------------------------------------------------------------


def broadcast(what: str, value: Callable[[], Any]) -> Any:
    """Return process 0's `value()`, which is JSON, on all processes."""
    if _job is None:
        return value()
    key = _job.new_key(f"broadcast/{what}")
    if _job.process_id == 0:
        answer = value()
        _job.client.key_value_set(key, json.dumps([answer]))
        return answer
    # The watch ends this process if process 0 is gone.
    while (boxed := _job.wait_for(key, seconds=10)) is None:
        pass
    return boxed[0]


def barrier(where: str) -> None:
    """Wait until all processes are here; what process 0 wrote before is there then.

    Raises:
        InputError: some did not come within RFQ_START_SECONDS; names them.
    """
    if _job is None:
        return
    key = _job.new_key(f"barrier/{where}")
    _job.write(key, "here")
    try:
        _job.client.wait_at_barrier(key, _job.start_seconds * 1000)
    except Exception as error:
        away = sorted(set(range(_job.num_processes)) - _job.read(key).keys())
        raise InputError(
            f"after {_job.start_seconds} s {' and '.join(map(_job.name, away))} "
            f"did not come to {where!r}; look at what they say, and give all hosts the "
            "same command (RFQ_START_SECONDS sets how long is waited)"
        ) from error


def agree(what: str, described: Mapping[str, Any]) -> None:
    """Make sure that all processes hold the same nested dict of JSON.

    Raises:
        InputError: this process differs from process 0, and in what. The others never
            pass: the watch ends them with the same sentence.
    """
    if _job is None:
        return
    ours = json.loads(json.dumps(described))
    theirs = broadcast(what, lambda: ours)
    if differences := experiment_lib.differences(theirs, ours):
        field, first, other = differences[0]
        raise InputError(
            f"the processes differ in {what}: {field} is {other!r} on "
            f"{_job.name(_job.process_id)} and {first!r} on {_job.name(0)}; give all "
            "hosts the same command, code and data"
        )
    barrier(what)


# --- Preemption -----------------------------------------------------------------------

_boundaries = itertools.count()


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGUSR1 into an answer at the end of the next piece of work.

    Yields a function to call after every step or setting, by all processes. It returns
    True, for all of them after the same one, once any was told to end. Between
    processes jax's preemption service agrees on it; it listens for SIGTERM only.
    """
    asked = threading.Event()

    def due() -> bool:
        if _job is None:
            return asked.is_set()
        # Counted over all runs of this process: the service compares numbers.
        return multihost_utils.reached_preemption_sync_point(next(_boundaries))

    if _job is None:
        handlers = dict.fromkeys(
            (signal.SIGUSR1, signal.SIGTERM), lambda *_: asked.set()
        )
    else:
        handlers = {signal.SIGUSR1: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # Python delivers signals to the main thread alone.
    before = {number: signal.signal(number, does) for number, does in handlers.items()}
    try:
        yield due
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
