"""Time programs in turn, so that other work of the machine slows all of them alike.

Ratios are taken within a turn.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rfq import experiment as experiment_lib
from rfq import metrics, provenance
from rfq.experiment import Experiment

Row = dict[str, Any]

# Calls before the clock runs: optimizers treat the first gradient in its own way.
_WARM_UP = 2


def repeated(call: Callable[[Any], Any], state: Any) -> Iterator[None]:
    """Advance a state by one call at each `next`, and wait for the result."""
    while True:
        state = jax.block_until_ready(call(state))
        yield


def in_turn(
    calls: Mapping[str, Iterator[None]], num_rounds: int, title: str
) -> dict[str, np.ndarray]:
    """Time each call once per round after a warm-up: seconds [num_rounds] of each."""
    seconds = {name: np.zeros(num_rounds) for name in calls}
    with metrics.progress(title, num_rounds) as bar:
        for turn in range(-_WARM_UP, num_rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                next(call)
                if turn >= 0:
                    seconds[name][turn] = time.perf_counter() - start
            bar.update(max(turn, 0) + 1)
    return seconds


def random_tokens(experiment: Experiment, batch_size: int) -> np.ndarray:
    """Draw this process's rows of a batch."""
    num_rows = batch_size // jax.process_count()
    return np.random.default_rng(experiment.seed).integers(
        experiment.model.vocab_size,
        size=(num_rows, experiment.model.seq_len + 1),
        dtype=np.int32,
    )


def described(experiment: Experiment, bench: str) -> Row:
    """Return what every row of a measurement says of itself."""
    return {
        "bench": bench,
        "arm": experiment.arm,
        "config_fingerprint": experiment_lib.fingerprint(experiment),
        **provenance.described(),
    }
