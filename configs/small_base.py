"""What the small arms share: a decoder of 54 M parameters, one GPU for an hour or so.

12 layers of width 512 on 655 M tokens of what `paper_base.py` trains on; 2.3e17 FLOPs a
run without the optimizer's, a seventieth of the paper's 1.6e19. Depth 12 is where
attention temperature and initialization begin to decide (`rfq/DECISIONS.md` D20, D21).
Rates are the paper's, not tuned for this size.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.experiment import LogConfig, TrainConfig
from rfq.optim.schedule import ScheduleConfig


def config() -> experiment.Experiment:
    """The paper's base, smaller and shorter."""
    base = experiment.load(pathlib.Path(__file__).parent / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="small_base",
        model=dataclasses.replace(base.model, num_layers=12, width=512, num_heads=8),
        schedule=ScheduleConfig(warmup_steps=1_000),
        train=TrainConfig(num_steps=10_000, batch_size=128),
        log=LogConfig(measure_every=500, checkpoint_every=1_000),
    )
