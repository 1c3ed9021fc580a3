import hashlib
import re

import pytest
import sentencepiece

from rfq.data import tokenize, train_tokenizer
from rfq.errors import InputError
from tests.data import corpora


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
    assert _pieces(train_tokenizer.train("embedded", vocab_size)) == _pieces(embedded)


def test_embedded_model_is_the_one_that_results_were_recorded_with():
    digest = hashlib.sha256(tokenize.EMBEDDED_MODEL.read_bytes()).hexdigest()
    assert digest.startswith("aa3b2133f110")


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(corpora.texts(200)))
    return str(tmp_path / "own.txt")


def test_a_model_of_ones_own_text_encodes_every_text(own, tmp_path):
    models = [train_tokenizer.train(own, 300, documents="line") for _ in range(2)]
    assert models[0] == models[1]
    out = tmp_path / "new" / "own.model"
    train_tokenizer.write(models[0], out)
    train_tokenizer.write(models[0], out)
    made = tokenize.load(str(out))
    assert made.vocab_size == 300
    for text in ("the union", "naïve 中\t x"):
        assert made.decode(made.encode(text)) == text
    assert len(made.encode("the union of states")) < 12


def test_a_file_with_another_content_is_kept(tmp_path):
    out = tmp_path / "own.model"
    out.write_text("precious")
    with pytest.raises(InputError) as caught:
        train_tokenizer.write(b"model", out)
    corpora.assert_one_sentence(caught, str(out), "choose another")
    assert out.read_text() == "precious"
    with pytest.raises(InputError) as caught:
        train_tokenizer.write(b"model", out / "below")
    corpora.assert_one_sentence(caught, "cannot be written")


def test_a_vocabulary_that_is_too_large_is_told_the_largest(own):
    with pytest.raises(InputError) as caught:
        train_tokenizer.train(own, 9999, documents="line")
    corpora.assert_one_sentence(caught, "--vocab-size 9999", "at most")
    (largest,) = re.findall(r"at most (\d+)", str(caught.value))
    train_tokenizer.train(own, int(largest), documents="line")


def test_a_vocabulary_that_is_too_small_is_told_the_smallest(tmp_path):
    characters = "".join(chr(0x4E00 + i) for i in range(500))
    source = corpora.write_jsonl(tmp_path / "x.jsonl", [characters + "a"] * 50)
    with pytest.raises(InputError) as caught:
        train_tokenizer.train(str(source), 300)
    corpora.assert_one_sentence(caught, "--vocab-size 300", "at least")
    (smallest,) = re.findall(r"at least (\d+)", str(caught.value))
    train_tokenizer.train(str(source), int(smallest))


@pytest.mark.parametrize("size", [0, 259])
def test_fewer_pieces_than_bytes_are_refused(own, size):
    with pytest.raises(InputError) as caught:
        train_tokenizer.train(own, size)
    corpora.assert_one_sentence(caught, f"--vocab-size {size}", "259")


def test_a_source_without_text_is_refused(tmp_path):
    source = corpora.write_jsonl(tmp_path / "x.jsonl", ["", "\n"])
    with pytest.raises(InputError) as caught:
        train_tokenizer.train(str(source), 300)
    corpora.assert_one_sentence(caught, str(source), "no text")
