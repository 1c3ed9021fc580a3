"""Learning-rate schedules: warm up from zero, then cosine, linear, constant or WSD."""

import dataclasses
from typing import Literal

import optax

from rfq.errors import InputError

KINDS = ("cosine", "constant", "linear", "wsd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shape of the learning rate over a run; the peak belongs to the optimizer.

    Attributes:
        kind: what follows the warm-up. "wsd" (warm-up, stable, decay; Hu et al., arXiv
            2404.06395) stays at the peak and falls linearly over the last decay_share.
        warmup_steps: calls over which the rate rises linearly from 0 to its peak.
        final_fraction: last rate over peak rate, for all kinds but "constant".
        decay_share: share of the whole run over which "wsd" decays.
    """

    kind: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    warmup_steps: int = 2_000
    final_fraction: float = 0.1
    decay_share: float = 0.2

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(
                f"schedule.kind={self.kind!r} is unknown; choose from {sorted(KINDS)}"
            )
        if self.warmup_steps < 0:
            raise InputError(
                f"schedule.warmup_steps={self.warmup_steps} must be >= 0 "
                "(0 starts at the peak rate)"
            )
        if not 0.0 <= self.final_fraction <= 1.0:
            raise InputError(
                f"schedule.final_fraction={self.final_fraction} must be in [0, 1]"
            )
        if not 0.0 < self.decay_share <= 1.0:
            raise InputError(
                f"schedule.decay_share={self.decay_share} must be in (0, 1], a share "
                "of the run"
            )


def make(config: ScheduleConfig, peak: float, num_steps: int) -> optax.Schedule:
    """Build the map from call index (0-based) to learning rate.

    rate(0) = 0 when there is a warm-up, rate(warmup_steps) = peak and
    rate(num_steps) = final_fraction * peak. Every call of the optimizer counts, also
    the first one of KL-Shampoo and SOAP, which changes no parameter.

    Raises:
        InputError: the warm-up does not fit into the run.
    """
    if config.warmup_steps >= num_steps:
        raise InputError(
            f"schedule.warmup_steps={config.warmup_steps} must be smaller than the "
            f"number of steps, {num_steps}; shorten the warm-up or train longer"
        )
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    num_decay = num_steps - config.warmup_steps
    # "wsd" decays at least one step, and not before the warm-up is over.
    num_last = min(num_decay, max(1, round(config.decay_share * num_steps)))
    end = peak * config.final_fraction
    decays = {
        "cosine": optax.cosine_decay_schedule(peak, num_decay, config.final_fraction),
        "linear": optax.linear_schedule(peak, end, num_decay),
        "constant": optax.constant_schedule(peak),
        "wsd": optax.linear_schedule(peak, end, num_last, num_decay - num_last),
    }
    return optax.join_schedules([warmup, decays[config.kind]], [config.warmup_steps])
