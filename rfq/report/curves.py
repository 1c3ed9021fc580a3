"""Curves of a run over training: when each number was logged, and what it was then."""

import statistics
from collections.abc import Sequence

from rfq.report import load
from rfq.report.load import Run


def train_seconds(run: Run) -> list[float | None]:
    """Seconds of training at each record of metrics.jsonl.

    The field `seconds` where it is; else the tokens between records over
    tokens_per_second; else None.
    """
    direct = [load.number(record, "seconds") for record in run.metrics]
    if all(value is not None for value in direct):
        return direct
    per_step = tokens_per_step(run)
    elapsed, last_step, found = 0.0, 0.0, []
    for record in run.metrics:
        step = load.number(record, "step")
        speed = load.number(record, "tokens_per_second")
        if per_step is None or step is None or not speed:
            return [None] * len(run.metrics)
        elapsed += (step - last_step) * per_step / speed
        last_step = step
        found.append(elapsed)
    return found


def tokens_per_step(run: Run) -> float | None:
    """Tokens of one global batch, from measures.jsonl or the config."""
    for record in run.measures:
        step, tokens = load.number(record, "step"), load.number(record, "tokens_seen")
        if step and tokens:
            return tokens / step
    experiment = load.child(run.config, "experiment")
    for section in ("train", "data", "model"):
        batch = load.number(load.child(experiment, section), "batch_size")
        if batch is None:
            continue
        for other in ("train", "data", "model"):
            length = load.number(load.child(experiment, other), "seq_len")
            if length is not None:
                return batch * length
    return None


def smooth(values: Sequence[float], window_fraction: float = 0.04) -> list[float]:
    """A trailing mean over a fixed fraction of the records."""
    width = max(1, round(window_fraction * len(values)))
    return [
        statistics.fmean(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]


def loss_at(run: Run, *, at: str, limit: float) -> float | None:
    """Smoothed training loss of the last record at or before a step or a second.

    Args:
        run: whose.
        at: "step" or "seconds".
        limit: in that unit.
    """
    if at == "step":
        places = [load.number(record, "step") for record in run.metrics]
    else:
        places = train_seconds(run)
    losses = [load.number(record, "loss") for record in run.metrics]
    kept = [
        (place, loss)
        for place, loss in zip(places, losses, strict=True)
        if place is not None and loss is not None
    ]
    reached = sum(place <= limit for place, _ in kept)
    return smooth([loss for _, loss in kept])[reached - 1] if reached else None


def ends(run: Run) -> tuple[float | None, float | None]:
    """The last step and the seconds at it."""
    if not run.metrics:
        return None, None
    return load.number(run.metrics[-1], "step"), train_seconds(run)[-1]


def steps_per_second(run: Run) -> float | None:
    """Median over the logged steps, so that compilation does not count."""
    per_step = tokens_per_step(run)
    speeds = [load.number(record, "tokens_per_second") for record in run.metrics]
    known = [speed for speed in speeds if speed is not None]
    return statistics.median(known) / per_step if known and per_step else None
