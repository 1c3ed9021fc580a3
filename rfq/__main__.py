"""The entry point: `rfq` and `python -m rfq`."""

import os
import sys

from rfq import interrupt


def main() -> int:
    """Runs the command line with one BLAS thread per LAPACK call.

    XLA calls LAPACK for small matrices from its own threads. OpenBLAS would add a
    spinning pool of its own to each call, and on a busy machine of two cores a refresh
    of KL-Shampoo then took seconds instead of tenths of one. The variable is read when
    the library is loaded, hence before anything else is imported.
    """
    interrupt.watch()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rfq import cli, distributed

    # The other processes of a job, if there are any, must hear of it.
    interrupt.first(lambda: distributed.abandon(interrupt.STATUS, KeyboardInterrupt()))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
