"""The processes of one job: how they find each other, agree, and notice a loss.

One process needs none of this. Where a launcher started several, `start` joins them
before any backend exists; `agree` refuses hosts that differ; a thread ends this process
when another has gone; `preemption` lets all of them stop after the same step.

The job's memory is the key-value store of jax's coordination service, which process 0
hosts: it works from the first moment, whatever the devices do, and costs no collective.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from rfq import experiment as experiment_lib
from rfq import metrics
from rfq.errors import InputError, lookup

# EX_TEMPFAIL of sysexits.h: what is done is saved, and the same command goes on from
# there. Launch scripts start again, and batch systems requeue.
REQUEUE = 75


# --- How this process was started -----------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher told this process.

    Attributes:
        launcher: A name of `LAUNCHERS`, or "RFQ_COORDINATOR".
        coordinator: "host:port" of process 0; None: jax asks the launcher.
        num_processes: Of the job; None: jax asks the launcher.
        process_id: Of this process; None: jax asks the launcher.
    """

    launcher: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher that jax knows.

    Attributes:
        method: jax's name for it, a `cluster_detection_method`.
        count: environment -> number of processes that it started, 0 if it is not there.
    """

    method: str
    count: Callable[[Mapping[str, str]], int]


def _slurm(env: Mapping[str, str]) -> int:
    # Only what `srun` starts has a step; a batch script itself is one process.
    return int(env["SLURM_NTASKS"]) if "SLURM_STEP_NODELIST" in env else 0


def _open_mpi(env: Mapping[str, str]) -> int:
    return int(env.get("OMPI_COMM_WORLD_SIZE", 0))


def _gke_tpu(env: Mapping[str, str]) -> int:
    hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    return len(hosts.split(",")) * slices if hosts else 0


def _named(env: Mapping[str, str]) -> int:
    del env  # Shows in no variable: RFQ_LAUNCHER must name it.
    return 0


LAUNCHERS: Mapping[str, Launcher] = {
    "slurm": Launcher("slurm", _slurm),
    "open_mpi": Launcher("ompi", _open_mpi),
    "gke_tpu": Launcher("gketpu", _gke_tpu),
    "cloud_tpu": Launcher("gcetpu", _named),
    "kubernetes": Launcher("k8s", _named),
}

_EXPLICIT = ("RFQ_COORDINATOR", "RFQ_NUM_PROCESSES", "RFQ_PROCESS_ID")


def launched(env: Mapping[str, str]) -> Launch | None:
    """How the environment says this process was started; None for a single process.

    RFQ_COORDINATOR=host:port, RFQ_NUM_PROCESSES and RFQ_PROCESS_ID come first (under
    Open MPI the last two may be left to it), then RFQ_LAUNCHER, then whichever row of
    `LAUNCHERS` says that it started more than one process.

    Raises:
        InputError: the variables are incomplete or contradict each other.
    """
    given = {name: env[name] for name in _EXPLICIT if env.get(name)}
    if given == {"RFQ_NUM_PROCESSES": "1"}:
        return None
    if "RFQ_COORDINATOR" in given:
        for ours, theirs in zip(
            _EXPLICIT[1:], ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), strict=True
        ):
            if theirs in env:
                given.setdefault(ours, env[theirs])
    if given:
        return _explicit(given)
    if env.get("RFQ_LAUNCHER"):
        lookup(LAUNCHERS, env["RFQ_LAUNCHER"], "RFQ_LAUNCHER")
        return Launch(launcher=env["RFQ_LAUNCHER"])
    for name, launcher in LAUNCHERS.items():
        if launcher.count(env) > 1:
            if name == "open_mpi" and "OMPI_MCA_orte_hnp_uri" not in env:
                raise InputError(
                    "this Open MPI does not tell its processes where process 0 is "
                    "(version 5); start with mpirun -x RFQ_COORDINATOR=HOST:PORT, HOST "
                    "being the first of the job"
                )
            return Launch(launcher=name)
    return None


def _explicit(given: Mapping[str, str]) -> Launch:
    missing = [name for name in _EXPLICIT if name not in given]
    if missing:
        raise InputError(
            f"{' and '.join(given)} is set but {' and '.join(missing)} is not; set all "
            f"of {', '.join(_EXPLICIT)} on every process, or none"
        )
    host, _, port = given["RFQ_COORDINATOR"].rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            f"RFQ_COORDINATOR={given['RFQ_COORDINATOR']!r} is not HOST:PORT; give an "
            "address of process 0's machine and a free port there, such as node1:4711"
        )
    numbers = given["RFQ_NUM_PROCESSES"], given["RFQ_PROCESS_ID"]
    if not all(number.isdigit() for number in numbers) or not (
        int(numbers[1]) < int(numbers[0])
    ):
        raise InputError(
            f"RFQ_NUM_PROCESSES={numbers[0]!r} and RFQ_PROCESS_ID={numbers[1]!r} must "
            "be whole numbers, the second in 0 .. the first - 1"
        )
    if int(numbers[0]) == 1:
        raise InputError(
            "RFQ_NUM_PROCESSES=1 needs no coordinator; unset RFQ_COORDINATOR"
        )
    return Launch(
        launcher="RFQ_COORDINATOR",
        coordinator=given["RFQ_COORDINATOR"],
        num_processes=int(numbers[0]),
        process_id=int(numbers[1]),
    )


def _seconds(name: str, default: int) -> int:
    """A number of seconds from the environment."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise InputError(
            f"{name}={text!r} must be a whole number of seconds, 1 or more"
        )
    return int(text)


# --- Joining and leaving --------------------------------------------------------------


class _Job:
    """This process's membership; `_job` is None in a single process."""

    def __init__(self, lost_seconds: int, start_seconds: int):
        state = jax_distributed.global_state
        assert state.client is not None
        self.client = state.client
        self.process_id: int = state.process_id
        self.num_processes: int = state.num_processes
        self.start_seconds = start_seconds
        self._lost_seconds = lost_seconds
        self._leaving = threading.Event()
        self._calls = itertools.count()
        self._hosts: dict[int, str] = {}
        me = f"{socket.gethostname()}, pid {os.getpid()}"
        self.client.key_value_set(f"rfq/host/{self.process_id}", me)
        # Known to the watch from the start, though it should never speak again.
        self.client.key_value_set(f"rfq/alive/{self.process_id}", "joined")
        self.meet("start")
        self._hosts = self.read("rfq/host/")
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def read(self, prefix: str) -> dict[int, str]:
        """What every process wrote under a prefix, by process."""
        found = self.client.key_value_dir_get(prefix)
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}

    def name(self, process_id: int) -> str:
        """Names a process by number and place: "process 1 of 4 (node2, pid 77)"."""
        place = self._hosts.get(process_id, "host unknown")
        return f"process {process_id} of {self.num_processes} ({place})"

    def key(self, name: str) -> str:
        """A fresh key: all processes ask for the same ones in the same order."""
        return f"rfq/{next(self._calls)}/{name}"

    def meet(self, name: str) -> None:
        """Waits until all processes are here.

        Raises:
            InputError: some did not come in time.
        """
        key = self.key(f"meet/{name}")
        self.client.key_value_set(f"{key}/{self.process_id}", "here")
        try:
            self.client.wait_at_barrier(key, self.start_seconds * 1000)
        except Exception as error:  # XlaRuntimeError or JaxRuntimeError, by version.
            here = self.read(f"{key}/")
            away = [i for i in range(self.num_processes) if i not in here]
            raise InputError(
                f"after {self.start_seconds} s {' and '.join(map(self.name, away))} "
                f"did not come to {name!r}; look at what they say, and give all hosts "
                "the same command (RFQ_START_SECONDS sets how long is waited)"
            ) from error

    def leave(self) -> None:
        """Ends the watch: from now on neither silence nor a gone process 0 is news."""
        self._leaving.set()
        # An interpreter that ends while a thread is inside a call of jax aborts.
        self._watching.join()
        self.client.key_value_set(
            f"rfq/alive/{self.process_id}", _LEFT, allow_overwrite=True
        )

    def end(self, code: int, reason: str) -> None:
        """Tells the others why this process ends; the first to do so is believed."""
        self._leaving.set()
        row = {"process": self.process_id, "code": code, "reason": reason}
        with contextlib.suppress(
            Exception
        ):  # Somebody was first, or process 0 is gone.
            self.client.key_value_set("rfq/end", json.dumps(row))
        self._outlive_the_others()

    def _outlive_the_others(self) -> None:
        """Lets them read why the job ends: the store lives in process 0.

        jax aborts, with a stack trace, whoever still runs when the store is gone.
        """
        if self.process_id == 0:
            time.sleep(2.0)

    def await_verdict(self) -> None:
        """Gives the watch time to find who is gone; it ends this process if it does."""
        self._leaving.wait(self._lost_seconds + 2 * self._beat_seconds)

    @property
    def _beat_seconds(self) -> float:
        return max(0.2, self._lost_seconds / 10)

    def _watch(self) -> None:
        """Says "alive" now and then, and ends this process when another has ended.

        Process 0 reads when each process last spoke, by its own clock; the others only
        look for its verdict, so that a job of n processes costs n messages a beat.
        """
        heard: dict[int, tuple[str, float]] = {}
        for beat in itertools.count():
            try:
                self.client.key_value_set(
                    f"rfq/alive/{self.process_id}", str(beat), allow_overwrite=True
                )
                if self.process_id == 0:
                    self._look_for_the_silent(heard)
                verdict = self._wait_for_verdict()
            except Exception as error:
                if not self._leaving.is_set():
                    _leave(
                        REQUEUE,
                        f"{self.name(0)} is gone (its coordination service does not "
                        f"answer: {_first_line(error)}); {_AGAIN}",
                    )
                return
            if self._leaving.is_set():
                return
            if verdict is not None:
                self._outlive_the_others()
                who = self.name(verdict["process"])
                _leave(verdict["code"], f"{who} {verdict['reason']}")

    def _look_for_the_silent(self, heard: dict[int, tuple[str, float]]) -> None:
        now = time.monotonic()
        for process_id, beat in self.read("rfq/alive/").items():
            if heard.get(process_id, ("", 0.0))[0] != beat:
                heard[process_id] = beat, now
        for process_id, (beat, when) in heard.items():
            if beat != _LEFT and now - when > self._lost_seconds:
                reason = f"is gone (silent for {now - when:.0f} s); {_AGAIN}"
                row = {"process": process_id, "code": REQUEUE, "reason": reason}
                self.client.key_value_set("rfq/end", json.dumps(row))
                return

    def _wait_for_verdict(self) -> dict[str, Any] | None:
        milliseconds = int(self._beat_seconds * 1000)
        try:
            return json.loads(
                self.client.blocking_key_value_get("rfq/end", milliseconds)
            )
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise


_LEFT = "left"
_AGAIN = "stopping; the same command goes on from the last checkpoint"
_job: _Job | None = None


def start() -> None:
    """Joins the job if a launcher started several processes; before any backend.

    RFQ_START_SECONDS (300) bounds the wait for the others, RFQ_LOST_SECONDS (30) the
    silence after which a process counts as gone.

    Raises:
        InputError: the launcher's variables do not fit; see `launched`.
    """
    global _job
    launch = launched(os.environ)
    if launch is None or _job is not None:
        return
    start_seconds = _seconds("RFQ_START_SECONDS", 300)
    lost_seconds = _seconds("RFQ_LOST_SECONDS", 30)
    explicit = launch.coordinator is not None
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        # Gloo waits 30 s for the last process; a cache, which only process 0 writes,
        # would let it run ahead of the others by all that they compile.
        jax.config.update("jax_enable_compilation_cache", False)
    # Past its own limit jax aborts with a stack trace, and without a sentence.
    impatient = threading.Timer(start_seconds, _nobody_came, (launch, start_seconds))
    impatient.daemon = True
    impatient.start()
    try:
        jax.distributed.initialize(
            coordinator_address=launch.coordinator,
            num_processes=launch.num_processes,
            process_id=launch.process_id,
            cluster_detection_method=(
                "deactivate" if explicit else LAUNCHERS[launch.launcher].method
            ),
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
            f"set {', '.join(_EXPLICIT)} on every process instead"
        ) from error
    finally:
        impatient.cancel()
    _job = _Job(lost_seconds, start_seconds)


def _nobody_came(launch: Launch, seconds: int) -> None:
    place = launch.coordinator or f"what {launch.launcher} names"
    if launch.coordinator and launch.process_id != 0 and not _reaches(place):
        what = f"cannot reach process 0 at {place} from {socket.gethostname()}"
        what += "; start it, or give RFQ_COORDINATOR an address that this host reaches"
    else:
        total = launch.num_processes or LAUNCHERS[launch.launcher].count(os.environ)
        what = f"not all of the {total} processes have come to {place}"
        what += "; look for one that failed or was not started"
    who = (
        "this process" if launch.process_id is None else f"process {launch.process_id}"
    )
    text = f"{who} waited {seconds} s: {what} (RFQ_START_SECONDS sets how long)"
    _leave(2, text)


def _reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except OSError:
        return False


def leave() -> None:
    """Leaves the job when all is done; waits until the others are done too."""
    global _job
    if _job is not None:
        _job.leave()
        jax.distributed.shutdown()
        _job = None


def abandon(code: int, error: BaseException) -> None:
    """Ends a process of a job for good, and through the watch all others.

    Returns where there is one process. A collective that fails because another process
    died raises here before anybody knows who did; so what is no `InputError` first
    leaves the watch time to find out.
    """
    if _job is None:
        return
    if isinstance(error, InputError | KeyboardInterrupt):
        text = _first_line(error)
    else:
        _job.await_verdict()
        sys.excepthook(type(error), error, error.__traceback__)
        text = f"{type(error).__name__}: {_first_line(error)}"
    _job.end(code, f"stopped: {text}")
    _leave(code, f"{_job.name(_job.process_id)} stopped: {text}")


def _leave(code: int, text: str) -> NoReturn:
    """Ends at once: what is left of the job may hang in a barrier."""
    metrics.alarm(text)
    sys.stdout.flush()
    os._exit(code)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


# --- Agreeing -------------------------------------------------------------------------


def agree(what: str, described: Mapping[str, Any]) -> None:
    """Makes sure that all processes hold the same nested dict of JSON.

    Raises:
        InputError: on every process, in the same words: who differs, and in what.
    """
    if _job is None:
        return
    text = json.dumps(described, sort_keys=True)
    key = _job.key(f"agree/{what}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    _job.client.key_value_set(f"{key}/text/{_job.process_id}", text)
    _job.client.key_value_set(f"{key}/digest/{_job.process_id}", digest)
    _job.meet(what)
    digests = _job.read(f"{key}/digest/")
    for process_id in range(1, _job.num_processes):
        if digests[process_id] == digests[0]:
            continue
        ours, theirs = (
            json.loads(_job.client.blocking_key_value_get(f"{key}/text/{i}", 60_000))
            for i in (0, process_id)
        )
        field, first, other = experiment_lib.differences(ours, theirs)[0]
        raise InputError(
            f"the processes differ in {what}: {field} is {other!r} on "
            f"{_job.name(process_id)} and {first!r} on {_job.name(0)}; give all hosts "
            "the same command, code and data"
        )


def barrier(where: str) -> None:
    """Waits until all processes are here; what process 0 wrote before is there then.

    Raises:
        InputError: some did not come within RFQ_START_SECONDS; names them.
    """
    if _job is not None:
        _job.meet(where)


def broadcast(what: str, value: Callable[[], Any]) -> Any:
    """`value()` of process 0, JSON, on all processes: one look decides for all."""
    if _job is None:
        return value()
    key = _job.key(f"broadcast/{what}")
    if _job.process_id == 0:
        found = value()
        _job.client.key_value_set(key, json.dumps(found))
        return found
    while True:  # The watch ends this process if process 0 is gone.
        try:
            return json.loads(_job.client.blocking_key_value_get(key, 10_000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def is_single_process() -> bool:
    """True where this process is the whole job."""
    return _job is None


def is_main_process() -> bool:
    """True on the process that speaks for all; asks no backend."""
    return _job is None or _job.process_id == 0


# --- Preemption -----------------------------------------------------------------------

_boundaries = itertools.count()


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGUSR1 into an answer at the end of the next piece of work.

    Yields a function to call after every step or setting, by all processes; it returns
    True, for all of them after the same one, once any was told to end. Between
    processes jax's preemption service agrees on it; it listens for SIGTERM only.
    """
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        if _job is None:
            asked.set()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def due() -> bool:
        if _job is None:
            return asked.is_set()
        # Counted over all runs of this process: the service compares numbers.
        return multihost_utils.reached_preemption_sync_point(next(_boundaries))

    if threading.current_thread() is not threading.main_thread():
        yield due  # Python delivers signals to the main thread alone.
        return
    numbers = [signal.SIGUSR1] if _job is not None else [signal.SIGUSR1, signal.SIGTERM]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield due
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
