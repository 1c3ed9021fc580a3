"""What the four demo arms share: a small decoder on real English, minutes on two cores.

Sizes and rates follow `rfq/DECISIONS.md` D30; the arms beside this file name only what
differs.
"""

from rfq.experiment import (
    Experiment,
    LogConfig,
    QuantizeConfig,
    TrainConfig,
)
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig


def config() -> Experiment:
    """A residual decoder under AdamW; every arm replaces some of it."""
    return Experiment(
        arm="demo_base",
        model=ModelConfig(
            num_layers=6,
            width=64,
            num_heads=2,
            vocab_size=512,
            seq_len=64,
            skip="residual",
            beta=1.0,
            compute_dtype="float32",
            remat="none",
            scan_unroll=6,
            loss_chunks=1,
        ),
        init=InitConfig(recipe="gpt2"),
        optimizer=AdamWConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=60),
        train=TrainConfig(num_steps=600, batch_size=16),
        log=LogConfig(
            log_every=10, measure_every=100, measure_sequences=64, checkpoint_every=200
        ),
        quantize=QuantizeConfig(
            specs=(
                "FP",
                *(f"W8A{bits}" for bits in (16, 12, 10, 8, 6, 4)),
                *(f"A{bits}" for bits in (8, 6, 4)),
            ),
            calibration_tokens=32_768,
            eval_tokens=32_768,
            batch_size=64,
        ),
    )
