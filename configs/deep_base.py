"""What the deep arms share: the demo's decoder with 12 layers.

Sizes, batch and schedule are the demo's; D108 of `rfq/DECISIONS.md` has the recipe of
the arms without skip paths, and where its rates come from.
"""

import dataclasses
import pathlib

from rfq import experiment


def config() -> experiment.Experiment:
    """The demo's residual decoder, twice as deep."""
    base = experiment.load(pathlib.Path(__file__).parent / "demo_base.py")
    return dataclasses.replace(
        base,
        arm="deep_base",
        model=dataclasses.replace(base.model, num_layers=12, scan_unroll=12),
    )
