"""The skips of any residual run taken away: their weight falls from 1 to 0.

The weight falls linearly over the first half of 400 steps and is 0 in the second half,
so that the run ends as a model without skip paths. Nothing is known of the best rate.

rfq train continued/without_skips --from runs/smollm2 --out runs/residual_free
"""

import dataclasses
import pathlib

from rfq import experiment


def continued(run: experiment.Experiment) -> experiment.Experiment:
    """The fine-tuning beside this file, longer and with weighted skips."""
    path = pathlib.Path(__file__).parent / "adamw.py"
    (base,) = experiment.load_arms(path, None, run)
    return dataclasses.replace(
        base,
        arm=f"{run.arm}_without_skips",
        model=dataclasses.replace(base.model, skip="weighted"),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-4),
        train=dataclasses.replace(base.train, num_steps=400, skip_anneal=0.5),
    )
