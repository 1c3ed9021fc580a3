"""The interface through which data code reports progress, whoever shows it."""

import contextlib
from collections.abc import Callable
from typing import Protocol


class Bar(Protocol):
    """The progress of a long loop."""

    def update(self, done: int, note: str = "") -> None:
        """Move to `done` of the total."""


# (what is being done, its total) -> a bar for the time of the loop.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Bar]]


class _NoBar:
    def update(self, done: int, note: str = "") -> None:
        """Show nothing."""


def no_progress(description: str, total: int) -> contextlib.AbstractContextManager[Bar]:
    """Show nothing."""
    del description, total
    return contextlib.nullcontext(_NoBar())
