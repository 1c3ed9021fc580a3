import collections
import math

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rfq.data import ngram

VOCAB_SIZE = 7
WINDOWS = st.lists(
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=5, max_size=5),
    min_size=1,
    max_size=12,
).map(np.array)


def _oracle(train, heldout, vocab_size):
    """The equations of the docstring, with dictionaries and loops."""
    targets = collections.Counter(w for row in train.tolist() for w in row[1:])
    orders = {}
    for n in (2, 3):
        seen = collections.Counter(
            tuple(row[i : i + n])
            for row in train.tolist()
            for i in range(len(row) - n + 1)
        )
        contexts, successors = collections.Counter(), collections.Counter()
        for key, count in seen.items():
            contexts[key[:-1]] += count
            successors[key[:-1]] += 1
        k = collections.Counter(seen.values())
        delta = k[1] / (k[1] + 2 * k[2]) if k[1] else 0.5
        orders[n] = seen, contexts, successors, delta

    def p(key):
        if len(key) == 1:
            return (targets[key[0]] + 1) / (sum(targets.values()) + vocab_size)
        seen, contexts, successors, delta = orders[len(key)]
        h, shorter = key[:-1], p(key[1:])
        if not contexts[h]:
            return shorter
        kept = max(seen[key] - delta, 0)
        return (kept + delta * successors[h] * shorter) / contexts[h]

    scored = [
        tuple(row[: i + 1]) for row in heldout.tolist() for i in range(1, len(row))
    ]
    return {
        name: -sum(math.log(p(key[-n:])) for key in scored) / len(scored)
        for n, name in enumerate(ngram.NAMES, start=1)
    }


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@hypothesis.given(train=WINDOWS, heldout=WINDOWS)
def test_cross_entropies_are_those_of_the_equations(chunk, train, heldout):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "_CHUNK", chunk)
        found = ngram.cross_entropies(train, heldout, VOCAB_SIZE)
    # Both compute in float64; sums of at most 48 terms differ in the last digits.
    chex.assert_trees_all_close(found, _oracle(train, heldout, VOCAB_SIZE), rtol=1e-12)


@pytest.mark.parametrize("length", [2, 3])
def test_rows_that_are_shorter_than_a_context_are_scored_with_less(length):
    rows = np.array([[0, 1, 2, 3], [1, 2, 0, 3], [0, 1, 3, 3]])[:, :length]
    found = ngram.cross_entropies(rows, rows, 4)
    chex.assert_trees_all_close(found, _oracle(rows, rows, 4), rtol=1e-12)
    if length == 2:
        assert found["trigram"] == found["bigram"]


@pytest.mark.parametrize("n", [1, 2, 3])
@hypothesis.given(train=WINDOWS)
def test_probabilities_of_every_context_sum_to_one(n, train):
    """Seen or not: what discounting takes from a context, the shorter one gives."""
    rows = np.stack(np.unravel_index(np.arange(VOCAB_SIZE**n), (VOCAB_SIZE,) * n), 1)
    for p in ngram.probabilities(train, rows, VOCAB_SIZE):
        assert np.all(p > 0)
        total = p.reshape(-1, VOCAB_SIZE).sum(axis=1)
        chex.assert_trees_all_close(total, np.ones_like(total), rtol=1e-12)


def test_large_vocabularies_keep_their_codes_apart():
    vocab_size = 1 << 21
    rows = vocab_size - 1 - np.array([[0, 1, 0, 1, 2, 0, 1], [2, 1, 0, 1, 2, 2, 0]])
    found = ngram.cross_entropies(rows.astype(np.int32), rows, vocab_size)
    chex.assert_trees_all_close(found, _oracle(rows, rows, vocab_size), rtol=1e-12)


def test_a_cycle_is_free_for_the_bigram_and_uniform_for_the_unigram():
    windows = (np.arange(4)[:, None] * 20 + np.arange(21)[None]) % 4
    found = ngram.cross_entropies(windows, windows, 4)
    assert found["unigram"] == pytest.approx(math.log(4))
    # 80 pairs, 20 of each, discounted by the fallback 0.5: loses -log(1 - 3/8 / 20).
    assert found["bigram"] == pytest.approx(-math.log(1 - 0.375 / 20))
    # The bigram's 1 - 0.375 / 20 is nearly all that the trigram is short of.
    assert found["trigram"] < 1e-2


def test_bigram_beats_unigram_on_text_and_neither_beats_the_vocabulary():
    rng = np.random.default_rng(0)
    successor = rng.permutation(50)
    stream = [0]
    for noise, jump in zip(rng.random(9000), rng.integers(50, size=9000), strict=True):
        stream.append(int(jump if noise < 0.3 else successor[stream[-1]]))
    windows = np.array([stream[i : i + 101] for i in range(0, 9000, 100)])
    found = ngram.cross_entropies(windows[:80], windows[80:], 50)
    assert found["bigram"] < found["unigram"] < math.log(50) + 0.05
    # The entropy of the process: jump with 0.3 to one of 50, else the successor.
    to, elsewhere = 0.7 + 0.3 / 50, 0.3 / 50
    entropy = -to * math.log(to) - 49 * elsewhere * math.log(elsewhere)
    # 1,000 targets of standard deviation near 2 nats: 0.06; smoothing costs more.
    assert entropy - 0.15 < found["bigram"] < entropy + 0.3
