"""The sources of documents: the embedded corpus, files, and TensorFlow Datasets.

A source is a list of pieces, each of which can be read without the others: a file, a
row group of a Parquet file, a range of a TFDS split. So machines can share a long
source, and resume it, without reading what came before.
"""

import dataclasses
import functools
import glob
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from rfq.data import files
from rfq.data import text as text_lib
from rfq.errors import InputError, lookup

EMBEDDED_CORPUS = pathlib.Path(__file__).parent / "embedded" / "sotu.jsonl.xz"
TFDS_PREFIX = "tfds:"

_TXT, _JSONL, _PARQUET = ".txt", ".jsonl", ".parquet"
# The field of a document's text, where no other is named.
_TEXT = "text"

# This reads page by page; by default a row group is read whole, however large it is.
_STREAMED = {
    "pre_buffer": False,
    "buffer_size": 1 << 20,
    "page_checksum_verification": True,
}
# The number of rows that are decoded at once, and of a TFDS split's examples in a
# piece.
_PARQUET_ROWS = 64
_TFDS_EXAMPLES = 10_000


class Document(NamedTuple):
    """One text.

    Attributes:
        id: a name that does not depend on where the file lies.
        text: any Unicode text.
        num_bytes_read: bytes of the piece on disk up to about the document's end.
    """

    id: str
    text: str
    num_bytes_read: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a source that is read on its own.

    Attributes:
        name: a name without a directory that tells the pieces of a file apart.
        num_bytes: bytes on disk, packed or not.
        documents: yields every document in order, empty ones included.
    """

    name: str
    num_bytes: int
    documents: Callable[[], Iterator[Document]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Attributes:
        name: last component of what the user wrote, without a directory.
        pieces: the pieces in order.
        division: what a document of its text files is, a row of `text.DIVISIONS`; None
            where it has none.
    """

    name: str
    pieces: tuple[Piece, ...]
    division: str | None = None

    def documents(self) -> Iterator[Document]:
        """Yield every document, empty ones included, one piece at a time."""
        for piece in self.pieces:
            yield from piece.documents()


def open_source(
    spec: str, *, documents: str | None = None, text_field: str = _TEXT
) -> Source:
    """Resolve a name of `SOURCES`, tfds:NAME, a file, a directory or a glob.

    Directories are searched recursively for files of a known kind; hidden files are
    left out. Files are read in the order of their paths.

    Args:
        spec: what to read.
        documents: what a document of a .txt file is, a row of `text.DIVISIONS`; None
            divides one file at its blank lines, and takes each of several whole.
        text_field: the field, column or feature that holds the text in JSON lines,
            Parquet files and TensorFlow Datasets.

    Raises:
        InputError: nothing matches, a file is of an unknown kind, or no file of the
            source can use an option that is given.
    """
    if spec in SOURCES:
        source = SOURCES[spec]()
        if documents is not None or text_field != _TEXT:
            raise _useless(spec, documents)
        return source
    if spec.startswith(TFDS_PREFIX):
        if documents is not None:
            raise _useless(spec, documents)
        return _tfds(spec.removeprefix(TFDS_PREFIX), text_field)
    paths = _paths(spec)
    kinds = [_kind(path)[0] for path in paths]
    num_texts = kinds.count(_TXT)
    if (documents is not None and not num_texts) or (
        text_field != _TEXT and num_texts == len(paths)
    ):
        raise _useless(spec, documents)
    division = documents or ("blank-line" if num_texts == 1 else "file")
    lookup(text_lib.DIVISIONS, division, "documents")
    pieces = tuple(
        piece for path in paths for piece in _pieces(path, division, text_field)
    )
    name = pathlib.Path(spec).name or spec
    return Source(name, pieces, division if num_texts else None)


def _paths(spec: str) -> list[pathlib.Path]:
    path = pathlib.Path(spec)
    if path.is_dir():
        visible = (p for p in path.rglob("*") if p.is_file() and _is_visible(p, path))
        paths = sorted(p for p in visible if _split_name(p) is not None)
    elif path.exists():
        paths = [path]
    else:
        matches = glob.glob(spec, recursive=True)
        paths = sorted(p for p in map(pathlib.Path, matches) if p.is_file())
    if not paths:
        raise InputError(
            f"source {spec!r} matches no file; give one of {sorted(SOURCES)}, "
            f"{TFDS_PREFIX}NAME, a file, a directory or a quoted glob of {_accepted()} "
            "files"
        )
    return paths


def _useless(spec: str, documents: str | None) -> InputError:
    if documents is not None:
        return InputError(
            f"--documents {documents} divides .txt files, and source {spec!r} has "
            "none; leave it out"
        )
    return InputError(
        f"--text-field names a field of JSON lines, Parquet files or TensorFlow "
        f"Datasets, and source {spec!r} has none; leave it out"
    )


def documents(spec: str, **options: Any) -> Iterator[Document]:
    """Yield the documents of a source, see `open_source`."""
    return open_source(spec, **options).documents()


def _embedded() -> Source:
    read = functools.partial(text_lib.read_jsonl, field=_TEXT)
    piece = _packed_piece(EMBEDDED_CORPUS, read, files.OPENERS[".xz"])
    return Source("embedded", (piece,))


# A new source is one function that returns a Source, and one line here.
SOURCES: Mapping[str, Callable[[], Source]] = {
    "embedded": _embedded,
}


# --- Text and JSON lines, packed or not ---------------------------------------------


def _packed_piece(
    path: pathlib.Path, read: text_lib.Reader, unpack: files.Opener
) -> Piece:
    """Make one piece of the whole file."""

    def documents() -> Iterator[Document]:
        try:
            raw = path.open("rb")
            file = unpack(raw)
        except files.DAMAGED as error:
            raise files.damaged(path, error) from error
        with raw, file:
            for id, text in read(path, file):
                yield Document(id, text, raw.tell())

    return Piece(path.name, _num_bytes(path), documents)


def _num_bytes(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise files.damaged(path, error) from error


# --- Parquet ------------------------------------------------------------------------


def _parquet_pieces(path: pathlib.Path, field: str) -> tuple[Piece, ...]:
    """Make a piece for each row group: column `field`, and optionally `id`."""
    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except files.DAMAGED as error:
        raise files.damaged(path, error) from error
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if not _is_text(kinds.get(field)):
        columns = [f"{name}: {kind}" for name, kind in kinds.items()][:20]
        raise InputError(
            f"{path} has no string column {field!r} (its columns are "
            f"{', '.join(columns) or 'none'}); name the column that holds the "
            "documents with --text-field"
        )
    columns = [field, *({"id"} & set(kinds) - {field})]
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
    path: pathlib.Path, number: int, rows: range, num_bytes: int, columns: Sequence[str]
) -> Piece:
    """Make a piece of the text in the first column, and of names in a second one.

    Arrow holds a page and a batch of it, each of at most 2 GiB by its own limit.
    """

    def read() -> Iterator[tuple[Any, Any]]:
        with parquet.ParquetFile(path, **_STREAMED) as file:
            for batch in file.iter_batches(
                _PARQUET_ROWS, row_groups=[number], columns=columns, use_threads=False
            ):
                texts, *names = (batch.column(name) for name in columns)
                for row in range(batch.num_rows):
                    yield texts[row], names[0][row].as_py() if names else None

    def documents() -> Iterator[Document]:
        num_read, reading = 0, read()
        while True:
            where = f"{path}, row {rows.start + num_read}"
            try:
                value, name = next(reading)
                buffer = value.as_buffer()
                if buffer is not None and buffer.size > files.MAX_DOCUMENT_BYTES:
                    raise files.too_long(where)
                text = value.as_py()
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                raise files.not_utf8(where, error) from error
            except files.DAMAGED as error:
                raise files.damaged(path, error) from error
            if text is None:
                raise InputError(
                    f"{where} has no text (null); repair the row or remove it"
                )
            id = f"{path.name}:{rows.start + num_read}" if name is None else str(name)
            num_read += 1
            yield Document(id, text, num_bytes * num_read // len(rows))
        if num_read != len(rows):
            raise InputError(
                f"{path} holds {num_read} rows in row group {number} where its footer "
                f"says {len(rows)}; the file is damaged"
            )

    return Piece(f"{path.name}#{number}", num_bytes, documents)


# --- TensorFlow Datasets ------------------------------------------------------------


def tfds_split(name: str, split: str) -> tuple[Any, int]:
    """Read the examples of a TensorFlow Datasets split, array_record, and its bytes.

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


def _tfds(name: str, field: str) -> Source:
    """Open the train split of a dataset with the feature `field`."""
    examples, num_bytes = tfds_split(name, "train")
    if not len(examples) or not isinstance(examples[0].get(field), bytes):
        got = sorted(examples[0]) if len(examples) else "no examples"
        raise InputError(
            f"{TFDS_PREFIX}{name} has no text feature {field!r} (got {got}); name the "
            "feature that holds the text with --text-field"
        )
    bytes_each = num_bytes / len(examples)
    starts = range(0, len(examples), _TFDS_EXAMPLES)
    pieces = (_tfds_piece(name, field, examples, start, bytes_each) for start in starts)
    return Source(f"{TFDS_PREFIX}{name}", tuple(pieces))


def _tfds_piece(
    name: str, field: str, examples: Any, start: int, bytes_each: float
) -> Piece:
    stop = min(start + _TFDS_EXAMPLES, len(examples))

    def documents() -> Iterator[Document]:
        for index in range(start, stop):
            where = f"{TFDS_PREFIX}{name}, example {index}"
            try:
                text = examples[index][field].decode("utf-8")
            except UnicodeDecodeError as error:
                raise files.not_utf8(where, error) from error
            except RuntimeError as error:
                raise files.damaged(where, error) from error
            num_bytes = round(bytes_each * (index + 1 - start))
            yield Document(f"{name}:{index}", text, num_bytes)

    return Piece(
        f"{name}[{start}:{stop}]", round(bytes_each * (stop - start)), documents
    )


# --- Names of files -----------------------------------------------------------------


def _accepted() -> str:
    names = [kind + pack for kind in (_TXT, _JSONL) for pack in files.OPENERS]
    return ", ".join([*names, _PARQUET])


def _is_visible(path: pathlib.Path, root: pathlib.Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_name(path: pathlib.Path) -> tuple[str, str] | None:
    """Split "x.jsonl.gz" into (".jsonl", ".gz"); None when the kind is unknown."""
    suffixes = ["", "", *path.suffixes]
    pack = suffixes[-1] if suffixes[-1] in files.OPENERS else ""
    kind = suffixes[-2] if pack else suffixes[-1]
    known = kind in (_TXT, _JSONL) or (kind == _PARQUET and not pack)
    return (kind, pack) if known else None


def _kind(path: pathlib.Path) -> tuple[str, str]:
    parts = _split_name(path)
    if parts is None:
        raise InputError(
            f"source file {path} is of an unknown kind; accepted are {_accepted()}"
        )
    return parts


def _pieces(path: pathlib.Path, division: str, field: str) -> tuple[Piece, ...]:
    kind, pack = _kind(path)
    if kind == _PARQUET:
        return _parquet_pieces(path, field)
    if kind == _TXT:
        read = text_lib.DIVISIONS[division]
    else:
        read = functools.partial(text_lib.read_jsonl, field=field)
    return (_packed_piece(path, read, files.OPENERS[pack]),)
