"""The exception whose message is for a person, and the lookup that raises it."""

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """An input that a person typed, or a file they gave, cannot be used.

    The message is one sentence: what was given, what is accepted, and what to do
    next. The command line prints it without a traceback; any other exception is a
    bug in rfq and keeps its traceback.
    """


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """Return table[name], or raise an InputError that lists the names."""
    if name not in table:
        raise InputError(
            f"{what}={name!r} is unknown; choose from {sorted(table)}"
            f"{nearest(name, table)}"
        )
    return table[name]


def nearest(name: str, names: Iterable[object]) -> str:
    """Return the end of a sentence that asks for a near name; "" where none is near."""
    close = difflib.get_close_matches(name, list(map(str, names)), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_fields(config: object, section: str) -> None:
    """Raise InputError where a field of a config holds what its annotation excludes.

    A config dataclass calls it first in `__post_init__`; `section` is its name in the
    experiment. A float may be an int. Annotations that `_accepts` does not know are not
    checked.
    """
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value, accepted = getattr(config, field.name), typing.get_args(field.type)
        if typing.get_origin(field.type) is Literal and value not in accepted:
            raise InputError(
                f"{section}.{field.name}={value!r} is unknown; "
                f"choose from {sorted(accepted)}{nearest(str(value), accepted)}"
            )
        if not _accepts(field.type, value):
            name = getattr(field.type, "__name__", "")
            kind = name if isinstance(field.type, type) and not accepted else field.type
            raise InputError(
                f"{section}.{field.name}={value!r} is of type {type(value).__name__}; "
                f"give {kind}"
            )


# Annotation -> the types of the values that it stands for, beside itself.
_NUMBERS: Mapping[Any, type] = {int: numbers.Integral, float: numbers.Real}


def _accepts(annotation: Any, value: object) -> bool:
    """Check a value against an annotation: int, float, str, unions and tuples."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_accepts(each, value) for each in inner)
    if origin is tuple and inner[1:] == (...,):
        return isinstance(value, tuple) and all(_accepts(inner[0], v) for v in value)
    if annotation in _NUMBERS:
        is_flag = isinstance(value, bool)
        return isinstance(value, _NUMBERS[annotation]) and not is_flag
    if annotation in (str, bool, types.NoneType):
        return isinstance(value, annotation)
    return True


class Diverged(RuntimeError):
    """Training met a non-finite loss or gradient; the message says where."""


class Preempted(RuntimeError):
    """The process was told to end; its work is saved, and the message says where."""
