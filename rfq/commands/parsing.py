"""Words to dataclasses, by tyro; what it refuses becomes one sentence."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tyro

from rfq.errors import InputError

Parsed = TypeVar("Parsed")
Positional = tyro.conf.Positional
_TYRO = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)


def parse(
    prog: str, kind: type[Parsed], args: Sequence[str], default: Parsed | None = None
) -> Parsed:
    """The dataclass that words ask for, from `default` where one is given.

    Raises:
        InputError: what tyro, or the dataclass, has against a word.
    """
    with _one_sentence(prog):
        if default is None:
            return tyro.cli(kind, prog=prog, args=args, config=_TYRO[:1])
        return tyro.cli(kind, prog=prog, args=args, config=_TYRO[:1], default=default)


def parse_known(
    prog: str, kind: type[Parsed], args: Sequence[str]
) -> tuple[Parsed, list[str]]:
    """As `parse`, with the words that are not the dataclass's beside it."""
    with _one_sentence(prog):
        return tyro.cli(
            kind, prog=prog, args=args, return_unknown_args=True, config=_TYRO
        )


def show_help(prog: str, kind: type, default=None) -> None:
    """Prints what tyro says of a dataclass, with the values of `default`."""
    try:
        parse(prog, kind, ["--help"], default)
    except SystemExit:
        return


@contextlib.contextmanager
def _one_sentence(prog: str) -> Iterator[None]:
    """Turns what tyro refuses, and draws in a box, into an InputError."""
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
    """What is wrong: the first paragraph of tyro's box, without title, rules and hints.

    The box is drawn with lines of its own where stdout is UTF-8, and else with dashes.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │╭╮╰╯") for line in plain.splitlines()[1:]]
    paragraphs = itertools.groupby(lines, key=lambda line: bool(set(line) - set("─-")))
    first = next((list(group) for is_text, group in paragraphs if is_text), [])
    text = " ".join(first).rstrip(".")
    return text[:1].lower() + text[1:]
