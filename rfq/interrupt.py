"""Ctrl-C ends a command at once and in one line, wherever it is.

An exception would have to leave whatever runs: an import, a compilation that returns to
Python after minutes, a callback that swallows it, or an interpreter that shuts down
around the threads of jax, which then crashes. The files on disk are whole at any moment
(see `rfq.files`), so nothing has to be tidied.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

STATUS = 130
SENTENCE = "interrupted; the same command goes on from here"

_SECONDS = 5.0  # The longest wait for the last message.
_last_words: list[Callable[[], None]] = []


def first(call: Callable[[], None]) -> None:
    """Have a function called, in another thread, before Ctrl-C ends the process."""
    _last_words.append(call)


def watch() -> None:
    """End this process at the first SIGINT, unless its parent had that ignored.

    Python runs handlers in the main thread, between two of its instructions. A thread
    of our own reads the number of the signal from a pipe, and need not wait for that.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=_wait, args=(reader,), daemon=True).start()


def _wait(reader: int) -> None:
    while os.read(reader, 1)[0] != signal.SIGINT:
        pass
    speaking = threading.Thread(target=_speak, daemon=True)
    speaking.start()
    speaking.join(_SECONDS)  # The main thread may hold a lock that it needs.
    show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}rfq: {SENTENCE}\n".encode())
    os._exit(STATUS)


def _speak() -> None:
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    for call in _last_words:
        with contextlib.suppress(Exception):
            call()
