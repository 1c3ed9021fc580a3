"""Files that are never half-written: replaced in one step, or grown line by line.

A kill can leave only part of a last line. Readers ignore it, and writers cut it off
before they append.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from rfq.errors import InputError

_LOCK = ".lock"


def replace(path: pathlib.Path, content: str | bytes) -> None:
    """Replace a file in one step: written beside it, synced, then renamed.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    with _said_of(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def append(path: pathlib.Path, line: str) -> None:
    """Append a line, after cutting off the torn one that a kill may have left.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    with _said_of(path), path.open("ab+") as file:
        _cut_torn_line(file.fileno())
        file.write(line.encode("utf-8") + b"\n")


def whole_lines(path: pathlib.Path) -> list[str]:
    """Read the lines of a file that end with a line feed; none if there is no file."""
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    return [line.decode("utf-8", "replace") for line in whole]


def _cut_torn_line(descriptor: int, block: int = 1 << 16) -> None:
    """Truncate a file behind its last line feed, which is looked for from the end."""
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - (1 if end == size else block))
        place = os.pread(descriptor, end - start, start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Keep other processes out of a directory that exists, until the context ends.

    The lock is an `flock` of DIR/.lock, so the kernel lets go of it when its process
    ends, however that happens. On NFS it holds between machines where the mount has a
    lock service; on a file system without locks nothing is held.

    Raises:
        InputError: another process is at work there.
    """
    path = directory / _LOCK
    with _said_of(path):
        descriptor = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # Still ours; others make a new one.
        os.close(descriptor)


def _lock(path: pathlib.Path) -> int:
    """Open and lock the file at a path, and return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise InputError(
                f"{str(path.parent)!r} is in use by another process ({holder}); wait "
                "until it has ended, or give another directory"
            ) from None
        except OSError:
            pass  # A file system without locks.
        try:
            is_current = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            is_current = False
        if is_current:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _me().encode(), 0)
            return descriptor
        os.close(descriptor)  # Its holder has just removed it.


def _me() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}\n"


@contextlib.contextmanager
def _said_of(path: pathlib.Path) -> Iterator[None]:
    """Turn what the system has against a file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); make room "
            "or make it writable, and the same command goes on from what is saved"
        ) from error
