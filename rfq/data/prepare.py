"""Text to windows of token ids: the only place where documents are packed.

The pieces of a source are gathered to units of about `part_bytes` on disk, by their
sizes alone, and every unit becomes one part or more, each packed on its own and written
with a record of what it took. So machines can share the units, and a run that was
killed goes on after the last part that was written. The bytes of the result are always
the same.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence

from rfq.data import manifest, packing, parts, sources, split
from rfq.data.manifest import Manifest, Recipe
from rfq.data.progress import Progress, no_progress
from rfq.data.sources import Piece
from rfq.data.tokenize import Tokenizer
from rfq.errors import InputError, lookup


def prepare(
    source: str,
    out: str | pathlib.Path,
    *,
    tokenizer: Tokenizer,
    documents: str | None = None,
    text_field: str = "text",
    boundary: str = "bos",
    dedup: bool = False,
    window_len: int = 2048,
    calibration_fraction: float = split.CALIBRATION_FRACTION,
    heldout_fraction: float = split.HELDOUT_FRACTION,
    part_bytes: int = 1 << 26,
    shard: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> Manifest | None:
    """Write the windows of a source and their manifest to a new directory.

    A document becomes its tokens between the special ids of `boundary`. The documents
    of a split are joined in their order, and the stream is cut into windows of
    window_len + 1 ids with stride window_len: a window begins with the last id of the
    one before, so that every token but the first is the target of exactly one window.
    What is left at the end and does not fill a window is dropped, and counted in the
    manifest. A new stream and a new shard of each split begin with every part.

    The directory appears when it is complete and not before; until then parts are
    gathered in a hidden directory beside it, from which the same call goes on after a
    kill. Several machines can share the work: machine i of n calls with shard (i, n)
    and the same `out` on a shared disk (or with the others' hidden directories copied
    there), and the one that completes the parts makes the directory. If it is already
    the result of the same call, nothing is done; sources are compared by names and
    sizes.

    Args:
        source: see `sources.open_source`.
        out: a directory that does not exist yet, is empty, or holds the same data.
        tokenizer: decides the ids and the dtype.
        documents: what a document of a .txt file is, see `sources.open_source`.
        text_field: where the text is in files that have fields.
        boundary: a row of `packing.BOUNDARIES`.
        dedup: keep only the first of documents with equal texts; this reads the source
            once more.
        window_len: tokens; a multiple of every sequence length that will be used.
        calibration_fraction: share of documents, by hash, for activation ranges.
        heldout_fraction: share of documents, by hash, for the loss that is reported.
        part_bytes: UTF-8 bytes of text after which a part ends, and bytes on disk after
            which a unit does.
        shard: (i, n), which share of the units to write: i, i + n, i + 2 n, ...
        progress: shows the progress in megabytes on disk.

    Returns:
        The manifest, or None while units of other shards are missing.

    Raises:
        InputError: a setting out of range, an unusable source or document, a split
            without a window, or an `out` that is in use or cannot be written.
    """
    out = pathlib.Path(out)
    _check_settings(window_len, calibration_fraction, heldout_fraction, part_bytes)
    lookup(packing.BOUNDARIES, boundary, "boundary")
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard={index}/{count} must be i/n with 0 <= i < n")
    opened = sources.open_source(source, documents=documents, text_field=text_field)
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
        documents=opened.division or "file",
        text_field=text_field,
    )
    done = parts.completed(out, recipe)
    if done is not None:
        return done
    work = parts.Work(out, recipe, tokenizer, opened)
    try:
        work.claim()
        # Another process may have completed it since.
        return parts.completed(out, recipe) or _completed_by(work, shard, progress)
    except OSError as error:
        # It may also happen here: the hidden directory is then gone and nothing
        # missing.
        done = parts.completed(out, recipe)
        if done is not None:
            return done
        raise work.unwritten(error) from error


def _completed_by(
    work: parts.Work, shard: tuple[int, int], progress: Progress
) -> Manifest | None:
    index, count = shard
    try:
        work.write(range(index, len(work.units), count), progress)
        return work.publish()
    except InputError as error:
        # A file that cannot be read may be readable later, so its parts are kept. When
        # the text itself must change, the parts are useless.
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
