"""Trains the embedded SentencePiece tokenizer: `python -m rfq.data.train_tokenizer`."""

import argparse
import io
import pathlib
from collections.abc import Iterator

import sentencepiece

from rfq.data import sources, split


def train(vocab_size: int) -> bytes:
    """Trains a byte-pair model on the training documents of the embedded corpus.

    Byte-pair encoding with byte fallback and the special ids of LLaMA (unk, bos, eos =
    0, 1, 2; bytes at 3..258), so that every text is encoded and decodes to itself. Two
    deviations from LLaMA keep pieces equal wherever a text is cut: no space is put
    before a text, and nothing is normalized.

    Returns:
        The serialized model; the same bytes on every call.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=_training_lines(),
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
        max_sentence_length=1 << 20,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _training_lines() -> Iterator[str]:
    for document in sources.documents("embedded"):
        name = split.split_of(
            document,
            calibration_fraction=split.CALIBRATION_FRACTION,
            heldout_fraction=split.HELDOUT_FRACTION,
        )
        if name == "train":
            yield from filter(None, document.text.split("\n"))


def main() -> None:
    """Writes the model to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.write_bytes(train(args.vocab_size))


if __name__ == "__main__":
    main()
