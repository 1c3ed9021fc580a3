import hashlib

import sentencepiece

from rfq.data import tokenize, train_tokenizer


def _pieces(model: bytes) -> list[tuple[str, bool]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [
        (processor.id_to_piece(i), processor.is_byte(i))
        for i in range(processor.vocab_size())
    ]


def test_training_again_gives_the_embedded_tokenizer():
    embedded = tokenize.EMBEDDED_MODEL.read_bytes()
    vocab_size = len(_pieces(embedded))
    # Pieces, not bytes: another version of the trainer may record more settings.
    assert _pieces(train_tokenizer.train(vocab_size)) == _pieces(embedded)


def test_training_twice_gives_the_same_bytes():
    digests = {hashlib.sha256(train_tokenizer.train(400)).digest() for _ in range(2)}
    assert len(digests) == 1


def test_embedded_model_is_the_one_that_results_were_recorded_with():
    digest = hashlib.sha256(tokenize.EMBEDDED_MODEL.read_bytes()).hexdigest()
    assert digest.startswith("aa3b2133f110")
