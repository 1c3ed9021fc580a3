"""The n-gram floors of prepared data, kept beside them: DIR/floors.json."""

import hashlib
import json
import os
import pathlib
import secrets

from rfq.data import manifest, ngram, pipeline
from rfq.errors import InputError

FILE_NAME = "floors.json"

# At most so many training tokens are counted, and held-out tokens scored.
_MAX_TOKENS = 1 << 24


def read(directory: str | pathlib.Path) -> dict[str, float] | None:
    """Return what `add` wrote for these data, or None where it wrote nothing."""
    directory = pathlib.Path(directory)
    try:
        row = json.loads((directory / FILE_NAME).read_text("utf-8"))
        if row["manifest"] != _fingerprint(directory):
            return None
        return {name: float(row["floors"][name]) for name in ngram.NAMES}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def compute(directory: str | pathlib.Path) -> dict[str, float]:
    """Return `ngram.cross_entropies` of the training and held-out windows.

    At most 16 M tokens of each are counted, in evenly spaced windows of larger data.

    Raises:
        InputError: as `manifest.load`.
    """
    return ngram.cross_entropies(
        pipeline.windows(directory, "train", max_tokens=_MAX_TOKENS),
        pipeline.windows(directory, "heldout", max_tokens=_MAX_TOKENS),
        manifest.load(directory).recipe.vocab_size,
    )


def add(directory: str | pathlib.Path) -> dict[str, float]:
    """Return the floors; compute and write them first where they are missing.

    Raises:
        InputError: as `manifest.load`, or the directory cannot be written.
    """
    directory = pathlib.Path(directory)
    losses = read(directory)
    if losses is not None:
        return losses
    losses = compute(directory)
    row = {"manifest": _fingerprint(directory), "floors": losses}
    temporary = directory / f".{FILE_NAME}.{secrets.token_hex(8)}"
    try:
        temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, directory / FILE_NAME)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"the floors cannot be written to {directory} ({error.strerror}); make "
            "room, or check its permissions"
        ) from error
    return losses


def _fingerprint(directory: pathlib.Path) -> str:
    text = (directory / manifest.FILE_NAME).read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]
