"""Output of a run for a person or a plotting script: JSON lines, progress, messages.

The only file that prints. On a machine of many processes only process 0 writes; the
others pass through here silently.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import rich.console
import rich.progress
from jax._src import distributed as jax_distributed

from rfq import files
from rfq.errors import InputError

_SECONDS_BETWEEN_LINES = 15.0

_console = rich.console.Console(highlight=False, soft_wrap=True)


def is_writer() -> bool:
    """Return True on the process that writes files and speaks."""
    return jax_distributed.global_state.process_id == 0


def say(text: str) -> None:
    """Print a line on process 0, without interpreting it as markup."""
    if is_writer():
        _console.print(text, markup=False)


def alarm(text: str) -> None:
    """Write a line to stderr from any process, at once and without looking at jax."""
    sys.stderr.write(f"rfq: {text}\n")
    sys.stderr.flush()


# --- JSON lines ---------------------------------------------------------------------


def to_json(row: Mapping[str, Any]) -> str:
    """Make one line of strict JSON: NaN and infinities become null and are named.

    The names of the top-level fields that lost a non-finite number are listed under
    "nonfinite", so that it is never mistaken for a missing one.
    """
    lost = [key for key, value in row.items() if _has_nonfinite(value)]
    clean = {key: _nulled(value) for key, value in row.items()}
    if lost:
        clean["nonfinite"] = lost
    return json.dumps(clean, allow_nan=False)


def _has_nonfinite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_nonfinite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_nonfinite, value))
    return False


def _nulled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(item) for item in value]
    return value


def append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON-lines file, from process 0; see `files.append`."""
    if is_writer():
        files.append(path, to_json(row))


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read all whole rows of a JSON-lines file; drop a torn last line (a kill).

    Raises:
        InputError: any other line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(files.whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path} line {number} is not JSON ({error.msg}); delete the line or "
                "the file"
            ) from error
        rows.append(row)
    return rows


def rewrite(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one step, from process 0."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a file in one step, from process 0; see `files.replace`."""
    if is_writer():
        files.replace(path, text)


def make_directory(path: pathlib.Path) -> None:
    """Create an output directory, or raise an InputError that says why it cannot."""
    if not is_writer():
        return
    probe = path / f".rfq-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"directory {str(path)!r} cannot be written ({error.strerror}); choose "
            "another with --out"
        ) from error


# --- Progress -----------------------------------------------------------------------


class Progress:
    """A bar on a terminal; a line every 15 seconds in a log file."""

    def __init__(self, description: str, total: int | None, done: int):
        self._description = description
        self._total = total
        self._done = self._first = done
        self._spoke = time.monotonic()
        self._started: float | None = None
        self._bar: rich.progress.Progress | None = None
        if is_writer() and _console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=_console,
            )
            self._task = self._bar.add_task(
                description, total=total, completed=done, note=""
            )
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Move to `done` of the total; `note` stands at the end of the line."""
        if self._started is None:  # Compilation before the first update is over.
            self._started, self._first = time.monotonic(), done
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if note:
                self._bar.update(self._task, note=note)
        elif time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            say(f"{self._description} {self._position()} {note}".rstrip())

    def _position(self) -> str:
        if self._total is None:
            return str(self._done)
        place, advanced = f"{self._done}/{self._total}", self._done - self._first
        if self._started is None or advanced <= 0:
            return place
        rate = advanced / (time.monotonic() - self._started)
        return f"{place}, {(self._total - self._done) / rate:.0f} s left"

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def progress(description: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """Show how far a long loop is and, if its total is known, when it will end."""
    shown = Progress(description, total, done)
    try:
        yield shown
    finally:
        shown.close()
