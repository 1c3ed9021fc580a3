"""Held-out sequences in whole batches, and averages over them."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rfq import sharding, taps
from rfq.data import manifest, pipeline
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.stats import bins
from rfq.types import Array, Batch, Record


def batches(
    experiment: Experiment,
    split: str,
    *,
    num_tokens: int,
    batch_size: int,
    mesh: Mesh,
    seed: int | None = None,
) -> list[Batch]:
    """Read sequences of a split as global batches of one static shape.

    At most `num_tokens` tokens and never more than the split has; a last partial batch
    is left out. The sequences are evenly spaced, or drawn without replacement where a
    seed is given. The arrays stay on the devices, because a sweep goes over them often.

    Returns:
        Token ids [batch_size, seq_len + 1] each, rows over the data axis.

    Raises:
        InputError: as `choose`.
    """
    sequences, chosen = choose(
        experiment, split, num_tokens=num_tokens, batch_size=batch_size, seed=seed
    )
    share = batch_size // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    return [sharding.to_global(sequences.read(row[mine]), mesh) for row in chosen]


def choose(
    experiment: Experiment,
    split: str,
    *,
    num_tokens: int,
    batch_size: int,
    seed: int | None = None,
) -> tuple[pipeline.Sequences, np.ndarray]:
    """Choose the sequences of a split that `batches` takes, without reading them.

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
        if len(sequences) < batch_size:
            made = manifest.load(experiment.data.dir)
            larger = manifest.larger_fractions(made, [split], batch_size * seq_len)
            advice = f"prepare the data again with {larger or 'more text'}"
        else:
            advice = f"ask for {batch_size * seq_len:,} tokens or more"
        raise InputError(
            f"split {split!r} of {experiment.data.dir!r} has {len(sequences)} "
            f"sequences of {seq_len} tokens and {num_tokens // seq_len} are asked for, "
            f"fewer than one batch of {batch_size}; {advice}, or lower "
            "log.measure_sequences or quantize.batch_size"
        )
    total = num_batches * batch_size
    if seed is None:
        chosen = np.arange(total) * len(sequences) // total
    else:
        chosen = np.random.default_rng(seed).permutation(len(sequences))[:total]
    return sequences, chosen.reshape(num_batches, batch_size)


def num_tokens(batch_list: list[Batch]) -> int:
    """Count the predicted tokens in a list of batches."""
    return sum(batch.shape[0] * (batch.shape[1] - 1) for batch in batch_list)


def losses(score: Callable[[Batch], Array], batch_list: Iterable[Batch]) -> np.ndarray:
    """Compute the mean loss of every sequence, float64, in order.

    All batches are dispatched before the first number is read.
    """
    scored = jax.device_get([score(batch) for batch in batch_list])
    return np.concatenate(scored).astype(np.float64)


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """Turn nats per token into bits per byte of text: loss / ln 2 * tokens / bytes."""
    return loss / math.log(2.0) * tokens_per_byte


def merge(records: Iterable[Mapping[str, Record]]) -> dict[str, Record]:
    """Merge {site: {statistic: record}} over batches, in float64 on the host."""
    return {site: taps.merged(found) for site, found in taps.by_site(records).items()}


def describe(record: Mapping[str, Record]) -> dict[str, list[float]]:
    """Return what the merged statistics of one site say of each layer, for JSON."""
    return as_lists(taps.numbers(record))


# Fine bins that make one of a stored histogram: 0.14 of a scale wide at the center.
_BINS_PER_BIN = 16


def histograms(
    records: Mapping[str, Record],
) -> tuple[list[float], dict[str, dict[str, list]]]:
    """Return coarse histograms of sites with a "histogram" record, for JSON.

    Returns:
        The edges of (x - center) / scale around the bins that any site occupies, and
        per site the counts, center and scale of each layer.
    """
    by_site = {site: record["histogram"].histogram for site, record in records.items()}
    counts = {
        site: np.atleast_2d(h.counts)
        .astype(np.int64)
        .reshape(-1, bins.NUM_BINS // _BINS_PER_BIN, _BINS_PER_BIN)
        .sum(axis=-1)
        for site, h in by_site.items()
    }
    occupied = np.flatnonzero(sum(c.sum(axis=0) for c in counts.values()))
    shown = slice(occupied[0], occupied[-1] + 1)
    edges = bins.edges()[::_BINS_PER_BIN][shown.start : shown.stop + 1]
    return edges.tolist(), {
        site: {
            "counts": counts[site][:, shown].tolist(),
            **as_lists(h.binning._asdict()),
        }
        for site, h in by_site.items()
    }


def statistics(
    records: Mapping[str, Record], weights: Mapping[str, Any], num_tokens: int
) -> dict[str, Any]:
    """Return all that was measured of a model, per site and layer, for JSON.

    Counts are over (x - center) / scale, with a center and a scale of each layer.

    Args:
        records: of sites, each with a "histogram".
        weights: {matrix: {statistic: one number a layer}}.
        num_tokens: that were seen.
    """
    edges, counts = histograms(records)
    return {
        "unit": "(x - center) / scale",
        "num_tokens": num_tokens,
        "edges": edges,
        "sites": {
            site: {**counts[site], **describe(record)}
            for site, record in records.items()
        },
        "weights": {name: as_lists(numbers) for name, numbers in weights.items()},
    }


def as_lists(numbers: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Return a list for each name, of one number a layer."""
    return {
        name: np.atleast_1d(np.asarray(value, np.float64)).tolist()
        for name, value in numbers.items()
    }
