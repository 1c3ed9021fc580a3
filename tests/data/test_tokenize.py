import hashlib
import subprocess
import sys

import chex
import hypothesis
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies as st

from rfq.data import tokenize
from rfq.errors import InputError
from tests.data import corpora

LOADED = {name: tokenize.load(name) for name in tokenize.TOKENIZERS}
# SentencePiece writes spaces as U+2581 inside, so that one character becomes a space.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"))


@pytest.mark.parametrize("name", LOADED)
@hypothesis.given(text=TEXTS)
def test_decoding_undoes_encoding(name, text):
    tokenizer = LOADED[name]
    ids = tokenizer.encode(text)
    chex.assert_type(ids, np.int32)
    assert ids.ndim == 1
    assert np.all((ids >= 3) & (ids < tokenizer.vocab_size))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


@pytest.mark.parametrize("name", LOADED)
@hypothesis.given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_is_its_texts_one_by_one(name, texts):
    tokenizer = LOADED[name]
    batch = tokenizer.encode_batch(texts)
    chex.assert_trees_all_equal(batch, [tokenizer.encode(text) for text in texts])


@pytest.mark.parametrize("name", LOADED)
def test_special_ids_are_those_of_llama(name):
    tokenizer = LOADED[name]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    # Bytes follow the specials, so a text of unknown characters is its bytes.
    euro = [3 + byte for byte in "\u20ac".encode()]
    assert tokenizer.encode("\u20ac").tolist() == euro


@pytest.mark.parametrize("name", LOADED)
def test_a_broken_byte_sequence_decodes_to_a_replacement(name):
    euro = LOADED[name].encode("\u20ac")
    assert "\ufffd" in LOADED[name].decode(euro[:1])


def test_byte_vocabulary_is_256_and_three_specials():
    assert LOADED["byte"].vocab_size == 259


def test_a_space_belongs_to_the_word_after_it():
    """A choice " word" can be scored after a context without re-tokenizing both."""
    tokenizer = LOADED["embedded"]
    joined = np.concatenate([tokenizer.encode("the"), tokenizer.encode(" people")])
    chex.assert_trees_all_equal(tokenizer.encode("the people"), joined)


def test_fingerprints_differ_between_tokenizers_and_not_between_processes(tmp_path):
    fingerprints = {name: t.fingerprint for name, t in LOADED.items()}
    assert len(set(fingerprints.values())) == len(fingerprints)
    copy = tmp_path / "elsewhere.model"
    copy.write_bytes(tokenize.EMBEDDED_MODEL.read_bytes())
    command = (
        "import sys; from rfq.data import tokenize; "
        "print(*[tokenize.load(s).fingerprint for s in sys.argv[1:]])"
    )
    specs = ["embedded", str(copy), "byte"]
    out = subprocess.run(
        [sys.executable, "-c", command, *specs], check=True, capture_output=True
    )
    embedded, byte = fingerprints["embedded"], fingerprints["byte"]
    assert out.stdout.decode().split() == [embedded, embedded, byte]


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\0" * 64])
def test_a_missing_or_foreign_model_file_is_refused(tmp_path, content):
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        tokenize.load(str(path))
    corpora.assert_one_sentence(caught, str(path), "SentencePiece")


def _write_json(path, bos="<s>", eos="</s>"):
    """A BPE over bytes, as GPT-2 and Llama 3 have it, with the special tokens last."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(corpora.texts(50), trainer)
    model.add_special_tokens([bos, eos])
    # What a file may bring along and must not change the ids.
    model.enable_truncation(3)
    model.enable_padding(length=7)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(t, model.token_to_id(t)) for t in dict.fromkeys((bos, eos))],
    )
    model.save(str(path))
    return path


@pytest.mark.parametrize(
    ("bos", "eos"), [("<s>", "</s>"), ("<|endoftext|>", "<|endoftext|>")]
)
def test_a_tokenizer_json_is_a_tokenizer(tmp_path, bos, eos):
    path = _write_json(tmp_path / "tokenizer.json", bos, eos)
    made = tokenize.load(str(path))
    assert made.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made.vocab_size == 300 + len({bos, eos})
    assert {made.bos_id, made.eos_id} <= {300, 301}
    text = f"the union of née states\n\n{bos} 1"
    ids = made.encode(text)
    assert ids.dtype == np.int32 and len(ids) > 7
    # A special token in a text is its characters, and nothing is put around a text.
    assert ids.max() < 300
    assert made.decode(np.concatenate([[made.bos_id], ids, [made.eos_id]])) == text
    chex.assert_trees_all_equal(made.encode_batch(["x", text])[1], ids)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_foreign_json_file_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        tokenize.load(str(path))
    corpora.assert_one_sentence(caught, str(path), "not a tokenizer.json")


def test_a_tokenizer_json_without_a_beginning_is_refused(tmp_path):
    path = _write_json(tmp_path / "tokenizer.json", "<start>", "</s>")
    with pytest.raises(InputError) as caught:
        tokenize.load(str(path))
    corpora.assert_one_sentence(caught, "no bos", "<|begin_of_text|>")


def test_without_the_library_a_tokenizer_json_says_how_to_get_it(tmp_path, monkeypatch):
    path = _write_json(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError) as caught:
        tokenize.load(str(path))
    corpora.assert_one_sentence(caught, "rfq[tokenizers]")


def test_a_model_without_a_beginning_is_refused(tmp_path):
    path = tmp_path / "x.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(corpora.WORDS),
            model_writer=file,
            model_type="char",
            vocab_size=10,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(InputError) as caught:
        tokenize.load(str(path))
    corpora.assert_one_sentence(caught, str(path), "no bos")
