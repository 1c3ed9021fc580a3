"""`residual_free_muon` with 24 layers, 400 steps: sharper, a smaller rate.

rfq train configs/deep/residual_free_muon_24.py --out runs/deep/mine
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import alpha_qk_for


def config() -> experiment.Experiment:
    """The arm of 12 layers, twice as deep."""
    base = experiment.load(pathlib.Path(__file__).parent / "residual_free_muon.py")
    return dataclasses.replace(
        base,
        arm="residual_free_muon_24",
        model=dataclasses.replace(base.model, num_layers=24, scan_unroll=24),
        init=dataclasses.replace(
            base.init, alpha_qk=alpha_qk_for(16.0, base.model.head_width)
        ),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
        schedule=dataclasses.replace(base.schedule, warmup_steps=40),
        train=dataclasses.replace(base.train, num_steps=400),
    )
