"""Held-out sequences in whole batches, and what is averaged over them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rfq import sharding
from rfq.data import pipeline
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.stats import moments
from rfq.types import Array, Batch


def batches(
    experiment: Experiment, split: str, *, num_tokens: int, batch_size: int, mesh: Mesh
) -> list[Batch]:
    """Evenly spaced sequences of a split as global batches of one static shape.

    At most `num_tokens` tokens and never more than the split has; a last partial batch
    is left out. The arrays stay on the devices, because a sweep goes over them often.

    Returns:
        Token ids [batch_size, seq_len + 1] each, rows over the data axis.

    Raises:
        InputError: as `choose`.
    """
    sequences, chosen = choose(
        experiment, split, num_tokens=num_tokens, batch_size=batch_size
    )
    share = batch_size // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    return [sharding.to_global(sequences.read(row[mine]), mesh) for row in chosen]


def choose(
    experiment: Experiment, split: str, *, num_tokens: int, batch_size: int
) -> tuple[pipeline.Sequences, np.ndarray]:
    """Which sequences of a split `batches` takes, without reading them.

    Returns:
        The split's sequences and indices into them [num_batches, batch_size].

    Raises:
        InputError: the split does not fill one batch.
    """
    seq_len = experiment.model.seq_len
    sequences = pipeline.open_split(experiment.data.dir, split, seq_len)
    wanted = min(num_tokens // seq_len, len(sequences))
    num_batches = wanted // batch_size
    if num_batches == 0:
        raise InputError(
            f"split {split!r} of {experiment.data.dir!r} has {len(sequences)} "
            f"sequences of {seq_len} tokens and {num_tokens // seq_len} are asked for, "
            f"fewer than one batch of {batch_size}; lower log.measure_sequences or "
            "quantize.batch_size, or prepare more text"
        )
    total = num_batches * batch_size
    chosen = np.arange(total) * len(sequences) // total
    return sequences, chosen.reshape(num_batches, batch_size)


def num_tokens(batch_list: list[Batch]) -> int:
    """Predicted tokens in a list of batches."""
    return sum(batch.shape[0] * (batch.shape[1] - 1) for batch in batch_list)


def losses(score: Callable[[Batch], Array], batch_list: Iterable[Batch]) -> np.ndarray:
    """Mean loss of every sequence, float64, in order.

    All batches are dispatched before the first number is read.
    """
    scored = jax.device_get([score(batch) for batch in batch_list])
    return np.concatenate(scored).astype(np.float64)


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """Nats per token -> bits per byte of text: loss / ln 2 * tokens / bytes."""
    return loss / math.log(2.0) * tokens_per_byte


def merge_moments(
    records: Iterable[dict[str, dict[str, moments.Moments]]],
) -> dict[str, moments.Moments]:
    """Merges the `moments` of each site over batches, in float64 on the host."""
    merged: dict[str, moments.Moments] = {}
    for record in records:
        for site, statistics in record.items():
            fresh = moments.to_float64(statistics["moments"])
            merged[site] = (
                moments.merge(merged[site], fresh) if site in merged else fresh
            )
    return merged


def describe(m: moments.Moments) -> dict[str, Any]:
    """Per-layer numbers of one site as lists, for JSON."""
    numbers = {
        "excess_kurtosis": moments.excess_kurtosis(m),
        "rms": np.sqrt(m.m2 / m.count + m.mean**2),
        "mean": m.mean,
    }
    return {name: np.atleast_1d(value).tolist() for name, value in numbers.items()}
