"""Seven billion parameters with the paper's recipe, for a pod of 256 devices.

rfq train large/residual_free_7b --dry-run --target cpu:256 --sharding.tensor 8
34 layers of width 4,096 with 32 heads; parameters are cut along the width over one mesh
axis and over heads, MLP and vocabulary over another; a batch is taken in four parts.
"""

import dataclasses
import pathlib

from rfq import experiment
from rfq.model.init import InitConfig
from rfq.optim import KLShampooConfig
from rfq.sharding import ShardingConfig


def config() -> experiment.Experiment:
    """The paper's residual-free arm, larger."""
    base = experiment.load(pathlib.Path(__file__).parents[1] / "paper_base.py")
    return dataclasses.replace(
        base,
        arm="residual_free_7b",
        model=dataclasses.replace(
            base.model,
            num_layers=34,
            width=4096,
            num_heads=32,
            seq_len=2048,
            skip="residual_free",
            beta=1.1,
            remat="block",
        ),
        init=InitConfig(recipe="orthogonal"),
        optimizer=KLShampooConfig(learning_rate=5e-4),
        sharding=ShardingConfig(strategy="fsdp_tp", microbatches=4),
    )
