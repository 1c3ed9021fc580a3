"""Trains a SentencePiece tokenizer on the training documents of a source."""

import io
import itertools
import pathlib
import re
import secrets
from collections.abc import Iterator

import sentencepiece

from rfq.data import sources, split
from rfq.data.sources import Source
from rfq.errors import InputError

# Special ids and bytes, which every vocabulary has.
_NUM_FIXED = 3 + 256
# A model is trained on at most so many UTF-8 bytes: the trainer holds several copies.
_MAX_BYTES = 1 << 28
_MAX_LINE_BYTES = 1 << 20


def train(
    source: str,
    vocab_size: int,
    *,
    documents: str | None = None,
    text_field: str = "text",
    calibration_fraction: float = split.CALIBRATION_FRACTION,
    heldout_fraction: float = split.HELDOUT_FRACTION,
) -> bytes:
    """Train a byte-pair model on the training documents of a source.

    Byte-pair encoding with byte fallback and the special ids of LLaMA (unk, bos, eos =
    0, 1, 2; bytes at 3..258), so that every text is encoded and decodes to itself. Two
    deviations from LLaMA keep pieces equal wherever a text is cut: no space is put
    before a text, and nothing is normalized. Only the first 256 MiB of the training
    text count.

    Args:
        source: see `sources.open_source`, as for `documents` and `text_field`.
        vocab_size: pieces, special ids and bytes included.
        documents: what a document of a .txt file is.
        text_field: where the text is in files that have fields.
        calibration_fraction: share of documents that `prepare` will calibrate with.
        heldout_fraction: share of documents that `prepare` will hold out.

    Returns:
        The serialized model; the same bytes on every call.

    Raises:
        InputError: as `sources.open_source`; the text is too short for a vocabulary of
            that size, or the size too small for its characters.
    """
    if vocab_size <= _NUM_FIXED:
        raise InputError(
            f"--vocab-size {vocab_size} must be above {_NUM_FIXED}, the special ids "
            "and single bytes that every vocabulary has; a few hundred suit a small "
            "text, 32000 a large one"
        )
    opened = sources.open_source(source, documents=documents, text_field=text_field)
    lines = _training_lines(opened, calibration_fraction, heldout_fraction)
    first = next(lines, None)
    if first is None:
        raise InputError(
            f"source {source!r} has no text for training after the calibration and "
            "held-out documents are taken; give more documents"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            character_coverage=0.9995,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_MAX_LINE_BYTES,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _refused(source, vocab_size, error) from error
    return model.getvalue()


def write(model: bytes, out: pathlib.Path) -> None:
    """Write a model to a new file; the same model again changes nothing.

    Raises:
        InputError: the file is there with other content, or cannot be written.
    """
    try:
        if out.exists() and out.read_bytes() != model:
            raise InputError(
                f"out {out} holds something else, on which prepared data may depend; "
                "choose another file or delete this one"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
        temporary.write_bytes(model)
        temporary.replace(out)
    except OSError as error:
        raise InputError(
            f"out {out} cannot be written ({error.strerror}); choose another file"
        ) from error


def _training_lines(
    source: Source, calibration_fraction: float, heldout_fraction: float
) -> Iterator[str]:
    num_bytes = 0
    for document in source.documents():
        name = split.split_of(
            document,
            calibration_fraction=calibration_fraction,
            heldout_fraction=heldout_fraction,
        )
        if name != "train":
            continue
        yield from filter(None, document.text.split("\n"))
        num_bytes += len(document.text.encode("utf-8"))
        if num_bytes >= _MAX_BYTES:
            return


def _refused(source: str, vocab_size: int, error: RuntimeError) -> InputError:
    """Say the trainer's reasons in our words; it tells the size that fits."""
    said = " ".join(str(error).split())
    high = re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", said)
    if high:
        return InputError(
            f"--vocab-size {vocab_size} is more than the training text of source "
            f"{source!r} has pieces for; give at most {high[1]}, or more text"
        )
    low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", said)
    if low:
        return InputError(
            f"--vocab-size {vocab_size} is too small for the characters in source "
            f"{source!r}; give at least {int(low[1]) + 1}"
        )
    return InputError(
        f"no tokenizer of --vocab-size {vocab_size} can be trained on source "
        f"{source!r} ({said[-200:].rstrip('.')}); give another size or more text"
    )
