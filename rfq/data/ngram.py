"""Cross-entropies of n-grams: the floors that a language model has to beat."""

import dataclasses
from collections.abc import Iterator

import numpy as np

# The models, by how many tokens before a target they look at.
NAMES = ("unigram", "bigram", "trigram")

# Held-out targets that are scored at once.
_CHUNK = 1 << 20


def cross_entropies(
    train_windows: np.ndarray, heldout_windows: np.ndarray, vocab_size: int
) -> dict[str, float]:
    """Score the held-out targets with counts of the training tokens.

    c(h, w) counts the places of the training windows where w follows the context h, of
    one token for the bigram and of two for the trigram; c(h) is its sum over w. The
    unigram model is add-one smoothed, with N pairs of neighbours. Each longer context
    interpolates with the shorter one by absolute discounting (Ney, Essen and Kneser
    1994, equation 9), where h' is h without its first token, N1+(h) the number of
    distinct successors of h, and n_k the number of (h, w) seen k times:

        p(w)     = (c(w) + 1) / (N + V)
        p(w | h) = max(c(h, w) - delta, 0) / c(h) + delta N1+(h) / c(h) p(w | h')
        delta    = n_1 / (n_1 + 2 n_2), one for each length

    and p(w | h) = p(w | h') where h was never seen. The second token of a row has one
    token before it, so that the trigram model scores it as the bigram model does.

    Sorting dominates: O(N log N) time, and about 40 bytes of memory a training token.

    Args:
        train_windows: token ids [num_windows, window_len + 1]; a row starts with the
            last token of the row before it or with a token that is no target.
        heldout_windows: token ids [any, any length]; every token but the first of a row
            is a target, as it is for a model that reads the rows.
        vocab_size: V, at most 2^21; all ids are below it.

    Returns:
        {name: mean negative log-likelihood in nats per target} for `NAMES`.
    """
    models = _Models(train_windows, vocab_size)
    sums, num_targets = np.zeros(len(NAMES)), 0
    for rows in _chunks(heldout_windows):
        for probabilities in models.score(rows):
            sums += [-np.log(probability).sum() for probability in probabilities]
            num_targets += len(probabilities[0])
    return dict(zip(NAMES, (sums / num_targets).tolist(), strict=True))


def probabilities(
    train_windows: np.ndarray, rows: np.ndarray, vocab_size: int
) -> list[np.ndarray]:
    """Evaluate p(last token of a row | those before) of `cross_entropies`.

    Args:
        train_windows: as for `cross_entropies`.
        rows: token ids [num, n], n from 1 to 3.
        vocab_size: V.

    Returns:
        For the unigram model and each longer one that n allows: float64 [num].
    """
    return _Models(train_windows, vocab_size).last(rows.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The tokens that follow each context of one length, as sorted arrays.

    Attributes:
        codes: h V + w of each (h, w) seen, the tokens of h read as digits.
        counts: how often.
        contexts: h of each context seen.
        totals: how often.
        num_successors: N1+.
        discount: delta.
    """

    codes: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    num_successors: np.ndarray
    discount: float


def _count(codes: np.ndarray, vocab_size: int) -> _Counts:
    """Count the codes of all places of the training windows; sort them in place."""
    codes.sort()
    starts = _starts(codes)
    distinct, counts = codes[starts], np.diff(starts, append=len(codes))
    firsts = _starts(distinct // vocab_size)
    once = np.count_nonzero(counts == 1)
    twice = np.count_nonzero(counts == 2)
    return _Counts(
        codes=distinct,
        counts=counts,
        contexts=distinct[firsts] // vocab_size,
        totals=np.add.reduceat(counts, firsts) if len(counts) else counts,
        num_successors=np.diff(firsts, append=len(distinct)),
        # If no (h, w) was seen once, the estimate is 0 and would exclude unseen ones.
        discount=once / (once + 2 * twice) if once else 0.5,
    )


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Find where each value of a sorted array begins."""
    return np.flatnonzero(np.diff(ordered, prepend=-1))


class _Models:
    """The models of `NAMES`, counted on the training windows."""

    def __init__(self, windows: np.ndarray, vocab_size: int):
        self._vocab_size = vocab_size
        targets = np.bincount(windows[:, 1:].ravel(), minlength=vocab_size)
        self._unigram = (targets + 1.0) / (targets.sum() + vocab_size)
        self._orders = [
            _count(_codes(windows, n, vocab_size), vocab_size)
            for n in range(2, len(NAMES) + 1)
        ]

    def score(self, rows: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Score targets by how many tokens stand before them: p of each model."""
        rows = rows.astype(np.int64)
        for n in range(2, len(NAMES)):
            if rows.shape[1] >= n:
                probabilities = self.last(rows[:, :n])
                yield [*probabilities, *[probabilities[-1]] * (len(NAMES) - n)]
        longest = len(NAMES)
        if rows.shape[1] >= longest:
            every = np.lib.stride_tricks.sliding_window_view(rows, longest, axis=1)
            yield self.last(every.reshape(-1, longest))

    def last(self, rows: np.ndarray) -> list[np.ndarray]:
        """Compute p(last token | those before), of the shortest context first."""
        probabilities = [self._unigram[rows[:, -1]]]
        for order, n in zip(self._orders, range(2, rows.shape[1] + 1), strict=False):
            codes = _codes(rows[:, -n:], n, self._vocab_size)
            probabilities.append(self._interpolated(order, codes, probabilities[-1]))
        return probabilities

    def _interpolated(
        self, order: _Counts, codes: np.ndarray, shorter: np.ndarray
    ) -> np.ndarray:
        if not len(order.codes):  # No row is as long.
            return shorter
        place, is_seen = _lookup(order.contexts, codes // self._vocab_size)
        total = np.where(is_seen, order.totals[place], 1)
        num_successors = order.num_successors[place]
        pair, is_pair = _lookup(order.codes, codes)
        count = np.where(is_pair, order.counts[pair], 0)
        weight = order.discount * num_successors / total
        mixed = np.maximum(count - order.discount, 0.0) / total + weight * shorter
        return np.where(is_seen, mixed, shorter)


def _codes(rows: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """Read every n neighbours of every row as digits: int64 [num]."""
    length = max(rows.shape[1] - n + 1, 0)
    codes = np.zeros((len(rows), length), np.int64)
    for place in range(n):
        codes *= vocab_size
        codes += rows[:, place : place + length]
    return codes.ravel()


def _lookup(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where values stand in a sorted array, and whether they do."""
    place = np.searchsorted(ordered, wanted)
    place = np.minimum(place, len(ordered) - 1)
    return place, ordered[place] == wanted


def _chunks(windows: np.ndarray) -> Iterator[np.ndarray]:
    num_rows = max(1, _CHUNK // windows.shape[1])
    for start in range(0, len(windows), num_rows):
        yield windows[start : start + num_rows]
