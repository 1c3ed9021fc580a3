"""Floors are kept beside the data, are theirs, and may be missing."""

import json

import pytest

from rfq.data import floors, inspect, manifest, ngram, pipeline
from rfq.errors import InputError
from tests.data import corpora


@pytest.fixture
def data(tmp_path):
    return corpora.prepared(tmp_path)


def test_floors_are_computed_once_and_shown(data, monkeypatch):
    assert floors.read(data) is None
    assert "--floors" in inspect.render(inspect.describe(data))
    found = floors.add(data)
    assert set(found) == set(ngram.NAMES)
    windows = [pipeline.windows(data, name) for name in ("train", "heldout")]
    vocab_size = manifest.load(data).recipe.vocab_size
    assert found == ngram.cross_entropies(*windows, vocab_size)
    monkeypatch.setattr(ngram, "cross_entropies", lambda *arguments: 1 / 0)
    assert floors.add(data) == floors.read(data) == found
    assert f"trigram {found['trigram']:.3f}" in inspect.render(inspect.describe(data))
    manifest.verify(data)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"manifest": 1, "floors": {}}']
)
def test_damaged_floors_are_missing_floors(data, text):
    (data / floors.FILE_NAME).write_text(text)
    assert floors.read(data) is None
    assert floors.add(data) == floors.read(data)


def test_floors_of_other_data_are_missing_floors(data):
    floors.add(data)
    row = json.loads((data / floors.FILE_NAME).read_text())
    row["manifest"] = "0" * 12
    (data / floors.FILE_NAME).write_text(json.dumps(row))
    assert floors.read(data) is None


def test_floors_that_cannot_be_written_are_one_sentence(data):
    (data / floors.FILE_NAME).mkdir()
    with pytest.raises(InputError) as caught:
        floors.add(data)
    corpora.assert_one_sentence(caught, str(data), "cannot be written")
