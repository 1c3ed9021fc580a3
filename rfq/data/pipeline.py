"""Windows to batches: grain, one integer of state, any number of processes."""

import hashlib
import pathlib
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from rfq.data import manifest
from rfq.data.manifest import Manifest, Shard
from rfq.data.mixture import Mixture
from rfq.data.tokenize import Tokenizer
from rfq.errors import InputError, lookup

# The most tokens that `texts` decodes.
_MAX_TEXT_TOKENS = 1 << 20


class Sequences:
    """The sequences of one split, by number: int32 [seq_len + 1] each.

    A window holds window_len / seq_len of them. A sequence begins with the last id of
    the one before, so that every target of a window is the target of one sequence.
    """

    def __init__(
        self, directory: pathlib.Path, data: Manifest, name: str, seq_len: int
    ):
        part = lookup(data.splits, name, "split")
        if seq_len < 1 or data.recipe.window_len % seq_len:
            raise InputError(
                f"seq_len={seq_len} does not divide the window_len="
                f"{data.recipe.window_len} of the data in {directory}; choose a "
                "divisor or prepare the data again with a multiple"
            )
        self.seq_len = seq_len
        self._name = name
        self._directory = directory
        self._shards: tuple[Shard, ...] = part.shards
        self._records = grain.sources.ArrayRecordDataSource(
            [str(directory / shard.name) for shard in part.shards]
        )
        self._dtype = np.dtype(data.dtype).newbyteorder("<")
        self._num_per_window = data.recipe.window_len // seq_len
        self._num_windows = part.num_windows

    def __len__(self) -> int:
        return self._num_windows * self._num_per_window

    def __getitem__(self, index: int) -> np.ndarray:
        window_index, place = divmod(int(index), self._num_per_window)
        if not 0 <= window_index < self._num_windows:
            raise IndexError(index)
        try:
            record = self._records[window_index]
        except RuntimeError as error:
            raise InputError(
                f"window {window_index} of split {self._name} in {self._directory} is "
                "corrupt; delete the directory and run `rfq prepare` again"
            ) from error
        start = place * self.seq_len * self._dtype.itemsize
        ids = np.frombuffer(record, self._dtype, self.seq_len + 1, start)
        return ids.astype(np.int32)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Stack some sequences to int32 [len(indices), seq_len + 1]."""
        return np.stack([self[index] for index in indices])

    def __repr__(self) -> str:
        """Name the data, not where they lie, so that a moved state stays valid."""
        digest = hashlib.sha256("".join(s.sha256 for s in self._shards).encode())
        return f"Sequences({self._name}, {self.seq_len}, {digest.hexdigest()[:16]})"


def open_split(directory: str | pathlib.Path, name: str, seq_len: int) -> Sequences:
    """Open the sequences of a split, in the order of the documents.

    Raises:
        InputError: see `manifest.load`; an unknown split; seq_len does not divide
            window_len.
    """
    return Sequences(pathlib.Path(directory), manifest.load(directory), name, seq_len)


def windows(
    directory: str | pathlib.Path, name: str, *, max_tokens: int | None = None
) -> np.ndarray:
    """Read the windows of a split into memory: int32 [num_windows, window_len + 1].

    Args:
        directory: the `out` of `prepare`.
        name: the split's name.
        max_tokens: the most tokens to read; a larger split gives evenly spaced windows.

    Raises:
        InputError: as `open_split`.
    """
    window_len = manifest.load(directory).recipe.window_len
    sequences = open_split(directory, name, window_len)
    count = len(sequences)
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // window_len))
    return sequences.read([i * len(sequences) // count for i in range(count)])


def texts(directory: str | pathlib.Path, name: str, tokenizer: Tokenizer) -> list[str]:
    """Yield the documents of a split as text again, cut where a stream ends.

    A large split gives about a million tokens, in evenly spaced windows.

    Raises:
        InputError: as `open_split`.
    """
    decoded = []
    stream: list[np.ndarray] = []
    for window in windows(directory, name, max_tokens=_MAX_TEXT_TOKENS):
        # A window begins with the last id of the one before, or a stream of its own.
        if stream and stream[-1][-1] == window[0]:
            window = window[1:]
        stream.append(window)
    ids = np.concatenate(stream)
    ends = np.isin(ids, (tokenizer.bos_id, tokenizer.eos_id))
    for document in np.split(ids, np.flatnonzero(ends)):
        decoded.append(tokenizer.decode(document))
    return [text for text in decoded if text]


class Batches:
    """An endless iterator over a process's share of the global batches.

    Reading runs ahead in a thread, or in worker processes where there are any. The
    state is one integer in either case, and what was read ahead is no part of it.
    """

    def __init__(self, batches: grain.MapDataset[np.ndarray], num_workers: int):
        self._batches = batches
        self._num_workers = num_workers
        self.set_state(0)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> np.ndarray:
        batch = next(self._iterator)
        self._num_taken += 1
        return batch

    def get_state(self) -> int:
        """Return the number of global batches taken, the same on all processes."""
        return self._num_taken

    def set_state(self, num_batches: int) -> None:
        """Continue after `num_batches` global batches, whoever took them."""
        self._num_taken = num_batches
        # Reading holds the interpreter lock: one thread ahead is as fast as many.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
        ahead = self._batches[num_batches:].to_iter_dataset(options)
        if self._num_workers:
            flags.FLAGS.mark_as_parsed()  # Grain reads a flag, which must be parsed.
            workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
            ahead = ahead.mp_prefetch(workers)
        self._iterator = iter(ahead)


def train_batches(
    mixture: Mixture,
    seq_len: int,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    num_workers: int = 0,
) -> Batches:
    """Iterate over shuffled training sequences without end.

    The sequences of each set and epoch are permuted by the seed and the epoch, the
    sets are interleaved by their weights, and the stream of all epochs is dealt to the
    processes in turn: process p takes p, p + n, p + 2n. Global batch k therefore is
    positions k B .. (k + 1) B - 1 of the stream for any number of processes n that
    divides B, each process reads only its own share, and k is all there is to save.

    Returns:
        Batches of int32 [batch_size / process_count, seq_len + 1]: inputs are
        [:, :-1], targets are [:, 1:].

    Raises:
        InputError: as `open_split`; batch_size is no multiple of process_count or more
            than an epoch; seed is not of 32 bits.
    """
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed={seed} must be in 0..{(1 << 32) - 1}")
    sets = [open_split(name, "train", seq_len) for name in mixture.directories]
    total = sum(map(len, sets))
    if batch_size > total:
        raise InputError(
            f"batch_size={batch_size} is more than the {total} training sequences of "
            f"{seq_len} tokens in {', '.join(map(str, mixture.directories))}; lower it "
            "or give more data"
        )
    # Numbers are shuffled, mixed and dealt, and only then are sequences read. This
    # takes half the time of handing sequences from stage to stage. A set's numbers
    # continue those of the set before.
    starts = np.cumsum([0, *map(len, sets)])
    streams = [
        grain.MapDataset.range(int(start), int(start) + len(one))
        .seed((seed + number) % (1 << 32))
        .shuffle()
        .repeat()
        for number, (one, start) in enumerate(zip(sets, starts, strict=False))
    ]
    stream = grain.MapDataset.mix(streams, mixture.shares([len(one) for one in sets]))
    share = stream[process_index::process_count].batch(batch_size // process_count)
    return Batches(share.map(_Concatenated(sets).read), num_workers)


def epochs(mixture: Mixture, seq_len: int, num_sequences: int) -> list[float]:
    """Count how often each set of a mixture is gone through in so many sequences.

    Raises:
        InputError: as `open_split`.
    """
    sets = [open_split(name, "train", seq_len) for name in mixture.directories]
    shares = mixture.shares([len(one) for one in sets])
    return [
        share * num_sequences / len(one)
        for share, one in zip(shares, sets, strict=True)
    ]


class _Concatenated:
    """Several sets as one, one after the other; can be sent to a worker process."""

    def __init__(self, sets: Sequence[Sequences]):
        self._sets = sets
        self._starts = np.cumsum([0, *map(len, sets)])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Stack some sequences to int32 [len(indices), seq_len + 1]."""
        places = np.searchsorted(self._starts, indices, side="right") - 1
        return np.stack(
            [
                self._sets[place][index - self._starts[place]]
                for place, index in zip(places, indices, strict=True)
            ]
        )
