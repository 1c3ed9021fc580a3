"""Where documents come from: the embedded corpus, files, and TensorFlow Datasets.

A source is a list of pieces, each of which can be read without the others: a file, a
row group of a Parquet file, a range of a TFDS split. What is long is so divided among
machines, and resumed, without reading what came before.
"""

import dataclasses
import glob
import gzip
import io
import json
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from rfq.errors import InputError

EMBEDDED_CORPUS = pathlib.Path(__file__).parent / "embedded" / "sotu.jsonl.xz"
TFDS_PREFIX = "tfds:"

# Page by page: by default a row group is read whole, however large it is.
_STREAMED = {
    "pre_buffer": False,
    "buffer_size": 1 << 20,
    "page_checksum_verification": True,
}
# Rows that are decoded at once, and examples of a TFDS split in a piece.
_PARQUET_ROWS = 64
_TFDS_EXAMPLES = 10_000


class Document(NamedTuple):
    """One text.

    Attributes:
        id: a name that does not depend on where the file lies.
        text: any Unicode text.
        num_bytes_read: of the piece, on disk, about where the document ends.
    """

    id: str
    text: str
    num_bytes_read: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a source that is read on its own.

    Attributes:
        name: no directory; tells the pieces of a file apart.
        num_bytes: on disk, in whatever packing.
        documents: yields every document in order, empty ones included.
    """

    name: str
    num_bytes: int
    documents: Callable[[], Iterator[Document]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Attributes:
        name: last component of what the user wrote; no directory.
        pieces: in order.
    """

    name: str
    pieces: tuple[Piece, ...]

    def documents(self) -> Iterator[Document]:
        """Yields every document, empty ones included, one piece at a time."""
        for piece in self.pieces:
            yield from piece.documents()


def open_source(spec: str) -> Source:
    """Resolves a name of `SOURCES`, tfds:NAME, a file, a directory or a glob.

    Directories are searched recursively for files of a known kind; hidden files are
    left out. Files are read in the order of their paths.

    Raises:
        InputError: nothing matches, or a file is of an unknown kind.
    """
    if spec in SOURCES:
        return SOURCES[spec]()
    if spec.startswith(TFDS_PREFIX):
        return _tfds(spec.removeprefix(TFDS_PREFIX))
    path = pathlib.Path(spec)
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.is_file() and _is_visible(p, path))
        files = sorted(p for p in found if _split_name(p) is not None)
    elif path.exists():
        files = [path]
    else:
        matches = glob.glob(spec, recursive=True)
        files = sorted(p for p in map(pathlib.Path, matches) if p.is_file())
    if not files:
        raise InputError(
            f"source {spec!r} matches no file; give one of {sorted(SOURCES)}, "
            f"{TFDS_PREFIX}NAME, a file, a directory or a quoted glob of {_accepted()} "
            "files"
        )
    for file in files:
        _kind(file)
    pieces = tuple(piece for file in files for piece in _pieces(file))
    return Source(path.name or spec, pieces)


def documents(spec: str) -> Iterator[Document]:
    """Yields the documents of a source, see `open_source`."""
    return open_source(spec).documents()


def _embedded() -> Source:
    return Source("embedded", _pieces(EMBEDDED_CORPUS))


# A new source is one function that returns a Source, and one line here.
SOURCES: Mapping[str, Callable[[], Source]] = {"embedded": _embedded}


# --- Text and JSON lines, packed or not ---------------------------------------------


def _packed_piece(path: pathlib.Path, read: "_Reader", unpack: "_Opener") -> Piece:
    """The whole file."""

    def documents() -> Iterator[Document]:
        try:
            raw = path.open("rb")
            file = unpack(raw)
        except _DAMAGED as error:
            raise damaged(path, error) from error
        with raw, file:
            for id, text in read(path, file):
                yield Document(id, text, raw.tell())

    return Piece(path.name, _num_bytes(path), documents)


def _num_bytes(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise damaged(path, error) from error


def _read_text(
    path: pathlib.Path, file: io.BufferedIOBase
) -> Iterator[tuple[str, str]]:
    """One document: the whole file. Its id is the file's name."""
    try:
        data = file.read()
    except _DAMAGED as error:
        raise damaged(path, error) from error
    try:
        yield path.name, data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(f"{path}, line {line}", error) from error


def _read_jsonl(
    path: pathlib.Path, file: io.BufferedIOBase
) -> Iterator[tuple[str, str]]:
    """One document a line: field `text`, and optionally `id`; blank lines are none."""
    lines = enumerate(file, start=1)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except _DAMAGED as error:
            raise damaged(path, error) from error
        if line.strip():
            yield _parse_line(path, number, line)


def _parse_line(path: pathlib.Path, number: int, line: bytes) -> tuple[str, str]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}, line {number}", error) from error
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
    return f"{path.name}:{number}" if name is None else str(name), row["text"]


_Reader = Callable[[pathlib.Path, io.BufferedIOBase], Iterator[tuple[str, str]]]
_Opener = Callable[[io.BufferedReader], io.BufferedIOBase]


def _open_zstd(raw: io.BufferedReader) -> io.BufferedIOBase:
    return io.BufferedReader(pyarrow.input_stream(raw, compression="zstd"))


_READERS: Mapping[str, _Reader] = {".txt": _read_text, ".jsonl": _read_jsonl}
_OPENERS: Mapping[str, _Opener] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
# What zlib, lzma, pyarrow and the file system raise.
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, pyarrow.ArrowException)


# --- Parquet ------------------------------------------------------------------------


def _parquet_pieces(path: pathlib.Path) -> tuple[Piece, ...]:
    """A piece for each row group: column `text`, and optionally `id`."""
    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except _DAMAGED as error:
        raise damaged(path, error) from error
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if not _is_text(kinds.get("text")):
        raise InputError(
            f"{path} has no string column 'text' (its columns are "
            f"{', '.join(f'{name}: {kind}' for name, kind in kinds.items()) or 'none'}"
            "); rename or convert the column that holds the documents"
        )
    columns = ["text", "id"] if "id" in kinds else ["text"]
    first, pieces = 0, []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        in_columns = (group.column(i) for i in range(group.num_columns))
        num_bytes = sum(
            column.total_compressed_size
            for column in in_columns
            if column.path_in_schema in columns
        )
        rows = range(first, first + group.num_rows)
        pieces.append(_row_group(path, number, rows, num_bytes, columns))
        first = rows.stop
    return tuple(pieces)


def _is_text(kind: pyarrow.DataType | None) -> bool:
    return kind is not None and any(
        test(kind)
        for test in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_string_view,
        )
    )


def _row_group(
    path: pathlib.Path, number: int, rows: range, num_bytes: int, columns: list[str]
) -> Piece:
    def read() -> Iterator[tuple[str | None, Any]]:
        with parquet.ParquetFile(path, **_STREAMED) as file:
            for batch in file.iter_batches(
                _PARQUET_ROWS, row_groups=[number], columns=columns, use_threads=False
            ):
                table = batch.to_pydict()
                ids = table.get("id") or [None] * batch.num_rows
                yield from zip(table["text"], ids, strict=True)

    def documents() -> Iterator[Document]:
        found, reading = 0, read()
        while True:
            where = f"{path}, row {rows.start + found}"
            try:
                text, name = next(reading)
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except _DAMAGED as error:
                raise damaged(path, error) from error
            if text is None:
                raise InputError(
                    f"{where} has no text (null); repair the row or remove it"
                )
            id = f"{path.name}:{rows.start + found}" if name is None else str(name)
            found += 1
            yield Document(id, text, num_bytes * found // len(rows))
        if found != len(rows):
            raise InputError(
                f"{path} holds {found} rows in row group {number} where its footer "
                f"says {len(rows)}; the file is damaged"
            )

    return Piece(f"{path.name}#{number}", num_bytes, documents)


# --- TensorFlow Datasets ------------------------------------------------------------


def tfds_split(name: str, split: str) -> tuple[Any, int]:
    """The examples of a split in TensorFlow Datasets, array_record, and its bytes.

    Raises:
        InputError: it is not prepared and cannot be; names the dataset and the reason.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        return builder.as_data_source(split), builder.info.splits[split].num_bytes
    except Exception as error:
        # TFDS raises what the builder, the network and the disk raise.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{TFDS_PREFIX}{name} cannot be read as array_record "
            f"({first_line[:200]}); give the name of a prepared or downloadable "
            f"dataset with a {split} split, and TFDS_DATA_DIR if it lies elsewhere"
        ) from error


def _tfds(name: str) -> Source:
    """The train split of a dataset with a feature `text`."""
    examples, num_bytes = tfds_split(name, "train")
    if not len(examples) or "text" not in examples[0]:
        got = sorted(examples[0]) if len(examples) else "no examples"
        raise InputError(
            f"{TFDS_PREFIX}{name} has no feature 'text' (got {got}); choose a dataset "
            "of plain text"
        )
    each = num_bytes / len(examples)
    starts = range(0, len(examples), _TFDS_EXAMPLES)
    pieces = (_tfds_piece(name, examples, start, each) for start in starts)
    return Source(f"{TFDS_PREFIX}{name}", tuple(pieces))


def _tfds_piece(name: str, examples: Any, start: int, each: float) -> Piece:
    stop = min(start + _TFDS_EXAMPLES, len(examples))

    def documents() -> Iterator[Document]:
        for index in range(start, stop):
            where = f"{TFDS_PREFIX}{name}, example {index}"
            try:
                text = examples[index]["text"].decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except RuntimeError as error:
                raise damaged(where, error) from error
            num_bytes = round(each * (index + 1 - start))
            yield Document(f"{name}:{index}", text, num_bytes)

    return Piece(f"{name}[{start}:{stop}]", round(each * (stop - start)), documents)


# --- Names of files -----------------------------------------------------------------


def _accepted() -> str:
    packed = [kind + pack for kind in _READERS for pack in _OPENERS]
    return ", ".join([*packed, _PARQUET])


_PARQUET = ".parquet"


def _is_visible(path: pathlib.Path, root: pathlib.Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_name(path: pathlib.Path) -> tuple[str, str] | None:
    """Splits "x.jsonl.gz" into (".jsonl", ".gz"); None when the kind is unknown."""
    suffixes = ["", "", *path.suffixes]
    pack = suffixes[-1] if suffixes[-1] in _OPENERS else ""
    kind = suffixes[-2] if pack else suffixes[-1]
    known = kind in _READERS or (kind == _PARQUET and not pack)
    return (kind, pack) if known else None


def _kind(path: pathlib.Path) -> tuple[str, str]:
    found = _split_name(path)
    if found is None:
        raise InputError(
            f"source file {path} is of an unknown kind; accepted are {_accepted()}"
        )
    return found


def _pieces(path: pathlib.Path) -> tuple[Piece, ...]:
    kind, pack = _kind(path)
    if kind == _PARQUET:
        return _parquet_pieces(path)
    return (_packed_piece(path, _READERS[kind], _OPENERS[pack]),)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(where: str, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); convert "
        "the file to UTF-8 first"
    )


def damaged(where: pathlib.Path | str, error: Exception) -> InputError:
    """What to say of a file that a reader refused."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{where} cannot be read ({first_line}); the file is damaged, protected or not "
        "of the kind its name says"
    )
