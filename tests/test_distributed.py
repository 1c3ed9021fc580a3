import jax
import pytest
from jax._src import clusters

from rfq import distributed, metrics
from rfq.errors import InputError
from tests.test_launcher import EXPLICIT, MPIRUN, SRUN


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
    assert metrics.is_writer()
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
