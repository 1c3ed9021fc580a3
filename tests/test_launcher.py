import dataclasses

import pytest

from rfq import launcher
from rfq.errors import InputError

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
    "one process, by hand": (EXPLICIT | {"RFQ_NUM_PROCESSES": "1"}, None),
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
    launch = launcher.launched(env)
    assert (launch and dataclasses.astuple(launch)) == expected


REFUSED = {
    "half": ({"RFQ_PROCESS_ID": "0"}, "RFQ_COORDINATOR and RFQ_NUM_PROCESSES is not"),
    "no port": (EXPLICIT | {"RFQ_COORDINATOR": "node1"}, "'node1' is not HOST:PORT"),
    "past the end": (EXPLICIT | {"RFQ_PROCESS_ID": "4"}, "RFQ_PROCESS_ID='4'"),
    "no number": (EXPLICIT | {"RFQ_NUM_PROCESSES": "four"}, "'four'"),
    "unknown": ({"RFQ_LAUNCHER": "pbs"}, "RFQ_LAUNCHER='pbs' is unknown; choose from"),
    "mpirun 5": ({"OMPI_COMM_WORLD_SIZE": "4"}, "-x RFQ_COORDINATOR=HOST:PORT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_cannot_be_is_a_sentence(name):
    env, says = REFUSED[name]
    with pytest.raises(InputError) as caught:
        launcher.launched(env)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
