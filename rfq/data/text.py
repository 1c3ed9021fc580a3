"""Documents of text files and of JSON lines: bytes to (id, text) pairs."""

import io
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from rfq.data import files
from rfq.errors import InputError

Reader: TypeAlias = Callable[
    [pathlib.Path, io.BufferedIOBase], Iterator[tuple[str, str]]
]


def _by_blank_lines(
    path: pathlib.Path, file: io.BufferedIOBase
) -> Iterator[tuple[str, str]]:
    """Yield each run of lines between blank lines, named by its first line."""
    gathered: list[str] = []
    num_bytes = first = 0
    for number, line in files.lines(path, file):
        text = _decoded(path, number, line)
        if text.strip():
            if not gathered:
                first, num_bytes = number, 0
            gathered.append(text)
            num_bytes += len(line)
            if num_bytes > files.MAX_DOCUMENT_BYTES:
                raise files.too_long(f"{path}, the document from line {first}")
        elif gathered:
            yield f"{path.name}:{first}", "".join(gathered).rstrip("\r\n")
            gathered = []
    if gathered:
        yield f"{path.name}:{first}", "".join(gathered).rstrip("\r\n")


def _by_lines(path: pathlib.Path, file: io.BufferedIOBase) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, named by its number."""
    for number, line in files.lines(path, file):
        text = _decoded(path, number, line).rstrip("\r\n")
        if text.strip():
            yield f"{path.name}:{number}", text


def _by_files(path: pathlib.Path, file: io.BufferedIOBase) -> Iterator[tuple[str, str]]:
    """Yield the whole file, named as the file is."""
    data = files.whole(path, file, files.MAX_DOCUMENT_BYTES)
    try:
        yield path.name, data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise files.not_utf8(f"{path}, line {line}", error) from error


# What a document of a text file is -> its reader.
DIVISIONS: Mapping[str, Reader] = {
    "blank-line": _by_blank_lines,
    "line": _by_lines,
    "file": _by_files,
}


def read_jsonl(
    path: pathlib.Path, file: io.BufferedIOBase, field: str
) -> Iterator[tuple[str, str]]:
    """Yield a document a line: `field`, and optionally `id`; blank lines are none."""
    for number, line in files.lines(path, file):
        if line.strip():
            yield _parse_line(path, number, line, field)


def _parse_line(
    path: pathlib.Path, number: int, line: bytes, field: str
) -> tuple[str, str]:
    text = _decoded(path, number, line)
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
        raise InputError(
            f"{path}, line {number} is not JSON ({reason}); a .jsonl file holds one "
            f"object with a field {field!r} on each line"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        got = sorted(row)[:20] if isinstance(row, dict) else type(row).__name__
        raise InputError(
            f"{path}, line {number} has no string field {field!r} (got {got}); name "
            "the field that holds the text with --text-field"
        )
    if not _is_encodable(row[field]):
        raise InputError(
            f"{path}, line {number} holds half of a surrogate pair, which is no text; "
            "repair the line or remove it"
        )
    name = row.get("id")
    # A document without an id is named by its place, so that equal texts stay two.
    return f"{path.name}:{number}" if name is None else str(name), row[field]


def _decoded(path: pathlib.Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise files.not_utf8(f"{path}, line {number}", error) from error


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
