"""The hidden directory in which the parts of a preparation gather.

Everything in it is written beside its place and then renamed. So every file under its
name is whole, even when processes are killed or share the same preparation.
"""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from rfq.data import manifest, packing
from rfq.data.manifest import Manifest, Part, Recipe, Shard, Split
from rfq.data.progress import Progress
from rfq.data.sources import Document, Piece, Source
from rfq.data.tokenize import Tokenizer
from rfq.errors import InputError

# Without compression the bytes do not depend on the compressor's version and are faster
# to read; they take about twice the disk.
_WRITER_OPTIONS = "group_size:1,uncompressed"

_MB = 10**6


def _units(pieces: Iterable[Piece], unit_bytes: int) -> list[list[Piece]]:
    """Gather consecutive pieces until they have `unit_bytes` on disk."""
    units: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            units.append([])
            room = unit_bytes
        units[-1].append(piece)
        room -= piece.num_bytes
    return units


def completed(out: pathlib.Path, recipe: Recipe) -> Manifest | None:
    """Return the manifest of a directory that already is what the recipe makes.

    Then it also removes what killed processes left in the directory and beside it.

    Raises:
        InputError: the directory is in use by something else.
    """
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
    hidden = _hidden(out)
    for left in (out / _RECORDS, *hidden.parent.glob(f"{glob.escape(hidden.name)}*")):
        shutil.rmtree(left, ignore_errors=True)
    return existing


def _hidden(out: pathlib.Path) -> pathlib.Path:
    """Say where the parts gather: beside the directory, and never beside a link."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.partial")


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


class Work:
    """The hidden directory in which parts gather until they are complete.

    Attributes:
        directory: shards, and in a folder of its own what is known of them: the recipe,
            a record of each part, digests of documents, files being written.
        units: lists of pieces that are read, and numbered, together.
    """

    def __init__(
        self,
        out: pathlib.Path,
        recipe: Recipe,
        tokenizer: Tokenizer,
        source: Source,
    ):
        self.directory = _hidden(out)
        self.units = _units(source.pieces, recipe.part_bytes)
        self._out = out
        self._division = source.division
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._records = self.directory / _RECORDS
        dtype = np.dtype("uint16" if recipe.vocab_size <= 1 << 16 else "int32")
        self._dtype = dtype

    def claim(self) -> None:
        """Make the directory, or find it made by the same call."""
        path = self._records / _RECIPE
        if self.directory.exists() and not path.exists():
            # It is not ours, or another process has just completed and renamed it.
            shutil.rmtree(self.directory, ignore_errors=True)
        # It is made elsewhere and renamed, so that no machine sees it empty.
        fresh = self.directory.with_name(f"{self.directory.name}.{_token()}")
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
        """Make the error about a directory or disk that takes no more."""
        return InputError(
            f"out directory {self._out} cannot be written ({error.strerror}); make "
            f"room or choose another: finished parts are kept in {self.directory}, and "
            "the same command goes on with them"
        )

    def _duplicates(self, progress: Progress) -> dict[int, np.ndarray]:
        """Tell which documents of each unit repeat the text of an earlier one."""
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
        is_duplicate = np.zeros(len(every), bool)
        is_duplicate[order[1:]] = repeats
        ends = np.cumsum([len(rows) for rows in digests])
        return dict(enumerate(np.split(is_duplicate, ends[:-1])))

    def _digests(self, index: int) -> np.ndarray:
        """Return 128 bits of each text's sha256 in a unit: uint64 [documents, 2]."""
        path = self._records / f"digests-{index:05d}.npy"
        # The file may be missing, or cut by a machine that lost its power.
        with contextlib.suppress(OSError, EOFError, ValueError):
            return np.load(path)
        texts = (document.text for document in _documents(self.units[index]))
        digests = b"".join(hashlib.sha256(t.encode()).digest()[:16] for t in texts)
        rows = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        with self._replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
        return rows

    def write(self, indices: Sequence[int], progress: Progress) -> None:
        """Write the parts of some units that are not written yet."""
        duplicates = self._duplicates(progress) if self._recipe.dedup else {}
        sizes = [sum(piece.num_bytes for piece in self.units[i]) for i in indices]
        starts = np.cumsum([0, *sizes])
        started, num_tokens = time.monotonic(), 0
        with progress("prepare, MB", int(starts[-1]) // _MB) as bar:
            for unit, start in zip(indices, starts, strict=False):
                written = self._written(unit)
                if written and written[-1].is_last:
                    continue
                packer = packing.Packer(
                    self._recipe, self._tokenizer, duplicates.get(unit)
                )
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
        self, unit: int, number: int, packed: packing.Packed, is_last: bool
    ) -> None:
        splits = {}
        for name, ids in packed.ids.items():
            windows = packing.windows(ids, self._recipe.window_len)
            path = self.directory / f"{name}-{unit:05d}-{number:03d}.array_record"
            num_tokens = sum(map(len, ids))
            num_kept = len(windows) * self._recipe.window_len + 1 if len(windows) else 0
            splits[name] = Split(
                num_documents=len(ids),
                num_tokens=num_tokens,
                num_bytes=packed.num_bytes[name],
                num_windows=len(windows),
                num_dropped_tokens=num_tokens - num_kept,
                lengths=packing.lengths(ids),
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
        """Return the parts of a unit that are whole, from its beginning."""
        parts: list[Part] = []
        while (path := self._record(unit, len(parts))).exists():
            try:
                part = manifest.part_from_json(path.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError):  # Cut like a shard, perhaps.
                break
            shards = (shard for s in part.splits.values() for shard in s.shards)
            if not all(_is_whole(self.directory / x.name, x) for x in shards):
                break
            parts.append(part)
        return parts

    def _write_shard(
        self, path: pathlib.Path, windows: np.ndarray
    ) -> tuple[Shard, ...]:
        """Write one record for each row; without rows write no file."""
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
        """Open a temporary file that takes its place when it is whole."""
        temporary = self._records / f"{path.name}.{_token()}"
        yield temporary
        os.replace(temporary, path)

    def publish(self) -> Manifest | None:
        """Make the directory from the parts, once none is missing.

        Raises:
            InputError: a split is without a window.
        """
        written = [self._written(unit) for unit in range(len(self.units))]
        if not all(parts and parts[-1].is_last for parts in written):
            return completed(self._out, self._recipe)
        parts = list(itertools.chain.from_iterable(written))
        made = manifest.combine(self._recipe, self._dtype.name, parts)
        self._check_windows(made)
        with self._replacing(self.directory / manifest.FILE_NAME) as temporary:
            temporary.write_text(manifest.to_json(made), encoding="utf-8")
        os.replace(self.directory, self._out.resolve())
        return completed(self._out, self._recipe)

    def _check_windows(self, made: Manifest) -> None:
        recipe = made.recipe
        total = sum(part.num_documents for part in made.splits.values())
        for name, part in made.splits.items():
            if part.num_windows == 0:
                raise InputError(
                    f"the {name} split of source {recipe.source!r} got "
                    f"{part.num_documents:,} of {total:,} documents with "
                    f"{part.num_tokens:,} tokens, too few for one window of "
                    f"{recipe.window_len:,}; {self._more(made, total)}"
                )

    def _more(self, made: Manifest, num_documents: int) -> str:
        """Say what gives the splits more tokens, in the words of the command line."""
        if num_documents < _FEW_DOCUMENTS and self._division in _FINER:
            finer = _FINER[self._division]
            return f"make documents of parts of the text with --documents {finer}"
        larger = manifest.larger_fractions(made)
        advice = [f"give {larger}"] if larger else []
        advice.append(f"lower --window-len {made.recipe.window_len}")
        return ", ".join([*advice, "or give more text"])


# What a document of a text file is -> what makes more documents of it.
_FINER = {"file": "blank-line", "blank-line": "line"}
# So few documents do not fill three splits by their hashes.
_FEW_DOCUMENTS = 100


def _token() -> str:
    """Make a name that tells processes apart, also those of other machines."""
    return secrets.token_hex(8)


def _is_whole(path: pathlib.Path, shard: Shard) -> bool:
    return path.exists() and path.stat().st_size == shard.num_bytes


def _documents(unit: Iterable[Piece]) -> Iterator[Document]:
    """Yield the documents of a unit; `num_bytes_read` counts from its beginning."""
    start = 0
    for piece in unit:
        for document in piece.documents():
            num_bytes = start + document.num_bytes_read
            yield document._replace(num_bytes_read=num_bytes)
        start += piece.num_bytes
