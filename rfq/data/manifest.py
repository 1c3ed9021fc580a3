"""The manifest of a prepared directory: what it holds, and whether it is whole."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from array_record.python import array_record_data_source

from rfq.data import split
from rfq.errors import InputError

FILE_NAME = "manifest.json"
FORMAT = "rfq windows 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that was read; name and size tell another source from this one."""

    name: str
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the content of a prepared directory.

    Attributes:
        source: name of the source, without a directory.
        window_len: tokens predicted per window; a record holds one more.
        part_bytes: UTF-8 bytes of text after which a new part begins; parts are packed
            apart from each other.
    """

    format: str
    source: str
    files: tuple[SourceFile, ...]
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    window_len: int
    calibration_fraction: float
    heldout_fraction: float
    part_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One array_record file; sha256 is of the file, hexadecimal."""

    name: str
    num_windows: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Totals of one split.

    Attributes:
        num_tokens: of all documents, one bos for each included.
        num_bytes: UTF-8 bytes of the text of all documents.
        num_dropped_tokens: at the end of the parts, too few to fill a window.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    num_windows: int
    num_dropped_tokens: int
    shards: tuple[Shard, ...]

    @property
    def tokens_per_byte(self) -> float:
        """Turns nats per token into bits per byte: loss / ln 2 times this."""
        return self.num_tokens / self.num_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `prepare` made.

    Attributes:
        dtype: of the token ids in a record, a numpy name; little-endian.
        num_empty_documents: skipped, and part of no split.
        splits: one `Split` for each name of `split.SPLITS`.
    """

    recipe: Recipe
    dtype: str
    num_empty_documents: int
    splits: Mapping[str, Split]

    @property
    def record_bytes(self) -> int:
        """Size of each record: window_len + 1 ids."""
        return (self.recipe.window_len + 1) * np.dtype(self.dtype).itemsize


def to_json(manifest: Manifest) -> str:
    """Renders a manifest; the same text for the same manifest."""
    return json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"


def load(directory: str | pathlib.Path) -> Manifest:
    """Reads the manifest and looks at every shard: size, kind, number of records.

    The bytes inside are not read; `verify` does that.

    Raises:
        InputError: no manifest, one of another format, or a shard that is missing,
            truncated, empty or foreign.
    """
    directory = pathlib.Path(directory)
    manifest = _parse(directory / FILE_NAME)
    for part in manifest.splits.values():
        for shard in part.shards:
            _check_shard(directory / shard.name, shard, manifest)
    return manifest


def verify(directory: str | pathlib.Path) -> Manifest:
    """Loads a manifest and compares the sha256 of every shard with it.

    Raises:
        InputError: as `load`, or a shard whose bytes have changed.
    """
    directory = pathlib.Path(directory)
    manifest = load(directory)
    for part in manifest.splits.values():
        for shard in part.shards:
            if sha256(directory / shard.name) != shard.sha256:
                raise InputError(
                    f"shard {directory / shard.name} is corrupt: its sha256 is not the "
                    f"manifest's; {_AGAIN}"
                )
    return manifest


def check(manifest: Manifest, *, vocab_size: int, tokenizer_fingerprint: str) -> None:
    """Refuses data of another tokenizer or vocabulary than the model's.

    Raises:
        InputError: they differ.
    """
    recipe = manifest.recipe
    if recipe.tokenizer_fingerprint != tokenizer_fingerprint:
        raise InputError(
            f"the data were prepared with tokenizer {recipe.tokenizer!r}, fingerprint "
            f"{recipe.tokenizer_fingerprint[:12]}, and the one given has fingerprint "
            f"{tokenizer_fingerprint[:12]}; give that tokenizer or prepare the data "
            "again"
        )
    if recipe.vocab_size != vocab_size:
        raise InputError(
            f"model.vocab_size={vocab_size} differs from the vocabulary of the data, "
            f"{recipe.vocab_size} (tokenizer {recipe.tokenizer!r}); set "
            f"model.vocab_size={recipe.vocab_size}"
        )


def sha256(path: pathlib.Path) -> str:
    """Hashes a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_AGAIN = "delete the directory and run `rfq prepare` again"


def _check_shard(path: pathlib.Path, shard: Shard, manifest: Manifest) -> None:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"shard {path} is missing; {_AGAIN}") from error
    if num_bytes == 0:
        raise InputError(f"shard {path} is empty; {_AGAIN}")
    if num_bytes != shard.num_bytes:
        raise InputError(
            f"shard {path} has {num_bytes} bytes where the manifest says "
            f"{shard.num_bytes}: it is truncated or foreign; {_AGAIN}"
        )
    try:
        with array_record_data_source.ArrayRecordDataSource(str(path)) as records:
            num_records, first_bytes = len(records), len(records[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"shard {path} is not a readable array_record file; {_AGAIN}"
        ) from error
    if (num_records, first_bytes) != (shard.num_windows, manifest.record_bytes):
        raise InputError(
            f"shard {path} holds {num_records} records of {first_bytes} bytes where "
            f"the manifest says {shard.num_windows} of {manifest.record_bytes}: it is "
            f"from another data set; {_AGAIN}"
        )


def _parse(path: pathlib.Path) -> Manifest:
    try:
        row = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path.parent} has no {FILE_NAME}, so it is not a prepared data set; make "
            f"one with `rfq prepare SOURCE --out {path.parent}`"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON; {_AGAIN}") from error
    try:
        return _manifest(row)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a manifest of format {FORMAT!r} ({error}); {_AGAIN}"
        ) from error


def _manifest(row: Any) -> Manifest:
    recipe = row["recipe"]
    if recipe["format"] != FORMAT:
        raise ValueError(f"format is {recipe['format']!r}")
    if set(row["splits"]) != set(split.SPLITS):
        raise ValueError(f"splits are {sorted(row['splits'])}")
    files = tuple(_record(SourceFile, file) for file in recipe["files"])
    splits = {
        name: _record(
            Split, part, shards=tuple(_record(Shard, x) for x in part["shards"])
        )
        for name, part in row["splits"].items()
    }
    manifest = _record(
        Manifest, row, recipe=_record(Recipe, recipe, files=files), splits=splits
    )
    if manifest.dtype not in ("uint16", "int32"):
        raise ValueError(f"dtype is {manifest.dtype!r}")
    for name, part in splits.items():
        if not 0 < part.num_windows == sum(x.num_windows for x in part.shards):
            raise ValueError(f"the shards of {name} do not add up")
    return manifest


Row = TypeVar("Row")


def _record(kind: type[Row], row: Mapping[str, Any], **parsed: object) -> Row:
    """Builds a dataclass from a JSON object whose fields have the declared types."""
    assert dataclasses.is_dataclass(kind)
    values = {**row, **parsed}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if isinstance(field.type, type) and not isinstance(value, field.type):
            raise TypeError(f"{field.name} is {value!r}")
    return kind(**values)
