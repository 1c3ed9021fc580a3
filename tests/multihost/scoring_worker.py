"""One of several processes that score requests: `... PROCESS COUNT PORT OUT`."""

import pathlib
import sys

import jax

from rfq import metrics, sharding
from tests.tasks import scored

if __name__ == "__main__":
    process, count, port, out = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    mesh = sharding.make_mesh(
        jax.device_count(), sharding.ShardingConfig(strategy="fsdp")
    )
    found = scored.answered(scored.encoded(scored.ASKED), mesh)
    row = {name: values.tolist() for name, values in found._asdict().items()}
    # Each process has all answers, and the first alone writes what `rewrite` is given.
    metrics.rewrite(pathlib.Path(out, f"rows-{process}.jsonl"), [row])
    pathlib.Path(out, f"{process}.json").write_text(metrics.to_json(row))
