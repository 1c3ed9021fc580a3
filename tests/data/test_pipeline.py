import itertools
import pickle
import subprocess
import sys

import chex
import numpy as np
import pytest

from rfq.data import manifest, pipeline
from rfq.errors import InputError
from tests.data import corpora

SEQ_LEN, BATCH_SIZE = 16, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpora.prepared(tmp_path_factory.mktemp("data"), num_documents=115)


def _batches(data, seed=0, process_index=0, process_count=1):
    return pipeline.train_batches(
        data, SEQ_LEN, BATCH_SIZE, seed, process_index, process_count
    )


def _take(batches, num):
    return list(itertools.islice(batches, num))


def _rows(batch):
    """A batch as a multiset of its rows."""
    return sorted(row.tobytes() for row in batch)


def _epoch(data):
    sequences = pipeline.open_split(data, "train", SEQ_LEN)
    num_batches = -(-len(sequences) // BATCH_SIZE)
    # An epoch must not end with a batch, or the boundary would not be tested.
    assert len(sequences) % BATCH_SIZE
    return sequences, num_batches


def test_batches_are_int32_of_one_more_than_seq_len(data):
    batch = next(_batches(data))
    chex.assert_shape(batch, (BATCH_SIZE, SEQ_LEN + 1))
    chex.assert_type(batch, np.int32)


@pytest.mark.parametrize("process_count", [2, 4])
def test_global_batches_are_the_same_sets_for_any_number_of_processes(
    data, process_count
):
    _, num_batches = _epoch(data)
    num = 2 * num_batches + 1
    alone = _take(_batches(data), num)
    parts = [
        _take(_batches(data, 0, p, process_count), num) for p in range(process_count)
    ]
    for whole, *shares in zip(alone, *parts, strict=True):
        chex.assert_shape(shares, (BATCH_SIZE // process_count, SEQ_LEN + 1))
        assert _rows(np.concatenate(shares)) == _rows(whole)


def test_an_epoch_is_every_sequence_once_and_the_next_in_another_order(data):
    sequences, num_batches = _epoch(data)
    stream = np.concatenate(_take(_batches(data), 2 * num_batches))
    first, second = stream[: len(sequences)], stream[len(sequences) :][: len(sequences)]
    every = sorted(row.tobytes() for row in sequences)
    assert _rows(first) == every
    assert _rows(second) == every
    # A random permutation keeps one place of N on average.
    assert np.mean(np.all(first == second, axis=1)) < 0.1
    assert np.mean(np.all(first == np.stack(list(sequences)), axis=1)) < 0.1


def test_order_is_decided_by_the_seed(data):
    one, again, other = (np.stack(_take(_batches(data, s), 3)) for s in (5, 5, 6))
    chex.assert_trees_all_equal(one, again)
    assert np.any(one != other)


@pytest.mark.parametrize("process_count", [1, 2])
def test_resuming_from_the_integer_is_not_having_stopped(data, process_count):
    _, num_batches = _epoch(data)
    num = num_batches + 4
    whole = _batches(data)
    expected = _take(whole, num)
    assert whole.get_state() == num
    for stop in (0, 1, num_batches - 1, num_batches, num_batches + 1):
        stopped = _batches(data)
        _take(stopped, stop)
        state = stopped.get_state()
        # A plain int: the state survives JSON and another number of processes.
        assert type(state) is int and state == stop
        resumed = [_batches(data, 0, p, process_count) for p in range(process_count)]
        for batches in resumed:
            _take(batches, 2)
            batches.set_state(state)
        for whole_batch in expected[stop:]:
            shares = np.concatenate([next(batches) for batches in resumed])
            assert _rows(shares) == _rows(whole_batch)
            if process_count == 1:
                chex.assert_trees_all_equal(shares, whole_batch)


def test_a_process_reads_only_its_share(data, monkeypatch):
    read = []
    original = pipeline.Sequences.__getitem__
    monkeypatch.setattr(
        pipeline.Sequences,
        "__getitem__",
        lambda self, index: read.append(index) or original(self, index),
    )
    _, num_batches = _epoch(data)
    batches = _batches(data, 0, 1, 4)
    _take(batches, num_batches)
    ahead = 8 + 1  # Batches that may have been prefetched.
    assert len(read) <= (num_batches + ahead) * BATCH_SIZE // 4


def test_windows_are_the_sequences_of_full_length(data):
    windows = pipeline.windows(data, "heldout")
    made = manifest.load(data)
    chex.assert_shape(windows, (made.splits["heldout"].num_windows, 33))
    sequences = pipeline.open_split(data, "heldout", 16)
    assert len(sequences) == 2 * len(windows)
    for index, window in enumerate(windows):
        chex.assert_trees_all_equal(sequences[2 * index], window[:17])
        chex.assert_trees_all_equal(sequences[2 * index + 1], window[16:])


def test_sequences_stop_at_their_ends(data):
    sequences = pipeline.open_split(data, "heldout", 16)
    for index in (-1, len(sequences)):
        with pytest.raises(IndexError):
            sequences[index]


def test_name_of_the_sequences_tells_data_apart_and_not_places(data, tmp_path):
    sequences = pipeline.open_split(data, "train", 16)
    moved = corpora.prepared(tmp_path, num_documents=115)
    assert repr(pipeline.open_split(moved, "train", 16)) == repr(sequences)
    assert repr(pipeline.open_split(moved, "heldout", 16)) != repr(sequences)
    assert repr(pipeline.open_split(moved, "train", 8)) != repr(sequences)


def test_sequences_can_be_sent_to_a_worker(data):
    sequences = pipeline.open_split(data, "train", 16)
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(sequences))[3], sequences[3])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((5, 4, 0, 0, 1), ("seq_len=5", "window_len=32")),
        ((0, 4, 0, 0, 1), ("seq_len=0",)),
        ((64, 4, 0, 0, 1), ("seq_len=64", "window_len=32")),
        ((16, 9, 0, 0, 2), ("batch_size=9", "processes, 2")),
        ((16, 0, 0, 0, 1), ("batch_size=0",)),
        ((16, 100_000, 0, 0, 1), ("batch_size=100000", "lower it")),
        ((16, 4, -1, 0, 1), ("seed=-1",)),
    ],
)
def test_impossible_batches_are_refused(data, arguments, parts):
    with pytest.raises(InputError) as caught:
        pipeline.train_batches(data, *arguments)
    corpora.assert_one_sentence(caught, *parts)


def test_an_unknown_split_is_refused(data):
    with pytest.raises(InputError) as caught:
        pipeline.open_split(data, "test", 16)
    corpora.assert_one_sentence(caught, "'test'", "heldout")


def test_reading_batches_starts_no_accelerator_and_needs_no_tensorflow(data):
    program = (
        "import sys\n"
        "from rfq.data import ngram, pipeline, prepare\n"
        "batch = next(pipeline.train_batches(sys.argv[1], 16, 4, 0, 0, 1))\n"
        "assert batch.shape == (4, 17)\n"
        "windows = pipeline.windows(sys.argv[1], 'train')\n"
        "ngram.cross_entropies(windows, windows, 259)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'flax', 'optax'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program, str(data)], check=True)
