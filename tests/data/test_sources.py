import gzip
import json
import lzma

import hypothesis
import pytest
from hypothesis import strategies as st

from rfq.data import sources
from rfq.data.sources import Document
from rfq.errors import InputError
from tests.data import corpora

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_named_source_has_the_documents_it_promises(name):
    source = sources.SOURCES[name]()
    found = list(source.documents())
    assert len(found) == source.num_documents
    assert len({document.id for document in found}) == len(found)
    assert all(isinstance(document.text, str) for document in found)


def test_embedded_corpus_is_the_one_that_the_attribution_names():
    found = list(sources.documents("embedded"))
    assert len(found) == 249
    assert found[0].id == "1790-Washington-1"
    assert sum(len(document.text.encode()) for document in found) == 12_185_751


@pytest.mark.parametrize("pack", PACK)
def test_jsonl_gives_ids_texts_and_order_whatever_the_packing(tmp_path, pack):
    rows = [{"id": "a", "text": "one"}, {"text": "two"}, {"id": 7, "text": "three\n"}]
    data = "\n\n".join(json.dumps(row) for row in rows).encode()
    path = tmp_path / f"x.jsonl{pack}"
    path.write_bytes(PACK[pack](data))
    assert list(sources.documents(str(path))) == [
        Document("a", "one"),
        # The second row stands on line 3: blank lines are counted, not read.
        Document(f"x.jsonl{pack}:3", "two"),
        Document("7", "three\n"),
    ]


@pytest.mark.parametrize("pack", PACK)
def test_a_text_file_is_one_document(tmp_path, pack):
    path = tmp_path / f"x.txt{pack}"
    path.write_bytes(PACK[pack]("née\n\nb".encode()))
    assert list(sources.documents(str(path))) == [Document(path.name, "née\n\nb")]


def test_directory_and_glob_read_known_visible_files_in_order_of_path(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden/0.txt", "b/.3.txt", "z.bin"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    from_directory = [d.text for d in sources.documents(str(tmp_path))]
    assert from_directory == ["a.txt", "b/1.txt", "b/2.txt"]
    from_glob = [d.text for d in sources.documents(str(tmp_path / "b" / "*.txt"))]
    assert from_glob == ["b/1.txt", "b/2.txt"]


@hypothesis.given(st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_jsonl_round_trips_every_unicode_text(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    corpora.write_jsonl(path, texts)
    assert [document.text for document in sources.documents(str(path))] == texts


@pytest.mark.parametrize("spec", ["nothing.txt", "*.txt", "folder"])
def test_a_source_that_matches_nothing_is_refused(tmp_path, spec):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        sources.open_source(str(tmp_path / spec))
    corpora.assert_one_sentence(caught, spec, "matches no file", "embedded")


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    path = tmp_path / "x.pdf"
    path.write_text("text")
    with pytest.raises(InputError) as caught:
        sources.open_source(str(path))
    corpora.assert_one_sentence(caught, "x.pdf", ".jsonl.gz")


GOOD = b'{"text": "fine"}\n'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\xfe broken", "is not UTF-8 text (byte 0xff)"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 text (byte 0xe9)"),
        (b'{"text": ', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"content": "x"}', "no string field 'text' (got ['content'])"),
        (b'{"text": null}', "no string field 'text'"),
        (b'["text"]', "no string field 'text' (got list)"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, problem):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(InputError) as caught:
        list(sources.documents(str(path)))
    corpora.assert_one_sentence(caught, f"{path}, line 3", problem)


def test_a_text_file_that_is_not_utf8_is_named_by_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(InputError) as caught:
        list(sources.documents(str(path)))
    corpora.assert_one_sentence(caught, f"{path}, line 3", "0xe9")


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("pack", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_archive_is_refused(tmp_path, kind, pack, damage):
    whole = PACK[pack](GOOD * 100)
    path = tmp_path / f"x.{kind}{pack}"
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else GOOD)
    with pytest.raises(InputError) as caught:
        list(sources.documents(str(path)))
    corpora.assert_one_sentence(caught, str(path), "cannot be read")


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(max_examples=200)
def test_any_bytes_are_read_or_refused_with_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    try:
        list(sources.documents(str(path)))
    except InputError as error:
        assert "line" in str(error)
