"""Text to windows of token ids: the only place where documents are packed."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from rfq.data import manifest, sources, split
from rfq.data.manifest import Manifest, Recipe, Shard, SourceFile, Split
from rfq.data.sources import Document
from rfq.data.tokenize import Tokenizer
from rfq.errors import InputError

Item = TypeVar("Item")
# (items, how many if known, what is being done) -> the same items.
Progress = Callable[[Iterable[Item], int | None, str], Iterable[Item]]

# Uncompressed: the same bytes whatever the version of the compressor, and faster to
# read, for about twice the disk.
_WRITER_OPTIONS = "group_size:1,uncompressed"

# Text that is tokenized at once, UTF-8 bytes.
_BATCH_BYTES = 1 << 20


def no_progress(
    items: Iterable[Item], total: int | None, description: str
) -> Iterable[Item]:
    """Shows nothing."""
    del total, description
    return items


def prepare(
    source: str,
    out: str | pathlib.Path,
    *,
    tokenizer: Tokenizer,
    window_len: int = 2048,
    calibration_fraction: float = split.CALIBRATION_FRACTION,
    heldout_fraction: float = split.HELDOUT_FRACTION,
    part_bytes: int = 1 << 26,
    progress: Progress[Document] = no_progress,
) -> Manifest:
    """Writes the windows of a source and their manifest to a new directory.

    A document becomes bos and its tokens. The documents of a split are joined in their
    order, and the stream is cut into windows of window_len + 1 ids with stride
    window_len: a window begins with the last id of the one before, so that every token
    but the first is the target of exactly one window. What is left at the end and does
    not fill a window is dropped, and counted in the manifest. A new stream and a new
    shard of each split begin after every `part_bytes` of text.

    The directory appears when it is complete and not before. Where it already is the
    result of the same call nothing is done; the source's files are then compared by
    name and size only.

    Args:
        source: see `sources.open_source`.
        out: a directory that does not exist yet, is empty, or holds the same data.
        tokenizer: decides the ids, the bos and the dtype.
        window_len: tokens; a multiple of every sequence length that will be used.
        calibration_fraction: share of documents, by hash, for activation ranges.
        heldout_fraction: share of documents, by hash, for the loss that is reported.
        part_bytes: UTF-8 bytes.
        progress: wraps the iteration over the documents.

    Raises:
        InputError: a setting out of range, an unusable source or document, a split
            without a window, or an `out` that is in use or cannot be written.
    """
    out = pathlib.Path(out)
    _check_settings(window_len, calibration_fraction, heldout_fraction, part_bytes)
    opened = sources.open_source(source)
    recipe = Recipe(
        format=manifest.FORMAT,
        source=opened.name,
        files=tuple(
            SourceFile(name=path.name, num_bytes=path.stat().st_size)
            for path in opened.files
        ),
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        window_len=window_len,
        calibration_fraction=calibration_fraction,
        heldout_fraction=heldout_fraction,
        part_bytes=part_bytes,
    )
    finished = _finished(out, recipe)
    if finished is not None:
        return finished
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    documents = progress(opened.documents(), opened.num_documents, "prepare")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = _write(partial, documents, recipe, tokenizer)
        os.replace(partial, out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"out directory {out} cannot be written ({error.strerror}); choose another"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return made


def _check_settings(
    window_len: int,
    calibration_fraction: float,
    heldout_fraction: float,
    part_bytes: int,
) -> None:
    for name, number in (("window_len", window_len), ("part_bytes", part_bytes)):
        if number < 1:
            raise InputError(f"{name}={number} must be at least 1")
    fractions = calibration_fraction, heldout_fraction
    if not (min(fractions) > 0 and sum(fractions) < 1):
        raise InputError(
            f"calibration_fraction={calibration_fraction} and heldout_fraction="
            f"{heldout_fraction} must be above 0 and leave something to train on"
        )


def _finished(out: pathlib.Path, recipe: Recipe) -> Manifest | None:
    """The manifest of a directory that already is what the recipe makes."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"out {out} is a file; choose a directory")
    if not any(out.iterdir()):
        return None
    if not (out / manifest.FILE_NAME).exists():
        raise InputError(
            f"out directory {out} is in use by something other than prepared data; "
            "choose another"
        )
    existing = manifest.load(out)
    changed = [
        field.name
        for field in dataclasses.fields(recipe)
        if getattr(existing.recipe, field.name) != getattr(recipe, field.name)
    ]
    if changed:
        raise InputError(
            f"out directory {out} holds data prepared with another "
            f"{', '.join(changed)}; choose another directory or delete this one"
        )
    return existing


def _write(
    directory: pathlib.Path,
    documents: Iterable[Document],
    recipe: Recipe,
    tokenizer: Tokenizer,
) -> Manifest:
    dtype = "uint16" if recipe.vocab_size <= 1 << 16 else "int32"
    little_endian = np.dtype(dtype).newbyteorder("<")
    splits: dict[str, Split] = dict.fromkeys(split.SPLITS, _EMPTY)
    num_empty_documents = 0
    for index, part in enumerate(_parts(documents, recipe, tokenizer)):
        num_empty_documents += part.num_empty_documents
        for name in split.SPLITS:
            path = directory / f"{name}-{index:05d}.array_record"
            windows = _windows(part.ids[name], recipe.window_len).astype(little_endian)
            shards = _write_shard(path, windows)
            splits[name] = _add(splits[name], part, name, windows, shards)
    for name, total in splits.items():
        if total.num_windows == 0:
            raise InputError(
                f"the {name} split of source {recipe.source!r} got "
                f"{total.num_documents} documents with {total.num_tokens} tokens, too "
                f"few for one window of {recipe.window_len}; give more documents, a "
                "larger fraction or a smaller window_len"
            )
    made = Manifest(
        recipe=recipe,
        dtype=dtype,
        num_empty_documents=num_empty_documents,
        splits=splits,
    )
    path = directory / manifest.FILE_NAME
    path.write_text(manifest.to_json(made), encoding="utf-8")
    return made


@dataclasses.dataclass
class _Part:
    """Consecutive documents, tokenized; nothing is packed across its ends."""

    ids: dict[str, list[np.ndarray]]
    num_bytes: dict[str, int]
    num_empty_documents: int = 0


def _parts(
    documents: Iterable[Document], recipe: Recipe, tokenizer: Tokenizer
) -> Iterator[_Part]:
    part = _new_part()
    bos = np.array([tokenizer.bos_id], np.int32)
    for batch in _batches(documents, min(_BATCH_BYTES, recipe.part_bytes)):
        texts = [document for document in batch if document.text.strip()]
        part.num_empty_documents += len(batch) - len(texts)
        ids = tokenizer.encode_batch([document.text for document in texts])
        for document, document_ids in zip(texts, ids, strict=True):
            name = split.split_of(
                document,
                calibration_fraction=recipe.calibration_fraction,
                heldout_fraction=recipe.heldout_fraction,
            )
            part.ids[name].append(np.concatenate([bos, document_ids]))
            part.num_bytes[name] += _num_bytes(document)
        if sum(part.num_bytes.values()) >= recipe.part_bytes:
            yield part
            part = _new_part()
    yield part


def _new_part() -> _Part:
    return _Part({name: [] for name in split.SPLITS}, dict.fromkeys(split.SPLITS, 0))


def _batches(
    documents: Iterable[Document], batch_bytes: int
) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_bytes = 0
    for document in documents:
        batch.append(document)
        num_bytes += _num_bytes(document)
        if num_bytes >= batch_bytes:
            yield batch
            batch, num_bytes = [], 0
    yield batch


def _num_bytes(document: Document) -> int:
    return len(document.text.encode("utf-8"))


def _windows(ids: list[np.ndarray], window_len: int) -> np.ndarray:
    """Cuts the joined ids into [num_windows, window_len + 1], one id shared."""
    stream = np.concatenate([np.zeros(0, np.int32), *ids])
    num_windows = max(len(stream) - 1, 0) // window_len
    if num_windows == 0:
        return np.zeros((0, window_len + 1), np.int32)
    every = np.lib.stride_tricks.sliding_window_view(stream, window_len + 1)
    return every[::window_len][:num_windows]


def _write_shard(path: pathlib.Path, windows: np.ndarray) -> tuple[Shard, ...]:
    """Writes one record for each row; no rows make no file."""
    if not len(windows):
        return ()
    try:
        writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        for row in windows:
            writer.write(row.tobytes())
        writer.close()
    except RuntimeError as error:
        raise InputError(
            f"shard {path} cannot be written ({error}); make room or choose another out"
        ) from error
    shard = Shard(
        name=path.name,
        num_windows=len(windows),
        num_bytes=path.stat().st_size,
        sha256=manifest.sha256(path),
    )
    return (shard,)


_EMPTY = Split(
    num_documents=0,
    num_tokens=0,
    num_bytes=0,
    num_windows=0,
    num_dropped_tokens=0,
    shards=(),
)


def _add(
    total: Split, part: _Part, name: str, windows: np.ndarray, shards: tuple[Shard, ...]
) -> Split:
    num_tokens = sum(map(len, part.ids[name]))
    num_windows, record_len = windows.shape
    num_kept = num_windows * (record_len - 1) + 1 if num_windows else 0
    return Split(
        num_documents=total.num_documents + len(part.ids[name]),
        num_tokens=total.num_tokens + num_tokens,
        num_bytes=total.num_bytes + part.num_bytes[name],
        num_windows=total.num_windows + num_windows,
        num_dropped_tokens=total.num_dropped_tokens + num_tokens - num_kept,
        shards=total.shards + shards,
    )
