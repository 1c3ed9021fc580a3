"""Text to windows of token ids: the only place where documents are packed.

The pieces of a source are gathered to units of about `part_bytes` on disk, by their
sizes alone, and every unit becomes one part or more, each packed on its own and written
with a record of what it took. Units may therefore be shared out over machines, and a
run that was killed goes on after the last part that was written; what comes out is the
same bytes in every case.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from rfq.data import manifest, sources, split
from rfq.data.manifest import Manifest, Part, Recipe, Shard, Split
from rfq.data.progress import Progress, no_progress
from rfq.data.sources import Document, Piece
from rfq.data.tokenize import Tokenizer
from rfq.errors import InputError, lookup

# (begins with bos, ends with eos).
BOUNDARIES: Mapping[str, tuple[bool, bool]] = {
    "bos": (True, False),
    "eos": (False, True),
    "bos_eos": (True, True),
}

# Uncompressed: the same bytes whatever the version of the compressor, and faster to
# read, for about twice the disk.
_WRITER_OPTIONS = "group_size:1,uncompressed"

# Text that is tokenized at once, UTF-8 bytes.
_BATCH_BYTES = 1 << 20
_MB = 10**6


def prepare(
    source: str,
    out: str | pathlib.Path,
    *,
    tokenizer: Tokenizer,
    boundary: str = "bos",
    dedup: bool = False,
    window_len: int = 2048,
    calibration_fraction: float = split.CALIBRATION_FRACTION,
    heldout_fraction: float = split.HELDOUT_FRACTION,
    part_bytes: int = 1 << 26,
    shard: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> Manifest | None:
    """Writes the windows of a source and their manifest to a new directory.

    A document becomes its tokens between the special ids of `boundary`. The documents
    of a split are joined in their order, and the stream is cut into windows of
    window_len + 1 ids with stride window_len: a window begins with the last id of the
    one before, so that every token but the first is the target of exactly one window.
    What is left at the end and does not fill a window is dropped, and counted in the
    manifest. A new stream and a new shard of each split begin with every part.

    The directory appears when it is complete and not before; until then parts are
    gathered in a hidden directory beside it, from which the same call goes on after a
    kill. Of several machines, machine i of n calls with shard (i, n) and the same
    `out` on a shared disk (or with the others' hidden directories copied there), and
    the one that completes the parts makes the directory. Where it already is the result
    of the same call nothing is done; sources are then compared by names and sizes.

    Args:
        source: see `sources.open_source`.
        out: a directory that does not exist yet, is empty, or holds the same data.
        tokenizer: decides the ids and the dtype.
        boundary: a row of `BOUNDARIES`.
        dedup: take of documents with equal texts only the first of the source; reads
            the source once more.
        window_len: tokens; a multiple of every sequence length that will be used.
        calibration_fraction: share of documents, by hash, for activation ranges.
        heldout_fraction: share of documents, by hash, for the loss that is reported.
        part_bytes: UTF-8 bytes of text after which a part ends, and bytes on disk after
            which a unit does.
        shard: (i, n), which share of the units to write: i, i + n, i + 2 n, ...
        progress: shows how far it is, in megabytes on disk.

    Returns:
        The manifest, or None while units of other shards are missing.

    Raises:
        InputError: a setting out of range, an unusable source or document, a split
            without a window, or an `out` that is in use or cannot be written.
    """
    out = pathlib.Path(out)
    _check_settings(window_len, calibration_fraction, heldout_fraction, part_bytes)
    lookup(BOUNDARIES, boundary, "boundary")
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard={index}/{count} must be i/n with 0 <= i < n")
    opened = sources.open_source(source)
    recipe = Recipe(
        format=manifest.FORMAT,
        source=opened.name,
        source_fingerprint=_fingerprint(opened.pieces),
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        boundary=boundary,
        dedup=dedup,
        window_len=window_len,
        calibration_fraction=calibration_fraction,
        heldout_fraction=heldout_fraction,
        part_bytes=part_bytes,
    )
    finished = _finished(out, recipe)
    if finished is not None:
        return finished
    work = _Work(out, recipe, tokenizer, _units(opened.pieces, part_bytes))
    try:
        work.claim()
    except OSError as error:
        raise work.unwritten(error) from error
    try:
        duplicates = work.duplicates(progress) if dedup else {}
        work.write(range(index, len(work.units), count), duplicates, progress)
        return work.publish()
    except OSError as error:
        raise work.unwritten(error) from error
    except InputError as error:
        # What cannot be read may be readable again; of text that must change, parts
        # are worth nothing.
        if count == 1 and not isinstance(error.__cause__, OSError):
            shutil.rmtree(work.directory, ignore_errors=True)
        raise


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


def _fingerprint(pieces: Sequence[Piece]) -> str:
    names = json.dumps([(piece.name, piece.num_bytes) for piece in pieces])
    return hashlib.sha256(names.encode()).hexdigest()


def _units(pieces: Iterable[Piece], unit_bytes: int) -> list[list[Piece]]:
    """Gathers consecutive pieces until they have `unit_bytes` on disk."""
    units: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            units.append([])
            room = unit_bytes
        units[-1].append(piece)
        room -= piece.num_bytes
    return units


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
    _match(existing.recipe, recipe, f"out directory {out} holds data prepared")
    shutil.rmtree(out / _RECORDS, ignore_errors=True)  # A kill may have left them.
    return existing


def _match(existing: Recipe, wanted: Recipe, what: str) -> None:
    changed = [
        field.name
        for field in dataclasses.fields(Recipe)
        if getattr(existing, field.name) != getattr(wanted, field.name)
    ]
    if changed:
        raise InputError(
            f"{what} with another {', '.join(changed)}; choose another directory or "
            "delete this one"
        )


_RECORDS = "parts"
_RECIPE = "recipe.json"


class _Work:
    """The hidden directory in which parts gather until they are complete.

    Attributes:
        directory: shards, and in a folder of its own what is known of them: the recipe,
            a record of each part, digests of documents, files being written.
        units: what is read, and numbered, together.
    """

    def __init__(
        self,
        out: pathlib.Path,
        recipe: Recipe,
        tokenizer: Tokenizer,
        units: list[list[Piece]],
    ):
        self.directory = out.absolute().with_name(f".{out.absolute().name}.partial")
        self.units = units
        self._out = out
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._records = self.directory / _RECORDS
        dtype = np.dtype("uint16" if recipe.vocab_size <= 1 << 16 else "int32")
        self._dtype = dtype

    def claim(self) -> None:
        """Makes the directory, or finds it made by the same call."""
        path = self._records / _RECIPE
        if self.directory.exists() and not path.exists():
            shutil.rmtree(self.directory)  # Nothing of ours.
        # Made elsewhere and renamed, so that another machine never sees it empty.
        fresh = self.directory.with_name(f"{self.directory.name}.{os.getpid()}")
        (fresh / _RECORDS).mkdir(parents=True)
        text = manifest.to_json(self._recipe)
        (fresh / _RECORDS / _RECIPE).write_text(text, encoding="utf-8")
        try:
            fresh.rename(self.directory)
        except OSError:
            shutil.rmtree(fresh)
            existing = manifest.recipe_from_json(path.read_text(encoding="utf-8"))
            what = f"{self.directory} holds an unfinished preparation"
            _match(existing, self._recipe, what)

    def unwritten(self, error: OSError) -> InputError:
        """What to say of a directory or disk that takes no more."""
        return InputError(
            f"out directory {self._out} cannot be written ({error.strerror}); make "
            f"room or choose another: finished parts are kept in {self.directory}, and "
            "the same command goes on with them"
        )

    def duplicates(self, progress: Progress) -> dict[int, np.ndarray]:
        """By unit: which documents, in order, have the text of an earlier one."""
        total = sum(piece.num_bytes for unit in self.units for piece in unit)
        with progress("find duplicates, MB", total // _MB) as bar:
            done, digests = 0, []
            for index, unit in enumerate(self.units):
                digests.append(self._digests(index))
                done += sum(piece.num_bytes for piece in unit)
                bar.update(done // _MB)
        every = np.concatenate([np.zeros((0, 2), np.uint64), *digests])
        order = np.lexsort((every[:, 1], every[:, 0]))  # Stable: the first stays first.
        repeats = np.all(every[order[1:]] == every[order[:-1]], axis=1)
        found = np.zeros(len(every), bool)
        found[order[1:]] = repeats
        ends = np.cumsum([len(rows) for rows in digests])
        return dict(enumerate(np.split(found, ends[:-1])))

    def _digests(self, index: int) -> np.ndarray:
        """128 bits of the sha256 of each text of a unit: uint64 [documents, 2]."""
        path = self._records / f"digests-{index:05d}.npy"
        if not path.exists():
            texts = (document.text for document in _documents(self.units[index]))
            digests = b"".join(hashlib.sha256(t.encode()).digest()[:16] for t in texts)
            with self._replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.frombuffer(digests, np.uint64).reshape(-1, 2))
        return np.load(path)

    def write(
        self,
        indices: Sequence[int],
        duplicates: Mapping[int, np.ndarray],
        progress: Progress,
    ) -> None:
        """Writes the parts of some units that are not written yet."""
        sizes = [sum(piece.num_bytes for piece in self.units[i]) for i in indices]
        starts = np.cumsum([0, *sizes])
        started, num_tokens = time.monotonic(), 0
        with progress("prepare, MB", int(starts[-1]) // _MB) as bar:
            for unit, start in zip(indices, starts, strict=False):
                written = self._written(unit)
                if written and written[-1].is_last:
                    continue
                packer = _Packer(self._recipe, self._tokenizer, duplicates.get(unit))
                num_documents = sum(part.num_documents for part in written)
                batches = packer.batches(_documents(self.units[unit]), num_documents)
                number = len(written)
                for num_bytes_read, is_full, is_last in batches:
                    seconds = time.monotonic() - started
                    rate = (num_tokens + packer.num_tokens) / max(seconds, 1e-9)
                    done = (int(start) + num_bytes_read) // _MB
                    bar.update(done, f"{rate / 1e3:,.0f} k tokens/s")
                    if is_full or is_last:
                        num_tokens += packer.num_tokens
                        self._write_part(unit, number, packer.take(), is_last)
                        number += 1

    def _write_part(
        self, unit: int, number: int, packed: "_Packed", is_last: bool
    ) -> None:
        splits = {}
        for name, ids in packed.ids.items():
            windows = _windows(ids, self._recipe.window_len)
            path = self.directory / f"{name}-{unit:05d}-{number:03d}.array_record"
            num_tokens = sum(map(len, ids))
            num_kept = len(windows) * self._recipe.window_len + 1 if len(windows) else 0
            splits[name] = Split(
                num_documents=len(ids),
                num_tokens=num_tokens,
                num_bytes=packed.num_bytes[name],
                num_windows=len(windows),
                num_dropped_tokens=num_tokens - num_kept,
                lengths=_lengths(ids),
                shards=self._write_shard(path, windows),
            )
        part = Part(
            num_documents=packed.num_documents,
            num_empty_documents=packed.num_empty_documents,
            num_duplicates=packed.num_duplicates,
            is_last=is_last,
            splits=splits,
        )
        with self._replacing(self._record(unit, number)) as temporary:
            temporary.write_text(manifest.to_json(part), encoding="utf-8")

    def _record(self, unit: int, number: int) -> pathlib.Path:
        return self._records / f"{unit:05d}-{number:03d}.json"

    def _written(self, unit: int) -> list[Part]:
        """The parts of a unit that are whole, from its beginning."""
        found: list[Part] = []
        while (path := self._record(unit, len(found))).exists():
            part = manifest.part_from_json(path.read_text(encoding="utf-8"))
            shards = (shard for s in part.splits.values() for shard in s.shards)
            if not all(_is_whole(self.directory / x.name, x) for x in shards):
                break
            found.append(part)
        return found

    def _write_shard(
        self, path: pathlib.Path, windows: np.ndarray
    ) -> tuple[Shard, ...]:
        """Writes one record for each row; no rows make no file."""
        if not len(windows):
            return ()
        with self._replacing(path) as temporary:
            try:
                writer = array_record_module.ArrayRecordWriter(
                    str(temporary), _WRITER_OPTIONS
                )
                for row in windows.astype(self._dtype.newbyteorder("<")):
                    writer.write(row.tobytes())
                writer.close()
            except RuntimeError as error:
                raise OSError(None, str(error)) from error
        shard = Shard(
            name=path.name,
            num_windows=len(windows),
            num_bytes=path.stat().st_size,
            sha256=manifest.sha256(path),
        )
        return (shard,)

    @contextlib.contextmanager
    def _replacing(self, path: pathlib.Path) -> Iterator[pathlib.Path]:
        """A temporary file that takes its place when it is whole."""
        temporary = self._records / f"{path.name}.{os.getpid()}"
        yield temporary
        os.replace(temporary, path)

    def publish(self) -> Manifest | None:
        """Makes the directory from the parts, once none is missing."""
        written = [self._written(unit) for unit in range(len(self.units))]
        if not all(parts and parts[-1].is_last for parts in written):
            return _finished(self._out, self._recipe)
        parts = list(itertools.chain.from_iterable(written))
        made = manifest.combine(self._recipe, self._dtype.name, parts)
        for name, total in made.splits.items():
            if total.num_windows == 0:
                raise InputError(
                    f"the {name} split of source {self._recipe.source!r} got "
                    f"{total.num_documents} documents with {total.num_tokens} tokens, "
                    f"too few for one window of {self._recipe.window_len}; give more "
                    "documents, a larger fraction or a smaller window_len"
                )
        with self._replacing(self.directory / manifest.FILE_NAME) as temporary:
            temporary.write_text(manifest.to_json(made), encoding="utf-8")
        try:
            os.replace(self.directory, self._out)
        except OSError:
            # Another machine may have completed it in the same moment.
            finished = _finished(self._out, self._recipe)
            if finished is None:
                raise
        shutil.rmtree(self._out / _RECORDS, ignore_errors=True)
        return made


def _is_whole(path: pathlib.Path, shard: Shard) -> bool:
    return path.exists() and path.stat().st_size == shard.num_bytes


def _documents(unit: Iterable[Piece]) -> Iterator[Document]:
    """The documents of a unit; `num_bytes_read` counts from its beginning."""
    start = 0
    for piece in unit:
        for document in piece.documents():
            num_bytes = start + document.num_bytes_read
            yield document._replace(num_bytes_read=num_bytes)
        start += piece.num_bytes


@dataclasses.dataclass
class _Packed:
    """Consecutive documents of a unit, tokenized; nothing is packed across its ends."""

    ids: dict[str, list[np.ndarray]]
    num_bytes: dict[str, int]
    num_documents: int = 0
    num_empty_documents: int = 0
    num_duplicates: int = 0


def _new_packed() -> _Packed:
    return _Packed({name: [] for name in split.SPLITS}, dict.fromkeys(split.SPLITS, 0))


class _Packer:
    """Tokenizes the documents of a unit and gathers them to parts."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, is_duplicate: np.ndarray | None
    ):
        self.num_tokens = 0
        self._recipe = recipe
        self._encode = tokenizer.encode_batch
        begins, ends = BOUNDARIES[recipe.boundary]
        self._front = np.array([tokenizer.bos_id] * begins, np.int32)
        self._back = np.array([tokenizer.eos_id] * ends, np.int32)
        self._is_duplicate = is_duplicate
        self._packed = _new_packed()

    def batches(
        self, documents: Iterable[Document], num_taken: int
    ) -> Iterator[tuple[int, bool, bool]]:
        """Takes a batch of documents at a time, but those that were taken before.

        Yields:
            How many bytes of the unit are read; whether a part is full, and is to be
            taken before the next batch; whether the unit is at its end.
        """
        size = min(_BATCH_BYTES, self._recipe.part_bytes)
        batch: list[Document] = []
        num_bytes = num_read = 0
        place = num_taken
        for document in itertools.islice(documents, num_taken, None):
            batch.append(document)
            num_bytes += len(document.text.encode("utf-8"))
            if num_bytes >= size:
                self._add(batch, place)
                place, num_read = place + len(batch), document.num_bytes_read
                batch, num_bytes = [], 0
                packed = sum(self._packed.num_bytes.values())
                yield num_read, packed >= self._recipe.part_bytes, False
        if batch:
            self._add(batch, place)
            num_read = batch[-1].num_bytes_read
        yield num_read, False, True

    def take(self) -> _Packed:
        """What was packed since the last call."""
        packed, self._packed, self.num_tokens = self._packed, _new_packed(), 0
        return packed

    def _add(self, batch: list[Document], place: int) -> None:
        packed, recipe = self._packed, self._recipe
        is_filled = np.array([bool(document.text.strip()) for document in batch])
        is_repeated = np.zeros(len(batch), bool)
        if self._is_duplicate is not None:
            is_repeated = self._is_duplicate[place : place + len(batch)]
        packed.num_documents += len(batch)
        packed.num_empty_documents += int(np.sum(~is_filled))
        packed.num_duplicates += int(np.sum(is_filled & is_repeated))
        texts = list(itertools.compress(batch, is_filled & ~is_repeated))
        ids = self._encode([document.text for document in texts])
        for document, document_ids in zip(texts, ids, strict=True):
            name = split.split_of(
                document,
                calibration_fraction=recipe.calibration_fraction,
                heldout_fraction=recipe.heldout_fraction,
            )
            whole = np.concatenate([self._front, document_ids, self._back])
            packed.ids[name].append(whole)
            packed.num_bytes[name] += len(document.text.encode("utf-8"))
            self.num_tokens += len(whole)


def _windows(ids: list[np.ndarray], window_len: int) -> np.ndarray:
    """Cuts the joined ids into [num_windows, window_len + 1], one id shared."""
    stream = np.concatenate([np.zeros(0, np.int32), *ids])
    num_windows = max(len(stream) - 1, 0) // window_len
    if num_windows == 0:
        return np.zeros((0, window_len + 1), np.int32)
    every = np.lib.stride_tricks.sliding_window_view(stream, window_len + 1)
    return every[::window_len][:num_windows]


def _lengths(ids: list[np.ndarray]) -> tuple[int, ...]:
    """Counts documents by the power of two of their length, see `Split`."""
    powers = [len(document).bit_length() - 1 for document in ids]
    return tuple(np.bincount(np.array(powers, np.int64)).tolist())
