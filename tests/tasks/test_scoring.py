"""Laying requests out changes no number: alone, together, on one device or eight."""

import itertools

import jax
import numpy as np
import pytest

from rfq import sharding, tasks
from rfq.data import benchmarks, tokenize
from rfq.model import transformer
from rfq.model.config import TAP_SETS
from rfq.quant import calibrate
from rfq.quant.spec import QuantSpec
from rfq.tasks import commonsense, scoring
from tests import tiny
from tests.tasks import scored
from tests.tasks.scored import ASKED, MODEL, PARAMS, SEQ_LEN, TOKENIZER

ONE = sharding.make_mesh(1)


def laid_out(spans: list[scoring.Span]) -> scoring.Plan:
    return scoring.plan(spans, seq_len=SEQ_LEN, batch_tokens=512, mesh=ONE)


def lengths(planned: scoring.Plan) -> set[int]:
    """The padded lengths that occur."""
    return {batch.tokens.shape[2] for batch in planned.batches}


def num_rows(planned: scoring.Plan) -> int:
    """Distinct inputs: rows of which not all is padding."""
    return sum(np.any(batch.tokens, axis=2).sum() for batch in planned.batches)


@pytest.fixture(scope="module")
def spans() -> list[scoring.Span]:
    return scored.encoded(ASKED)


@pytest.fixture(scope="module")
def together(spans) -> scoring.Answers:
    return scored.answered(spans, ONE)


@jax.jit
def all_log_probs(params: dict, tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(transformer.apply(params, tokens, MODEL)[0])


def by_hand(span: scoring.Span) -> tuple[float, bool]:
    """Sum over the continuation of one uncut request, from all logits."""
    padded = np.zeros((1, SEQ_LEN), np.int32)
    padded[0, : len(span.ids) - 1] = span.ids[:-1]
    log_probs = np.asarray(all_log_probs(PARAMS, padded))[0]
    places = np.arange(len(span.ids) - 1)[len(span.ids) - 1 - span.num_targets :]
    picked = log_probs[places, span.ids[places + 1]]
    greedy = log_probs[places].argmax(-1) == span.ids[places + 1]
    return float(picked.sum()), bool(greedy.all())


def test_log_likelihoods_are_the_models(spans, together):
    whole = [i for i, s in enumerate(spans) if len(s.ids) <= SEQ_LEN + 1][::7]
    assert len(whole) >= 5
    for i in whole:
        expected, greedy = by_hand(spans[i])
        # Sums of at most 64 float32 numbers of size 10.
        np.testing.assert_allclose(together.loglikelihood[i], expected, atol=1e-3)
        assert together.is_greedy[i] == greedy


def test_a_request_alone_in_a_batch_or_another_length_scores_the_same(spans, together):
    for number in (3, 70):
        alone = scored.answered([spans[number]], ONE)
        np.testing.assert_allclose(
            alone.loglikelihood[0], together.loglikelihood[number], atol=1e-3
        )
    shuffled = np.random.default_rng(1).permutation(len(spans))
    found = scored.answered([spans[i] for i in shuffled], ONE, batch_tokens=192)
    other = found.loglikelihood[np.argsort(shuffled)]
    np.testing.assert_allclose(other, together.loglikelihood, atol=1e-3)
    assert scored.num_flips(ASKED, other, together.loglikelihood) == 0


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_eight_devices_score_as_one_does(spans, together, strategy):
    mesh = sharding.make_mesh(8, sharding.ShardingConfig(strategy=strategy))
    spread = scored.answered(spans, mesh)
    np.testing.assert_allclose(spread.loglikelihood, together.loglikelihood, atol=1e-3)
    np.testing.assert_array_equal(spread.is_greedy, together.is_greedy)
    assert scored.num_flips(ASKED, spread.loglikelihood, together.loglikelihood) == 0


@pytest.mark.slow
@pytest.mark.mesh
def test_published_documents_score_the_same_however_they_lie(tasks_dir, monkeypatch):
    """25 documents of each set, in a sequence that holds all but the longest."""
    asked = []
    for task in commonsense.TASKS:
        documents = benchmarks.load(tasks_dir, task).documents
        asked += tasks.build_requests(task, documents[:: len(documents) // 25][:25])
    spans = scored.encoded(asked)
    how = {"batch_tokens": 4096, "seq_len": 512}
    expected = scored.answered(spans, ONE, **how).loglikelihood
    found = {"8 devices": scored.answered(spans, sharding.make_mesh(8), **how)}
    few = range(0, len(spans), len(spans) // 8)
    alone = [scored.answered([spans[i]], ONE, **how).loglikelihood[0] for i in few]
    monkeypatch.setattr(scoring, "NUM_LENGTHS", 1)
    found["one length"] = scored.answered(spans, ONE, **how)
    # Sums of at most 512 float32 numbers of size 10: 1e-3 is the promise.
    np.testing.assert_allclose(alone, expected[few], rtol=0, atol=1e-3)
    for name, other in found.items():
        np.testing.assert_allclose(
            other.loglikelihood, expected, rtol=0, atol=1e-3, err_msg=name
        )
        assert scored.num_flips(asked, other.loglikelihood, expected) == 0, name


# Tokens of context and continuation in the eight published sets under the embedded
# tokenizer: the least, the quintiles and the most of each.
LENGTHS = {
    "arc_c": ([26, 46, 59, 85, 112, 316], [2, 7, 12, 17, 24, 74]),
    "arc_e": ([27, 43, 53, 71, 99, 255], [2, 6, 8, 12, 19, 46]),
    "boolq": ([57, 207, 280, 351, 455, 2726], [1, 1, 1, 2, 2, 2]),
    "hellaswag": ([24, 74, 115, 139, 162, 256], [5, 33, 64, 83, 102, 215]),
    "openbookqa": ([4, 16, 21, 27, 37, 132], [1, 4, 7, 11, 15, 62]),
    "piqa": ([14, 26, 31, 35, 41, 83], [4, 18, 28, 45, 78, 566]),
    "social_iqa": ([33, 56, 61, 66, 73, 147], [2, 6, 8, 11, 15, 83]),
    "winogrande": ([3, 37, 41, 46, 52, 83], [2, 8, 10, 14, 18, 59]),
}


@pytest.mark.slow
def test_19_settings_need_six_programs_at_the_lengths_of_the_published_sets():
    rng = np.random.default_rng(0)
    spans = [
        scoring.Span(
            rng.integers(0, 256, 1 + context + num_targets, np.int32),
            num_targets,
            False,
        )
        for contexts, targets in LENGTHS.values()
        for context, num_targets in itertools.product(contexts, targets[::2])
    ]
    planned = scoring.plan(spans, seq_len=512, batch_tokens=4096, mesh=ONE)
    assert len(lengths(planned)) == scoring.NUM_LENGTHS
    programs = scored.compiled(ONE, 512).answer
    ranges = {site: (np.full(2, -9.0), np.full(2, 9.0)) for site in TAP_SETS["paper"]}
    params = scored.placed(ONE)
    with tiny.compilations() as names:
        for spec in map(QuantSpec.parse, tiny.PAPER_SPECS):

            def step(rows, act_bits=spec.act_bits):
                if act_bits is None:
                    return programs.plain(params, rows)
                targets = calibrate.grids(ranges, act_bits)
                return programs.quantized["branch"](params, rows, targets)

            scoring.answer(step, planned, lambda done: None)
    assert sum("answer" in name for name in names) == 6


def test_shapes_are_few_whatever_the_order_of_the_requests(spans):
    planned = laid_out(spans)
    shapes = {tuple(leaf.shape for leaf in batch) for batch in planned.batches}
    assert len(shapes) == len(lengths(planned)) <= scoring.NUM_LENGTHS
    assert max(lengths(planned)) <= SEQ_LEN
    backwards = laid_out(spans[::-1])
    for batch, other in zip(planned.batches, backwards.batches, strict=True):
        np.testing.assert_array_equal(batch.tokens, other.tokens)


def test_lengths_waste_less_than_one_length_would(spans):
    planned = laid_out(spans)
    num_tokens = sum(batch.tokens.size for batch in planned.batches)
    assert num_tokens < num_rows(planned) * SEQ_LEN


def test_choices_of_one_token_share_their_row():
    encoded = scoring.encode([("a b", "x"), ("a b", "y"), ("a b", "xy")], TOKENIZER)
    planned = laid_out(encoded)
    assert num_rows(planned) == 2  # "a b" and "a bx".
    apart = [by_hand(span)[0] for span in encoded]
    np.testing.assert_allclose(
        scored.answered(encoded, ONE).loglikelihood, apart, atol=1e-4
    )


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    (span,) = scoring.encode([("word  ", "next")], TOKENIZER)
    assert TOKENIZER.decode(span.ids[-span.num_targets :]) == "  next"


def test_an_empty_context_is_bos_alone():
    (span,) = scoring.encode([("", " next")], TOKENIZER)
    assert span.ids[0] == TOKENIZER.bos_id
    assert span.num_targets == len(span.ids) - 1 == 5


def test_an_empty_continuation_is_certain():
    found = scored.answered(
        scoring.encode([("word", ""), ("word", " x")], TOKENIZER), ONE
    )
    assert found.loglikelihood[0] == 0.0
    assert found.is_greedy[0]


def test_of_a_long_context_the_end_is_kept_and_it_is_counted():
    (long,) = scoring.encode([("c" * 700, " end")], TOKENIZER)
    assert long.is_truncated(SEQ_LEN)
    assert not long.is_windowed(SEQ_LEN)
    cut = scoring.Span(long.ids[-SEQ_LEN - 1 :], long.num_targets, False)
    assert not cut.is_truncated(SEQ_LEN)
    found = scored.answered([long, cut], ONE)
    assert found.loglikelihood[0] == found.loglikelihood[1]


def test_a_long_continuation_is_scored_in_windows_each_token_once():
    text = "the quick brown fox jumps over the lazy dog; " * 5
    (span,) = scoring.encode([("", text)], TOKENIZER)
    assert span.is_windowed(SEQ_LEN)
    windows = []
    for stop in range(SEQ_LEN, len(text) + SEQ_LEN, SEQ_LEN):
        stop = min(stop, len(text))  # As the harness cuts: the last one reaches back.
        ids = span.ids[max(stop - SEQ_LEN, 0) : stop + 1]
        fresh = stop - SEQ_LEN * ((stop - 1) // SEQ_LEN)
        windows.append(by_hand(scoring.Span(ids, fresh, False))[0])
    found = scored.answered([span], ONE).loglikelihood[0]
    np.testing.assert_allclose(found, sum(windows), atol=5e-3)


def test_a_moved_boundary_is_counted_and_cut_by_length():
    tokenizer = tokenize.load("embedded")
    (span,) = scoring.encode([("govern", "ment")], tokenizer)
    whole, before = tokenizer.encode("government"), tokenizer.encode("govern")
    assert span.num_targets == max(len(whole) - len(before), 0)
    assert span.moved == (not np.array_equal(whole[: len(before)], before))
