"""Ask a finished run the tasks, under every setting, and write the rows."""

import pathlib
import time
from typing import Any

from rfq import distributed, metrics, ptq, rows, runs, settings, sharding
from rfq.experiment import Experiment
from rfq.quant.spec import QuantSpec
from rfq.rows import Setting
from rfq.tasks import questions, scoring


def run(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Ask the tasks of `experiment.tasks` under its specs on a finished run.

    Appends a row per `Setting` to quantize/tasks.jsonl, with the fields of
    `questions.summarize`, and writes what was answered to each document to the file
    `items` of quantize/items. Rows that are already there are kept.

    Returns:
        The rows that were asked for, in the order of the settings.

    Raises:
        InputError: as `ptq.run`; a task's file is missing or wrong.
        Preempted: as `ptq.run`.
    """
    runs.require_finished(experiment, run_dir)
    with runs.alone_in(run_dir):
        return _run(experiment, run_dir)


def _run(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Ask the settings one after the other, each where it was not asked yet."""
    asked = questions.load(experiment, sharding.make_mesh(config=experiment.sharding))
    sweep, common = ptq.opened(experiment, run_dir)
    path, folder = run_dir / "quantize" / "tasks.jsonl", run_dir / "quantize" / "items"
    metrics.make_directory(folder)
    kept = {
        settings.of(row): row
        for row in ptq.matching(path, common)
        if row.get("questions") == asked.digest
    }
    wanted = settings.every(experiment, experiment.tasks.specs)
    missing = [setting for setting in wanted if setting not in kept]
    needed = {
        needs(setting, experiment): None
        for setting in missing
        for needs in (settings.full, settings.canonical)
    }
    answered: dict[Setting, scoring.Answers] = {}
    num_batches = len(asked.plan.batches)
    name = f"tasks {experiment.arm} seed {experiment.seed}"
    with (
        metrics.progress(name, len(needed) * num_batches) as bar,
        distributed.preemption() as told_to_end,
    ):
        for number, setting in enumerate(missing, start=1):
            started = time.perf_counter()
            full = settings.full(setting, experiment)
            own = settings.canonical(setting, experiment)
            for one in (full, own):
                if one not in answered:
                    before = len(answered) * num_batches
                    answered[one] = sweep.answer(
                        one,
                        asked.plan,
                        lambda done, at=before, spec=one.spec: bar.update(
                            at + done, spec
                        ),
                    )
            spec = QuantSpec.parse(setting.spec)
            items = f"{'-'.join(map(str, (*setting, asked.digest)))}.jsonl"
            bits = {"weight_bits": spec.weight_bits, "act_bits": spec.act_bits}
            row = rows.make(
                "tasks",
                {**common, "questions": asked.digest},
                setting._asdict(),
                bits,
                questions.summarize(asked, answered[own], answered[full]),
                {"items": items, "seconds": time.perf_counter() - started},
            )
            metrics.rewrite(folder / items, questions.items(asked, answered[own]))
            metrics.append(path, row)
            kept[setting] = row
            if told_to_end():
                raise ptq.preempted(number, len(missing), path)
    return [kept[setting] for setting in wanted]
