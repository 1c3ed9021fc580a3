"""The manifest of a prepared directory: what it holds, and whether it is whole."""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from array_record.python import array_record_data_source

from rfq.data import split
from rfq.data.progress import Progress, no_progress
from rfq.errors import InputError

FILE_NAME = "manifest.json"
FORMAT = "rfq windows 2"
_MB = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the content of a prepared directory.

    Attributes:
        source: name of the source, without a directory.
        source_fingerprint: sha256 of the names and sizes of its pieces.
        boundary: special ids of a document, a row of `packing.BOUNDARIES`.
        dedup: whether of equal texts only the first was taken.
        window_len: tokens predicted per window; a record holds one more.
        part_bytes: UTF-8 bytes of text after which a new part begins; parts are packed
            apart from each other.
        documents: what a document of the text files is, a row of `text.DIVISIONS`;
            "file" where the source has no text files, too.
        text_field: the field of the text in files that have fields.
    """

    format: str
    source: str
    source_fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    boundary: str
    dedup: bool
    window_len: int
    calibration_fraction: float
    heldout_fraction: float
    part_bytes: int
    documents: str = "file"
    text_field: str = "text"


# Fields that the first data of this format lacked, with the values that reproduce those
# data. Fields at these values are not written, so that such data keep their
# fingerprint.
_YOUNGER = {"documents": "file", "text_field": "text"}


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
        num_tokens: tokens of all documents, special ids included.
        num_bytes: UTF-8 bytes of the text of all documents.
        num_dropped_tokens: tokens at the end of the parts, too few to fill a window.
        lengths: documents by length: entry k counts those of 2^k .. 2^(k+1) - 1 tokens.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    num_windows: int
    num_dropped_tokens: int
    lengths: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def tokens_per_byte(self) -> float:
        """Turn nats per token into bits per byte: loss / ln 2 times this."""
        return self.num_tokens / self.num_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of what `prepare` made.

    Attributes:
        dtype: type of the token ids in a record, a numpy name; little-endian.
        num_empty_documents: documents that were skipped and are in no split.
        num_duplicates: duplicates, which are skipped too.
        splits: one `Split` for each name of `split.SPLITS`.
    """

    recipe: Recipe
    dtype: str
    num_empty_documents: int
    num_duplicates: int
    splits: Mapping[str, Split]

    @property
    def record_bytes(self) -> int:
        """Size of each record: window_len + 1 ids."""
        return (self.recipe.window_len + 1) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The record of what one part of a source gave.

    Attributes:
        num_documents: documents that were read, in a split or not.
        is_last: whether its unit ends with it.
    """

    num_documents: int
    num_empty_documents: int
    num_duplicates: int
    is_last: bool
    splits: Mapping[str, Split]


def combine(recipe: Recipe, dtype: str, parts: Sequence[Part]) -> Manifest:
    """Make the manifest of all parts of a source, in their order."""
    return Manifest(
        recipe=recipe,
        dtype=dtype,
        num_empty_documents=sum(part.num_empty_documents for part in parts),
        num_duplicates=sum(part.num_duplicates for part in parts),
        splits={
            name: _total([part.splits[name] for part in parts]) for name in split.SPLITS
        },
    )


def _total(splits: Sequence[Split]) -> Split:
    columns = itertools.zip_longest(*(part.lengths for part in splits), fillvalue=0)
    return Split(
        num_documents=sum(part.num_documents for part in splits),
        num_tokens=sum(part.num_tokens for part in splits),
        num_bytes=sum(part.num_bytes for part in splits),
        num_windows=sum(part.num_windows for part in splits),
        num_dropped_tokens=sum(part.num_dropped_tokens for part in splits),
        lengths=tuple(map(sum, columns)),
        shards=tuple(shard for part in splits for shard in part.shards),
    )


def as_dict(record: Manifest | Recipe | Part) -> dict[str, Any]:
    """Return what `to_json` renders."""
    row = dataclasses.asdict(record)
    recipe = row.get("recipe", row)
    for name, neutral in _YOUNGER.items():
        if recipe.get(name) == neutral:
            del recipe[name]
    return row


def to_json(record: Manifest | Recipe | Part) -> str:
    """Render a manifest or a part of one; equal records give equal text."""
    return json.dumps(as_dict(record), indent=1) + "\n"


def recipe_from_json(text: str) -> Recipe:
    """Read what `to_json` made of a recipe."""
    return _record(Recipe, json.loads(text))


def part_from_json(text: str) -> Part:
    """Read what `to_json` made of a part."""
    row = json.loads(text)
    return _record(Part, row, splits=_splits(row["splits"]))


def load(directory: str | pathlib.Path) -> Manifest:
    """Read the manifest and check every shard's size, kind and number of records.

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


def verify(directory: str | pathlib.Path, progress: Progress = no_progress) -> Manifest:
    """Load a manifest and compare the sha256 of every shard, record by record.

    Raises:
        InputError: as `load`, a shard whose bytes have changed, or one that the
            manifest does not name.
    """
    directory = pathlib.Path(directory)
    manifest = load(directory)
    shards = [shard for part in manifest.splits.values() for shard in part.shards]
    extra = {p.name for p in directory.iterdir()} - {x.name for x in shards}
    if strange := sorted(name for name in extra if name.endswith(".array_record")):
        raise InputError(
            f"{directory} holds {strange[0]}, which is not in its manifest; move it "
            "away, or prepare the data again"
        )
    total = sum(shard.num_bytes for shard in shards)
    with progress("verify, MB", total // _MB) as bar:
        done = 0
        for shard in shards:
            path = directory / shard.name
            if sha256(path) != shard.sha256:
                raise InputError(
                    f"shard {path} is corrupt: its sha256 is not the manifest's; "
                    f"{_AGAIN}"
                )
            done += shard.num_bytes
            bar.update(done // _MB)
    return manifest


def check(manifest: Manifest, *, vocab_size: int, tokenizer_fingerprint: str) -> None:
    """Refuse data of another tokenizer or vocabulary than the model's.

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


# The largest share that is advised for one split.
_MOST = 0.25


def larger_fractions(
    made: Manifest,
    names: Sequence[str] = split.SPLITS[1:],
    wanted: int = split.ENOUGH_TOKENS,
) -> str:
    """Advise larger shares, as options, for splits with fewer tokens than wanted.

    Args:
        made: the manifest of the data, or of data that could not be made.
        names: the splits that are looked at.
        wanted: tokens that each should have; no share above a quarter is advised.

    Returns:
        Options such as "--heldout-fraction 0.2"; empty where none can be advised.
    """
    options = []
    for name in names:
        fraction = getattr(made.recipe, f"{name}_fraction")
        num_tokens = max(made.splits[name].num_tokens, 1)
        needed = math.ceil(110 * fraction * wanted / num_tokens) / 100
        if num_tokens < wanted and fraction < _MOST:
            options.append(f"--{name}-fraction {min(needed, _MOST):g}")
    return " ".join(options)


def sha256(path: pathlib.Path) -> str:
    """Hash a file without holding it in memory."""
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
            f"one with `rfq prepare SOURCE --out {path.parent}`, or give the directory "
            "that holds it (--data.dir of a config, --data-dir of a run)"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
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
    splits = _splits(row["splits"])
    manifest = _record(Manifest, row, recipe=_record(Recipe, recipe), splits=splits)
    if manifest.dtype not in ("uint16", "int32"):
        raise ValueError(f"dtype is {manifest.dtype!r}")
    for name, part in splits.items():
        if not 0 < part.num_windows == sum(x.num_windows for x in part.shards):
            raise ValueError(f"the shards of {name} do not add up")
        names = [shard.name for shard in part.shards]
        if len(set(names)) < len(names):
            raise ValueError(f"the shards of {name} hold one twice")
        if outside := [x for x in names if pathlib.PurePath(x).name != x]:
            raise ValueError(f"shard {outside[0]!r} is not a file's plain name")
    return manifest


def _splits(rows: Mapping[str, Any]) -> dict[str, Split]:
    return {
        name: _record(
            Split,
            row,
            lengths=tuple(row["lengths"]),
            shards=tuple(_record(Shard, shard) for shard in row["shards"]),
        )
        for name, row in rows.items()
    }


Row = TypeVar("Row")


def _record(kind: type[Row], row: Mapping[str, Any], **parsed: object) -> Row:
    """Build a dataclass from a JSON object whose fields have the declared types."""
    assert dataclasses.is_dataclass(kind)
    younger = _YOUNGER if kind is Recipe else {}
    values = {**younger, **row, **parsed}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if isinstance(field.type, type) and not isinstance(value, field.type):
            raise TypeError(f"{field.name} is {value!r}")
    return kind(**values)
