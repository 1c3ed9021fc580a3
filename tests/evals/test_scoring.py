"""Laying requests out changes no number: alone, together, on one device or eight."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from rfq import evals, sharding, steps
from rfq.data import tokenize
from rfq.evals import scoring
from rfq.model import transformer
from rfq.model.config import ModelConfig
from tests import tiny
from tests.evals.documents import DOCUMENTS

SEQ_LEN = 64
TOKENIZER = tokenize.load("byte")
EXPERIMENT = tiny.experiment(
    "unused",
    model=ModelConfig(
        num_layers=2,
        width=16,
        num_heads=2,
        vocab_size=259,
        seq_len=SEQ_LEN,
        skip="residual",
        compute_dtype="float32",
        remat=False,
        loss_chunks=1,
    ),
)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda leaf: RNG.normal(0.0, 0.4, leaf.shape).astype(np.float32),
    transformer.shapes(EXPERIMENT.model),
)

REQUESTS = [
    pair
    for task in ("openbookqa", "winogrande", "boolq")
    for pairs in evals.build_requests(task, DOCUMENTS[task][:12])
    for pair in pairs
]


ONE = sharding.make_mesh(1)


@functools.cache
def compiled(mesh: Mesh) -> steps.QuantSteps:
    return steps.compile_quant(EXPERIMENT, mesh, "paper")


def laid_out(
    spans: list[scoring.Span], mesh: Mesh = ONE, batch_tokens: int = 512
) -> scoring.Plan:
    return scoring.plan(spans, seq_len=SEQ_LEN, batch_tokens=batch_tokens, mesh=mesh)


def answered(
    spans: list[scoring.Span], mesh: Mesh = ONE, batch_tokens: int = 512
) -> scoring.Answers:
    step = compiled(mesh).answer.plain
    params = jax.device_put(PARAMS, sharding.params_shardings(mesh, PARAMS))
    planned = laid_out(spans, mesh, batch_tokens)
    return scoring.answer(lambda rows: step(params, rows), planned, lambda done: None)


@pytest.fixture(scope="module")
def spans() -> list[scoring.Span]:
    return scoring.encode(REQUESTS, TOKENIZER)


@pytest.fixture(scope="module")
def together(spans) -> scoring.Answers:
    return answered(spans)


@jax.jit
def all_log_probs(params: dict, tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(transformer.apply(params, tokens, EXPERIMENT.model)[0])


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
        alone = answered([spans[number]])
        np.testing.assert_allclose(
            alone.loglikelihood[0], together.loglikelihood[number], atol=1e-3
        )
    shuffled = np.random.default_rng(1).permutation(len(spans))
    other = answered([spans[i] for i in shuffled], batch_tokens=192)
    np.testing.assert_allclose(
        other.loglikelihood, together.loglikelihood[shuffled], atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_eight_devices_score_as_one_does(spans, together, strategy):
    mesh = sharding.make_mesh(8, sharding.ShardingConfig(strategy=strategy))
    spread = answered(spans, mesh)
    np.testing.assert_allclose(spread.loglikelihood, together.loglikelihood, atol=1e-3)
    np.testing.assert_array_equal(spread.is_greedy, together.is_greedy)


def test_shapes_are_few_whatever_the_order_of_the_requests(spans):
    planned = laid_out(spans)
    shapes = {tuple(leaf.shape for leaf in batch) for batch in planned.batches}
    assert len(shapes) == len(planned.lengths) <= scoring.NUM_LENGTHS
    assert max(planned.lengths) <= SEQ_LEN
    backwards = laid_out(spans[::-1])
    for batch, other in zip(planned.batches, backwards.batches, strict=True):
        np.testing.assert_array_equal(batch.tokens, other.tokens)


def test_lengths_waste_less_than_one_length_would(spans):
    planned = laid_out(spans)
    rows = planned.num_tokens - planned.num_padded
    assert rows < planned.num_tokens < planned.num_rows * SEQ_LEN


def test_choices_of_one_token_share_their_row():
    encoded = scoring.encode([("a b", "x"), ("a b", "y"), ("a b", "xy")], TOKENIZER)
    planned = laid_out(encoded)
    assert planned.num_rows == 2  # "a b" and "a bx".
    apart = [by_hand(span)[0] for span in encoded]
    np.testing.assert_allclose(answered(encoded).loglikelihood, apart, atol=1e-4)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    (span,) = scoring.encode([("word  ", "next")], TOKENIZER)
    assert TOKENIZER.decode(span.ids[-span.num_targets :]) == "  next"


def test_an_empty_context_is_bos_alone():
    (span,) = scoring.encode([("", " next")], TOKENIZER)
    assert span.ids[0] == TOKENIZER.bos_id
    assert span.num_targets == len(span.ids) - 1 == 5


def test_an_empty_continuation_is_certain():
    found = answered(scoring.encode([("word", ""), ("word", " x")], TOKENIZER))
    assert found.loglikelihood[0] == 0.0
    assert found.is_greedy[0]


def test_of_a_long_context_the_end_is_kept_and_it_is_counted():
    (long,) = scoring.encode([("c" * 700, " end")], TOKENIZER)
    assert long.is_truncated(SEQ_LEN)
    assert not long.is_windowed(SEQ_LEN)
    cut = scoring.Span(long.ids[-SEQ_LEN - 1 :], long.num_targets, False)
    assert not cut.is_truncated(SEQ_LEN)
    found = answered([long, cut])
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
    found = answered([span]).loglikelihood[0]
    np.testing.assert_allclose(found, sum(windows), atol=5e-3)


def test_a_moved_boundary_is_counted_and_cut_by_length():
    tokenizer = tokenize.load("embedded")
    (span,) = scoring.encode([("govern", "ment")], tokenizer)
    whole, before = tokenizer.encode("government"), tokenizer.encode("govern")
    assert span.num_targets == max(len(whole) - len(before), 0)
    assert span.moved == (not np.array_equal(whole[: len(before)], before))
