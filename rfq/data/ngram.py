"""Unigram and bigram cross-entropies: the floors a language model has to beat."""

import numpy as np

# Above this vocabulary a dense V x V table (int64, 8 V^2 bytes) gives way to sorting.
_DENSE_VOCAB_SIZE = 4096


def cross_entropies(
    train_windows: np.ndarray, heldout_windows: np.ndarray, vocab_size: int
) -> dict[str, float]:
    """Scores the held-out targets with counts of the training tokens.

    c(v, w) counts the pairs of neighbours of the training windows, N their number.
    The unigram model is add-one smoothed; the bigram model interpolates with it by
    absolute discounting (Ney, Essen and Kneser 1994, equation 9), where N1+(v) is the
    number of distinct successors of v and n_k the number of pairs seen k times:

        p(w)     = (c(w) + 1) / (N + V)
        p(w | v) = max(c(v, w) - delta, 0) / c(v) + delta N1+(v) / c(v) p(w)
        delta    = n_1 / (n_1 + 2 n_2)

    and p(w | v) = p(w) where v was never seen.

    Args:
        train_windows: token ids [num_windows, window_len + 1]; a row starts with the
            last token of the row before it or with a token that is no target.
        heldout_windows: token ids [any, any length]; every token but the first of a row
            is a target, as it is for a model that reads the rows.
        vocab_size: V; all ids are below it.

    Returns:
        "unigram" and "bigram", mean negative log-likelihoods in nats per target.
    """
    counts = _count(train_windows, vocab_size)
    context, target = _pairs(heldout_windows)
    return {
        "unigram": float(-np.mean(np.log(_unigram(counts)[target]))),
        "bigram": float(-np.mean(np.log(_bigram(counts, context, target)))),
    }


def bigram_probabilities(
    train_windows: np.ndarray, context: np.ndarray, target: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Evaluates p(target | context) of `cross_entropies`, elementwise, in float64."""
    return _bigram(_count(train_windows, vocab_size), context, target)


class _Counts:
    """What the training pairs say, as arrays over the vocabulary and over pairs."""

    def __init__(self, context: np.ndarray, target: np.ndarray, vocab_size: int):
        self.vocab_size = vocab_size
        self.target = np.bincount(target, minlength=vocab_size)
        self.context = np.bincount(context, minlength=vocab_size)
        # Sorted codes v V + w of the pairs seen, and how often.
        codes = context * vocab_size + target
        if vocab_size <= _DENSE_VOCAB_SIZE:
            table = np.bincount(codes, minlength=vocab_size**2)
            self.pair_codes = np.flatnonzero(table)
            self.pair_counts = table[self.pair_codes]
        else:
            self.pair_codes, self.pair_counts = np.unique(codes, return_counts=True)
        self.num_successors = np.bincount(
            self.pair_codes // vocab_size, minlength=vocab_size
        )
        once = np.count_nonzero(self.pair_counts == 1)
        twice = np.count_nonzero(self.pair_counts == 2)
        # Without pairs seen once the estimate is 0, and unseen pairs impossible.
        self.discount = once / (once + 2 * twice) if once else 0.5


def _count(windows: np.ndarray, vocab_size: int) -> _Counts:
    return _Counts(*_pairs(windows), vocab_size)


def _pairs(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    windows = windows.astype(np.int64)
    return windows[:, :-1].ravel(), windows[:, 1:].ravel()


def _unigram(counts: _Counts) -> np.ndarray:
    total = counts.target.sum() + counts.vocab_size
    return (counts.target + 1.0) / total


def _bigram(counts: _Counts, context: np.ndarray, target: np.ndarray) -> np.ndarray:
    backoff = _unigram(counts)[target]
    codes = context.astype(np.int64) * counts.vocab_size + target
    last = len(counts.pair_codes) - 1
    place = np.minimum(np.searchsorted(counts.pair_codes, codes), last)
    seen = counts.pair_codes[place] == codes
    pair = np.where(seen, counts.pair_counts[place], 0)
    total = counts.context[context]
    divisor = np.maximum(total, 1)
    weight = counts.discount * counts.num_successors[context] / divisor
    interpolated = np.maximum(pair - counts.discount, 0.0) / divisor + weight * backoff
    return np.where(total > 0, interpolated, backoff)
