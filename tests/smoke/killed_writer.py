"""Run rfq, and have the system kill it at a numbered write.

    python -m tests.smoke.killed_writer NUMBER SECONDS WORDS...

The process gets SIGKILL so many seconds after its write of that number begins, and at
its end at the latest. With NUMBER 0 nothing is killed, and the last line of stdout is
how many writes there were.
"""

import itertools
import os
import signal
import sys
import threading
import time

from rfq import cli, files


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60.0)  # It ends the process, but not before the call returns.


def main(number: int, seconds: float, words: list[str]) -> int:
    """Arm both ways of writing a file, then do what the words say."""
    calls = itertools.count(1)
    last = 0

    def armed(inner):
        def write(*given) -> None:
            nonlocal last
            last = next(calls)
            if last == number:
                threading.Timer(seconds, _die).start()
            inner(*given)
            if last == number:
                _die()

        return write

    files.append, files.replace = armed(files.append), armed(files.replace)
    status = cli.main(words)
    sys.stdout.write(f"\n{last}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
