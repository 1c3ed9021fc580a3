import dataclasses
import json
import shutil

import pytest

from rfq.data import manifest, pipeline
from rfq.data.mixture import Mixture
from rfq.errors import InputError
from tests.data import corpora


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return corpora.prepared(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def data(whole, tmp_path):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "copy")


def _shard(data):
    return data / "train-00000-000.array_record"


def _edit(data, change):
    path = data / manifest.FILE_NAME
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))


def test_a_whole_directory_loads_and_verifies(data):
    made = manifest.verify(data)
    assert made == manifest.load(data)
    assert set(made.splits) == {"train", "calibration", "heldout"}
    assert manifest.to_json(made) == (data / manifest.FILE_NAME).read_text()


def test_a_directory_without_a_manifest_says_how_to_make_one(tmp_path):
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as caught:
            manifest.load(missing)
        corpora.assert_one_sentence(caught, str(missing), "rfq prepare")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("recipe"),
        lambda row: row.pop("dtype"),
        lambda row: row.update(extra=1),
        lambda row: row.update(dtype="float64"),
        lambda row: row["splits"].pop("heldout"),
        lambda row: row["splits"]["train"].pop("num_tokens"),
        lambda row: row["splits"]["train"].update(num_windows="7"),
        lambda row: row["splits"]["train"].update(num_windows=7),
        lambda row: row["splits"]["train"].update(shards=[]),
        lambda row: row["splits"]["train"].update(shards=None),
        lambda row: row["recipe"].update(window_len=None),
        lambda row: row["recipe"].update(format="rfq windows 99"),
        lambda row: row.update(recipe=[]),
    ],
)
def test_a_manifest_of_another_form_is_refused(data, change):
    _edit(data, change)
    with pytest.raises(InputError) as caught:
        manifest.load(data)
    corpora.assert_one_sentence(caught, manifest.FILE_NAME, manifest.FORMAT)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_manifest_that_is_no_json_object_is_refused(data, content):
    (data / manifest.FILE_NAME).write_bytes(content)
    with pytest.raises(InputError) as caught:
        manifest.load(data)
    corpora.assert_one_sentence(caught, manifest.FILE_NAME)


def _missing(path):
    path.unlink()


def _empty(path):
    path.write_bytes(b"")


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _foreign(path):
    path.write_bytes(b"foreign!" * (path.stat().st_size // 8))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_missing, "is missing"),
        (_empty, "is empty"),
        (_truncated, "truncated"),
        (_foreign, "not a readable array_record"),
    ],
)
def test_a_damaged_shard_is_refused_when_the_data_are_opened(data, damage, problem):
    damage(_shard(data))
    for use in (
        lambda: manifest.load(data),
        lambda: pipeline.open_split(data, "train", 16),
        lambda: pipeline.train_batches(Mixture((str(data),)), 16, 4, 0, 0, 1),
    ):
        with pytest.raises(InputError) as caught:
            use()
        corpora.assert_one_sentence(caught, str(_shard(data)), problem)


def test_a_shard_of_another_data_set_is_refused(data, tmp_path):
    """Of the same file size, as small shards are, but other windows."""
    other = corpora.prepared(tmp_path, window_len=16)
    assert _shard(other).stat().st_size == _shard(data).stat().st_size
    shutil.copy(_shard(other), _shard(data))
    with pytest.raises(InputError) as caught:
        manifest.load(data)
    corpora.assert_one_sentence(caught, str(_shard(data)), "another data set")


def test_verify_finds_a_single_changed_bit(data):
    content = bytearray(_shard(data).read_bytes())
    place = len(content) // 3
    content[place] ^= 1
    _shard(data).write_bytes(content)
    with pytest.raises(InputError) as caught:
        manifest.verify(data)
    corpora.assert_one_sentence(caught, str(_shard(data)))


def test_a_corrupt_record_is_one_sentence_when_it_is_read(data):
    sequences = pipeline.open_split(data, "train", 32)
    content = bytearray(_shard(data).read_bytes())
    record = sequences[2].astype("<u2").tobytes()
    place = content.index(record)
    content[place] ^= 1
    _shard(data).write_bytes(content)
    sequences = pipeline.open_split(data, "train", 32)
    with pytest.raises(InputError) as caught:
        list(sequences)
    corpora.assert_one_sentence(caught, "window 2", "corrupt")


def test_another_tokenizer_or_vocabulary_is_refused(data):
    made = manifest.load(data)
    recipe = made.recipe
    good = {
        "vocab_size": recipe.vocab_size,
        "tokenizer_fingerprint": recipe.tokenizer_fingerprint,
    }
    manifest.check(made, **good)
    with pytest.raises(InputError) as caught:
        manifest.check(made, **{**good, "vocab_size": 260})
    corpora.assert_one_sentence(caught, "model.vocab_size=260", "259")
    with pytest.raises(InputError) as caught:
        manifest.check(made, **{**good, "tokenizer_fingerprint": "f" * 64})
    corpora.assert_one_sentence(caught, "'byte'", "f" * 12)


def test_manifest_rejects_nothing_it_writes(data):
    made = manifest.load(data)
    for name in made.splits:
        assert dataclasses.asdict(made.splits[name])["num_windows"] > 0


def test_a_shard_that_is_listed_twice_is_refused(data):
    path = data / manifest.FILE_NAME
    row = json.loads(path.read_text())
    train = row["splits"]["train"]
    train["num_windows"] += train["shards"][0]["num_windows"]
    train["shards"].append(train["shards"][0])
    path.write_text(json.dumps(row))
    with pytest.raises(InputError) as caught:
        manifest.load(data)
    corpora.assert_one_sentence(caught, "hold one twice")


def test_verify_finds_a_shard_that_the_manifest_does_not_name(data):
    extra = data / "train-00099-000.array_record"
    extra.write_bytes(_shard(data).read_bytes())
    manifest.load(data)
    with pytest.raises(InputError) as caught:
        manifest.verify(data)
    corpora.assert_one_sentence(caught, extra.name, "not in its manifest")
