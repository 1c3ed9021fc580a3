"""The launcher that started this process, read from the environment."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

from rfq.errors import InputError, lookup

VARIABLES = ("RFQ_COORDINATOR", "RFQ_NUM_PROCESSES", "RFQ_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A job of several processes; jax asks the launcher for fields that are None.

    Attributes:
        launcher: A name of `LAUNCHERS`, or "RFQ_COORDINATOR".
        coordinator: "host:port" of process 0.
        num_processes: The number of processes of the job.
        process_id: The number of this process, from 0.
    """

    launcher: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def _slurm(env: Mapping[str, str]) -> int:
    # Only what `srun` starts has a step; a batch script itself is one process.
    return int(env["SLURM_NTASKS"]) if "SLURM_STEP_NODELIST" in env else 0


def _open_mpi(env: Mapping[str, str]) -> int:
    return int(env.get("OMPI_COMM_WORLD_SIZE", 0))


def _gke_tpu(env: Mapping[str, str]) -> int:
    hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    return len(hosts.split(",")) * slices if hosts else 0


def _unseen(env: Mapping[str, str]) -> int:
    del env  # No variable shows this launcher: RFQ_LAUNCHER must name it.
    return 0


# name -> (jax's `cluster_detection_method`, environment -> processes that it started).
LAUNCHERS: Mapping[str, tuple[str, Callable[[Mapping[str, str]], int]]] = {
    "slurm": ("slurm", _slurm),
    "open_mpi": ("ompi", _open_mpi),
    "gke_tpu": ("gketpu", _gke_tpu),
    "cloud_tpu": ("gcetpu", _unseen),
    "kubernetes": ("k8s", _unseen),
}


def launched(env: Mapping[str, str]) -> Launch | None:
    """Return how this process was started, or None where it is the only one.

    The variables RFQ_COORDINATOR=host:port, RFQ_NUM_PROCESSES and RFQ_PROCESS_ID come
    first (Open MPI supplies the last two), then RFQ_LAUNCHER, then the first row of
    `LAUNCHERS` that started more than one process. RFQ_NUM_PROCESSES=1 overrules all.

    Raises:
        InputError: the variables are incomplete or contradict each other.
    """
    given = {name: env[name] for name in VARIABLES if env.get(name)}
    if given.get("RFQ_NUM_PROCESSES") == "1":
        return None
    if "RFQ_COORDINATOR" in given and "OMPI_COMM_WORLD_SIZE" in env:
        given.setdefault("RFQ_NUM_PROCESSES", env["OMPI_COMM_WORLD_SIZE"])
        given.setdefault("RFQ_PROCESS_ID", env["OMPI_COMM_WORLD_RANK"])
    if given:
        return _explicit(given)
    if name := env.get("RFQ_LAUNCHER"):
        lookup(LAUNCHERS, name, "RFQ_LAUNCHER")
        return Launch(name)
    for name, (_, count) in LAUNCHERS.items():
        if count(env) > 1:
            if name == "open_mpi" and "OMPI_MCA_orte_hnp_uri" not in env:
                raise InputError(
                    "Open MPI 5 does not tell its processes where process 0 is; start "
                    "with mpirun -x RFQ_COORDINATOR=HOST:PORT, where HOST is the first "
                    "host of the job"
                )
            return Launch(name)
    return None


def _explicit(given: Mapping[str, str]) -> Launch:
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise InputError(
            f"{' and '.join(given)} is set but {' and '.join(missing)} is not; set all "
            f"of {', '.join(VARIABLES)} on every process, or none"
        )
    coordinator, count, index = (given[name] for name in VARIABLES)
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(
            f"RFQ_COORDINATOR={coordinator!r} is not HOST:PORT; give an address of "
            "process 0's machine and a free port there, such as node1:4711"
        )
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise InputError(
            f"RFQ_NUM_PROCESSES={count!r} and RFQ_PROCESS_ID={index!r} must be whole "
            "numbers, the second in 0 .. the first - 1"
        )
    return Launch("RFQ_COORDINATOR", coordinator, int(count), int(index))


def seconds(name: str, default: int) -> int:
    """Return a number of seconds from the environment.

    Raises:
        InputError: it is no whole number of 1 or more.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise InputError(
            f"{name}={text!r} must be a whole number of seconds, 1 or more"
        )
    return int(text)
