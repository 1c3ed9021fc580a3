"""Turn words into dataclasses, by tyro, and its refusals into one sentence."""

import contextlib
import dataclasses
import io
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from rfq.errors import InputError, nearest

Parsed = TypeVar("Parsed")
Positional = tyro.conf.Positional


def _shown(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


# How help shows an option that may be left out, in place of tyro's "{None}|PATH".
DIR, FILE, INT, FLOAT = map(_shown, ("DIR", "FILE", "INT", "FLOAT"))
WORD, SOURCE, SCALE = map(_shown, ("STR", "[SOURCE]", "{demo,small,paper}"))
FROM = tyro.conf.arg(name="from", metavar="RUN", help_behavior_hint="")
_TYRO = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)


def parse(
    prog: str, kind: type[Parsed], args: Sequence[str], default: Parsed | None = None
) -> Parsed:
    """Make the dataclass that words ask for, from `default` where one is given.

    Raises:
        InputError: tyro or the dataclass refuses a word.
    """
    known = options(kind if default is None else default)
    words = _split_lists(args, known)
    missing = tyro.MISSING_NONPROP
    with _one_sentence(prog):
        parsed, unknown = tyro.cli(
            kind,
            prog=prog,
            args=words,
            default=missing if default is None else default,
            return_unknown_args=True,
            config=_TYRO[:1],
        )
    if unknown:
        raise InputError(_unexpected(prog, unknown[0], known, default))
    return parsed


def parse_known(
    prog: str, kind: type[Parsed], others: type, args: Sequence[str]
) -> tuple[Parsed, list[str]]:
    """Parse as `parse` does; `others` may explain further words.

    Raises:
        InputError: as `parse`; a word is an option of neither dataclass.
    """
    known, elsewhere = options(kind), options(others)
    with _one_sentence(prog):
        parsed, unknown = tyro.cli(
            kind,
            prog=prog,
            args=_split_lists(args, known),
            return_unknown_args=True,
            config=_TYRO,
        )
    roots = {_root(option) for option in elsewhere}
    for word in unknown:
        if word.startswith("--") and _root(word) not in roots:
            raise InputError(_unexpected(prog, word, {**known, **elsewhere}))
    return parsed, unknown


def options(config: Any, prefix: str = "--") -> dict[str, Any]:
    """List option -> type, of the fields of a dataclass and of those inside it.

    Args:
        config: a dataclass, or one of its instances.
        prefix: what the options begin with.
    """
    kinds = typing.get_type_hints(config if isinstance(config, type) else type(config))
    kind_of: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        # A field that would be a keyword of Python ends in "_".
        option = prefix + field.name.rstrip("_").replace("_", "-")
        kind_of[option] = kinds[field.name]
        if dataclasses.is_dataclass(value):
            kind_of |= options(value, f"{option}.")
    return kind_of


def _root(word: str) -> str:
    """Return what stands before the first dot, as tyro spells it."""
    return word.partition("=")[0].partition(".")[0].replace("_", "-")


# Lists of paths, which may have spaces in them.
_PATHS = ("--data.also",)


def _split_lists(words: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Split a list of names or numbers that is one quoted word: "FP W8A8 W8A6"."""
    split, option = [], ""
    for word in words:
        if word.startswith("--"):
            option = word.replace("_", "-")
        is_list = typing.get_origin(known.get(option)) is tuple
        if is_list and option not in _PATHS and not word.startswith("--"):
            split += word.split() or [word]
        else:
            split.append(word)
    return split


def _unexpected(
    prog: str, word: str, known: Mapping[str, Any], default: object = None
) -> str:
    """Say of a word what it could have been."""
    name = word.partition("=")[0]
    section, _, field = name.removeprefix("--").replace("_", "-").partition(".")
    inside = [o.partition(".")[2] for o in known if o.startswith(f"--{section}.")]
    if field and inside:
        which = type(getattr(default, section.replace("-", "_"))).__name__
        return (
            f"{name} is no field of {section}, which is {which} with "
            f"{', '.join(inside)}{nearest(field, inside)}"
        )
    if not word.startswith("--"):
        return f"{word!r} is not expected there; see `{prog} --help`"
    return f"{name} is unknown; see `{prog} --help`{nearest(name, known)}"


def show_help(prog: str, kind: type, default=None) -> None:
    """Print what tyro says of a dataclass, with the values of `default`."""
    try:
        parse(prog, kind, ["--help"], default)
    except SystemExit:
        return


@contextlib.contextmanager
def _one_sentence(prog: str) -> Iterator[None]:
    """Turn what tyro refuses, and what it draws in a box, into an InputError."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise  # Help was asked for and printed.
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        said = _unboxed(box.getvalue())
        raise InputError(f"{said}; see `{prog} --help`") from None


def _unboxed(box: str) -> str:
    """Take the first paragraph out of tyro's box, without title, rules and hints.

    The box is drawn with lines of its own where stdout is UTF-8, and else with dashes.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │╭╮╰╯") for line in plain.splitlines()[1:]]
    paragraphs = itertools.groupby(lines, key=lambda line: bool(set(line) - set("─-")))
    first = next((list(group) for is_text, group in paragraphs if is_text), [])
    text = " ".join(first).rstrip(".")
    return text[:1].lower() + text[1:]
