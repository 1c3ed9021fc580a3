"""What the wide arms share: the deep decoder with twice the width, context and batch.

12 layers of width 128 with 4 heads on sequences of 128 tokens, 5,000 steps of 4,096
tokens: a run of hours on two cores, or of minutes on one GPU. It is where activations
of residual AdamW have room to grow tails. The embedded corpus has 5.5 million training
tokens, so a run reads it almost four times.
Rates are those of `configs/deep`, but AdamW's, which is halved as the width doubles;
none of them is tuned for this size.
"""

import dataclasses
import pathlib

from rfq import experiment


def config() -> experiment.Experiment:
    """The deep base, wider, longer and on longer sequences."""
    base = experiment.load(pathlib.Path(__file__).parent / "deep_base.py")
    return dataclasses.replace(
        base,
        arm="wide_base",
        model=dataclasses.replace(base.model, width=128, num_heads=4, seq_len=128),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=5e-3),
        schedule=dataclasses.replace(base.schedule, warmup_steps=250),
        train=dataclasses.replace(base.train, num_steps=5_000, batch_size=32),
        log=dataclasses.replace(base.log, measure_every=500, checkpoint_every=500),
    )
