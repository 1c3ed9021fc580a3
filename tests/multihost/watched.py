"""rfq, noting what it opens to write: one line a file in $WRITES.PROCESS."""

import os
import pathlib
import sys

from rfq import __main__

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _watch(path: pathlib.Path) -> None:
    log = path.open("a")

    def note(event: str, args: tuple) -> None:
        if event == "open" and args[2] & _WRITES and not isinstance(args[0], int):
            log.write(f"{os.path.abspath(os.fsdecode(args[0]))}\n")
            log.flush()

    sys.addaudithook(note)


if __name__ == "__main__":
    _watch(pathlib.Path(f"{os.environ['WRITES']}.{os.environ['RFQ_PROCESS_ID']}"))
    sys.exit(__main__.main())
