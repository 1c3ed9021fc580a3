"""Where documents come from: the embedded corpus, and text and JSONL files."""

import dataclasses
import glob
import gzip
import io
import json
import lzma
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from rfq.errors import InputError

EMBEDDED_CORPUS = pathlib.Path(__file__).parent / "embedded" / "sotu.jsonl.xz"


class Document(NamedTuple):
    """One text, and a name for it that does not depend on where the file lies."""

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Attributes:
        name: last component of what the user wrote; no directory.
        files: the files read, in order.
        num_documents: how many there are, when that is known without reading.
    """

    name: str
    files: tuple[pathlib.Path, ...]
    num_documents: int | None

    def documents(self) -> Iterator[Document]:
        """Yields every document, empty ones included, one file at a time."""
        for path in self.files:
            read, opener = _reader(path)
            try:
                file = opener(path)
            except OSError as error:
                raise _damaged(path, error) from error
            with file:
                yield from read(path, file)


def open_source(spec: str) -> Source:
    """Resolves a name of `SOURCES`, a file, a directory or a glob.

    Directories are searched recursively for files of a known kind; hidden files are
    left out. Files are read in the order of their paths.

    Raises:
        InputError: nothing matches, or a file is of an unknown kind.
    """
    if spec in SOURCES:
        return SOURCES[spec]()
    path = pathlib.Path(spec)
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.is_file() and _is_visible(p, path))
        files = tuple(sorted(p for p in found if _suffix(p) is not None))
    elif path.exists():
        files = (path,)
    else:
        matches = glob.glob(spec, recursive=True)
        files = tuple(sorted(p for p in map(pathlib.Path, matches) if p.is_file()))
    if not files:
        raise InputError(
            f"source {spec!r} matches no file; give one of {sorted(SOURCES)}, a file, "
            f"a directory or a quoted glob of {_accepted()} files"
        )
    for file in files:
        _reader(file)
    one_each = all(_READERS[_kind(file)] is _read_text for file in files)
    return Source(path.name or spec, files, len(files) if one_each else None)


def documents(spec: str) -> Iterator[Document]:
    """Yields the documents of a source, see `open_source`."""
    return open_source(spec).documents()


def _embedded() -> Source:
    return Source("embedded", (EMBEDDED_CORPUS,), 249)


# A new source is one function that returns a Source, and one line here.
SOURCES: Mapping[str, Callable[[], Source]] = {"embedded": _embedded}


def _read_text(path: pathlib.Path, file: io.BufferedIOBase) -> Iterator[Document]:
    """One document: the whole file. Its id is the file's name."""
    try:
        data = file.read()
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    try:
        yield Document(path.name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, error) from error


def _read_jsonl(path: pathlib.Path, file: io.BufferedIOBase) -> Iterator[Document]:
    """One document a line: field `text`, and optionally `id`; blank lines are none."""
    lines = enumerate(file, start=1)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except _DAMAGED as error:
            raise _damaged(path, error) from error
        if line.strip():
            yield _parse_line(path, number, line)


def _parse_line(path: pathlib.Path, number: int, line: bytes) -> Document:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, number, error) from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
        raise InputError(
            f"{path}, line {number} is not JSON ({reason}); a .jsonl file holds one "
            "object with a field 'text' on each line"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(
            f"{path}, line {number} has no string field 'text' (got {got}); a .jsonl "
            "file holds one object with a field 'text' on each line"
        )
    if not _is_encodable(row["text"]):
        raise InputError(
            f"{path}, line {number} holds half of a surrogate pair, which is no text; "
            "repair the line or remove it"
        )
    name = row.get("id")
    # Without an id the place stands in for it, so that equal texts stay two documents.
    return Document(f"{path.name}:{number}" if name is None else str(name), row["text"])


_Reader = Callable[[pathlib.Path, io.BufferedIOBase], Iterator[Document]]
_Opener = Callable[[pathlib.Path], io.BufferedIOBase]

_READERS: Mapping[str, _Reader] = {".txt": _read_text, ".jsonl": _read_jsonl}


def _open_plain(path: pathlib.Path) -> io.BufferedIOBase:
    return path.open("rb")


def _open_gzip(path: pathlib.Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb")


def _open_xz(path: pathlib.Path) -> io.BufferedIOBase:
    return lzma.open(path, "rb")


_OPENERS: Mapping[str, _Opener] = {
    "": _open_plain,
    ".gz": _open_gzip,
    ".xz": _open_xz,
}

_DAMAGED = (OSError, EOFError, lzma.LZMAError)


def _accepted() -> str:
    return ", ".join(kind + pack for kind in _READERS for pack in _OPENERS)


def _is_visible(path: pathlib.Path, root: pathlib.Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _suffix(path: pathlib.Path) -> tuple[str, str] | None:
    """Splits "x.jsonl.gz" into (".jsonl", ".gz"); None when the kind is unknown."""
    suffixes = ["", "", *path.suffixes]
    pack = suffixes[-1] if suffixes[-1] in _OPENERS else ""
    kind = suffixes[-2] if pack else suffixes[-1]
    return (kind, pack) if kind in _READERS else None


def _kind(path: pathlib.Path) -> str:
    found = _suffix(path)
    assert found is not None, path
    return found[0]


def _reader(path: pathlib.Path) -> tuple[_Reader, _Opener]:
    found = _suffix(path)
    if found is None:
        raise InputError(
            f"source file {path} is of an unknown kind; accepted are {_accepted()}"
        )
    kind, pack = found
    return _READERS[kind], _OPENERS[pack]


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(path: pathlib.Path, line: int, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{path}, line {line} is not UTF-8 text (byte 0x{error.object[error.start]:02x}"
        "); convert the file to UTF-8 first"
    )


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read ({error}); the file is damaged, protected or not of "
        "the kind its name says"
    )
