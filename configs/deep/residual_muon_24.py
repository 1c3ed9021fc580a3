"""`residual_muon` with 24 layers for 400 steps: nothing else.

rfq train configs/deep/residual_muon_24.py --out runs/deep/residual_muon_24
"""

import dataclasses
import pathlib

from rfq import experiment


def config() -> experiment.Experiment:
    """The arm of 12 layers, twice as deep."""
    base = experiment.load(pathlib.Path(__file__).parent / "residual_muon.py")
    return dataclasses.replace(
        base,
        arm="residual_muon_24",
        model=dataclasses.replace(base.model, num_layers=24, scan_unroll=24),
        schedule=dataclasses.replace(base.schedule, warmup_steps=40),
        train=dataclasses.replace(base.train, num_steps=400),
    )
