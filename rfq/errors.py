"""The one exception that speaks to a person, and the lookup that raises it."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """What a person typed, or a file they gave, cannot be used.

    The message is one sentence: what was given, what is accepted, and what to do
    next. The command line prints it without a traceback; any other exception is a
    bug in rfq and keeps its traceback.
    """


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """Returns table[name], or says which names exist."""
    if name not in table:
        raise InputError(f"{what}={name!r} is unknown; choose from {sorted(table)}")
    return table[name]


class Diverged(RuntimeError):
    """Training met a non-finite loss or gradient; the message says where."""
