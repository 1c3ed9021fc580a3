"""Windows to batches: grain, one integer of state, any number of processes."""

import hashlib
import pathlib
from collections.abc import Sequence

import grain
import numpy as np

from rfq.data import manifest
from rfq.data.manifest import Manifest, Shard
from rfq.errors import InputError, lookup

load_manifest = manifest.load


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
        """Stacks some sequences to int32 [len(indices), seq_len + 1]."""
        return np.stack([self[index] for index in indices])

    def __repr__(self) -> str:
        """Names the data, not where they lie, so that a moved state stays valid."""
        digest = hashlib.sha256("".join(s.sha256 for s in self._shards).encode())
        return f"Sequences({self._name}, {self.seq_len}, {digest.hexdigest()[:16]})"


def open_split(directory: str | pathlib.Path, name: str, seq_len: int) -> Sequences:
    """Opens the sequences of a split, in the order of the documents.

    Raises:
        InputError: see `manifest.load`; an unknown split; seq_len does not divide
            window_len.
    """
    return Sequences(pathlib.Path(directory), manifest.load(directory), name, seq_len)


def windows(directory: str | pathlib.Path, name: str) -> np.ndarray:
    """Reads all windows of a split into memory: int32 [num_windows, window_len + 1].

    Raises:
        InputError: as `open_split`.
    """
    window_len = manifest.load(directory).recipe.window_len
    sequences = open_split(directory, name, window_len)
    return sequences.read(range(len(sequences)))


class Batches:
    """An endless iterator over a process's share of the global batches."""

    def __init__(self, batches: grain.MapDataset[np.ndarray]):
        # Reading holds the interpreter lock: one thread ahead is as fast as many.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> np.ndarray:
        return next(self._iterator)

    def get_state(self) -> int:
        """Returns the number of global batches taken, the same on all processes."""
        return self._iterator.get_state()["next_index"]

    def set_state(self, num_batches: int) -> None:
        """Continues after `num_batches` global batches, whoever took them."""
        self._iterator.set_state({"next_index": num_batches})


def train_batches(
    directory: str | pathlib.Path,
    seq_len: int,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> Batches:
    """Iterates over shuffled training sequences without end.

    The sequences of each epoch are permuted by the seed and the epoch, and the stream
    of all epochs is dealt to the processes in turn: process p takes p, p + n, p + 2n.
    Global batch k therefore is positions k B .. (k + 1) B - 1 of the stream for any
    number of processes n that divides B, each process reads only its own share, and
    k is all there is to save.

    Returns:
        Batches of int32 [batch_size / process_count, seq_len + 1]: inputs are
        [:, :-1], targets are [:, 1:].

    Raises:
        InputError: as `open_split`; batch_size is no multiple of process_count or more
            than an epoch; seed is not of 32 bits.
    """
    sequences = open_split(directory, "train", seq_len)
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed={seed} must be in 0..{(1 << 32) - 1}")
    if batch_size > len(sequences):
        raise InputError(
            f"batch_size={batch_size} is more than the {len(sequences)} training "
            f"sequences of {seq_len} tokens in {directory}; lower it or give more data"
        )
    # Numbers are shuffled and dealt, and only then are sequences read: half the time
    # per sequence of handing the sequences themselves from stage to stage.
    stream = grain.MapDataset.range(len(sequences)).seed(seed).shuffle().repeat()
    share = stream[process_index::process_count]
    return Batches(share.batch(batch_size // process_count).map(sequences.read))
