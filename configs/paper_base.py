"""Appendix D of arXiv 2605.25880, with what it leaves open set as DECISIONS.md says.

24 layers of width 768 with 12 heads, 194 M parameters, LlamaTokenizer's 32,000 pieces,
512 sequences of 512 tokens a step, 50k steps (13.1 B tokens), 2k of warm-up, weight
decay 0.01, bfloat16. The paper ran each arm on 4 H100 GPUs.

The data are the user's: FineWeb-Edu prepared into data/fineweb_edu with the model file
of a LlamaTokenizer (`rfq prepare 'fineweb_edu/*.jsonl' --out data/fineweb_edu
--tokenizer tokenizer.model`).
"""

from rfq.experiment import (
    DataConfig,
    Experiment,
    LogConfig,
    QuantizeConfig,
    TasksConfig,
    TrainConfig,
)
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig


def config() -> Experiment:
    """The residual control: no temperature, GPT-2 initialization, AdamW at 1e-3."""
    return Experiment(
        arm="paper_base",
        # DECISIONS D193: no product twice, in the memory of a card of 80 GB.
        model=ModelConfig(
            skip="residual", beta=1.0, attention="auto", remat="products"
        ),
        init=InitConfig(recipe="gpt2"),
        optimizer=AdamWConfig(learning_rate=1e-3, weight_decay=0.01),
        schedule=ScheduleConfig(warmup_steps=2_000),
        data=DataConfig(dir="data/fineweb_edu", tokenizer="tokenizer.model"),
        train=TrainConfig(num_steps=50_000, batch_size=512),
        log=LogConfig(measure_every=1_000, checkpoint_every=1_000),
        # As the paper's tables have them; tasks.names says which are asked.
        tasks=TasksConfig(specs=QuantizeConfig().specs),
    )
