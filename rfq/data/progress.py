"""How data code says how far it is, without knowing who shows it."""

import contextlib
from collections.abc import Callable
from typing import Protocol


class Bar(Protocol):
    """How far a long loop is."""

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
