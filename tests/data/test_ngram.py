import collections
import itertools
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
    pairs = collections.Counter(
        pair for row in train.tolist() for pair in itertools.pairwise(row)
    )
    contexts, targets = collections.Counter(), collections.Counter()
    successors = collections.Counter()
    for (v, w), count in pairs.items():
        contexts[v] += count
        targets[w] += count
        successors[v] += 1
    n = collections.Counter(pairs.values())
    delta = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5

    def unigram(w):
        return (targets[w] + 1) / (sum(targets.values()) + vocab_size)

    def bigram(v, w):
        if not contexts[v]:
            return unigram(w)
        kept = max(pairs[v, w] - delta, 0)
        return (kept + delta * successors[v] * unigram(w)) / contexts[v]

    scored = [p for row in heldout.tolist() for p in itertools.pairwise(row)]
    return {
        "unigram": -sum(math.log(unigram(w)) for _, w in scored) / len(scored),
        "bigram": -sum(math.log(bigram(v, w)) for v, w in scored) / len(scored),
    }


@pytest.mark.parametrize("dense_vocab_size", [0, 4096])
@hypothesis.given(train=WINDOWS, heldout=WINDOWS)
def test_cross_entropies_are_those_of_the_equations(dense_vocab_size, train, heldout):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "_DENSE_VOCAB_SIZE", dense_vocab_size)
        found = ngram.cross_entropies(train, heldout, VOCAB_SIZE)
    # Both compute in float64; sums of at most 48 terms differ in the last digits.
    chex.assert_trees_all_close(found, _oracle(train, heldout, VOCAB_SIZE), rtol=1e-12)


@hypothesis.given(train=WINDOWS)
def test_probabilities_of_every_context_sum_to_one(train):
    """Seen or not: what discounting takes from a context, the backoff gives back."""
    v, w = np.divmod(np.arange(VOCAB_SIZE**2), VOCAB_SIZE)
    p = ngram.bigram_probabilities(train, v, w, VOCAB_SIZE)
    assert np.all(p > 0)
    total = p.reshape(VOCAB_SIZE, VOCAB_SIZE).sum(axis=1)
    chex.assert_trees_all_close(total, np.ones(VOCAB_SIZE), rtol=1e-12)


def test_a_cycle_is_free_for_the_bigram_and_uniform_for_the_unigram():
    windows = (np.arange(4)[:, None] * 20 + np.arange(21)[None]) % 4
    found = ngram.cross_entropies(windows, windows, 4)
    assert found["unigram"] == pytest.approx(math.log(4))
    # 80 pairs, 20 of each, discounted by the fallback 0.5: loses -log(1 - 3/8 / 20).
    assert found["bigram"] == pytest.approx(-math.log(1 - 0.375 / 20))


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
