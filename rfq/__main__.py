"""The entry point: `rfq` and `python -m rfq`."""

import importlib.util
import os
import sys

from rfq import interrupt

# What the extra `run` of pyproject.toml brings, by the names that are imported.
NEEDED = (
    "array_record",
    "flax",
    "grain",
    "importlib_resources",
    "jinja2",
    "matplotlib",
    "orbax",
    "polars",
    "pyarrow",
    "rich",
    "sentencepiece",
    "six",
    "tensorflow_datasets",
    "tyro",
)


def main() -> int:
    """Run the command line with one BLAS thread per LAPACK call.

    XLA calls LAPACK for small matrices from its own threads. OpenBLAS would add a
    spinning pool of its own to each call, and on a busy machine of two cores a refresh
    of KL-Shampoo then took seconds instead of tenths of one. The variable is read when
    the library is loaded, hence before anything else is imported.
    """
    interrupt.watch()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"rfq: commands need {', '.join(missing)}, which is not installed; run "
            "pip install 'rfq[run]', or pip install -e '.[run]' in a checkout\n"
        )
        return 2
    from rfq import cli, distributed

    # The other processes of a job, if there are any, must hear of it.
    interrupt.first(lambda: distributed.abandon(interrupt.STATUS, KeyboardInterrupt()))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
