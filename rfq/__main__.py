"""`python -m rfq` is `rfq`."""

import sys

from rfq.cli import main

if __name__ == "__main__":
    sys.exit(main())
