import dataclasses

import jax
import pytest
from jax._src import clusters

from rfq import distributed
from rfq.errors import InputError

# --- How a process was started --------------------------------------------------------

EXPLICIT = {
    "RFQ_COORDINATOR": "node1:4711",
    "RFQ_NUM_PROCESSES": "4",
    "RFQ_PROCESS_ID": "3",
}
# What `srun --ntasks=4` tells its third task on two nodes.
SRUN = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}

LAUNCHED = {
    "a laptop": ({}, None),
    "one process, by name": ({"RFQ_NUM_PROCESSES": "1"}, None),
    "one process in a job": (SRUN | {"RFQ_NUM_PROCESSES": "1"}, None),
    "by hand": (EXPLICIT, ("RFQ_COORDINATOR", "node1:4711", 4, 3)),
    "by hand in a job": (EXPLICIT | SRUN, ("RFQ_COORDINATOR", "node1:4711", 4, 3)),
    "srun": (SRUN, ("slurm", None, None, None)),
    "srun of one task": (SRUN | {"SLURM_NTASKS": "1"}, None),
    "a batch script": ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
    "mpirun 4": (MPIRUN, ("open_mpi", None, None, None)),
    "mpirun 5": (
        {
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "2",
            "RFQ_COORDINATOR": "node1:4711",
        },
        ("RFQ_COORDINATOR", "node1:4711", 4, 2),
    ),
    "a slice on GKE": (
        {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"},
        ("gke_tpu", None, None, None),
    ),
    "one TPU host": ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    "two slices of one host": (
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        ("gke_tpu", None, None, None),
    ),
    "a TPU pod": ({"RFQ_LAUNCHER": "cloud_tpu"}, ("cloud_tpu", None, None, None)),
}


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_process_knows_who_started_it(name):
    env, expected = LAUNCHED[name]
    found = distributed.launched(env)
    assert (None if found is None else dataclasses.astuple(found)) == expected


REFUSED = {
    "half": ({"RFQ_PROCESS_ID": "0"}, "RFQ_COORDINATOR and RFQ_NUM_PROCESSES is not"),
    "no port": (EXPLICIT | {"RFQ_COORDINATOR": "node1"}, "'node1' is not HOST:PORT"),
    "past the end": (EXPLICIT | {"RFQ_PROCESS_ID": "4"}, "RFQ_PROCESS_ID='4'"),
    "no number": (EXPLICIT | {"RFQ_NUM_PROCESSES": "four"}, "'four'"),
    "alone": (
        EXPLICIT | {"RFQ_NUM_PROCESSES": "1", "RFQ_PROCESS_ID": "0"},
        "needs no coordinator",
    ),
    "unknown": ({"RFQ_LAUNCHER": "pbs"}, "RFQ_LAUNCHER='pbs' is unknown; choose from"),
    "mpirun 5": ({"OMPI_COMM_WORLD_SIZE": "4"}, "-x RFQ_COORDINATOR=HOST:PORT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_cannot_be_is_a_sentence(name):
    env, says = REFUSED[name]
    with pytest.raises(InputError) as caught:
        distributed.launched(env)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "method", "expected"),
    [
        # Port: 61440 + job id modulo 4096, in jax's SlurmCluster.
        (SRUN, "slurm", ("node007:61809", 4, 2)),
        # Port: 61440 + (job id / 4096) modulo 4096, in jax's OmpiCluster.
        (MPIRUN, "open_mpi", ("10.96.0.1:62624", 4, 2)),
    ],
    ids=["slurm", "open_mpi"],
)
def test_jax_reads_where_process_0_is_from_the_launchers_variables(
    monkeypatch, env, method, expected
):
    """`start` in the environment of a cluster, as far as the call that joins it."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    asked = {}

    def initialize(**how):
        asked.update(how)
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            how["coordinator_address"],
            how["num_processes"],
            how["process_id"],
            None,
            how["cluster_detection_method"],
            how["initialization_timeout"],
        )
        asked["found"] = found[:3]
        raise RuntimeError("far enough")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=f"{method} could not join .*far enough"):
        distributed.start()
    assert asked["found"] == expected
    assert asked["initialization_timeout"] > 300


def test_one_process_needs_no_others():
    distributed.start()
    assert distributed.is_single_process()
    assert distributed.is_main_process()
    distributed.agree("anything", {"a": 1})
    distributed.barrier("anywhere")
    assert distributed.broadcast("x", lambda: [1, 2]) == [1, 2]
    distributed.abandon(1, RuntimeError("x"))
    distributed.leave()


def test_a_time_that_is_none_is_a_sentence(monkeypatch):
    for name, value in EXPLICIT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RFQ_LOST_SECONDS", "soon")
    with pytest.raises(InputError, match="RFQ_LOST_SECONDS='soon' must be a whole"):
        distributed.start()
