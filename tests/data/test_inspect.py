"""What `rfq inspect` says is what the manifest and the records hold."""

import json

import pytest

from rfq.data import inspect, manifest, tokenize
from rfq.errors import InputError
from tests.data import corpora


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpora.prepared(tmp_path_factory.mktemp("inspect"))


def test_counts_lengths_and_samples_are_those_of_the_data(data):
    found = inspect.describe(data, num_samples=3)
    assert json.loads(json.dumps(found)) == found
    made = manifest.load(data)
    texts = " ".join(corpora.texts(120))
    for name, part in made.splits.items():
        shown = found["splits"][name]
        assert shown["num_tokens"] == part.num_tokens
        assert sum(shown["lengths"].values()) == part.num_documents
        assert len(shown["samples"]) == 3
        for sample in shown["samples"]:
            assert len(sample["ids"]) == 33
            # Nothing stands between two documents of a window once bos is gone.
            assert sample["text"][:5] in texts
    text = inspect.render(found)
    assert f"{made.splits['train'].num_tokens:,} tokens" in text
    assert "tokenizer byte" in text and "#" * 40 in text


def test_data_of_a_tokenizer_file_are_shown_without_samples(data, tmp_path):
    """The manifest knows the file's name, not where it lies."""
    text = (data / manifest.FILE_NAME).read_text()
    copy = tmp_path / "data"
    copy.mkdir()
    for path in data.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    renamed = text.replace('"tokenizer": "byte"', '"tokenizer": "x.model"')
    (copy / manifest.FILE_NAME).write_text(renamed)
    found = inspect.describe(copy)
    assert found["splits"]["train"]["samples"][0]["text"] is None
    assert "give --tokenizer" in inspect.render(found)
    given = inspect.describe(copy, tokenizer=tokenize.load("byte"))
    assert given["splits"]["train"]["samples"][0]["text"]


def test_another_tokenizer_is_refused(data):
    with pytest.raises(InputError) as caught:
        inspect.describe(data, tokenizer=tokenize.load("embedded"))
    corpora.assert_one_sentence(caught, "fingerprint")
