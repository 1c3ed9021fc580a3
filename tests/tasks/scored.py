"""A model with drawn parameters that scores requests, for tests of how they lie."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from rfq import sharding, steps, tasks
from rfq.data import tokenize
from rfq.experiment import Experiment
from rfq.model import transformer
from rfq.tasks import scoring
from tests import tiny
from tests.tasks.documents import DOCUMENTS

SEQ_LEN = 64
TOKENIZER = tokenize.load("byte")
MODEL = dataclasses.replace(tiny.MODEL, seq_len=SEQ_LEN)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda leaf: RNG.normal(0.0, 0.4, leaf.shape).astype(np.float32),
    transformer.shapes(MODEL),
)

# Of each document, its (context, continuation) pairs.
ASKED = [
    pairs
    for task in ("openbookqa", "winogrande", "boolq")
    for pairs in tasks.build_requests(task, DOCUMENTS[task][:12])
]


def encoded(asked: list[list[tuple[str, str]]]) -> list[scoring.Span]:
    """The requests of all documents, in order."""
    return scoring.encode([pair for pairs in asked for pair in pairs], TOKENIZER)


@functools.cache
def experiment(seq_len: int) -> Experiment:
    return tiny.experiment("unused", model=dataclasses.replace(MODEL, seq_len=seq_len))


@functools.cache
def compiled(mesh: Mesh, seq_len: int) -> steps.QuantSteps:
    return steps.compile_quant(experiment(seq_len), mesh, "paper")


@functools.cache
def placed(mesh: Mesh) -> dict:
    return jax.device_put(PARAMS, sharding.params_shardings(mesh, PARAMS))


def answered(
    spans: list[scoring.Span],
    mesh: Mesh,
    batch_tokens: int = 512,
    seq_len: int = SEQ_LEN,
) -> scoring.Answers:
    """Log-likelihoods in full precision."""
    planned = scoring.plan(spans, seq_len=seq_len, batch_tokens=batch_tokens, mesh=mesh)
    step = functools.partial(compiled(mesh, seq_len).answer.plain, placed(mesh))
    return scoring.answer(step, planned, lambda done: None)


def num_flips(
    asked: list[list[tuple[str, str]]], one: np.ndarray, other: np.ndarray
) -> int:
    """Documents whose likeliest choice differs between two sets of answers."""
    ends = np.cumsum([len(pairs) for pairs in asked])[:-1]
    best = [
        [int(np.argmax(found)) for found in np.split(answers, ends)]
        for answers in (one, other)
    ]
    return int(np.sum(np.not_equal(*best)))
