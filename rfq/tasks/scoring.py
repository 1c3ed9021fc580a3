"""Log-likelihoods of continuations, in compiled steps of a few static shapes.

Texts are tokenized once. Each distinct input becomes one row; rows are sorted into at
most `NUM_LENGTHS` padded lengths, chosen for the least padding, and packed in groups of
a constant number of rows and of scored positions, one group a device. Every setting
then runs through the same programs.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rfq import sharding
from rfq.data.tokenize import Tokenizer
from rfq.model import transformer
from rfq.tasks.task import Request
from rfq.types import Array

# Padded lengths, and so shapes to compile a program for: with the plain and the
# quantized program of one placement, six compilations for all settings.
NUM_LENGTHS = 3

# Padded lengths are multiples of this share of the longest.
_LENGTH_SHARES = 16


class Rows(NamedTuple):
    """One call of a compiled step: G groups, one a share of the batch, of R rows each.

    Attributes:
        tokens: ids [G, R, T], padded on the right: later positions change nothing.
        positions: row * T + position of the input whose next token is scored, [G, P]; 0
            for padding.
        targets: that next token's id, [G, P].
    """

    tokens: Array
    positions: Array
    targets: Array


class Answers(NamedTuple):
    """The scores of all requests, [N] in their order.

    Attributes:
        loglikelihood: log-likelihood of the whole continuation, float64.
        is_greedy: whether greedy decoding would give it.
    """

    loglikelihood: np.ndarray
    is_greedy: np.ndarray


class Span(NamedTuple):
    """A tokenized request.

    Attributes:
        ids: bos, context and continuation.
        num_targets: the number of ids at the end that are scored, the continuation.
        moved: whether the context is tokenized otherwise when the continuation follows;
            the boundary is then where the context's own tokens end.
    """

    ids: np.ndarray
    num_targets: int
    moved: bool

    def is_windowed(self, seq_len: int) -> bool:
        """Whether the continuation alone is longer than a model's sequence.

        Its tokens are then scored in windows, each once.
        """
        return self.num_targets > seq_len

    def is_truncated(self, seq_len: int) -> bool:
        """Whether the beginning of the context is left out."""
        return len(self.ids) - 1 > seq_len and not self.is_windowed(seq_len)


def encode(requests: Sequence[Request], tokenizer: Tokenizer) -> list[Span]:
    """Tokenize (context, continuation) pairs as lm-evaluation-harness does.

    Spaces at the end of the context go to the continuation; context and both together
    are tokenized with bos in front, as documents were for training (D18); the
    continuation is what is longer. An empty context is bos alone.
    """
    contexts = [context.rstrip() for context, _ in requests]
    wholes = [context + continuation for context, continuation in requests]
    texts = list(dict.fromkeys(contexts + wholes))
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    bos = np.array([tokenizer.bos_id], np.int32)

    def span(context: str, whole: str) -> Span:
        before, both = ids[context], ids[whole]
        return Span(
            np.concatenate([bos, both]),
            max(len(both) - len(before), 0),
            not np.array_equal(both[: len(before)], before),
        )

    return list(map(span, contexts, wholes))


class _Part(NamedTuple):
    """Some targets of a request: where a row's input predicts them."""

    row: int
    start: int  # Position in the row whose next token is the first target.
    targets: np.ndarray


class _Place(NamedTuple):
    """The place of a part's scores in the results of the batches."""

    batch: int
    group: int
    positions: slice


class Plan(NamedTuple):
    """Requests laid out for a compiled step; made once, run under every setting.

    Attributes:
        batches: on the devices, the shorter lengths first.
        places: the places of each request's parts.
    """

    batches: list[Rows]
    places: list[list[_Place]]


def plan(spans: Sequence[Span], *, seq_len: int, batch_tokens: int, mesh: Mesh) -> Plan:
    """Lay requests out in batches of static shapes.

    The order of the rows does not depend on the order of the requests.

    Args:
        spans: tokenized requests.
        seq_len: longest input; a longer context keeps its end.
        batch_tokens: tokens of a batch, padding included; at least a row a device.
        mesh: the devices; each share of a batch is a group.
    """
    assert spans, "nothing is asked"
    rows, parts = _rows(spans, seq_len)
    asked: list[list[tuple[int, _Part]]] = [[] for _ in rows]
    for request, found in enumerate(parts):
        for part in found:
            asked[part.row].append((request, part))
    num_targets = [sum(len(part.targets) for _, part in found) for found in asked]
    num_groups = sharding.num_shares(mesh)

    batches: list[Rows] = []
    places: list[list[_Place]] = [[] for _ in spans]
    for length, mine in _by_length(rows, seq_len):
        rows_a_group = max(batch_tokens // num_groups // length, 1)
        counts = [num_targets[row] for row in mine]
        room = _room(counts, rows_a_group)
        groups = _packed(mine, counts, rows_a_group, room)
        for first in range(0, len(groups), num_groups):
            tokens = np.zeros((num_groups, rows_a_group, length), np.int32)
            positions, targets = np.zeros((2, num_groups, room), np.int32)
            for group, members in enumerate(groups[first : first + num_groups]):
                stop = 0
                for slot, row in enumerate(members):
                    tokens[group, slot, : len(rows[row])] = rows[row]
                    for request, part in asked[row]:
                        at = slice(stop, stop + len(part.targets))
                        stop = at.stop
                        start = slot * length + part.start
                        positions[group, at] = start + np.arange(len(part.targets))
                        targets[group, at] = part.targets
                        places[request].append(_Place(len(batches), group, at))
            batches.append(_placed((tokens, positions, targets), mesh))
    return Plan(batches, places)


def _rows(
    spans: Sequence[Span], seq_len: int
) -> tuple[list[np.ndarray], list[list[_Part]]]:
    """Return the distinct inputs, and each request's parts.

    A window ends with the last target that still fits and reaches back as far as it
    can, so that every target is scored once with as much before it as there is room.
    """
    index: dict[bytes, int] = {}
    rows: list[np.ndarray] = []
    parts: list[list[_Part]] = []
    for ids, num_targets, _ in spans:
        request_parts: list[_Part] = []
        done = len(ids) - num_targets
        while done < len(ids):
            stop = min(len(ids), done + seq_len)
            start = max(stop - 1 - seq_len, 0)
            inputs = ids[start : stop - 1]
            row = index.setdefault(inputs.tobytes(), len(rows))
            if row == len(rows):
                rows.append(inputs)
            request_parts.append(_Part(row, done - 1 - start, ids[done:stop]))
            done = stop
        parts.append(request_parts)
    return rows, parts


def _by_length(rows: Sequence[np.ndarray], seq_len: int) -> list[tuple[int, list[int]]]:
    """Choose padded lengths and the rows of each so that the tokens are fewest.

    A row is padded to the next of the lengths, which are multiples of a share of the
    longest sequence.
    """
    if not rows:
        return []
    unit = max(seq_len // _LENGTH_SHARES, 1)
    needed = np.array([-(-len(row) // unit) * unit for row in rows])
    *shorter, longest = np.unique(needed)
    ladders = [
        (*chosen, longest)
        for number in range(NUM_LENGTHS)
        for chosen in itertools.combinations(shorter, number)
    ]
    ladder = min(
        ladders,
        key=lambda lengths: np.sum(np.take(lengths, np.searchsorted(lengths, needed))),
    )
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i].tobytes()))
    chosen = np.take(ladder, np.searchsorted(ladder, needed))
    return [
        (int(length), [i for i in order if chosen[i] == length]) for length in ladder
    ]


def _room(counts: Sequence[int], rows_a_group: int) -> int:
    """Bound a group's scored positions: the mean's and a tenth; the longest row's."""
    room = max(math.ceil(1.1 * rows_a_group * float(np.mean(counts))), max(counts))
    return -(-room // transformer.HEAD_CHUNK) * transformer.HEAD_CHUNK


def _packed(
    rows: Sequence[int], counts: Sequence[int], rows_a_group: int, room: int
) -> list[list[int]]:
    """Fill one group after the other, in order."""
    groups: list[list[int]] = [[]]
    taken = 0
    for row, count in zip(rows, counts, strict=True):
        if len(groups[-1]) == rows_a_group or taken + count > room:
            groups.append([])
            taken = 0
        groups[-1].append(row)
        taken += count
    return groups


def _placed(arrays: Sequence[np.ndarray], mesh: Mesh) -> Rows:
    """Place this process's groups in arrays over all devices."""
    share = len(arrays[0]) // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    return Rows(*(sharding.to_global(leaf[mine], mesh) for leaf in arrays))


def answer(
    step: Callable[[Rows], tuple[Array, Array]],
    planned: Plan,
    progress: Callable[[int], None],
) -> Answers:
    """Run a compiled step over all batches and add up each request's tokens.

    Args:
        step: rows -> (log-probability of each target, whether it is the likeliest).
        planned: as `plan` laid out the requests.
        progress: is told after each batch how many are done.
    """
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    running: tuple[Array, Array] | None = None
    for done, batch in enumerate(planned.batches):
        following = step(batch)
        if running is not None:  # Read only once the next one is on its way.
            scored.append(jax.device_get(running))
        running = following
        progress(done)
    scored.append(jax.device_get(running))
    log_probs = [log_prob.astype(np.float64) for log_prob, _ in scored]
    return Answers(
        np.array(
            [
                sum(log_probs[p.batch][p.group, p.positions].sum() for p in places)
                for places in planned.places
            ],
            np.float64,
        ),
        np.array(
            [
                all(scored[p.batch][1][p.group, p.positions].all() for p in places)
                for places in planned.places
            ]
        ),
    )
