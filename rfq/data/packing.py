"""Documents to windows: tokenized, dealt to the splits and cut, a part at a time."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from rfq.data import split
from rfq.data.manifest import Recipe
from rfq.data.sources import Document
from rfq.data.tokenize import Tokenizer

# (begins with bos, ends with eos).
BOUNDARIES: Mapping[str, tuple[bool, bool]] = {
    "bos": (True, False),
    "eos": (False, True),
    "bos_eos": (True, True),
}

# UTF-8 bytes of text that are tokenized at once.
_BATCH_BYTES = 1 << 20
# At most so many documents are tokenized at once: empty ones cost memory, too.
_BATCH_DOCUMENTS = 1 << 16


@dataclasses.dataclass
class Packed:
    """Consecutive documents of a unit, tokenized; nothing is packed across its ends."""

    ids: dict[str, list[np.ndarray]]
    num_bytes: dict[str, int]
    num_documents: int = 0
    num_empty_documents: int = 0
    num_duplicates: int = 0


def _new_packed() -> Packed:
    return Packed({name: [] for name in split.SPLITS}, dict.fromkeys(split.SPLITS, 0))


class Packer:
    """Tokenizes the documents of a unit and gathers them to parts."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, is_duplicate: np.ndarray | None
    ):
        self.num_tokens = 0
        self._recipe = recipe
        self._encode = tokenizer.encode_batch
        begins, ends = BOUNDARIES[recipe.boundary]
        self._front = np.array([tokenizer.bos_id] * begins, np.int32)
        self._back = np.array([tokenizer.eos_id] * ends, np.int32)
        self._is_duplicate = is_duplicate
        self._packed = _new_packed()

    def batches(
        self, documents: Iterable[Document], num_taken: int
    ) -> Iterator[tuple[int, bool, bool]]:
        """Take a batch of documents at a time; skip those that were taken before.

        Yields:
            How many bytes of the unit are read; whether a part is full, and is to be
            taken before the next batch; whether the unit is at its end.
        """
        size = min(_BATCH_BYTES, self._recipe.part_bytes)
        batch: list[Document] = []
        num_bytes = num_read = 0
        place = num_taken
        for document in itertools.islice(documents, num_taken, None):
            batch.append(document)
            num_bytes += len(document.text.encode("utf-8"))
            if num_bytes >= size or len(batch) >= _BATCH_DOCUMENTS:
                self._add(batch, place)
                place, num_read = place + len(batch), document.num_bytes_read
                batch, num_bytes = [], 0
                packed = sum(self._packed.num_bytes.values())
                yield num_read, packed >= self._recipe.part_bytes, False
        if batch:
            self._add(batch, place)
            num_read = batch[-1].num_bytes_read
        yield num_read, False, True

    def take(self) -> Packed:
        """Return what was packed since the last call."""
        packed, self._packed, self.num_tokens = self._packed, _new_packed(), 0
        return packed

    def _add(self, batch: list[Document], place: int) -> None:
        packed, recipe = self._packed, self._recipe
        is_filled = np.array([bool(document.text.strip()) for document in batch])
        is_repeated = np.zeros(len(batch), bool)
        if self._is_duplicate is not None:
            is_repeated = self._is_duplicate[place : place + len(batch)]
        packed.num_documents += len(batch)
        packed.num_empty_documents += int(np.sum(~is_filled))
        packed.num_duplicates += int(np.sum(is_filled & is_repeated))
        texts = list(itertools.compress(batch, is_filled & ~is_repeated))
        ids = self._encode([document.text for document in texts])
        for document, document_ids in zip(texts, ids, strict=True):
            name = split.split_of(
                document,
                calibration_fraction=recipe.calibration_fraction,
                heldout_fraction=recipe.heldout_fraction,
            )
            whole = np.concatenate([self._front, document_ids, self._back])
            packed.ids[name].append(whole)
            packed.num_bytes[name] += len(document.text.encode("utf-8"))
            self.num_tokens += len(whole)


def windows(ids: list[np.ndarray], window_len: int) -> np.ndarray:
    """Cut the joined ids into [num_windows, window_len + 1], one id shared."""
    stream = np.concatenate([np.zeros(0, np.int32), *ids])
    num_windows = max(len(stream) - 1, 0) // window_len
    if num_windows == 0:
        return np.zeros((0, window_len + 1), np.int32)
    every = np.lib.stride_tricks.sliding_window_view(stream, window_len + 1)
    return every[::window_len][:num_windows]


def lengths(ids: list[np.ndarray]) -> tuple[int, ...]:
    """Count documents by the power of two of their length, see `Split`."""
    powers = [len(document).bit_length() - 1 for document in ids]
    return tuple(np.bincount(np.array(powers, np.int64)).tolist())
