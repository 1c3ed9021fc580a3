"""One of several processes that measure one array: `... PROCESS COUNT PORT OUT`."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rfq import taps
from rfq.stats import bins

STATISTICS = ("moments", "channels", "tokens", "histogram")


def drawn() -> np.ndarray:
    """[B, T, D], with a token and a channel that are far larger than the others."""
    x = np.random.default_rng(0).standard_normal((32, 16, 24)).astype(np.float32)
    x[3, 0, 7] = 900.0
    return x + np.linspace(-1.0, 1.0, 24, dtype=np.float32)


def measured(devices) -> list[np.ndarray]:
    """The leaves of the record over an array whose rows lie on these devices."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",), (AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    whole = drawn()
    x = jax.make_array_from_callback(whole.shape, rows, lambda index: whole[index])
    unit = bins.Binning(np.float32(0.0), np.float32(1.0))

    def record(x):
        return taps.Measure(STATISTICS)(x, unit)[1]

    found = jax.jit(record, in_shardings=rows, out_shardings=everywhere)(x)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


if __name__ == "__main__":
    process, count, port, out = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    assert jax.process_count() == int(count)
    leaves = measured(jax.devices())
    if process == "0":
        np.savez(pathlib.Path(out), *leaves)
