"""Fine-tuning: 200 more steps of AdamW from any run, on its data, at a small rate.

--optimizer muon or kl_shampoo, --train.num-steps and --data.dir with --data.tokenizer
change what they name.

rfq train continued/adamw --from runs/smollm2 --out runs/tuned
"""

import dataclasses

from rfq.experiment import Experiment, LogConfig, TrainConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig


def continued(run: Experiment) -> Experiment:
    """The run's model and data, with an optimizer and a length of their own."""
    size = run.train.batch_size
    return dataclasses.replace(
        run,
        arm=f"{run.arm}_adamw",
        model=dataclasses.replace(run.model, remat="block"),
        optimizer=AdamWConfig(learning_rate=2e-5),
        schedule=ScheduleConfig(warmup_steps=20),
        train=TrainConfig(num_steps=200, batch_size=size),
        log=LogConfig(
            log_every=5,
            measure_every=50,
            measure_sequences=run.log.measure_sequences,
            checkpoint_every=50,
        ),
    )
