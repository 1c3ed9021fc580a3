"""The one exception that speaks to a person, and the lookup that raises it."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Literal, TypeVar

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


def check_choices(config: object, section: str) -> None:
    """Raises InputError where a field annotated `Literal[...]` holds anything else.

    For the `__post_init__` of a config dataclass; `section` is its name in the
    experiment.
    """
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value, accepted = getattr(config, field.name), typing.get_args(field.type)
        if typing.get_origin(field.type) is Literal and value not in accepted:
            raise InputError(
                f"{section}.{field.name}={value!r} is unknown; "
                f"choose from {sorted(accepted)}"
            )


class Diverged(RuntimeError):
    """Training met a non-finite loss or gradient; the message says where."""


class Preempted(RuntimeError):
    """Told to end: what is done is saved, and the message says where."""
