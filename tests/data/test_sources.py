import gzip
import json
import lzma
import os
import random
import subprocess
import sys

import hypothesis
import pyarrow
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from rfq.data import sources
from rfq.errors import InputError
from tests.data import corpora


def _zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": _zstd}


def _read(spec, **options):
    return [(d.id, d.text) for d in sources.documents(str(spec), **options)]


def _write_parquet(path, texts, *, ids=None, row_group_size=2, **options):
    columns = {"text": texts} if ids is None else {"id": ids, "text": texts}
    table = pyarrow.table({"url": ["x"] * len(texts), **columns})
    parquet.write_table(table, path, row_group_size=row_group_size, **options)
    return path


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_named_source_has_a_name_for_each_document(name):
    found = list(sources.SOURCES[name]().documents())
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
    assert _read(path) == [
        ("a", "one"),
        # The second row stands on line 3: blank lines are counted, not read.
        (f"x.jsonl{pack}:3", "two"),
        ("7", "three\n"),
    ]


TEXT = "née\n  b\r\n\n \t\n\nc\nd\n"


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [("", TEXT)]),
        ("blank-line", [(":1", "née\n  b"), (":6", "c\nd")]),
        ("line", [(":1", "née"), (":2", "  b"), (":6", "c"), (":7", "d")]),
        (None, [(":1", "née\n  b"), (":6", "c\nd")]),
    ],
)
def test_a_text_file_is_divided_as_told(tmp_path, pack, documents, expected):
    path = tmp_path / f"x.txt{pack}"
    path.write_bytes(PACK[pack](TEXT.encode()))
    assert _read(path, documents=documents) == [
        (f"{path.name}{place}", text) for place, text in expected
    ]


def test_each_of_several_text_files_is_a_document_unless_told(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x\n\ny")
    corpora.write_jsonl(tmp_path / "c.jsonl", ["z"])
    assert _read(tmp_path) == [("a.txt", "x\n\ny"), ("b.txt", "x\n\ny"), ("0", "z")]
    divided = _read(tmp_path, documents="line")
    names = ["a.txt:1", "a.txt:3", "b.txt:1", "b.txt:3", "0"]
    assert [name for name, _ in divided] == names


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_field_of_the_text_can_be_named(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text('{"body": "one", "text": 3}\n')
    else:
        parquet.write_table(pyarrow.table({"body": ["one"], "text": [3]}), path)
    ((_, text),) = _read(path, text_field="body")
    assert text == "one"
    with pytest.raises(InputError) as caught:
        _read(path, text_field="content")
    corpora.assert_one_sentence(caught, "'content'", "body", "--text-field")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("x.jsonl", {"documents": "line"}, "--documents line"),
        ("x.txt", {"text_field": "body"}, "--text-field"),
        ("embedded", {"documents": "file"}, "--documents file"),
        ("embedded", {"text_field": "body"}, "--text-field"),
        ("x.txt", {"documents": "page"}, "blank-line"),
    ],
)
def test_an_option_without_use_is_refused(tmp_path, name, options, problem):
    spec = name
    if name != "embedded":
        (tmp_path / name).write_text('{"text": "x"}\n')
        spec = str(tmp_path / name)
    with pytest.raises(InputError) as caught:
        sources.open_source(spec, **options)
    corpora.assert_one_sentence(caught, problem)


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
@pytest.mark.parametrize("pack", [".gz", ".xz", ".zst"])
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


def test_parts_of_a_packed_file_that_were_joined_are_all_read(tmp_path):
    """gzip, xz and zstd files may be several, one after the other."""
    for pack, padding in ((".gz", b""), (".zst", b""), (".xz", b"\0" * 8)):
        path = tmp_path / f"x.txt{pack}"
        path.write_bytes(PACK[pack](b"one ") + padding + PACK[pack](b"two") + padding)
        assert [text for _, text in _read(path)] == ["one two"]


def test_a_row_group_of_a_parquet_file_is_a_piece(tmp_path):
    texts = ["a", "née", "", "d" * 1000, "e"]
    path = _write_parquet(tmp_path / "x.parquet", texts, ids=[5, 4, 3, 2, 1])
    pieces = sources.open_source(str(path)).pieces
    assert [p.name for p in pieces] == ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
    found = [(d.id, d.text) for piece in reversed(pieces) for d in piece.documents()]
    assert found == [
        ("1", "e"), ("3", ""), ("2", "d" * 1000), ("5", "a"), ("4", "née")
    ]  # fmt: skip
    for piece in pieces:
        assert list(piece.documents())[-1].num_bytes_read == piece.num_bytes


def test_parquet_rows_without_an_id_are_named_by_their_place(tmp_path):
    path = _write_parquet(tmp_path / "x.parquet", ["a", "b", "c"])
    names = [name for name, _ in _read(path)]
    assert names == ["x.parquet:0", "x.parquet:1", "x.parquet:2"]


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.string_view()])
def test_other_kinds_of_strings_are_text(tmp_path, kind):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array(["a"], kind)}), path)
    assert _read(path) == [("x.parquet:0", "a")]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"content": ["a"]}, "content: string"),
        ({"text": [1]}, "text: int64"),
        ({"text": [b"a"]}, "text: binary"),
        ({"text": ["a", None]}, "row 1 has no text"),
    ],
)
def test_a_parquet_file_of_another_schema_is_refused(tmp_path, columns, problem):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InputError) as caught:
        list(sources.documents(str(path)))
    corpora.assert_one_sentence(caught, str(path), problem)


def test_parquet_text_that_is_not_utf8_is_named_by_row(tmp_path):
    raw = pyarrow.array([b"fine", b"a\xff"], pyarrow.binary())
    table = pyarrow.table({"text": raw.view(pyarrow.string())})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError) as caught:
        list(sources.documents(str(tmp_path / "x.parquet")))
    corpora.assert_one_sentence(caught, "0xff")


def test_a_damaged_parquet_file_is_refused_or_read_whole(tmp_path):
    """Whatever byte changes: a sentence, or as many documents as the footer says.

    Pages carry checksums here, without which changed text could not be told.
    """
    texts = [f"document {i} " * 20 for i in range(40)]
    good = _write_parquet(
        tmp_path / "good.parquet", texts, row_group_size=10, write_page_checksum=True
    )
    content = good.read_bytes()
    rng, path, num_refused = random.Random(0), tmp_path / "x.parquet", 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(
            damaged[: rng.choice([None, None, rng.randrange(len(damaged))])]
        )
        try:
            assert len(_read(path)) == len(texts)
        except InputError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert num_refused > 100


_TFDS = """
import sys
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {sys.argv[2]: tfds.features.Text()}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(25):
            yield i, {sys.argv[2]: f"né {i}"}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""
_READ = """
import sys
from rfq.data import sources
from rfq.errors import InputError

sources._TFDS_EXAMPLES = 10
try:
    source = sources.open_source("tfds:tiny")
    assert "tensorflow" not in sys.modules
    texts = sorted(d.id + "=" + d.text for d in source.documents())
    print(len(source.pieces), *texts, sep="|")
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("feature", ["text", "words"])
def test_a_dataset_of_tfds_is_read_without_tensorflow(tmp_path, feature):
    """In processes of their own: importing TFDS takes seconds and stays."""
    command = [sys.executable, "-c"]
    subprocess.run([*command, _TFDS, str(tmp_path), feature], check=True)
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    run = subprocess.run(
        [*command, _READ], check=True, capture_output=True, text=True, env=environment
    )
    if feature != "text":
        assert "has no text feature 'text' (got ['words'])" in run.stdout
        return
    count, *documents = run.stdout.strip().split("|")
    assert count == "3"
    assert len({d.split("=")[0] for d in documents}) == 25
    assert {d.split("=")[1] for d in documents} == {f"né {i}" for i in range(25)}


@pytest.mark.slow
def test_an_unknown_dataset_of_tfds_is_one_sentence():
    with pytest.raises(InputError) as caught:
        sources.open_source("tfds:no_such_set")
    corpora.assert_one_sentence(caught, "tfds:no_such_set", "TFDS_DATA_DIR")
