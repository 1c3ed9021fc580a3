import collections
import itertools
import pickle
import subprocess
import sys

import chex
import grain
import numpy as np
import pytest

from rfq.data import manifest, pipeline, prepare, tokenize
from rfq.data.mixture import Mixture
from rfq.errors import InputError
from tests.data import corpora

SEQ_LEN, BATCH_SIZE = 16, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpora.prepared(tmp_path_factory.mktemp("data"), num_documents=115)


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    """Three parts of the first set and one of another."""
    folder = tmp_path_factory.mktemp("other")
    texts = [text.upper() for text in corpora.texts(60)]
    source, other = corpora.write_jsonl(folder / "x.jsonl", texts), folder / "x"
    prepare.prepare(
        str(source),
        other,
        tokenizer=tokenize.load("byte"),
        window_len=32,
        calibration_fraction=0.2,
        heldout_fraction=0.2,
    )
    return Mixture((str(data), str(other)), (3.0, 1.0))


def _batches(data, seed=0, process_index=0, process_count=1, num_workers=0):
    mixture = data if isinstance(data, Mixture) else Mixture((str(data),))
    return pipeline.train_batches(
        mixture, SEQ_LEN, BATCH_SIZE, seed, process_index, process_count, num_workers
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
    # Threads of other tests' batches may still read ahead, in sequences of their own.
    read = collections.Counter()
    original = pipeline.Sequences.__getitem__

    def counted(self, index):
        read[id(self)] += 1
        return original(self, index)

    monkeypatch.setattr(pipeline.Sequences, "__getitem__", counted)
    sequences, num_batches = _epoch(data)
    batches = _batches(data, 0, 1, 4)
    _take(batches, num_batches)
    ahead = 8 + 1  # Batches that may have been prefetched.
    share = (num_batches + ahead) * BATCH_SIZE // 4
    assert num_batches * BATCH_SIZE // 4 <= max(read.values()) <= share
    assert share < len(sequences) / 2


@pytest.mark.parametrize("process_count", [2, 4])
def test_a_mixture_is_dealt_alike_to_any_number_of_processes(mixed, process_count):
    """Over the ends of epochs of both sets, and after resuming with another number."""
    alone = _batches(mixed)
    expected = [_rows(batch) for batch in _take(alone, 60)]
    parts = [_batches(mixed, 0, p, process_count) for p in range(process_count)]
    for part in parts:
        part.set_state(5)
    for batch in expected[5:]:
        assert _rows(np.concatenate([next(part) for part in parts])) == batch


def test_a_mixture_has_its_shares_and_goes_through_every_set_in_epochs(mixed):
    sets = [pipeline.open_split(d, "train", SEQ_LEN) for d in mixed.directories]
    rows = [(row, (k, i)) for k, one in enumerate(sets) for i, row in enumerate(one)]
    place = {row.tobytes(): where for row, where in rows}
    taken = np.concatenate(_take(_batches(mixed), 100))
    drawn = [place[row.tobytes()] for row in taken]
    counts = [sum(k == which for which, _ in drawn) for k in (0, 1)]
    assert counts[0] == pytest.approx(0.75 * len(taken), abs=1)
    found = pipeline.epochs(mixed, SEQ_LEN, len(taken))
    for k, epochs in enumerate(found):
        assert epochs == pytest.approx(counts[k] / len(sets[k]), rel=0.01)
        assert epochs > 1.0
        first = [i for which, i in drawn if which == k][: len(sets[k])]
        distinct = len({row.tobytes() for row in sets[k]})
        assert len(set(first)) == distinct


def test_without_weights_shares_are_the_sizes(mixed):
    sets = [pipeline.open_split(d, "train", SEQ_LEN) for d in mixed.directories]
    sizes = [len(one) for one in sets]
    taken = np.concatenate(_take(_batches(Mixture(mixed.directories)), 20))
    first = {row.tobytes() for row in sets[0]}
    share = np.mean([row.tobytes() in first for row in taken])
    assert share == pytest.approx(sizes[0] / sum(sizes), abs=0.05)


def test_one_set_is_read_as_it_was_before_there_were_mixtures(data):
    """The order of a seed is part of what a recorded number means."""
    sequences = pipeline.open_split(data, "train", SEQ_LEN)
    stream = grain.MapDataset.range(len(sequences)).seed(3).shuffle().repeat()
    expected = np.stack([sequences[stream[i]] for i in range(3 * BATCH_SIZE)])
    chex.assert_trees_all_equal(
        np.concatenate(_take(_batches(data, seed=3), 3)), expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 3])
def test_worker_processes_read_the_same_batches(mixed, start):
    here, there = _batches(mixed), _batches(mixed, num_workers=2)
    here.set_state(start)
    there.set_state(start)
    chex.assert_trees_all_equal(_take(there, 5), _take(here, 5))
    assert there.get_state() == start + 5


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan"))])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(InputError) as caught:
        Mixture(("a", "b"), weights)
    corpora.assert_one_sentence(caught, "data.weights")


def test_windows_are_evenly_spaced_where_not_all_are_read(data):
    every = pipeline.windows(data, "train")
    some = pipeline.windows(data, "train", max_tokens=32 * 10)
    chex.assert_trees_all_equal(some, every[[i * len(every) // 10 for i in range(10)]])


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
        pipeline.train_batches(Mixture((str(data),)), *arguments)
    corpora.assert_one_sentence(caught, *parts)


def test_an_unknown_split_is_refused(data):
    with pytest.raises(InputError) as caught:
        pipeline.open_split(data, "test", 16)
    corpora.assert_one_sentence(caught, "'test'", "heldout")


def test_reading_batches_starts_no_accelerator_and_needs_no_tensorflow(data):
    program = (
        "import sys\n"
        "from rfq.data import ngram, pipeline, prepare\n"
        "mixture = pipeline.Mixture((sys.argv[1],))\n"
        "batch = next(pipeline.train_batches(mixture, 16, 4, 0, 0, 1))\n"
        "assert batch.shape == (4, 17)\n"
        "windows = pipeline.windows(sys.argv[1], 'train')\n"
        "ngram.cross_entropies(windows, windows, 259)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'flax', 'optax'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program, str(data)], check=True)


@pytest.mark.parametrize("boundary", ["bos", "eos", "bos_eos"])
def test_texts_are_the_documents_whatever_stands_between_them(tmp_path, boundary):
    out = corpora.prepared(tmp_path, boundary=boundary, part_bytes=1 << 20)
    found = pipeline.texts(out, "heldout", tokenize.load("byte"))
    given = corpora.texts(120)
    # The last may be cut where no window was full.
    assert len(found) > 10 and all(text in given for text in found[:-1])
